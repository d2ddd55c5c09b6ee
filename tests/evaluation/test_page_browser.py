"""The page in a real browser: headless Chromium lays it out, with a handful of studies and with a thousand.

The screenshots stay in `artifacts/`, for people to look at.
"""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mu2llm.evaluation.judges import RulesJudge
from mu2llm.evaluation.page import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=1280,5000"),
)
ARTIFACTS = Path(__file__).parents[2] / "artifacts"
MEGABYTE = 1_000_000

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install)")


def browse(page: Path, profile: Path, *flags: str) -> str:
    """What Chromium prints when it has loaded the page. It ends by itself, or is ended after two minutes."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def measured(page: Path, folder: Path) -> dict[str, int]:
    """What the browser says of a copy of the page to which a script is added, since the page has none."""
    script = """<script>addEventListener("load", () => {
      const all = (what) => [...document.querySelectorAll(what)];
      const facts = {
        wide: document.documentElement.scrollWidth - innerWidth,
        high: document.documentElement.scrollHeight,
        images: all("img").filter((i) => i.complete && i.naturalWidth > 300).length,
        marks: all("mark").filter((m) => getComputedStyle(m).backgroundColor !== "rgba(0, 0, 0, 0)").length,
        closed: all("details:not([open])").length,
        loaded: performance.getEntriesByType("resource").filter((r) => !r.name.startsWith("data:")).length,
      };
      document.body.setAttribute("data-facts", Object.entries(facts).join(" "));
    });</script></body>"""
    copy = folder / "measured.html"
    copy.write_text(page.read_text().replace("</body>", script))
    dom = browse(copy, folder / "profile", "--dump-dom")
    found = re.search(r'data-facts="([^"]*)"', dom)
    assert found, dom[-500:]
    return {name: int(value) for name, value in (fact.split(",") for fact in found.group(1).split())}


@needs_chromium
def test_a_browser_shows_the_whole_page(evaluated, tmp_path):
    _, folder = evaluated
    facts = measured(folder / "report.html", tmp_path)
    assert facts["wide"] <= 0  # nothing to scroll sideways
    assert facts["images"] == 6
    assert facts["marks"] >= 7  # the legend's at least
    assert facts["loaded"] == 0
    ARTIFACTS.mkdir(exist_ok=True)
    picture = ARTIFACTS / "report.png"
    picture.unlink(missing_ok=True)
    browse(folder / "report.html", tmp_path / "profile", f"--screenshot={picture}")
    from PIL import Image

    shown = Image.open(picture).convert("RGB")
    assert shown.size == (1280, 5000)
    assert len(set(shown.resize((128, 500)).get_flattened_data())) > 100  # neither blank nor broken


@pytest.fixture(scope="module")
def thousand(evaluated, model, studies, tmp_path_factory):
    """The page of a thousand studies whose reports are as long as real ones."""
    result, _ = evaluated
    many = []
    for number in range(1000):
        study = studies[number % len(studies)]
        other = studies[(number + 1) % len(studies)].report.findings
        report = replace(study.report, findings=f"{study.report.findings} {other} {study.report.findings}")
        many.append(replace(study, study_id=f"case-{number:04}", report=report))
    drafts = [many[(number * 7 + 1) % 1000].report.text for number in range(1000)]
    judgements = RulesJudge().score([study.report.text for study in many], drafts)
    path = tmp_path_factory.mktemp("thousand") / "report.html"
    counted = {**result, "studies": 1000}
    write_page(path, counted, many, drafts, judgements, model=model, cases=3)
    return path


def test_a_thousand_studies_make_a_page_of_a_few_megabytes(thousand):
    html = thousand.read_text()
    assert len(html.encode()) < 8 * MEGABYTE
    assert all(f"case-{number:04}" in html for number in range(1000))


@needs_chromium
def test_a_thousand_studies_are_folded_away(thousand, tmp_path):
    facts = measured(thousand, tmp_path)
    assert facts["closed"] > 997  # each study and its band
    assert facts["high"] < 8000  # a few screens, not a thousand
    assert facts["wide"] <= 0
