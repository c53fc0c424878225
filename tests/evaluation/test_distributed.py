"""The order of samples is complete and resumable; two processes over gloo do what one does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import ranks
from atrous.evaluation.distributed import (
    DistributedContext,
    ResumableBatchSampler,
    distributed_context,
    generator,
    pick_device,
)
from forks import together

SAMPLES, BATCH = 37, 5
STEPS = 3 * SAMPLES // BATCH + 1


def places(start: int = 0, stop: int = STEPS, **options: Any) -> list[tuple[int, int]]:
    stream = ResumableBatchSampler(SAMPLES, range(start, stop), seed=3, **{"batch_size": BATCH, **options})
    return [place for part in stream for place in part]


def each_once_an_epoch(actual: list[tuple[int, int]]) -> bool:
    counts = Counter(actual)
    return all(counts[epoch, index] == 1 for epoch in range(3) for index in range(SAMPLES))


def test_stopped_at_every_step_each_sample_comes_once_an_epoch() -> None:
    whole = places()
    assert each_once_an_epoch(whole)
    for stop in range(STEPS + 1):
        assert places(stop=stop) + places(start=stop) == whole


def test_stopped_again_and_again() -> None:
    actual = [place for step in range(STEPS) for place in places(start=step, stop=step + 1)]
    assert actual == places()


@pytest.mark.parametrize(("batch", "size", "parts"), [(6, 1, 2), (6, 2, 1), (6, 3, 2), (12, 2, 3), (4, 2, 2)])
def test_ranks_and_parts_share_out_the_batch_of_one_process(batch: int, size: int, parts: int) -> None:
    steps = 3 * SAMPLES // batch + 1
    options = {"steps": range(steps), "seed": 3, "batch_size": batch}
    one = list(ResumableBatchSampler(SAMPLES, **options))
    ranks = [list(ResumableBatchSampler(SAMPLES, **options, parts=parts, rank=rank, size=size)) for rank in range(size)]
    assert all(len(part) == batch // size // parts for actual in ranks for part in actual)
    together = [
        [place for actual in ranks for part in actual[step * parts : (step + 1) * parts] for place in part]
        for step in range(steps)
    ]
    assert together == one
    assert each_once_an_epoch([place for step in together for place in step])


def test_two_ranks_stopped_at_every_step_lose_nothing() -> None:
    whole = Counter(places(batch_size=4))
    for stop in range(STEPS + 1):
        actual: Counter[tuple[int, int]] = Counter()
        for rank in range(2):
            actual.update(places(batch_size=4, rank=rank, size=2, stop=stop))
            actual.update(places(batch_size=4, rank=rank, size=2, start=stop))
        assert actual == whole


def test_the_length_is_the_number_of_parts() -> None:
    stream = ResumableBatchSampler(SAMPLES, range(4, 10), seed=0, batch_size=6, parts=3)
    assert len(stream) == 18 == len(list(stream))


def test_a_data_set_smaller_than_the_batch() -> None:
    actual = [place for part in ResumableBatchSampler(3, range(3), seed=0, batch_size=8) for place in part]
    assert Counter(actual) == {(epoch, index): 1 for epoch in range(8) for index in range(3)}


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def orders(seed: int) -> list[tuple[int, ...]]:
        actual = [place for part in ResumableBatchSampler(50, range(3), seed=seed, batch_size=50) for place in part]
        return [tuple(index for epoch, index in actual if epoch == e) for e in range(3)]

    assert orders(1) == orders(1)
    assert len({*orders(1), *orders(2)}) == 6


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    said = "batch_size is 6, expected a multiple of 2 processes times 2 accumulated parts"
    with pytest.raises(ValueError, match=said):
        ResumableBatchSampler(10, range(1), seed=0, batch_size=6, parts=2, size=2)


def test_a_generator_is_a_function_of_all_its_numbers() -> None:
    def draw(*words: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=generator(*words)).tolist())

    words = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 10, 1), (0, 1, 1), (0, 1, 10), (1,), (11, 1), (1, 11)]
    assert len({draw(*word) for word in words}) == len(words)
    assert draw(4, 5, 6) == draw(4, 5, 6)


def test_alone_a_world_of_one() -> None:
    with distributed_context("cpu") as ctx:
        assert (ctx.rank, ctx.size, ctx.first, ctx.device) == (0, 1, True, torch.device("cpu"))
        value = torch.tensor([1.5, 2.0])
        assert torch.equal(ctx.sum(value), value) and ctx.any(15) == 15
        ctx.wait()
    assert not DistributedContext(1, 2, torch.device("cpu")).first


@pytest.mark.parametrize(
    ("name", "message"),
    [("xpu", "device 'xpu' is not supported"), ("gpu", "no device 'gpu'"), ("cuda:99", "device"), ("", "no device ''")],
)
def test_a_device_that_there_is_not(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pick_device(name)


@pytest.fixture(scope="module")
def processes(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """What one process found alone, and what each of two found together."""
    folder = tmp_path_factory.mktemp("gloo")
    hook = ("steps_of_ranks", str(tiny_data), str(folder / "two"))
    jobs = together([], folder, 2, [[hook]] * 2)
    try:
        ranks.main(tiny_data, folder / "one")
        statuses = [job.status(600) for job in jobs]
    finally:
        for job in jobs:
            job.process.kill()
    assert statuses == [0, 0], [job.output for job in jobs]
    one, first, second = (torch.load(folder / name, weights_only=True) for name in ("one-0", "two-0", "two-1"))
    return one, first, second


CASES = ["plain", "frozen, in parts", "one rank empty"]


def norm(gradient: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([value.double().square().sum() for value in gradient.values()]).sum().sqrt())


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_two_is_that_of_one(case: str, processes: tuple[Any, Any, Any]) -> None:
    one, first, second = (actual[case] for actual in processes)
    assert one["gradient"].keys() == first["gradient"].keys()
    difference = {key: value - first["gradient"][key] for key, value in one["gradient"].items()}
    assert norm(one["gradient"]) > 0.01
    assert norm(difference) <= 1e-6 * norm(one["gradient"])
    assert all(torch.equal(value, second["gradient"][key]) for key, value in first["gradient"].items())
    assert one["loss"] == pytest.approx(first["loss"], rel=1e-6) and first["loss"] == second["loss"]


@pytest.mark.integration
@pytest.mark.parametrize("case", ["plain", "one rank empty", "empty"])
def test_the_statistics_of_batch_norm_are_those_of_the_whole_batch(case: str, processes: tuple[Any, Any, Any]) -> None:
    one, first, second = (actual[case]["buffers"] for actual in processes)
    assert len(one) > 40
    for key, value in one.items():
        torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-9)
        assert torch.equal(first[key], second[key])
    assert [actual["kinds"] for actual in processes] == [False, True, True]


@pytest.mark.integration
def test_batch_norm_keeps_its_precision_far_from_zero(processes: tuple[Any, Any, Any]) -> None:
    one, first, second = processes
    together = torch.cat([first["offset"], second["offset"]])
    torch.testing.assert_close(together, one["offset"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first["offset variance"], one["offset variance"], rtol=1e-3, atol=0)


@pytest.mark.integration
def test_metrics_are_reduced_exactly(processes: tuple[Any, Any, Any]) -> None:
    one, first, second = (actual["scores"] for actual in processes)
    assert one == first == second
    assert one["images"] == 4 and one["miou"] > 0


@pytest.mark.integration
def test_two_processes_without_a_valid_pixel(processes: tuple[Any, Any, Any]) -> None:
    for actual in processes:
        assert actual["empty"]["loss"] == 0.0
        assert norm(actual["empty"]["gradient"]) == 0.0


@pytest.mark.integration
def test_mixed_precision_on_two_processes(processes: tuple[Any, Any, Any]) -> None:
    one, first, second = (actual["bf16"] for actual in processes)
    assert one["loss"] == pytest.approx(first["loss"], rel=2e-2) and first["loss"] == second["loss"]
    assert norm(first["gradient"]) == pytest.approx(norm(one["gradient"]), rel=0.2)


@pytest.mark.integration
def test_the_average_of_two_is_that_of_one(processes: tuple[Any, Any, Any]) -> None:
    one, first, second = (actual["average"] for actual in processes)
    assert one.keys() == first.keys()
    for key, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-6)
            assert torch.equal(first[key], second[key])


@pytest.mark.integration
def test_one_process_asked_to_stop_stops_all(processes: tuple[Any, Any, Any]) -> None:
    assert [actual["any"] for actual in processes] == [0, 15, 15]
