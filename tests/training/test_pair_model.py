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


def test_packed_rows_see_what_the_rows_alone_would_see():
    import torch

    from mu2llm.training.dpo import pack

    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 9, (4, 12), generator=rng)
    rows[2:, :5] = rows[:2, :5]
    rows[2:, 5] = 9
    lengths = torch.tensor([12, 8, 7, 11])
    mask = torch.arange(12) < lengths[:, None]
    rows = rows * mask
    packed = pack(rows, mask.long())
    assert packed.shared == 5
    assert packed.input_ids.shape == (2, 5 + 7 + 6)

    # Every token's "state" is the sequence of tokens that it sees, in the order of their positions.
    seen = torch.zeros(2, 18, 12, dtype=torch.long)
    for row in range(2):
        for token in range(18):
            visible = packed.visible[row, 0, token]
            seen[row, token, packed.position_ids[row, visible]] = packed.input_ids[row, visible]
    states = packed.unpack(seen)
    assert states.shape == (4, 12, 12)
    for row in range(4):
        for token in range(lengths[row]):
            assert torch.equal(states[row, token], rows[row] * (torch.arange(12) <= token))
