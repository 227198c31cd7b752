import re
import shutil
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from medclr.cli import main
from medclr.commands import doctor as module
from medclr.commands.doctor import doctor
from medclr.config import DoctorConfig
from medclr.data.dicom import codecs
from medclr.errors import MedclrError


def test_a_sound_machine_has_no_fault_and_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor(DoctorConfig(out=tmp_path / "runs"))
    assert {check.status for check in checks} <= {"ok", "warn"}
    assert {"medclr", "torch", "JPEG lossless", "processor", "memory", "GPU", "free disk for --out"} <= {
        check.name for check in checks
    }
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks)
    assert all(re.match(r"(ok  |warn)  \S.*: \S", line) for line in lines)
    assert not list(tmp_path.iterdir())


def test_every_syntax_that_medclr_promises_has_a_decoder() -> None:
    assert {check.status for check in module._decoders()} == {"ok"}


def test_a_missing_decoder_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = types.SimpleNamespace(available_plugins=())
    monkeypatch.setattr(codecs, "_has", lambda module: False)
    monkeypatch.setattr(codecs, "get_decoder", lambda uid: nothing)
    checks = {check.name: check for check in module._decoders()}
    assert {check.status for check in checks.values()} == {"warn"}
    assert all("DECODE" in check.found for check in checks.values())
    assert checks["JPEG extended, 12 bits"].fix == 'pip install "medclr[codecs]"'
    assert "pylibjpeg-rle" in checks["RLE"].fix


def test_without_the_extra_only_jpeg_of_twelve_bits_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_has", lambda package: package not in ("imagecodecs", "libjpeg"))
    assert [check.name for check in module._decoders() if check.status != "ok"] == ["JPEG extended, 12 bits"]


@pytest.mark.parametrize(
    ("requirement", "found"),
    [("numpy>=999", r"[\d.]+, but >=999 is needed"), ("no-such-package>=1", "missing")],
)
def test_a_package_that_is_old_or_missing_fails_with_the_command_that_mends_it(requirement: str, found: str) -> None:
    (check,) = module._version(Requirement(requirement))
    assert check.status == "fail"
    assert re.fullmatch(found, check.found)
    assert check.fix == f'pip install "{requirement}"'


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "runs"
    with pytest.raises(MedclrError, match=r"^doctor: writing to --out failed; the remedy stands beside it$"):
        doctor(DoctorConfig(out=out))
    assert "fail  writing to --out: not a directory; choose another --out" in capsys.readouterr().out
    assert main(["doctor", "--out", str(out)]) == 1


def test_a_key_folder_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".config").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MedclrError, match="writing the key failed"):
        doctor(DoctorConfig(out=tmp_path))


@pytest.mark.parametrize(("gib", "status"), [(0.5, "fail"), (5, "warn"), (500, "ok")])
def test_free_disk(gib: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=gib * 2**30))
    check = module._disk(tmp_path / "not" / "there" / "yet")
    assert (check.status, check.found) == (status, f"{gib:.1f} GiB")


def test_on_a_terminal_it_is_a_table_that_shows_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    module._print([module.Check("a name", "fail", "missing", 'pip install "a[b]"')])
    out = capsys.readouterr().out
    assert re.sub(r"\x1b\[\d+m", "", out).split("\n")[0].split() == [
        "fail",
        "a",
        "name",
        "missing",
        "pip",
        "install",
        '"a[b]"',
    ]
    assert "\x1b[31mfail" in out
