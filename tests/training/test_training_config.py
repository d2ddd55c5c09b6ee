import re
from dataclasses import asdict

import pytest

from mu2llm.training import config as configs


def settings(**values):
    return {"stage": "sft", "model": "m", "out": "o", **values}


def test_a_configuration_survives_its_file(tmp_path):
    made = configs.build(settings(out=str(tmp_path), learning_rate="4e-6", tasks={"report": 1, "vqa": 0.5}))
    path = configs.save(made)
    assert path == tmp_path / "config.yaml"
    assert asdict(configs.load(path)) == asdict(made)
    assert made.learning_rate == 4e-6
    assert not list(tmp_path.glob("*.part"))


def test_overrides_go_over_the_file_and_reach_into_mappings(tmp_path):
    path = configs.save(configs.build(settings(tasks={"report": 1.0})), tmp_path / "c.yaml")
    made = configs.load(path, ["max_steps=7", "tasks.vqa=0.5", "freeze=[vision_tower]", "bf16=true"])
    assert (made.max_steps, made.tasks, made.freeze, made.bf16) == (
        7,
        {"report": 1.0, "vqa": 0.5},
        ["vision_tower"],
        True,
    )


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({"learning_rat": 1}, [], "unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
        ({}, ["max_step=3"], "did you mean 'max_steps'?"),
        ({}, ["max_steps"], "not key=value"),
        ({}, ["seed.x=1"], "seed has no parts"),
        ({"stage": "sfd"}, [], "stage: 'sfd' is not one of vision, sft, dpo"),
        ({"preference_share": 0.91}, [], "preference_share: 0.91 must be from 0 to 0.9"),
        ({"preference_share": -1}, [], "preference_share: -1.0 must be from 0 to 0.9"),
        ({}, ["preference_share=.nan"], "preference_share: nan is not a number"),
        ({"learning_rate": "fast"}, [], "learning_rate: 'fast' is not a number"),
        ({"max_steps": 1.5}, [], "max_steps: 1.5 is not a whole number"),
        ({"bf16": 1}, [], "bf16: 1 is not true or false"),
        ({"zero_stage": 4}, [], "zero_stage: 4 must be from 0 to 3"),
        ({"learning_rate": 0}, [], "must be above 0"),
        ({"freeze": "vision_tower"}, [], "freeze: 'vision_tower' is not a list of texts"),
        ({"tasks": {"report": -1}}, [], "tasks.report: -1.0 must not be below 0"),
        ({"loss_type": "sigmoidal"}, [], "loss_type: 'sigmoidal' is not one of"),
        ({"offload": True, "zero_stage": 0}, [], "offload"),
        ({"stage": "vision", "zero_stage": 2}, [], "zero_stage: 2 cuts up matrices"),
        ({"epochs": 0}, [], "epochs: 0.0 must be above 0, or give max_steps"),
        ({"model": ""}, [], "model: missing"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(values, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.build(settings(**values), overrides)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        configs.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize("preset", configs.preset_names())
@pytest.mark.parametrize("stage", configs.STAGES)
def test_every_preset_makes_a_sound_configuration_of_every_stage(preset, stage):
    made = configs.from_preset(preset, stage, ["seed=3"], model="m", out="o")
    assert (made.stage, made.seed) == (stage, 3)


def test_the_paper_preset_holds_the_papers_numbers():
    made = configs.from_preset("mu2-llama-1b", "sft", model="m", out="o")
    assert (made.learning_rate, made.schedule, made.warmup_ratio, made.epochs, made.bf16) == (
        4e-6,
        "cosine",
        0.1,
        4,
        True,
    )


def test_preferences_presets_are_options_of_build_preferences():
    from mu2llm.training.preferences import Settings

    for preset in configs.preset_names():
        Settings(model="m", studies="s", out="o", **configs.preset_settings(preset, "preferences"))


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"preset 'tiney' is unknown; presets are .*; did you mean 'tiny'"):
        configs.from_preset("tiney", "sft", model="m", out="o")
