"""The rules judge beside GREEN's own: both counts for the five pairs that GREEN publishes with completions.

    python -m benchmarks.published_green test_repro.py

`test_repro.py` is the file of that name in the folder `tests` of GREEN's repository (Stanford-AIMI/GREEN). It
is read, not run, and neither its reports nor its completions are printed: they are not ours to hand on.
"""

import argparse
import ast
from pathlib import Path

from benchmarks.measure import table
from mu2llm.evaluation import green
from mu2llm.evaluation.judges import RulesJudge

NAMES = ("refs", "hyps", "expected_green_score_list")


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("file", help="test_repro.py of GREEN's repository")
    print(side_by_side(*read(parser.parse_args().file)))


def read(path: str | Path) -> tuple[list[str], ...]:
    """References, candidates and completions: the lists that the file assigns to `NAMES`."""
    lists: dict[str, list[str]] = {}
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in NAMES and isinstance(node.value, ast.List):
                lists[name] = ast.literal_eval(node.value)
    missing = [name for name in NAMES if name not in lists]
    if missing:
        raise SystemExit(f"{path} has no list {' or '.join(missing)}: give GREEN's tests/test_repro.py")
    return tuple(lists[name] for name in NAMES)


def side_by_side(references: list[str], candidates: list[str], completions: list[str]) -> str:
    """A table: significant errors (a) to (f), matched findings and GREEN by both judges."""
    ours = RulesJudge().score(references, candidates)
    theirs = [green.parse(completion, "published") for completion in completions]
    rows = [
        (str(number), *_counts(published), *_counts(rules))
        for number, (published, rules) in enumerate(zip(theirs, ours, strict=True), 1)
    ]
    return table(rows, ("pair", "GREEN-RadLlama2-7B", "GREEN", "`rules`", "GREEN"))


def _counts(result: green.GreenResult) -> tuple[str, str]:
    if result.score is None:
        return f"not scored (`{result.status}`)", "–"
    return f"{' '.join(map(str, result.significant))}, matched {result.matched}", f"{result.score:.3g}"


if __name__ == "__main__":
    main()
