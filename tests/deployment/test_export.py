"""`atrous export` and what it writes, in the real runtimes: the model's classes at any size, in any batch."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atrous.cli.parser import main
from atrous.data.labels import voc_palette
from atrous.deployment.export import ELSEWHERE, export, parse_size, target_of
from atrous.deployment.network import Interface, WholeNetwork, lean
from atrous.deployment.parity import ParityError, first_difference
from atrous.models.deeplab import DeepLabV3
from atrous.models.exported import open_file
from atrous.models.weights import ModelCard, load, load_into, save
from atrous.ops.normalization import Normalization
from atrous.prediction.predictor import Predictor

SIZES = [(40, 50), (33, 49), (1, 21)]
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scales": (0.75, 1.5), "flip": True},
    {"longest_side": 0, "window": 129},
]
PIXELS = Interface()
INTEGRATION = pytest.mark.integration
Weights = Callable[..., Path]
Sizes = list[tuple[int, int]]


def write_weights(
    folder: Path, backbone: str = "resnet18", classes: int = 3, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """A weight file of a small random network."""
    torch.manual_seed(0)
    model = DeepLabV3(backbone, classes, **{"aspp_rates": (1, 2), **options}).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    card = ModelCard(model.arguments, tuple(f"class {i}" for i in range(classes)), voc_palette(classes), model.mean,
                     model.std, output_stride=model.output_stride, licence="CC0")  # fmt: skip
    save(model.to(dtype), folder / "small.safetensors", card)
    return folder / "small.safetensors"


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """`write_weights` into the test's folder."""
    return functools.partial(write_weights, tmp_path)


def assert_same(
    path: Path, source: Path, *, interface: Interface = PIXELS, least: float = 0.999, sizes: Sizes = SIZES
) -> None:
    """The file gives the model's classes, or logits, for three sizes and two batches."""
    runtime = open_file(path)
    model, _ = load(source, output_stride=runtime.info["output_stride"])
    whole = WholeNetwork(model, interface).eval()
    for size in [interface.size] if interface.size else sizes:
        for batch in (1, 2):
            images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8)
            if interface.raw_input:
                images = Normalization(model.mean, model.std)(images.permute(0, 3, 1, 2))
            with torch.no_grad():
                expected = whole(images)
            actual = runtime.run(images)
            assert actual.shape == expected.shape and actual.dtype == expected.dtype
            if interface.logits:
                torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
            else:
                assert float((actual == expected).float().mean()) >= least, (size, batch)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A weight file, and the torch program that was exported from it over another file. To be read only."""
    folder = tmp_path_factory.mktemp("small")
    source = write_weights(folder, "timm/lcnet_050", head="cascade", last_block=4)
    out, said = folder / "program" / "small.pt2", list[str]()
    out.parent.mkdir()
    out.write_bytes(b"before")
    report = export(source, out, format="torch", say=said.append)
    assert said[0] == f"{out} is there already: it is replaced once the new one has passed"
    assert report.parity is not None and report.parity.agreement >= 0.999 and (report.parity.error or 0) < 1e-3
    return source, report.path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[str], Path]]:
    """A weight file, and by format what is exported from it with the usual options, once. To be read only."""
    folder = tmp_path_factory.mktemp("plain")
    source = write_weights(folder, "timm/lcnet_050")
    return source, functools.cache(lambda kind: export(source, folder / f"small{FORMATS[kind]}", format=kind).path)


@pytest.mark.integration
def test_torch(small: tuple[Path, Path]) -> None:
    source, path = small
    assert_same(path, source)
    assert load(path)[1] == load(source)[1]


@pytest.mark.integration
def test_a_file_that_is_replaced_is_the_new_one_alone(small: tuple[Path, Path]) -> None:
    source, out = small
    assert load(out)[1] == load(source)[1] and os.listdir(out.parent) == ["small.pt2"]


@pytest.mark.integration
def test_a_torch_program_is_a_model(small: tuple[Path, Path], tmp_path: Path) -> None:
    source, path = small
    photograph = np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8)
    for options in OPTIONS:
        expected = Predictor.load(source, device="cpu", dtype=torch.float32, **options)(photograph)
        actual = Predictor.load(path, device="cpu", **options)(photograph)
        assert (expected.mask == actual.mask).mean() >= 0.999 and actual.labels == expected.labels, options


@pytest.mark.integration
@pytest.mark.parametrize(
    ("format", "backbone", "options", "stride"),
    [
        ("onnx", "resnet18", {"head": "cascade", "last_block": 5, "multi_grid": (1, 2)}, 8),
        ("onnx", "timm/tf_efficientnet_lite0", {"multi_grid": (1, 2, 1)}, 8),
        ("onnx", "timm/lcnet_050", {"classes": 255, "dtype": torch.bfloat16}, 16),
        ("openvino", "timm/tf_efficientnet_lite0", {"multi_grid": (1, 2, 1)}, 16),
        ("openvino", "timm/lcnet_050", {"classes": 1}, 32),
        ("onnx", "resnet18", {"upsampling": "half_pixel", "aspp_projection": 3}, 8),
        ("openvino", "timm/lcnet_050", {"upsampling": "corners"}, 16),
        ("torch", "timm/tf_efficientnet_lite0", {"multi_grid": (1, 2, 1)}, 8),
        ("torch", "timm/lcnet_050", {"upsampling": "half_pixel"}, 16),
        ("torch", "resnet18", {"upsampling": "corners"}, 8),
    ],
)
def test_networks(
    format: str, backbone: str, options: dict[str, Any], stride: int, weights: Weights, tmp_path: Path
) -> None:
    source = weights(backbone, **options)
    report = export(source, tmp_path / f"small{FORMATS[format]}", format=format, output_stride=stride)
    assert report.info["output_stride"] == stride and report.parity is not None
    small = format == "torch" and "upsampling" in options  # such a program wants more than one feature a side
    assert_same(report.path, source, sizes=[(stride + 1, 63), *SIZES[:2]] if small else SIZES)


@pytest.mark.parametrize(
    ("format", "interface"),
    [
        pytest.param("onnx", Interface(logits=True), marks=INTEGRATION),
        pytest.param("onnx", Interface(raw_input=True, logits=True, size=(33, 49)), marks=INTEGRATION),
        pytest.param("openvino", Interface(raw_input=True), marks=INTEGRATION),
        pytest.param("openvino", Interface(size=(40, 50)), marks=INTEGRATION),
        pytest.param("onnx", Interface(size=(40, 51)), marks=INTEGRATION),
        ("torch", Interface(raw_input=True, logits=True, size=(33, 49))),  # in the default run: the cheapest of all
    ],
)
def test_what_goes_in_and_out(format: str, interface: Interface, weights: Weights, tmp_path: Path) -> None:
    source = weights("timm/lcnet_050")
    report = export(source, tmp_path / f"small{FORMATS[format]}", format=format, interface=interface)
    assert_same(report.path, source, interface=interface)


@pytest.mark.integration
@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_an_exported_file_is_a_model(format: str, weights: Weights, tmp_path: Path, tiny_data: Path) -> None:
    """The same masks from predict with scales, flips and windows; the same mIoU from eval; the same from label."""
    source = weights("resnet18", classes=4, image_pooling=False)
    names = json.loads(json.dumps(["ground", "red", "green", "blue"]))
    model, card = load(source)
    model.longest_side = 60
    card = ModelCard(**{**card.__dict__, "names": tuple(names), "longest_side": 60})
    save(model, source, card)
    path = export(source, tmp_path / f"small{FORMATS[format]}", format=format, data=str(tiny_data)).path
    photograph = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8)).save(photograph)
    for options in OPTIONS:
        expected = Predictor.load(source, device="cpu", dtype=torch.float32, **options)(photograph)
        actual = Predictor.load(path, device="cpu", **options)(photograph)
        assert (expected.mask == actual.mask).mean() >= 0.999 and actual.labels == expected.labels, options
    assert main(["eval", str(path), "--data", str(tiny_data), "--json"]) == 0
    assert main(["predict", str(path), str(photograph), "--out", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "masks" / "photograph.png").is_file()
    labelled = tmp_path / "labelled"
    assert main(["label", str(path), str(photograph), "--data", str(labelled), "--confidence", "0"]) == 0


@pytest.mark.integration
def test_another_output_stride_and_training_are_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    _, path = small
    with pytest.raises(ValueError, match="exported at output stride 16 and has no other.*--output-stride 8"):
        load(path, output_stride=8)
    with pytest.raises(ValueError, match="exported file, which can only be run"):
        load_into(DeepLabV3("timm/lcnet_050", 3), path)
    with pytest.raises(ValueError, match="is exported already"):
        export(path, tmp_path / "again.pt2", format="torch")


@pytest.mark.integration
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_file_cut_short(share: float, small: tuple[Path, Path], tmp_path: Path) -> None:
    content = small[1].read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut.pt2 is not a whole torch.export file"):
        load(path)


def test_an_xml_file_of_another_tool(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO, which would read it")
    path = tmp_path / "annotations.xml"
    Image.new("RGB", (40, 30)).save(tmp_path / "photograph.png")
    for content in ("<annotations/>", "", "<?xml version='1.0'?>\n<net"):
        path.write_text(content, encoding="utf-8")
        for weights in (False, True):
            if weights:
                (tmp_path / "annotations.bin").write_bytes(b"x")
            assert main(["predict", str(path), str(tmp_path / "photograph.png"), "--out", str(tmp_path / "out")]) == 2
            error = capfd.readouterr().err
            assert len(error.splitlines()) == 1 and str(path.with_suffix("")) in error and "Exception" not in error
        (tmp_path / "annotations.bin").unlink()


@pytest.mark.integration
def test_a_torch_program_runs_without_this_package(small: tuple[Path, Path], tmp_path: Path) -> None:
    path = small[1]
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['atrous'] = None\n"
        "import numpy, torch\n"
        "run = torch.export.load(sys.argv[1]).module()\n"
        "numpy.save(sys.argv[3], run(torch.from_numpy(numpy.load(sys.argv[2]))).numpy())\n"
    )
    files = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "classes.npy")]
    subprocess.run([sys.executable, "-I", "-c", code, *files], check=True, cwd=tmp_path)
    expected = open_file(path).run(torch.from_numpy(images))
    assert np.array_equal(np.load(tmp_path / "classes.npy"), expected.numpy())


@pytest.mark.integration
def test_ahead_of_time(weights: Weights, tmp_path: Path) -> None:
    from atrous.deployment.torch_export import compiler

    if compiler() is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    source = weights("timm/lcnet_050")
    report = export(source, tmp_path / "small.pt2", format="torch", aot=True)
    assert report.parity is not None and report.parity.agreement >= 0.999
    with pytest.raises(ValueError, match="was compiled by AOTInductor"):
        open_file(report.path)


@pytest.mark.integration
def test_the_card_goes_with_the_file(plain: tuple[Path, Callable[[str], Path]]) -> None:
    import onnx
    import openvino

    source, exported = plain
    _, card = load(source)
    file = exported("onnx")
    program = onnx.load(str(file))
    onnx.checker.check_model(program, full_check=True)
    metadata = {entry.key: entry.value for entry in program.metadata_props}
    assert ModelCard.from_json(metadata["atrous"]) == card
    assert json.loads(metadata["atrous_export"])["opset"] == program.opset_import[0].version == 18
    assert str(file.parent).encode() not in file.read_bytes() and b"site-packages" not in file.read_bytes()
    model = openvino.Core().read_model(str(exported("openvino")))
    assert model.get_rt_info(["model_info", "labels"]).astype(str) == "class_0 class_1 class_2"
    assert ModelCard.from_json(model.get_rt_info("atrous").astype(str)) == card


@pytest.mark.integration
def test_the_graph_has_nothing_in_vain(plain: tuple[Path, Callable[[str], Path]], tmp_path: Path) -> None:
    import onnx

    source, exported = plain
    program = onnx.load(str(exported("onnx")))
    kinds = [node.op_type for node in program.graph.node]
    assert not {"BatchNormalization", "Resize", "Expand", "Identity", "Loop", "If"} & set(kinds)
    assert kinds.count("Transpose") == 2 and kinds.count("Pad") == 1  # to channels first; of one small matrix
    fixed = export(source, tmp_path / "fixed.onnx", interface=Interface(size=(33, 49))).path
    assert not {"Shape", "Range", "Gather"} & {node.op_type for node in onnx.load(str(fixed)).graph.node}


@pytest.mark.integration
@pytest.mark.parametrize("format", ["openvino", "torch"])
def test_the_first_layer_that_differs_is_named(format: str, weights: Weights, tmp_path: Path) -> None:
    from atrous.deployment.formats import FORMATS as KINDS

    source = weights("timm/lcnet_050")
    model, card = load(source)
    form = lean(model)
    made = KINDS[format](form, Interface())
    path = tmp_path / f"small{FORMATS[format]}"
    made.save(path, card, {"output_stride": 16, "raw_input": False, "logits": False, "size": None, "batch": None})

    def culprit() -> str:
        return first_difference(form, list(made.layers()), lambda layers, images: made.taps(path, layers, images))

    assert "no convolution differs" in culprit()
    with torch.no_grad():
        form.head.pointwise[0].weight.mul_(1.05)
    assert "the first layer that differs is head.pointwise.0 (" in culprit()


@pytest.mark.integration
def test_a_file_that_differs_is_not_put_in_place(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atrous.deployment import export as module

    def spoilt(model: DeepLabV3) -> DeepLabV3:
        form = lean(model)
        with torch.no_grad():
            form.head.pointwise[0].weight.mul_(-1.0)
        return form

    monkeypatch.setattr(module, "lean", spoilt)
    source = weights("timm/lcnet_050")
    monkeypatch.setattr(module, "_culprit", lambda *_: "the first layer that differs is head.pointwise.0 (Conv2d)")
    with pytest.raises(ParityError, match="is not written: it gives the model's class for .* of the pixels"):
        export(source, tmp_path / "small.pt2", format="torch")
    assert main(["export", str(source), "--format", "torch", "--out", str(tmp_path / "small.pt2")]) == 1
    assert "the first layer that differs is head.pointwise.0" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["small.safetensors"]


@pytest.mark.integration
def test_int8(trained: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, format in (("small.onnx", "onnx"), ("small.xml", "openvino")):
        out = tmp_path / name
        said: list[str] = []
        report = export(trained, out, format=format, int8=True, data=str(tiny_data), max_loss=5.0, say=said.append)
        assert report.int8 is not None and report.miou is not None and set(report.int8.tried) > {"float32", "minmax"}
        assert report.miou["file"] >= report.miou["model"] - 0.05
        size = sum(path.stat().st_size for path in tmp_path.glob(f"small.{'onnx' if format == 'onnx' else 'bin'}"))
        assert size < 0.4 * 4 * sum(parameter.numel() for parameter in load(trained)[0].parameters())
        assert load(out)[0].runtime.info["int8"]["method"] == report.int8.method
    before = (tmp_path / "small.onnx").read_bytes()
    words = ["export", str(trained), "--int8", "--data", str(tiny_data), "--max-loss", "-100"]
    assert main([*words, "--out", str(tmp_path / "small.onnx")]) == 2
    assert "int8 loses" in (error := capsys.readouterr().err) and "--max-loss -100" in error
    assert (tmp_path / "small.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onyx"], "there is no format 'onyx'; did you mean onnx?"),
        (["--format", "coreml"], ELSEWHERE["coreml"]),
        (["--format", "TFLite"], "there is no format 'tflite'; --format litert is what comes nearest"),
        (["--format", "torchscript"], "there is no format 'torchscript'; --format torch is what comes nearest"),
        (["--max-loss", "3"], "--max-loss is for --int8"),
        (["--size", "480"], "--size is '480', expected HEIGHTxWIDTH"),
        (["--size", "0x480"], "size is 0x480, expected 1 to"),
        (["--int8"], "int8 needs --data"),
        (["--aot"], "--aot compiles a torch program"),
        (["--int8", "--format", "torch", "--data", "x"], "int8 is for onnx and openvino"),
        (["--out", "model.pt2"], "expected a name that ends in .onnx"),
        (["--out", "missing/model.onnx"], "there is no folder missing"),
        (["--output-stride", "7"], "output_stride is 7, expected one of"),
        (["--data", "x", "--size", "40x50"], "leave out --size, or --data"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = weights("timm/lcnet_050")
    assert main(["export", str(source), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ["small.safetensors"]


def test_names_and_sizes() -> None:
    assert parse_size("dynamic") is None and parse_size("480x640") == (480, 640)
    assert target_of(None, "objects-mobilenetv2", ".onnx", "-int8") == Path("objects-mobilenetv2-int8.onnx")
    assert target_of(None, "runs/mine", ".xml", "") == Path("mine.xml")
    assert target_of(None, "runs/mine/best", ".xml", "") == Path("mine.xml")


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_runtime_is_named_with_its_install_line(
    format: str, package: str, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / f"small{FORMATS[format]}"
    assert main(["export", str(weights("timm/lcnet_050")), "--format", format, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"{package} is not installed: pip install 'atrous[" in error and error.startswith("atrous: error")
    assert os.listdir(tmp_path) == ["small.safetensors"]


@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix's")
def test_a_full_disk_leaves_nothing(weights: Weights, tmp_path: Path) -> None:
    source = weights("timm/lcnet_050")
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))\n"
        "from atrous.cli.parser import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "small.pt2"
    words = ["export", str(source), "--format", "torch", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "nothing was written" in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["small.safetensors"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200000


@pytest.mark.integration
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_file_cut_short_and_one_of_another_tool(
    format: str, plain: tuple[Path, Callable[[str], Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = plain[1](format)
    for part in (whole, whole.with_suffix(".bin")) if format == "openvino" else (whole,):
        shutil.copy(part, tmp_path)
    path = tmp_path / whole.name
    for part in (path, *path.parent.glob("small.bin")):
        content = part.read_bytes()
        for share in (0, 0.5, 0.99):
            part.write_bytes(content[: int(share * len(content))])
            assert main(["eval", str(path), "--data", str(tmp_path), "--json"]) == 2
            with pytest.raises(ValueError, match="small"):
                load(path)
        part.write_bytes(content)
    capsys.readouterr()
    load(path)
    if format == "openvino":
        (tmp_path / "small.bin").unlink()
        with pytest.raises(FileNotFoundError, match="a pair of files, .xml and .bin"):
            load(path)
        return
    torch.onnx.export(torch.nn.Conv2d(3, 3, 1), (torch.zeros(1, 3, 8, 8),), tmp_path / "other.onnx", verbose=False)
    with pytest.raises(ValueError, match="other.onnx has no model card of atrous in it"):
        load(tmp_path / "other.onnx")


@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="mounts a small file system, as root")
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_disk_that_is_full_or_read_only(format: str, weights: Weights, tmp_path: Path) -> None:
    source, disk = weights("timm/lcnet_050"), tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        for mode in ("rw", "ro"):
            subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)
            words = ["export", str(source), "--format", format, "--out", str(disk / f"small{FORMATS[format]}")]
            done = subprocess.run([sys.executable, "-m", "atrous", *words], capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            assert done.stderr.splitlines()[-1].startswith("atrous: error: "), done.stderr
            assert not os.listdir(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
