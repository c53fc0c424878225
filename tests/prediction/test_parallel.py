"""Several photographs at once: in order, with bounded memory, the same masks, and errors where they belong."""

from __future__ import annotations

import platform
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atrous import Predictor
from atrous.data.images.image_io import read_mask
from atrous.evaluation.preprocessor import Preprocessor
from atrous.ops import malloc
from atrous.prediction import files
from atrous.prediction.files import predict_files
from atrous.prediction.parallel import in_order


def test_results_are_in_order_and_few_items_are_taken_ahead() -> None:
    taken, largest = [], 0

    def items():  # noqa: ANN202
        for i in range(40):
            taken.append(i)
            yield i

    def run(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i * i

    done = []
    for result in in_order(run, items(), workers=3):
        largest = max(largest, len(taken) - len(done))
        done.append(result)
    assert done == [i * i for i in range(40)] and largest <= 7


def test_what_runs_alone_runs_while_nothing_else_does() -> None:
    running, lock, seen = 0, threading.Lock(), {}

    def run(i: int) -> int:
        nonlocal running
        with lock:
            running += 1
            seen[i] = (running, threading.current_thread() is threading.main_thread(), torch.get_num_threads())
        time.sleep(0.01)
        with lock:
            running -= 1
        return i

    before = torch.get_num_threads()
    assert list(in_order(run, range(12), 4, lambda i: i in (0, 5, 6, 11))) == list(range(12))
    assert all(seen[i] == (1, True, before) for i in (0, 5, 6, 11))
    assert all(not seen[i][1] and seen[i][2] == 1 for i in (1, 2, 7, 10)) and torch.get_num_threads() == before


def test_an_error_ends_the_rest_and_waits_for_what_runs() -> None:
    begun, ended = [], []

    def run(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise OSError(28, "No space left on device")
        time.sleep(0.01)
        ended.append(i)
        return i

    results = in_order(run, range(1000), 2)
    with pytest.raises(OSError, match="No space left"):
        list(results)
    assert sorted([*ended, 3]) == sorted(begun) and len(begun) < 20
    stopped = in_order(run, range(100, 1000), 2)
    assert next(stopped) == 100
    stopped.close()
    assert sorted(i for i in ended if i >= 100) == sorted(i for i in begun if i >= 100)


def test_files_by_several_workers_are_those_of_one(trained: Path, drawn, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(14):
        image = drawn(number, 40 + 3 * (number % 4), 60 + 7 * (number % 3))[0]
        Image.fromarray(image).save(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "05.png").write_bytes(b"no picture")
    Image.fromarray(drawn(3, 140, 161)[0]).save(tmp_path / "in" / "07.png")  # larger than the window
    predictor = Predictor.load(trained, device="cpu", window=129)
    told: list[tuple[str, float]] = []
    batches = [
        predict_files(
            predictor, [tmp_path / "in"], tmp_path / f"out{workers}", workers=workers,
            progress=lambda path, share: told.append((path.name, share)),
        )
        for workers in (1, 4)
    ]  # fmt: skip
    assert list(batches[0].areas) == list(batches[1].areas) and batches[0].areas == batches[1].areas
    assert [path.name for path in batches[1].failures] == ["05.png"] and batches[0].failures == batches[1].failures
    assert [x for x in told[: len(told) // 2] if x[1] in (0, 1)] == [
        x for x in told[len(told) // 2 :] if x[1] in (0, 1)
    ]
    for path in sorted((tmp_path / "out1").rglob("*.png")):
        other = tmp_path / "out4" / path.relative_to(tmp_path / "out1")
        assert path.read_bytes() == other.read_bytes()
    assert np.array_equal(read_mask(tmp_path / "out4" / "masks" / "03.png"), predictor(tmp_path / "in" / "03.png").mask)
    again = predict_files(predictor, [tmp_path / "in"], tmp_path / "out4", workers=4, resume=True)
    assert len(again.skipped) == 13 and not again.areas


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told to keep memory")
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_is_kept_until_a_large_photograph_comes(
    trained: Path, drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    for number, size in enumerate([(40, 60), (40, 60), (140, 161), (40, 60)]):
        Image.fromarray(drawn(number, *size)[0]).save(tmp_path / f"{number}.png")
    kept, segment = {}, files._segment

    def segment_and_note(predictor: Predictor, path: Path, outputs) -> dict[str, float]:
        kept[path.name] = malloc._blocks
        return segment(predictor, path, outputs)

    predictor = Predictor.load(trained, device="cpu")
    monkeypatch.setattr(files, "_segment", segment_and_note)
    small = predict_files(predictor, [tmp_path / "[01].png"], tmp_path / "out", workers=workers)
    assert not small.failures and kept == {"0.png": 1, "1.png": 1} and malloc._blocks == 0
    monkeypatch.setattr(files, "LARGE", 10_000)
    mixed = predict_files(predictor, [tmp_path / "*.png"], tmp_path / "out", workers=workers)
    assert not mixed.failures and kept["2.png"] == kept["3.png"] == malloc._blocks == 0


@pytest.mark.parametrize("size", [(97, 131), (333, 250), (640, 480)])
def test_what_a_model_sees_does_not_depend_on_the_number_of_threads(trained: Path, size: tuple[int, int]) -> None:
    model = Predictor.load(trained, device="cpu", dtype=torch.float32, longest_side=320).model
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            seen.append(Preprocessor(model)(image))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_large_photographs_run_alone(trained: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(trained, device="cpu")
    shapes = {(1024, 1024): False, (1025, 1024): True}
    for (height, width), large in shapes.items():
        array = np.zeros((height, width, 3), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "a.png")
        sources = [array, torch.from_numpy(array).permute(2, 0, 1), Image.fromarray(array), tmp_path / "a.png"]
        assert [predictor.is_large(source) for source in sources] == [large] * 4
    assert Predictor.load(trained, device="cpu", longest_side=320).is_large(np.zeros((4097, 4096), np.uint8))
    assert not predictor.is_large(tmp_path / "nowhere.png") and not predictor.is_large(b"")
