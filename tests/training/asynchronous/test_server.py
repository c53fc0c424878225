"""Asynchronous training: the server does what it says, and two replicas train as well as one process."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atrous.cli.parser import main
from atrous.data.datasets.dataset import open_dataset
from atrous.evaluation.distributed import DistributedContext
from atrous.models.weights import load
from atrous.training import checkpoint
from atrous.training.asynchronous.replica import Push, Replica
from atrous.training.asynchronous.server import Outcome, Server, train_asynchronously
from atrous.training.asynchronous.staleness import PushLog, Staleness
from atrous.training.config import Recipe, override
from atrous.training.loader import crops_of
from atrous.training.loop import train
from atrous.training.lr_schedule import poly
from atrous.training.state import State
from reliability import counted, record

pytestmark = pytest.mark.integration

CPU = DistributedContext(0, 1, torch.device("cpu"))


def server_of(recipe: Recipe, saved: dict[str, Any] | None = None) -> Server:
    return Server(State.build(recipe, 4, 255, CPU, saved), (saved or {}).get("asynchronous"))


def replica_of(recipe: Recipe, data: Path, number: int = 0, **options: Any) -> Replica:
    dataset = open_dataset(data, "train")
    model = State.build(recipe, 4, 255, CPU).model
    crops = crops_of(dataset, recipe.data, model, recipe.run.seed)
    return Replica(number, model, recipe, crops, None, **options)


def made_up(server: Server, step: int, value: float) -> Push:
    """A push of the next batch, with the same number for every gradient."""
    gradients = [np.full(parameter.shape, value, np.float32) for parameter in server.trained]
    batch = server.draw()
    assert batch is not None
    return Push(batch, step, list(gradients), {}, 1.0, ["a"], {})


SERIAL: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw, parts, average, warm-up": {"optimizer": "adamw", "grad_accum_steps": 2, "ema_decay": 0.9, "warmup": 2},
    "batch norm frozen": {"batch_norm": "freeze"},
    "statistics frozen": {"batch_norm": "statistics", "flip": 0.0},
}


@pytest.mark.parametrize("case", SERIAL)
def test_pushed_one_after_another_they_are_the_steps_of_a_synchronous_run(
    case: str, tiny: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = override(tiny, {"val_split": None, "iterations": 3, **SERIAL[case]})
    train(recipe, tiny_data, tmp_path / "run", workers=0, device="cpu")
    expected = checkpoint.load_newest(tmp_path / "run")
    assert expected is not None
    server, replicas = server_of(recipe), [replica_of(recipe, tiny_data, number) for number in range(2)]
    first = {key: value.clone() for key, value in server.state.model.state_dict().items()}
    for step in range(3):
        batch = server.draw()
        assert batch == step
        server.push(replicas[step % 2].gradient(*server.pull(), batch))
    assert server.staleness.counts == {0: 3}
    actual = server.state.to_save()
    assert actual["step"] == expected["step"] == 3
    for part in ("model", "average"):
        assert (actual[part] is None) == (expected[part] is None)
        for key, value in (expected[part] or {}).items():
            torch.testing.assert_close(actual[part][key], value, rtol=1e-6, atol=1e-6)
    for key, moments in expected["optimizer"]["state"].items():
        torch.testing.assert_close(actual["optimizer"]["state"][key], moments, rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(first[key], value) for key, value in expected["model"].items())


def test_staleness_of_a_schedule_by_hand_and_what_each_push_does(tiny: Recipe) -> None:
    recipe = override(tiny, {"iterations": 8, "momentum": 0.0, "weight_decay": 0.0, "warmup": 3})
    server = server_of(recipe)
    expected = [parameter.detach().double() for parameter in server.trained]
    # Replica A pulls at step 0, B and C too; then, in the order of pushes, who pulled when.
    schedule = [("A", 0, 0), ("A", 1, 0), ("B", 0, 2), ("C", 0, 3), ("C", 4, 0), ("A", 2, 3), ("B", 3, 3), ("A", 6, 1)]
    for step, (_, pulled, staleness) in enumerate(schedule):
        value = 0.01 * (step + 1)
        lr, actual = server.push(made_up(server, pulled, value))
        assert actual == staleness
        assert lr == 0.02 * poly(step, 8, power=0.9, warmup=3)
        expected = [parameter - lr * value for parameter in expected]
    assert server.staleness.as_dict() == {
        "pushes": 8, "mean": 1.5, "max": 3, "histogram": {"0": 3, "1": 1, "2": 1, "3": 3}
    }  # fmt: skip
    for parameter, value in zip(server.trained, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)
    assert server.draw() is None


def test_staleness_in_lines() -> None:
    assert Staleness().render() == "staleness of 0 pushes: mean 0.00, max 0"
    actual = Staleness()
    actual.counts.update([1, 1, 1, 3])
    assert actual.render().splitlines() == [
        "staleness of 4 pushes: mean 1.50, max 3",
        "    1        3   75.0%  " + 30 * "#",
        "    3        1   25.0%  " + 10 * "#",
    ]


def test_the_log_of_pushes_drops_what_will_be_done_again(tmp_path: Path) -> None:
    log = PushLog(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, step % 2, 1)
    with open(log.path, "a", encoding="utf-8") as file:
        file.write("6,0")  # killed while it wrote
    PushLog(tmp_path, 3).write(4, 1, 2)
    assert log.path.read_text().splitlines() == ["step,replica,staleness", "1,1,1", "2,0,1", "3,1,1", "4,1,2"]


def test_statistics_of_batch_norm_take_each_push_as_one_more_update(tiny: Recipe, tiny_data: Path) -> None:
    recipe = override(tiny, {"batch_norm_decay": 0.9, "grad_accum_steps": 2})
    server = server_of(recipe)
    names = [name for name, _ in server.state.model.named_buffers() if "running" in name]
    before = {name: server.state.model.get_buffer(name).double().numpy().copy() for name in names}
    pulled = server.pull()
    exact = replica_of(override(recipe, {"batch_norm_decay": 0.0, "grad_accum_steps": 1}), tiny_data)
    assert server.draw() == 0 and server.draw() == 1
    replicas = [replica_of(recipe, tiny_data, number) for number in range(2)]
    for batch, replica in enumerate(replicas):  # both of them pulled before the first push
        server.push(replica.gradient(*pulled, batch))
    halves = []
    for batch in range(2):
        for images, labels, _ in replicas[0]._parts(batch):
            exact._load(pulled[0])
            exact.state.objective(images, labels)
            halves.append({name: exact.state.model.get_buffer(name).double().numpy().copy() for name in names})
    for name in names:
        expected = before[name]
        for half in halves:
            expected = 0.9 * expected + 0.1 * half[name]
        actual = server.state.model.get_buffer(name).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert len(names) > 20
    assert all(int(norm.num_batches_tracked) == 4 for norm in server.state.model.batch_norms())


def test_every_batch_is_pushed_once_whatever_dies_and_stops(tiny: Recipe) -> None:
    recipe = override(tiny, {"iterations": 9})
    server, rng, pushed = server_of(recipe), np.random.default_rng(0), []
    out: list[int] = []
    for turn in range(200):
        if turn % 20 == 19:  # stopped, and resumed: what was out is drawn again
            saved = {**server.state.to_save(), "asynchronous": server.to_save()}
            server, out = server_of(recipe, saved), []
        action = rng.integers(3)
        if action == 0 and len(out) < 4 and (batch := server.draw()) is not None:
            out.append(batch)
        elif action == 1 and out and rng.random() < 0.3:
            server.give_back(out.pop(rng.integers(len(out))))
        elif action == 2 and out:
            batch = out.pop(rng.integers(len(out)))
            server.push(Push(batch, server.state.step, [None] * len(server.trained), {}, 1.0, [], {}))
            pushed.append(batch)
    assert sorted(pushed) == list(range(9)) and pushed != sorted(pushed)
    assert server.state.step == 9 and server.draw() is None and server.staleness.pushes == 9


def test_a_server_goes_on_from_a_synchronous_run(tiny: Recipe) -> None:
    saved = {**server_of(tiny).state.to_save(), "step": 3}
    server = server_of(tiny, saved)
    assert server.draw() == 3 and server.draw() is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_replica_has_its_next_batch_ready(workers: int, tiny: Recipe, tiny_data: Path) -> None:
    server, replica = server_of(tiny), replica_of(tiny, tiny_data, workers=workers)
    one = replica.gradient(*server.pull(), 0, 1)
    assert set(replica.ahead) == ({1} if workers else set())
    other = replica.gradient(*server.pull(), 1)
    assert one.names != other.names and len(one.names) == 4 and not replica.ahead
    assert sorted({*one.names, *other.names}) == [f"train{i}" for i in range(8)]


def test_what_is_not_finite_is_not_pushed(tiny: Recipe, tiny_data: Path) -> None:
    server, replica = server_of(tiny), replica_of(tiny, tiny_data)
    weights, _ = server.pull()
    weights["classifier.bias"][0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 7; the step is not taken. The batch: train"):
        replica.gradient(weights, 7, 0)
    push = replica.gradient(*server.pull(), 0)  # it goes on with whole parameters
    assert np.isfinite(push.loss)


def test_without_ray_the_extra_is_named(
    tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "recipe.yaml").write_text(override(tiny, {"val_split": None}).to_yaml())
    command = ["train", str(tmp_path / "recipe.yaml"), "--data", str(tiny_data), "--out", str(tmp_path / "run")]
    assert main([*command, "--device", "cpu", "--asynchronous", "2"]) == 2
    assert "atrous: error: asynchronous training runs on Ray; pip install 'atrous[async]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "0 asynchronous replicas, expected at least 1"),
        ({"replicas": 2, "device": "tpu"}, "no device 'tpu'"),
        ({"replicas": 2, "world": "2"}, "run it without torchrun"),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any],
    message: str,
    tiny: Recipe,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", options.pop("world", "1"))
    with pytest.raises(ValueError, match=message):
        train_asynchronously(tiny, tiny_data, tmp_path / "run", **{"device": "cpu", **options})
    assert not (tmp_path / "run").exists()


@pytest.fixture
def with_ray() -> None:
    pytest.importorskip("ray", reason="ray, of the extra async, is not installed")


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "staleness.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_heart(side: int, iterations: int) -> Recipe:
    """A recipe that learns a few images by heart: it is validated on what it trains on."""
    return override(
        Recipe(),
        {
            "backbone": "timm/tf_efficientnet_lite0",
            "multi_grid": None,
            "aspp_rates": (1,),
            "weights": "imagenet",
            "crop": side,
            "train_split": "train",
            "val_split": "train",
            "scales": (1.0, 1.0),
            "flip": 0.0,
            "output_stride": 8,
            "batch_size": 4,
            "lr": 0.05,
            "iterations": iterations,
            "momentum": 0.5,
            "head_lr_factor": 2.0,
            "weight_decay": 0.0,
            "batch_norm_decay": 0.8,
        },
    )


def best_of_both(recipe: Recipe, data: Path, folder: Path) -> tuple[float, Outcome]:
    synchronous = train(recipe, data, folder / "synchronous", workers=0, device="cpu")
    assert synchronous is not None
    two = train_asynchronously(recipe, data, folder / "asynchronous", replicas=2, workers=0, device="cpu")
    return synchronous, two


def test_two_replicas_learn_as_one_process_does(with_ray: None, tmp_path: Path, make_data: Any) -> None:
    data = make_data(tmp_path / "data", {"train": 4}, sizes=[(32, 32)])
    synchronous, outcome = best_of_both(by_heart(32, 24), data, tmp_path)
    print(f"mIoU {synchronous:.3f} by one process, {outcome.best:.3f} by two replicas; {outcome.staleness.as_dict()}")
    run = tmp_path / "asynchronous"
    assert outcome.best is not None and outcome.best > synchronous - 0.2
    assert load(run)[1].metrics["val"]["step"] == 24
    actual = rows(run)
    assert [int(row["step"]) for row in actual] == list(range(1, 25))
    assert {row["replica"] for row in actual} == {"0", "1"}
    values = [int(row["staleness"]) for row in actual]
    assert outcome.staleness.counts == {value: values.count(value) for value in set(values)}
    written = json.loads((run / "staleness.json").read_text())
    assert written == {"replicas": 2, **outcome.staleness.as_dict()} and written["max"] > 0
    saved = checkpoint.load_newest(run)
    assert saved is not None and saved["asynchronous"]["out"] == [] and saved["asynchronous"]["next"] == 24


@pytest.mark.slow
def test_two_replicas_reach_the_accuracy_of_one_process_within_its_spread(
    with_ray: None, tmp_path: Path, make_data: Any
) -> None:
    recipe, data = by_heart(48, 100), make_data(tmp_path / "data", {"train": 4}, sizes=[(48, 48)])
    actual = []
    for seed in range(counted(3, least=3)):
        synchronous, outcome = best_of_both(override(recipe, {"seed": seed}), data, tmp_path / f"{seed}")
        assert outcome.best is not None
        actual.append((synchronous, outcome.best))
        print(f"seed {seed}: mIoU {synchronous:.4f} by one process, {outcome.best:.4f} by two replicas, "
              f"{outcome.staleness.as_dict()}")  # fmt: skip
    one, two = np.array(actual).T
    spread = float(one.max() - one.min())
    record(
        "asynchronous training",
        f"mIoU of {len(one)} seeds {one.mean():.3f} by one process ({one.min():.3f} to {one.max():.3f}), "
        f"{two.mean():.3f} by two replicas ({two.min():.3f} to {two.max():.3f})",
    )
    assert two.mean() > one.mean() - spread and two.mean() > 0.8


@pytest.fixture
def start(with_ray: None, tiny: Recipe, tiny_data: Path, tmp_path: Path) -> Any:
    """Starts a run of many steps as a process of its own; waits until it says what it is asked to say."""
    (tmp_path / "recipe.yaml").write_text(
        override(tiny, {"iterations": 3000, "batch_size": 2, "val_split": None}).to_yaml()
    )
    started = []

    def start(*flags: str) -> tuple[subprocess.Popen[str], Callable[[str], str]]:
        command = [sys.executable, "-m", "atrous", "train", str(tmp_path / "recipe.yaml"), "--data", str(tiny_data)]
        command += ["--out", str(tmp_path / "run"), "--device", "cpu", "-j", "0", *flags]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)

        def until(word: str) -> str:
            assert process.stderr is not None
            said = [""]
            while word not in said[-1]:
                said.append(process.stderr.readline())
                assert said[-1], f"ended with status {process.wait()} before it said {word}: {''.join(said)}"
            return said[-1]

        return process, until

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def of_session(leader: int) -> dict[int, str]:
    """Processes, but for the leader, that a process which leads a session has started, and theirs: id to name."""
    lines = subprocess.run(["ps", "-eo", "pid,sid,stat,args"], capture_output=True, text=True, check=True).stdout
    fields = [line.split(None, 3) for line in lines.splitlines()[1:]]
    return {
        int(pid): name
        for pid, session, state, name in fields
        if int(session) == leader and int(pid) != leader and "Z" not in state
    }


def all_end(leader: int, seconds: float = 10, named: str = "") -> bool:
    deadline = time.monotonic() + seconds
    while left := [name for name in of_session(leader).values() if named in name]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return not left


def test_a_killed_replica_is_replaced_and_a_stopped_run_goes_on(start: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process, until = start("--asynchronous", "2", "--json")
    until("step ")
    replicas = [pid for pid, name in of_session(process.pid).items() if "Replica" in name]
    assert len(replicas) == 2
    os.kill(replicas[0], signal.SIGKILL)
    assert "replica " in until("another takes its place")
    until("step ")
    deadline = time.monotonic() + 60
    while len([name for name in of_session(process.pid).values() if "Replica" in name]) < 2:
        assert time.monotonic() < deadline, "no other replica has taken its place"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "Traceback" not in said and "--resume goes on" in said.splitlines()[-1] and "staleness of" in said
    assert out == "" and all_end(process.pid)
    saved = checkpoint.load_newest(run)
    assert saved is not None
    step, asynchronous = saved["step"], saved["asynchronous"]
    assert (
        step
        == len(rows(run))
        == sum(asynchronous["staleness"].values())
        == asynchronous["next"] - len(asynchronous["out"])
    )
    assert json.loads((run / "staleness.json").read_text())["pushes"] == step
    # A synchronous run goes on from there.
    again, until = start("--resume")
    assert f"going on at step {step}" in until("going on")
    until("step ")
    os.kill(again.pid, signal.SIGINT)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 130, said
    assert checkpoint.steps(run)[-1] > step


@pytest.mark.slow
def test_killed_outright_it_leaves_no_process(start: Any) -> None:
    process, until = start("--asynchronous", "2")
    until("step ")
    assert of_session(process.pid)
    process.kill()
    process.wait()
    assert all_end(process.pid, named="Replica")
    assert all_end(process.pid, seconds=120)  # Ray's agents first try to tell somebody


@pytest.mark.slow
def test_stopped_again_and_again_it_ends(
    with_ray: None, tiny: Recipe, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atrous.training.interrupts import Stopped

    recipe, run = override(tiny, {"iterations": 12, "val_every": 4}), tmp_path / "run"
    real = Server.push
    for stop, replicas in ((3, 2), (7, 3)):

        def push(server: Server, pushed: Push, stop: int = stop) -> Any:
            if server.state.step == stop - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(server, pushed)

        monkeypatch.setattr(Server, "push", push)
        with pytest.raises(Stopped, match=f"stopped at step {stop} and saved"):
            train_asynchronously(recipe, tiny_data, run, replicas=replicas, resume=stop > 3, workers=1, device="cpu")
    monkeypatch.undo()
    outcome = train_asynchronously(recipe, tiny_data, run, replicas=1, resume=True, workers=1, device="cpu")
    assert outcome.staleness.pushes == 12 and [int(row["step"]) for row in rows(run)] == list(range(1, 13))
    assert outcome.best is not None


@pytest.mark.slow
def test_what_is_wrong_with_a_file_is_one_line(with_ray: None, tiny: Recipe, tmp_path: Path, make_data: Any) -> None:
    data = make_data(tmp_path / "data", {"train": 1})
    path = data / "images" / "train" / "train0.png"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"train0\.png: ") as caught:
        train_asynchronously(override(tiny, {"val_split": None}), data, tmp_path / "run", replicas=2, device="cpu")
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
