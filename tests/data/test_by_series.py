import pytest
from hypothesis import given
from hypothesis import strategies as st

from medclr.data.dicom import by_series as module
from medclr.data.dicom.by_series import by_series
from medclr.data.dicom.header import Header, Traits
from medclr.errors import MedclrError

TRAITS = Traits("ORIGINAL\\PRIMARY", "1", "2 3", (1000.0, 0.1, -0.5), "4 5", "6")


def plane(number, patient="P", study="S", series="T", sop="", frame=None):
    return Header(
        f"{number}.dcm", frame, sop, number, patient, study, series, "Klinik Ä", "MR", "ACME", "M", "", 1.5, 4, 5,
        (0.1, 0.2), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 0.0, number / 3), ("L", "P"), "1.2", TRAITS,
        ("DECODE", "odd") if number % 2 else None, ("a note",),
    )  # fmt: skip


names = st.sampled_from(["", "a", "ö"])


@given(st.lists(st.tuples(names, names, names, st.sampled_from(["", "1.1", "1.2", "1.3"]))))
def test_series_are_those_of_a_plain_dictionary(rows):
    found = [plane(k, *row, frame=k % 3 or None) for k, row in enumerate(rows)]
    series = {}
    for header in found:
        series.setdefault((header.patient, header.study, header.series), []).append(header)
    patients = {sop: {h.patient for h in found if h.sop == sop} for sop in {h.sop for h in found} - {""}}
    expected = [
        (members, any(len(patients.get(header.sop, ())) > 1 for header in members)) for members in series.values()
    ]
    assert list(by_series(iter(found))) == expected


def test_headers_come_back_as_they_were():
    ((members, collides),) = by_series([plane(1, sop="1.1"), plane(2, sop="1.1")])
    assert not collides
    assert members == [plane(1, sop="1.1"), plane(2, sop="1.1")]
    assert {type(header) for header in members} == {Header}
    assert {type(header.traits) for header in members} == {Traits}


def test_what_is_blank_on_some_images_makes_nobody_another_where_there_are_others():
    people = ["a x", "a ", " x", "b y", "b z", "b "]  # the last may be either of two
    found = [plane(k, patient="", sop=str(k % 3))._replace(person=people[k % 6]) for k in range(12)]
    parts = {tuple(h.path for h in part): collides for part, collides in by_series(found)}
    assert sorted(len(part) for part in parts) == [2, 2, 2, 6]
    assert ("0.dcm", "1.dcm", "2.dcm", "6.dcm", "7.dcm", "8.dcm") in parts
    assert all(parts.values())
    own = [header._replace(sop=header.sop if k % 6 < 3 else header.path) for k, header in enumerate(found)]
    assert not any(collides for _, collides in by_series(own))


def test_a_full_disk_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "_PRAGMAS", (*module._PRAGMAS, "max_page_count = 8"))
    with pytest.raises(MedclrError, match=r"database or disk is full.*free some space where temporary files lie"):
        list(by_series(plane(k) for k in range(2000)))


def test_what_reading_raises_passes_through():
    def found():
        yield plane(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(by_series(found()))
