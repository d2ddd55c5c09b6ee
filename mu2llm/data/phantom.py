"""A data set of phantom CTs with reports in a radiologist's words, laid out like a hospital's own folder.

`root/volumes/*.nii.gz`, `root/reports.csv` and `root/labels.csv` (the truth) are what
`mu2llm.data.folder.read_folder` reads for any data set. No patient stands behind any of it.
"""

import csv
import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from mu2llm.data.pool import each
from mu2llm.volume.phantom import PRESETS, Findings, draw_findings, render

# Truth, by the names that `mu2llm.text.findings.finding_keys` gives to present findings.
LABELS = (
    "lung nodule, left", "lung nodule, right", "consolidation, left", "consolidation, right",
    "emphysema", "pleural effusion, left", "pleural effusion, right", "cardiomegaly",
    "aortic calcification", "liver lesion", "renal calculus, left", "renal calculus, right",
)  # fmt: skip

Choose = Callable[..., str]


def write_phantoms(root: str | Path, count: int, *, preset: str = "demo", seed: int = 0) -> None:
    """Writes `count` phantom patients below `root`, one study each; the same arguments give the same files.

    A folder that already holds them is left as it is; one that holds others is an error.
    """
    if preset not in PRESETS:
        raise ValueError(f"phantom preset {preset!r} is not one of {', '.join(PRESETS)}")
    if count < 1:
        raise ValueError(f"count={count}: at least one phantom is needed")
    root = Path(root)
    stamp, wanted = root / "phantom.txt", f"{count} phantoms, preset {preset}, seed {seed}\n"
    if stamp.exists():
        if stamp.read_text() != wanted:
            raise ValueError(
                f"{root} holds {stamp.read_text().strip()}, not {wanted.strip()}: choose another folder"
            )
        return
    (root / "volumes").mkdir(parents=True, exist_ok=True)
    make = partial(_write_one, root, preset, seed)
    rows = list(each(make, range(count)))
    _write_csv(root / "reports.csv", [report for report, _ in rows])
    _write_csv(root / "labels.csv", [labels for _, labels in rows])
    stamp.write_text(wanted)


def true_labels(found: Findings) -> dict[str, int]:
    """The truth as 0/1 by label name."""
    present = {name: bool(getattr(found, name.replace(" ", "_"))) for name in LABELS if "," not in name}
    for name, sides in (
        ("lung nodule", found.nodule),
        ("consolidation", found.consolidation),
        ("pleural effusion", found.effusion),
        ("renal calculus", found.calculus),
    ):
        present |= {f"{name}, {side}": side in sides for side in ("left", "right")}
    return {name: int(present[name]) for name in LABELS}


def write_report(found: Findings, rng: np.random.Generator) -> tuple[str, str]:
    """Findings and impression of one phantom. Organs come in a fixed order, words vary."""

    def choose(*phrases: str) -> str:
        return str(rng.choice(phrases))

    organs = (_lungs, _pleura, _heart, _aorta, _liver, _kidneys)
    findings = " ".join(organ(found, choose) for organ in organs)
    return findings, _impression(found, choose)


def _lungs(found: Findings, choose: Choose) -> str:
    parts = []
    if found.emphysema:
        parts.append(
            choose("Diffuse emphysematous change in both lungs.", "There is emphysema of both lungs.")
        )
    for side, size in found.nodule.items():
        parts.append(
            choose(
                f"There is a {size:.0f} mm solid nodule in the {side} lung.",
                f"A solid nodule of {size:.0f} mm is seen in the {side} lung.",
                f"{side.capitalize()} lung nodule measuring {size:.0f} mm.",
            )
        )
    for side, lobe in found.consolidation.items():
        parts.append(
            choose(
                f"Consolidation in the {side} {lobe} lobe.",
                f"There is consolidation of the {side} {lobe} lobe.",
                f"The {side} {lobe} lobe shows consolidation.",
            )
        )
    if not parts:
        return choose("The lungs are clear.", "No nodule or consolidation in either lung.", "Clear lungs.")
    if not found.nodule:
        parts.append(choose("No lung nodule.", "No pulmonary nodule is seen."))
    if not found.consolidation:
        parts.append(choose("No consolidation.", "No focal consolidation."))
    return " ".join(parts)


def _pleura(found: Findings, choose: Choose) -> str:
    if not found.effusion:
        return choose(
            "No pleural effusion.", "No pleural effusion on either side.", "The pleural spaces are clear."
        )
    return " ".join(
        choose(
            f"{amount.capitalize()} {side} pleural effusion.",
            f"There is a {amount} {side} pleural effusion.",
            f"A {amount} pleural effusion is seen on the {side}.",
        )
        for side, amount in found.effusion.items()
    )


def _heart(found: Findings, choose: Choose) -> str:
    if found.cardiomegaly:
        return choose("The heart is enlarged.", "Cardiomegaly.", "There is cardiomegaly.")
    return choose("The heart is normal in size.", "Heart size is within normal limits.", "Normal heart size.")


def _aorta(found: Findings, choose: Choose) -> str:
    if found.aortic_calcification:
        return choose(
            "Calcified plaque along the aortic wall.",
            "There is calcification of the aortic wall.",
            "Aortic calcification is seen.",
        )
    return choose("The aorta is unremarkable.", "No aortic calcification.", "Normal aorta.")


def _liver(found: Findings, choose: Choose) -> str:
    if found.liver_lesion:
        return choose(
            f"A {found.liver_lesion} lesion is present in the liver.",
            f"There is a {found.liver_lesion} liver lesion.",
            f"The liver contains a {found.liver_lesion} lesion.",
        )
    return choose("No liver lesion.", "The liver is unremarkable.", "The liver shows no focal lesion.")


def _kidneys(found: Findings, choose: Choose) -> str:
    if not found.calculus:
        return choose("No renal calculus.", "No stone in either kidney.", "The kidneys are free of stones.")
    return " ".join(
        choose(
            f"A stone is present in the {side} kidney.",
            f"There is a calculus in the {side} kidney.",
            f"{side.capitalize()} renal calculus.",
        )
        for side in found.calculus
    )


def _impression(found: Findings, choose: Choose) -> str:
    """The positive findings once more, the gravest first."""
    named = [f"{side} lung nodule" for side in found.nodule]
    named += [f"{side} consolidation" for side in found.consolidation]
    named += [f"{side} pleural effusion" for side in found.effusion]
    named += ["cardiomegaly"] * found.cardiomegaly + ["liver lesion"] * bool(found.liver_lesion)
    named += [f"{side} renal calculus" for side in found.calculus]
    named += ["aortic calcification"] * found.aortic_calcification + ["emphysema"] * found.emphysema
    if not named:
        return choose("Impression: No significant abnormality.", "Impression: Normal examination.")
    return "Impression: " + ", ".join(named).capitalize() + "."


def _write_one(root: Path, preset: str, seed: int, index: int) -> tuple[dict[str, str], dict[str, str]]:
    """One patient's volume; returns its rows of reports.csv and labels.csv."""
    rng = np.random.default_rng([seed, index])
    found = draw_findings(PRESETS[preset], rng)
    volume = render(found, PRESETS[preset], rng)
    name = f"volumes/phantom_{index:05d}.nii.gz"
    image = nibabel.Nifti1Image(volume.array, volume.affine)
    (root / name).write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    findings, impression = write_report(found, rng)
    report = {
        "volume": name,
        "patient_id": f"phantom_{index:05d}",
        "report": f"{findings}\n{impression}",
        "findings": findings,
        "impression": impression,
    }
    return report, {"volume": name} | {k: str(v) for k, v in true_labels(found).items()}


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
