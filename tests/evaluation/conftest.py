"""A tiny random model and a few phantom studies with it."""

import csv

import pytest

from mu2llm.data.phantom import write_phantoms
from mu2llm.data.records import Report, Study, write_jsonl


@pytest.fixture(scope="session")
def studies(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, 7, preset="demo", seed=3)
    rows = []
    with (root / "reports.csv").open() as reports, (root / "labels.csv").open() as labels:
        for number, (report, label) in enumerate(
            zip(csv.DictReader(reports), csv.DictReader(labels), strict=True)
        ):
            del label["volume"]
            rows.append(
                Study(
                    study_id=f"study-{number}",
                    # The last two studies are of one patient.
                    patient_id=f"patient-{min(number, 5)}",
                    dataset="phantom",
                    split="test",
                    volume=str(root / report["volume"]),
                    intensity="hu",
                    report=Report(report["findings"], report["impression"]),
                    labels={name: int(value) for name, value in label.items()},
                )
            )
    return rows


@pytest.fixture(scope="session")
def studies_file(studies, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "studies.jsonl"
    write_jsonl(path, studies)
    return path


@pytest.fixture(scope="session")
def model(studies, tmp_path_factory):
    import torch

    from mu2llm.model.tiny import build_tiny

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    small, processor = build_tiny(
        [study.report.text for study in studies],
        width=32,
        vision_layers=1,
        text_layers=1,
        num_query_tokens=4,
        num_selected_tokens=8,
        vocab_size=400,
    )
    small.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def evaluated(model, studies_file, tmp_path_factory):
    """What `evaluate` returns, and the folder that it wrote; three studies have pictures."""
    from mu2llm.evaluation.evaluate import evaluate

    folder = tmp_path_factory.mktemp("evaluation") / "new"
    return (
        evaluate(model, studies_file, folder, cases=3, max_new_tokens=12, resamples=50, min_positives=1),
        folder,
    )


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """The folder of a tiny random BERT of twelve layers, for BERTScore."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder") / "bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heart", "is", "enlarged", "normal", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": len(words)}
    BertModel(BertConfig(num_hidden_layers=12, max_position_embeddings=12, **size)).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
