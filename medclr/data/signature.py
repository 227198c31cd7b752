"""A compact signature of a volume, and near-duplicates by it: one image re-encoded, resized, trimmed or renamed."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

THRESHOLD = 0.96  # chosen by benchmarks/near_duplicates.py; docs/leakage.md has its table
CANDIDATES = 8  # most alike by coarse grid, for each volume, that are looked at closely

_SIDE = {2: 32, 3: 12}  # cells of the grid along each axis
_COARSE = {2: 8, 3: 6}
_FINE_BLUR, _COARSE_BLUR = 0.7, 2.0  # cells; what lies between the two is compared
_FLOOR = 0.7  # correlation of the coarse grids below which nothing is a candidate
_HOPELESS = 0.7  # correlation after one step of alignment below which nothing further will do
_MOST_STRETCH = 0.12  # shift or stretch, in half lengths of an axis, that alignment may undo
_SHORT = (0.45, 0.15, 0.1)  # what the correlation foreseen for the next step may lack to the threshold, for each step
_BLOCK = 4096  # rows and columns of the matrix of correlations held at a time
_BATCH = 256  # pairs aligned at a time

Floats = NDArray[np.float32]


def signature(array: NDArray[Any]) -> str:
    """The whole image on a small grid, one byte a cell: 32 × 32 or 12 × 12 × 12, in base64.

    It is a thumbnail, and so belongs where pixels do: in `private/`. An image of two values has none (""): it is a
    mask, and masks of one organ are too alike to tell the same from another.

    Args:
        array: (C, *spatial), 2 or 3 spatial axes, finite; channels are averaged.
    """
    values = np.asarray(array).mean(axis=0, dtype=np.float32)
    if ((values == values.min()) | (values == values.max())).all():
        return ""
    # A marker or a metal clip would take the whole range; a sample says well enough where it ends.
    low, high = np.percentile(values.ravel()[:: max(1, values.size // 2**20)], (0.5, 99.5))
    if low < high:
        values = np.clip(values, low, high)
    side = _SIDE[values.ndim]
    for axis, n in enumerate(values.shape):
        values = _along(_pooling(n, side), values[None], axis + 1)[0]
    values = values - values.min()
    cells = np.rint(values * (255 / max(float(values.max()), 1e-30))).astype(np.uint8)
    return base64.b64encode(cells.tobytes()).decode()


def near_duplicates(
    first: Sequence[str],
    second: Sequence[str] | None = None,
    threshold: float = THRESHOLD,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Pairs of volumes that are the same image up to encoding, size, contrast, sign and a little trimming.

    Each volume's most alike by coarse grid are the candidates. One of a pair is then shifted and stretched along each
    axis until it fits the other (Gauss-Newton), and what counts is the correlation of the grids between two Gaussian
    blurs, whatever its sign. Memory is that of the signatures and of one block, however many there are.

    Args:
        first: signatures; volumes of 2 and of 3 axes are never alike.
        second: others to compare them with; None compares the first with each other.
        threshold: the least similarity.
        progress: called with blocks done and blocks in all.

    Returns:
        positions in first, positions in second (in first, and the larger of the two, where second is None), and the
        similarity, 0 to 1; ordered by position.
    """
    within = second is None
    others = first if second is None else second
    found: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats]] = []
    for dims in _SIDE:
        at, their = _positions(first, dims), _positions(others, dims)
        if not len(at) or not len(their):
            continue
        mine = _grids([first[i] for i in at], dims)
        theirs = mine if within else _grids([others[i] for i in their], dims)
        i, j = _candidates(mine, theirs, within, progress)
        similarity = np.concatenate(
            [np.zeros(0, np.float32)]
            + [
                _similarity(mine, theirs, i[k : k + _BATCH], j[k : k + _BATCH], threshold)
                for k in range(0, len(i), _BATCH)
            ]
        )
        keep = similarity >= threshold
        found.append((at[i[keep]], their[j[keep]], similarity[keep]))
    i, j = (np.concatenate([np.zeros(0, np.intp), *(part[side] for part in found)]) for side in (0, 1))
    similarity = np.concatenate([np.zeros(0, np.float32), *(part[2] for part in found)])
    order = np.lexsort((j, i))
    return i[order], j[order], similarity[order]


def _positions(signatures: Sequence[str], dims: int) -> NDArray[np.intp]:
    length = 4 * -(-(_SIDE[dims] ** dims) // 3)
    return np.array([i for i, text in enumerate(signatures) if len(text) == length], dtype=np.intp)


def _grids(signatures: Sequence[str], dims: int) -> NDArray[np.uint8]:
    raw = b"".join(base64.b64decode(text) for text in signatures)
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, *(_SIDE[dims],) * dims)


def _candidates(
    first: NDArray[np.uint8], second: NDArray[np.uint8], within: bool, progress: Callable[[int, int], None] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs to look at closely: for every volume of either side, those of the other most alike by coarse grid."""
    a = _coarse(first)
    b = a if within else _coarse(second)
    best_a, best_b = _Best.none(len(a)), _Best.none(len(b))
    blocks = [(i, j) for i in range(0, len(a), _BLOCK) for j in range(0, len(b), _BLOCK)]
    for done, (top, left) in enumerate(blocks):
        scores = np.abs(a[top : top + _BLOCK] @ b[left : left + _BLOCK].T)
        if within and top == left:
            np.fill_diagonal(scores, 0)
        best_a.merge(slice(top, top + _BLOCK), left, scores)
        if not within:  # there the matrix is its own transpose
            best_b.merge(slice(left, left + _BLOCK), top, scores.T)
        if progress:
            progress(done + 1, len(blocks))
    of_a, their_b = best_a.pairs()
    of_b, their_a = best_b.pairs()
    i, j = np.concatenate([of_a, their_a]), np.concatenate([their_b, of_b])
    if within:
        i, j = np.minimum(i, j), np.maximum(i, j)
    unique = np.unique(i * np.intp(len(b)) + j)
    return unique // len(b), unique % len(b)


@dataclass(frozen=True)
class _Best:
    """For each of n volumes the scores, and the positions, of those most alike so far; position -1 is nobody."""

    scores: Floats
    where: NDArray[np.intp]

    @classmethod
    def none(cls, n: int) -> "_Best":
        return cls(np.full((n, CANDIDATES), _FLOOR, np.float32), np.full((n, CANDIDATES), -1, np.intp))

    def merge(self, rows: slice, left: int, scores: Floats) -> None:
        """Take in a block of scores: of these rows, against positions from `left` on."""
        best, where = self.scores[rows], self.where[rows]
        # To sort whole rows would cost more than the matrix product; few scores are among the best.
        flat = np.flatnonzero(scores > best.min(axis=1, keepdims=True))
        if not len(flat):
            return
        r, c = np.divmod(flat, scores.shape[1])
        counts = np.bincount(r, minlength=len(best))
        place = CANDIDATES + np.arange(len(r)) - np.repeat(np.cumsum(counts) - counts, counts)
        wide = np.zeros((len(best), CANDIDATES + counts.max()), np.float32)
        at = np.full(wide.shape, -1, np.intp)
        wide[:, :CANDIDATES], at[:, :CANDIDATES] = best, where
        wide[r, place], at[r, place] = scores[r, c], c + left
        top = np.argpartition(wide, -CANDIDATES, axis=1)[:, -CANDIDATES:]
        self.scores[rows] = np.take_along_axis(wide, top, axis=1)
        self.where[rows] = np.take_along_axis(at, top, axis=1)

    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        rows, columns = np.nonzero(self.where >= 0)
        return rows, self.where[rows, columns]


def _coarse(grids: NDArray[np.uint8]) -> Floats:
    """(n, cells): the grids pooled, each of mean 0 and norm 1."""
    dims = grids.ndim - 1
    factor = _SIDE[dims] // _COARSE[dims]
    split = [n for _ in range(dims) for n in (_COARSE[dims], factor)]
    pooled = grids.reshape(len(grids), *split).mean(axis=tuple(range(2, 2 * dims + 1, 2)), dtype=np.float32)
    return _unit(pooled)


def _similarity(
    first: NDArray[np.uint8], second: NDArray[np.uint8], i: NDArray[np.intp], j: NDArray[np.intp], threshold: float
) -> Floats:
    """Of n pairs, 0 to 1. What was trimmed off one cannot be drawn from the other, so each way is tried."""
    best = _aligned(first, second, i, j, threshold)
    rest = np.flatnonzero((best < threshold) & (best >= _HOPELESS))
    if len(rest):
        best[rest] = np.maximum(best[rest], _aligned(second, first, j[rest], i[rest], threshold))
    return best


def _aligned(
    moving: NDArray[np.uint8], fixed: NDArray[np.uint8], i: NDArray[np.intp], j: NDArray[np.intp], threshold: float
) -> Floats:
    """The correlation of each pair of (n, *grid) once the moving one is shifted and stretched along each axis."""
    dims, side = moving.ndim - 1, moving.shape[1]
    x = np.linspace(-1, 1, side, dtype=np.float32)
    target = _unit(_band(fixed[j].astype(np.float32)))[:, :, None]
    # Before anything has moved, an image is the same in all of its pairs.
    own, of = np.unique(i, return_inverse=True)
    grids = moving[own].astype(np.float32)
    basis, normal = (part[of] for part in _tangent(_unit(_band(grids)).reshape(grids.shape), x))
    place = np.zeros((len(i), dims, 2), np.float32)  # of each axis: shift, stretch
    best: Floats = np.abs(basis[:, :1] @ target)[:, 0, 0]
    at = np.arange(len(i))  # those that are still worth a step
    for short in _SHORT:
        product = basis @ target[at]
        weights = np.linalg.solve(normal, product)
        # To first order, what the best of all moves correlates with.
        foreseen = np.sqrt(np.maximum(0, (product * weights).sum(axis=(1, 2))))
        keep = foreseen >= threshold - short
        at, weights = at[keep], weights[keep, :, 0]
        if not len(at):
            break
        # The first is the contrast, which divides the rest; where there is none, nothing says where to go.
        contrast = np.where(np.abs(weights[:, :1]) < 0.2, np.inf, weights[:, :1])
        move = (weights[:, 1:] / contrast).reshape(-1, dims, 2)
        place[at] = np.clip(place[at] + move, -_MOST_STRETCH, _MOST_STRETCH)
        unit = _unit(_band(_moved(grids[of[at]], place[at], x)))
        best[at] = np.maximum(best[at], np.abs(unit[:, None] @ target[at])[:, 0, 0])
        keep = best[at] >= _HOPELESS
        at, unit = at[keep], unit[keep]
        if not len(at):
            break
        basis, normal = _tangent(unit.reshape(-1, *grids.shape[1:]), x)
    return best


def _tangent(units: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Grids (n, *grid) and what a shift and a stretch along each axis change of them, as rows of mean 0.

    Returns:
        the rows (n, 1 + 2 axes, cells), and their products with each other.
    """
    slope: Floats = np.gradient(np.eye(len(x), dtype=np.float32), 2 / (len(x) - 1), axis=0)  # type: ignore[assignment]
    parts = [units]
    for axis in range(1, units.ndim):
        shift = _along(slope, units, axis)
        parts += [shift, shift * x.reshape(-1, *(1,) * (units.ndim - 1 - axis))]
    basis = np.stack([part.reshape(len(units), -1) for part in parts], axis=1)
    basis -= basis.mean(axis=2, keepdims=True)
    normal = basis @ basis.swapaxes(1, 2)
    # A grid without slopes along some axis leaves the system singular.
    ridge = 1e-6 * np.trace(normal, axis1=1, axis2=2) + 1e-9
    return basis, normal + ridge[:, None, None] * np.eye(normal.shape[1], dtype=np.float32)


def _moved(grids: Floats, place: Floats, x: Floats) -> Floats:
    """Grids read, with linear interpolation, at x (1 + stretch) + shift along each axis; the border continues."""
    side = len(x)
    for axis in range(place.shape[1]):
        shift, stretch = place[:, axis, :1], place[:, axis, 1:]
        cell = np.clip((x * (1 + stretch) + shift + 1) / 2 * (side - 1), 0, side - 1)
        weights = np.maximum(0, 1 - np.abs(cell[:, :, None] - np.arange(side, dtype=np.float32)))
        grids = _along(weights, grids, axis + 1)
    return grids


def _band(grids: Floats) -> Floats:
    """What lies between two Gaussian blurs along every axis: below is the general shape, above is noise."""
    fine = coarse = grids
    for axis in range(1, grids.ndim):
        fine = _along(_blur(grids.shape[1], _FINE_BLUR), fine, axis)
        coarse = _along(_blur(grids.shape[1], _COARSE_BLUR), coarse, axis)
    return fine - coarse


def _unit(grids: Floats) -> Floats:
    """(n, cells) of mean 0 and norm 1; what is flat stays 0."""
    flat = grids.reshape(len(grids), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)
    return unit


def _along(matrix: Floats, grids: Floats, axis: int) -> Floats:
    """Apply a matrix, or one for each of the n grids, to one axis of (n, *grid)."""
    if axis == grids.ndim - 1:
        # As one large product; the general form would be a product of a matrix and a vector for each row.
        rows = (len(grids), -1) if matrix.ndim == 3 else (-1,)
        last: Floats = grids.reshape(*rows, grids.shape[-1]) @ matrix.swapaxes(-1, -2)
        return last.reshape(*grids.shape[:-1], -1)
    n, *sides = grids.shape
    before, after = int(np.prod(sides[: axis - 1])), int(np.prod(sides[axis:]))
    split = grids.reshape(n, before, sides[axis - 1], after)
    applied: Floats = (matrix[:, None] if matrix.ndim == 3 else matrix) @ split
    return applied.reshape(n, *sides[: axis - 1], -1, *sides[axis:])


@lru_cache
def _blur(side: int, sigma: float) -> Floats:
    blur: Floats = ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0, mode="nearest")
    return blur


@lru_cache
def _pooling(n: int, side: int) -> Floats:
    """(side, n): the mean, over each of `side` equal parts of an axis, of what n voxels interpolate linearly to."""
    samples = side * max(4, -(-2 * n // side))
    at = np.clip((np.arange(samples) + 0.5) / samples * n - 0.5, 0, n - 1)
    hat = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))
    pooling: Floats = hat.reshape(side, -1, n).mean(axis=1, dtype=np.float32)
    return pooling
