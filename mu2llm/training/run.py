"""What SFT and DPO share: the Trainer's arguments, the model with its frozen parts, the run and its end."""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

import mu2llm
from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Study
from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor, load
from mu2llm.training.config import TrainConfig
from mu2llm.training.config import save as save_config
from mu2llm.training.data import digest
from mu2llm.training.deepspeed import deepspeed_config
from mu2llm.training.lora import add_adapters, merge
from mu2llm.training.progress import Progress
from mu2llm.training.resume import Checkpoints, clear, newest_checkpoint
from mu2llm.training.tracking import MlflowRun, code_digest

# What may differ between the run that wrote a checkpoint and the one that goes on from it.
FREE = (
    *("model", "out", "data", "studies", "cache", "resume"),
    *("save_steps", "keep_checkpoints", "log_steps", "workers", "tracking_uri", "experiment"),
)


def training_arguments(config: TrainConfig) -> dict[str, Any]:
    """`config` in the words of transformers' TrainingArguments (and TRL's DPOConfig, which extends it)."""
    return {
        "output_dir": str(Path(config.out) / "checkpoints"),
        "per_device_train_batch_size": config.per_device_batch,
        "per_device_eval_batch_size": config.per_device_batch,
        "gradient_accumulation_steps": config.grad_accum,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,  # below 1 it is a share of all steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": config.bf16,
        "activation_checkpointing": config.gradient_checkpointing,
        "deepspeed": deepspeed_config(config),
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": config.keep_checkpoints,
        "logging_steps": config.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if config.eval_steps else "no",
        "eval_steps": config.eval_steps or None,
        "dataloader_num_workers": config.workers,
        "dataloader_persistent_workers": config.workers > 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": [],
    }


def load_model(
    config: TrainConfig, kind: type[Mu2ForConditionalGeneration] = Mu2ForConditionalGeneration
) -> tuple[Any, Mu2Processor]:
    """The model to train, its frozen parts marked, and its processor."""
    model, processor = load.load_model(config.model, kind, dtype=torch.float32)
    model.config.use_cache = False
    if config.lora_rank:
        add_adapters(model.language_model, config.lora_rank, config.lora_alpha)
    for prefix in config.freeze:
        frozen = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not frozen:
            parts = sorted({name.partition(".")[0] for name, _ in model.named_parameters()})
            raise ValueError(
                f"freeze: no parameter's name starts with {prefix!r}; parts are {', '.join(parts)}"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"freeze: {config.freeze} leaves nothing to train")
    return model, processor


def load_frames(
    config: TrainConfig, studies: dict[str, Study], processor: Mu2Processor, args: TrainingArguments
) -> FrameCache:
    """Frames of all studies, prepared by one process where they are not there yet."""
    with args.main_process_first(local=False, desc="preparing frames"):
        return FrameCache([study.volume for study in studies.values()], processor, config.frames_folder)


def run(trainer: Trainer, config: TrainConfig, processor: Mu2Processor) -> bool:
    """Trains from the newest whole checkpoint or from the start; saves the model and train.json at the end.

    Returns False where SIGTERM ended it early, with a checkpoint written and no model.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in FREE}
    weights = sorted(Path(config.model).glob("*.safetensors"))
    settings |= {
        "processes": trainer.args.world_size,
        "data_sha256": digest(config.data or config.studies),
        "model_sha256": {path.name: digest(path) for path in weights},
    }
    checkpoints = Checkpoints(settings)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(config.stage))
    trainer.add_callback(checkpoints)

    folder = str(trainer.args.output_dir)
    start = newest_checkpoint(folder, settings) if config.resume == "auto" else None
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        save_config(config)
        clear(folder, keep=start)
        size = len(trainer.train_dataset)  # type: ignore[arg-type]
        where = f"going on from {start}" if start else f"from {config.model}"
        print(f"{config.stage} {size} samples, processes: {trainer.args.world_size}, {where}", flush=True)
    trainer.accelerator.wait_for_everyone()

    tracked = None
    if config.tracking_uri and trainer.is_world_process_zero():
        tracked = MlflowRun(config, settings)
        trainer.add_callback(tracked)
    status = "FAILED"
    try:
        status = _train(trainer, config, processor, checkpoints, start, settings)
    finally:
        if tracked:
            tracked.finish(status)
    return status == "FINISHED"


def _train(
    trainer: Trainer,
    config: TrainConfig,
    processor: Mu2Processor,
    checkpoints: Checkpoints,
    start: Path | None,
    settings: dict[str, Any],
) -> str:
    """How it ended, in MLflow's words: FINISHED, or KILLED by SIGTERM with a checkpoint written."""
    begun = time.monotonic()
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    if checkpoints.stopped:
        if trainer.is_world_process_zero():
            print(f"{config.stage} stopped with a checkpoint at step {trainer.state.global_step}", flush=True)
        return "KILLED"
    _save_model(trainer, config, processor)
    if trainer.is_world_process_zero():
        _write_record(trainer, config, settings, time.monotonic() - begun)
        print(f"{config.stage} done: {Path(config.out) / 'model'}", flush=True)
    return "FINISHED"


def _save_model(trainer: Trainer, config: TrainConfig, processor: Mu2Processor) -> None:
    """Writes model and processor to `out/model`, whole or not at all."""
    folder = Path(config.out) / "model"
    wrapped = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    weights = trainer.accelerator.get_state_dict(wrapped)  # ZeRO-3 gathers here, in every process
    if trainer.is_world_process_zero():
        temporary = folder.with_name(folder.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.__class__ = (
            Mu2ForConditionalGeneration  # DPO trains a subclass; the folder names the model proper
        )
        model.config.use_cache = True
        if config.stage != "dpo":  # whom no stage has learned: preferences are drawn from them
            before = getattr(model.config, "preference_share", config.preference_share)
            model.config.preference_share = min(before, config.preference_share)
        # Vision pre-training's heads read labels; they are no part of the model.
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("heads.")}
        if config.lora_rank:
            weights = merge(weights, config.lora_alpha / config.lora_rank)
        for tied in model.all_tied_weights_keys:  # one tensor under two names; DeepSpeed hands out two copies
            weights.pop(tied, None)
        model.save_pretrained(temporary, state_dict=weights)
        processor.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    trainer.accelerator.wait_for_everyone()


def _write_record(trainer: Trainer, config: TrainConfig, settings: dict[str, Any], seconds: float) -> None:
    """out/train.json: what was trained, on what, and how the loss went."""
    import transformers

    model = trainer.accelerator.unwrap_model(trainer.model)
    record = {
        "config": asdict(config),
        **{name: settings[name] for name in ("data_sha256", "model_sha256", "processes")},
        "samples": len(trainer.train_dataset),  # type: ignore[arg-type]
        "parameters": sum(_size(p) for p in model.parameters()),
        "trainable_parameters": sum(_size(p) for p in model.parameters() if p.requires_grad),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(seconds, 1),  # of this run; a resumed one does not count the time before
        "versions": {
            "mu2llm": mu2llm.__version__,
            "code_sha256": code_digest(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "log": [entry for entry in trainer.state.log_history if "train_runtime" not in entry],
    }
    path = Path(config.out) / "train.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(path)


def _size(parameter: torch.nn.Parameter) -> int:
    """A ZeRO-3 parameter is empty where it is not gathered; DeepSpeed keeps its true size beside it."""
    return getattr(parameter, "ds_numel", parameter.numel())
