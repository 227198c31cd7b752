"""From planes to candidates: one volume is planes of one patient, study and series on one line of equal steps."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from math import prod
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medclr.data.candidate import Candidate, Skipped, settled
from medclr.data.dicom.by_series import by_series
from medclr.data.dicom.header import MAX_VOXELS, PLANES, Header, Traits
from medclr.data.volume import canonical_grid
from medclr.errors import Unreadable

MIN_SLICES = 3
MAX_TILT_DEG = 0.5
_STEEPEST_DEG = 45.0  # of a gantry; those that are built reach 30
_MOST_UNEVEN = 4.0  # times the least gap; what is further apart is two volumes, or half of one
_MOST_CLUSTERS = 1000  # of geometry in one series
_WEIGHTING = attrgetter("traits.echo", "traits.diffusion")  # what no volume has two of
_KIND = attrgetter("traits.image_type", "traits.phase")  # what may change along a volume, but not to and fro
_ABSURD = "positions, directions or spacing that make no geometry"
_COLLISION = "another patient has images of the same instance UID; whose they are cannot be told"

Tilt = Literal["correct", "skip"]
Uneven = Literal["skip", "resample"]
SamePixels = Callable[[list[Header], list[Header]], bool]


def group(
    found: Iterable[Header],
    tilt: Tilt = "correct",
    uneven: Uneven = "skip",
    same_pixels: SamePixels = lambda one, other: False,
) -> tuple[list[Candidate], list[Skipped]]:
    """Make volumes of planes: by patient, study and series, in the order of their positions.

    A series is split where its planes differ in size, spacing or orientation, and, where they would not make one
    volume, by what else tells them apart: image type, echo, diffusion, phase, acquisition. What then still has a hole
    or two images at one place becomes no volume: one with a hole, or of two acquisitions mixed, is worse. Each
    radiograph is a volume of its own.

    Args:
        found: planes of whole files.
        tilt: whether volumes of a tilted gantry are to be sheared right or skipped.
        uneven: whether volumes whose slices lie at uneven steps are to be skipped or interpolated.
        same_pixels: tells whether planes at the same places are copies; by default none are.

    Returns:
        Candidates, and what is in none of them: files, or stacks of frames, by their first, of files that are.
    """
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    for members, collides in by_series(found):
        if collides:
            skipped += settled((Skipped(header.path, "UID_COLLISION", _COLLISION) for header in members), set())
            continue
        volumes, refused = _of_series(members, tilt, uneven, same_pixels)
        candidates += volumes
        skipped += settled(refused, {path for candidate in volumes for path in candidate.paths})
    return candidates, skipped


class Placement(NamedTuple):
    """How the planes of a volume lie.

    Attributes:
        affine: from (column, row, slice) of the volume to RAS.
        shape: columns, rows, slices of the volume; more than those of the planes where the gantry was tilted.
        shift: (n_planes, 2) columns and rows by which each plane is moved within them; None where none is.
        levels: (n_slices,) which plane, or which point between two, each slice is; None where each is a plane.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    shift: NDArray[np.float64] | None
    levels: NDArray[np.float64] | None


def placement(ordered: list[Header]) -> Placement:
    """Where planes in the order of their positions lie (PS3.3 C.7.6.2.1.1).

    Tilted ones as they are to be after shearing, uneven ones after interpolation to their median step.
    """
    first = ordered[0]
    n, levels = len(ordered), None
    along = np.array([header.position for header in ordered]) @ _normal(first)
    if not _is_even(along):
        n = 1 + round((along[-1] - along[0]) / float(np.median(np.diff(along))))
        levels = np.interp(np.linspace(along[0], along[-1], n), along, np.arange(len(along)))
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    between_rows, between_columns = first.spacing
    corners = np.array([header.position for header in ordered])
    step = (corners[-1] - corners[0]) / (n - 1)
    origin = corners[0]
    columns, rows = first.columns, first.rows
    shift = None
    if _tilt_deg(step, np.cross(along_row, along_column)) > MAX_TILT_DEG:
        # Slice k lies k times this many pixels off the place where an upright stack would have it.
        drift = np.array([step @ along_row / between_columns, step @ along_column / between_rows])
        drift[abs(drift) * (n - 1) < 0.05] = 0
        shift = np.outer(np.arange(n), drift)
        margin = -shift.min(axis=0)
        shift += margin
        columns, rows = (
            int(np.ceil(size + most - 1e-6)) for size, most in zip((columns, rows), shift.max(axis=0), strict=True)
        )
        origin = origin - margin[0] * between_columns * along_row - margin[1] * between_rows * along_column
        step = step - drift[0] * between_columns * along_row - drift[1] * between_rows * along_column
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * between_columns, along_column * between_rows, step, origin], axis=1)
    lps_to_ras: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Placement(lps_to_ras @ affine, (columns, rows, n), shift, levels)


def plane_directions(directions: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Where the columns' and the rows' numbers grow towards, of L R A P S I, from PatientOrientation (C.7.6.1.1.1)."""
    letters = "".join({"H": "S", "F": "I"}.get(part[:1].upper(), part[:1].upper()) for part in directions)
    axes = [next((axis for axis in ("LR", "AP", "SI") if letter in axis), "") for letter in letters]
    if len(axes) == 2 and all(axes) and axes[0] != axes[1]:
        return letters, ()
    return "LI", ("patient orientation absent or odd: columns taken as running to the left, rows to the feet",)


# -- one series ----------------------------------------------------------------------------------------------------


def _of_series(
    members: list[Header], tilt: Tilt, uneven: Uneven, same_pixels: SamePixels
) -> tuple[list[Candidate], list[Skipped]]:
    """Its volumes, and why each plane that lies in none of them does not."""
    candidates: list[Candidate] = []
    refused: list[Skipped] = []
    slices: list[Header] = []
    pictures: list[Header] = []
    for header in _without_copied_files(members, same_pixels, refused):
        if header.modality not in PLANES:
            slices.append(header)
        elif header.fault:
            refused.append(Skipped(header.path, *header.fault))
        else:
            pictures.append(header)
    candidates += map(_plane_candidate, _without_copies(pictures, same_pixels, refused))
    for stack in _stacks(slices, same_pixels, refused):
        try:
            candidates.append(_candidate_of(stack, tilt, uneven))
        except (Unreadable, ArithmeticError, ValueError, TypeError) as error:
            # Numbers that are sound one by one may still make no geometry together.
            why = (getattr(error, "reason", "NO_GEOMETRY"), str(error) if isinstance(error, Unreadable) else _ABSURD)
            part = min(header.frame or 0 for header in stack)
            refused += [
                Skipped(path, *(fault or why), part) for path, fault in {h.path: h.fault for h in stack}.items()
            ]
    return candidates, refused


def _stacks(slices: list[Header], same_pixels: SamePixels, refused: list[Skipped]) -> Iterator[list[Header]]:
    """Planes that may be one volume. Copies are left out, with their reason."""
    without = [header for header in slices if not _is_placed(header)]
    if any(header.fault for header in without):
        yield slices  # nobody knows where the damaged one belongs, so every volume may lack it
        return
    # A plane that does not say where it lies may be missing from any of its size.
    unplaced = {(header.rows, header.columns) for header in without}
    parts: dict[Any, list[Header]] = defaultdict(list)
    # What is blank on some slices makes them no volume of their own.
    space, kernel = (_only(map(attrgetter(name), slices)) for name in ("space", "kernel"))
    for header in slices:
        size = (header.rows, header.columns)
        alone = header.path if header.frame is not None else ""
        kind = (
            header.modality,
            header.space or space,
            header.kernel or kernel,
            "LOCALIZER" in header.traits.image_type.split("\\"),
        )
        parts[(size, alone, *kind) if size not in unplaced else size].append(header)
    for key, part in parts.items():
        if key in unplaced:
            yield part
            continue
        for alike in _clusters(part):
            unique = _without_copies(alike, same_pixels, refused)
            yield from _told_apart(unique)


def _only(texts: Iterable[str]) -> str:
    """The one text that is there, blanks apart; "" where there are several, or none."""
    found = set(texts) - {""}
    return found.pop() if len(found) == 1 else ""


def _is_placed(header: Header) -> bool:
    return bool(header.spacing and header.orientation and len(header.position) == 3)


def _clusters(planes: list[Header]) -> list[list[Header]]:
    """Split by orientation and pixel spacing, with room for rounding."""
    geometry = np.array([(*header.orientation, *header.spacing) for header in planes])
    tolerance = np.array([1e-3] * 6 + [1e-3 * min(geometry[:, 6:].min(axis=0))] * 2)
    left = np.arange(len(planes))
    clusters: list[list[Header]] = []
    while len(left):
        near = (abs(geometry[left] - geometry[left[0]]) <= tolerance).all(axis=1)
        near |= len(clusters) >= _MOST_CLUSTERS  # the rest together makes no volume
        clusters.append([planes[i] for i in left[near]])
        left = left[~near]
    return clusters


def _without_copied_files(members: list[Header], same_pixels: SamePixels, refused: list[Skipped]) -> list[Header]:
    """Drop files of several frames that are another such file over again, under another name."""
    files: dict[str, list[Header]] = defaultdict(list)
    for header in members:
        if header.frame is not None and header.sop:
            files[header.path].append(header)
    kept: dict[Any, list[list[Header]]] = defaultdict(list)
    copies: set[str] = set()
    for path, frames in files.items():
        alike = kept[frames[0].sop, tuple(header.position for header in frames)]
        if any(same_pixels(other, frames) for other in alike):
            refused.append(Skipped(path, "DUPLICATE", "a copy of another image of this series"))
            copies.add(path)
        else:
            alike.append(frames)
    return [header for header in members if header.path not in copies]


def _without_copies(planes: list[Header], same_pixels: SamePixels, refused: list[Skipped]) -> list[Header]:
    """Drop planes that have the very pixels of another at their place, and the same instance UID or number."""
    kept: list[Header] = []
    by_name: dict[Any, Header] = {}
    for header in planes:
        # An instance number may start again with each echo, so there the rest must be equal, too.
        numbered = (header.instance, header.traits, header.frame or 0) if header.instance >= 0 else None
        names = [name for name in ((header.sop, header.frame or 0) if header.sop else None, numbered) if name]
        other = next((by_name[name] for name in names if name in by_name), None)
        if other and other.position == header.position and not header.fault and same_pixels([other], [header]):
            refused.append(
                Skipped(header.path, "DUPLICATE", "a copy of another image of this series", header.frame or 0)
            )
            continue
        by_name |= {name: header for name in names if name not in by_name}
        kept.append(header)
    return kept


def _told_apart(planes: list[Header]) -> Iterator[list[Header]]:
    """Planes of one geometry as they are where they make a volume, else split by the first trait that helps."""
    most, uniform = _crowding(planes)
    if uniform or len(planes) < MIN_SLICES:
        # Of several echoes or diffusion weights, or types or times between each other's slices, each is a volume.
        weighted, kinds = _split(planes, _WEIGHTING), _split(planes, _KIND)
        if len(weighted) > 1 and all(_crowding(part)[1] for part in weighted):
            yield from weighted
        elif len(kinds) > 1 and all(_crowding(part)[1] for part in kinds) and _interleaved(kinds):
            yield from kinds
        else:
            yield planes
        return
    for trait in Traits._fields:
        split = _split(planes, attrgetter(f"traits.{trait}"))
        crowding = [_crowding(part) for part in split]
        # A trait with more values than any place has images changes from slice to slice, and tells no volumes apart.
        helps = len(split) <= most and max(images for images, _ in crowding) < most
        apart = all(uniform for _, uniform in crowding) and not _interleaved(split)
        if len(split) > 1 and (helps or apart):
            for part in split:
                yield from _told_apart(part)
            return
    yield from _by_instance(planes) or [planes]


def _split(planes: list[Header], key: Callable[[Header], Any]) -> list[list[Header]]:
    parts: dict[Any, list[Header]] = defaultdict(list)
    for header in planes:
        parts[key(header)].append(header)
    return list(parts.values())


def _interleaved(parts: list[list[Header]]) -> bool:
    """Whether slices of one part lie between those of another: then each is but every other slice of a volume."""
    normal = _normal(parts[0][0])
    extents = []
    for part in parts:
        along = np.sort(np.array([header.position for header in part]) @ normal)
        extents.append((along[0], along[-1], along))
    for i, (low, high, own) in enumerate(extents):
        for other_low, other_high, others in extents[:i]:
            if low < other_high and other_low < high and _nearest(own, others) > 1e-3:
                return True
    return False


def _nearest(ones: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The least distance between any of these and any of those, which rise; of thousands, each pair would be much."""
    above = np.searchsorted(others, ones)
    gaps = [abs(ones - others[np.clip(at, 0, len(others) - 1)]).min() for at in (above - 1, above)]
    return float(min(gaps))


def _by_instance(planes: list[Header]) -> list[list[Header]]:
    """Repeated images of every place, told apart by instance number; [] where the numbers leave doubt.

    They leave none where all places have as many images, and one volume's numbers come before the next's, or one
    place's before the next's.
    """
    places = _places(planes)
    counts = Counter(places)
    numbers = [header.instance for header in planes]
    if len(set(counts.values())) > 1 or len(set(numbers)) < len(planes) or min(numbers) < 0:
        return []
    order = np.argsort(numbers)
    rank: dict[int, int] = Counter()
    volume_of = np.zeros(len(planes), dtype=int)
    for i in order:
        volume_of[i] = rank[places[i]]
        rank[places[i]] += 1
    by_volume = (np.diff(volume_of[order]) >= 0).all()
    by_place = int((np.diff(np.array(places)[order]) != 0).sum()) == len(counts) - 1
    if not (by_volume or by_place):
        return []
    volumes = [[planes[i] for i in np.flatnonzero(volume_of == k)] for k in range(max(counts.values()))]
    return [] if any(len(_split(volume, _WEIGHTING)) > 1 for volume in volumes) else volumes


def _places(planes: list[Header]) -> list[int]:
    """The number of each plane's place along the normal, counted from its foot."""
    along = np.array([header.position for header in planes]) @ _normal(planes[0])
    order = np.argsort(along, kind="stable")
    number = np.concatenate([[0], np.cumsum(np.diff(along[order]) > 1e-3)])
    places = np.empty(len(planes), dtype=int)
    places[order] = number
    return places.tolist()


def _crowding(planes: list[Header]) -> tuple[int, bool]:
    """Most images at one place, and whether all make one volume."""
    most = max(Counter(_places(planes)).values())
    if most > 1 or len(planes) < MIN_SLICES:
        return most, False
    try:
        _check_positions(_ordered(planes))
    except Unreadable:
        return most, False
    return most, True


def _ordered(planes: list[Header]) -> list[Header]:
    along = np.array([header.position for header in planes]) @ _normal(planes[0])
    return [planes[i] for i in np.argsort(along, kind="stable")]


def _normal(header: Header) -> NDArray[np.float64]:
    return np.cross(header.orientation[:3], header.orientation[3:])


# -- one volume ----------------------------------------------------------------------------------------------------


def _candidate_of(planes: list[Header], tilt: Tilt, uneven: Uneven) -> Candidate:
    """One volume of planes alike, or the reason why not."""
    for header in planes:
        if header.fault:
            reason, message = header.fault
            raise Unreadable(reason, f"another of the {len(planes)} slices of this series is unusable: {message}")
    n = len(planes)
    without = sum(not _is_placed(header) for header in planes)
    if without:
        raise Unreadable("NO_GEOMETRY", f"{without} of {n} slices without sound position, orientation or spacing")
    if n < MIN_SLICES:
        raise Unreadable("NONUNIFORM", f"{n} slice{'s' * (n > 1)}; a volume needs at least {MIN_SLICES}")
    ordered = _ordered(planes)
    tilt_deg = _check_positions(ordered, uneven)
    if tilt_deg > _STEEPEST_DEG:
        raise Unreadable("NONUNIFORM", f"slices {tilt_deg:.1f} degrees off a stack: side by side rather than above")
    if tilt_deg > MAX_TILT_DEG and tilt == "skip":
        raise Unreadable("GANTRY_TILT", f"slices sheared by {tilt_deg:.1f} degrees against their normal")
    first = ordered[0]
    placed = placement(ordered)
    if prod(placed.shape) > MAX_VOXELS:
        raise Unreadable("TOO_LARGE", f"{n} slices of {first.rows}×{first.columns} pixels")
    notes = first.notes
    if len({header.traits.image_type for header in ordered}) > 1:
        notes += ("images of several types",)
    if len({header.traits.phase for header in ordered}) not in (1, n):
        notes += ("images of several times",)
    acquisitions = [header.traits.acquisition for header in ordered]
    if 1 < len(set(acquisitions)) < n and len(set(acquisitions)) <= sum(a != b for a, b in pairwise(acquisitions)):
        notes += ("slices of several acquisitions, interleaved",)
    if placed.shift is not None:
        notes += (f"sheared upright: the gantry was tilted by {tilt_deg:.1f} degrees",)
    if placed.levels is not None:
        notes += (f"{n} slices at uneven steps interpolated to {placed.shape[2]}",)
    in_one_file = first.frame is not None
    return _candidate(
        first,
        paths=(first.path,) if in_one_file else tuple(header.path for header in ordered),
        frames=tuple(header.frame or 0 for header in ordered) if in_one_file else (),
        member=min(header.frame or 0 for header in ordered),
        **canonical_grid(placed.shape, placed.affine)._asdict(),
        notes=notes,
    )


def _plane_candidate(header: Header) -> Candidate:
    codes, notes = plane_directions(header.directions)
    turned = -1 if is_transposed(codes) else 1
    between_rows, between_columns = header.spacing or (float("nan"), float("nan"))
    if not header.spacing:
        notes += ("spacing unknown",)
    return _candidate(
        header,
        paths=(header.path,),
        frames=(),
        member=0,
        shape=(header.columns, header.rows)[::turned],
        spacing_mm=(between_columns, between_rows)[::turned],
        orientation=codes,
        notes=header.notes + notes,
    )


def is_transposed(codes: str) -> bool:
    """Whether the columns of a radiograph run along the body."""
    return codes[0] in "SI"


def _candidate(header: Header, **found: Any) -> Candidate:
    return Candidate(
        reader="dicom",
        patient_id=header.patient or (header.study or header.series) + header.person,
        patient_known=bool(header.patient),
        study_uid=header.study or header.series,
        series_uid=header.series,
        site=header.site,
        modality=header.modality,
        manufacturer=header.manufacturer,
        model=header.model,
        kernel=header.kernel,
        field_strength=header.field_strength,
        **found,
    )


def _check_positions(ordered: list[Header], uneven: Uneven = "skip") -> float:
    """Raise unless planes in the order of their positions are one line of equal steps; else their tilt in degrees."""
    n = len(ordered)
    positions = np.array([header.position for header in ordered])
    normal = _normal(ordered[0])
    along = positions @ normal
    gaps = np.diff(along)
    n_places = 1 + int((gaps > 1e-3).sum())
    if n_places < n:
        raise Unreadable("DUPLICATE", f"{n} slices at {n_places} positions, and nothing that tells them apart")
    even = _is_even(along)
    if not even:
        found = f"slice gap {gaps.min():.3g}–{gaps.max():.3g} mm; slices are missing or uneven"
        if gaps.max() > _MOST_UNEVEN * gaps.min():
            raise Unreadable("NONUNIFORM", found)
        if uneven == "skip":
            raise Unreadable("NONUNIFORM", f"{found}; --uneven resample interpolates")
    line = (positions[-1] - positions[0]) / (along[-1] - along[0])
    sideways = positions - positions[0] - np.outer(along - along[0], line)
    if np.linalg.norm(sideways, axis=1).max() > max(_tolerance(along), 0.05):
        raise Unreadable("NONUNIFORM", "the slices' corners are not on one line")
    tilt_deg = _tilt_deg(line, normal)
    if not even and tilt_deg > MAX_TILT_DEG:
        raise Unreadable("NONUNIFORM", "slices both uneven and sheared by a tilted gantry")
    return tilt_deg


def _is_even(along: NDArray[np.float64]) -> bool:
    """Whether positions along the normal, in their order, are equal steps."""
    n = np.arange(len(along)) - (len(along) - 1) / 2
    off = along - n * (n @ along) / (n @ n)  # not a line from end to end: these are rounded, too
    return bool(np.ptp(off) / 2 <= _tolerance(along))


def _tolerance(along: NDArray[np.float64]) -> float:
    """How far a slice may be off its place: 1% of the step, or the 0.05 mm of positions written with one decimal.

    The latter, and a little for the line that is drawn through them, where it is less than a fifth of the step.
    """
    step = float(along[-1] - along[0]) / (len(along) - 1)
    return max(0.01 * step, min(0.06, 0.2 * step))


def _tilt_deg(step: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    upright = step @ normal
    return float(np.degrees(np.arctan2(np.linalg.norm(step - upright * normal), upright)))
