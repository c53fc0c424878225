"""The code of docs/deploy.md, run as it stands on exported files: every runtime gives the model's classes.

``ATROUS_NODE_MODULES`` names a folder that holds onnxruntime-web (``npm install onnxruntime-web``),
``ATROUS_ONNXRUNTIME_INCLUDE`` one that holds ``onnxruntime_cxx_api.h``, and ``ATROUS_LITERT_PYTHON`` a Python that has
litert-torch. What is absent leaves its test out, which says so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atrous.data.images.image_io import read_image
from atrous.data.labels import voc_palette
from atrous.deployment.export import export
from atrous.deployment.network import Interface, WholeNetwork
from atrous.models.deeplab import DeepLabV3
from atrous.models.weights import ModelCard, load, save

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
CONVERTER = os.environ.get("ATROUS_LITERT_PYTHON") or (
    sys.executable if importlib.util.find_spec("litert_torch") else ""
)


def code_of(title: str) -> str:
    """The first block of code below a heading."""
    section = DOCS.split(f"\n## {title}\n")[1]
    match = re.search(r"```\w+\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph, and the weights of a small network."""
    folder = tmp_path_factory.mktemp("deploy")
    shutil.copy(ROOT / "src/atrous/prediction/assets/cow.jpg", folder / "photo.jpg")
    torch.manual_seed(0)
    model = DeepLabV3("timm/lcnet_050", 21).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    save(model, folder / "mine.safetensors", card_of(model))
    return folder


def card_of(model: DeepLabV3) -> ModelCard:
    names = tuple(f"class {i}" for i in range(model.num_classes))
    return ModelCard(model.arguments, names, voc_palette(len(names)), model.mean, model.std, output_stride=16)


def exported(folder: Path, name: str) -> Path:
    """The file of one format, made once."""
    path = folder / name
    if not path.is_file():
        export(folder / "mine.safetensors", path, format=FORMATS[path.suffix])
    return path


def expected(pixels: np.ndarray, folder: Path) -> np.ndarray:
    """The model's classes."""
    model, _ = load(folder / "mine.safetensors")
    with torch.inference_mode():
        return WholeNetwork(model, Interface())(torch.from_numpy(pixels)[None])[0].numpy()


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("ONNX Runtime, Python", "mine.onnx"),
        ("OpenVINO, Python", "mine.xml"),
        ("PyTorch without this package", "mine.pt2"),
    ],
)
def test_python(title: str, name: str, folder: Path) -> None:
    exported(folder, name)
    (folder / "mask.png").unlink(missing_ok=True)
    code = f"import sys; sys.modules['atrous'] = None\n{code_of(title)}"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, check=True)
    actual = np.array(Image.open(folder / "mask.png"))
    photo = Image.open(folder / "photo.jpg").convert("RGB")
    photo.thumbnail((640, 640))
    assert (actual == expected(np.array(photo), folder)).mean() >= 0.999


@pytest.mark.skipif(not CONVERTER, reason="litert-torch is not here, and ATROUS_LITERT_PYTHON names no Python with it")
def test_litert(folder: Path) -> None:
    words = ["export", "mine.safetensors", "--format", "litert", "--size", "480x640", "--out", "mine.tflite"]
    subprocess.run([CONVERTER, "-m", "atrous", *words], cwd=folder, check=True)
    (folder / "mask.png").unlink(missing_ok=True)
    code = f"import sys; sys.modules['atrous'] = None\n{code_of('LiteRT, Python')}"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, check=True)
    photo = Image.open(folder / "photo.jpg").convert("RGB").resize((640, 480))
    assert (np.array(Image.open(folder / "mask.png")) == expected(np.array(photo), folder)).mean() >= 0.999


def test_cpp(folder: Path, tmp_path: Path) -> None:
    include = os.environ.get("ATROUS_ONNXRUNTIME_INCLUDE")
    if not include or shutil.which("g++") is None:
        pytest.skip("ATROUS_ONNXRUNTIME_INCLUDE names no folder with onnxruntime_cxx_api.h, or there is no g++")
    import onnxruntime

    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    main = """
#include <fstream>
#include <iterator>
#include <string>
int main(int, char** argv) {
    Ort::Env env; Ort::Session session(env, "mine.onnx", Ort::SessionOptions{});
    std::ifstream in("photo.bin", std::ios::binary);
    std::vector<uint8_t> rgb((std::istreambuf_iterator<char>(in)), {});
    auto ids = segment(session, rgb, std::stoi(argv[1]), std::stoi(argv[2]));
    std::ofstream("classes.bin", std::ios::binary).write(reinterpret_cast<char*>(ids.data()), ids.size());
}
"""
    (tmp_path / "main.cpp").write_text(code_of("ONNX Runtime, C++") + main, encoding="utf-8")
    command = ["g++", "-std=c++17", f"-I{include}", "main.cpp", "-L.", "-lonnxruntime", f"-Wl,-rpath,{tmp_path}"]
    subprocess.run([*command, "-o", "main"], cwd=tmp_path, check=True)
    pixels = read_image(folder / "photo.jpg")
    pixels.tofile(folder / "photo.bin")
    exported(folder, "mine.onnx")
    subprocess.run([tmp_path / "main", *map(str, pixels.shape[:2])], cwd=folder, check=True)
    actual = np.fromfile(folder / "classes.bin", np.uint8).reshape(pixels.shape[:2])
    assert (actual == expected(pixels, folder)).mean() >= 0.999


def test_javascript(folder: Path, tmp_path: Path) -> None:
    modules = os.environ.get("ATROUS_NODE_MODULES")
    if not modules or not Path(modules, "onnxruntime-web").is_dir() or shutil.which("node") is None:
        pytest.skip("ATROUS_NODE_MODULES names no folder with onnxruntime-web, or there is no node")
    (tmp_path / "node_modules").symlink_to(Path(modules).resolve())
    (tmp_path / "segment.mjs").write_text(code_of("onnxruntime-web, JavaScript"), encoding="utf-8")
    main = """
import { readFileSync, writeFileSync } from "node:fs";
import { open, segment } from "./segment.mjs";
const [file, height, width] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const session = await open(readFileSync(file));
writeFileSync("classes.bin", await segment(session, new Uint8Array(readFileSync("photo.bin")), height, width));
process.exit(0);
"""
    (tmp_path / "main.mjs").write_text(main, encoding="utf-8")
    pixels = read_image(folder / "photo.jpg")[::2, ::2]
    np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], 2).tofile(tmp_path / "photo.bin")
    words = [str(exported(folder, "mine.onnx")), *map(str, pixels.shape[:2])]
    subprocess.run(["node", "main.mjs", *words], cwd=tmp_path, check=True)
    actual = np.fromfile(tmp_path / "classes.bin", np.uint8).reshape(pixels.shape[:2])
    assert (actual == expected(np.ascontiguousarray(pixels), folder)).mean() >= 0.999
