def test_one_volume_for_both_drafts_gives_the_log_probabilities_of_two(hospital):
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from mu2llm.data.frames import FrameCache
    from mu2llm.data.records import Preference, read_jsonl
    from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor
    from mu2llm.training.data import read_studies
    from mu2llm.training.dpo import PairModel, _pair, collate_pairs

    studies = read_studies(hospital.studies)
    processor = Mu2Processor.from_pretrained(hospital.model)
    frames = FrameCache([s.volume for s in studies.values()], processor, hospital.root / "frames")
    preferences = list(read_jsonl(hospital.preferences, Preference))[:3]
    batch = collate_pairs(processor, frames)([_pair(p, studies, processor) for p in preferences])
    completion = batch.pop("completion_mask")
    labels = batch["input_ids"].masked_fill(completion == 0, -100)
    model = PairModel.from_pretrained(hospital.model).eval()
    add_fused_lm_head(model)
    with torch.no_grad():
        ours = model(**batch, labels=labels, fused_lm_head=True).log_probs.sum(1)

    plain = Mu2ForConditionalGeneration.from_pretrained(hospital.model).eval()
    for side, rows in (("chosen", ours[:3]), ("rejected", ours[3:])):
        for preference, row in zip(preferences, rows, strict=True):
            inputs = processor(
                [frames[preference.volume]], [preference.question], [getattr(preference, side)]
            )
            with torch.no_grad():
                loss = plain(**inputs).loss
            count = (inputs["labels"] != -100).sum()
            torch.testing.assert_close(row, -loss * count, rtol=1e-5, atol=1e-4)
