"""Keyed pseudonyms, pixel hashes, and the check that an encoder never saw the test patients."""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.errors import BundleError, MedclrError

DEFAULT_KEY = "~/.config/medclr/key"

_NAMES = ("patient_key", "file_patient_key")  # the second where a label table has put patients of files together


class Pseudonymiser:
    """Turns identifiers into pseudonyms that cannot be guessed back without the key (HMAC-SHA256, RFC 2104).

    Args:
        key: the secret; `load_key` keeps one of 32 random bytes for the user.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def pseudonym(self, kind: str, raw: str) -> str:
        """16 hexadecimal digits for one identifier; the same text of another kind has another pseudonym.

        Args:
            kind: "patient", "study", "series", …; without NUL.
            raw: the identifier as the scan or the label table has it.
        """
        return self._digest(f"{kind}\0{raw}")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell two keys apart and reveal neither."""
        # No NUL in this text, so no pseudonym of any kind can equal it.
        return self._digest("fingerprint of a medclr key")

    def _digest(self, text: str) -> str:
        # Undecodable bytes in headers and paths arrive as lone surrogates, which strict UTF-8 refuses.
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hexdigest()[:16]


def load_key(path: Path | None) -> Pseudonymiser:
    """Read the user's key file, making it first where there is none.

    Several processes may call this at once on a path that does not exist: all get the same key.

    Args:
        path: the key file; None is `~/.config/medclr/key`.

    Raises:
        MedclrError: the file is no key, others than its owner can read it, or it cannot be read or made.
    """
    shown = str(path or DEFAULT_KEY)
    try:
        path = path or Path(DEFAULT_KEY).expanduser()
    except RuntimeError:
        raise MedclrError(f"key file {shown}: this user has no home folder; name a key with --key-file") from None
    try:
        if not path.exists():
            _make_key(path)
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(1024)
    except OSError as error:
        raise MedclrError(
            f"key file {shown}: {error.strerror}; name one that you can read and write with --key-file"
        ) from None
    if mode & 0o077:
        raise MedclrError(f"key file {shown}: mode {mode:04o} lets others in; run chmod 600 {shown}")
    match = re.fullmatch(rb"\s*([0-9a-fA-F]{64})\s*", content)
    if match is None:
        raise MedclrError(
            f"key file {shown}: not 64 hexadecimal digits, so no key of medclr's; "
            "name another with --key-file (one that does not exist is made)"
        )
    return Pseudonymiser(bytes.fromhex(match[1].decode()))


def pixel_hash(array: NDArray[Any]) -> str:
    """32 hexadecimal digits (BLAKE2b) that two arrays share when they have the same shape and float32 values.

    Args:
        array: any shape and any real dtype; integers and floats of equal value hash alike.
    """
    # Adding zero turns -0.0, which equals 0.0 and has other bytes, into 0.0.
    values = np.ascontiguousarray(array, dtype="<f4") + np.float32(0)
    digest = hashlib.blake2b(repr(tuple(int(n) for n in array.shape)).encode(), digest_size=16)
    digest.update(values.astype("<f4", copy=False).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Seen:
    """What an encoder saw in pre-training; travels in its bundle.

    Attributes:
        fingerprint: of the key that made the pseudonyms.
        patients: pseudonyms of the patients.
        pixels: pixel hashes of the volumes.
        n_unknown: volumes of which neither file nor table names the patient.
        unrecorded: weights whose training left no such record, in words; empty where there are none.
    """

    fingerprint: str
    patients: frozenset[str]
    pixels: frozenset[str]
    n_unknown: int
    unrecorded: str = ""

    @classmethod
    def of(cls, fingerprint: str, rows: pd.DataFrame) -> "Seen":
        """What was seen where these rows of a manifest, under the key of that fingerprint, were trained on."""
        unknown = int((~rows["patient_known"]).sum())
        names = frozenset().union(*(rows[name].dropna() for name in _NAMES if name in rows))
        return cls(fingerprint, names, frozenset(rows["pixel_hash"]), unknown)

    def knows(self, rows: pd.DataFrame) -> "pd.Series[bool]":
        """Whether the patient of each row of a manifest, under the same key, was seen by any name."""
        by_name = [rows[name].isin(self.patients) for name in _NAMES if name in rows]
        return pd.concat(by_name, axis=1).any(axis=1)

    def holds(self, fingerprint: str, rows: pd.DataFrame) -> NDArray[np.object_]:
        """Of each row of a manifest, under the key of that fingerprint: "yes", "no" or "not checkable".

        A row is seen where its patient is, or where its exact pixels are; the latter compare under any key.
        """
        same_key = fingerprint == self.fingerprint
        seen = rows["pixel_hash"].isin(self.pixels) | (same_key & self.knows(rows))
        checkable = rows["patient_known"].to_numpy(bool) & (same_key and not (self.n_unknown or self.unrecorded))
        return np.where(seen, "yes", np.where(checkable, "no", "not checkable")).astype(object)

    def union(self, other: "Seen") -> "Seen":
        """What two trainings saw; patients of `other` under another key are unknown, unless their images are here."""
        same_key, more = self.fingerprint == other.fingerprint, len(other.pixels - self.pixels)
        return Seen(
            self.fingerprint,
            self.patients | (other.patients if same_key else frozenset()),
            self.pixels | other.pixels,
            self.n_unknown + (min(more, other.n_unknown) if same_key else more),
            " and ".join(dict.fromkeys(filter(None, (self.unrecorded, other.unrecorded)))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, sorted, so that equal sets give equal files."""
        return {
            "fingerprint": self.fingerprint,
            "patients": sorted(self.patients),
            "pixels": sorted(self.pixels),
            "n_unknown": self.n_unknown,
            **({"unrecorded": self.unrecorded} if self.unrecorded else {}),  # earlier bundles have no such key
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Seen":
        """Inverse of `to_dict`.

        Raises:
            BundleError: a field is missing, unknown or of the wrong type.
        """
        expected = {"fingerprint", "patients", "pixels", "n_unknown"}
        if not isinstance(data, dict) or set(data) - {"unrecorded"} != expected:
            raise BundleError(f"the record of what the encoder saw must hold exactly {', '.join(sorted(expected))}")
        if not isinstance(data["fingerprint"], str):
            raise BundleError("the record of what the encoder saw: fingerprint is not text")
        if not isinstance(data.get("unrecorded", ""), str):
            raise BundleError("the record of what the encoder saw: unrecorded is not text")
        if not isinstance(data["n_unknown"], int):
            raise BundleError("the record of what the encoder saw: n_unknown is not a whole number")
        for name in ("patients", "pixels"):
            if not isinstance(data[name], list) or not all(isinstance(item, str) for item in data[name]):
                raise BundleError(f"the record of what the encoder saw: {name} is not a list of text")
        patients, pixels = frozenset(data["patients"]), frozenset(data["pixels"])
        return cls(data["fingerprint"], patients, pixels, data["n_unknown"], data.get("unrecorded", ""))


@dataclass(frozen=True)
class Verdict:
    """Whether pre-training saw what a classifier is tested on.

    Attributes:
        status: "clean" only when patients and images were both checked and none was seen.
        n_patients: test patients that pre-training saw; 0 where they cannot be compared.
        n_images: test images whose exact pixels pre-training saw.
        why_not: what keeps patients, or where nothing is recorded also images, from being checked; empty where nothing
            does.
    """

    status: Literal["clean", "leak", "not checkable", "patients not checkable"]
    n_patients: int
    n_images: int
    why_not: str = ""

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, for reports and messages."""
        if self.status == "clean":
            return "Pre-training saw none of the test patients and none of the test images."
        if self.status == "not checkable":
            return f"Whether test patients or test images were seen is not checkable for {self.why_not}."
        if self.status == "patients not checkable":
            return (
                f"Patients not checkable: {self.why_not}. "
                "No test image has the exact pixels of one seen in pre-training."
            )
        found = [(self.n_patients, "patient"), (self.n_images, "image")]
        counts = [f"{n:,} test {noun}{'s' if n > 1 else ''}" for n, noun in found if n]
        return f"Pre-training saw {' and '.join(counts)}."


def check_leakage(seen: Seen, fingerprint: str, rows: pd.DataFrame) -> Verdict:
    """Compare what an encoder saw with the test set.

    Args:
        seen: the record in the encoder's bundle.
        fingerprint: of the key that made the pseudonyms in `rows`.
        rows: of the test images in a manifest; pixel hashes compare under any key.

    Returns:
        "leak" when an image, or under the same key a patient, was seen; "not checkable" where a training left no
        record; never "clean" under another key, nor where a patient is unknown.
    """
    same_key = fingerprint == seen.fingerprint
    n_patients = rows["patient_key"][seen.knows(rows)].nunique() if same_key else 0
    n_images, n_unknown = int(rows["pixel_hash"].isin(seen.pixels).sum()), int((~rows["patient_known"]).sum())
    if n_patients or n_images:
        return Verdict("leak", n_patients, n_images)
    if seen.unrecorded:
        return Verdict("not checkable", 0, 0, f"{seen.unrecorded}: no record of patients and images came with them")
    if not same_key:
        return Verdict("patients not checkable", 0, 0, "the encoder was made under another key")
    if n_unknown or seen.n_unknown:
        where = [
            f"{n:,} {which} image{'s' if n > 1 else ''}"
            for n, which in ((n_unknown, "test"), (seen.n_unknown, "pre-training"))
            if n
        ]
        return Verdict("patients not checkable", 0, 0, f"nothing names the patient of {' and '.join(where)}")
    return Verdict("clean", 0, 0)


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link appears whole or not at all, and unlike a rename it never replaces the key of a faster process.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
