import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medclr

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_the_package_with_configs_and_specs_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {"medclr/py.typed", "medclr/cli.py"}
    for folder, inside in (("configs", "medclr/configs"), ("data_specs", "medclr/data_specs"), ("medclr", "medclr")):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert files
        wanted |= {f"{inside}/{file.relative_to(ROOT / folder).as_posix()}" for file in files}
    assert held == wanted


def test_an_installed_wheel_finds_its_specs(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        import medclr
        from medclr.data.spec import load_spec
        assert Path(medclr.__file__).is_relative_to(sys.argv[1])
        print(load_spec(Path("ct")).modality)
    """
    run = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "CT" in done.stdout, done.stderr


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
        entries = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert f"\nVersion: {medclr.__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert "\nLicense-File: LICENSE\n" in text
    assert "medclr = medclr.cli:entry" in entries


def test_constraints_pin_what_the_project_asks_for() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    # A pin has no local version and no address: where packages come from is the user's choice.
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines)
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def test_configuration_and_errors_import_the_standard_library_alone() -> None:
    for name in ("config", "errors"):
        for node in ast.walk(ast.parse((ROOT / "medclr" / f"{name}.py").read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {found.split(".")[0] for found in names} <= {*sys.stdlib_module_names, "medclr"}


def test_the_changelog_opens_with_this_version() -> None:
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found
    assert found[1] == medclr.__version__


def test_every_public_name_is_there() -> None:
    assert set(medclr.__all__) <= set(dir(medclr))
    values = {name: getattr(medclr, name) for name in medclr.__all__}
    assert {name for name, value in values.items() if not callable(value)} == {"__version__"}


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'medclr' has no attribute 'scna'"):
        _ = medclr.scna  # type: ignore[attr-defined]
