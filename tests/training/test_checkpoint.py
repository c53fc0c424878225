"""Whatever moment a process dies at, the newest whole checkpoint is found, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from atrous.atomic import write_text
from atrous.training import checkpoint
from atrous.training.checkpoint import MANIFEST, POINTER, STATE, load_newest, save, steps


def state(step: int) -> dict[str, Any]:
    tensor = torch.arange(1000.0) + step
    return {"step": step, "model": {"w": tensor}, "best": None, "groups": [{"lr": 0.1, "on": True}]}


def hidden(run: Path) -> list[str]:
    """What an interrupted write left behind."""
    return [path.name for path in run.rglob(".*")]


def newest(run: Path) -> int:
    actual = load_newest(run)
    assert actual is not None
    torch.testing.assert_close(actual["model"]["w"], torch.arange(1000.0) + actual["step"], rtol=0, atol=0)
    return int(actual["step"])


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = save(tmp_path, 7, state(7))
    actual = load_newest(tmp_path)
    assert actual is not None and torch.equal(actual.pop("model")["w"], torch.arange(1000.0) + 7)
    assert actual == {"step": 7, "best": None, "groups": [{"lr": 0.1, "on": True}]}
    assert folder == tmp_path / "checkpoints" / "step-7" and checkpoint.is_whole(folder)


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None and steps(tmp_path) == []
    assert load_newest(tmp_path / "nowhere") is None


def test_the_newest_few_are_kept_and_the_pointer_names_the_last(tmp_path: Path) -> None:
    for step in (2, 10, 9, 100):  # by number, not by name
        save(tmp_path, step, state(step), keep=2)
    assert steps(tmp_path) == [10, 100]
    assert (tmp_path / (tmp_path / POINTER).read_text().strip() / STATE).is_file()
    assert (tmp_path / POINTER).read_text() == "checkpoints/step-100\n"
    assert hidden(tmp_path) == []


def test_saving_a_step_again_replaces_it_only_where_it_is_not_whole(tmp_path: Path) -> None:
    """Removed and written again, it would be lost to a kill in between."""
    save(tmp_path, 5, {"model": 1})
    save(tmp_path, 5, {"model": 2})
    assert load_newest(tmp_path) == {"model": 1}
    spoil_state(tmp_path / "checkpoints" / "step-5")
    save(tmp_path, 5, {"model": 3})
    assert load_newest(tmp_path) == {"model": 3}


def spoil_state(folder: Path) -> None:
    content = bytearray((folder / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / STATE).write_bytes(content)


SPOILED = {
    "a flipped bit": spoil_state,
    "a truncated state": lambda folder: os.truncate(folder / STATE, 100),
    "an empty state": lambda folder: os.truncate(folder / STATE, 0),
    "no state": lambda folder: (folder / STATE).unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a truncated manifest": lambda folder: os.truncate(folder / MANIFEST, 20),
    "an empty manifest": lambda folder: os.truncate(folder / MANIFEST, 0),
    "a manifest of nothing": lambda folder: (folder / MANIFEST).write_text('{"files": {}}'),
    "a manifest that is a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "a manifest of binary": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x80"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_is_passed_over(how: str, tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step, state(step))
    SPOILED[how](tmp_path / "checkpoints" / "step-20")
    assert newest(tmp_path) == 10


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_checkpoint_alone_is_none(how: str, tmp_path: Path) -> None:
    SPOILED[how](save(tmp_path, 3, state(3)))
    assert load_newest(tmp_path) is None


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    save(tmp_path, 3, state(3))
    (tmp_path / "checkpoints" / "step-four").mkdir()
    (tmp_path / "checkpoints" / "step-9.zip").write_text("")
    (tmp_path / "checkpoints" / ".step-8.partial").mkdir()
    assert steps(tmp_path) == [3] and newest(tmp_path) == 3


def test_spoiled_newer_checkpoints_never_push_out_a_whole_one(tmp_path: Path) -> None:
    for step in (10, 30, 40):
        save(tmp_path, step, state(step), keep=3)
    for step in (30, 40):
        spoil_state(tmp_path / "checkpoints" / f"step-{step}")
    assert newest(tmp_path) == 10
    save(tmp_path, 20, state(20), keep=2)
    assert newest(tmp_path) == 20


def killed_at(event: int, run: Path) -> bool:
    """Save step 20 in a process that dies, as by SIGKILL, just before its `event`-th write, flush or rename."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [event]

    def dying(real: Any) -> Any:
        def stand_in(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return real(*arguments, **options)

        return stand_in

    try:
        os.replace, os.fsync = dying(os.replace), dying(os.fsync)
        checkpoint.torch.save = dying(torch.save)
        checkpoint.shutil.rmtree = dying(checkpoint.shutil.rmtree)
        save(run, 20, state(20))
    finally:
        os._exit(0)


def test_killed_at_any_point_of_a_save_nothing_finished_is_lost(tmp_path: Path) -> None:
    for event in range(100):
        run = tmp_path / str(event)
        for step in (5, 10):
            save(run, step, state(step))
        died = killed_at(event, run)
        assert newest(run) in (10, 20)
        assert newest(run) == 20 or died
        save(run, 30, state(30))
        assert newest(run) == 30 and (run / POINTER).read_text() == "checkpoints/step-30\n"
        assert steps(run)[-1] == 30 and len(steps(run)) == 2
        assert [name for name in hidden(run) if name.startswith(".step-")] == []
        if not died:
            break
    assert event >= 8  # the moments that were tried


@pytest.mark.parametrize("where", ["save", "flush", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_rubbish(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10, state(10))

    def full(*arguments: Any, **_: Any) -> None:
        if where == "save":
            Path(arguments[1]).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"save": (checkpoint.torch, "save"), "flush": (os, "fsync"), "replace": (os, "replace")}[where]
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 20, state(20))
    monkeypatch.undo()
    assert newest(tmp_path) == 10 and hidden(tmp_path) == []


def test_a_state_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "pwned"),)

    folder = save(tmp_path, 1, {"x": Payload()})
    assert checkpoint.is_whole(folder)
    with pytest.raises(Exception, match="(?i)weights.only|unsupported"):
        load_newest(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_the_manifest_holds_the_sha256(tmp_path: Path) -> None:
    import hashlib

    folder = save(tmp_path, 1, state(1))
    digest = hashlib.sha256((folder / STATE).read_bytes()).hexdigest()
    assert json.loads((folder / MANIFEST).read_text()) == {"step": 1, "files": {STATE: digest}}


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "one\n")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "two\n")
    assert path.read_text() == "one\n" and hidden(tmp_path) == []
