"""DeepSpeed: the configuration it is given, and what has to be told to it on a machine without a compiler."""

import os
from typing import Any

from mu2llm.training.config import TrainConfig


def deepspeed_config(config: TrainConfig) -> dict[str, Any] | None:
    """DeepSpeed's configuration for `config`, or None where `zero_stage` is 0.

    `auto` values are filled by transformers from its TrainingArguments. The optimizer is torch's AdamW in
    every case, so that a run with ZeRO and one without take the same steps.
    """
    if config.zero_stage == 0:
        return None
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.zero_stage == 3:
        # Without it a saved ZeRO-3 model would be a folder of shards that from_pretrained cannot read.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        # Ten rows, not DeepSpeed's 100,000 numbers: of a small model nothing would be cut up at all.
        zero["stage3_param_persistence_threshold"] = "auto"
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def prepare_runtime() -> None:
    """Call before DeepSpeed's first use. On CPU it compiles a shared-memory op at start, which needs a
    compiler and two minutes; gloo does the same work without."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
