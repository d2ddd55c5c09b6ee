"""Contrastive pre-training: volumes are told by their reports, on phantoms."""

import pytest
import torch

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Report, Study
from mu2llm.model.tiny import build_tiny
from mu2llm.training.contrastive import MatchingModel, Reader, ReportDataset, collate_reports, contrast


def test_the_loss_is_the_cross_entropy_of_ones_own_among_all():
    torch.manual_seed(0)
    volumes, reports = (torch.nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    expected = 0.0
    for i in range(5):
        expected -= (7.0 * volumes @ reports.T)[i].log_softmax(0)[i] / 10
        expected -= (7.0 * reports @ volumes.T)[i].log_softmax(0)[i] / 10
    torch.testing.assert_close(contrast(volumes, reports, torch.tensor(7.0)), expected)


def test_padding_of_a_report_has_no_influence_and_its_order_has():
    torch.manual_seed(0)
    reader = Reader(32).eval()
    words = torch.randn(1, 6, 32)
    short = reader(words[:, :4], torch.ones(1, 4))
    padded = reader(words, torch.tensor([[1, 1, 1, 1, 0, 0]]))
    torch.testing.assert_close(short, padded)
    assert (reader(words[:, [1, 0, 2, 3]], torch.ones(1, 4)) - short).abs().max() > 1e-3


def test_a_batch_of_one_is_refused(hospital, tmp_path):
    from mu2llm.training import config, vision

    paths = {"model": str(hospital.model), "studies": str(hospital.studies), "out": str(tmp_path)}
    alone = {"stage": "vision", "objective": "contrastive", "zero_stage": 0, "per_device_batch": 1}
    with pytest.raises(ValueError, match="per_device_batch: 1 in one process leaves no other report"):
        vision.train(config.build({**alone, **paths}))


@pytest.mark.slow
def test_volumes_of_phantoms_find_their_reports(tmp_path):
    import csv

    from mu2llm.data.phantom import write_phantoms
    from mu2llm.training.muon import MuonAdamW
    from mu2llm.training.vision import _by_muon, whiten

    write_phantoms(tmp_path, 48, preset="demo", seed=0)
    with (tmp_path / "reports.csv").open(encoding="utf-8") as file:
        studies = [
            Study(
                r["volume"],
                r["volume"],
                "d",
                "train",
                str(tmp_path / r["volume"]),
                "hu",
                Report(r["findings"]),
            )
            for r in csv.DictReader(file)
        ]
    torch.manual_seed(0)
    start, processor = build_tiny([s.report.text for s in studies], width=64, vision_layers=2, text_layers=1)
    start.save_pretrained(tmp_path / "model")
    model = MatchingModel.from_pretrained(tmp_path / "model")
    model.add_heads()
    model.language_model.requires_grad_(False)
    frames = FrameCache([study.volume for study in studies], processor, tmp_path)
    whiten(model, frames, studies)
    dataset = ReportDataset(studies, frames)
    batch = collate_reports(processor)([dataset[i] for i in range(48)])

    def found():
        with torch.no_grad():
            tower, visual, report = model.embed(**batch)
        own = torch.arange(48)
        return [float(((seen @ report.T).argmax(1) == own).float().mean()) for seen in (tower, visual)]

    assert max(found()) < 0.15
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in learning.items() if p.ndim == 2 and _by_muon(name)]
    others = [p for name, p in learning.items() if not (p.ndim == 2 and _by_muon(name))]
    optimizer = MuonAdamW(matrices, others, 0.01, 0.001)
    for _ in range(45):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert min(found()) > 0.6
