"""What a run measured: summary.json, the table at its end, and the commands for what comes next."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from mu2llm import NOTICE, __version__
from mu2llm.pipelines.local import Places


def summarise(
    outputs: dict[str, Any], steps: dict[str, Any], places: Places, seconds: float, gigabytes: float
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        outputs: the pipeline's.
        steps: seconds of every step of this run, and whether it was re-used; a re-used step gets the seconds
            that it took when it ran.
        places: where the run keeps what.
        seconds: of this run, wall clock.
        gigabytes: the peak memory of this run's processes.
    """
    from mu2llm.serving.server import status

    evaluation = _read(Path(outputs["evaluation"].path) / "evaluation.json")
    first = _read(Path(outputs["evaluation_sft"].path) / "evaluation.json")
    paired = _read(Path(outputs["evaluation"].path) / "comparison.json")
    ingest = _read(Path(outputs["studies"].path) / "ingest.json")
    before = _read(places.out / "summary.json").get("steps", {})
    server = status(places.state) if outputs["passed"] else None
    return {
        "notice": NOTICE,
        "mu2llm": __version__,
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(gigabytes, 2),
        "studies": ingest,
        "rejects_file": str(Path(outputs["studies"].path) / "rejects.jsonl")
        if ingest.get("rejects")
        else None,
        "studies_test": evaluation["studies"],
        "finding_macro_f1": evaluation["finding_macro_f1"],
        "finding_macro_f1_ci": evaluation["finding_macro_f1_ci"],
        "floor_blank_macro_f1": evaluation["floor_blank_macro_f1"],
        "floor_blank_macro_f1_ci": evaluation["floor_blank_macro_f1_ci"],
        "floor_shuffled_macro_f1": evaluation["floor_shuffled_macro_f1"],
        "floor_shuffled_macro_f1_ci": evaluation["floor_shuffled_macro_f1_ci"],
        "rouge_l": evaluation["rouge_l"],
        "rouge_l_ci": evaluation["rouge_l_ci"],
        "green_sft": first["green"],
        "green_sft_ci": first["green_ci"],
        "green_dpo": evaluation["green"],
        "green_dpo_ci": evaluation["green_ci"],
        "green_difference": paired["difference"],
        "green_difference_ci": paired["difference_ci"],
        "judge": evaluation["judge"],
        "registry_version": outputs["version"],
        "gate_passed": outputs["passed"],
        "gate_reasons": outputs["reasons"],
        "endpoint": server.url if server else None,
        "report_html": str(places.out / "report.html"),
        "tracking_uri": places.tracking_uri,
        "steps": {
            name: {**step, "seconds": before.get(name, step)["seconds"]} if step["reused"] else step
            for name, step in steps.items()
        },
    }


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Writes the summary, whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def table(summary: dict[str, Any]) -> str:
    """What was measured, one line each, with 95 % intervals."""
    rows = [
        ("held-out studies", f"{summary['studies_test']}"),
        ("finding macro-F1", _number(summary, "finding_macro_f1")),
        ("  floor, blank volumes", _number(summary, "floor_blank_macro_f1")),
        ("  floor, shuffled volumes", _number(summary, "floor_shuffled_macro_f1")),
        (f"GREEN after SFT ({summary['judge']})", _number(summary, "green_sft")),
        ("GREEN after DPO", _number(summary, "green_dpo")),
        ("  paired difference", _number(summary, "green_difference")),
        ("ROUGE-L", _number(summary, "rouge_l")),
        ("registry version", f"{summary['registry_version']}"),
        ("gate", "passed, now champion" if summary["gate_passed"] else "refused"),
        ("endpoint (gRPC)", summary["endpoint"] or "none"),
        ("wall clock", f"{summary['seconds'] / 60:.1f} minutes"),
        ("peak memory", f"{summary['peak_memory_gb']:.1f} GB"),
    ]
    if summary["rejects_file"]:
        rejected = f"{summary['studies']['rejects']}, the reasons in {_shown(Path(summary['rejects_file']))}"
        rows.insert(0, ("rejected rows", rejected))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _number(summary: dict[str, Any], key: str) -> str:
    value, interval = summary[key], summary.get(f"{key}_ci")
    if value is None:
        return "none"
    return f"{value:.3f}" + (f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def next_commands(summary: dict[str, Any], places: Places) -> str:
    """The exact commands for what comes next."""
    state, page = _shown(places.state), _shown(Path(summary["report_html"]))
    rows = [
        ("the evaluation, with pictures", f"xdg-open {page}"),
        ("the registry", f"{_tool('mlflow')} ui --backend-store-uri {shlex.quote(summary['tracking_uri'])}"),
    ]
    if url := summary["endpoint"]:
        rows += [
            ("a draft of your own CT", f"{_tool('mu2')} report some.nii.gz --url {url}"),
            ("stop the server", f"{_tool('mu2')} serve --stop --state {state}"),
        ]
    if not summary["gate_passed"]:
        shown = f"{summary['registry_version']} --tracking-uri {shlex.quote(summary['tracking_uri'])}"
        rows.append(("the refused version's card", f"{_tool('mu2')} registry show {shown}"))
    rows.append(
        (
            "the same on a cluster",
            f"{_tool('mu2')} pipeline compile --out pipeline.yaml   # docs/operations.md",
        )
    )
    width = max(len(name) for name, _ in rows)
    return "What comes next:\n" + "\n".join(f"  {name:<{width}}  {command}" for name, command in rows)


def _tool(name: str) -> str:
    """A command as it can be typed here: in the environment's own folder unless that is on PATH."""
    return name if shutil.which(name) else _shown(Path(sys.executable).parent / name)


def _shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
