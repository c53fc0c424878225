"""The flags of how data is read, as `DatasetOptions`; bad values name the flag in one line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atrous.cli.arguments import Parser, add_data, dataset_options
from atrous.data.datasets.options import NO_OPTIONS, DatasetOptions


def parsed(*words: str) -> DatasetOptions:
    parser = Parser(prog="x")
    add_data(parser)
    return dataset_options(parser.parse_args(["--data", "d", *words]))


def test_every_flag_is_a_key_of_dataset_yaml() -> None:
    options = parsed(
        "--classes", "leaf, green", "--classes", "stem", "--rest", "ignore", "--map", "bud=stem", "--map", "7=leaf",
        "--ignore", "255", "--ignore", "1,2,3", "--names", "a, b,c", "--images", "photos", "--annotator", "ann",
        "--binary", "object", "--value-range=-160,240", "--bands", "4,3,2",
    )  # fmt: skip
    assert options.as_dict() == {
        "names": ["a", "b", "c"], "ignore": ["255", [1, 2, 3]], "map": {"bud": "stem", "7": "leaf"},
        "classes": ["leaf, green", "stem"], "rest": "ignore", "images": "photos", "annotator": "ann",
        "binary": "object", "value_range": [-160, 240], "bands": [4, 3, 2],
    }  # fmt: skip
    assert parsed("--names", "a, b", "--names", "c").names == ("a, b", "c") and parsed() == NO_OPTIONS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--value-range", "9"], "--value-range is .*; expected LOW,HIGH"),
        (["--bands", "4,3"], "--bands is .*; expected three"),
        (["--map", "bud"], "--map is 'bud'; expected FROM=TO"),
        (["--map", "a=b", "--map", "a=c"], "--map has 'a' twice"),
        (["--ignore", "1,2,300"], "300"),
    ],
)
def test_a_bad_value_names_its_flag(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parsed(*words)
    assert "\n" not in str(caught.value)


FLAGS = ("--classes", "--map", "--ignore", "--names", "--images", "--annotator", "--value-range", "--bands")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), st.text("a,=1 -.é\n", max_size=6)), max_size=4))
def test_any_words_are_options_or_one_line(words: list[tuple[str, str]]) -> None:
    try:
        parsed(*(f"{flag}={value}" for flag, value in words))
    except ValueError as error:
        assert "\n" not in str(error)
