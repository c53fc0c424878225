"""What int8 costs: mIoU on val before and after, file sizes, and the layers that stay float, by `atrous export`.

    pip install '.[onnx,openvino]'
    python -m benchmarks.quantised --pair objects-mobilenetv2 data/objects \
        --pair camvid-mobilenet_edgetpu_075 data/camvid [--formats onnx openvino] [--json FILE]

A file is written however much it loses; the rows of docs/performance.md are printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from atrous.deployment.export import export
from atrous.deployment.formats import FORMATS


def row(model: str, data: str, format: str, folder: Path) -> dict[str, Any]:
    """One network in one format, in float32 and in int8."""
    suffix = FORMATS[format].suffix
    plain = export(model, folder / f"float{suffix}", format=format)
    small = export(model, folder / f"int8{suffix}", format=format, int8=True, data=data, max_loss=100.0, say=print)
    assert small.int8 is not None and small.miou is not None
    return {"model": model, "format": format, "bytes": plain.bytes, "int8_bytes": small.bytes, "miou": small.miou,
            "method": small.int8.method, "tried": small.int8.tried, "float_layers": small.int8.float_layers,
            "versions": small.info["versions"]}  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    before, after = (100 * row["miou"][name] for name in ("model", "file"))
    sizes = f"{row['bytes'] / 1e6:.2f} to {row['int8_bytes'] / 1e6:.2f} MB"
    return (f"| `{row['model']}` | {row['format']} | {before:.2f} | {after:.2f} | {before - after:+.2f} | {sizes} | "
            f"{row['method']} | {len(row['float_layers'])} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, action="append", required=True, metavar=("MODEL", "DATA"))
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, data in args.pair:
            for format in args.formats:
                rows.append(row(model, data, format, Path(folder)))
                print(shown(rows[-1]), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print("| | format | mIoU, float32 | int8 | lost | file | ranges | layers in float |\n|" + " --- |" * 8)
    print("\n".join(map(shown, rows)))


if __name__ == "__main__":
    main()
