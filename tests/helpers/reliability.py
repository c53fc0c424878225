"""How a test of the marker ``slow`` hands its figure to ``scripts/soak``, and how often it is to do what it does.

    count = counted(50)                                   # 50, or as ATROUS_TEST_SCALE says
    ...
    record("a killed save", f"{resumed} of {count} resume")

`record` prints the figure, and appends it as a line of JSON to the file that ``ATROUS_SOAK_FILE`` names.
"""

import json
import os


def counted(full: int, least: int = 1) -> int:
    """The full count of a test times the environment's ``ATROUS_TEST_SCALE``, and `least` at least."""
    return max(least, round(full * float(os.environ.get("ATROUS_TEST_SCALE", "1"))))


def record(row: str, figure: str) -> None:
    """Note what was measured for a row of the table of ``docs/reliability.md``; several figures of a row add up."""
    print(f"\n{row}: {figure}")
    file = os.environ.get("ATROUS_SOAK_FILE")
    if file:
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"row": row, "figure": figure}) + "\n")
