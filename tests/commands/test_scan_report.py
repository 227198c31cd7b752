"""`medclr scan --report`, through the command line."""

import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medclr.cli import main, parse
from medclr.data.phantoms import write_phantoms


@pytest.fixture
def scans(tmp_path):
    """Two NIfTI volumes, of which the second is damaged where only decoding finds it."""
    data = tmp_path / "scans"
    data.mkdir()
    for name in "ab":
        image = nib.Nifti1Image(np.random.default_rng(0).random((12, 12, 12), dtype=np.float32), np.eye(4))
        nib.save(image, data / f"{name}.nii.gz")
    whole = (data / "b.nii.gz").read_bytes()
    (data / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    return data


def scan(data, out, *flags) -> int:
    key = str(out.parent / "key")
    return main(["scan", "--data", str(data), "--out", str(out), "--key-file", key, "--workers", "0", *flags])


def test_the_page_lies_in_private_unless_its_images_are_to_be_shared(scans, tmp_path, capsys):
    """One folder, scanned again and again: what is shown is no other configuration."""
    out = tmp_path / "run"
    shared, private = out / "scan.html", out / "private/scan.html"
    for flags, page, other in (
        ((), None, shared),
        (("--report",), private, shared),
        (("--report", "--share-images"), shared, private),
        (("--report",), private, shared),
    ):
        capsys.readouterr()
        assert scan(scans, out, *flags) == 0
        said = capsys.readouterr().out
        assert not other.exists()
        assert private.exists() == (page == private)
        assert (f"wrote {page}\n" in said) == bool(page)
    assert private.stat().st_mode & 0o777 == 0o600


def test_the_page_says_what_scan_json_says_and_names_nobody(tmp_path):
    write_phantoms(tmp_path / "phantoms", patients=6, seed=1)
    scans = tmp_path / "phantoms/dicom"
    out = tmp_path / "run"
    assert scan(scans, out, "--report", "--share-images") == 0
    html = (out / "scan.html").read_text()
    counts = json.loads((out / "scan.json").read_text())
    files = counts["files"]
    assert f"{files['used']:,} used + {files['skipped']:,} skipped" in html
    for reason, found in counts["skipped"].items():
        n = found["files"]
        assert re.search(rf"<code>{reason}</code></td>.*?<td class=\"n\">{n}</td>", html, re.DOTALL)
    assert html.count("data:image/png;base64,") == min(60, counts["volumes"])
    assert "CANARY" not in html
    assert b"CANARY" in (out / "private/keys.csv").read_bytes()  # so the search can find it
    assert str(scans) not in html
    (line,) = re.findall(r"medclr scan [^<]*", html)
    assert parse("scan", shlex.split(line)[2:]).share_images


def test_what_cannot_be_decoded_does_not_end_the_report(scans, tmp_path):
    assert scan(scans, tmp_path / "run", "--report") == 0
    html = (tmp_path / "run/private/scan.html").read_text()
    assert html.count("data:image/png;base64,") == 1
    assert "<code>TRUNCATED</code>" in html


def test_a_modality_that_no_spec_is_for_has_a_page(tmp_path):
    """As the phantoms are, but of a modality that nothing ships for."""
    write_phantoms(tmp_path / "phantoms", patients=2, seed=1)
    for path in (tmp_path / "phantoms/dicom").rglob("*.dcm"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\x08\x00\x60\x00CS\x02\x00CT", b"\x08\x00\x60\x00CS\x02\x00OT"))
    assert scan(tmp_path / "phantoms/dicom", tmp_path / "run", "--report") == 0
    html = (tmp_path / "run/private/scan.html").read_text()
    assert "OT 3D" in html
    assert "No spec that ships is for these modalities" in html


@pytest.mark.parametrize("command", ["prepare", "pretrain"])
def test_the_flags_are_those_of_scan_alone(command, capsys):
    assert main([command, "--data", "x", "--report"]) == 2
    assert "--report" in capsys.readouterr().err


def test_images_cannot_be_shared_without_a_page(capsys):
    assert main(["scan", "--data", "x", "--share-images"]) == 2
    assert "--report" in capsys.readouterr().err


def test_the_config_that_a_run_keeps_does_not_bind_what_is_shown(scans, tmp_path):
    out = tmp_path / "run"
    assert scan(scans, out, "--report") == 0
    assert scan(scans, out, "--tilt", "skip") == 2
    assert Path(out, "private/scan.html").exists()
