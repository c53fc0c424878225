"""The dial against the paper's words and tables, by hand."""

import pytest

from atrous.models.output_stride import OUTPUT_STRIDES, Dial, check_reachable, check_unit_rates


def test_output_strides_are_those_of_table_1_and_appendix_c() -> None:
    assert OUTPUT_STRIDES == (4, 8, 16, 32, 64, 128, 256)


@pytest.mark.parametrize("stride", [0, 1, 2, 3, 5, 12, 24, 512, -8, 16.5, 8.0, "16", True, None])
def test_no_other_output_stride(stride: object) -> None:
    with pytest.raises(ValueError, match="expected one of 4, 8, 16, 32, 64, 128, 256"):
        Dial(stride)  # type: ignore[arg-type]


# Section 4: at output stride 8, block3 and block4 have rates 2 and 4. Figure 3 (b): at 16, block4 to 7 have 2 to 16.
BLOCK_RATES = {
    4: (2, 4, 8, 16, 32, 64),
    8: (1, 2, 4, 8, 16, 32),
    16: (1, 1, 2, 4, 8, 16),
    32: (1, 1, 1, 2, 4, 8),
    64: (1, 1, 1, 1, 2, 4),
    128: (1, 1, 1, 1, 1, 2),
    256: (1, 1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
def test_rates_of_blocks_2_to_7(output_stride: int) -> None:
    native = (8, 16, 32, 64, 128, 256)  # what the blocks read when each before them has halved the map
    assert tuple(map(Dial(output_stride).rate, native)) == BLOCK_RATES[output_stride]


@pytest.mark.parametrize(
    ("output_stride", "native_in", "native_out", "stride", "rate"),
    [
        (16, 8, 16, 2, 1),  # still below the output stride: as it was
        (16, 16, 32, 1, 1),  # would leave it: its stride is taken away, it still reads a plain map
        (16, 32, 32, 1, 2),  # after that one
        (8, 8, 16, 1, 1),
        (8, 16, 32, 1, 2),
        (8, 32, 32, 1, 4),
        (256, 128, 256, 2, 1),
        (4, 1, 2, 2, 1),
        (4, 2, 16, 2, 1),  # a layer of stride 8 of which 2 still fits
    ],
)
def test_stride_and_rate(output_stride: int, native_in: int, native_out: int, stride: int, rate: int) -> None:
    assert Dial(output_stride).stride_and_rate(native_in, native_out) == (stride, rate)


def test_multi_grid_of_section_3_2_1() -> None:
    assert Dial(16).multi_grid(32, (1, 2, 4)) == (2, 4, 8)
    assert Dial(8).multi_grid(32, (1, 2, 4)) == (4, 8, 16)
    assert Dial(32).multi_grid(32, (1, 2, 1)) == (1, 2, 1)


@pytest.mark.parametrize(
    ("output_stride", "rates"),
    [(4, (24, 48, 72)), (8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9)), (64, (2, 3, 5)), (256, (1, 1, 1))],
)
def test_aspp_rates_of_section_3_3(output_stride: int, rates: tuple[int, ...]) -> None:
    assert Dial(output_stride).aspp_rates((6, 12, 18)) == rates


def test_unreachable_names_network_and_reachable_strides() -> None:
    with pytest.raises(ValueError, match="tiny cannot reach output_stride 64; it can reach 8, 16, 32"):
        check_reachable(64, (32, 8, 16), "tiny")


def test_a_network_that_reaches_no_stride_is_named() -> None:
    with pytest.raises(ValueError, match="tiny cannot reach output_stride 16; its features are on no grid; choose"):
        check_reachable(16, (), "tiny")


@pytest.mark.parametrize("rates", [(1, 2), (1, 2, 4, 8), (0, 1, 1), (1.5, 1, 1)])
def test_unit_rates_that_do_not_fit(rates: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 3 whole numbers of at least 1 for block4"):
        check_unit_rates(rates, 3, "block4")
