"""GREEN by a language model: real, if random, checkpoints end to end; scripted answers where words matter."""

import hashlib
import json

import pytest

from mu2llm.evaluation import green, parts, prompt
from mu2llm.evaluation.judges import find_judge
from mu2llm.evaluation.model_judge import TransformersJudge

REFERENCE = "There is a small left pleural effusion. The heart is enlarged."
CANDIDATE = "The heart is enlarged. No pleural effusion."
FILLER = "The lungs show no consolidation. " * 50 + "The spleen is normal in size. " * 15  # 340 words
ENDS = {"llama": "</s>", "phi": "<|endoftext|>"}


def tokenizer(kind):
    """As the published checkpoints': RadLlama2 puts <s> in front by itself, RadPhi2 nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", ENDS[kind]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([prompt.PROMPT, FILLER], trainer)
    if kind == "llama":
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token=ENDS[kind])


@pytest.fixture(scope="module", params=sorted(ENDS))
def checkpoint(request, tmp_path_factory):
    """A tiny random checkpoint of the class of GREEN-RadLlama2-7B, and one of GREEN-RadPhi2's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

    folder = tmp_path_factory.mktemp("judges") / f"GREEN-{request.param}"
    words = tokenizer(request.param)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 800,
        "vocab_size": len(words),
    }
    torch.manual_seed(0)
    model = (
        LlamaForCausalLM(LlamaConfig(**size))
        if request.param == "llama"
        else PhiForCausalLM(PhiConfig(**size))
    )
    # Sampling settings of a checkpoint, which a greedy judge must not take over.
    model.generation_config.update(do_sample=True, temperature=0.1, top_p=0.5)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def answer(matched, significant=(0,) * 6):
    lists = [[f"error {i}" for i in range(count)] for count in significant]
    return green.write(lists, [[]] * 6, [f"finding {i}" for i in range(matched)], "[Explanation]:\nWords.")


@pytest.fixture
def scripted(checkpoint, monkeypatch):
    """A judge that answers from a script: each asking takes the next answer. `calls` records the askings."""
    judge = TransformersJudge(checkpoint)
    judge.script, judge.calls = [], []

    def complete(ids, total, sample=False):
        judge.calls.append(([judge.tokenizer.decode(row) for row in ids], total, sample))
        return [dict(zip(("text", "ended"), judge.script.pop(0), strict=True)) for _ in ids]

    monkeypatch.setattr(judge, "complete", complete)
    return judge


# --- prompt ----------------------------------------------------------------------------------------------


def test_the_prompt_holds_both_reports_on_one_line_each():
    text = prompt.prompt("The heart\n is {candidate} enlarged.", "Normal {x}.")
    assert "\n    2. Reference Report:\n    The heart is {candidate} enlarged.\n\n    3." in text
    assert "\n    3. Candidate Report:\n    Normal {x}.\n\n    4." in text
    assert text.startswith(
        "Objective: Evaluate the accuracy of a candidate radiology report in comparison to a "
    )
    assert text.endswith("<Finding n>\n    ```\n")
    assert [line for line in text.split("\n") if line and not line.startswith("    ")] == [
        text.split("\n")[0]
    ]


# SHA-256 of what GREEN's own make_prompt and chat template (green-score 0.0.12) make of this pair.
PUBLISHED = {
    "</s>": "e073f909566a7d3ca469d465213c4cbd987a943377e74abfadc0ba77b66da901",
    "<|endoftext|>": "c4b59f4a733c596696880479ede552bd1f5caf234831078aaed9050e5c73bdd0",
}


@pytest.mark.parametrize("end", PUBLISHED)
def test_the_prompt_is_the_published_one_character_by_character(end):
    asked = prompt.chat(prompt.prompt("The reference.", "The candidate."), end)
    assert hashlib.sha256(asked.encode()).hexdigest() == PUBLISHED[end]


def test_the_prompt_cuts_nothing():
    with pytest.raises(ValueError, match="300 words"):
        prompt.prompt("word " * 301, "word")
    assert prompt.fits("word " * 300)


def test_the_chat_format_of_both_checkpoints(scripted):
    scripted.script = [(answer(1), True)]
    scripted.score([REFERENCE], [CANDIDATE])
    (((asked,), total, sample),) = scripted.calls
    end = scripted.tokenizer.eos_token
    start = "<s>" if end == "</s>" else ""
    body = prompt.prompt(REFERENCE, CANDIDATE)
    assert asked == f"{start}<|user|>\n{body}{end}\n<|assistant|>\n{end}\n<|assistant|>\n"
    assert (total, sample) == (800, False)


# --- real random checkpoints -----------------------------------------------------------------------------


def test_a_random_model_scores_nothing(checkpoint, tmp_path):
    judge = find_judge(str(checkpoint), tmp_path)
    assert judge.name.startswith(checkpoint.name + "@")
    first = judge.score([REFERENCE, REFERENCE, "", "No nodule."], [CANDIDATE, "Normal.", CANDIDATE, "x"])
    assert [j.score for j in first] == [None] * 4
    assert first[2].status == "no_findings"
    assert {first[i].status for i in (0, 1, 3)} <= {"truncated", "missing_section", "malformed"}
    assert first[0].completion and first[0].reason
    # A second run finds the answers: it does not even load the model.
    again = find_judge(checkpoint, tmp_path)
    assert again.score([REFERENCE], [CANDIDATE]) == [first[0]]
    assert "model" not in vars(again)


def test_batches_do_not_change_greedy_answers(checkpoint):
    judge = TransformersJudge(checkpoint)
    long, short = (judge._prompt_ids(parts.Part("", r, CANDIDATE)) for r in (REFERENCE * 3, "No nodule."))
    together = judge.complete([long, short], len(long) + 12)
    alone = judge.complete([short], len(short) + 12)
    assert together[1]["text"][:12] == alone[0]["text"][:12]


def test_a_sampled_answer_is_the_same_again_and_leaves_the_global_state(checkpoint):
    import torch

    judge = TransformersJudge(checkpoint)
    ids = [judge._prompt_ids(parts.Part("", REFERENCE, CANDIDATE))]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = judge.complete(ids, len(ids[0]) + 12, True)
    assert torch.rand(1) == expected
    assert judge.complete(ids, len(ids[0]) + 12, True) == one
    assert judge.complete(ids, len(ids[0]) + 12, False) != one


# --- asking ----------------------------------------------------------------------------------------------


def test_counts_and_score_come_from_the_completion(scripted):
    scripted.script = [(answer(2, (1, 0, 0, 1, 0, 0)), True)]
    (judgement,) = scripted.score([REFERENCE], [CANDIDATE])
    assert (judgement.matched, judgement.significant, judgement.score) == (2, [1, 0, 0, 1, 0, 0], 0.5)
    assert judgement.status == "ok" and judgement.completion.startswith("[Explanation]")


def test_a_pair_that_comes_twice_is_asked_once(scripted):
    scripted.script = [(answer(1), True), (answer(2), True)]
    pairs = [REFERENCE, "No nodule.", REFERENCE], [CANDIDATE, "No nodule.", CANDIDATE + " \n"]
    scores = scripted.score(*pairs)
    assert scripted.script == [] and len(scores) == 3
    assert scores[0].matched == scores[2].matched


@pytest.mark.parametrize(
    ("answers", "status", "sampled"),
    [
        ([("No format at all.", True), (answer(3), True)], "ok", True),
        ([("No format at all.", True), ("None again.", True)], "missing_section", True),
        ([(answer(3)[:150], False), ("x", False)], "truncated", True),
    ],
)
def test_what_is_not_ok_is_asked_once_more(scripted, answers, status, sampled):
    scripted.script = list(answers)
    (judgement,) = scripted.score([REFERENCE], [CANDIDATE])
    assert [call[2] for call in scripted.calls] == [False, sampled]
    assert (judgement.status, judgement.score) == (status, 1.0 if status == "ok" else None)
    assert scripted.score([REFERENCE], [CANDIDATE]) == [judgement]
    assert len(scripted.calls) == 2


def test_what_was_cut_off_gets_more_room_where_there_is_some(scripted):
    scripted.context = 4096
    scripted.script = [(answer(3)[:150], False), (answer(3), True)]
    (judgement,) = scripted.score([REFERENCE], [CANDIDATE])
    assert [(total, sample) for _, total, sample in scripted.calls] == [(2048, False), (4096, False)]
    assert judgement.score == 1


def test_other_weights_are_another_judge(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, other)
    assert TransformersJudge(other).name == TransformersJudge(checkpoint).name
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert TransformersJudge(other).name != TransformersJudge(checkpoint).name


def test_a_half_written_store_is_read_as_far_as_it_goes(scripted, checkpoint, tmp_path):
    scripted._store = TransformersJudge(checkpoint, store=tmp_path)._store
    scripted.script = [(answer(1), True), (answer(1), True)]
    scripted.score([REFERENCE], [CANDIDATE])
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a") as file:
        file.write('\n{"key": "cut o')
    scripted.score(["No nodule."], [CANDIDATE])
    known = TransformersJudge(checkpoint, store=tmp_path)
    assert known.score([REFERENCE, "No nodule."], [CANDIDATE, CANDIDATE])[1].score == 1
    assert path.stat().st_mode & 0o077 == 0


# --- long reports ----------------------------------------------------------------------------------------


def test_a_long_report_is_scored_by_region_and_nothing_is_cut(scripted):
    reference = (
        FILLER + "There is a hypodense liver lesion. The portal phase is good. A rib fracture is seen."
    )
    candidate = "Cardiomegaly. The liver is normal. No fracture."
    scripted.context = 2048
    scripted.script = [(answer(1, (0, 1, 0, 0, 0, 0)), True), (answer(2), True), (answer(0), True)]
    (judgement,) = scripted.score([reference], [candidate])
    asked = "\n".join(text for texts, _, _ in scripted.calls for text in texts)
    for sentence in (*reference.split(". "), *candidate.split(". ")):
        assert sentence.strip(". ") in asked
    assert (judgement.matched, sum(judgement.significant), judgement.score) == (3, 1, 0.75)
    assert [line for line in judgement.completion.split("\n") if line.startswith("===")] == [
        "=== chest ===",
        "=== abdomen ===",
        "=== other ===",
    ]


def test_one_part_that_fails_leaves_the_pair_unscored(scripted):
    scripted.context = 2048
    scripted.script = [(answer(1), True), ("?", True), ("?", True)]
    (judgement,) = scripted.score([FILLER + "There is a liver lesion."], ["A liver lesion."])
    assert (judgement.score, judgement.status, judgement.matched) == (None, "missing_section", 0)


def test_an_organ_that_is_too_long_by_itself_is_not_scored(scripted):
    (judgement,) = scripted.score(["The lungs show no consolidation. " * 61], [CANDIDATE])
    assert (judgement.score, judgement.status, scripted.calls) == (None, "too_long", [])


def test_a_prompt_of_too_many_tokens_is_not_asked(scripted):
    (judgement,) = scripted.score(["长" * 900], [CANDIDATE])
    assert (judgement.score, judgement.status, scripted.calls) == (None, "too_long", [])


def test_a_summary_of_several_regions_is_not_counted_twice():
    report = "Left pleural effusion. Liver lesion. Impression: effusion on the left, liver lesion."
    assert [organ for organ, _ in parts.by_organ(report)] == ["pleura", "liver"]
    new = "Left pleural effusion. Impression: pleural effusion and a new liver lesion."
    assert len(parts.by_organ(new)) == 2


# --- mistakes --------------------------------------------------------------------------------------------


def test_user_mistakes(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        find_judge(tmp_path)
    with pytest.raises(ValueError, match="'GREEN-7b' is unknown"):
        find_judge("GREEN-7b")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="no safetensors"):
        find_judge(tmp_path)
    with pytest.raises(ValueError, match="2 references"):
        find_judge(checkpoint).score(["a", "b"], ["a"])


def test_a_checkpoint_that_lacks_a_tensor_is_refused(checkpoint, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        TransformersJudge(folder).score([REFERENCE], [CANDIDATE])


def test_settings_name_the_judge(checkpoint):
    settings = TransformersJudge(checkpoint).settings
    assert settings["kind"] == "transformers" and settings["folder"] == str(checkpoint)
    assert json.loads(json.dumps(settings)) == settings


def test_an_evaluation_by_a_checkpoint(checkpoint, model, studies_file, tmp_path):
    """A random judge: every study is unscored, the means are None, and the answers are kept beside it."""
    from mu2llm.evaluation.evaluate import evaluate

    numbers = evaluate(
        model,
        studies_file,
        tmp_path,
        judge=str(checkpoint),
        limit=2,
        max_new_tokens=4,
        resamples=20,
        cases=0,
    )
    assert numbers["judge"] == TransformersJudge(checkpoint).name
    assert numbers["judge_settings"]["folder"] == str(checkpoint)
    assert (numbers["green"], numbers["green_ci"], numbers["green_unscored"]) == (None, None, 2)
    assert sum(numbers["green_unscored_why"].values()) == 2
    assert list((tmp_path / "judge").glob("*.jsonl"))
