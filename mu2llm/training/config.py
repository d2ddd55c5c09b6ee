"""One configuration for every training stage, on a laptop or a cluster.

A dataclass that checks itself; read from and written to YAML, and saved beside every output. Where a number
comes from the paper it stands in the presets, not here.
"""

import difflib
import math
import os
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml

STAGES = ("vision", "sft", "dpo")
CHOICES = {
    "stage": STAGES,
    "schedule": ("cosine", "linear", "constant_with_warmup"),
    "group": ("none", "length", "study"),
    "objective": ("labels", "contrastive"),
    "loss_type": ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sigmoid_norm"),
    "resume": ("auto", "never"),
}
PRESET_SECTIONS = ("common", *STAGES, "preferences")


@dataclass
class TrainConfig:
    """Settings of one run.

    Args:
        stage: vision | sft | dpo.
        model: folder of the model to start from (weights and processor).
        data: what is trained on: samples.jsonl (sft), preferences.jsonl (dpo); vision reads `studies`.
        studies: studies.jsonl, which tells split and volume of every study.
        out: folder for config.yaml, checkpoints/, train.json and the finished model/.
        cache: folder of the prepared frames; empty: `frames/` beside `studies`.
        tasks: weight of each task in an SFT epoch: 1 all its samples once, 0.5 half of them, 2 all twice;
            a task that is not named is left out.
        objective: what vision pre-training learns from: labels of the findings that reports state, or
            contrastive, to tell each volume's own report from the others of the batch.
        lora_rank: above 0 the decoder learns by low-rank adapters alone (LoRA), scaled by `lora_alpha` /
            `lora_rank` and merged into it at the end.
        preference_share: the share of the train split's patients that vision and sft leave alone, so that
            preferences (given the same share) rank drafts of volumes that the model has not learned by heart.
        freeze: parts of the model that do not learn, by the start of their parameters' names.
        learning_rate, schedule, warmup_ratio, weight_decay, max_grad_norm: AdamW and its course.
        epochs: passes over the data; `max_steps` > 0 ends earlier or later and goes before it.
        per_device_batch, grad_accum: a step reads processes × per_device_batch × grad_accum samples.
        group: none reads samples at random; length reads those of like length together, so that little of a
            batch is padding; study (sft) also keeps up to four samples of a study together, whose volume is
            then encoded once.
        workers: processes that prepare batches ahead, for each training process; 0: it does so itself.
        bf16: compute in bfloat16. gradient_checkpointing: less memory, a third more time.
        zero_stage: DeepSpeed ZeRO 1, 2 or 3; 0, which vision asks for, trains without DeepSpeed.
        offload: the optimizer's state in host memory.
        save_steps: a checkpoint every so many steps; the `keep_checkpoints` newest stay, at least two.
        log_steps: a progress line every so many steps.
        eval_steps: validation loss every so many steps (0: never) on at most `eval_limit` samples of the
            val split, with their volumes and again with blank ones: the gap tells whether the model looks.
        resume: auto goes on from the newest whole checkpoint in `out`; never starts over.
        beta, loss_type, label_smoothing: DPO's (TRL's names).
        sft_weight: how much of the chosen draft's own cross-entropy is added to DPO's loss; it keeps the
            chosen draft from becoming unlikely together with the rejected one.
        reference_batch: pairs a time while the reference's log-probabilities are computed.
        tracking_uri: where MLflow keeps the run (sqlite:///path/mlflow.db or a server's address); empty: not
            at all. `experiment` is the experiment's name there.
    """

    stage: str
    model: str
    out: str
    data: str = ""
    studies: str = ""
    cache: str = ""
    tasks: dict[str, float] = field(default_factory=lambda: {"report": 1.0})
    objective: str = "labels"
    preference_share: float = 0.0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    freeze: list[str] = field(default_factory=list)
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int = 0
    per_device_batch: int = 1
    grad_accum: int = 1
    group: str = "none"
    workers: int = 0
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    zero_stage: int = 2
    offload: bool = False
    save_steps: int = 200
    keep_checkpoints: int = 2
    log_steps: int = 10
    eval_steps: int = 0
    eval_limit: int = 64
    resume: str = "auto"
    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    reference_batch: int = 8
    tracking_uri: str = ""
    experiment: str = "mu2llm-training"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            setattr(self, name, typed(name, hint, getattr(self, name)))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name, least, most in (
            ("zero_stage", 0, 3),
            ("per_device_batch", 1, None),
            ("grad_accum", 1, None),
            ("save_steps", 1, None),
            ("keep_checkpoints", 2, None),  # the newest may be torn
            ("workers", 0, 64),
            ("lora_rank", 0, 1024),
            ("log_steps", 1, None),
            ("eval_steps", 0, None),
            ("eval_limit", 1, None),
            ("reference_batch", 1, None),
            ("max_steps", 0, None),
            ("preference_share", 0, 0.9),
            ("warmup_ratio", 0, 0.9),
            ("label_smoothing", 0, 0.5),
            ("weight_decay", 0, None),
            ("sft_weight", 0, None),
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                bound = f"at least {least}" if most is None else f"from {least} to {most}"
                raise ValueError(f"{name}: {value} must be {bound}")
        for name in ("learning_rate", "beta", "max_grad_norm", "lora_alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")
        if self.epochs <= 0 and not self.max_steps:
            raise ValueError(f"epochs: {self.epochs} must be above 0, or give max_steps")
        if self.group == "study" and self.stage != "sft":
            raise ValueError(
                f"group: study is for sft; in {self.stage} a study is read once: set group=length"
            )
        if self.stage == "vision" and self.zero_stage:
            raise ValueError(
                f"zero_stage: {self.zero_stage} cuts up matrices that vision's optimizer (Muon) needs whole: "
                "set zero_stage=0 offload=false"
            )
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload: true needs DeepSpeed; set zero_stage to 1, 2 or 3")

    @property
    def frames_folder(self) -> Path:
        """Where the prepared frames of `studies` are kept."""
        return Path(self.cache) if self.cache else Path(self.studies).parent / "frames"


def load(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Reads a YAML file of settings, then applies `key=value` overrides."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no training configuration at {path}")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines")
    return build({**values}, overrides)


def build(values: dict[str, Any], overrides: list[str] | None = None) -> TrainConfig:
    """A checked configuration from settings by name; an unknown name is an error with a suggestion."""
    values = apply_overrides(values, overrides or [])
    check_names(values, [f.name for f in fields(TrainConfig)], "setting")
    for name in ("stage", "model", "out"):
        if not values.get(name):
            raise ValueError(f"{name}: missing from the training configuration")
    return TrainConfig(**values)


def from_preset(preset: str, stage: str, overrides: list[str] | None = None, **values: Any) -> TrainConfig:
    """The preset's settings for a stage, with `values` (paths, sizes) and then `overrides` put over them."""
    return build({**preset_settings(preset, stage), "stage": stage, **values}, overrides)


def preset_settings(preset: str, section: str) -> dict[str, Any]:
    """What a preset says for one stage (or `preferences`): its own section over the common one."""
    known = preset_names()
    if preset not in known:
        raise ValueError(
            f"preset {preset!r} is unknown; presets are {', '.join(known)}{_suggest(preset, known)}"
        )
    if section not in PRESET_SECTIONS:
        raise ValueError(f"stage: {section!r} is not one of {', '.join(PRESET_SECTIONS[1:])}")
    text = files("mu2llm.training").joinpath("presets", f"{preset}.yaml").read_text(encoding="utf-8")
    sections = yaml.safe_load(text)
    check_names(sections, list(PRESET_SECTIONS), f"section of preset {preset}")
    common = {} if section == "preferences" else sections.get("common", {})
    return {**common, **sections.get(section, {})}


def preset_names() -> list[str]:
    folder = files("mu2llm.training").joinpath("presets")
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def save(config: TrainConfig, path: str | Path | None = None) -> Path:
    """Writes the configuration to `path` (default `out/config.yaml`), whole or not at all."""
    path = Path(path or Path(config.out) / "config.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(
        yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    temporary.replace(path)
    return path


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`key=value` texts put over `values`; the value is YAML, and `tasks.vqa=0.5` reaches into a mapping."""
    values = dict(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override {override!r} is not key=value, for example learning_rate=1e-4")
        key, _, inner = key.strip().partition(".")
        value = yaml.safe_load(text)
        if not inner:
            values[key] = value
        elif key == "tasks":
            values[key] = {**values.get(key, {}), inner: value}
        else:
            raise ValueError(f"override {override!r}: {key} has no parts")
    return values


def check_names(values: dict[str, Any], known: list[str], what: str) -> None:
    """Raises `ValueError` for the first name that is not known, with the nearest known one."""
    for name in values:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{_suggest(str(name), known)}")


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def typed(name: str, hint: Any, value: Any) -> Any:
    """The value as the field's type. YAML reads `4e-6` as text and `1` as an integer: both are numbers."""
    if hint is float:
        try:
            number = float(_not_bool(value))
        except (TypeError, ValueError):
            raise ValueError(f"{name}: {value!r} is not a number") from None
        if math.isnan(number):  # it is within all bounds
            raise ValueError(f"{name}: {value!r} is not a number")
        return number
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ValueError(f"{name}: {value!r} is not a whole number")
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{name}: {value!r} is not true or false")
    if hint is str:
        if isinstance(value, str | os.PathLike):
            return str(value)
        raise ValueError(f"{name}: {value!r} is not a text")
    if hint == list[str]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        raise ValueError(f"{name}: {value!r} is not a list of texts")
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {value!r} is not a mapping of weights")
    weights = {str(key): typed(f"{name}.{key}", float, weight) for key, weight in value.items()}
    for key, weight in weights.items():
        if weight < 0:
            raise ValueError(f"{name}.{key}: {weight} must not be below 0")
    return weights


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(value)
    return value
