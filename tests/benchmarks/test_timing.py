"""The harness that compares: turn by turn, ratios, peers that are missing."""

import time

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Candidate, Row, compare, matrix_peak, peak_memory, render


def test_ratios_are_against_the_first_and_skipped_rows_stay() -> None:
    calls: list[str] = []

    def busy(name: str, seconds: float) -> Candidate:
        def run() -> None:
            calls.append(name)
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        return Candidate(name, run, gflop=0.5)

    skipped = Row("absent", note="skipped: not installed", skipped=True)
    result = compare("sleep", {"n": 1}, [busy("ours", 0.02), busy("theirs", 0.06), skipped], rounds=3)
    ours, theirs, absent = result.rows
    assert ours.ratio == ours.ratio_low == 1 and 1.5 < theirs.ratio < 6 and absent is skipped
    assert ours.gflop_per_second == pytest.approx(0.5 / ours.seconds)
    # A warm-up and a look at the memory each, then turns that begin with another candidate each time.
    assert calls == ["ours", "ours", "theirs", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert result.as_dict()["rows"][2]["note"] == "skipped: not installed"
    assert render(result).row_count == 3


def test_peak_memory_sees_what_is_held_during_a_run() -> None:
    def hold() -> None:
        block = torch.ones(50_000_000)
        block.add_(1)
        time.sleep(0.02)

    assert 150 < peak_memory(hold) < 400
    # So it does where glibc has freed memory of its own to give, which was resident before the run.
    torch.ones(7_000_000).add_(1)  # once freed, blocks of its size come from the heap
    blocks = [torch.ones(7_000_000) for _ in range(20)]
    pin = torch.ones(7_000_000)
    del blocks
    assert 150 < peak_memory(hold) < 400
    del pin


def test_the_peak_is_a_rate() -> None:
    assert matrix_peak(torch.float32, torch.device("cpu"), 256) > 0.1


def test_one_thread_is_timed_by_the_processors_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes of a busy machine take does not count: a run that only waits takes no time."""
    monkeypatch.setattr(timing, "matrix_peak", lambda *_: 1.0)
    waiting = Candidate("waiting", lambda: time.sleep(0.05))
    result = compare("sleep", {}, [waiting], rounds=1)
    assert result.setting["clock"] == "processor" and result.rows[0].seconds < 0.02
    torch.set_num_threads(2)
    try:
        result = compare("sleep", {}, [waiting], rounds=1)
    finally:
        torch.set_num_threads(1)
    assert result.setting["clock"] == "wall" and result.rows[0].seconds > 0.04


def test_a_share_is_of_the_peak_of_its_own_format(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {torch.float32: 100.0, torch.bfloat16: 400.0}
    monkeypatch.setattr(timing, "matrix_peak", lambda dtype, _: peaks[dtype])
    monkeypatch.setattr(timing, "native_dtype", lambda _: native)
    wide = Candidate("wide", lambda: time.sleep(0.01), gflop=1.0)
    half = Candidate("half", lambda: time.sleep(0.01), gflop=1.0, dtype=torch.bfloat16)
    for native, expected in ((torch.bfloat16, (100.0, 400.0)), (torch.float32, (100.0, 100.0))):
        result = compare("sleep", {}, [wide, half], rounds=1)
        for row, peak in zip(result.rows, expected, strict=True):
            assert row.peak_share == pytest.approx(row.gflop_per_second / peak)
        assert result.setting["float32_peak_gflops"] == 100.0
        assert result.setting.get("bfloat16_peak_gflops") == (400.0 if native == torch.bfloat16 else None)
