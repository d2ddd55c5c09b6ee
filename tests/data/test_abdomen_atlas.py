"""AbdomenAtlas 3.0 Mini as it is published, in small: its wide table, its lists, and every known quirk."""

import pytest

from mu2llm.data.ingest import ingest

SIZE = "largest liver lesion diameter (cm)"
COUNT = "number of liver lesion instances"
VOLUME = "liver volume (cm^3)"
PLACE = "largest liver lesion location (1-8)"
STRUCTURED = (
    "CT arterial phase\n\nFINDINGS:\nSpleen: Normal size (volume: 120.5 cc).\nLiver: Enlarged (volume: "
    "1800.0 cm^3).\n\nIMPRESSION:\n1. Enlarged liver."
)
NARRATIVE = (
    "The liver measures 1800.0 cm^3 and is enlarged. The spleen is normal. IMPRESSION: Enlarged liver."
)
COLUMNS = [
    *("BDMAP ID", "spacing", "shape", "sex", "age", "scanner", "contrast", VOLUME, COUNT, SIZE, PLACE),
    *("radiologist note", "structured report", "narrative report"),
    *("fusion structured report", "fusion narrative report"),
]


def row(number, **changes):
    return {
        "BDMAP ID": f"BDMAP_{number:08d}",
        "spacing": "(0.5, 0.5, 1.5)",
        "shape": "(12, 10, 8)",
        "sex": "F",
        "age": "61.0",
        "contrast": "arterial",
        VOLUME: "1800.0",
        COUNT: "2.0",
        SIZE: "1.4",
        PLACE: "[4, 5]",
        "structured report": STRUCTURED,
        "narrative report": NARRATIVE,
        **changes,
    }


@pytest.fixture
def make(tmp_path, save_ct, write_table):
    def make(rows, train=(), test=(), missing=()):
        data = tmp_path / "AbdomenAtlas3.0Mini" / "data"
        write_table(data / "AbdomenAtlas3.0MiniWithMeta.csv", rows, COLUMNS)
        for name, numbers in (("IID_train", train), ("IID_test", test), ("OOD_train", test)):
            ids = [{"BDMAP_ID": f"BDMAP_{number:08d}"} for number in numbers]
            write_table(data / "TrainTestIDS" / f"{name}.csv", ids, ["BDMAP_ID"])
        for seed, at in enumerate(rows):
            if at["BDMAP ID"] not in missing and ".." not in at["BDMAP ID"]:
                save_ct(data / "image_only" / at["BDMAP ID"] / "ct.nii.gz", seed=seed)
        return data.parent

    return make


def test_reports_measurements_and_splits(make, tmp_path, read_out):
    rows = [row(1), row(2), row(3), row(4, **{COUNT: "", SIZE: "nan", PLACE: "", "sex": "nan"})]
    summary = ingest("abdomen-atlas", make(rows, train=(1, 2), test=(3,)), tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert rejects == {}
    assert summary["splits"]["test"] == 1
    assert studies["BDMAP_00000003"]["split"] == "test"
    assert {studies[f"BDMAP_0000000{n}"]["split"] for n in (1, 2, 4)} == {"train", "val"}
    assert studies["BDMAP_00000004"]["meta"]["published_split"] == ""
    first = studies["BDMAP_00000001"]
    assert (first["dataset"], first["patient_id"], first["intensity"]) == (
        "abdomen-atlas",
        "BDMAP_00000001",
        "hu",
    )
    assert first["volume"].endswith("data/image_only/BDMAP_00000001/ct.nii.gz")
    findings = "The liver measures 1800.0 cc and is enlarged. The spleen is normal."
    assert first["report"] == {
        "findings": findings,
        "impression": "Enlarged liver.",
        "regions": {"abdomen": findings},
    }
    meta = first["meta"]
    assert meta["report_column"] == "narrative report"
    assert meta["other_reports"] == {"structured report": STRUCTURED.replace("cm^3", "cc")}
    assert meta["measurements"] == {VOLUME: 1800.0, COUNT: 2.0, SIZE: 1.4, PLACE: "[4, 5]"}
    assert (meta["sex"], meta["age"], meta["contrast"]) == ("F", "61.0", "arterial")
    bare = studies["BDMAP_00000004"]["meta"]
    assert bare["measurements"] == {VOLUME: 1800.0}, "a cell without a value is not a measured 0"
    assert "sex" not in bare


def test_without_a_narrative_the_structured_report_is_read_by_its_headings(make, tmp_path, read_out):
    rows = [row(1, **{"narrative report": "", "fusion narrative report": "Fused."})]
    ingest("abdomen-atlas", make(rows, train=(1,)) / "data", tmp_path / "out")
    study = read_out(tmp_path / "out")[0]["BDMAP_00000001"]
    assert study["report"]["findings"].startswith("Spleen: Normal size")
    assert study["report"]["findings"].endswith("(volume: 1800.0 cc).")
    assert study["report"]["impression"] == "1. Enlarged liver."
    assert study["meta"]["technique"] == "CT arterial phase"
    assert study["meta"]["report_column"] == "structured report"
    assert study["meta"]["other_reports"] == {"fusion narrative report": "Fused."}


def test_an_id_in_both_lists_is_an_error_that_names_both(make, tmp_path):
    with pytest.raises(ValueError, match=r"BDMAP_00000002 in IID_train\.csv and in IID_test\.csv"):
        ingest("abdomen-atlas", make([row(1), row(2)], train=(1, 2), test=(2,)), tmp_path / "out")


def test_bad_rows_are_rejected_and_the_rest_goes_on(make, tmp_path, read_out, save_ct):
    silent = dict.fromkeys(("narrative report", "structured report"), "nan")
    rows = [row(1), row(2), row(3, **silent), {**row(4), "BDMAP ID": "../../x"}, row(1), row(5), row(6)]
    root = make(rows, train=(1, 5), test=(6,), missing=("BDMAP_00000002",))
    for number in (1, 6):  # the sources overlap: one CT under two ids
        save_ct(root / "data" / "image_only" / f"BDMAP_0000000{number}" / "ct.nii.gz", seed=50)
    ingest("abdomen-atlas", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert list(studies) == ["BDMAP_00000001", "BDMAP_00000005"]
    assert rejects["BDMAP_00000002"] == "no such file below the dataset's folder"
    assert rejects["BDMAP_00000003"] == "the report is empty"
    assert "not of the form" in rejects["../../x"]
    assert rejects["BDMAP_00000001"] == "BDMAP ID already stands in row 2"
    where = studies["BDMAP_00000001"]["split"]
    assert rejects["BDMAP_00000006"] == (
        f"the same voxels as study BDMAP_00000001, which is in {where}, not test; list each CT once"
    )


def test_missing_tables(make, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"AbdomenAtlas3\.0MiniWithMeta\.csv is missing"):
        ingest("abdomen-atlas", tmp_path / "empty", tmp_path / "out")
    root = make([row(1)], train=(1,))
    (root / "data" / "TrainTestIDS" / "IID_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"IID_test\.csv is missing: it tells which CTs are test"):
        ingest("abdomen-atlas", root, tmp_path / "out")
