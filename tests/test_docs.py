"""What the documents say must be finished."""

import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import medclr
from medclr.cli import COMMANDS, parse
from medclr.config import EfficiencyConfig, PretrainConfig
from medclr.data.layout import TableLayout
from medclr.data.spec import DataSpec, load_spec, spec_names
from medclr.errors import REASONS

ROOT = Path(__file__).parent.parent


def test_no_document_has_a_figure_still_to_come():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "configs").glob("*.yaml"))]
    assert len(pages) > 8
    assert not [page.name for page in pages if re.search(r"@[A-Z]+@|TODO|TBD", page.read_text())]


def test_every_link_of_the_readme_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_command_in_the_documents_is_one():
    """Each line of each sh block that calls medclr parses as the command line would."""
    lines = [
        line.partition(" #")[0]
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("medclr ")
    ]
    assert len(lines) > 12
    for line in lines:
        command, *flags = shlex.split(line)[1:]
        assert command in COMMANDS, line
        # A config named in a document is one that ships.
        parse(command, [str(ROOT / flag) if flag.startswith("configs/") else flag for flag in flags])


def test_the_python_of_the_readme_runs(monkeypatch, capsys):
    """With the two long calls stood in for: the journey's tests run them on phantoms."""
    asked = []

    class Curve:
        def verdict(self) -> str:
            return "the verdict"

    monkeypatch.setattr(medclr, "pretrain", lambda config: asked.append(config), raising=False)
    monkeypatch.setattr(medclr, "efficiency", lambda config: asked.append(config) or Curve(), raising=False)
    (block,) = blocks(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert [type(config) for config in asked] == [PretrainConfig, EfficiencyConfig]
    assert [asked[0].out] == asked[1].encoder
    assert capsys.readouterr().out == "the verdict\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_lines_of_a_document_fit(page):
    assert not [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]


def test_the_page_of_scan_has_each_reason_code_with_cause_and_cure():
    page = (ROOT / "docs/scan.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(code, reason.cause, reason.cure) for code, reason in REASONS.items()]


def spec_rows(names: list[str], columns: dict[str, Callable[[DataSpec], str]]) -> str:
    """The table of specs as docs/specs.md has it; what the YAML files say is the only source."""
    lines = [f"| spec | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name in names:
        spec = load_spec(Path(name))
        lines.append(
            f"| `{name}` | {' | '.join(cell(spec).replace('|', chr(92) + '|') for cell in columns.values())} |"
        )
    return "\n".join(lines)


def kinds(spec: DataSpec) -> str:
    return f"{spec.spatial_dims}D " + ", ".join(modality or "unknown" for modality in spec.modality)


def greys(spec: DataSpec) -> str:
    return f"window {spec.window[0]:g} to {spec.window[1]:g}" if spec.window else spec.normalisation


def labels(spec: DataSpec) -> str:
    if spec.table is None:
        return "none"
    meanings = [meaning for meaning in dict.fromkeys(spec.table.labels.values()) if meaning]
    if spec.table.column and len(meanings) == 2:
        meanings = meanings[1:]
    return ", ".join(meanings) if len(meanings) < 4 else f"{len(meanings)}, of which {meanings[0]}, {meanings[1]}"


def test_the_specs_in_the_documents_are_those_that_ship():
    page = (ROOT / "docs" / "specs.md").read_text()
    general, sets = spec_names()
    table = {
        "reads": kinds,
        "grey values": greys,
        "preset": lambda spec: spec.preset,
        "mirrored": lambda spec: "no" if spec.laterality else "yes",
    }
    for names, columns in (
        (general, {**table, "domains": lambda spec: ", ".join(spec.domains)}),
        (
            [name for name in sets if name != "phantom"],
            {
                "reads": kinds,
                "grey values": greys,
                "key": lambda spec: f"{spec.table.key} ({spec.table.by})" if spec.table else "none",
                "labels": lambda spec: labels(spec) or "any other column",
                "licence": lambda spec: spec.licence,
            },
        ),
    ):
        expected = spec_rows(names, columns)
        assert expected in page, f"docs/specs.md must have this table:\n{expected}"


def test_the_keys_of_a_spec_are_all_explained():
    page = (ROOT / "docs" / "specs.md").read_text()
    explained = {key for line in page.splitlines() if line.startswith("| `") for key in re.findall(r"`(\w+)`", line)}
    assert {field.name for field in (*fields(DataSpec), *fields(TableLayout))} | {"members"} <= explained
