"""Chest phantoms as real DICOM files: two scanners, a label that a lesion decides, and some broken files.

Every header holds the word CANARY wherever a patient or a site could be named, so that a search for it finds
whatever leaks. Coordinates are DICOM's: x to the patient's left, y to the back, z to the head, in mm.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

SHARE_TRAIN, SHARE_VAL = 0.6, 0.1
SHARE_SECOND_STUDY = 0.25

# The scan.
N_SLICES = 24
N_PIXELS = (28, 32)  # in-plane matrix, from and to
FIELD_OF_VIEW_MM = 364.0

# Tissue.
AIR_HU, LUNG_HU, FAT_HU, SOFT_HU, BLOOD_HU, BONE_HU = -1000.0, -830.0, -90.0, 40.0, 50.0, 420.0
LESION_HU = 35.0

# Anatomy of the mean patient: half axes and centres.
BODY_MM = np.array([164.0, 112.0])
SHARE_INSIDE_FAT = 0.9
RIB_AT, RIB_HALF_THICKNESS, RIB_PERIOD_MM, RIB_SLOPE = 0.84, 0.035, 38.0, 0.4  # the first two as shares of the body
LUNG_MM, LUNG_AT_MM = np.array([50.0, 76.0, 128.0]), np.array([76.0, -6.0, 0.0])
HEART_MM, HEART_AT_MM = np.array([56.0, 44.0, 58.0]), np.array([24.0, -34.0, -48.0])
SPINE_RADIUS_MM, SPINE_AT_MM, VERTEBRA_MM = 21.0, np.array([0.0, 72.0]), 30.0
HILUM_MM = np.array([28.0, 6.0, -6.0])

# How patients differ, and how they lie on the table.
SIZE_SPREAD, LUNG_SPREAD, SHIFT_MM, TILT_DEG = 0.05, 0.06, 5.0, 3.0

# What lies in the lungs: vessels and granulomas in everyone, the lesion in half of the patients.
N_VESSELS, VESSEL_RADIUS_MM = (5, 10), (3.0, 6.5)  # a lung
N_GRANULOMAS, GRANULOMA_RADIUS_MM = (0, 4), (3.0, 6.0)  # a lung
LESION_RADIUS_MM = (18.0, 26.0)
REACH = 0.72  # how far out into the lung they lie, as a share of its half axes
# Most lung cancers sit in the upper lobes. The zone is also what lets a linear classifier on pixels learn something.
LESION_ZONE, LESION_REACH = np.array([0.0, 0.0, 0.35]), 0.3


@dataclass(frozen=True)
class Scanner:
    """What one scanner does to the patient's Hounsfield units, and how it stores them."""

    manufacturer: str
    model: str
    kernel: str
    institution: str
    spacing_mm: float  # between slices
    noise_hu: float
    offset_hu: float  # miscalibration
    blur: float  # in-plane, standard deviation in pixels
    edge: float  # share of the blurred-away detail that is added again
    slope: float
    intercept: float
    signed: bool


SCANNERS = (
    Scanner("Acme", "CT-1", "SOFT", "CANARY GENERAL", 12.0, 50.0, 0.0, 0.55, 0.0, 1.0, -1024.0, False),
    Scanner("Borealis", "VX", "SHARP", "CANARY CLINIC", 12.5, 70.0, 30.0, 0.7, 1.5, 0.5, 0.0, True),
)


@dataclass(frozen=True)
class _Chest:
    """One patient's anatomy, in the patient's own coordinates in mm."""

    scale: float
    lungs: Array  # (2, 3) half axes
    segments: Array  # (n, 2, 3) ends of the vessels
    segment_radii: Array
    spheres: Array  # (n, 3) centres of the granulomas
    sphere_radii: Array
    lesion: Array | None  # centre
    lesion_radius: float


def write_phantoms(folder: Path, patients: int, seed: int) -> None:
    """Write phantoms of several patients: `folder`/dicom, a tree of CT series, and `folder`/labels.csv.

    Files have random names and InstanceNumbers that contradict the geometry. About a quarter of the patients have
    two studies, with the same label. `folder`/dicom/broken holds what an archive also holds: a text file, a report,
    a secondary capture, and series that are cut off, incomplete or without positions; none of it is labelled.

    Args:
        folder: made when absent; same-named files in it are replaced.
        patients: how many; 60% are for training, 10% for validation, 30% for testing; half of each have a lesion.
        seed: decides every byte.
    """
    rng = np.random.default_rng(seed)
    rows = []
    # Ranks decide split and lesion together, so that both classes are in each split however few the patients.
    for number, rank in enumerate(rng.permutation(patients)):
        patient = f"CANARY-{number:04d}"
        lesion = int(rank % 2)
        split = "train" if rank < SHARE_TRAIN * patients else "test"
        if SHARE_TRAIN * patients <= rank < (SHARE_TRAIN + SHARE_VAL) * patients:
            split = "val"
        chest = _draw_chest(rng, bool(lesion))
        for study in range(1 + (rng.random() < SHARE_SECOND_STUDY)):
            scanner = SCANNERS[rng.integers(len(SCANNERS))]
            hu, pixel_mm = _scan(chest, scanner, rng)
            header = _header(seed, patient, study, scanner)
            place = folder / "dicom" / patient / f"study{study}"
            for name, ds in _slices(header, hu, pixel_mm, scanner, rng):
                _save(ds, place / name)
            rows.append([header.SeriesInstanceUID, header.StudyInstanceUID, patient, split, lesion])
    _write_broken(folder / "dicom" / "broken", seed, rng)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["series_uid", "study_uid", "patient_id", "split", "lesion"])
        writer.writerows(rows)


def _draw_chest(rng: np.random.Generator, lesion: bool) -> _Chest:
    lungs = LUNG_MM * rng.uniform(1 - LUNG_SPREAD, 1 + LUNG_SPREAD, (2, 3))
    segments, spheres = [], []
    for side in (0, 1):
        for _ in range(rng.integers(*N_VESSELS, endpoint=True)):
            segments.append([HILUM_MM * _mirror(side), _in_lung(rng, lungs, side)])
        for _ in range(rng.integers(*N_GRANULOMAS, endpoint=True)):
            spheres.append(_in_lung(rng, lungs, side))
    return _Chest(
        scale=rng.uniform(1 - SIZE_SPREAD, 1 + SIZE_SPREAD),
        lungs=lungs,
        segments=np.array(segments),
        segment_radii=rng.uniform(*VESSEL_RADIUS_MM, len(segments)),
        spheres=np.array(spheres).reshape(-1, 3),
        sphere_radii=rng.uniform(*GRANULOMA_RADIUS_MM, len(spheres)),
        lesion=_in_lung(rng, lungs, int(rng.integers(2)), LESION_REACH, LESION_ZONE) if lesion else None,
        lesion_radius=rng.uniform(*LESION_RADIUS_MM),
    )


def _mirror(side: int) -> Array:
    """Turns a place in the left half of the chest into one in the half `side` (0 right, 1 left)."""
    return np.array([1.0 if side else -1.0, 1.0, 1.0])


def _in_lung(
    rng: np.random.Generator, lungs: Array, side: int, reach: float = REACH, zone: Array | float = 0.0
) -> Array:
    """A random place in one lung, clear of the heart; `reach` and `zone`, its middle, are shares of the half axes."""
    while True:
        direction = rng.normal(size=3)
        within = zone + reach * rng.random() ** (1 / 3) * direction / np.linalg.norm(direction)
        place: Array = LUNG_AT_MM * _mirror(side) + lungs[side] * within
        if np.linalg.norm((place - HEART_AT_MM) / HEART_MM) > 1.4:
            return place


def _scan(chest: _Chest, scanner: Scanner, rng: np.random.Generator) -> tuple[Array, float]:
    """(slices from feet to head, rows, columns) in HU as the scanner reports them, and the pixel spacing in mm."""
    n = int(rng.integers(*N_PIXELS, endpoint=True))
    pixel_mm = round(FIELD_OF_VIEW_MM / n, 3)
    z, y, x = np.meshgrid(
        (np.arange(N_SLICES) - (N_SLICES - 1) / 2) * scanner.spacing_mm,
        (np.arange(n) - (n - 1) / 2) * pixel_mm,
        (np.arange(n) - (n - 1) / 2) * pixel_mm,
        indexing="ij",
    )
    turn = Rotation.from_euler("xyz", rng.uniform(-TILT_DEG, TILT_DEG, 3), degrees=True).as_matrix()
    places = (np.stack([x, y, z], axis=-1) - rng.uniform(-SHIFT_MM, SHIFT_MM, 3)) @ turn / chest.scale
    hu = _draw_tissue(chest, places, edge_mm=pixel_mm) + scanner.offset_hu
    # Noise is in the projections, so the kernel that shapes the image shapes the noise too.
    hu += rng.normal(0, scanner.noise_hu, hu.shape)
    smooth = gaussian_filter(hu, (0, scanner.blur, scanner.blur))
    return (smooth if scanner.edge == 0 else hu + scanner.edge * (hu - smooth)), pixel_mm


def _draw_tissue(chest: _Chest, places: Array, edge_mm: float) -> Array:
    """HU at places (..., 3) in mm; borders are as soft as a voxel is wide."""
    x, y, z = np.moveaxis(places, -1, 0)
    hu = np.full(x.shape, AIR_HU)

    def fill(hu: Array, value: float, depth_mm: Array, share: Array | float = 1.0) -> None:
        hu += (value - hu) * share * np.clip(0.5 + depth_mm / edge_mm, 0, 1)

    def ellipsoid(centre: Array, half_axes: Array) -> Array:
        return np.asarray(np.sqrt(sum(((places[..., i] - centre[i]) / half_axes[i]) ** 2 for i in range(3))))

    body = np.hypot(x / BODY_MM[0], y / BODY_MM[1])
    fill(hu, FAT_HU, (1 - body) * BODY_MM[1])
    fill(hu, SOFT_HU, (SHARE_INSIDE_FAT - body) * BODY_MM[1])
    between_ribs = np.sin(2 * np.pi * (z + RIB_SLOPE * y) / RIB_PERIOD_MM)
    rib_depth_mm = (RIB_HALF_THICKNESS - np.abs(body - RIB_AT)) * BODY_MM[1]
    fill(hu, BONE_HU, rib_depth_mm, share=np.clip(0.5 + between_ribs, 0, 1))
    in_lung = np.zeros(hu.shape, dtype=bool)
    for side in (0, 1):
        radius = ellipsoid(LUNG_AT_MM * _mirror(side), chest.lungs[side])
        fill(hu, LUNG_HU, (1 - radius) * chest.lungs[side].min())
        in_lung |= radius < 1.1
    fill(hu, BLOOD_HU, (1 - ellipsoid(HEART_AT_MM, HEART_MM)) * HEART_MM.min())
    vertebra = np.clip(0.75 + 0.5 * np.sin(2 * np.pi * z / VERTEBRA_MM), 0, 1)  # discs are softer
    fill(hu, BONE_HU, SPINE_RADIUS_MM - np.hypot(x - SPINE_AT_MM[0], y - SPINE_AT_MM[1]), share=vertebra)

    # The rest shows in the lungs alone: a tenth of the voxels, so a tenth of the time.
    inside, lung = places[in_lung], hu[in_lung]
    for (start, end), radius in zip(chest.segments, chest.segment_radii, strict=True):
        along = np.clip((inside - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
        fill(lung, BLOOD_HU, radius - np.linalg.norm(inside - start - along[:, None] * (end - start), axis=1))
    for centre, radius in zip(chest.spheres, chest.sphere_radii, strict=True):
        fill(lung, SOFT_HU, radius - np.linalg.norm(inside - centre, axis=1))
    if chest.lesion is not None:
        fill(lung, LESION_HU, chest.lesion_radius - np.linalg.norm(inside - chest.lesion, axis=1))
    hu[in_lung] = lung
    return hu


def _header(seed: int, patient: str, study: int, scanner: Scanner) -> Dataset:
    source = [str(seed), patient, str(study)]
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientID = patient
    ds.PatientName = f"CANARY^{patient}"
    ds.PatientBirthDate = "19000101"
    ds.PatientSex = "O"
    ds.InstitutionName = scanner.institution
    ds.StationName = "CANARY"
    ds.ReferringPhysicianName = "CANARY^REFERRER"
    ds.OperatorsName = "CANARY^OPERATOR"
    ds.AccessionNumber = f"CANARY{study}"
    ds.StudyID = f"CANARY{study}"
    ds.StudyDescription = f"CHEST OF CANARY {patient}"
    ds.SeriesDescription = "CANARY AXIAL"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = f"20200{study + 1}01"
    ds.StudyTime = "120000"
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*source, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*source, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*source, "frame"])
    ds.SeriesNumber = 1
    ds.SOPClassUID = CTImageStorage
    ds.Modality = "CT"
    ds.BodyPartExamined = "CHEST"
    ds.PatientPosition = "HFS"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Manufacturer = scanner.manufacturer
    ds.ManufacturerModelName = scanner.model
    ds.ConvolutionKernel = scanner.kernel
    ds.KVP = 120
    return ds


def _slices(
    header: Dataset, hu: Array, pixel_mm: float, scanner: Scanner, rng: np.random.Generator
) -> Iterator[tuple[str, Dataset]]:
    """Random file names and the slices from feet to head; each data set holds only until the next."""
    stored = np.rint((hu - scanner.intercept) / scanner.slope)
    pixels = stored.clip(-32768, 32767).astype("<i2") if scanner.signed else stored.clip(0, 4095).astype("<u2")
    header.SliceThickness = header.SpacingBetweenSlices = scanner.spacing_mm
    header.PixelSpacing = [pixel_mm, pixel_mm]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = scanner.slope, scanner.intercept, "HU"
    _describe_pixels(header, pixels[0], bits=16 if scanner.signed else 12)
    # Read back, the constant elements stay encoded, and a slice is written in two thirds of the time.
    encoded = BytesIO()
    header.save_as(encoded, implicit_vr=False, little_endian=True)
    encoded.seek(0)
    ds = dcmread(encoded, force=True)
    corner = -(pixels.shape[1] - 1) / 2 * pixel_mm
    table_mm = round(float(rng.uniform(-900, -300)), 1)
    numbers = rng.permutation(len(pixels)) + 1
    names = rng.choice(1_000_000, len(pixels), replace=False)
    for k, (plane, number, name) in enumerate(zip(pixels, numbers, names, strict=True)):
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[header.SeriesInstanceUID, str(k)])
        ds.InstanceNumber = int(number)
        z = round(table_mm + k * scanner.spacing_mm, 3)
        ds.ImagePositionPatient = [round(corner, 3), round(corner, 3), z]
        ds.SliceLocation = z
        ds.add_new("PixelData", "OW", plane.tobytes())
        yield f"{name:06d}.dcm", ds


def _describe_pixels(ds: Dataset, plane: NDArray[np.integer], bits: int) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = plane.shape
    ds.BitsAllocated = plane.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = int(plane.dtype.kind == "i")


def _save(ds: Dataset, path: Path) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def _write_broken(folder: Path, seed: int, rng: np.random.Generator) -> None:
    scanner = SCANNERS[0]
    for study, fault in enumerate(("truncated", "missing", "unplaced")):
        hu, pixel_mm = _scan(_draw_chest(rng, lesion=False), scanner, rng)
        header = _header(seed, f"CANARY-{fault}", study, scanner)
        for k, (name, ds) in enumerate(_slices(header, hu, pixel_mm, scanner, rng)):
            middle = k == N_SLICES // 2
            if fault == "missing" and middle:
                continue
            if fault == "unplaced":
                del ds.ImagePositionPatient, ds.SliceLocation
            _save(ds, folder / fault / name)
            if fault == "truncated" and middle:
                whole = (folder / fault / name).read_bytes()
                (folder / fault / name).write_bytes(whole[: -len(ds.PixelData) // 2])

    (folder / "letter.dcm").write_text("Dear CANARY, this is a letter and no image.\n")

    capture = _header(seed, "CANARY-capture", 0, scanner)
    capture.SOPClassUID = SecondaryCaptureImageStorage
    capture.SOPInstanceUID = generate_uid(entropy_srcs=[capture.SeriesInstanceUID, "capture"])
    capture.ConversionType = "WSD"
    capture.BurnedInAnnotation = "YES"
    plane = rng.integers(0, 256, (32, 32)).astype("u1")
    _describe_pixels(capture, plane, bits=8)
    capture.PixelData = plane.tobytes()
    _save(capture, folder / "capture.dcm")

    report = _header(seed, "CANARY-report", 0, scanner)
    report.SOPClassUID = BasicTextSRStorage
    report.SOPInstanceUID = generate_uid(entropy_srcs=[report.SeriesInstanceUID, "report"])
    report.Modality = "SR"
    report.CompletionFlag, report.VerificationFlag, report.ValueType = "COMPLETE", "UNVERIFIED", "CONTAINER"
    text = Dataset()
    text.RelationshipType, text.ValueType, text.TextValue = "CONTAINS", "TEXT", "Findings of CANARY: none."
    report.ContentSequence = [text]
    _save(report, folder / "report.dcm")
