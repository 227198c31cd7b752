"""Headers sorted into their series, on disk: an archive may have many millions, and each takes half a kilobyte."""

import marshal
import sqlite3
from collections.abc import Iterable, Iterator
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
        database.execute("CREATE TABLE planes (series INTEGER, patient INTEGER, sop TEXT, header BLOB)")
        database.executemany("INSERT INTO planes VALUES (?, ?, ?, ?)", _rows(found))
        colliding = {number for (number,) in database.execute(_COLLIDING)}
        members: list[Header] = []
        last = 0
        for number, content in database.execute("SELECT series, header FROM planes ORDER BY series, rowid"):
            if number != last:
                yield members, last in colliding
                members, last = [], number
            members.append(_header(content))
        if members:
            yield members, last in colliding
    except sqlite3.OperationalError as error:
        raise MedclrError(
            f"headers cannot be kept in a temporary file ({error}); free some space where temporary files lie"
        ) from None
    finally:
        database.close()


def _rows(found: Iterable[Header]) -> Iterator[tuple[int, int, str, bytes]]:
    series: dict[tuple[str, str, str], int] = {}
    patients: dict[str, int] = {}
    for header in found:
        number = series.setdefault((header.patient, header.study, header.series), len(series))
        patient = patients.setdefault(header.patient, len(patients))
        plain: list[Any] = list(header)
        plain[_TRAITS] = list(header.traits)
        yield number, patient, header.sop, marshal.dumps(plain)


def _header(content: bytes) -> Header:
    plain = marshal.loads(content)  # what `_rows` wrote, in this process
    plain[_TRAITS] = Traits(*plain[_TRAITS])
    return Header._make(plain)
