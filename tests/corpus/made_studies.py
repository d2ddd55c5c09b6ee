"""Reports for the corpus tests, in the styles of real data sets."""

from mu2llm.data.records import Report, Study

REAL_STYLE = [
    "Trachea and both main bronchi are open. Mediastinal main vascular structures, heart contour, size are "
    "normal. No enlarged lymph nodes were detected. A millimetric nonspecific nodule is observed in the "
    "right lung middle lobe. There are calcified atheroma plaques in the aortic arch and coronary arteries. "
    "There are linear atelectasis areas in the lower lobes of both lungs. Bones are natural.",
    """FINDINGS:
Liver: Normal size (volume: 1519 cc). Hypodense lesion in segment 7 measuring 2.1 x 1.8 cm.
Spleen: Enlarged, measuring 15 cm.
Kidneys: A 3 mm nonobstructing stone in the lower pole of the left kidney. No hydronephrosis.

IMPRESSION:
1. Hypodense liver lesion, metastasis cannot be excluded. MRI is recommended for further evaluation.
2. Left renal calculus.""",
    "Small bilateral pleural effusions with adjacent compressive atelectasis. The right upper lobe nodule\n"
    "has increased, now 12 mm (previously 8 mm). Multiple nodules in the left lung, the largest 6.5 mm. "
    "Possible small pneumothorax on the left. No new consolidation. Follow-up CT in 3 months is recommended "
    "for the nodule.",
]


def study(name: str, findings: str, impression: str = "") -> Study:
    return Study(name, name, "made", "train", f"{name}.nii.gz", "hu", Report(findings, impression))
