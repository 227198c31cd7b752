import base64
import io
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medclr.data.candidate import Candidate, Skipped
from medclr.data.identity import Pseudonymiser
from medclr.data.manifest import build_manifest
from medclr.data.spec import choose_spec
from medclr.errors import REASONS, Reason, Unreadable
from medclr.reporting.scan_page import scan_page

PICTURE = np.arange(12, dtype=np.uint8).reshape(3, 4)
FILES = {"all": 12, "used": 10, "skipped": 2}


def candidate(**changes: Any) -> Candidate:
    plain: dict[str, Any] = {
        "reader": "dicom", "paths": ("CANARY/path.dcm",), "member": 0, "patient_id": "CANARY-1",
        "patient_known": True, "study_uid": "1.2.CANARY", "series_uid": "1.2.3.CANARY", "site": "CANARY CLINIC",
        "modality": "CT", "manufacturer": "ACME", "model": "One", "kernel": "B30f", "field_strength": float("nan"),
        "shape": (512, 512, 30), "spacing_mm": (0.7, 0.7, 2.5), "orientation": "LPS",
    }  # fmt: skip
    return Candidate(**plain | changes)


def table(*candidates: Candidate) -> pd.DataFrame:
    return build_manifest(list(candidates), Pseudonymiser(b"k" * 32))[0]


def page(manifest: pd.DataFrame, skipped: Any = (), files: Any = FILES, pictures: Any = None, **changes: Any) -> str:
    sample = manifest[: 60 if pictures is None else len(pictures)]
    pictures = [PICTURE] * len(sample) if pictures is None else pictures
    context = {
        "command_line": "medclr scan --data DATA", "versions": {"medclr": "0.1"}, "hardware": {"cores": 2},
        "shared": False, "burned_in": False,
    }  # fmt: skip
    spec = choose_spec(manifest)
    spec = changes.pop("spec", spec.filled(manifest[spec.accepts(manifest)]))
    return scan_page(manifest, list(skipped), files, sample, pictures, spec, context | changes)


def counts(html: str) -> dict[str, dict[str, int]]:
    """Each table of counts by its caption."""
    found = {}
    for caption, body in re.findall(r"<caption>(.*?)</caption>(.*?)</table>", html, re.DOTALL):
        rows = re.findall(r'<th scope="row"[^>]*>(.*?)</th>.*?<td class="n">([\d,]+)</td>', body)
        found[unescape(caption)] = {unescape(label): int(n.replace(",", "")) for label, n in rows}
    return found


def text(html: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


class Tags(HTMLParser):
    """Every tag with its attributes; asserts that each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_volumes_are_counted_by_what_the_headers_say() -> None:
    mr = {"modality": "MR", "manufacturer": "Other", "kernel": "", "field_strength": 1.5, "orientation": "PSR"}
    plane = {"modality": "DX", "shape": (28, 28), "spacing_mm": (float("nan"),) * 2, "orientation": "LI", "site": ""}
    html = page(table(candidate(), candidate(), candidate(**mr), candidate(**plane)))
    found = counts(html)
    assert found["Modality"] == {"CT 3D": 2, "MR 3D": 1, "DX 2D": 1}
    assert found["Manufacturer"] == {"ACME": 3, "Other": 1}
    assert found["Kernel"] == {"B30f": 3, "unknown": 1}
    assert found["Field strength"] == {"unknown": 3, "1.5 T": 1}
    assert found["Site"] == {"site A": 3, "unknown": 1}
    assert found["Shape"] == {"512 × 512 × 30": 3, "28 × 28": 1}
    assert found["Spacing, mm"] == {"0.7 × 0.7 × 2.5": 3, "unknown": 1}
    assert found["Orientation of the file"] == {"LPS": 2, "PSR": 1, "LI": 1}
    # Of the sagittal MR, slices are counted from left to right.
    assert found["Slices"] == {"20 to 49": 2, "50 to 99": 0, "100 to 199": 0, "200 to 499": 0, "500 or more": 1}
    assert found["Distance of slices, mm"] == {
        "0.5 to 0.75": 1, "0.75 to 1": 0, "1 to 1.5": 0, "1.5 to 2": 0, "2 to 3": 2
    }  # fmt: skip
    assert found["Pixel spacing, mm"]["unknown"] == 1
    assert "4 volumes in 10 files. 2 files were skipped" in text(html)


def test_bins_are_those_of_numpy() -> None:
    sides = [*np.random.default_rng(0).integers(3, 3000, 200).tolist(), 32, 64, 2048]
    manifest = table(*(candidate(modality="DX", shape=(n, 3), spacing_mm=(1, 1), orientation="LI") for n in sides))
    expected, _ = np.histogram(sides, [3, 32, 64, 128, 256, 512, 1024, 2048, 10**9])
    found = counts(page(manifest, pictures=[]))["Longer side of the slice, pixels"]
    assert list(found.values()) == expected.tolist()
    assert list(found)[0::7] == ["3 to 31", "2048 or more"]


def test_patients_studies_and_series() -> None:
    unknown = {"patient_known": False, "reader": "nifti", "study_uid": "z", "series_uid": "z"}
    manifest = table(
        candidate(), candidate(series_uid="b"), candidate(patient_id="2", study_uid="c"),
        candidate(patient_id="f", **unknown), candidate(patient_id="g", **unknown),
    )  # fmt: skip
    shown = text(page(manifest))
    assert "Patients known 2 2 volumes name no patient" in shown
    assert "Studies 2 2 series" in shown
    assert "no volume names its patient" in text(page(manifest[3:]))
    assert "every volume names its patient" in text(page(manifest[:3]))


def test_what_is_beyond_twenty_rows_is_summed() -> None:
    manifest = table(*(candidate(model=f"m{n:02}") for n in range(25) for _ in range(26 - n)))
    html = page(manifest)
    models = counts(html)["Model"]
    assert len(models) == 21
    assert models["m00"] == 26
    assert models["5 others"] == 6 + 5 + 4 + 3 + 2
    assert sum(models.values()) == len(manifest)
    (bars,) = re.findall(r"<caption>Model</caption>(.*?)</table>", html, re.DOTALL)
    widths = [float(width) for width in re.findall(r'style="width: ([\d.]+)%', bars)]
    assert widths == pytest.approx([100 * (26 - n) / 26 for n in range(20)], abs=0.05)  # the others have none
    rows = re.findall(r"<td>m(\d\d)</td><td>B30f</td><td class=\"n\">(\d+)</td>", html)
    assert len(rows) == 20
    assert re.search(r'<td colspan="4">5 others</td><td class="n">20</td>', html)


def test_the_page_of_a_large_archive_is_no_longer() -> None:
    def archive(n: int) -> tuple[pd.DataFrame, list[Skipped]]:
        rows = [
            candidate(model=f"m{i:05}", kernel=f"k{i:05}", shape=(9 + i, 9, 9), notes=("a" * (1 + i % 90),))
            for i in range(n)
        ]
        return table(*rows), [Skipped(f"{i}", "DECODE", f"no. {i} of {'b' * (1 + i % 90)}") for i in range(n)]

    small, large = (len(page(*archive(n))) for n in (100, 2000))
    assert large < 1.05 * small


def test_skipped_files_are_listed_by_reason_with_cause_cure_and_messages() -> None:
    skipped = [
        *(Skipped(f"CANARY{n}.dcm", "TRUNCATED", f"{n} of 512 bytes of pixels") for n in range(3)),
        Skipped("CANARY.gz", "TRUNCATED", "the gzip stream is damaged"),
        Skipped("CANARY.npz", "NOT_FINITE", "a single value everywhere", 7),
    ]
    html = page(table(candidate()), skipped, {"all": 5, "used": 1, "skipped": 4})
    shown = text(html)
    assert "5 files = 1 used + 4 skipped. Of used files, 1 part was skipped." in shown
    assert "… of 512 bytes of pixels 3×" in shown
    assert "the gzip stream is damaged" in shown
    assert "To do: copy it again from the archive" in shown
    rows = re.findall(
        r"<code>([A-Z_]+)</code></td>.*?<td class=\"n\">(\d+)</td><td class=\"n parts\">(\d*)", html, re.S
    )
    assert rows == [("TRUNCATED", "4", ""), ("NOT_FINITE", "0", "1")]
    assert "private/skipped.csv" in shown
    assert "Nothing: every one of 1 file is used" in text(
        page(table(candidate()), [], {"all": 1, "used": 1, "skipped": 0})
    )


def test_notes_are_counted_and_said_once_where_all_have_them() -> None:
    both = "columns taken as running to the left"
    tilted = "sheared upright: the gantry was tilted by 18.5 degrees"
    html = page(table(candidate(notes=(both,)), candidate(notes=(both, tilted))))
    assert re.findall(r'<td class="text">(.*?)</td><td class="n">(\d+)</td>', html) == [(both, "2"), (tilted, "1")]
    assert f"All of them: {both}." in text(html)
    assert re.findall(r'<span class="note">(.*?)</span>', html) == [tilted]


def test_pictures_are_png_with_the_pixels_that_were_given() -> None:
    failed = Unreadable("DECODE", "a decoder is missing")
    manifest = table(candidate(), candidate(manufacturer="Other"), candidate())
    html = page(manifest, pictures=[PICTURE, failed, PICTURE.T])
    sources = [a["src"] for tag, a in Tags(html).tags if tag == "img"]
    decoded = [np.array(Image.open(io.BytesIO(base64.b64decode(str(s).partition(",")[2])))) for s in sources]
    assert np.array_equal(decoded[0], PICTURE)
    assert np.array_equal(decoded[1], PICTURE.T)
    assert re.findall(r'width="(\d+)" height="(\d+)"', html) == [("120", "90"), ("90", "120")]
    assert "DECODE a decoder is missing" in text(html)
    headings = [text(heading) for heading in re.findall(r"<h3>(.*?)</h3>", html)]
    assert headings == ["CT 3D · ACME 2 of 2 volumes ", "CT 3D · Other 1 of 1 volume "]


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def test_text_of_headers_is_escaped_cut_and_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REASONS, "DECODE", Reason(EVIL, f"`{EVIL}`"))
    evil = dict.fromkeys(("modality", "manufacturer", "model", "kernel"), EVIL[:60])
    odd = candidate(modality="CT", manufacturer="a\nb\u202ec", model="x" * 500)
    skipped = [Skipped("a", "DECODE", EVIL)]
    html = page(table(candidate(**evil, notes=(EVIL,)), odd), skipped, pictures=[Unreadable("DECODE", EVIL)])
    assert EVIL in text(html)
    assert not [tag for tag, _ in Tags(html).tags if tag in ("script", "img")]
    assert counts(html)["Manufacturer"]["a?b?c"] == 1
    assert "x" * 63 + "…" in html
    assert "x" * 64 not in html


def test_only_what_is_allowed_is_shown() -> None:
    manifest = table(candidate(), candidate(patient_id="CANARY-2"))
    skipped = [Skipped("CANARY/x.dcm", "DECODE", "cannot")]
    for shared in (False, True):
        html = page(manifest, skipped, shared=shared)
        assert "CANARY" not in html
        for column in ("volume_id", "patient_key", "study_key", "series_key"):
            assert not [key for key in manifest[column] if key in html]
        assert ("Look at every image before you pass this page on" in html) == shared
        assert ("so lies in <code>private/" in html) != shared
    assert "burned-in text were kept" in page(manifest, shared=True, burned_in=True)


def test_what_prepare_would_choose() -> None:
    rows = [candidate(shape=(512, 512, 100)) for _ in range(3)] + [candidate(modality="MR", kernel="")]
    shown = text(page(table(*rows)))
    spec = choose_spec(table(*rows)).filled(table(*rows[:3]))
    assert "chooses ct , which takes 3 of 4 volumes and leaves the others out" in shown
    assert spec.patch is not None
    assert f"Patch {' × '.join(map(str, spec.patch))} " in shown
    assert "Spacing, mm 5.6 × 5.6 × 3.91 " in shown
    assert "window -1000 to 1000" in shown
    assert "No spec that ships is for these modalities" in text(page(table(*rows), spec=None))


@pytest.mark.parametrize("shared", [False, True])
def test_it_loads_nothing_and_fits_dark_phones_and_paper(shared: bool) -> None:
    manifest = table(candidate(), candidate(manufacturer="Other"))
    html = page(manifest, [Skipped("a", "DECODE", "x")], shared=shared)
    tags = Tags(html).tags
    policy = [a["content"] for tag, a in tags if tag == "meta" and a.get("http-equiv")]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "form"}
    assert all(str(a["src"]).startswith("data:image/png;base64,") for _, a in tags if "src" in a)
    targets = {a["id"] for _, a in tags if "id" in a}
    assert {str(a["href"]).removeprefix("#") for _, a in tags if "href" in a} <= targets
    assert "url(" not in html
    assert "@import" not in html
    assert html == page(manifest, [Skipped("a", "DECODE", "x")], shared=shared)
    for rule in ("screen and (prefers-color-scheme: dark)", "screen and (max-width: 600px)", "media print", "viewport"):
        assert rule in html
    for name in re.findall(r"var\((--[a-z-]+)\)", html):
        assert f"{name}:" in html
