"""One sentence, what it says: every rule of the word list and every known trap."""

from pathlib import Path

import pytest
import yaml

from mu2llm.text import words
from mu2llm.text.findings import extract, finding_keys

LUNGS_CLEAR = {
    "lung nodule",
    "lung mass",
    "consolidation",
    "lung opacity",
    "ground-glass opacity",
    "atelectasis",
    "emphysema",
}

# The sentences of the phantom reports, and the likes of them: (sentence, present keys, absent entities).
PHANTOM = [
    ("The lungs are clear.", set(), LUNGS_CLEAR),
    ("There is a 24 mm solid nodule in the right lung.", {"lung nodule, right"}, set()),
    ("A pulmonary nodule of 9 mm on the left.", {"lung nodule, left"}, set()),
    ("The right lung contains a 12 mm nodule.", {"lung nodule, right"}, set()),
    ("No focal consolidation.", set(), {"consolidation"}),
    ("Consolidation in the left lower lobe.", {"consolidation, left"}, set()),
    ("Airspace consolidation occupies the right lower lobe.", {"consolidation, right"}, set()),
    ("Large left pleural effusion.", {"pleural effusion, left"}, set()),
    ("A small amount of fluid is seen in the left pleural space.", {"pleural effusion, left"}, set()),
    ("The right pleural space contains a large effusion.", {"pleural effusion, right"}, set()),
    ("No pleural effusion on either side.", set(), {"pleural effusion"}),
    ("The heart is enlarged.", {"cardiomegaly"}, set()),
    ("The cardiothoracic ratio is increased.", {"cardiomegaly"}, set()),
    ("There is marked cardiac enlargement.", {"cardiomegaly"}, set()),
    ("Heart size is within normal limits.", set(), {"cardiomegaly"}),
    ("The heart is normal in size.", set(), {"cardiomegaly"}),
    ("The cardiac silhouette is not enlarged.", set(), {"cardiomegaly"}),
    ("Calcified plaque is seen along the aortic wall.", {"aortic calcification"}, set()),
    ("The aorta shows wall calcification.", {"aortic calcification"}, set()),
    ("Mild atherosclerotic calcification of the thoracic aorta.", {"aortic calcification"}, set()),
    ("The aorta is unremarkable.", set(), {"aortic calcification", "aortic dilatation"}),
    ("The aorta is not calcified.", set(), {"aortic calcification"}),
    ("A hypodense lesion is present in the liver.", {"liver lesion"}, set()),
    ("A low-attenuation focus in the liver.", {"liver lesion"}, set()),
    ("The liver shows a low-density lesion.", {"liver lesion"}, set()),
    ("No focal liver lesion.", set(), {"liver lesion"}),
    ("The liver is homogeneous without focal lesion.", set(), {"liver lesion"}),
    ("A calcified stone is present in the right kidney.", {"renal calculus, right"}, set()),
    ("Left nephrolithiasis.", {"renal calculus, left"}, set()),
    ("Calculi are present in both kidneys.", {"renal calculus, left", "renal calculus, right"}, set()),
    ("No renal calculus or hydronephrosis.", set(), {"renal calculus", "hydronephrosis"}),
    (
        "Kidneys are normal without stones.",
        set(),
        {"renal calculus", "renal cyst", "renal lesion", "hydronephrosis"},
    ),
    ("Diffuse emphysematous change.", {"emphysema"}, set()),
    ("Emphysematous changes in both lungs.", {"emphysema"}, set()),
    (
        "Impression: Right pleural effusion; cardiomegaly; hypodense liver lesion.",
        {"pleural effusion, right", "cardiomegaly", "liver lesion"},
        set(),
    ),
    ("Impression: No acute abnormality.", set(), set()),
]


@pytest.mark.parametrize(("sentence", "present", "absent"), PHANTOM)
def test_phantom_sentences(sentence, present, absent):
    findings = extract(sentence)
    assert finding_keys(findings) == present
    assert {f.entity for f in findings if f.status == "absent"} == absent
    assert not [f for f in findings if f.status == "uncertain"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "No pleural effusion, pneumothorax, or consolidation.",
            {"pleural effusion": "absent", "pneumothorax": "absent", "consolidation": "absent"},
        ),
        ("No nodule or effusion is seen.", {"lung nodule": "absent", "pleural effusion": "absent"}),
        ("No evidence of pulmonary nodule.", {"lung nodule": "absent"}),
        ("The lungs are free of consolidation.", {"consolidation": "absent"}),
        ("Nodule was not detected in the lungs.", {"lung nodule": "absent"}),
        (
            "Pericardial effusion-thickening was not observed.",
            {"pericardial effusion": "absent", "pericardial thickening": "absent"},
        ),
        (
            "There is no effusion but a 5 mm nodule in the right lung.",
            {"pleural effusion": "absent", "lung nodule": "present"},
        ),
        (
            "No effusion, small nodule in the right lung.",
            {"pleural effusion": "absent", "lung nodule": "present"},
        ),
        (
            "No effusion, and the heart is enlarged.",
            {"pleural effusion": "absent", "cardiomegaly": "present"},
        ),
        ("No effusion, heart is enlarged.", {"pleural effusion": "absent", "cardiomegaly": "present"}),
        ("Cardiomegaly without pleural effusion.", {"cardiomegaly": "present", "pleural effusion": "absent"}),
        (
            "Calcific plaques are observed in the aorta, pericardial effusion was not detected.",
            {"aortic calcification": "present", "pericardial effusion": "absent"},
        ),
        (
            "Hypodense liver lesion, metastasis cannot be excluded.",
            {"liver lesion": "present", "metastasis": "uncertain"},
        ),
        ("Metastasis cannot be excluded.", {"metastasis": "uncertain"}),
        ("We cannot exclude metastasis.", {"metastasis": "uncertain"}),
        ("Possible small right effusion.", {"pleural effusion": "uncertain"}),
        ("Pneumonia is suspected.", {"pneumonia": "uncertain"}),
        ("The opacity is likely atelectasis.", {"lung opacity": "present", "atelectasis": "uncertain"}),
        (
            "Hypodense hepatic lesion, may represent metastasis.",
            {"liver lesion": "present", "metastasis": "uncertain"},
        ),
        ("The nodule shows no significant change.", {"lung nodule": "present"}),
        ("The effusion previously seen on the left is no longer present.", {"pleural effusion": "absent"}),
        ("Otherwise, the lungs are clear.", {}),
        ("Yes, there is a left pleural effusion.", {"pleural effusion": "present"}),
        ("No, there is a left pleural effusion.", {"pleural effusion": "present"}),
        ("No lesion, but the liver is enlarged.", {"hepatomegaly": "present"}),
    ],
)
def test_status(sentence, expected):
    assert {f.entity: f.status for f in extract(sentence)} == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "A nodule in the left upper lobe and a small right effusion.",
            {("lung nodule", "left", "left upper lobe"), ("pleural effusion", "right", "")},
        ),
        ("Nodules in the right and left lungs.", {("lung nodule", "bilateral", "")}),
        ("Bilateral pleural effusions, right greater than left.", {("pleural effusion", "bilateral", "")}),
        (
            "Ground-glass nodule of 1.2 cm in the lower lobe of the left lung.",
            {("lung nodule", "left", "left lower lobe")},
        ),
        ("Nodule in the middle lobe.", {("lung nodule", "right", "right middle lobe")}),
        ("Atelectasis in the lingula.", {("atelectasis", "left", "lingula")}),
        (
            "Nodules in the right upper lobe and left lower lobe.",
            {("lung nodule", "bilateral", "right upper lobe and left lower lobe")},
        ),
        (
            "A moderate right pleural effusion with atelectasis of the left lower lobe.",
            {("pleural effusion", "right", ""), ("atelectasis", "left", "left lower lobe")},
        ),
        (
            "In the right lung, there is a nodule and a consolidation.",
            {("lung nodule", "right", ""), ("consolidation", "right", "")},
        ),
        (
            "Calcification of the left anterior descending artery.",
            {("coronary artery calcification", "", "")},
        ),
        ("Right pleural effusion with shift of the heart to the left.", {("pleural effusion", "right", "")}),
    ],
)
def test_side_and_location(sentence, expected):
    assert {(f.entity, f.side, f.location) for f in extract(sentence)} == expected


@pytest.mark.parametrize(
    ("sentence", "sizes"),
    [
        ("Nodule measuring 13.5 x 9.3 mm.", (13.5, 9.3)),
        ("Nodule of 1.2 cm.", (12.0,)),
        ("A 4mm nodule.", (4.0,)),
        ("Cyst of 3 x 2.5 x 2 cm in the liver.", (30.0, 25.0, 20.0)),
        ("Nodule of 12 mm, previously 10 mm.", (12.0,)),
        ("A 3-cm mass in the lingula.", (30.0,)),
        ("Nodule.", ()),
    ],
)
def test_sizes(sentence, sizes):
    assert extract(sentence)[0].sizes_mm == sizes


@pytest.mark.parametrize(
    ("sentence", "severity", "attributes", "comparison"),
    [
        ("Large left pleural effusion.", "large", (), ""),
        ("The pleural effusion is small.", "small", (), ""),
        ("Mild to moderate emphysema.", "mild to moderate", (), ""),
        ("A hypodense lesion is present in the liver.", "", ("hypodense",), ""),
        ("A calcified lung nodule.", "", ("calcified",), ""),
        ("Calcified spiculated nodule.", "", ("calcified", "spiculated"), ""),
        ("Ground-glass nodule.", "", ("ground-glass",), ""),
        ("The right pleural effusion has decreased.", "", (), "decreased"),
        ("The nodule is unchanged.", "", (), "unchanged"),
        ("The nodule has increased in size.", "", (), "increased"),
        ("New consolidation.", "", (), "new"),
    ],
)
def test_qualities(sentence, severity, attributes, comparison):
    finding = extract(sentence)[0]
    assert (finding.severity, finding.attributes, finding.comparison) == (severity, attributes, comparison)


def test_place_in_the_report():
    report = "Heart: enlarged.\nLarge left pleural effusion. No nodule."
    effusion = next(f for f in extract(report) if f.entity == "pleural effusion")
    assert effusion.sentence == "S2"
    assert report[effusion.start : effusion.end] == effusion.text == "Large left pleural effusion."


def test_an_organ_heading_holds_to_the_end_of_its_line():
    report = "Liver: Normal size. Mean HU value: 101. Hypodense lesion of 2.1 cm.\nCyst.\nKidneys: Cyst."
    assert [(f.entity, f.status, f.sentence) for f in extract(report)] == [
        ("hepatomegaly", "absent", "S1"),
        ("liver lesion", "present", "S3"),
        ("renal cyst", "present", "S5"),
    ]


def test_a_side_without_a_finding_changes_nothing():
    assert extract("The patient lay on the left side.") == []


def test_unstated_side_gives_the_bare_key():
    assert finding_keys(extract("Pleural effusion.")) == {"pleural effusion"}


@pytest.mark.parametrize("name", ["entities.yaml", "context.yaml", "chinese.yaml"])
def test_no_name_stands_twice_in_a_word_list(name):
    """YAML keeps the last of two silently: the terms of the first are lost."""

    def twice(node):
        if not isinstance(node, yaml.MappingNode):
            return []
        names = [key.value for key, _ in node.value]
        return [n for n in set(names) if names.count(n) > 1] + [
            n for _, part in node.value for n in twice(part)
        ]

    assert twice(yaml.compose((Path(words.__file__).parent / name).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("sentence", "fields"),
    [
        ("Cardiac size is slightly increased.", ("cardiomegaly", "", "minimal", "")),
        ("The left effusion is slightly increased.", ("pleural effusion", "left", "", "increased")),
        ("Thyroid cancer.", ("malignancy", "", "", "")),
        ("Left posterolateral and right rib fracture.", ("fracture", "right", "", "")),
        ("Right fifth and sixth rib fractures.", ("fracture", "right", "", "")),
    ],
)
def test_one_word_list_does_not_undo_another(sentence, fields):
    (finding,) = extract(sentence)
    assert (finding.entity, finding.side, finding.severity, finding.comparison) == fields


def test_the_nature_of_a_thing_does_not_end_what_is_said_of_it():
    thing = extract("Multiple lung nodules consistent with metastases, increased since the prior CT.")[0]
    assert (thing.entity, thing.comparison) == ("lung nodule", "increased")


def test_a_lesion_that_has_grown_enlarges_no_organ():
    for sentence, finding in (
        ("Several hypodense hepatic lesions, increased in size.", "liver lesion"),
        ("Mild intrahepatic biliary dilatation, slightly increased.", "biliary dilatation"),
    ):
        assert [(f.entity, f.comparison) for f in extract(sentence)] == [(finding, "increased")]
    assert {f.entity for f in extract("Liver: steatotic, enlarged.")} == {"hepatic steatosis", "hepatomegaly"}
