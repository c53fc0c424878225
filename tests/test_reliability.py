"""Training that is killed, stopped, starved and moved about: nothing finished is lost, all goes on to the same bytes.

Each row of ``docs/reliability.md`` on training has a quick form here, and one marked ``slow`` with the full count.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atrous.cli.parser import main
from atrous.data.datasets.dataset import open_dataset
from atrous.data.transforms import Augment
from atrous.evaluation.distributed import DistributedContext
from atrous.training import checkpoint
from atrous.training.config import Recipe, override
from atrous.training.loader import Crops, loader
from atrous.training.state import State
from forks import Forked, together
from reliability import counted, record
from states import final_state, same

SLEEPS = 0.6
"""Seconds; a run of these tests does several steps and saves within them."""


def newest(run: Path) -> int:
    actual = checkpoint.load_newest(run)
    return actual["step"] if actual else 0


class Job:
    """A recipe and data to train it on, and its command line."""

    def __init__(self, folder: Path, recipe: Recipe, data: Path) -> None:
        self.folder, self.recipe, self.data, self.run = folder, recipe, data, folder / "run"
        (folder / "recipe.yaml").write_text(recipe.to_yaml())

    def line(self, *flags: str, workers: int = 0, run: Path | None = None) -> list[str]:
        out = run or self.run
        command = ["train", str(self.folder / "recipe.yaml"), "--data", str(self.data), "--out", str(out)]
        return [*command, "--device", "cpu", "-j", str(workers), *flags]

    def start(self, *hooks: tuple, workers: int = 0) -> Forked:
        return Forked(self.line("--resume", workers=workers), self.folder / "said", hooks)

    def straight(self, ranks: int = 1) -> tuple[dict[str, Any], Path]:
        """The last state of a run that never stopped, and a folder with the state after every step."""
        states, run = self.folder / f"states{ranks}", self.folder / f"straight{ranks}"
        states.mkdir()
        hooks: list[list[tuple]] = [[("save_all_states", str(states))], *([[]] * (ranks - 1))]
        jobs = together(self.line(run=run), self.folder, ranks, hooks)
        assert [job.status() for job in jobs] == [0] * ranks, jobs[0].output
        return final_state(run), states


@pytest.fixture
def job(tmp_path: Path, tiny: Recipe, make_data: Callable[..., Path]) -> Callable[..., Job]:
    def make(**changes: Any) -> Job:
        data = make_data(tmp_path / "data", {"train": 10, "val": 2}, sizes=[(40, 48), (33, 35)])
        return Job(tmp_path, override(tiny, {"val_split": None, "image_pooling": False, **changes}), data)

    return make


# A killed save.


def kill_training(job: Job, count: int, rng: random.Random) -> str:
    """SIGKILL at random moments of training, one process after another on the same run folder."""
    expected, _ = job.straight()
    killed = resumed = finished = waiting = 0
    while killed < count:
        process = job.start(("tell_steps",), ("tell_saves",))
        if rng.random() < 0.15:  # while it starts
            time.sleep(rng.uniform(0, SLEEPS))
        else:
            there = newest(job.run)
            if (
                there < job.recipe.schedule.iterations
            ):  # else it was killed at the very end, and all that is left is to finish
                assert process.wait_for("step")[1] == there
            resumed, waiting = resumed + waiting, 0
            time.sleep(rng.uniform(0, SLEEPS))
        process.send(signal.SIGKILL)
        status = process.status()
        saved = [event[1] for event in process.events if event[0] == "saved"]
        finished = max([finished, *saved])
        assert newest(job.run) >= finished, "a finished save was lost"
        if status == 0:
            assert same(final_state(job.run), expected)
            shutil.rmtree(job.run)
            finished = 0
        else:
            killed, waiting = killed + 1, waiting + 1
    assert job.start().status() == 0
    assert same(final_state(job.run), expected)
    return f"killed while it trained: {resumed + waiting} of {killed} go on and end with the same bytes"


def kill_saves(job: Job, count: int, rng: random.Random) -> str:
    """SIGKILL between the beginning and the end of a save."""
    expected, _ = job.straight()
    inside = outside = 0
    lasts = 0.05
    while inside < count:
        process = job.start(("tell_saves",))
        for _ in range(rng.randint(1, 3)):
            if process.wait_for("saving")[1] == job.recipe.schedule.iterations:
                break
        began = time.monotonic()
        time.sleep(rng.uniform(0, lasts))
        process.send(signal.SIGKILL)
        process.status()
        lasts = min(lasts * 1.1, 1.0) if process.events[-1][0] == "saving" else max(time.monotonic() - began, 0.005) / 2
        saved = [event[1] for event in process.events if event[0] == "saved"]
        assert newest(job.run) >= max(saved, default=0), "a finished save was lost"
        if process.events[-1][0] == "saving":
            inside += 1
            assert newest(job.run) in (process.events[-1][1], process.events[-1][1] - 1)
        else:
            outside += 1
        if newest(job.run) == job.recipe.schedule.iterations:
            assert same(final_state(job.run), expected)
            shutil.rmtree(job.run)
    assert job.start().status() == 0
    assert same(final_state(job.run), expected)
    return f"killed inside a save: {inside} of {count} go on, no finished save lost ({outside} more fell outside)"


@pytest.mark.integration
def test_killed_while_it_trains_a_run_goes_on(job: Callable[..., Job]) -> None:
    assert "2 of 2" in kill_training(job(iterations=12, save_every=2), 2, random.Random(0))


@pytest.mark.integration
def test_killed_inside_a_save_nothing_finished_is_lost(job: Callable[..., Job]) -> None:
    assert "2 of 2" in kill_saves(job(iterations=8, save_every=1), 2, random.Random(0))


@pytest.mark.slow
def test_killed_at_many_moments_of_training(job: Callable[..., Job]) -> None:
    record("a killed save", kill_training(job(iterations=30, save_every=2), counted(50), random.Random(1)))


@pytest.mark.slow
def test_killed_at_many_moments_of_a_save(job: Callable[..., Job]) -> None:
    record("a killed save", kill_saves(job(iterations=20, save_every=1), counted(50), random.Random(2)))


# Resume.

EVERYTHING = {
    "batch_size": 4,
    "grad_accum_steps": 2,
    "ema_decay": 0.9,
    "color_jitter": 0.3,
    "warmup": 2,
    "save_every": 100,
}


def stop_and_resume(job: Job, points: list[int], workers: int, ranks: int) -> None:
    """Stop at each point of one run, at its first or its second part, and compare with a run that never stopped."""
    expected, states = job.straight(ranks)
    done = 0
    for number, stop in enumerate([*points, None]):
        hooks: list[list[tuple]] = [[] for _ in range(ranks)]
        if stop is not None:
            # Steps have two parts here: a stop at every second point comes between them. One rank alone is told.
            hooks[number % ranks] = [("stop_at", 2 * (stop - 1 - done) + 1 + number % 2, signal.SIGTERM)]
        for forked in (jobs := together(job.line("--resume", workers=workers), job.folder, ranks, hooks)):
            assert forked.status() == (0 if stop is None else 143), forked.output
        if stop is not None:
            assert newest(job.run) == stop, jobs[0].output
            there = torch.load(states / f"{stop}.pt", weights_only=True)
            saved = final_state(job.run)
            assert all(same(saved[key], there[key]) for key in there), f"another state at step {stop}"
            done = stop
    assert same(final_state(job.run), expected)
    shutil.rmtree(job.run)


@pytest.mark.integration
def test_two_ranks_stopped_and_resumed_end_byte_equal(job: Callable[..., Job]) -> None:
    stop_and_resume(job(iterations=4, **EVERYTHING), [3], 0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_at_twenty_points(workers: int, ranks: int, job: Callable[..., Job]) -> None:
    points = list(range(1, counted(20, 2) + 1))  # ten images in batches of four: every fifth step ends two epochs
    iterations = points[-1] + 2
    stop_and_resume(job(iterations=iterations, val_split="val", val_every=7, **EVERYTHING), points, workers, ranks)
    figure = f"{len(points)} points, {workers} workers, {ranks} rank{'s' if ranks > 1 else ''}: byte-equal at each"
    record("resume", figure)


@pytest.mark.integration
def test_moved_to_another_place_with_a_clock_that_goes_back_and_other_workers(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    one = job(iterations=4, save_every=1)
    expected, _ = one.straight()
    assert one.start(("stop_at", 2, signal.SIGTERM)).status() == 143
    os.utime(one.run / "checkpoints" / "step-1", (4e9, 4e9))
    shutil.move(one.run, tmp_path / "elsewhere")
    shutil.move(one.data, tmp_path / "other-data")
    one.run, one.data = tmp_path / "elsewhere", tmp_path / "other-data"
    process = one.start(("clock_backwards",), ("tell_steps",), workers=1)
    assert process.status() == 0 and process.events[0][1] == 2
    assert same(final_state(one.run), expected)


@pytest.mark.slow
def test_resumed_with_another_number_of_ranks(job: Callable[..., Job]) -> None:
    one = job(iterations=6, save_every=100, lr=0.001)
    expected, _ = one.straight()
    assert one.start(("stop_at", 3, signal.SIGTERM)).status() == 143
    for forked in together(one.line("--resume"), one.folder, 2):
        assert forked.status() == 0, forked.output
    actual = final_state(one.run)["model"]
    largest = 0.0
    for key, value in expected["model"].items():
        if value.is_floating_point():
            largest = max(largest, float((actual[key] - value).abs().max() / value.abs().max().clamp(min=1e-3)))
    assert largest < 5e-3
    record("resume", f"from one rank to two: weights differ by {largest:.0e} of the largest in their tensor")


@pytest.mark.integration
def test_the_run_that_it_started_from_need_not_be_there_any_more(
    trained: Path, longer: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "first")
    recipe = override(longer, {"weights": str(tmp_path / "first"), "iterations": 2, "save_every": 1, "val_split": None})
    one = Job(tmp_path, recipe, tiny_data)
    assert one.start(("stop_at", 1, signal.SIGTERM)).status() == 143
    shutil.rmtree(tmp_path / "first")
    process = one.start()
    assert process.status() == 0, process.output


def test_a_checkpoint_of_another_version_is_one_line(tiny: Recipe) -> None:
    with pytest.raises(ValueError, match="does not go with this recipe and this version: KeyError: 'step'"):
        State.build(tiny, 4, 255, DistributedContext(0, 1, torch.device("cpu")), {"model": {}})


# Samples.


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_stopped_at_every_step_give_each_sample_once_an_epoch(
    workers: int, ranks: int, tiny: Recipe, tmp_path: Path, make_data: Callable[..., Path]
) -> None:
    samples, batch = 37, 6
    dataset = open_dataset(make_data(tmp_path / "data", {"train": samples}), "train")
    steps = 3 * samples // batch + 1
    recipe = override(tiny, {"batch_size": batch, "iterations": steps})
    crops = Crops(dataset, Augment(crop=9), seed=4)
    seen: Counter[str] = Counter()
    for step in range(steps):  # each step from a loader of its own, as after a stop
        for rank in range(ranks):
            batches = loader(
                crops,
                recipe.optim,
                range(step, recipe.schedule.iterations),
                workers,
                DistributedContext(rank, ranks, torch.device("cpu")),
            )
            seen.update(next(iter(batches))[2])
    # 19 steps of 6 are three epochs of 37 and three samples of the fourth.
    assert len(seen) == samples and sum(seen.values()) == steps * batch
    assert Counter(seen.values()) == {3: samples - 3, 4: 3}
    record("samples", f"{samples} samples, {steps} stops, {workers} workers, ranks {ranks}: each once an epoch")


# SIGTERM.


def send_sigterm(job: Job, count: int, rng: random.Random) -> str:
    seconds, kinds = [], Counter[str]()
    while len(seconds) < count:
        starting = len(seconds) % 5 == 4
        hooks: list[tuple] = [("tell_steps",), *([("slow_start", 1.0)] if starting else [])]
        process = job.start(*hooks, workers=len(seconds) % 3)
        process.wait_for("starting" if starting else "step")
        time.sleep(rng.uniform(0, SLEEPS))
        began = time.monotonic()
        process.send(signal.SIGTERM, group=rng.random() < 0.5)
        status = process.status(25)
        if status == 0:  # it was done before
            shutil.rmtree(job.run)
            continue
        seconds.append(time.monotonic() - began)
        assert status == 143, f"status {status}: {process.output}"
        told = [event[1] for event in process.events if event[0] == "step"]
        last = process.output.splitlines()[-1]
        assert "Traceback" not in process.output.split("run folder")[-1]
        if told:
            assert newest(job.run) in (told[-1], told[-1] + 1) and "saved" in last
            kinds["while it trained or validated"] += 1
        else:
            assert "nothing to save" in last
            kinds["while it started"] += 1
    done = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{len(seconds)} of {count} saved and left with status 143 ({done}), in {max(seconds):.1f} s at most"


@pytest.mark.integration
def test_sigterm_saves_and_leaves_at_any_moment(job: Callable[..., Job]) -> None:
    one = job(iterations=200, save_every=1000)
    process = one.start(("slow_start", 5.0))
    process.wait_for("starting")
    process.send(signal.SIGTERM)
    assert process.status(25) == 143
    assert process.output.splitlines()[-1] == "atrous: stopped while starting; there was nothing to save"
    assert "1 of 1" in send_sigterm(one, 1, random.Random(0))


@pytest.mark.slow
def test_sigterm_many_times(job: Callable[..., Job]) -> None:
    one = job(iterations=60, save_every=1000, val_split="val", val_every=5)
    record("SIGTERM", send_sigterm(one, counted(20), random.Random(3)))


# NaN or infinity.


def poison(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    real = State.take_step

    def poisoned(state: State, *arguments: Any) -> float:
        if state.step == step:
            with torch.no_grad():
                state.model.classifier.bias[0] = value
        return real(state, *arguments)

    monkeypatch.setattr(State, "take_step", poisoned)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_at_many_steps(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = job(iterations=20, save_every=1)
    steps = range(1, counted(10) + 1)
    for step in steps:
        with monkeypatch.context() as patch:
            poison(patch, step, float("nan" if step % 2 else "inf"))
            assert main(one.line("--resume")) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert re.search(rf"the loss is (nan|inf) at step {step}; the step is not taken. The batch: train\d", said), (
            said
        )
        assert newest(one.run) == step
        assert all(v.isfinite().all() for v in final_state(one.run)["model"].values() if v.is_floating_point())
    record("NaN or infinite loss", f"injected at {len(steps)} steps: none taken, the checkpoint whole, status 1, named")


# A batch with no valid pixel.


def compare_with_empty(tmp_path: Path, steps: int) -> tuple[float, float]:
    """The largest relative differences of loss and weights between one process and two."""
    jobs = [
        *together((), tmp_path, 1, [[("steps_with_empty", str(tmp_path / "out"), steps)]]),
        *together((), tmp_path, 2, [[("steps_with_empty", str(tmp_path / "out"), steps)]] * 2),
    ]
    for job in jobs:
        assert job.status(500) == 0, job.output
    one, first, second = (torch.load(tmp_path / f"out-{name}", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert first["losses"] == second["losses"] and len(first["losses"]) == steps
    assert same(first["model"], second["model"])
    losses = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(one["losses"], first["losses"], strict=True))
    floats = {key: value for key, value in one["model"].items() if value.is_floating_point()}
    worst = max(float((first["model"][key] - value).norm() / value.norm()) for key, value in floats.items())
    assert 0.0 in one["losses"] and min(loss for loss in one["losses"] if loss) > 0.1
    return losses, worst


@pytest.mark.integration
def test_two_ranks_with_empty_masks_do_what_one_process_does(tmp_path: Path) -> None:
    assert max(compare_with_empty(tmp_path, 9)) <= 1e-6


@pytest.mark.slow
def test_two_ranks_with_empty_masks_over_many_steps(tmp_path: Path) -> None:
    steps = counted(100, 9)
    losses, weights = compare_with_empty(tmp_path, steps)
    assert losses <= 1e-6 and weights <= 1e-6
    figure = f"{steps} steps: losses within {losses:.0e}, weights within {weights:.0e} of one process"
    record("batch with no valid pixel", figure)


# Batch of one, last partial batch.


@pytest.mark.slow
@pytest.mark.parametrize("head", ["aspp", "aspp without pooling", "aspp 1x1", "cascade", "cascade to block7"])
def test_every_head_trains_on_a_batch_of_one_and_over_the_edge_of_an_epoch(head: str, job: Callable[..., Job]) -> None:
    changes: dict[str, Any] = {
        "aspp": {"image_pooling": True},
        "aspp without pooling": {},
        "aspp 1x1": {"image_pooling": True, "aspp_pointwise": True, "aspp_rates": (1, 2)},
        "cascade": {"head": "cascade", "backbone": "resnet18", "last_block": 4},
        "cascade to block7": {"head": "cascade", "backbone": "resnet18", "last_block": 7, "output_stride": 8},
    }[head]
    one = job(**changes)
    for batch, iterations in ((1, 11), (4, 3)):  # 10 images: the third batch of four takes two of the next epoch
        run = one.folder / f"run{batch}"
        flags = ["--batch-size", str(batch), "--iterations", str(iterations)]
        assert main(one.line(*flags, run=run)) == 0
        assert newest(run) == iterations
        assert all(v.isfinite().all() for v in final_state(run)["model"].values() if v.is_floating_point())
    record("batch of one, last partial batch", f"{head}: an epoch of batches of one, and of 4, 4 and 2")


# Disk full.


def fill_disk(job: Job, count: int) -> str:
    run = job.run
    assert job.start(("stop_at", 1, signal.SIGTERM)).status() == 143
    largest = max(path.stat().st_size for path in run.rglob("*") if path.is_file())
    kept = job.folder / "kept"
    shutil.copytree(run, kept)
    failed = 0
    for number in range(count):
        size = int(largest * 1.05 * number / max(count - 1, 1))
        process = job.start(("full_disk_at", 2, size))
        status = process.status()
        left = [path for path in run.rglob(".*partial*")]
        assert not left, (size, left)
        if status:
            failed += 1
            said = "".join(event[1] for event in process.events if event[0] == "said").split("run folder")[-1]
            assert status == 1 and said.splitlines()[-1].startswith("atrous: error: "), (size, status, said)
            assert "Traceback" not in said and newest(run) == 1, (size, said)
            assert "is full at step" in said or "is the disk full?" in said, (size, said)
        else:
            assert newest(run) == job.recipe.schedule.iterations and size > largest * 0.9
        shutil.rmtree(run)
        shutil.copytree(kept, run)
    return f"{failed} of {count} size limits were too small: status 1, one line, the previous loads, nothing left over"


@pytest.mark.integration
def test_a_full_disk_ends_a_run_with_one_line(job: Callable[..., Job]) -> None:
    assert fill_disk(job(iterations=3, save_every=1), 2).startswith("1 of 2")


@pytest.mark.slow
def test_a_disk_full_at_many_sizes(job: Callable[..., Job]) -> None:
    record("disk full", fill_disk(job(iterations=3, save_every=1), counted(30, 2)))


# A data worker dies.


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def kill_workers(job: Job, count: int, rng: random.Random) -> str:
    expected, _ = job.straight()
    seconds = []
    while len(seconds) < count:
        process = job.start(("tell_steps",), workers=2)
        started = process.wait_for("step")
        pids = list(started[2])
        assert len(pids) == 2
        time.sleep(rng.uniform(0, SLEEPS))
        began = time.monotonic()
        try:
            os.kill(rng.choice(pids), signal.SIGKILL)
        except ProcessLookupError:  # it had done all its work
            pass
        status = process.status(10)
        if status == 0:
            assert same(final_state(job.run), expected)
            shutil.rmtree(job.run)
            continue
        seconds.append(time.monotonic() - began)
        said = process.output.splitlines()[-1]
        assert status == 1 and "a process that loads data died at step" in said and "--resume" in said, process.output
        time.sleep(0.2)
        assert not [pid for pid in pids if is_alive(pid)], "orphans"
    assert job.start(workers=2).status() == 0
    assert same(final_state(job.run), expected)
    return f"{len(seconds)} kills: an error within {max(seconds):.1f} s, no orphan, the run goes on to the same bytes"


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
def test_a_data_worker_that_is_killed_ends_the_run_with_one_line(job: Callable[..., Job]) -> None:
    assert kill_workers(job(iterations=12, save_every=1), 1, random.Random(0)).startswith("1 kill")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
def test_data_workers_killed_many_times(job: Callable[..., Job]) -> None:
    record("a data worker dies", kill_workers(job(iterations=60, save_every=1), counted(20), random.Random(4)))


# Dead ranks.


@pytest.mark.integration
def test_a_rank_that_is_killed_ends_the_other_and_both_go_on(job: Callable[..., Job]) -> None:
    one = job(iterations=12, save_every=2)
    expected, _ = one.straight(2)
    first, second = together(one.line("--resume"), one.folder, 2, [[("tell_steps",)]] * 2)
    while (event := second.wait_for("step"))[1] < 3:
        pass
    second.send(signal.SIGKILL)
    assert first.status(25) == 1, first.output
    said = first.output.split("run folder")[-1]
    assert "Traceback" not in said and re.search(r"error: another process of the run is gone at step \d+", said), said
    assert newest(one.run) >= 2 and event
    for forked in together(one.line("--resume"), one.folder, 2):
        assert forked.status() == 0, forked.output
    assert same(final_state(one.run), expected)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def torchrun(job: Job, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *flags]
    line = [*command, "-m", "atrous", *job.line("--resume")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    with open(job.folder / "torchrun", "a", encoding="utf-8") as said:
        return subprocess.Popen(line, stdout=said, stderr=said, text=True, start_new_session=True, env=environment)


def end(agent: subprocess.Popen[str]) -> None:
    """Kill what is left of torchrun and its ranks, which have sessions of their own."""
    if agent.poll() is None:
        for pid in children(agent.pid):
            os.kill(pid, signal.SIGABRT)  # so that it says where it was
        agent.kill()
        agent.wait()


def wait_until(done: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in /proc")
def test_under_torchrun_ranks_that_die_are_started_again_and_end_with_the_same_weights(job: Callable[..., Job]) -> None:
    one = job(iterations=60, save_every=2)
    expected, _ = one.straight(2)
    kills = counted(3)
    agent = torchrun(one, "--max-restarts", str(kills))
    said = one.folder / "torchrun"
    try:
        for number in range(kills):
            before = newest(one.run) + 2  # one more may have been saved while the last rank was killed
            wait_until(lambda step=before: newest(one.run) > step, 300, said.read_text)
            os.kill(children(agent.pid)[number % 2], signal.SIGKILL)
        assert agent.wait(600) == 0, said.read_text()
    finally:
        end(agent)
    assert same(final_state(one.run), expected)
    assert "FutureWarning" not in said.read_text()
    record("dead ranks", f"torchrun, {kills} ranks killed: started again each time, the same final bytes")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_saves(number: int, job: Callable[..., Job]) -> None:
    one = job(iterations=3000, save_every=1000)
    agent = torchrun(one)
    said = one.folder / "torchrun"
    try:
        wait_until(lambda: "step 50/" in said.read_text() or agent.poll() is not None, 300, said.read_text)
        os.killpg(agent.pid, number)
        agent.wait(60)
    finally:
        end(agent)
    assert agent.returncode not in (0, None)
    assert newest(one.run) >= 50 and "and saved; the same command with --resume goes on" in said.read_text()
    record("dead ranks", f"{signal.Signals(number).name} to torchrun: saved at step {newest(one.run)}")


# A folder of one's own, and one that cannot be written.


@pytest.mark.integration
def test_two_processes_do_not_write_to_one_run(job: Callable[..., Job], capsys: pytest.CaptureFixture[str]) -> None:
    one = job(iterations=500, save_every=1)
    process = one.start(("tell_steps",), workers=1)
    loader = process.wait_for("step")[2][0]
    assert main(one.line("--resume")) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"atrous: error: {one.run} is being written by another process; wait for it, or name another --out"]
    process.send(signal.SIGKILL)
    process.status()
    again = one.start(("stop_at", 1, signal.SIGTERM))  # at once, though what loaded data may still be there
    assert again.status() == 143, again.output
    if is_alive(loader):
        os.kill(loader, signal.SIGKILL)


@pytest.mark.integration
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becomes another user, which only root can")
def test_a_run_folder_that_cannot_be_written_is_one_line(job: Callable[..., Job], make_data: Any) -> None:
    one = job(iterations=1)
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to others
        folder = Path(name)
        folder.chmod(0o755)
        made = Job(folder, one.recipe, make_data(folder / "data", {"train": 2}))
        (folder / "run").mkdir()
        process = Forked(made.line(), one.folder / "said", [("user", 65534)])
        assert process.status() == 2, process.output
        assert re.fullmatch(r"atrous: error: .*/run/.*: Permission denied\n", process.output), process.output


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its own memory by /proc")
@pytest.mark.parametrize(("crop", "workers"), [(30_000, 0), (30_000, 1), (3_000, 0)])
def test_a_crop_too_large_for_the_memory_is_one_line(crop: int, workers: int, job: Callable[..., Job]) -> None:
    one = job(iterations=1, crop=crop)
    process = one.start(("little_memory", 700_000_000), workers=workers)
    assert process.status() == 1, process.output
    said = process.output.splitlines()[-1]
    expected = (
        rf"out of memory at step 0, .*with 4 crops of {crop}x{crop} at a time.*: lower crop or batch_size, "
        "or raise"
    )
    assert re.search(expected, said) and "Traceback" not in process.output, process.output
