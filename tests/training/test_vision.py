"""Vision pre-training: what it learns from, its optimizer, its start."""

import numpy as np
import pytest
import torch

from mu2llm.data.records import Report, Study
from mu2llm.model.tiny import build_tiny
from mu2llm.training.labels import LabelHead, SeeingModel, findings_named
from mu2llm.training.muon import MuonAdamW, orthogonalise
from mu2llm.training.vision import whiten


def study(number, text):
    return Study(f"s{number}", f"p{number}", "test", "train", f"v{number}", "hu", Report(text))


def test_labels_are_the_findings_and_qualities_that_enough_reports_state():
    reports = ["Large left pleural effusion. No lung nodule."] * 8 + ["The heart is enlarged."] * 7
    labels, named = findings_named([study(i, text) for i, text in enumerate(reports)])
    assert labels == ["pleural effusion, left", "pleural effusion, left, large"]
    assert named["s0"] == set(labels)


def test_reports_without_findings_end_in_a_clear_error():
    with pytest.raises(
        ValueError, match=r"reads 20 reports .* more than 0: studies with findings are needed"
    ):
        findings_named([study(i, "The lungs are clear.") for i in range(20)])
    few = [study(i, "Large left pleural effusion.") for i in range(3)]
    with pytest.raises(ValueError, match="more than 3: about 3 times as many are needed"):
        findings_named(few)


def test_an_orthogonalised_matrix_has_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.4


def test_both_halves_of_the_optimizer_lower_a_loss_and_resume_exactly():
    def setting():
        torch.manual_seed(1)
        layer = torch.nn.Linear(6, 4)
        return layer, MuonAdamW([layer.weight], [layer.bias], matrix_lr=0.02, lr=0.01)

    def steps(layer, optimizer, count):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(64, 6, generator=generator)
        y = x[:, :4] * 2 + 1
        for _ in range(count):
            optimizer.zero_grad()
            loss = (layer(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    layer, optimizer = setting()
    first = steps(layer, optimizer, 1)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    steps(layer, optimizer, 20)
    assert steps(layer, optimizer, 60) < 0.7 * first
    assert not torch.equal(before[0], layer.weight) and not torch.equal(before[1], layer.bias)

    whole, its = setting()
    steps(whole, its, 10)
    part, first_half = setting()
    steps(part, first_half, 5)
    again, second_half = setting()
    again.load_state_dict(part.state_dict())
    second_half.load_state_dict(first_half.state_dict())
    steps(again, second_half, 5)
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)


def test_a_head_finds_one_strong_token_among_many():
    torch.manual_seed(0)
    head = LabelHead(8, 2)
    tokens = torch.zeros(2, 50, 8)
    tokens[1, 17] = 5 * head.weight[0]
    assert head(tokens)[1, 0] > head(tokens)[0, 0] + 1


def test_whitening_makes_real_patches_equally_strong_in_every_direction(tmp_path):
    start, _ = build_tiny(["The lungs are clear."], width=32, vision_layers=1, text_layers=1)
    start.save_pretrained(tmp_path)
    model = SeeingModel.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    frames = {f"v{i}": rng.random((2, 16, 32, 32)).astype(np.float32) for i in range(20)}
    whiten(model, frames, [study(i, "") for i in range(20)], scale=1.0)
    embedded = []
    handle = model.vision_tower.patch_embedding.register_forward_hook(
        lambda _m, _i, out: embedded.append(out)
    )
    model.vision_tower(torch.from_numpy(np.concatenate(list(frames.values()))))
    handle.remove()
    spread = embedded[0].flatten(0, 1).std(0)
    assert spread.min() > 0.7 and spread.max() < 1.3
