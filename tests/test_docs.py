"""What the documents say must be finished."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_no_document_has_a_figure_still_to_come():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "configs").glob("*.yaml"))]
    assert len(pages) > 8
    assert not [page.name for page in pages if re.search(r"@[A-Z]+@|TODO|TBD", page.read_text())]


def test_every_link_of_the_readme_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
