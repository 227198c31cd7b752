"""What becomes of every file that pydicom is tested with: a table of volumes and reasons.

python benchmarks/pydicom_files.py > docs/pydicom-files.md     # needs the package pydicom-data, of the dev extra
"""

from importlib.util import find_spec
from pathlib import Path

from medclr.data.discover import discover
from medclr.data.prepare import READERS
from medclr.errors import Unreadable

FOLDERS = {"pydicom": "data/test_files", "data_store": "data"}  # the latter is pydicom-data's module
OTHER = (".json", ".py", ".pyc", ".txt", ".md", ".dtd", ".xml")  # beside the images


def main() -> None:
    """Print a Markdown table of all files, and one of how many have each outcome."""
    rows: list[tuple[str, str, str]] = []
    for module, folder in FOLDERS.items():
        spec = find_spec(module)
        assert spec, f"{module} is not installed"
        assert spec.origin
        root = Path(spec.origin).parent / folder
        rows += [(module.replace("data_store", "pydicom-data"), *row) for row in outcomes(root)]
    print("# Every file that pydicom is tested with\n")
    print("Made by `python benchmarks/pydicom_files.py > docs/pydicom-files.md`; a test holds it to the readers.\n")
    kinds = [outcome.split(":")[0].split(" ")[0] for _, _, outcome in rows]
    print("| outcome | files |\n|---|---|")
    for kind in sorted(set(kinds), key=lambda kind: (kind.isupper(), -kinds.count(kind), kind)):
        print(f"| {kind} | {kinds.count(kind)} |")
    print("\n| package | file | outcome |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def outcomes(root: Path) -> list[tuple[str, str]]:
    """Each file below a folder, and its volume or its reason."""
    candidates, skipped = discover(root, workers=0)
    found: dict[str, str] = {}
    for candidate in candidates:
        try:
            volume = READERS[candidate.reader](root, candidate)
            size = "×".join(map(str, volume.array.shape[1:]))
            others = f" of {len(candidate.paths)} files" if len(candidate.paths) > 1 else ""
            outcome = f"volume {candidate.modality} {size}{others}"
        except Unreadable as error:
            outcome = f"{error.reason}: {error}"
        found |= dict.fromkeys(candidate.paths, outcome)
    for one in skipped:
        found.setdefault(one.item, f"{one.reason}: {one.message}")
    return sorted((path, outcome) for path, outcome in found.items() if not path.endswith(OTHER))


if __name__ == "__main__":
    main()
