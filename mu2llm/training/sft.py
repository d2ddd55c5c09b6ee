"""Supervised fine-tuning: the model learns to answer questions about a volume, reports first of all.

python -m torch.distributed.run --standalone --nproc_per_node=2 -m mu2llm.training.sft --config sft.yaml
"""

from transformers import TrainingArguments, set_seed

from mu2llm.training.config import TrainConfig
from mu2llm.training.data import (
    SampleDataset,
    collate_samples,
    mix,
    read_samples,
    read_studies,
    train_studies,
)
from mu2llm.training.deepspeed import prepare_runtime
from mu2llm.training.run import load_frames, load_model, run, training_arguments
from mu2llm.training.trainer import Grouped, StageTrainer, samples_a_step
from mu2llm.training.worker import main


def train(config: TrainConfig) -> bool:
    """Trains on the train split. Returns False where SIGTERM stopped it; see `mu2llm.training.run.run`."""
    prepare_runtime()
    set_seed(config.seed)
    studies = read_studies(config.studies)
    samples = read_samples(config.data, studies)
    args = TrainingArguments(
        **training_arguments(config)
    )  # before the model: ZeRO-3 shards it while it loads
    model, processor = load_model(config)
    frames = load_frames(config, studies, processor, args)
    evaluation = None
    if config.eval_steps:
        held_out = [sample for sample in samples["val"] if config.tasks.get(sample.task)][: config.eval_limit]
        if not held_out:
            raise ValueError(
                "eval_steps is set but the val split holds no sample of the tasks: set eval_steps=0"
            )
        evaluation = {
            "val": SampleDataset(held_out),
            "blank": SampleDataset(held_out, blank=True),
        }
    learned = {study.study_id for study in train_studies(studies, config.preference_share)}
    train_samples = [sample for sample in samples["train"] if sample.study_id in learned]
    whose = "the train split"
    if config.preference_share:
        whose += f" without the patients that preference_share {config.preference_share} keeps"
    epoch = mix(train_samples, config.tasks, config.seed, whose)
    trainer = StageTrainer(
        model=model,
        args=args,
        train_dataset=SampleDataset(epoch),
        eval_dataset=evaluation,
        data_collator=collate_samples(processor, frames),
    )
    if config.group != "none":
        lengths = [len(sample.question) + len(sample.answer) for sample in epoch]
        studies_of = [sample.study_id for sample in epoch] if config.group == "study" else None
        trainer.order = Grouped(lengths, samples_a_step(args), config.seed, studies_of)
    return run(trainer, config, processor)


if __name__ == "__main__":
    main("sft", train)
