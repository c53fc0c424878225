"""Forged and broken checkpoints: each is read as it is, or refused by name; none runs anything or fills the memory."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atrous.models.interchange import pickles
from atrous.models.interchange.convert import convert
from atrous.models.interchange.files import _read_npz, read_file
from atrous.models.interchange.tensorflow import _H5PY
from foreign import shaken
from reliability import counted, record


def small_network() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch, whose network it is")
    net = smp.DeepLabV3(
        "tu-lcnet_050", encoder_weights=None, classes=2, decoder_channels=8, decoder_atrous_rates=(2, 4, 6)
    )
    return shaken(net)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in each format that is read."""
    folder = tmp_path_factory.mktemp("whole")
    net = small_network()
    net.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    content = {"state_dict": net.state_dict(), "config": config}
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    variables = {f"MobilenetV2/{i}": np.zeros(3, np.float32) for i in range(5)} | {
        "logits/semantic/weights": np.ones(4)
    }
    np.savez(folder / "arrays.npz", **variables)
    for kind, options in {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}.items():
        few = {"state_dict": dict(list(net.state_dict().items())[:12]), "config": config}
        torch.save(few, folder / f"small-{kind}.pth", **options)
    arrays = {key: value.numpy() for key, value in net.state_dict().items()}
    for name, state in (("plain.pkl", arrays), ("small-plain.pth", dict(list(arrays.items())[:12]))):
        (folder / name).write_bytes(pickle.dumps({"model": state, "config": config}, 3))
    for file in (Path(__file__).parent / "files").glob("small.ckpt.*"):
        shutil.copy(file, folder)
    return folder


FORMATS = {
    "zip": ["zip.pth"],
    "plain": ["plain.pkl"],
    "legacy": ["legacy.pth"],
    "safetensors": ["model.safetensors", "config.json"],
    "npz": ["arrays.npz"],
    "tensorflow": ["small.ckpt.index", "small.ckpt.data-00000-of-00001"],
}
PARTS = {kind: [f"small-{kind}.pth"] for kind in ("zip", "legacy", "plain")}
"""A file of a few tensors, of what is slow as a whole network: four times as many of these are mutated."""
ODD = [b"\xff\xff\xff\xff", b"0000", b"99999999", b"null", b'"","', b"[[[[", b"-1", b"1e999", b"NaN", b"\x8a\x08"]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Bits, runs and lengths changed, cut or doubled, mostly in the first and the last kilobytes: what describes."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        span = len(changed)
        if not span:
            break
        far = rng.choice([min(span, 200), min(span, 30_000), span])
        at = rng.randrange(far) if rng.random() < 0.7 else span - 1 - rng.randrange(far)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            odd = rng.choice(ODD)
            changed[at : at + len(odd)] = odd
        elif kind == 3:
            del changed[at : at + rng.choice([1, 8, 1000])]
        else:
            changed[at:at] = changed[at : at + rng.choice([1, 8, 1000])]
    return bytes(changed)


def check_mutated(whole: Path, names: list[str], rng: random.Random, folder: Path) -> bool:
    """Whether it still converts; what does is sound, and what does not is refused by its name."""
    chosen = rng.choice(names)
    for name in names:
        content = (whole / name).read_bytes()
        (folder / name).write_bytes(mutate(content, rng) if name == chosen else content)
    try:
        model, converted = convert(folder / names[0])
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)[:500]
        return False
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())
    assert model.num_classes == len(converted.names)
    return True


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_checkpoints_convert_or_are_refused_by_name(kind: str, folder: Path, tmp_path: Path) -> None:
    if kind not in ("npz", "tensorflow"):  # which are no whole network
        convert(folder / FORMATS[kind][0])
    rng = random.Random(kind)
    for _ in range(25):
        check_mutated(folder, FORMATS[kind], rng, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_many_mutated_checkpoints_convert_or_are_refused_by_name(kind: str, folder: Path, tmp_path: Path) -> None:
    rng, count = random.Random(0), counted(10_000)
    kinds = [FORMATS[kind]] if kind not in PARTS else [FORMATS[kind], *[PARTS[kind]] * 4]
    read = sum(check_mutated(folder, kinds[i % len(kinds)], rng, tmp_path) for i in range(count))
    refused = f"{count - read:,} a typed error that names the file, {read:,} a sound model, none another"
    record("hostile weights", f"{count:,} mutated checkpoints of another library ({kind}): {refused}")


LOOP = f"""
import sys
code = compile({_H5PY!r}, "reader", "exec")
for path in sys.stdin.read().split():
    sys.argv = ["", path, path + ".npz"]
    try:
        exec(code, {{}})
        print("read", flush=True)
    except Exception as error:
        print("refused", type(error).__name__, flush=True)
"""


@pytest.mark.slow
def test_many_mutated_files_of_keras_end_no_more_than_their_reader(tmp_path: Path) -> None:
    """What the other process runs, for many files in a process that starts anew behind a file that ends it."""
    h5py = pytest.importorskip("h5py", reason="h5py, which reads them")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        for layer in ("Conv", "Conv_BN", "aspp0"):
            for i in range(3):
                file[f"layers/{layer}/vars/{i}"] = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole, rng, count = (tmp_path / "whole.h5").read_bytes(), random.Random(0), counted(10_000)
    paths, said = [tmp_path / f"{i}.h5" for i in range(100)], Counter()
    for start in range(0, count, len(paths)):
        left = paths[: count - start]
        for path in left:
            path.write_bytes(mutate(whole, rng))
        while left:
            run = subprocess.run([sys.executable, "-c", LOOP], input="\n".join(map(str, left)), capture_output=True,
                                 text=True, timeout=600, check=False)  # fmt: skip
            lines = run.stdout.splitlines()
            said.update(line.split()[0] for line in lines)
            said["ended the reader"] += len(lines) < len(left)
            assert run.returncode <= 0 and (run.returncode or len(lines) == len(left)), run.stderr[-500:]
            left = left[len(lines) + 1 :]
        for path in (path for path in paths if path.with_name(f"{path.name}.npz").is_file()):
            archive = path.with_name(f"{path.name}.npz")
            assert all(value.numel() < 1 << 20 for value in _read_npz(archive).values())
            archive.unlink()
    assert said.total() == count
    record(
        "hostile weights",
        f"{count:,} mutated files of Keras: " + ", ".join(f"{n:,} {word}" for word, n in said.items()),
    )


def expanded(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1).expand(1 << 20, 1 << 16)}, path)


def compressed(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def claims_more(path: Path) -> None:
    """The directory of the archive says that an entry is a gigabyte."""
    torch.save({"a.weight": torch.zeros(4)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content)


def longer_storage(path: Path, **options: bool) -> None:
    """The pickle says that eight numbers are two hundred."""
    torch.save({"a.weight": torch.arange(8.0)}, path, **options)
    content = path.read_bytes()
    start = content.index(b"cpu")
    path.write_bytes(content[:start] + content[start:].replace(b"K\x08", b"K\xc8"))


def legacy(path: Path) -> None:
    longer_storage(path, _use_new_zipfile_serialization=False)


def sparse(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(4, 4).to_sparse()}, path)


def several_disks(path: Path) -> None:
    """The end of the archive says that it is one of several."""
    torch.save({"a.weight": torch.zeros(4)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x06\x07")
    content[at + 16 : at + 20] = (9).to_bytes(4, "little")
    path.write_bytes(content)


class Asks:
    """What asks for a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.asked = (function, arguments)

    def __reduce__(self) -> Any:
        return self.asked


def plain(path: Path) -> None:
    """A pickle that PyTorch did not write, which would make a file."""
    path.write_bytes(pickle.dumps({"model": Asks(os.mkdir, str(path.with_name("ran")))}, 3))


def plain_objects(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"a": np.array([None])}}, 3))


def plain_of_another_protocol(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(4)}}, 4))


def plain_of_more(path: Path) -> None:
    """An array of four numbers that says that it has 10^12."""
    content = pickle.dumps({"model": {"a": np.zeros(4, np.float32)}}, 2)
    path.write_bytes(content.replace(b"K\x04\x85", b"\x8a\x05" + (10**12 // 4).to_bytes(5, "little") + b"\x85"))


def plain_memo(path: Path) -> None:
    """It asks for a table of 2^31 places."""
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")


def word(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


ARRAY, KIND, ENCODE, ORDERED = (
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"c_codecs\nencode\n",
    b"ccollections\nOrderedDict\n",
)
ENDLESS = b"]q\x00" + b"".join(
    b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(12)
)
"""Lists of the same list: 10^12 numbers to write down."""
FORGED: dict[str, tuple[bytes, str]] = {
    "a function that is changed": (
        b"cnumpy.core.multiarray\n_reconstruct\nN}" + word("__defaults__") + b"K\x01\x85s\x86b.",
        "Can only build Tensor",
    ),
    "a class that is changed": (ARRAY + b"}" + word("tensor") + b"K\x01sb.", "Can only build Tensor"),
    "methods that are hidden": (
        ORDERED + b")R" + word("a") + b"K\x01s}" + word("items") + ARRAY + b"sb.", "holds no tensors; found a$"
    ),
    "a dtype without end": (
        ENDLESS + b"0" + ARRAY + b")\x81(K\x01K\x04\x85" + KIND + b"h\x0c\x85R\x89C\x01atb.", "it is cut off, damaged"
    ),
    "a codec without end": (ENDLESS + ENCODE + word("a") + b"h\x0c\x86R.", "must be str, not list"),
    "bytes that are not there": (b"\x96" + (1 << 32).to_bytes(8, "little") + b".", "only 1 remain"),
    "an array that was never filled": (b"}" + word("a") + ARRAY + b")\x81s.", "holds no tensors; found a$"),
    "one array many times": (
        b"B\x00\x10\x00\x00" + bytes(4096) + b"q\x00" + KIND + word("u1") + b"\x85Rq\x01]("
        + (ARRAY + b")\x81(K\x01M\x00\x10\x85h\x01\x89h\x00tb") * 999 + b"e.",
        "it makes more numbers than it holds",
    ),
    "a name of another line": (word("os\n\x1b[31m") + word("system") + b"\x93.", "it is cut off, damaged"),
    "an object of old": (b"(S'echo'\nios\nsystem\n.", "it is cut off, damaged"),
    "a name within a name": (word("collections") + word("OrderedDict.fromkeys") + b"\x93.", "it is cut off, damaged"),
    "a key of no text": (b"}K\x05K\x01s.", "holds no tensors; found int$"),
}  # fmt: skip
"""Pickles by hand, and what is said of them."""


@pytest.mark.parametrize("name", FORGED)
def test_a_pickle_that_was_forged_is_refused_soon_and_in_one_line(name: str, tmp_path: Path) -> None:
    content, words = FORGED[name]
    path = tmp_path / "net.pkl"
    path.write_bytes(b"\x80\x02" + content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words) as caught:
            read_file(path)
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()
    assert pickles._empty.__defaults__ is None


def test_attributes_of_a_dictionary_of_pytorchs_do_not_hide_its_methods(tmp_path: Path) -> None:
    state, path = OrderedDict({"a.weight": torch.zeros(4)}), tmp_path / "net.pth"
    vars(state)["iteXs"] = 5  # written, as _metadata is
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"iteXs", b"items"))
    assert list(read_file(path).tensors) == ["a.weight"]


def test_a_file_of_pytorchs_that_names_things_by_tuples_is_refused_in_one_line(tmp_path: Path) -> None:
    deep: tuple[Any, ...] = ()
    for _ in range(300):
        deep = (deep,)
    torch.save({deep: 1, (5,): 2, "config": {deep: 1}}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="holds no tensors; found tuple, tuple, config$"):
        read_file(tmp_path / "net.pth")


def page(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html><html>Sign in</html>")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


def empty(path: Path) -> None:
    path.touch()


def half(path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def words(path: Path) -> None:
    path.write_text("hello")


def archive_of_nothing(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def odd_name(path: Path) -> None:
    torch.save({"a.weight\nand more": torch.zeros(4)}, path)


def header_of_more(path: Path) -> None:
    """Safetensors whose header says that its tensor has 2^40 numbers."""
    save_file({"a.weight": torch.zeros(4)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"shape":[4]', b'"shape":[' + b"9" * 13 + b"]"))


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (expanded, "says that it has the shape .1048576, 65536., which the file does not hold"),
        (compressed, "is a compressed archive; expected a checkpoint as torch.save writes it"),
        (claims_more, "says that it unpacks to more than it holds"),
        (longer_storage, "cannot be read as a checkpoint of PyTorch"),
        (legacy, "cannot be read as a checkpoint of PyTorch"),
        (sparse, "which the file does not hold"),
        (several_disks, "is not a whole checkpoint: zipfiles that span multiple disks are not supported"),
        (plain, r"holds more than tensors: it asks for \w+.mkdir, which is not run here; where you trust it, load it"),
        (plain_objects, "cannot be read as a checkpoint of PyTorch: it holds an array of 'O8', expected numbers"),
        (plain_of_more, "an array in it has 16 bytes for 250000000000 numbers"),
        (plain_memo, "holds no tensors"),
        (plain_of_another_protocol, "it is a pickle of protocol 4; where you trust it, load it by pickle.load"),
        (page, "is a page of HTML and not the file; fetch it again"),
        (pointer, "is a pointer of Git LFS and not the file; fetch it by: git lfs pull"),
        (empty, "net.pth is empty"),
        (half, "it is cut off, damaged or something else; fetch or save it again"),
        (archive_of_nothing, "is an archive of nothing; fetch or save it again"),
        (words, "it is cut off, damaged or something else; fetch or save it again"),
        (odd_name, r"has the name 'a.weight\\nand more', which is none of a layer"),
    ],
)
def test_a_forged_or_broken_file_is_refused(forge: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    forge(path)
    with pytest.raises(ValueError, match=words) as caught:
        read_file(path)
    assert "weights_only" not in str(caught.value).replace("load it by torch.load(FILE, weights_only=False)", "")
    assert not (tmp_path / "ran").exists()


def test_a_header_that_says_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header_of_more(path)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        read_file(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_atrous_rates": [1] * 10_000}, {"decoder_atrous_rates": "abc"}, {"decoder_atrous_rates": [10**400]},
        {"decoder_atrous_rates": [0, 1, 2]}, {"encoder_output_stride": 1e999}, {"encoder_output_stride": 2**80},
        {"encoder_output_stride": "16"}, {"encoder_name": "tu-hf-hub:someone/something"}, {"encoder_name": 5},
        {"encoder_name": ["a"]}, {"encoder_name": "tu-*"}, {"upsampling": [[1]]}, {"in_channels": 4},
        {"activation": "sigmoid"},
    ],
    ids=lambda changes: str(changes)[:60],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused_by_name(changes: dict, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match="^" + str(tmp_path)):
        convert(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no JSON"):
        convert(tmp_path)


def npz_of_more(path: Path) -> None:
    """An array whose header says that it has 10^12 numbers."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))


def npz_bomb(path: Path) -> None:
    np.savez_compressed(path, a=np.zeros(10_000_000, np.float32))


def npz_of_objects(path: Path) -> None:
    np.savez(path, a=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (npz_of_more, "float32 of the shape .1000000, 1000000., expected numbers that it holds"),
        (npz_bomb, "it unpacks to far more than it holds"),
        (npz_of_objects, "an array is object of the shape"),
    ],
)
def test_an_npz_file_that_is_forged_is_refused(forge: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    forge(path)
    with pytest.raises(ValueError, match=words):
        read_file(path)
