"""`medclr preview`, through the command line; its page is read back, pixels included."""

import base64
import io
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medclr.cli import main, parse
from medclr.data.phantoms import write_phantoms
from medclr.errors import DataError

SHAPE = (16, 14, 12)
STEPS = (1.0, 1.0, 2.0)


@dataclass
class Sheet:
    """A figure of the page: its caption, and per column the label, the pictures by their alt text, and the lines."""

    caption: str
    columns: dict[str, tuple[dict[str, NDArray[np.float64]], list[str]]]

    def pictures(self, column: str) -> list[NDArray[np.float64]]:
        return list(self.columns[column][0].values())

    def lines(self, column: str) -> list[str]:
        return self.columns[column][1]


def text(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", html))).strip()


def sheets(html: str) -> list[Sheet]:
    found = []
    for figure in re.findall(r'<figure class="sheet">(.*?)</figure>', html, re.DOTALL):
        caption = text(re.findall(r"<figcaption>(.*?)</figcaption>", figure, re.DOTALL)[0])
        columns = {}
        for label, body in re.findall(r"<h4>(.*?)</h4>(.*?)(?=<h4>|$)", figure, re.DOTALL):
            pictures = {
                unescape(alt): np.array(Image.open(io.BytesIO(base64.b64decode(data)))) / 255
                for data, alt in re.findall(r'src="data:image/png;base64,([^"]*)".*? alt="([^"]*)"', body)
            }
            columns[label] = pictures, [text(line) for line in re.findall(r"<span>(.*?)</span>", body)]
        found.append(Sheet(caption, columns))
    return found


def slices(array: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Axial, coronal and sagittal, as one looks at a patient: right on the left, else front; front above, else head."""
    x, y, z = (side // 2 for side in array.shape)
    return [np.rot90(plane)[:, ::-1] for plane in (array[:, :, z], array[:, y], array[x])]


def run(data: Path, out: Path, *flags: str) -> int:
    key = str(out.parent / "key")
    return main(["preview", "--data", str(data), "--out", str(out), "--key-file", key, "--workers", "0", *flags])


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three NIfTI volumes, the last damaged where only decoding finds it, and two pictures."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for number in range(3):
        array = ndimage.gaussian_filter(rng.normal(0, 100, SHAPE), 1.5) + 40
        array[:4] = 0
        affine = np.diag([*STEPS, 1.0])
        nib.save(nib.Nifti1Image(array.astype(np.float32), affine), folder / f"CANARY{number}.nii.gz")
    whole = (folder / "CANARY2.nii.gz").read_bytes()
    (folder / "CANARY2.nii.gz").write_bytes(whole[: len(whole) // 2])
    for number in range(2):
        grey = ndimage.gaussian_filter(rng.random((24, 20)), 2)
        grey = (grey - grey.min()) / np.ptp(grey)
        Image.fromarray((40 + 100 * (1 + number) * grey).astype(np.uint8)).save(folder / f"CANARY{number}.png")
    return folder


@pytest.fixture(scope="module")
def html(scans, tmp_path_factory):
    """The page of these scans."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run(scans, out) == 0
    assert not list(out.glob("*.html"))
    assert sorted(p.name for p in (out / "private").iterdir() if p.is_dir()) == []  # nothing prepared is left
    return (out / "private" / "preview.html").read_text()


def test_each_kind_has_a_section_by_the_spec_that_it_would_get(html):
    headings = [unescape(h) for h in re.findall(r"<h2 id=.*?>(.*?)</h2>", html)]
    assert headings == ["unknown modality 3D", "unknown modality 2D"]
    specs = re.findall(r"<dt>(Spec|Patch, voxels|Voxel, mm|Volumes)</dt><dd>(.*?)</dd>", html)
    assert specs == [
        ("Spec", "mr"), ("Volumes", "3"), ("Patch, voxels", "16 × 14 × 12"), ("Voxel, mm", "1 × 1 × 2"),
        ("Spec", "cxr"), ("Volumes", "2"), ("Patch, voxels", "20 × 24"),
    ]  # fmt: skip
    assert "5 volumes of 2 kinds" in text(html)


def test_the_source_of_a_volume_is_its_windowed_middle_slices(html, scans):
    """By z-score, 0 to 1 is the mean of what is not 0, three standard deviations either way."""
    shown = [sheet for sheet in sheets(html) if "Source" in sheet.columns and "16 × 14 × 12" in sheet.caption]
    assert len(shown) == 2
    for number in range(2):
        array = np.asarray(nib.load(scans / f"CANARY{number}.nii.gz").dataobj, dtype=np.float64)
        tissue = array[array != 0]
        grey = np.clip((array - tissue.mean()) / (6 * tissue.std()) + 0.5, 0, 1)
        errors = [
            max(np.abs(a - b).max() for a, b in zip(sheet.pictures("Source"), slices(grey), strict=True))
            for sheet in shown
        ]
        assert min(errors) < 0.6 / 255
        low, high = tissue.mean() - 3 * tissue.std(), tissue.mean() + 3 * tissue.std()
        lines = shown[int(np.argmin(errors))].lines("Source")
        assert lines[0] == "the whole volume"
        assert [float(n.replace("−", "-")) for n in re.findall(r"−?[\d.]+", lines[1])] == pytest.approx(
            [low, high], rel=5e-3
        )
        assert lines[2] == f"{np.mean(grey == 0):.0%} black, {np.mean(grey == 1):.0%} white"


def test_the_source_of_a_picture_is_it_between_its_percentiles(html, scans):
    shown = [sheet for sheet in sheets(html) if "Source" in sheet.columns and "20 × 24" in sheet.caption]
    for number in range(2):
        grey = np.array(Image.open(scans / f"CANARY{number}.png"), dtype=np.float64)
        low, high = np.percentile(grey, (0.5, 99.5))
        expected = np.clip((grey - low) / (high - low), 0, 1)
        assert min(np.abs(sheet.pictures("Source")[0] - expected).max() for sheet in shown) < 0.6 / 255


def test_two_views_differ_from_the_source_and_from_each_other(html):
    for sheet in (sheet for sheet in sheets(html) if "Source" in sheet.columns):
        source, one, two = (np.concatenate([p.ravel() for p in sheet.pictures(c)]) for c in sheet.columns)
        assert min(np.abs(source - one).max(), np.abs(source - two).max(), np.abs(one - two).max()) > 0.05
        assert re.match(r"\d+% of the block, turned by", sheet.lines("View 1")[0])


def augmentation(html: str, name: str, column: int = 0) -> Sheet:
    """The sheet of an augmentation in one of the sections."""
    return [sheet for sheet in sheets(html) if sheet.caption.startswith(name)][column]


def test_every_augmentation_of_the_preset_is_shown_at_both_ends(html):
    names = [sheet.caption for sheet in sheets(html) if "Off" in sheet.columns]
    assert names == [
        "Crop and zoom in 100% of the views", "Rotation in 100% of the views", "Bias field in 50% of the views",
        "Gamma, contrast, brightness in 80% of the views", "Gibbs ringing in 20% of the views",
        "Blur in 30% of the views",
        "Crop and zoom in 100% of the views", "Rotation in 100% of the views",
        "Histogram equalisation in 20% of the views",
        "Gamma, contrast, brightness in 80% of the views", "Blur in 50% of the views", "Noise in 30% of the views",
    ]  # fmt: skip
    for sheet in (sheet for sheet in sheets(html) if "Off" in sheet.columns):
        off, weak, strong = (np.concatenate([p.ravel() for p in sheet.pictures(c)]) for c in sheet.columns)
        still = sheet.lines("Weakest") == ["nothing is changed"]
        assert np.array_equal(off, weak) == still
        assert np.abs(strong - off).mean() > 1.5 * np.abs(weak - off).mean()
        assert np.abs(strong - off).mean() > 0.004
        # What is said of the whole block is about what is seen of it.
        assert re.fullmatch(r"mean change [\d.]+% of the grey range", sheet.lines("Strongest")[-1])
        assert sheet.lines("Off") == []


def test_of_a_plane_the_mean_change_that_is_said_is_that_of_the_pictures(html):
    """Both examples, one below the other."""
    for name in ("Crop and zoom", "Histogram equalisation", "Noise"):
        sheet = augmentation(html, name, -1)
        assert list(sheet.columns["Off"][0]) == [f"{name}, off, volume 1", f"{name}, off, volume 2"]
        for column in ("Weakest", "Strongest"):
            pairs = zip(sheet.pictures(column), sheet.pictures("Off"), strict=True)
            moved = 100 * np.mean([np.abs(a - b).mean() for a, b in pairs])
            (said,) = re.findall(r"mean change ([\d.]+)%", " ".join(sheet.lines(column))) or ["0"]
            assert float(said) == pytest.approx(moved, abs=0.15)


def test_augmentations_do_what_their_words_say(html):
    blur = augmentation(html, "Blur", -1)
    off = blur.pictures("Off")[0]
    for column, sigma in (("Weakest", 0.3), ("Strongest", 1.2)):
        assert blur.lines(column)[0] == f"blurred, σ {sigma} voxels"
    # The Gaussian is integrated over each voxel, which blurs by another twelfth of one.
    near = ndimage.gaussian_filter(off, np.sqrt(1.2**2 + 1 / 12), mode="nearest")
    assert np.abs(blur.pictures("Strongest")[0] - near).max() < 0.02

    grey = augmentation(html, "Gamma", -1)
    gamma, contrast, brightness = map(float, re.findall(r"[\d.]+", grey.lines("Strongest")[0]))
    bent = grey.pictures("Off")[0] ** gamma
    expected = np.clip((bent - bent.mean()) * contrast + bent.mean() + brightness / 100, 0, 1)
    assert np.abs(grey.pictures("Strongest")[0] - expected).max() < 0.01

    noise = augmentation(html, "Noise", -1)
    assert noise.lines("Strongest")[0] == "noise, σ 4% of the grey range"
    middle = (off > 0.2) & (off < 0.8)  # where nothing is clipped
    assert (noise.pictures("Strongest")[0] - off)[middle].std() == pytest.approx(0.04, rel=0.2)

    turn = augmentation(html, "Rotation", -1)
    assert turn.lines("Strongest")[0] == "turned by 10°"
    turned = [ndimage.rotate(off, degrees, reshape=False, order=1, mode="nearest") for degrees in (10, -10)]
    inner = (slice(3, -3), slice(3, -3))
    assert min(np.abs((turn.pictures("Strongest")[0] - image)[inner]).max() for image in turned) < 0.02

    crop = augmentation(html, "Crop", -1)
    assert crop.lines("Strongest")[0] == "30% of the block"
    # The corner towards the first voxel of both axes: below, and on the right.
    rows, columns = (int(side * np.sqrt(0.3)) for side in off.shape)
    assert crop.pictures("Strongest")[0].mean() == pytest.approx(off[-rows:, -columns:].mean(), abs=0.03)


def test_what_cannot_be_decoded_is_said_in_its_place(html):
    failed = [sheet for sheet in sheets(html) if not sheet.columns]
    assert len(failed) == 1
    assert "unknown scanner 16 × 14 × 12 at 1 × 1 × 2 mm" in failed[0].caption
    assert re.search(r'<div class="none"><code>TRUNCATED</code> [a-z]', html)


def test_the_page_loads_nothing_and_names_nobody(html, scans):
    links = re.findall(r'(?:src|href|action|data)="([^"]*)"', html)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|url\(", html)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in unescape(html)
    assert "CANARY" not in html
    assert str(scans) not in html
    ids = set(re.findall(r' id="([^"]*)"', html))
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', html)
    assert len(alts) == html.count("<img") > 100
    assert {
        "source, axial middle slice",
        "view 2, sagittal middle slice",
        "Blur, strongest, coronal middle slice",
    } <= set(alts)
    assert all(alts)
    assert "<title>What the model will see</title>" in html
    (line,) = re.findall(r"<code>(medclr preview [^<]*)", html)
    assert parse("preview", shlex.split(unescape(line))[2:]).volumes == 8


def test_pictures_have_the_proportions_of_the_body(html):
    """Sides of 16, 14 and 24 mm, in percent of the longest."""
    sheet = next(f for f in re.findall(r'<figure class="sheet">(.*?)</figure>', html, re.DOTALL) if "<img" in f)
    styles = re.findall(r'width: ([\d.]+)%; aspect-ratio: ([\d.]+)"', sheet)[:3]
    expected = [(16 / 24, 16 / 14), (16 / 24, 16 / 24), (14 / 24, 14 / 24)]
    assert [(float(a) / 100, float(b)) for a, b in styles] == [pytest.approx(pair, abs=1e-3) for pair in expected]


SPEC = """
name: own
modality: [""]
spatial_dims: 3
normalisation: percentile
sizing: spacing
max_patch: 64
preset: mr
"""


@pytest.fixture
def one(tmp_path):
    """A folder with a single volume of numbers that tell its voxels apart."""
    data = tmp_path / "one"
    data.mkdir()
    array = np.arange(16 * 12 * 10, dtype=np.float32).reshape(16, 12, 10)
    nib.save(nib.Nifti1Image(array, np.eye(4)), data / "a.nii.gz")
    return data


def spec(folder: Path, extra: str = "", **keys: str) -> str:
    content = SPEC + extra
    for key, value in keys.items():
        content = re.sub(rf"^{key}: .*$", f"{key}: {value}", content, flags=re.MULTILINE)
    (folder / "own.yaml").write_text(content)
    return str(folder / "own.yaml")


def page(out: Path) -> str:
    return (out / "private" / "preview.html").read_text()


def test_the_page_lies_in_private_unless_its_images_are_to_be_shared(one, tmp_path, capsys):
    """One folder, and the same settings again: what is shown is no other configuration, and the same again."""
    out = tmp_path / "run"
    shared, private = out / "preview.html", out / "private/preview.html"
    assert run(one, out) == 0
    assert f"wrote {private}\n" in capsys.readouterr().out
    assert private.stat().st_mode & 0o777 == 0o600
    first = private.read_text()
    assert run(one, out, "--share-images") == 0
    assert not private.exists()
    again = shared.read_text()
    assert "Look at every image before you pass this page on" in again
    assert [s.columns["View 2"][1] for s in sheets(first) if "Source" in s.columns] == [
        s.columns["View 2"][1] for s in sheets(again) if "Source" in s.columns
    ]
    assert re.findall('base64,[^"]*', first) == re.findall('base64,[^"]*', again)
    assert run(one, out, "--seed", "1") == 2
    assert run(one, tmp_path / "other", "--seed", "1") == 0
    sources, views = (
        [re.findall('base64,[^"]*', html)[i] for html in (first, page(tmp_path / "other"))] for i in (0, 3)
    )
    assert sources[0] == sources[1]
    assert views[0] != views[1]


def test_the_last_scan_of_the_folder_is_used(one, tmp_path, monkeypatch, capsys):
    key = ["--key-file", str(tmp_path / "key"), "--workers", "0"]
    assert main(["scan", "--data", str(one), "--out", str(tmp_path / "runs/scan"), *key]) == 0
    capsys.readouterr()

    def scanned_again(config: object, run: object) -> None:
        raise DataError("scanned again")

    monkeypatch.setattr("medclr.commands.preview.survey", scanned_again)
    assert run(one, tmp_path / "runs/preview") == 0
    assert f"scan: that of {tmp_path / 'runs/scan'}, 20" in capsys.readouterr().out
    for name in ("manifest.parquet", "skipped.csv", "keys.csv"):
        copies = [(tmp_path / "runs" / of / "private" / name).read_bytes() for of in ("scan", "preview")]
        assert copies[0] == copies[1]
    # One that was read otherwise, of another folder, or in another place is not.
    (tmp_path / "two").mkdir()
    for data, out, flags in (
        (one, "runs/tilt", ["--tilt", "skip"]),
        (tmp_path / "two", "runs/two", []),
        (one, "elsewhere/run", []),
    ):
        assert run(data, tmp_path / out, *flags) == 1
        assert capsys.readouterr().err == "medclr: scanned again\n"


def test_of_a_volume_longer_than_the_patch_the_source_is_the_centre(one, tmp_path):
    out = tmp_path / "run"
    assert run(one, out, "--spec", spec(tmp_path, "patch: [8, 8, 8]\nspacing_mm: [1, 1, 1]")) == 0
    array = np.arange(16 * 12 * 10, dtype=np.float64).reshape(16, 12, 10)
    low, high = np.percentile(array, (0.5, 99.5))
    grey = np.clip((array - low) / (high - low), 0, 1)[4:12, 2:10, 1:9]
    sheet = sheets(page(out))[0]
    for picture, expected in zip(sheet.pictures("Source"), slices(grey), strict=True):
        assert np.abs(picture - expected).max() < 0.6 / 255
    assert sheet.lines("Source")[0] == "27% of the volume"  # 512 of 1,920 voxels
    assert "each view is cut from anywhere in it" in page(out)
    assert "padding" not in " ".join(sheet.lines("Source"))


def test_of_a_volume_in_slices_the_middle_one_is_shown(tmp_path):
    """Coronal ones, none of them like the next."""
    array = np.random.default_rng(0).random((16, 12, 10))
    (tmp_path / "data").mkdir()
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / "data" / "a.nii.gz")
    own = spec(tmp_path, "slices: coronal\nslice_step_mm: 0\npatch: [16, 10]\nspacing_mm: [1, 1]", spatial_dims="2")
    assert run(tmp_path / "data", tmp_path / "run", "--spec", own) == 0
    sheet = sheets(page(tmp_path / "run"))[0]
    low, high = np.percentile(array, (0.5, 99.5))
    middle = np.clip((array[:, 6] - low) / (high - low), 0, 1)
    assert np.abs(sheet.pictures("Source")[0] - middle.T[::-1, ::-1]).max() < 0.6 / 255
    assert sheet.lines("Source")[0] == "the whole slice"
    assert "number 7 of 12 slices that are kept" in sheet.lines("Source")
    assert "<dd>coronal slices</dd>" in page(tmp_path / "run")


def test_of_a_volume_shorter_than_the_patch_the_padding_is_said(one, tmp_path):
    out = tmp_path / "run"
    assert run(one, out, "--spec", spec(tmp_path, "patch: [16, 12, 20]\nspacing_mm: [1, 1, 1]")) == 0
    assert sheets(page(out))[0].lines("Source")[-1] == "50% padding"
    assert "each view is cut from anywhere in it" not in page(out)


def test_a_volume_of_one_grey_value_is_told(one, tmp_path, capsys):
    assert run(one, tmp_path / "run", "--spec", spec(tmp_path, "clip: [5000, 6000]")) == 0
    assert re.search(r"warning: volume [0-9a-f]{16} has one grey value everywhere", capsys.readouterr().out)
    assert "One grey value everywhere" in sheets(page(tmp_path / "run"))[0].caption


def test_ct_is_told_in_hounsfield_units_and_a_shared_page_names_nobody(tmp_path):
    write_phantoms(tmp_path / "phantoms", patients=2, seed=1)
    for path in (tmp_path / "phantoms/dicom").iterdir():
        if "0001" in path.name or path.name == "broken":
            shutil.rmtree(path)
    own = spec(tmp_path, modality="[CT]", normalisation="window\nwindow: [-1000, 400]", preset="ct")
    assert run(tmp_path / "phantoms/dicom", tmp_path / "run", "--spec", own, "--share-images") == 0
    html = (tmp_path / "run/preview.html").read_text()
    assert "grey −1,000 to 400 HU" in html
    # The centre moves up by 5% of 1,400 HU, to -230; half of the width becomes exp(-0.2) of 700.
    assert "window moved up by 5% of its width, window narrowed to 81.9% (−803 to 343 HU)" in html
    assert "Acme" in html or "Borealis" in html
    assert "CANARY" not in html
    assert b"CANARY" in (tmp_path / "run/private/keys.csv").read_bytes()  # so the search can find it


def test_augmentations_can_be_left_out_and_crops_chosen(scans, tmp_path, capsys):
    """A step that one kind has and the other has not."""
    flags = ["--without", "rotation", "equalise", "blur", "--crop-scale", "0.64", "0.64", "--volumes", "3"]
    assert run(scans, tmp_path / "run", *flags) == 0
    found = sheets(page(tmp_path / "run"))
    assert [sheet.caption.partition(" in ")[0] for sheet in found if "Off" in sheet.columns] == [
        "Crop and zoom", "Bias field", "Gamma, contrast, brightness", "Gibbs ringing",
        "Crop and zoom", "Gamma, contrast, brightness", "Noise",
    ]  # fmt: skip
    assert augmentation(page(tmp_path / "run"), "Crop").lines("Weakest")[0] == "64% of the block"
    for sheet in (sheet for sheet in found if "Source" in sheet.columns):
        assert sheet.lines("View 1")[0] == "64% of the block"
        assert not [line for line in sheet.lines("View 2") if re.search("turned|equalised|blurred", line)]
    following = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert parse("pretrain", shlex.split(following[0])[3:]).without == ["rotation", "equalise", "blur"]
    assert parse("pretrain", shlex.split(following[0])[3:]).crop_scale == [0.64, 0.64]


def test_bad_input_is_one_clear_line(one, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = (one / "a.nii.gz").read_bytes()
    wrong = spec(tmp_path, modality="[CT]")
    (broken / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    for data, flags, code, said in (
        (tmp_path / "empty", (), 1, "no volume in it; the folder is empty"),
        (tmp_path / "none", (), 2, "no such folder"),
        (broken, (), 1, r"none of 1 volume that were chosen could be decoded \(TRUNCATED\)"),
        (broken, ("--strict",), 1, "--strict: 1 file cannot be used; the first is TRUNCATED"),
        (one, ("--spec", "ct"), 1, r"no volume fits the spec ct \(CT 3D\); .* has unknown modality 3D. Choose another"),
        (one, ("--spec", "chest"), 2, "--spec chest: no such file, nor a spec that ships"),
        (one, ("--volumes", "0"), 2, "--volumes 0: must be at least 1"),
        (one, ("--without", "sharpness"), 2, "--without sharpness: no preset has such a step; there are crop, "),
        (one, ("--crop-scale", "2", "3"), 2, "--crop-scale 2.0 3.0: must be two shares above 0"),
        (one, ("--spec", wrong), 2, "preset is mr, but modality is CT, whose preset is ct"),
    ):
        capsys.readouterr()
        out = tmp_path / f"run of {data.name} with {len(flags)}" / str(code)
        assert run(data, out, *flags) == code
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(said, line), line
        assert not list(out.rglob("preview.html"))
        assert out.exists() == (code == 1)  # wrong usage is found before anything is read


def test_what_is_run_next_is_a_command_for_each_kind(scans, one, tmp_path, capsys):
    assert run(one, tmp_path / "a") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert len(lines) == 1
    assert run(scans, tmp_path / "b", "--volumes", "1") == 0
    lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    configs = [parse("pretrain", shlex.split(line)[3:]) for line in lines]
    assert [str(config.spec) for config in configs] == ["None", "mr", "cxr"]
    assert len([s for s in sheets(page(tmp_path / "b")) if "Off" not in s.columns]) == 2
    record = json.loads((tmp_path / "b/run.json").read_text())
    assert {name: found["volumes"] for name, found in record["outcome"].items()} == {"mr": 3, "cxr": 2}
