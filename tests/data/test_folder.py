"""A user's folder: reports.csv and labels.csv become studies; a row that cannot is rejected by name."""

import pytest

from mu2llm.cli import main
from mu2llm.data.folder import read_folder


def folder(root, reports, labels=None, volumes=("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz")):
    """Writes the two tables and empty files in place of volumes, which read_folder does not open."""
    root.mkdir(parents=True, exist_ok=True)
    for name in volumes:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "reports.csv").write_text(reports, encoding="utf-8")
    if labels is not None:
        (root / "labels.csv").write_text(labels, encoding="utf-8")
    return root


def reasons(rejects):
    return {(reject["volume"], reject["row"]): reject["reason"] for reject in rejects}


def test_two_columns_are_enough(tmp_path):
    root = folder(
        tmp_path, 'volume,report\na.nii.gz,"Lungs are clear, heart normal."\nb.nii.gz,"Two\nlines"\n'
    )
    studies, rejects = read_folder(root)
    assert rejects == []
    assert [study.study_id for study in studies] == ["a", "b"]
    assert [study.patient_id for study in studies] == ["a", "b"]
    assert studies[0].report.text == "Lungs are clear, heart normal."
    assert studies[1].report.text == "Two\nlines"
    assert studies[0].volume == str(root.resolve() / "a.nii.gz")
    assert studies[0].intensity == "hu"
    assert studies[0].labels is None


def test_all_columns(tmp_path):
    root = folder(
        tmp_path,
        "Volume,Report,patient_id,split,findings,impression,region,study_id,ward\n"
        "a.nii.gz,Whole text,P1,val,Small nodule.,Follow up.,Chest,S-1,7\n",
        "volume,\"lung nodule, right\",emphysema\na.nii.gz,1,0\n",
    )  # fmt: skip
    ((study,), rejects) = read_folder(root)
    assert rejects == []
    assert (study.study_id, study.patient_id, study.split) == ("S-1", "P1", "val")
    assert (study.report.findings, study.report.impression) == ("Small nodule.", "Follow up.")
    assert study.report.regions == {"chest": "Small nodule."}
    assert study.labels == {"lung nodule, right": 1, "emphysema": 0}
    assert "ward" not in str(study.to_dict())


def test_tables_as_excel_saves_them(tmp_path):
    root = folder(tmp_path, "\ufeffvolume;report;\na.nii.gz;Clear lungs, normal heart.;\n")
    ((study,), _) = read_folder(root)
    assert study.report.text == "Clear lungs, normal heart."


@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_whose_names_hold_commas_need_no_commas_between_them(tmp_path, separator):
    reports = f'volume{separator}report{separator}"remarks, if any"\na.nii.gz{separator}"Clear; normal."\n'
    labels = f'volume{separator}"lung nodule, right"{separator}emphysema\na.nii.gz{separator}1{separator}0\n'
    ((study,), rejects) = read_folder(folder(tmp_path, reports, labels))
    assert (study.report.text, study.labels) == ("Clear; normal.", {"lung nodule, right": 1, "emphysema": 0})
    assert rejects == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_tables_of_any_line_ends_and_unicode_encoding_are_the_same(tmp_path, encoding, ends):
    root = folder(tmp_path, "")
    text = 'volume,report\na.nii.gz,"Größe normal.\nKein Erguss."\nb.nii.gz,正常\n'.replace("\n", ends)
    (root / "reports.csv").write_bytes(text.encode(encoding))
    studies, rejects = read_folder(root)
    assert [study.report.text for study in studies] == ["Größe normal.\nKein Erguss.", "正常"]
    assert rejects == []


def test_tables_whose_names_have_capitals(tmp_path):
    root = folder(tmp_path, "volume,report\na.nii.gz,Emphysema.\n", "volume,emphysema\na.nii.gz,1\n")
    (root / "reports.csv").rename(root / "Reports.CSV")
    (root / "labels.csv").rename(root / "LABELS.csv")
    ((study,), rejects) = read_folder(root)
    assert (study.report.text, study.labels, rejects) == ("Emphysema.", {"emphysema": 1}, [])
    (root / "REPORTS.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"reports\.csv is missing"):
        read_folder(root)


def test_paths_as_windows_and_shells_write_them(tmp_path):
    volumes = ("ct/a.nii.gz", "ct/b.nii.gz", "ct/c.NII.GZ", "d\\d.nii.gz")
    rows = ("ct\\a.nii.gz", "./ct/b.nii.gz", "ct//c.NII.GZ", "d\\d.nii.gz", "ct/a.nii.gz", "..\\x.nii.gz")
    table = "volume,report\n" + "".join(f"{row},Clear.\n" for row in rows)
    labels = "volume,emphysema\nct/a.nii.gz,1\nct\\b.nii.gz,0\n"
    root = folder(tmp_path / "set", table, labels, volumes)
    studies, rejects = read_folder(root)
    assert [study.volume for study in studies] == [str(root / name) for name in volumes]
    assert [study.study_id for study in studies[:3]] == ["a", "b", "c"]
    assert [study.labels for study in studies[:2]] == [{"emphysema": 1}, {"emphysema": 0}]
    assert [(line["volume"], line["row"]) for line in rejects] == [("ct/a.nii.gz", 6), ("../x.nii.gz", 7)]


def test_bad_rows_are_rejected_by_name_and_the_rest_goes_on(tmp_path):
    (tmp_path / "elsewhere.nii.gz").touch()
    root = folder(
        tmp_path / "set",
        "volume,report,split,region,study_id\n"
        "a.nii.gz,Clear.,,,\n"
        "none.nii.gz,Clear.,,,\n"
        "b.nii.gz,  ,,,\n"
        "../elsewhere.nii.gz,Clear.,,,\n"
        "a.nii.gz,Again.,,,other\n"
        "c.nii.gz,Clear.,holdout,,\n"
        "c.nii.gz,Clear.,,thorax,\n"
        ",Clear.,,,\n"
        "d.nii.gz,Clear.,,,a\n",
    )
    (root / "link.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    studies, rejects = read_folder(root)
    assert [study.study_id for study in studies] == ["a"]
    found = reasons(rejects)
    assert found["none.nii.gz", 3] == "no such file below the dataset's folder"
    assert found["b.nii.gz", 4] == "the report is empty"
    assert "outside the dataset's folder" in found["../elsewhere.nii.gz", 5]
    assert found["a.nii.gz", 6] == "volume already stands in row 2"
    assert 'split "holdout" is not one of train, val, test' in found["c.nii.gz", 7]
    assert 'region "thorax"' in found["c.nii.gz", 8]
    assert found["", 9] == "the volume is empty"
    assert found["d.nii.gz", 10] == "study_id already stands in row 2"


@pytest.mark.parametrize("bad", ["../../../escaped", "/tmp/x", "a\\b", "..", ".hidden", "a\0b"])
def test_a_study_id_that_would_name_a_file_elsewhere_is_rejected(tmp_path, bad):
    root = folder(tmp_path, f"volume,report,study_id\na.nii.gz,Clear.,{bad}\nb.nii.gz,Clear.,fine.1\n")
    studies, (reject,) = read_folder(root)
    assert [study.study_id for study in studies] == ["fine.1"]
    assert reject["row"] == 2 and "begins with a dot or holds a slash" in reject["reason"]


def test_a_row_with_too_many_fields_is_rejected_and_a_long_report_is_taken(tmp_path):
    long = "Clear lungs. " * 20_000
    root = folder(tmp_path, f"volume,report\na.nii.gz,Clear, normal.\nb.nii.gz,{long}\n")
    ((study,), (reject,)) = read_folder(root)
    assert (study.study_id, study.meta["row"], study.report.text) == ("b", 3, long.strip())
    assert (reject["volume"], reject["row"]) == ("reports.csv", 2)
    assert reject["reason"] == "more fields than reports.csv has columns; quote texts that hold commas"


def test_a_row_of_labels_with_too_many_fields_is_rejected_and_the_others_are_read(tmp_path):
    labels = "volume,emphysema\na.nii.gz,1,0\nb.nii.gz,1\n"
    root = folder(tmp_path, "volume,report\na.nii.gz,Clear.\nb.nii.gz,Emphysema.\n", labels)
    studies, (reject,) = read_folder(root)
    assert {study.study_id: study.labels for study in studies} == {"a": None, "b": {"emphysema": 1}}
    assert (reject["volume"], reject["row"]) == ("labels.csv", 2)
    assert reject["reason"] == "more fields than labels.csv has columns; quote texts that hold commas"


def test_words_for_nothing_are_no_texts_and_no_ids(tmp_path):
    root = folder(
        tmp_path,
        "volume,report,findings,impression,patient_id,study_id,split,region\n"
        "a.nii.gz,Clear lungs.,nan,Not given.,nan,NaN,nan,nan\nb.nii.gz,Not given.,nan,,,,,\n",
    )
    ((study,), (reject,)) = read_folder(root)
    assert (study.study_id, study.patient_id) == ("a", "a")
    assert (study.report.text, study.report.regions) == ("Clear lungs.", {})
    assert (reject["row"], reject["reason"]) == (3, "the report is empty")


def test_a_link_out_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "elsewhere.nii.gz").touch()
    root = folder(tmp_path / "set", "volume,report\nlink.nii.gz,Clear.\n")
    (root / "link.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    studies, (reject,) = read_folder(root)
    assert studies == []
    assert "outside the dataset's folder" in reject["reason"]


def test_a_link_out_of_the_folder_among_slices_is_rejected(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.dcm").touch()
    root = folder(
        tmp_path / "set",
        "volume,report\na,Clear.\nb,Clear.\nc,Clear.\n",
        volumes=("a/1.dcm", "b/1.dcm", "c/1.dcm"),
    )
    (root / "a" / "2.dcm").symlink_to(tmp_path / "elsewhere" / "1.dcm")
    (root / "b" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "c" / "2.dcm").symlink_to(root / "c" / "1.dcm")
    studies, rejects = read_folder(root)
    assert [study.study_id for study in studies] == ["c"]
    assert {reject["reason"] for reject in rejects} == {
        "a link in it leads out of the dataset's folder; copy the file in"
    }


def test_labels_that_are_no_labels_reject_their_study(tmp_path):
    root = folder(
        tmp_path,
        "volume,report\na.nii.gz,Clear.\nb.nii.gz,Clear.\nc.nii.gz,Clear.\n",
        "volume,emphysema\na.nii.gz,yes\nb.nii.gz,1\nz.nii.gz,0\n",
    )
    studies, rejects = read_folder(root)
    assert [(study.study_id, study.labels) for study in studies] == [("b", {"emphysema": 1}), ("c", None)]
    found = reasons(rejects)
    assert found["a.nii.gz", 2] == 'labels.csv, row 2: "emphysema" is "yes", not 0 or 1'
    assert found["z.nii.gz", 0] == "labels.csv names it, reports.csv does not"


def test_volumes_of_the_same_name_are_told_apart_by_their_path(tmp_path):
    root = folder(
        tmp_path, "volume,report\nx/ct.nii.gz,A.\ny/ct.nii.gz,B.\n", volumes=("x/ct.nii.gz", "y/ct.nii.gz")
    )
    studies, _ = read_folder(root)
    assert [study.patient_id for study in studies] == ["x_ct", "y_ct"]


@pytest.mark.parametrize(
    ("table", "cause"),
    [
        ("scan,text\na.nii.gz,Clear.\n", "no column volume and no report; it needs volume, report"),
        ("", "has no column volume and no report; it needs volume, report and has none"),
        ('volume,report\na.nii.gz,"Clear.\n', "behind line 1 has no end"),
        ("volume,report,Report\na.nii.gz,A.,B.\n", "has 2 columns report; rename all but one"),
        ("volume,report,split,split\na.nii.gz,A.,,\n", "has 2 columns split"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_an_error(tmp_path, table, cause):
    with pytest.raises(ValueError, match=r"reports\.csv") as caught:
        read_folder(folder(tmp_path, table))
    assert cause in str(caught.value)


def test_missing_folder_missing_table_and_wrong_encoding(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of CTs"):
        read_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="columns volume, report"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "encoding", "told"),
    [
        ("volume,report\na.nii.gz,größer\n", "cp1252", r"line 2: byte 25 \(0xF6\) is not UTF-8"),
        ("volume,report\na.nii.gz,无结节\n", "gb18030", r"line 2: byte 23 \(0xCE\) is not UTF-8"),
    ],
)
def test_a_table_in_another_encoding_is_named_with_place_and_remedy(
    tmp_path, monkeypatch, capsys, text, encoding, told
):
    root = folder(tmp_path, "", volumes=["a.nii.gz"])
    (root / "reports.csv").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=rf"reports\.csv, {told}.*iconv -f WINDOWS-1252 -t UTF-8.*GB18030"):
        read_folder(root)
    monkeypatch.setenv("MU2_DEID_KEY", "0123456789abcdef0123456789abcdef-test")
    assert main(["data", "ingest", str(root), "--dataset", "dicom", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "iconv" in err


def test_utf_16_that_is_cut_short_or_has_no_mark_and_quotes_that_do_not_end_are_named_too(tmp_path):
    root = folder(tmp_path, "", volumes=["a.nii.gz"])
    for encoding in ("utf-16-le", "utf-16-be"):
        (root / "reports.csv").write_bytes("volume,report\na.nii.gz,Clear.\n".encode(encoding))
        with pytest.raises(ValueError, match=r"UTF-16 without a byte order mark; save .* -f UTF-16LE"):
            read_folder(root)
    (root / "reports.csv").write_text('volume,report\na.nii.gz,Clear.\na.nii.gz,"Clear.\n')
    with pytest.raises(ValueError, match="double quote behind line 2 has no end; close it"):
        read_folder(root)
    (root / "reports.csv").write_bytes("volume,report\na.nii.gz,größer\n".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"line 2: byte \d+ \(0x0A\) is not UTF-16 text"):
        read_folder(root)


def many(tmp_path, count):
    rows = "".join(f"v{i}.nii.gz,Clear.,p{i // 2}\n" for i in range(count))
    return folder(
        tmp_path, f"volume,report,patient_id\n{rows}", volumes=[f"v{i}.nii.gz" for i in range(count)]
    )


def splits(studies):
    return {study.study_id: study.split for study in studies}


def test_splits_are_by_patient_about_80_10_10_and_always_the_same(tmp_path):
    root = many(tmp_path, 1000)
    studies, _ = read_folder(root)
    by_patient = {}
    for study in studies:
        assert by_patient.setdefault(study.patient_id, study.split) == study.split
    counts = [list(by_patient.values()).count(split) for split in ("train", "val", "test")]
    assert sum(counts) == 500
    assert 370 < counts[0] < 430
    assert 30 < counts[1] < 70
    assert 30 < counts[2] < 70
    assert splits(read_folder(root)[0]) == splits(studies)
    assert splits(read_folder(root, seed=1)[0]) != splits(studies)


def test_more_patients_do_not_move_those_who_were_there(tmp_path):
    before = splits(read_folder(many(tmp_path / "a", 400))[0])
    after = splits(read_folder(many(tmp_path / "b", 800))[0])
    assert before.items() <= after.items()


@pytest.mark.parametrize("count", [6, 8, 20])
def test_few_patients_still_fill_all_three_splits(tmp_path, count):
    for seed in range(5):
        studies, _ = read_folder(many(tmp_path, count), seed=seed)
        assert {study.split for study in studies} == {"train", "val", "test"}


def test_a_patient_takes_the_split_that_one_of_its_rows_gives(tmp_path):
    root = folder(tmp_path, "volume,report,patient_id,split\na.nii.gz,A.,p,\nb.nii.gz,B.,p,test\n")
    assert splits(read_folder(root)[0]) == {"a": "test", "b": "test"}


def test_a_patient_in_two_splits_is_an_error_that_names_both_but_not_the_patient(tmp_path):
    root = folder(tmp_path, "volume,report,patient_id,split\na.nii.gz,A.,Doe,train\nb.nii.gz,B.,Doe,test\n")
    with pytest.raises(ValueError, match="study a in train, study b in test") as caught:
        read_folder(root)
    assert "Doe" not in str(caught.value)
