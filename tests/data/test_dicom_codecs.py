"""Every transfer syntax, decoded by whatever is installed, and what happens where that is nothing."""

import multiprocessing
import tracemalloc
import types
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID
from rle.utils import encode_pixel_data

from medclr.data import dicom
from medclr.data.dicom import codecs, pixels
from medclr.data.discover import discover
from medclr.errors import Unreadable

Write = Callable[..., Any]
Encode = Callable[[NDArray[Any]], bytes]
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"


def unsigned(plane: NDArray[Any]) -> NDArray[Any]:
    return plane.view(f"u{plane.dtype.itemsize}")


def rle(plane: NDArray[Any]) -> bytes:
    size = {"rows": plane.shape[0], "columns": plane.shape[1], "samples_per_pixel": 1}
    encoded: bytes = encode_pixel_data(
        plane.tobytes(), bits_allocated=plane.dtype.itemsize * 8, byteorder="<", number_of_frames=1, **size
    )
    return encoded


def high_throughput(plane: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.htj2k_encode(plane, reversible=True))


LOSSLESS: dict[str, tuple[UID, Encode]] = {
    "RLE": (uid.RLELossless, rle),
    "JPEG lossless, SV1": (uid.JPEGLosslessSV1, lambda p: lossless_jpeg(p, 1)),
    "JPEG lossless, predictor 4": (uid.JPEGLossless, lambda p: lossless_jpeg(p, 4)),
    "JPEG-LS": (uid.JPEGLSLossless, lambda p: bytes(imagecodecs.jpegls_encode(unsigned(p)))),
    "JPEG 2000": (uid.JPEG2000Lossless, lambda p: bytes(imagecodecs.jpeg2k_encode(p, level=0, codecformat="j2k"))),
    "HTJ2K": (uid.HTJ2KLossless, high_throughput),
    "HTJ2K RPCL": (uid.HTJ2KLosslessRPCL, high_throughput),
}
LOSSY: dict[str, tuple[UID, Encode, type, int]] = {
    "JPEG baseline": (uid.JPEGBaseline8Bit, lambda p: bytes(imagecodecs.jpeg8_encode(p, level=90)), np.uint8, 20),
    "JPEG extended": (uid.JPEGExtended12Bit, lambda p: twelve_bits(p), np.uint16, 3),
    "JPEG-LS near": (uid.JPEGLSNearLossless, lambda p: bytes(imagecodecs.jpegls_encode(p, level=3)), np.uint16, 3),
    "HTJ2K lossy": (uid.HTJ2K, lambda p: bytes(imagecodecs.htj2k_encode(p, reversible=False)), np.uint16, 20),
    "JPEG 2000 lossy": (
        uid.JPEG2000,
        lambda p: bytes(imagecodecs.jpeg2k_encode(p, level=85, codecformat="j2k", reversible=False)),
        np.uint16,
        20,
    ),
}
DTYPES = [np.uint8, np.int8, np.uint16, np.int16]


def lossless_jpeg(plane: NDArray[Any], predictor: int) -> bytes:
    bits = plane.dtype.itemsize * 8
    return bytes(imagecodecs.jpeg8_encode(unsigned(plane), lossless=True, predictor=predictor, bitspersample=bits))


def twelve_bits(plane: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(plane, level=100, bitspersample=12))


def smooth(dtype: type, n: int = 3) -> NDArray[Any]:
    """Slices with a slope, some noise and, where they have one, both signs."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:40, 0:36]
    values = 2 * down + across + rng.integers(0, 12, (n, 40, 36)) + 10 * np.arange(n)[:, None, None]
    info = np.iinfo(dtype)
    if info.bits == 16:
        values = values * 20
    return (values - (values.max() // 2 if info.min else 0)).clip(info.min, info.max).astype(dtype)


@pytest.fixture
def write_compressed(tmp_path: Path, write_series: Write) -> Callable[..., list[Path]]:
    """A series whose slices are re-encoded by a function."""

    def write(volume: NDArray[Any], syntax: str, encode: Encode, **tags: Any) -> list[Path]:
        paths: list[Path] = write_series(tmp_path, volume, **tags)
        for path in paths:
            ds = pydicom.dcmread(path)
            compress(ds, syntax, [encode(ds.pixel_array)])
            ds.save_as(path)
        return paths

    return write


def compress(ds: pydicom.Dataset, syntax: str, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax


def read(root: Path) -> NDArray[np.float32]:
    """The slices in their order, as they were written."""
    (candidate,), skipped = discover(root, workers=0)
    assert skipped == []
    return dicom.read(root, candidate).array[0].transpose(2, 1, 0)[:, ::-1, ::-1]


@pytest.fixture(params=["imagecodecs", "pydicom's plugins"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """With the extra and without."""
    if request.param != "imagecodecs":
        hide(monkeypatch, "imagecodecs", "rle")
    yield request.param
    codecs._codec.cache_clear()


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    has = codecs._has
    monkeypatch.setattr(codecs, "_has", lambda package: package not in packages and has(package))
    codecs._codec.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_syntaxes_give_what_was_written(
    tmp_path: Path, write_compressed: Write, way: str, name: str, dtype: type
) -> None:
    volume = smooth(dtype)
    write_compressed(volume, *LOSSLESS[name])
    np.testing.assert_array_equal(read(tmp_path), volume)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", LOSSLESS)
def test_twelve_bits_in_sixteen(tmp_path: Path, write_compressed: Write, way: str, name: str, signed: bool) -> None:
    volume = smooth(np.int16) if signed else smooth(np.uint16)
    syntax, encode = LOSSLESS[name]
    if name.startswith(("HTJ2K", "JPEG 2000")):
        volume = volume.clip(-2048, 4095)  # the codec keeps the sign itself
        kept = volume
    else:
        kept = (volume & 0xFFF).astype(volume.dtype)
    write_compressed(kept, syntax, encode, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read(tmp_path), volume)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_syntaxes_stay_near_what_was_written_and_are_as_others_decode_them(
    tmp_path: Path, write_compressed: Write, name: str
) -> None:
    syntax, encode, dtype, most = LOSSY[name]
    volume = smooth(dtype)
    bits = 12 if syntax == uid.JPEGExtended12Bit else volume.dtype.itemsize * 8
    paths = write_compressed(volume, syntax, encode, BitsStored=bits, HighBit=bits - 1)
    decoded = read(tmp_path)
    assert abs(decoded - volume).max() <= most
    assert "imagecodecs" in codecs.decoders(syntax)
    others = [plugin for plugin in get_decoder(syntax).available_plugins if syntax != uid.JPEGExtended12Bit]
    assert others or syntax == uid.JPEGExtended12Bit
    for path in paths:
        ds = pydicom.dcmread(path)
        for plugin in others:
            ds.pixel_array_options(decoding_plugin=plugin)
            assert (ds.pixel_array == decoded[int(ds.ImagePositionPatient[2]) // 2]).all()


@pytest.mark.parametrize("bits", [16, 12])
@pytest.mark.parametrize("name", [*LOSSLESS, "native"])
def test_the_frames_of_one_file(tmp_path: Path, write_dicom: Write, way: str, name: str, bits: int) -> None:
    volume = smooth(np.int16) // 2 ** (16 - bits)
    kept = volume  # the codecs of JPEG 2000 keep the sign themselves
    if not name.startswith(("HTJ2K", "JPEG 2000")):
        kept = (volume.view(np.uint16) & (2**bits - 1)).view(np.int16)
    frames, shared, measures, orientation = [], pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    for k in range(len(volume)):
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [0, 0, 2 * k]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    measures.PixelSpacing, orientation.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    path = write_dicom(
        tmp_path / "a.dcm",
        kept,
        Modality="MR",
        BitsStored=bits,
        HighBit=bits - 1,
        NumberOfFrames=len(volume),
        PixelSpacing=None,
        PerFrameFunctionalGroupsSequence=frames,
        SharedFunctionalGroupsSequence=[shared],
    )
    if name != "native":
        ds = pydicom.dcmread(path)
        syntax, encode = LOSSLESS[name]
        compress(ds, syntax, [encode(plane) for plane in kept])
        ds.save_as(path)
    np.testing.assert_array_equal(read(tmp_path), volume)


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize(("share", "end"), [(0.5, b""), (0.98, b""), (0.5, b"\xff\xd9"), (0.9, b"\xff\xd9")])
def test_a_compressed_slice_that_stops_early_is_refused(
    tmp_path: Path, write_compressed: Write, name: str, share: float, end: bytes, way: str
) -> None:
    """Whether or not it has an end marker all the same."""
    syntax, encode = LOSSLESS[name] if name in LOSSLESS else LOSSY[name][:2]
    dtype = LOSSY[name][2] if name in LOSSY else np.uint16

    def half(plane: NDArray[Any]) -> bytes:
        whole = encode(plane)
        return whole[: int(share * len(whole))].rstrip(b"\xff") + end

    tags = {"BitsStored": 12, "HighBit": 11} if syntax == uid.JPEGExtended12Bit else {}
    write_compressed(smooth(dtype), syntax, half, **tags)
    with pytest.raises(Unreadable) as raised:
        read(tmp_path)
    assert raised.value.reason in ("TRUNCATED", "DECODE")


@pytest.mark.parametrize("name", ["JPEG lossless, SV1", "JPEG baseline"])
def test_an_image_that_ends_in_the_middle_grey_is_none_that_stops_early(
    tmp_path: Path, write_compressed: Write, way: str, name: str
) -> None:
    syntax, encode = LOSSLESS[name] if name in LOSSLESS else LOSSY[name][:2]
    volume = smooth(np.uint8)
    volume[:, 20:] = 128
    write_compressed(volume, syntax, encode)
    assert (read(tmp_path)[:, 32:] == 128).all()


def test_a_cut_within_an_escaped_byte_is_noticed() -> None:
    """What ends in half of one makes a marker of whatever follows."""
    noisy = smooth(np.uint8)[0] ^ np.random.default_rng(0).integers(0, 32, smooth(np.uint8)[0].shape, dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=95)
    whole = file.getvalue()
    start = whole.index(b"\xff\xda")
    cuts = [at + 1 for at in range(start, len(whole) - 200) if whole[at : at + 2] == b"\xff\0"]
    assert cuts
    for cut in cuts:
        with pytest.raises(Unreadable):
            codecs.decode(whole[:cut] + b"\xff\xd9", uid.JPEGBaseline8Bit, *noisy.shape, 8)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_restart_marker_that_is_missing_is_noticed(
    tmp_path: Path, write_compressed: Write, way: str, lost: int
) -> None:
    """What was between two of them is gone, and the rest is where it does not belong."""

    def encode(plane: NDArray[Any]) -> bytes:
        file = BytesIO()
        Image.fromarray(plane).save(file, "JPEG", quality=90, restart_marker_blocks=5)
        whole = file.getvalue()
        if not lost:
            return whole
        first, second = whole.index(b"\xff\xd2"), whole.index(b"\xff\xd3")
        return whole[:first] + whole[second:]

    volume = smooth(np.uint8)
    write_compressed(volume, uid.JPEGBaseline8Bit, encode)
    if not lost:
        assert abs(read(tmp_path) - volume).max() <= 20
        return
    with pytest.raises(Unreadable) as raised:
        read(tmp_path)
    assert raised.value.reason == "TRUNCATED"


@pytest.mark.parametrize("name", ["RLE", "JPEG 2000", "JPEG-LS"])
@pytest.mark.parametrize("kept", [0.6, 0.999])
def test_a_compressed_file_that_stops_early_is_refused(
    tmp_path: Path, write_compressed: Write, name: str, kept: float
) -> None:
    path = write_compressed(smooth(np.uint16), *LOSSLESS[name])[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: min(len(whole) - 4, int(kept * len(whole)))])
    with pytest.raises(Unreadable) as raised:
        read(tmp_path)
    assert raised.value.reason == "TRUNCATED"


@pytest.mark.parametrize("name", [name for name in LOSSLESS if name != "RLE"])
def test_another_size_than_announced_is_refused_before_it_is_decoded(
    tmp_path: Path, write_compressed: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(pixels, "decode", never)
    write_compressed(smooth(np.uint16), LOSSLESS[name][0], lambda plane: LOSSLESS[name][1](np.tile(plane, (2, 1))))
    with pytest.raises(Unreadable, match="40×36 pixels; those compressed are 80×36"):
        read(tmp_path)


def test_an_end_may_be_padded(tmp_path: Path, write_compressed: Write) -> None:
    """With zeros, or as one of pydicom's files has it."""
    syntax, encode = LOSSLESS["JPEG-LS"]
    volume = smooth(np.uint16)
    write_compressed(volume, syntax, lambda plane: encode(plane) + b"\xff\0\0")
    np.testing.assert_array_equal(read(tmp_path), volume)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("JPEG 2000", 'no decoder for JPEG 2000 Image Compression (Lossless Only); pip install "medclr[codecs]"'),
        ("RLE", 'no decoder for RLE Lossless; pip install "pylibjpeg-rle>=2"'),
    ],
)
def test_a_missing_decoder_is_named_with_what_brings_it(
    tmp_path: Path, write_compressed: Write, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    hide(monkeypatch, "imagecodecs", "rle")
    monkeypatch.setattr(codecs, "get_decoder", lambda uid: types.SimpleNamespace(available_plugins=()))
    write_compressed(smooth(np.uint16), *LOSSLESS[name])
    with pytest.raises(Unreadable) as raised:
        read(tmp_path)
    assert (raised.value.reason, str(raised.value)) == ("DECODE", remedy)


def test_twelve_bits_of_jpeg_need_the_extra(
    tmp_path: Path, write_compressed: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "imagecodecs")
    write_compressed(smooth(np.uint16), uid.JPEGExtended12Bit, twelve_bits, BitsStored=12, HighBit=11)
    with pytest.raises(Unreadable, match=r'pip install "medclr\[codecs\]"'):
        read(tmp_path)


# -- the quick way ------------------------------------------------------------------------------------------------


def planes(path: Path) -> Any:
    """All planes of a file, whatever its place in a series; or why not."""
    try:
        headers = dicom.headers(path, path.name, burned_in=True)
        if headers[0].fault:
            return headers[0].fault
        frames = tuple(header.frame for header in headers if header.frame is not None)
        stack = pixels._Stack(len(headers), (False, True, True))
        with dicom.header.quiet():
            told = pixels._decoded(path, frames, headers[0].modality, stack, 0)
        return stack.array.tolist(), [(plane.rescaled, plane.notes) for plane in told]
    except Unreadable as error:
        return error.reason


def agree(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Read all files below a folder with pydicom and without; returns how many could be."""
    n = 0
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        with monkeypatch.context() as patch:
            one = planes(path)
            patch.setattr(pixels, "quick_elements", lambda head: None)
            patch.setattr(pixels, "decode", lambda *args: None)
            patch.setattr(pixels, "check_decoder", lambda syntax: None)
            other = planes(path)
        # Of JPEG with 12 bits there is no other decoder.
        assert one == other or (other == "DECODE" and "1.2.840.10008.1.2.4.51" in str(path.read_bytes()[:500])), path
        n += isinstance(one, tuple) and isinstance(one[0], list)
    return n


def test_the_quick_way_reads_the_same_as_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agree(BUNDLED, monkeypatch) > 40


def test_threads_read_the_same_and_the_first_fault_is_told(
    tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_series(tmp_path, smooth(np.int16, 30))
    ((candidate,), _) = discover(tmp_path, workers=0)
    arrays = []
    for threads in (1, 4):
        monkeypatch.setattr(pixels, "_n_threads", lambda threads=threads: threads)
        arrays.append(dicom.read(tmp_path, candidate).array)
    np.testing.assert_array_equal(*arrays)
    ordered = [tmp_path / name for name in candidate.paths]
    assert sorted(ordered) == sorted(paths)
    ordered[20].write_bytes(b"no DICOM")
    ordered[12].write_bytes(ordered[12].read_bytes()[:-7])
    for threads in (1, 4):
        monkeypatch.setattr(pixels, "_n_threads", lambda threads=threads: threads)
        with pytest.raises(Unreadable, match="2873 of 2880 bytes"):
            dicom.read(tmp_path, candidate)


def test_a_process_among_many_reads_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    several = pixels._n_threads()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert (several >= 1, pixels._n_threads()) == (True, 1)


def test_a_series_needs_little_more_memory_than_its_volume(tmp_path: Path, write_series: Write) -> None:
    volume = np.tile(smooth(np.int16, 24), (1, 4, 4))
    write_series(tmp_path, volume)
    ((candidate,), _) = discover(tmp_path, workers=0)
    dicom.read(tmp_path, candidate)
    tracemalloc.start()
    array = dicom.read(tmp_path, candidate).array
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * array.nbytes
    assert min(array.strides[1:]) > 0  # torch takes no others
