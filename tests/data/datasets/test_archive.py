"""Archives: unpacked once, whole or not at all, and nothing outside their folder."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atrous.data.datasets.archive import unpacked
from atrous.data.datasets.dataset import kind_of, open_dataset, splits
from own_data import ids, photo, stored, text

pytestmark = pytest.mark.filterwarnings("ignore:.*(unpacking into|unpacked before)")


def data(root: Path) -> Path:
    """A plain data set of one split."""
    text(root / "dataset.yaml", "names: [soil, leaf]\n")
    photo(root / "images" / "train" / "x é.jpg")
    stored(root / "masks" / "train" / "x é.png", ids(2))
    return root


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def contents(root: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{p.relative_to(root).as_posix()}": p.read_bytes() for p in root.rglob("*") if p.is_file()}


def left(folder: Path, archive: Path) -> list[str]:
    """What is in a folder beside the archive and the data that it was made of."""
    return sorted(name for name in os.listdir(folder) if name not in (archive.name, "data"))


@pytest.mark.parametrize("prefix", ["", "export/", "export/export/", "export\\export\\", "./"])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_an_archive_is_read_as_the_folder_in_it(tmp_path: Path, suffix: str, prefix: str) -> None:
    files = contents(data(tmp_path / "data"), prefix) | {"__MACOSX/export/._x.jpg": b"", "export/.DS_Store": b""}
    path = tmp_path / f"My data.v1{suffix}"
    if suffix == ".zip":
        zipped(path, files)
    else:
        with tarfile.open(path, "w:gz" if suffix == ".tgz" else "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    with pytest.warns(UserWarning, match=r"My data\.v1.*: unpacking into .*My data\.v1\."):
        assert kind_of(path) == "folder"
    assert splits(path) == splits(f"folder:{path}") == ["train"]
    (name, _, mask) = open_dataset(path, "train")[0]
    assert name == "x é" and mask.unique().tolist() == [0, 1]
    assert len(left(tmp_path, path)) == 1  # unpacked once


@pytest.mark.parametrize(("raw", "name"), [(b"\xc3\xa9", "é"), (b"\x82x", "éx")], ids=["utf-8", "cp437"])
def test_names_without_the_flag_of_their_encoding(tmp_path: Path, raw: bytes, name: str) -> None:
    zipped(tmp_path / "a.zip", {"img 1, xy.txt": b"1"})
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"xy", raw))
    assert [path.name for path in unpacked(tmp_path / "a.zip").iterdir()] == [f"img 1, {name}.txt"]


def test_a_changed_archive_is_unpacked_again(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"x": b"1"})
    first = unpacked(path)
    assert unpacked(path) == first
    zipped(path, {"x": b"22"})
    assert (unpacked(path) / "x").read_bytes() == b"22" and (first / "x").read_bytes() == b"1"


def test_beside_a_read_only_archive_the_cache_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATROUS_CACHE", str(tmp_path / "cache"))
    path = zipped(tmp_path / "a.zip", contents(data(tmp_path / "data")))

    mkdir = Path.mkdir

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        if self.parent == tmp_path and self.name.startswith("."):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so that no mode of a folder refuses it
    assert unpacked(path).parent == tmp_path / "cache" / "data" and open_dataset(path, "train")


def link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


def encrypted(path: Path) -> Path:
    zipped(path, {"x": b"1"})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    return path


def bomb(path: Path) -> Path:
    zipped(path, {"x": b"0" * 1000})
    content = path.read_bytes()
    path.write_bytes(content.replace((1000).to_bytes(4, "little"), (3 << 30).to_bytes(4, "little")))
    return path


def overlapping(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", os.urandom(5000))
        archive.filelist = [*archive.filelist * 3]
        for number, info in enumerate(archive.filelist):
            archive.filelist[number] = other = zipfile.ZipInfo(f"{number}")
            for name in ("compress_size", "file_size", "CRC", "header_offset"):
                setattr(other, name, getattr(info, name))
    return path


def truncated(path: Path) -> Path:
    zipped(path, {"x": b"1" * 1000, "y": b"2"})
    path.write_bytes(path.read_bytes()[:-10])
    return path


def damaged(path: Path) -> Path:
    zipped(path, {"a": b"1", "x": os.urandom(1000)})
    content = bytearray(path.read_bytes())
    content[content.index(b"x" + bytes(content[0:0])) + 200] ^= 255
    path.write_bytes(content)
    return path


def twice(path: Path) -> Path:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"1")
        archive.writestr("x", b"2")
    return path


def tar_of(kind: bytes, name: str = "x") -> object:
    def make(path: Path) -> Path:
        path = path.with_suffix(".tar")
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        return path

    return make


def cut_tgz(path: Path) -> Path:
    path = path.with_suffix(".tgz")
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("x")
        info.size = 100_000
        archive.addfile(info, io.BytesIO(os.urandom(100_000)))
    path.write_bytes(path.read_bytes()[:50_000])
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (link, "x is a link; expected files and folders"),
        (encrypted, "it is encrypted; unpack it with its password"),
        (bomb, "would become 3221225472 or more, as in a decompression bomb"),
        (overlapping, "its files overlap, as in a decompression bomb"),
        (truncated, "not a whole archive .*: download it again"),
        (damaged, "x cannot be unpacked .*download it again"),
        (twice, "x occurs twice"),
        (tar_of(tarfile.SYMTYPE), "x is a link or a device"),
        (tar_of(tarfile.LNKTYPE), "x is a link or a device"),
        (tar_of(tarfile.CHRTYPE), "x is a link or a device"),
        (tar_of(tarfile.REGTYPE, "../x"), "'../x' lies outside"),
        (cut_tgz, "not a whole archive .*: download it again"),
        (lambda path: zipped(path, {}), "no files in it"),
        (lambda path: zipped(path, {"__MACOSX/x": b""}), "no files in it"),
        (lambda path: zipped(path, {"../x": b""}), "'../x' lies outside the archive's folder"),
        (lambda path: zipped(path, {"a/../../x": b""}), "lies outside"),
        (lambda path: zipped(path, {"/x": b""}), "lies outside"),
        (lambda path: zipped(path, {"..\\x": b""}), "lies outside"),
        (lambda path: zipped(path, {"C:\\x": b""}), "lies outside"),
        (lambda path: zipped(path, {"x": b"", "x/y": b""}), "occurs twice"),
        (lambda path: text(path, ""), "not a whole archive"),
        (lambda path: text(path.with_suffix(".7z"), ""), "an archive of another kind; expected .zip, .tar"),
    ],
)
def test_what_is_unsafe_or_broken_is_refused_and_leaves_nothing(tmp_path: Path, make, said: str) -> None:
    path = make(tmp_path / "a.zip")
    with pytest.raises(ValueError, match=said) as caught:
        open_dataset(path, "train")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert left(tmp_path, path) == [] and not (tmp_path.parent / "x").exists()


def test_what_does_not_fit_the_disk_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and type("", (), {"free": 1 << 28})())
    path = zipped(tmp_path / "a.zip", {"x": b"1"})
    with pytest.raises(ValueError, match=r"its files take 1 bytes, and the disk has 268435456 free; make room"):
        unpacked(path)
    assert left(tmp_path, path) == []


def test_an_interrupted_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", {"x": b"1", "y": b"2"})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.copyfileobj", interrupt)
        unpacked(path)
    assert left(tmp_path, path) == []
    assert sorted(os.listdir(unpacked(path))) == ["x", "y"]


@settings(max_examples=40)
@given(content=st.binary(max_size=80), place=st.integers(0, 300))
@example(content=b"\n", place=127)  # a name of two lines
@example(content=b"\x00", place=127)  # no name
def test_no_damage_is_more_than_a_line(tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = zipped(folder / "a.zip", {"a/x.txt": b"1" * 50, "b.txt": b"2"})
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + content + whole[place + len(content) :])
    try:
        unpacked(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert left(folder, path) == []
