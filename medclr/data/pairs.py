"""Where the second view of a pair comes from: the same volume, or another that shows the same."""

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.data.spec import DataSpec
from medclr.errors import UsageError

Pairs = Literal["instance", "overlap", "study", "patient", "adjacent"]

LONGER = 4.0  # a volume of so many patches is much longer than one
CLEAR = 0.5  # share of the volumes that a pair must be there for before it is chosen unasked


def check_pairs(pairs: str, spec: DataSpec | None) -> None:
    """Raise UsageError where pairs do not go with a spec; None is one that will be chosen, for whole volumes."""
    slices = spec is not None and bool(spec.slices)
    if pairs == "adjacent" and not slices:
        raise UsageError(
            "--pairs adjacent: is for neighbouring slices, and whole volumes have none; give a --spec with "
            "spatial_dims: 2 and slices: axial, or use --pairs overlap"
        )
    if pairs in ("study", "patient") and slices:
        raise UsageError(
            f"--pairs {pairs}: slices of two volumes need not show the same place; use --pairs adjacent or instance"
        )


def suggest_pairs(rows: pd.DataFrame, spec: DataSpec) -> tuple[Pairs, str]:
    """Which pairs the data clearly offer, and why; "instance" in all other cases.

    Args:
        rows: prepared volumes, or slices of them.
        spec: that they were prepared with.
    """
    if spec.slices:
        return "adjacent", "the spec cuts volumes into slices"
    if spec.preset == "xray" and (share := Partners(rows, "study").share) >= CLEAR:
        return "study", f"{share:.0%} of the radiographs have another one like it in their study"
    if (share := float(np.mean(_patches(rows, spec) >= LONGER))) >= CLEAR:
        return "overlap", f"{share:.0%} of the volumes hold {LONGER:g} patches or more"
    return "instance", "no other pairs are clear from the manifest"


def share_of_pairs(pairs: Pairs, rows: pd.DataFrame, spec: DataSpec) -> float:
    """For what share of the rows the two views of a pair differ as `pairs` says; the others are paired as "instance".

    Raises:
        UsageError: for none.
    """
    if pairs == "instance":
        return 1.0
    if pairs == "overlap":
        share, lack = float(np.mean(_patches(rows, spec) > 1)), f"is longer than the patch {spec.patch}"
    elif pairs == "adjacent":
        share, lack = Partners(rows, pairs).share, "has a neighbour that was kept"
    else:
        share, lack = Partners(rows, pairs).share, f"has another of its {pairs}, modality and orientation"
    if not share:
        what = "slices" if spec.slices else "volumes"
        raise UsageError(f"--pairs {pairs}: not one of {len(rows):,} {what} {lack}; use --pairs instance")
    return share


class Partners:
    """The rows that may give the second view of each row.

    "study" and "patient" (MICLe, Azizi et al. 2021; MedAug, Vu et al. 2021): the other volumes of the same study or
    patient, of the same modality and orientation; of a patient only where the files or a table name it. "adjacent":
    the kept slices before and after, of the same volume. "instance" and "overlap": none, both views are of one row.

    Args:
        rows: manifest rows, or slices of them.
        pairs: which.
    """

    def __init__(self, rows: pd.DataFrame, pairs: Pairs) -> None:
        n = len(rows)
        group = pd.Series(np.arange(n))
        if pairs in ("study", "patient"):
            # A study that names two patients is two.
            columns = ["patient_key", *(["study_key"] if pairs == "study" else []), "modality", "orientation"]
            group = rows.groupby(columns, sort=False).ngroup()
            if pairs == "patient":
                known = rows["patient_known"].to_numpy(bool)
                group = group.where(known, n + np.arange(n))
        elif pairs == "adjacent":
            group = pd.Series(pd.factorize(rows["volume_id"])[0])
        codes = pd.factorize(group)[0]
        self.adjacent = pairs == "adjacent"
        # Rows of a group stand together; slices in their order, since they come in it.
        self.order = np.argsort(codes, kind="stable")
        self.place = np.empty(n, int)
        self.place[self.order] = np.arange(n)
        size = np.bincount(codes, minlength=1)
        self.begin, self.end = (np.cumsum(size) - size)[codes], np.cumsum(size)[codes]

    @property
    def share(self) -> float:
        """Share of the rows that have a partner."""
        return float(np.mean(self.end - self.begin > 1))

    def draw(self, row: int, rng: np.random.Generator) -> int:
        """A partner of a row, each with the same chance; the row itself where there is none."""
        place, begin, end = int(self.place[row]), int(self.begin[row]), int(self.end[row])
        if self.adjacent:
            begin, end = max(begin, place - 1), min(end, place + 2)
        if end - begin < 2:
            return row
        # One of all but itself.
        drawn = begin + int(rng.integers(end - begin - 1))
        return int(self.order[drawn + (drawn >= place)])


def overlapping_start(
    first: tuple[int, ...], room: tuple[int, ...], patch: tuple[int, ...], overlap: float, rng: np.random.Generator
) -> tuple[int, ...]:
    """Where a second block starts that shares at least a part of its voxels with a first one.

    One axis after the other, in random order, moves as far as the axes before it have left of the part that need not
    be shared. Crops that must overlap are the positive pairs of PGL (Xie et al. 2020) and of SimCLR in nnSSL (Wald et
    al. 2025), whose share is 0.5.

    Args:
        first: first voxel of the first block.
        room: by how many voxels the volume is longer than the patch, per axis; 0 or less is none.
        patch: size of both.
        overlap: smallest share of the patch that is in both, 0 to 1.
        rng: numbers to draw from.
    """
    start, need = list(first), overlap
    for axis in rng.permutation(len(patch)).tolist():
        # A billionth, so that rounding takes no voxel.
        reach = int(patch[axis] * (1 - need) + 1e-9)
        if room[axis] > 0:
            low, high = max(0, first[axis] - reach), min(room[axis], first[axis] + reach)
            start[axis] = int(rng.integers(low, high + 1))
            need /= max(1 - abs(start[axis] - first[axis]) / patch[axis], 1e-9)
    return tuple(start)


def _patches(rows: pd.DataFrame, spec: DataSpec) -> NDArray[np.float64]:
    """How many patches it takes to fill each volume, or slice, at least."""
    shapes = np.array([shape[-spec.spatial_dims :] for shape in rows["store_shape"]])
    return np.asarray(np.prod(np.maximum(shapes / np.array(spec.patch), 1), axis=1))
