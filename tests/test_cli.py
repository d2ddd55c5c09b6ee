"""The command as users meet it: help, one-line errors, exit statuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from mu2llm import NOTICE, __version__
from mu2llm.cli import main, parser


def run(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    try:
        status = main(list(words))
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def one_line(err: str) -> str:
    assert err.startswith("mu2: error: ") and err.count("\n") == 1, err
    return err


def test_help_names_every_verb_and_the_notice(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0 and NOTICE in out
    verbs = "demo pipeline data corpus new-model train preferences evaluate compare green convert"
    for verb in (verbs + " register registry export serve report").split():
        assert verb in out


def test_every_verb_has_help(capsys: pytest.CaptureFixture) -> None:
    def verbs(at: object, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = [path] if path else []
        for action in at._actions:  # type: ignore[attr-defined]
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for name, below in action.choices.items():
                    found += verbs(below, (*path, name))
        return found

    for words in verbs(parser(), ()):
        status, out, _ = run(capsys, *words, "--help")
        assert status == 0 and out.startswith(f"usage: mu2 {' '.join(words)}")


def test_the_installed_command_answers() -> None:
    mu2 = Path(sys.executable).parent / "mu2"
    done = subprocess.run([mu2, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"mu2llm {__version__}"


def test_a_wrong_word_is_one_line(capsys: pytest.CaptureFixture) -> None:
    status, _, err = run(capsys, "trian")
    assert status == 2 and "trian" in one_line(err) and "--help" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("data", "ingest", "nowhere", "--out", "{tmp}/out"), "nowhere"),
        (("report", "nowhere.nii.gz"), "nowhere.nii.gz"),
        (("green", "nowhere.txt", "nowhere.txt"), "nowhere.txt: No such file"),
        (("compare", "{tmp}/a", "{tmp}/b"), "{tmp}/a"),
        (("registry", "list", "--tracking-uri", "sqlite:///{tmp}/no.db"), "no.db"),
        (("registry", "promote", "1", "--tracking-uri", "ftp://x"), "ftp://x"),
        (("train", "sft", "--config", "{tmp}/no.yaml"), "no.yaml"),
        (("train", "sft", "--preset", "tniy"), "tniy"),
        (("train", "sft", "learning_rat=1"), "learning_rat"),
        (("train", "sft", "--nproc", "2", "learning_rat=1"), "learning_rat"),
        (("train", "sft", "out=x", "--nproc", "2", "learning_rat=1"), "learning_rat"),
        (("train", "sft", "--porc", "2"), "--porc"),
        (("green", "a", "b", "c=d"), "c=d"),
        (("evaluate", "{tmp}/model", "{tmp}/studies.jsonl", "--out", "{tmp}/out"), "studies.jsonl"),
        (("evaluate", "a", "b", "--model", "c", "--out", "{tmp}/out"), "MODEL once"),
        (("convert", "{tmp}/model", "{tmp}/ours"), "config.json"),
        (("export", "triton", "--tracking-uri", "sqlite:///{tmp}/no.db"), "no.db"),
        (("serve", "--state", "{tmp}/serving"), "{tmp}/serving/repository"),
        (("pipeline", "compile", "--out", "{tmp}/pipeline.json"), "pipeline.json must end in .yaml"),
        (("pipeline", "compile", "--out", "{tmp}/p.yaml", "--cluster", "{tmp}/no.yaml"), "no.yaml"),
        (("demo", "--preset", "dmeo"), "dmeo"),
        (("demo", "--data", "{tmp}/nowhere", "--out", "{tmp}/out"), "nowhere"),
        (("demo", "--data", "{tmp}", "--out", "{tmp}/out"), "reports.csv"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture, tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    status, _, err = run(capsys, *(word.format(tmp=tmp_path) for word in words))
    assert status == 2
    assert named.format(tmp=tmp_path) in one_line(err)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for place in ([], ["--debug"]):
        command = [sys.executable, "-m", "mu2llm.cli", "green", "nowhere.txt", "nowhere.txt", *place]
        done = subprocess.run(command, capture_output=True, text=True)
        assert ("Traceback" in done.stderr) == bool(place)


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m mu2llm.cli pipeline compile --help | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_green_of_two_files(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "reference.txt").write_text("There is a small left pleural effusion. The heart is enlarged.")
    (tmp_path / "candidate.txt").write_text("There is a small left pleural effusion. The heart is enlarged.")
    status, out, _ = run(capsys, "green", f"{tmp_path}/reference.txt", f"{tmp_path}/candidate.txt")
    assert status == 0 and out.endswith("GREEN 1.000\n")


def test_a_server_that_does_not_run(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert run(capsys, "serve", "--stop", "--state", str(tmp_path))[0] == 0
    status, out, _ = run(capsys, "serve", "--status", "--state", str(tmp_path))
    assert status == 1 and "no server" in out
