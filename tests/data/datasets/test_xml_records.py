"""XML in parts: byte ranges, entities, nesting, encodings."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atrous.data.datasets.xml_records import parse_xml, xml_records

TEXT = "<?xml version='1.0' encoding='{}'?><!-- note --><r>\n<a x='é > 1'><b>é</b></a><a/>\n <c>&lt;<!-- z --></c></r>"


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", b""), ("utf-8", b"\xef\xbb\xbf"), ("iso-8859-1", b"")])
def test_the_bytes_of_each_element_are_it_again(tmp_path: Path, encoding: str, mark: bytes) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(mark + TEXT.format(encoding).encode(encoding))
    records = list(xml_records(path))
    assert [record.element.tag for record, _ in records] == ["a", "a", "c"]
    for record, declared in records:
        again = parse_xml(path.read_bytes()[record.start : record.end], declared)
        assert (again.tag, again.attrib, again.text) == (record.element.tag, record.element.attrib, record.element.text)
    assert records[0][0].element.findtext("b") == "é" and records[2][0].element.text == "<"


def test_elements_are_the_same_across_the_edges_of_what_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<r>" + "".join(f"<a n='{n}'>{'x' * (n % 100)}</a>" for n in range(3000)) + "</r>")
    data = path.read_bytes()
    for number, (record, _) in enumerate(xml_records(path)):
        assert parse_xml(data[record.start : record.end]).get("n") == str(number)


BOMB = b'<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><r><a>&b;</a></r>'
OUTSIDE = b'<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]><r><a>&a;</a></r>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BOMB, "a document type, whose entities can expand without bound; expected XML without <!DOCTYPE>"),
        (OUTSIDE, "a document type"),
        (b"<r>" + b"<a>" * 100 + b"</a>" * 100 + b"</r>", "more than 32 levels of elements"),
        (b"<r><a>&b;</a></r>", "not XML: undefined entity"),
        (b"<r><a></r>", "not XML: mismatched tag"),
        (b"<?xml version='1.0' encoding='klingon'?><r/>", "not XML: unknown encoding"),
        ("<r/>".encode("utf-16"), "UTF-16; expected UTF-8"),
    ],
)
def test_what_is_not_accepted(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.xml").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(xml_records(tmp_path / "a.xml"))
    with pytest.raises(ValueError, match=message):
        parse_xml(data)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.one_of(st.binary(max_size=60), st.text("<>/ar='&; \n!-[]", max_size=60).map(str.encode)))
def test_any_bytes_are_read_or_a_value_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(data)
    for read in (lambda: list(xml_records(tmp_path / "a.xml")), lambda: parse_xml(data)):
        try:
            read()
        except ValueError:
            pass
