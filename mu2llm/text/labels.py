"""The 18 abnormality labels of CT-RATE, read from a report by rules (no RadBERT, no weights)."""

from mu2llm.text.findings import extract
from mu2llm.text.words import lexicon

# In the order of CT-RATE's label files.
NAMES = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


def label(report: str) -> dict[str, int]:
    """1 for each label that the report says is present, 0 when it is denied, uncertain or not spoken of."""
    entities = lexicon().entities
    present = {entities[f.entity].get("label") for f in extract(report) if f.status == "present"}
    return {name: int(name in present) for name in NAMES}
