"""DPO on preference pairs, through TRL: the better draft becomes likelier than the worse, measured against
the model that training starts from (the reference).

    python -m torch.distributed.run --standalone --nproc_per_node=2 -m mu2llm.training.dpo --config dpo.yaml

What differs from TRL's own use: the pair's volume and prompt are read once for both drafts, and the
reference's log-probabilities are computed once, before training, and stored beside the run.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, disable_progress_bars, load_from_disk
from torch import Tensor
from transformers import set_seed
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Preference, Study, read_jsonl
from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor
from mu2llm.training.config import TrainConfig
from mu2llm.training.data import digest, read_studies
from mu2llm.training.deepspeed import prepare_runtime
from mu2llm.training.run import load_frames, load_model, run, training_arguments
from mu2llm.training.trainer import Grouped, StageTrainer, samples_a_step
from mu2llm.training.worker import main


class PairModel(Mu2ForConditionalGeneration):
    """The model as TRL's log-probability head wants it: `base_model` gives what goes into the LM head."""

    @property
    def base_model(self) -> Callable[..., BaseModelOutputWithPast]:  # type: ignore[override]
        return self.hidden_states

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """Hidden states (2B, L, D) of B chosen, then B rejected rows, which share B volumes and questions.

        A volume is encoded once, and what the two rows of a pair begin with in common, the prompt first of
        all, is read once: a row of the decoder's batch is that beginning, the rest of the chosen row, and the
        rest of the rejected one, which does not see the chosen.
        """
        packed = pack(input_ids, attention_mask)
        mask = torch.zeros(packed.visible.shape, device=input_ids.device, dtype=self.dtype)
        output = Mu2ForConditionalGeneration.forward(
            self,
            input_ids=packed.input_ids,
            attention_mask=mask.masked_fill(~packed.visible, torch.finfo(self.dtype).min),
            position_ids=packed.position_ids,
            visual_tokens=self.encode_volume(pixel_values, question_ids, question_mask),
            output_hidden_states=True,
            logits_to_keep=1,  # TRL multiplies by the LM head itself, in pieces
            use_cache=use_cache,
        )
        assert output.hidden_states is not None
        return BaseModelOutputWithPast(last_hidden_state=packed.unpack(output.hidden_states[-1]))


@dataclass
class Packed:
    """B pairs of rows as B rows: `shared` tokens, then both rests, `chosen` tokens of the first one.

    input_ids (B, N), position_ids (B, N), visible (B, 1, N, N): which tokens (last axis) each token sees.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    shared: int
    chosen: int
    width: int

    def unpack(self, states: Tensor) -> Tensor:
        """States (B, N, D) → (2B, `width`, D), chosen rows first; zeros where the rows are padded."""
        shared, chosen, rejected = states.tensor_split([self.shared, self.shared + self.chosen], dim=1)
        rows = [torch.cat([shared, rest], dim=1) for rest in (chosen, rejected)]
        return torch.cat([F.pad(row, (0, 0, 0, self.width - row.shape[1])) for row in rows])


def pack(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """Packs (2B, L) rows, padded on the right; B chosen ones come first."""
    ids, mask = (tensor.unflatten(0, (2, -1)) for tensor in (input_ids, attention_mask.bool()))
    alike = (ids[0] == ids[1]) & mask.all(0)
    shared = int(alike.long().cumprod(1).sum(1).min())
    ends = mask.sum(2).amax(1).tolist()
    rests = [(side, slice(shared, end)) for side, end in enumerate(ends)]

    def joined(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[0, :, :shared], *(tensor[side, :, rest] for side, rest in rests)], dim=1)

    chosen = ends[0] - shared
    tokens = joined(ids)
    place = torch.arange(tokens.shape[1], device=ids.device)
    second = place >= shared + chosen
    between = (place >= shared) & ~second
    visible = (place[:, None] >= place) & ~(second[:, None] & between)
    return Packed(
        input_ids=tokens,
        position_ids=(place - chosen * second).expand_as(tokens),
        visible=(visible & joined(mask)[:, None])[:, None],
        shared=shared,
        chosen=chosen,
        width=input_ids.shape[1],
    )


class PairTrainer(StageTrainer, DPOTrainer):
    """TRL's trainer, given rows that are already token ids."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: train.json is the record of a run."""


def train(config: TrainConfig) -> bool:
    """Trains on the pairs of the train split. Returns False where SIGTERM stopped it; see `run.run`."""
    prepare_runtime()
    disable_progress_bars()
    set_seed(config.seed)
    studies = read_studies(config.studies)
    args = DPOConfig(
        **training_arguments(config),
        beta=config.beta,
        loss_type=[config.loss_type, "sft"] if config.sft_weight else [config.loss_type],
        loss_weights=[1.0, config.sft_weight] if config.sft_weight else None,
        label_smoothing=config.label_smoothing,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.reference_batch,
        max_length=None,
    )
    model, processor = load_model(config, PairModel)
    frames = load_frames(config, studies, processor, args)
    with args.main_process_first(local=False, desc="tokenizing pairs"):
        pairs = _pairs(config, studies, processor)
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=pairs,
        processing_class=processor.tokenizer,
        data_collator=collate_pairs(processor, frames),
    )
    if config.group == "length":
        sides = zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)
        lengths = [sum(map(len, pair)) for pair in sides]
        trainer.order = Grouped(lengths, samples_a_step(args), config.seed)
    if trainer._precompute_engine is not None:
        trainer._precompute_engine.destroy()  # or this forward-only engine's ZeRO-3 hooks stay on the model
        trainer._precompute_engine = None
    return run(trainer, config, processor)


def _pairs(config: TrainConfig, studies: dict[str, Study], processor: Mu2Processor) -> Dataset:
    """The preferences as token ids, kept as a file in `out`: TRL stores the reference's log-probabilities
    beside it, under a name that holds the model's hash, so a resumed run finds them."""
    if not config.data or not Path(config.data).is_file():
        raise FileNotFoundError(
            f"no preferences file at {config.data or '(not set)'}: set data=…/preferences.jsonl"
        )
    folder = Path(config.out) / f"pairs-{digest(config.data)[:16]}"
    if not folder.is_dir():
        rows = [_pair(p, studies, processor) for p in read_jsonl(config.data, Preference)]
        if not rows:
            raise ValueError(f"{config.data} holds no pair: lower the margin or sample more candidates")
        temporary = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        Dataset.from_list(rows).save_to_disk(temporary)
        temporary.replace(folder)
    return load_from_disk(str(folder))


def _pair(preference: Preference, studies: dict[str, Study], processor: Mu2Processor) -> dict[str, Any]:
    study = studies.get(preference.study_id)
    if study is None:
        raise ValueError(f"preference of study {preference.study_id}: it is not in the studies file")
    if study.split != "train":
        raise ValueError(
            f"preference of study {preference.study_id}: it is in the {study.split} split, not train"
        )
    if preference.chosen == preference.rejected:
        raise ValueError(f"preference of study {study.study_id}: chosen and rejected are the same text")
    row: dict[str, Any] = {"volume": preference.volume, "question": preference.question}
    for side, text in (("chosen", preference.chosen), ("rejected", preference.rejected)):
        batch = processor(None, [preference.question], [text])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        row["prompt_ids"] = ids[labels == -100].tolist()
        row[f"{side}_ids"] = ids[labels != -100].tolist()
    return row


def collate_pairs(
    processor: Mu2Processor, frames: FrameCache
) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """TRL's batch of 2B rows (chosen, then rejected) with the B volumes and questions that they share."""
    texts = DataCollatorForPreference(pad_token_id=processor.tokenizer.pad_token_id)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        shared = processor([frames[row["volume"]] for row in rows], [row["question"] for row in rows])
        return {**texts(rows), **{k: shared[k] for k in ("pixel_values", "question_ids", "question_mask")}}

    return collate


if __name__ == "__main__":
    main("dpo", train)
