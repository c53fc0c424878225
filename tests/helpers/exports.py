"""Write one small data set as each labelling tool exports it, for tests of what is read back.

A region is a class and a rectangle of whole pixels: its mask is the same from polygons and from stored pixels.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 16, 24
NAMES = ("Katze, schwarz", "été", "yes", "on", "1e3", "null", "leaf blade")
"""Names that YAML, CSV, XML or file names may spoil."""


@dataclass(frozen=True)
class Region:
    """A class, and the first and last row and column."""

    name: str
    top: int
    left: int
    bottom: int
    right: int

    def mask(self) -> np.ndarray:
        """Bool H,W."""
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[self.top : self.bottom + 1, self.left : self.right + 1] = True
        return mask

    @property
    def points(self) -> list[list[int]]:
        """The centres of its corner pixels, x, y."""
        top, left, bottom, right = self.top, self.left, self.bottom, self.right
        return [[left, top], [right, top], [right, bottom], [left, bottom]]


Samples = dict[str, list[Region]]
"""By the name of an image its regions, which do not overlap."""


def samples(seed: int, names: tuple[str, ...] = NAMES, count: int = 3) -> Samples:
    """Images whose columns belong to one region each; the names of files have spaces, commas and accents."""
    generator = np.random.default_rng(seed)
    result: Samples = {}
    for index in range(count):
        lefts = [0, 6, 12, 18]
        chosen = generator.choice(len(names), len(lefts), replace=len(names) < len(lefts))
        tops = generator.integers(0, 8, len(lefts))
        result[f"é {seed}, {index}"] = [
            Region(names[name], int(top), left, int(top) + 6, left + 4)
            for name, top, left in zip(chosen, tops, lefts, strict=True)
        ]
    return result


def truth(regions: list[Region], names: tuple[str, ...]) -> np.ndarray:
    """The ids that a reader should give, for the names of its classes."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for region in regions:
        mask[region.mask()] = names.index(region.name)
    return mask


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """A photograph, of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)


def save_text(path: Path, text: str) -> None:
    """A file of UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def cvat_runs(mask: np.ndarray) -> list[int]:
    """Run lengths of background and object by turns, along rows."""
    flat = np.concatenate([[0], mask.ravel().astype(int)])
    edges = [0, *np.flatnonzero(np.diff(flat)).tolist(), mask.size]
    return np.diff(edges).tolist()


def png(mask: np.ndarray) -> bytes:
    """A PNG of one bit."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(bool)).save(file, "PNG")
    return file.getvalue()


def brush(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of an RGBA image that is opaque in the mask."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    edges = [0, *(np.flatnonzero(np.diff(values.astype(int))) + 1).tolist(), values.size]
    for start, end in zip(edges, edges[1:], strict=False):
        bits += f"1{3:02b}{end - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def cvat(root: Path, data: Samples, names: tuple[str, ...] = NAMES, split: str = "annotations") -> Path:
    """CVAT for images, masks of pixels and polygons by turns."""
    parts = ['<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><labels>']
    parts += [f"<label><name>{name}</name><attributes></attributes></label>\n" for name in names]
    parts.append("</labels></task></meta>\n")
    for number, (stem, regions) in enumerate(data.items()):
        save_image(root / "images" / f"{stem}.png")
        parts.append(f'<image id="{number}" name={quoteattr(stem + ".png")} width="{WIDTH}" height="{HEIGHT}">\n')
        for place, region in enumerate(regions):
            label = f"label={quoteattr(region.name)} source='manual' occluded='0' z_order='0'"
            if place % 2:
                pairs = ";".join(f"{x}.00,{y}.00" for x, y in region.points)
                parts.append(f'<polygon {label} points="{pairs}"></polygon>\n')
            else:
                inner = region.mask()[region.top : region.bottom + 1, region.left : region.right + 1]
                box = f'left="{region.left}" top="{region.top}" width="{inner.shape[1]}" height="{inner.shape[0]}"'
                runs = ", ".join(map(str, cvat_runs(inner)))
                parts.append(f'<mask {label} rle="{runs}" {box}></mask>\n')
        parts.append("</image>\n")
    save_text(root / f"{split}.xml", "".join([*parts, "</annotations>\n"]))
    return root / f"{split}.xml"


def labelme(root: Path, data: Samples, names: tuple[str, ...] = NAMES) -> Path:
    """LabelMe's JSON, beside the images."""
    for stem, regions in data.items():
        save_image(root / f"{stem}.png")
        shapes = [{"label": region.name, "points": region.points, "shape_type": "polygon"} for region in regions]
        document = {"version": "5.5", "shapes": shapes, "imagePath": f"{stem}.png"}
        document |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        save_text(root / f"{stem}.json", json.dumps(document, ensure_ascii=False, indent=1))
    return root / f"{next(iter(data))}.json"


def labelme_xml(root: Path, data: Samples, names: tuple[str, ...] = NAMES, split: str = "home") -> Path:
    """LabelMe 3.0, polygons and masks by turns."""
    for stem, regions in data.items():
        save_image(root / "Images" / split / f"{stem}.png")
        parts = [f"<annotation>\n<filename>{stem}.png</filename>\n<folder>{split}</folder>"]
        parts.append(f"<imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize>\n")
        for place, region in enumerate(regions):
            pairs = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in region.points)
            shape = f"<polygon>{pairs}</polygon>\n"
            if place % 2:
                shape = f"<segm><mask>{stem}_{place}.png</mask></segm>\n"
                (root / "Masks" / split).mkdir(parents=True, exist_ok=True)
                (root / "Masks" / split / f"{stem}_{place}.png").write_bytes(png(region.mask()))
            parts.append(f"<object><name>{region.name}</name><deleted>0</deleted>{shape}</object>\n")
        save_text(root / "Annotations" / split / f"{stem}.xml", "".join([*parts, "</annotation>\n"]))
    return root / "Annotations" / split / f"{next(iter(data))}.xml"


def label_studio_result(region: Region, place: int) -> dict[str, object]:
    """A brush or a polygon in percent."""
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    if place % 2:
        value = {"format": "rle", "rle": brush(region.mask()), "brushlabels": [region.name]}
    else:
        points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in region.points]
        value = {"points": points, "closed": True, "polygonlabels": [region.name]}
    kind = "brushlabels" if place % 2 else "polygonlabels"
    return {"id": f"r{place}", "type": kind, "from_name": "tag", "to_name": "image", "value": value, **size}


def label_studio_task(number: int, stem: str, regions: list[Region]) -> dict[str, object]:
    """A task with one annotation, of an image that was uploaded."""
    results = [label_studio_result(region, place) for place, region in enumerate(regions)]
    annotation = {"id": 10 + number, "completed_by": 1, "was_cancelled": False, "ground_truth": False}
    annotation |= {"result": results, "updated_at": "2026-01-01T00:00:00.000000Z"}
    upload = f"0123abc{number}-{stem.replace(' ', '_').replace(',', '')}.png"
    data = {"image": f"/data/upload/1/{upload}"}
    return {"id": number, "file_upload": upload, "data": data, "annotations": [annotation], "predictions": []}


def label_studio(root: Path, data: Samples, names: tuple[str, ...] = NAMES) -> Path:
    """Label Studio's JSON; the images have their own names."""
    tasks = [label_studio_task(number, stem, regions) for number, (stem, regions) in enumerate(data.items())]
    for stem in data:
        save_image(root / "images" / f"{stem}.png")
    save_text(root / "project-1-at-2026-01-01-00-00-0123abcd.json", json.dumps(tasks, ensure_ascii=False, indent=1))
    return root / "project-1-at-2026-01-01-00-00-0123abcd.json"


def label_studio_min(root: Path, data: Samples, names: tuple[str, ...] = NAMES) -> Path:
    """Label Studio's JSON-MIN."""
    records = []
    for number, (stem, regions) in enumerate(data.items()):
        save_image(root / "images" / f"{stem}.png")
        results = [label_studio_result(region, place) for place, region in enumerate(regions)]
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        values = [{**result["value"], **size} for result in results]  # type: ignore[dict-item]
        record = {"image": f"/data/local-files/?d=photos/{stem}.png", "id": number, "tag": values, "annotator": 1}
        records.append(record | {"annotation_id": 10 + number, "updated_at": "2026-01-01"})
    save_text(root / "min.json", json.dumps(records, ensure_ascii=False))
    return root / "min.json"


def supervisely_object(region: Region, place: int) -> dict[str, object]:
    """A bitmap with its corner, or a polygon."""
    if place % 2:
        points = {"exterior": region.points, "interior": []}
        return {"classTitle": region.name, "geometryType": "polygon", "points": points}
    inner = region.mask()[region.top : region.bottom + 1, region.left : region.right + 1]
    data = base64.b64encode(zlib.compress(png(inner))).decode()
    bitmap = {"data": data, "origin": [region.left, region.top]}
    return {"classTitle": region.name, "geometryType": "bitmap", "bitmap": bitmap}


def supervisely(root: Path, data: Samples, names: tuple[str, ...] = NAMES, split: str = "ds0") -> Path:
    """A project of one dataset."""
    save_text(root / "meta.json", json.dumps({"classes": [{"title": name, "shape": "any"} for name in names]}))
    for stem, regions in data.items():
        save_image(root / split / "img" / f"{stem}.png")
        objects = [supervisely_object(region, place) for place, region in enumerate(regions)]
        document = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
        save_text(root / split / "ann" / f"{stem}.png.json", json.dumps(document, ensure_ascii=False, indent=1))
    return root / split / "ann" / f"{next(iter(data))}.png.json"


def coco(root: Path, data: Samples, names: tuple[str, ...] = NAMES) -> Path:
    """COCO's JSON with polygons and RLE by turns."""
    images, annotations = [], []
    for number, (stem, regions) in enumerate(data.items()):
        save_image(root / "images" / f"{stem}.png")
        images.append({"id": number, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH})
        for place, region in enumerate(regions):
            segmentation: object = [np.ravel(region.points).tolist()]
            if place % 2:
                segmentation = {"size": [HEIGHT, WIDTH], "counts": cvat_runs(region.mask().T)}
            annotation = {"id": len(annotations), "image_id": number, "category_id": 5 * names.index(region.name)}
            annotation |= {"segmentation": segmentation, "iscrowd": 0, "area": int(region.mask().sum())}  # type: ignore[dict-item]
            annotations.append(annotation)
    categories = [{"id": 5 * index, "name": name} for index, name in enumerate(names)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    save_text(root / "annotations.json", json.dumps(document, ensure_ascii=False, indent=1))
    return root / "annotations.json"


def yolo(root: Path, data: Samples, names: tuple[str, ...] = NAMES) -> Path:
    """YOLO's polygons, with the names as Ultralytics writes them: without quotes."""
    save_text(root / "data.yaml", "names:\n" + "".join(f"  {index}: {name}\n" for index, name in enumerate(names)))
    for stem, regions in data.items():
        save_image(root / "images" / f"{stem}.png")
        lines = [
            f"{names.index(region.name)} " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in region.points)
            for region in regions
        ]
        save_text(root / "labels" / f"{stem}.txt", "\n".join(lines) + "\n")
    return root / "labels" / f"{next(iter(data))}.txt"


def cvat_masks(root: Path, data: Samples, names: tuple[str, ...] = NAMES, split: str = "default") -> Path:
    """CVAT's Segmentation mask 1.1: VOC's layout with a labelmap."""
    colours = {name: (10 * index + 5, 200 - index, 7) for index, name in enumerate(names)}
    rows = [f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in colours.items()]
    save_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + "".join(rows))
    (root / "SegmentationClass").mkdir(parents=True, exist_ok=True)
    for stem, regions in data.items():
        save_image(root / "JPEGImages" / f"{stem}.png")
        picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for region in regions:
            picture[region.mask()] = colours[region.name]
        Image.fromarray(picture).save(root / "SegmentationClass" / f"{stem}.png")
    save_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{stem}\n" for stem in data))
    return root / "labelmap.txt"


def roboflow(root: Path, data: Samples, names: tuple[str, ...] = NAMES) -> Path:
    """Roboflow's semantic masks, in one folder."""
    quoted = [f'"{name}"' if "," in name else name for name in names]
    rows = "".join(f"{index}, {name}\n" for index, name in enumerate(["background", *quoted]))
    save_text(root / "_classes.csv", "Pixel Value, Class\n" + rows)
    for stem, regions in data.items():
        save_image(root / f"{stem}.jpg")
        Image.fromarray(truth(regions, ("background", *names))).save(root / f"{stem}_mask.png")
    return root / "_classes.csv"


Writer = Callable[[Path, Samples, tuple[str, ...]], Path]
WRITERS: dict[str, tuple[str, Writer]] = {
    "cvat": ("cvat", cvat),
    "labelme": ("labelme", labelme),
    "labelme_xml": ("labelme_xml", labelme_xml),
    "label_studio": ("label_studio", label_studio),
    "label_studio_min": ("label_studio", label_studio_min),
    "supervisely": ("supervisely", supervisely),
    "coco": ("instances", coco),
    "yolo": ("yolo", yolo),
    "cvat_masks": ("voc", cvat_masks),
    "roboflow": ("roboflow", roboflow),
}
"""By name the layout that it is, and the writer, which returns the annotation file of the first image or of all."""
