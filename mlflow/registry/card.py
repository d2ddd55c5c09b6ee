"""The model card: what a version is for, what it is not for, and what was measured."""

from typing import Any

from mu2llm import NOTICE

MEASURED = (
    ("GREEN", "green"),
    ("GREEN, blank volumes (floor)", "floor_blank_green"),
    ("GREEN, shuffled volumes (floor)", "floor_shuffled_green"),
    ("Finding macro-F1", "finding_macro_f1"),
    ("Finding macro-F1, blank volumes (floor)", "floor_blank_macro_f1"),
    ("Finding macro-F1, shuffled volumes (floor)", "floor_shuffled_macro_f1"),
    ("ROUGE-L", "rouge_l"),
)


def model_card(result: dict[str, Any], config: dict[str, Any], digests: dict[str, str]) -> str:
    """Markdown, from what evaluation.json holds, the model's config.json, and the SHA-256 of its data."""
    vision, text = config["vision_config"], config["text_config"]
    lines = [
        "# μ²LLM report model",
        "",
        f"**{NOTICE}**",
        "",
        "## Intended use",
        "",
        "Research on drafting radiology reports from CT volumes. A draft is raw material for a radiologist "
        "who has the images; nobody may act on one that was not checked against them.",
        "",
        "## Limits",
        "",
        "- Measured on the studies below only. Other scanners, protocols, populations and report styles are "
        "unknown ground.",
        "- A draft may state findings that are not there and leave out findings that are. Findings with a "
        "low F1 in the table below are hardly seen at all.",
        f"- GREEN was scored by the judge `{result['judge']}`, which is no radiologist.",
        "- Not a medical device; no regulatory clearance.",
        "",
        "## Model",
        "",
        f"Vision tower {vision['num_hidden_layers']} × {vision['hidden_size']} on frames of "
        f"{' × '.join(map(str, vision['image_size']))} voxels, {config['num_query_tokens']} visual tokens, "
        f"decoder {text['model_type']} {text['num_hidden_layers']} × {text['hidden_size']}.",
        "",
        *_data(digests),
        "## Measured",
        "",
        f"{result['studies']} studies of {result['patients']} patients, split `{result['split']}`, "
        f"{result['decoding']['strategy']} decoding, seed {result['seed']}. The 95 % intervals are by "
        "bootstrap over patients.",
        "",
        "| | value | 95 % interval |",
        "|---|---|---|",
        *(_row(label, result[key], result.get(f"{key}_ci")) for label, key in MEASURED),
        "",
        *_findings(result.get("findings", [])),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _data(digests: dict[str, str]) -> list[str]:
    if not digests:
        return []
    rows = [f"| {kind} | `{digest}` |" for kind, digest in digests.items()]
    return ["## Made from", "", "| | SHA-256 |", "|---|---|", *rows, ""]


def _row(label: str, value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return f"| {label} | not measurable | |"
    return f"| {label} | {value:.3f} | " + (f"{interval[0]:.3f} – {interval[1]:.3f} |" if interval else "|")


def _findings(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    head = ["| finding | studies with it | F1 | F1, blank volumes |", "|---|---|---|---|"]
    return head + [
        f"| {row['finding']} | {row['positives']} | {row['f1']:.2f} | {row['f1_blank']:.2f} |" for row in rows
    ]
