"""What the values of an image mean: standardised uptake of PET, and radiographs as they are meant to be shown."""

import re
from datetime import datetime, timedelta
from math import isfinite

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medclr.data.dicom.header import text

# Radiographs whose stored values are far from what a reader is to see, and say how to get there.
SHOWN = frozenset({"CR", "DX", "MG", "RG", "IO", "PX"})

_MOST_HALF_LIVES = 10.0  # between injection and scan; later, nothing is left to see
_DOSES_BQ = (2e6, 1e11)  # that anyone injects; some scanners write MBq, or kBq
_WEIGHTS_KG = (0.1, 500.0)


def suv_factor(ds: Dataset) -> tuple[float | None, str]:
    """What stored activity is multiplied by to give SUV by body weight, in g/ml; and a note that says so, or why not.

    SUV = activity (Bq/ml) · weight (g) / injected dose (Bq), decayed to the time that the activity was corrected to
    (PS3.3 C.8.9.1; QIBA's vendor-neutral computation). None where an element that this needs is missing or absurd.
    """
    units = text(ds, 0x00541001)
    if units == "GML":
        kind = text(ds, 0x00541006)
        return (1.0, "SUV in g/ml") if kind in ("", "BW") else (None, "no SUV by body weight, but of another kind")
    to_bq_per_ml = 1.0
    if units == "CNTS":  # Philips keeps counts, and their meaning in private elements
        private = _private(ds)
        if private is None:
            return None, "no SUV: counts"
        if private[0] > 0:
            return private[0], "SUV in g/ml"
        to_bq_per_ml = private[1]
    elif units != "BQML":
        return None, "no SUV: not in Bq/ml"
    weight_kg = _first(ds, 0x00101030)
    if weight_kg is None or not _WEIGHTS_KG[0] <= weight_kg <= _WEIGHTS_KG[1]:
        return None, "no SUV: no weight of the patient"
    items = ds[0x00540016].value if 0x00540016 in ds else []
    tracer = items[0] if items else Dataset()
    dose_bq = _first(tracer, 0x00181074)
    if dose_bq is None or not _DOSES_BQ[0] <= dose_bq <= _DOSES_BQ[1]:
        return None, "no SUV: no sound injected dose"
    correction = text(ds, 0x00541102)
    if correction == "START":
        half_life_s = _first(tracer, 0x00181075) or 0.0
        waited_s = _waited_s(ds, tracer)
        if waited_s is None or half_life_s <= 0 or not 0 <= waited_s <= _MOST_HALF_LIVES * half_life_s:
            return None, "no SUV: no sound times of injection and scan, or no half-life"
        dose_bq *= 2.0 ** (-waited_s / half_life_s)
    elif correction != "ADMIN":
        return None, "no SUV: not corrected for decay"
    return to_bq_per_ml * weight_kg * 1000.0 / dose_bq, "SUV in g/ml"


def shown(values: NDArray[np.float32], ds: Dataset) -> tuple[NDArray[np.float32], tuple[float, float]] | None:
    """A radiograph as its VOI LUT or window has it, and the least and most value that can be (PS3.3 C.11.2).

    Under a linear window the values stay what they are within it. Of several windows the first is meant. None where
    there is neither table nor window, or nothing of the image would be left.
    """
    if tables := ds.get("VOILUTSequence"):
        return _through_table(values, tables[0])
    centre, width = _first(ds, 0x00281050), _first(ds, 0x00281051)
    if centre is None or width is None:
        return None
    function = text(ds, 0x00281056) or "LINEAR"
    if function == "SIGMOID" and width > 0:
        return (1 / (1 + np.exp(-4 * (values - np.float32(centre)) / np.float32(width)))), (0.0, 1.0)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    low, high = centre - width / 2, centre + width / 2
    if width <= 0 or not (values.min() < high and values.max() > low):
        return None
    return values.clip(low, high), (low, high)


def _through_table(
    values: NDArray[np.float32], table: Dataset
) -> tuple[NDArray[np.float32], tuple[float, float]] | None:
    n, first, bits = table.LUTDescriptor
    entries = table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, "u1" if len(entries) == (n or 2**16) else "<u2")
    entries = np.asarray(entries, dtype=np.float32)[: n or 2**16]
    if first >= 2**15 and values.min() < 0:  # written as unsigned, and meant with its sign
        first -= 2**16
    result: NDArray[np.float32] = entries[np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.intp)]
    return None if result.min() == result.max() else (result, (0.0, float(2**bits - 1)))


def _waited_s(ds: Dataset, tracer: Dataset) -> float | None:
    """Seconds from injection to the time that activity was corrected to."""
    scan = _moment(text(ds, 0x00080021) + text(ds, 0x00080031))
    acquired = _moment(text(ds, 0x00080022) + text(ds, 0x00080032))
    if scan is None or (acquired is not None and acquired < scan):
        # The series was made anew, later, so its time is not that of the scan; GE keeps that in a private element.
        scan = _moment(text(ds, 0x0009100D)) if text(ds, 0x00090010) == "GEMS_PETD_01" else None
    if scan is None:
        return None
    written = text(tracer, 0x00181078)
    zone = re.search(r"[+-]\d{4}$", written)
    if zone and zone[0] != text(ds, 0x00080201):
        return None  # the scan's times are in a zone that is not said, or in another
    injected = _moment(written)
    if injected is None:
        injected = _moment(text(ds, 0x00080021) + text(tracer, 0x00181072))
        if injected is not None and injected > scan:
            injected -= timedelta(days=1)
    return None if injected is None else (scan - injected).total_seconds()


def _moment(written: str) -> datetime | None:
    """A date and time (VR DA and TM, or DT without its zone)."""
    whole, _, fraction = re.sub(r"[+-]\d{4}$", "", written).partition(".")
    try:
        moment = datetime.strptime(whole[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return moment + timedelta(seconds=float(f"0.{fraction[:6]}") if fraction[:6].isdecimal() else 0.0)


def _private(ds: Dataset) -> tuple[float, float] | None:
    """Philips' factors from counts to SUV and to Bq/ml; 0 for one that is absent."""
    suv, activity = _first(ds, 0x70531000) or 0.0, _first(ds, 0x70531009) or 0.0
    return (suv, activity) if max(suv, activity) > 0 and text(ds, 0x70530010) == "Philips PET Private Group" else None


def _first(ds: Dataset, tag: int) -> float | None:
    try:
        value = float(text(ds, tag).split("\\")[0])
    except ValueError:
        return None
    return value if isfinite(value) else None
