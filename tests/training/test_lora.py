import pytest
import torch

from mu2llm.model.tiny import build_tiny
from mu2llm.training.lora import add_adapters, merge


def test_merged_adapters_give_the_logits_of_adapters_in_place():
    torch.manual_seed(0)
    model, _ = build_tiny(["The lungs are clear."], width=32, vision_layers=1, text_layers=2)
    model.eval()
    ids = torch.randint(5, 200, (2, 9))
    plain = model(input_ids=ids).logits
    add_adapters(model.language_model, rank=4, alpha=8)
    torch.testing.assert_close(model(input_ids=ids).logits, plain)
    learning = {name for name, p in model.language_model.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in name for name in learning)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = model(input_ids=ids).logits
    assert (adapted - plain).abs().max() > 0.01

    merged = merge(model.state_dict(), scale=8 / 4)
    again, _ = build_tiny(["The lungs are clear."], width=32, vision_layers=1, text_layers=2)
    again.load_state_dict(merged)
    torch.testing.assert_close(again.eval()(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)


def test_freezing_the_decoder_with_adapters_leaves_the_rest(hospital):
    from mu2llm.training.config import build
    from mu2llm.training.run import load_model

    paths = {"model": str(hospital.model), "out": "o"}
    model, _ = load_model(build({"stage": "sft", **paths, "lora_rank": 2, "freeze": ["vision_tower"]}))
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"projector", "refiner", "aggregator", "language_model"}
    with pytest.raises(ValueError, match="lora_rank: -1 must be"):
        build({"stage": "sft", **paths, "lora_rank": -1})
