"""List 100,000 pairs of images and masks: seconds and memory, for `python -m benchmarks.listing`.

Makes the files, links to one image and one mask, in a temporary folder; then lists, opens and divides the data set in a
process of its own, and prints one JSON object: seconds, and how far peak and resident memory grew, in MB.

    python -m benchmarks.listing [PAIRS]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

_MOST_LINKS = 50_000
"""To one file; file systems have a limit."""


def make(root: Path, pairs: int, layout: str) -> None:
    """Pairs of the layout `folder`, with dataset.yaml, `pairs`, without names, or `beside`, in one folder."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))
    ids = Image.fromarray(np.eye(48, 64, dtype=np.uint8))
    home = root / layout
    split = "train" if layout == "folder" else ""
    images, masks = (home / "images" / split, home / "masks" / split) if layout != "beside" else (home, home)
    for folder in {images, masks}:
        folder.mkdir(parents=True)
    for number in range(pairs):
        image, mask = (root / f"{number // _MOST_LINKS}.{suffix}" for suffix in ("jpg", "png"))
        if number % _MOST_LINKS == 0:
            photo.save(image)
            ids.save(mask)
        name = f"sequence-0001_frame-{number:07d}"
        os.link(image, images / f"{name}.jpg")
        os.link(mask, masks / f"{name}{'_mask' if layout == 'beside' else ''}.png")
    if layout == "folder":
        (home / "dataset.yaml").write_text("names: [background, leaf]\n")


def resident() -> float:
    """Memory of this process, MB."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(data: str, split: str) -> dict[str, float]:
    """Seconds to list, to open and to read an item, and growth of memory, in this process."""
    from atrous.data.datasets.dataset import list_split, open_dataset, splits

    before, peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    start, worked = time.perf_counter(), time.process_time()
    there = splits(data)
    listing = list_split(data, split)
    listed, worked = time.perf_counter() - start, time.process_time() - worked
    assert split in there
    held, most = resident() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - peak
    start = time.perf_counter()
    dataset = open_dataset(data, "train")
    _ = dataset[len(dataset) // 2]
    return {
        "pairs": len(listing.items),
        "list_s": round(listed, 2),
        "list_cpu_s": round(worked, 2),
        "held_mb": round(held, 1),
        "peak_growth_mb": round(most, 1),
        "open_train_s": round(time.perf_counter() - start, 2),
    }


def main() -> None:
    """Make the data of each layout, and measure it in a new process."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    for layout, split in (("folder", "train"), ("pairs", "all"), ("beside", "all")):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), pairs, layout)
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.listing", str(Path(folder) / layout), split]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(json.dumps({"layout": layout} | result))


if __name__ == "__main__":
    main()
