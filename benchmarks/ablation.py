"""The paper's ablation on phantoms: which part of the μ²Tokenizer, and DPO, is worth what.

    python -m benchmarks.ablation --out ablation                      # the demo's budget: hours on two cores
    python -m benchmarks.ablation --out trial --budget trial --seeds 1   # every step, nothing learned

Every variant has the demo's model but for the choices below, the same data and the same steps: vision
pre-training, SFT, evaluation with floors. The last goes on from the one before it with preference pairs and
DPO. What is finished is not done again: the same command goes on where it was stopped, and `--table` only
writes docs/results.md and its plot from what is there.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.clinic import open_clinic
from benchmarks.measure import table
from mu2llm.training import config as configs
from mu2llm.training.launch import launch

PLAIN = {"position": "rotary", "selection": "hard", "pooling": "static", "refiner": "published"}
PAPER = {"position": "relative", "selection": "soft", "pooling": "dynamic", "refiner": "published"}
VARIANTS = {
    "plain (LinVT, repaired)": PLAIN,
    "plain + RPE": {**PLAIN, "position": "relative"},
    "plain + DTS": {**PLAIN, "selection": "soft"},
    "plain + DMTP": {**PLAIN, "pooling": "dynamic"},
    "all three (μ²Tokenizer)": PAPER,
    "all three + residual": {**PAPER, "refiner": "residual"},
}
DPO = "all three + residual + DPO"
BUDGETS: dict[str, dict[str, Any]] = {
    "demo": {"count": 3600, "vision": {}, "sft": {}, "preferences": {}, "dpo": {}, "evaluate": {}},
    "trial": {
        "count": 96,
        "vision": {"max_steps": 4},
        "sft": {"max_steps": 40},
        "preferences": {"candidates": 3, "margin": 0.0, "max_new_tokens": 60, "limit": 16},
        "dpo": {"max_steps": 2},
        "evaluate": {"limit": 6, "max_new_tokens": 60, "min_positives": 1, "resamples": 50},
    },
}
COLUMNS = {
    "green": "GREEN",
    "finding_macro_f1": "finding macro-F1",
    "floor_blank_macro_f1": "blank floor",
    "floor_shuffled_macro_f1": "shuffled floor",
}
RESULTS = Path(__file__).parents[1] / "docs" / "results.md"


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--budget", default="demo", choices=BUDGETS)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--nproc", type=int, default=1, help="processes of each run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the page to write (docs/results.md)")
    parser.add_argument("--table", action="store_true", help="run nothing, write the page")
    args = parser.parse_args()
    budget = BUDGETS[args.budget]
    if not args.table:
        for seed in range(args.seeds):  # seed by seed, so that an early stop leaves whole comparisons
            for variant, choices in VARIANTS.items():
                one_run(args.out, variant, choices, seed, budget, args.nproc)
            with_dpo(args.out, seed, budget, args.nproc)
    write_page(args.out, args.budget, args.results)


def place(out: Path, variant: str, seed: int) -> Path:
    letters = "".join(letter if letter.isalnum() else "-" for letter in variant.lower())
    return out / f"seed-{seed}" / "-".join(filter(None, letters.split("-")))


def one_run(
    out: Path, variant: str, choices: dict[str, str], seed: int, budget: dict[str, Any], nproc: int
) -> None:
    """A start model of the variant, vision pre-training, SFT, evaluation."""
    from mu2llm.components.start import write_start_model

    folder = place(out, variant, seed)
    print(f"== {variant}, seed {seed}", flush=True)
    clinic = open_clinic(out / "clinic", budget["count"])
    if not (folder / "start" / "model.safetensors").exists():
        write_start_model(clinic.studies, folder / "start", seed=seed, **choices)
    model = folder / "start"
    for stage in ("vision", "sft"):
        paths = {**clinic.paths(stage), "model": str(model), "cache": str(out / "frames")}
        model = trained(stage, folder / stage, nproc, seed, {**paths, **budget[stage]})
    evaluated(model, clinic.studies, folder, seed, budget)


def with_dpo(out: Path, seed: int, budget: dict[str, Any], nproc: int) -> None:
    """Preference pairs and DPO after the last variant, and its evaluation."""
    from mu2llm.training.preferences import build_preferences

    folder = place(out, DPO, seed)
    print(f"== {DPO}, seed {seed}", flush=True)
    clinic = open_clinic(out / "clinic", budget["count"])
    start = place(out, list(VARIANTS)[-1], seed) / "sft" / "model"
    if not (folder / "pairs" / "preferences.json").exists():
        options = {**configs.preset_settings("tiny", "preferences"), **budget["preferences"]}
        build_preferences(
            start, clinic.studies, folder / "pairs", cache=str(out / "frames"), seed=seed, **options
        )
    data = {"data": str(folder / "pairs" / "preferences.jsonl"), "studies": str(clinic.studies)}
    paths = {"model": str(start), "cache": str(out / "frames"), **data}
    model = trained("dpo", folder / "dpo", nproc, seed, {**paths, **budget["dpo"]})
    evaluated(model, clinic.studies, folder, seed, budget)


def trained(stage: str, out: Path, nproc: int, seed: int, values: dict[str, Any]) -> Path:
    """The model that a stage leaves; a stage that was stopped goes on from its checkpoint."""
    if not (out / "train.json").exists():  # written last
        settings = configs.from_preset("tiny", stage, out=str(out), seed=seed, **values)
        launch(stage, configs.save(settings), nproc)
    return out / "model"


def evaluated(model: Path, studies: Path, folder: Path, seed: int, budget: dict[str, Any]) -> None:
    from mu2llm.evaluation.evaluate import evaluate

    if not (folder / "evaluation" / "evaluation.json").exists():
        evaluate(model, studies, folder / "evaluation", seed=seed, cases=4, **budget["evaluate"])


def found(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The evaluations that are there, by variant."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for variant in (*VARIANTS, DPO):
        name = place(out, variant, 0).name
        files = sorted(out.glob(f"seed-*/{name}/evaluation/evaluation.json"))
        runs[variant] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return runs


def write_page(out: Path, budget: str, page: Path) -> None:
    """The table and the plot of all evaluations that are there."""
    runs = found(out)
    if not any(runs.values()):
        raise SystemExit(f"{out} holds no evaluation yet")
    rows = [
        (variant, str(len(values)), *(spread(name, values) for name in COLUMNS))
        for variant, values in runs.items()
        if values
    ]
    tested = next(values[0]["studies"] for values in runs.values() if values)
    page.parent.mkdir(parents=True, exist_ok=True)
    plot(runs, page.with_name("ablation.png"))
    page.write_text(
        "# Results\n\n"
        f"Written by `python -m benchmarks.ablation --budget {budget}`: phantoms, the demo's model, the same "
        f"steps for every variant; {tested} test studies. Each figure is the mean over the seeds, with the "
        "lowest and the highest, or for one seed the 95 % interval over patients. The "
        "judge is `rules`, which also ranked the preference pairs.\n\n"
        + table(rows, ("variant", "seeds", *COLUMNS.values()))
        + "\n\n![GREEN and finding macro-F1 by variant](ablation.png)\n",
        encoding="utf-8",
    )
    print(f"{page} written")


def spread(name: str, runs: list[dict[str, Any]]) -> str:
    """The mean, and the seeds' lowest and highest or, of one seed, the interval over patients."""
    values = [run[name] for run in runs]
    low, high = runs[0][f"{name}_ci"] if len(runs) == 1 else (min(values), max(values))
    return f"{statistics.mean(values):.3f} ({low:.3f}–{high:.3f})"


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [variant for variant, values in runs.items() if values]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.5 * len(names) + 1.2), sharey=True)
    for axis, metric in zip(axes, ("green", "finding_macro_f1"), strict=True):
        for height, name in enumerate(names):
            values = [run[metric] for run in runs[name]]
            axis.plot(values, [height] * len(values), "o", color="tab:blue", alpha=0.5)
            axis.plot([statistics.mean(values)], [height], "|", color="black", markersize=14)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel(COLUMNS[metric])
        axis.invert_yaxis() if metric == "green" else None
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
