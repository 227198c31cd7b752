"""Headers sorted into their series, on disk: an archive may have many millions, and each takes half a kilobyte."""

import marshal
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from medclr.data.dicom.header import Header, Traits
from medclr.errors import MedclrError

_TRAITS = Header._fields.index("traits")
_PRAGMAS = ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE")
_COLLIDING = """
    SELECT DISTINCT series FROM planes WHERE sop IN
    (SELECT sop FROM planes WHERE sop != '' GROUP BY sop HAVING COUNT(DISTINCT patient) > 1)
"""


def by_series(found: Iterable[Header]) -> Iterator[tuple[list[Header], bool]]:
    """The planes of each patient's series, in the order in which the first of each was found.

    Where PatientID is blank, names and birth dates tell people apart, if they differ within a study; what is blank on
    some of its images makes nobody another. The `person` of the planes is then a number within the study, else "".

    Only one series is in memory at a time. The others lie in a database without a name, which SQLite keeps in memory
    while it is small, and then in a file that it has already unlinked: nobody else can open it, and it is gone when
    this process is.

    Yields:
        The planes, in the order in which they were found; and whether the series holds an instance UID which images
        of another patient have, too.

    Raises:
        MedclrError: the disk for temporary files is full.
    """
    database = sqlite3.connect("")
    try:
        for pragma in _PRAGMAS:
            database.execute(f"PRAGMA {pragma}")
        database.execute("CREATE TABLE planes (series INTEGER, patient INTEGER, person INTEGER, sop TEXT, header BLOB)")
        people: dict[str, dict[str, int]] = defaultdict(dict)
        database.executemany("INSERT INTO planes VALUES (?, ?, ?, ?, ?)", _rows(found, people))
        mixed = {study: _numbered(known) for study, known in people.items() if _differ(known)}
        database.execute("CREATE TABLE people (person INTEGER PRIMARY KEY, patient INTEGER)")
        database.executemany("INSERT INTO people VALUES (?, ?)", _patients(people, mixed))
        database.execute(
            "UPDATE planes SET patient = (SELECT patient FROM people WHERE people.person = planes.person) "
            "WHERE person IN (SELECT person FROM people)"
        )
        colliding = {number for (number,) in database.execute(_COLLIDING)}
        members: list[Header] = []
        last = 0
        for number, content in database.execute("SELECT series, header FROM planes ORDER BY series, rowid"):
            if number != last:
                yield from ((part, last in colliding) for part in _by_person(members, mixed))
                members, last = [], number
            members.append(_header(content))
        if members:
            yield from ((part, last in colliding) for part in _by_person(members, mixed))
    except sqlite3.OperationalError as error:
        raise MedclrError(
            f"headers cannot be kept in a temporary file ({error}); free some space where temporary files lie"
        ) from None
    finally:
        database.close()


def _rows(found: Iterable[Header], people: dict[str, dict[str, int]]) -> Iterator[tuple[int, int, int, str, bytes]]:
    """One a plane, while the people of each study without PatientID are noted."""
    series: dict[tuple[str, str, str], int] = {}
    patients: dict[str, int] = {}
    counter = count(1)
    for header in found:
        person = 0
        if not header.patient:
            known = people[header.study]
            if header.person not in known:
                known[header.person] = -next(counter)  # patients have the numbers from 0 on
            person = known[header.person]
        number = series.setdefault((header.patient, header.study, header.series), len(series))
        patient = patients.setdefault(header.patient, len(patients))
        plain: list[Any] = list(header)
        plain[_TRAITS] = list(header.traits)
        yield number, patient, person, header.sop, marshal.dumps(plain)


def _differ(people: Iterable[str]) -> bool:
    """Whether these, each a digest of a name and one of a birth date, are several, and not one that is partly blank."""
    return any(len(set(digests) - {""}) > 1 for digests in zip(*(one.split(" ") for one in people), strict=True))


def _numbered(people: Iterable[str]) -> dict[str, int]:
    """The number of each, from 1 on; who lacks a name or a birth date is the only other who has that and the rest."""
    whole: dict[str, list[str]] = defaultdict(list)
    for one in people:
        name, birth = one.split(" ")
        if name and birth:
            whole[f"{name} "].append(one)
            whole[f" {birth}"].append(one)
    same = {one: whole[one][0] if len(whole.get(one, ())) == 1 else one for one in people}
    number = {one: k for k, one in enumerate(sorted(set(same.values())), 1)}
    return {one: number[other] for one, other in same.items()}


def _patients(people: dict[str, dict[str, int]], mixed: dict[str, dict[str, int]]) -> Iterator[tuple[int, int]]:
    """Of each person of a mixed study, the first of those that have the same number."""
    for study, numbered in mixed.items():
        first: dict[int, int] = {}
        for one, person in people[study].items():
            yield person, first.setdefault(numbered[one], person)


def _by_person(members: list[Header], mixed: dict[str, dict[str, int]]) -> list[list[Header]]:
    first = members[0]
    if first.patient:
        return [members]
    known = mixed.get(first.study, {})
    parts: dict[str, list[Header]] = defaultdict(list)
    for header in members:
        person = f"/{known[header.person]}" if known else ""
        parts[person].append(header._replace(person=person))
    return list(parts.values())


def _header(content: bytes) -> Header:
    plain = marshal.loads(content)  # what `_rows` wrote, in this process
    plain[_TRAITS] = Traits(*plain[_TRAITS])
    return Header._make(plain)
