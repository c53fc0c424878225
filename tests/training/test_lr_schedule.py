"""The poly policy of section 4.1, against values worked out by hand."""

import pytest

from atrous.training.lr_schedule import poly


@pytest.mark.parametrize(
    ("step", "expected"),
    # exp(0.9 * ln(1 - step / 30000)), from a table of logarithms
    [(0, 1.0), (3_000, 0.9095325760829622), (15_000, 0.5358867312681466), (27_000, 0.12589254117941673), (30_000, 0)],
)
def test_poly_is_one_minus_the_share_done_to_the_power_of_nine_tenths(step: int, expected: float) -> None:
    assert poly(step, 30_000) == pytest.approx(expected, rel=1e-12)


def test_the_first_stage_starts_at_the_papers_rate_and_ends_near_zero() -> None:
    assert 0.007 * poly(0, 30_000) == 0.007
    # One step before the end: 0.007 * (1 / 30000) ** 0.9 = 0.007 * 9.34525e-5
    assert 0.007 * poly(29_999, 30_000) == pytest.approx(6.54167e-7, rel=1e-5)


def test_the_power_is_a_choice() -> None:
    assert poly(25, 100, power=1.0) == pytest.approx(0.75)
    assert poly(25, 100, power=2.0) == pytest.approx(0.5625)
    assert poly(25, 100, power=0.0) == 1.0


def test_past_the_end_the_rate_is_zero_and_real() -> None:
    assert poly(101, 100) == 0.0


def test_warmup_rises_linearly_from_the_first_step_and_then_is_poly_itself() -> None:
    plain = [poly(step, 100) for step in range(100)]
    warmed = [poly(step, 100, warmup=4) for step in range(100)]
    assert [w / p for w, p in zip(warmed[:5], plain[:5], strict=True)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert warmed[3:] == plain[3:]


def test_without_warmup_the_rate_only_falls() -> None:
    rates = [poly(step, 50) for step in range(51)]
    assert all(later < earlier for earlier, later in zip(rates, rates[1:], strict=False))
