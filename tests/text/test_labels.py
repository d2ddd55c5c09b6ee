import pytest

from mu2llm.text.labels import NAMES, label

POSITIVE = {
    "Medical material": "A central venous catheter terminates in the superior vena cava.",
    "Arterial wall calcification": "There are calcified atheroma plaques in the aortic arch.",
    "Cardiomegaly": "The cardiothoracic ratio is increased in favor of the heart.",
    "Pericardial effusion": "Minimal pericardial effusion is observed.",
    "Coronary artery wall calcification": "Calcific plaques are observed in the coronary arteries.",
    "Hiatal hernia": "Sliding type hiatal hernia is observed at the lower end of the esophagus.",
    "Lymphadenopathy": "There are enlarged lymph nodes in the mediastinum.",
    "Emphysema": "Mild emphysematous changes are observed in both lungs.",
    "Atelectasis": "There are linear atelectasis areas in the lower lobes of both lungs.",
    "Lung nodule": "A millimetric nonspecific nodule is observed in the right lung middle lobe.",
    "Lung opacity": "There are patchy ground glass densities in both lungs.",
    "Pulmonary fibrotic sequela": "Sequela fibrotic changes are observed in the apices of both lungs.",
    "Pleural effusion": "Minimal pleural effusion is observed on the left.",
    "Mosaic attenuation pattern": "A mosaic attenuation pattern is observed in both lungs.",
    "Peribronchial thickening": "Peribronchial thickenings are seen in the right lower lobe.",
    "Consolidation": "Consolidation areas are observed in the left lower lobe.",
    "Bronchiectasis": "Bronchiectatic changes are observed in the middle lobe.",
    "Interlobular septal thickening": "Interlobular septal thickenings are observed.",
}

NORMAL = """Trachea and both main bronchi are open. Mediastinal main vascular structures, heart contour,
size are normal. Thoracic aorta diameter is normal. Pericardial effusion-thickening was not
observed. Thoracic esophagus calibration was normal and no significant tumoral wall thickening
was detected. No enlarged lymph nodes in prevascular, pre-paratracheal, subcarinal or bilateral
hilar-axillary pathological dimensions were detected. When examined in the lung parenchyma
window; aeration of both lung parenchyma is normal and no nodular or infiltrative lesion is
detected in the lung parenchyma. Pleural effusion-thickening was not detected. Upper abdominal
organs included in the sections are normal. Bone structures in the study area are natural. No
medical material."""


def test_eighteen_names_in_order():
    assert tuple(label("")) == NAMES == tuple(POSITIVE)
    assert not any(label("").values())


@pytest.mark.parametrize(("name", "sentence"), POSITIVE.items())
def test_each_label_alone(name, sentence):
    assert [found for found, value in label(sentence).items() if value] == [name]


def test_a_normal_report_has_no_label():
    assert not any(label(NORMAL).values())


def test_uncertain_is_not_positive():
    assert label("Pneumonia or consolidation cannot be excluded.")["Consolidation"] == 0
