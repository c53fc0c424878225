"""Distillation: the loss against PyTorch's own divergence, a teacher that is like its student, and one that is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from atrous.evaluation.distributed import DistributedContext
from atrous.models.weights import load, save
from atrous.training.config import Recipe, override
from atrous.training.loop import train
from atrous.training.state import State

HERE = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture
def taught(longer: Recipe, trained: Path) -> Recipe:
    return override(longer, {"teacher": str(trained), "teacher_weight": 0.25, "teacher_temperature": 3.0})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (2, 33, 33), dtype=torch.uint8, generator=generator)
    labels[0, :20] = 255
    return images, labels


def test_the_loss_is_the_weighted_sum_of_both(taught: Recipe) -> None:
    state = State.build(taught, 4, 255, HERE)
    images, labels = batch()
    objective = state.objective.eval()
    loss = objective(images, labels)
    assert objective.teaching is not None and objective.teaching.ready is not None
    inputs = objective.normalise(images)
    logits = state.model.low_resolution_logits(inputs)
    with torch.no_grad():
        target = objective.teaching.ready.low_resolution_logits(
            inputs.contiguous(memory_format=torch.channels_last)
        ).float()
    plain = F.cross_entropy(state.model(inputs), labels.long(), ignore_index=255, reduction="sum")
    pixels = (labels != 255).sum()
    divergence = (
        F.kl_div((logits / 3).log_softmax(1), (target / 3).log_softmax(1), log_target=True, reduction="none")
        .sum(1)
        .mean()
    )
    torch.testing.assert_close(loss, 0.75 * plain + 0.25 * 9 * divergence * pixels, rtol=1e-4, atol=1e-3)


def test_a_student_like_its_teacher_learns_nothing_from_it(taught: Recipe, trained: Path) -> None:
    like = override(taught, {"weights": str(trained), "teacher_weight": 1.0})
    state = State.build(like, 4, 255, HERE)
    other = State.build(override(like, {"weights": None}), 4, 255, HERE)
    images, labels = batch()
    actual = [float(s.objective.eval()(images, labels).detach()) / int((labels != 255).sum()) for s in (state, other)]
    # What is left is the rounding of the teacher's bfloat16, where the machine takes that.
    assert abs(actual[0]) < 0.01 < actual[1]


def test_the_teacher_is_no_part_of_the_model(taught: Recipe) -> None:
    state, plain = State.build(taught, 4, 255, HERE), State.build(override(taught, {"teacher": None}), 4, 255, HERE)
    images, labels = batch()
    state.take_step([(images, labels, ["a", "b"])], 0.001, HERE)
    assert state.objective.state_dict().keys() == plain.objective.state_dict().keys()
    assert [p.shape for p in state.objective.parameters()] == [p.shape for p in plain.objective.parameters()]


def test_a_teacher_of_other_classes_is_refused(taught: Recipe) -> None:
    with pytest.raises(ValueError, match=r"has 4 classes, not 5"):
        State.build(taught, 5, 255, HERE)
    with pytest.raises(ValueError, match="no weight file, run folder or named model 'nobody'"):
        State.build(override(taught, {"teacher": "nobody"}), 4, 255, HERE)


def test_a_teacher_with_its_features_on_other_pixels_is_refused(taught: Recipe, trained: Path, tmp_path: Path) -> None:
    model, card = load(trained)
    card.arguments["upsampling"] = "half_pixel"
    save(model, tmp_path / "teacher.safetensors", card)
    with pytest.raises(ValueError, match="its upsampling is half_pixel, expected grid"):
        State.build(override(taught, {"teacher": str(tmp_path / "teacher.safetensors")}), 4, 255, HERE)


def test_a_teacher_of_classes_with_other_names_is_refused(taught: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    text = (data / "dataset.yaml").read_text()
    (data / "dataset.yaml").write_text(text.replace("green", "yellow"))
    with pytest.raises(ValueError, match="knows the classes ground, red, green, blue; the data has others"):
        train(taught, data, tmp_path / "run", workers=0, device="cpu")


def test_a_run_with_a_teacher_trains_and_resumes(tiny: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train(override(tiny, {"iterations": 1, "val_split": None}), tiny_data, teacher, workers=0, device="cpu")
    quick = override(tiny, {"teacher": str(teacher), "teacher_weight": 0.25, "iterations": 2, "val_every": 2})
    assert train(quick, tiny_data, tmp_path / "run", workers=0, device="cpu") is not None
    train(quick, tiny_data, tmp_path / "run", resume=True, workers=0, device="cpu")
