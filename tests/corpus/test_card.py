"""The corpus card: one page that stands alone, escapes what it shows, and is drawn by a browser."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mu2llm.corpus.build import build_corpus
from mu2llm.corpus.card import write_card
from mu2llm.data.records import write_jsonl
from tests.corpus.corpus_server import CorpusServer
from tests.corpus.made_studies import REAL_STYLE, study

EVIL = 'There is a 5 mm nodule in the <script>alert("x")</script> left lung & <img src="http://x/y.png">.'


class Page(HTMLParser):
    """What the page shows, its tags, what is marked, and whatever it would load from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.words, self.tags, self.marked, self.links, self._inside = "", set(), [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._inside = [*self._inside, tag] if tag not in ("meta", "br", "img") else self._inside
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag in self._inside:
            del self._inside[-self._inside[::-1].index(tag) - 1 :]

    def handle_data(self, data):
        if "style" not in self._inside:
            self.words += " ".join(data.split()) + " "
        if "mark" in self._inside:
            self.marked.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a corpus by a model that leaves one question out, and its summary."""
    folder = tmp_path_factory.mktemp("card")
    every = [*(study(f"r{n}", text) for n, text in enumerate(REAL_STYLE)), study("<b>evil</b>", EVIL)]
    write_jsonl(folder / "studies.jsonl", every)
    with CorpusServer(every) as server:
        honest = server.model.reply

        def reply(stage, user):
            said = honest(stage, user)
            return {"questions": said["questions"][:-1]} if stage == "questions" else said

        server.model.reply = reply
        summary = build_corpus(folder / "studies.jsonl", folder / "out", llm=server.url, model="m")
    return folder / "out", summary


def test_it_says_what_corpus_json_says(made):
    folder, summary = made
    assert summary == json.loads((folder / "corpus.json").read_text())
    answers = sum(1 for _ in (folder / "responses.jsonl").open())
    tokens = {"answers": answers, "prompt_tokens": 10 * answers, "completion_tokens": 5 * answers}
    assert summary["tokens"] == tokens and answers > 20
    assert sum(one["covered"] for one in summary["coverage"].values()) < sum(
        one["asked"] for one in summary["coverage"].values()
    )
    assert summary["gaps"] == len(summary["first_gaps"]) > 0
    words = Page((folder / "corpus.html").read_text()).words
    for number in (summary["samples"], summary["stages"]["refine"], tokens["completion_tokens"]):
        assert f" {number:,} " in words
    for gap in summary["first_gaps"]:
        assert f"{gap['study_id']} {gap['entity']} {gap['aspect']}" in words
    assert "The nodule" in words or "nodule" in words


def test_it_stands_alone_and_escapes_everything(made):
    html = (made[0] / "corpus.html").read_text()
    page = Page(html)
    assert not page.links and not page.tags & {"script", "img", "link", "iframe", "b", "object"}
    assert "url(" not in html and "@import" not in html


def test_cited_sentences_are_marked(made):
    folder, _ = made
    page = Page((folder / "corpus.html").read_text())
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    shown = sorted((s for s in samples if s["task"] == "vqa"), key=lambda s: s["sample_id"])[:3]
    for sample in shown:
        assert sample["question"] in page.words
        assert {item["text"] for item in sample["evidence"]} <= set(page.marked)


def test_a_corpus_of_nothing_has_a_card(tmp_path):
    write_jsonl(tmp_path / "studies.jsonl", [study("a", ""), study("b", "两肺清晰。")])
    summary = build_corpus(tmp_path / "studies.jsonl", tmp_path / "out")
    assert summary["samples"] == 0 and summary["drops"] == 2
    assert "language" in Page((tmp_path / "out" / "corpus.html").read_text()).words


def test_a_browser_draws_it(made, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to draw the card with")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'}"
    evil = {"vqa": [_sample(EVIL)]}
    write_card(tmp_path / "card.html", made[1], evil)
    command = [browser, *flags.split(), "--dump-dom", (tmp_path / "card.html").as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = Page(drawn.stdout)
    assert "script" not in page.tags and not page.links
    assert EVIL in page.words and EVIL in page.marked
    assert f"{made[1]['samples']:,} training samples" in page.words


def _sample(text):
    return {
        "sample_id": "x",
        "study_id": "s",
        "question": "<i>What?</i>",
        "answer": text,
        "thinking": "",
        "evidence": [{"id": "S1", "text": text}],
        "citations": [{"part": "answer", "sentence": text, "ids": ["S1"]}],
    }
