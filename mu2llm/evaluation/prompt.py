"""The prompt and the chat format that GREEN's published judges were trained and are run with.

Source of both: github.com/Stanford-AIMI/GREEN, `green_score` (the prompt, its 300 words a report) and
`training/finetune.py` (the chat template; Ostmeier et al. 2024). The checkpoints read this wording, its
indents and its two turns; another wording is another judge.
"""

MAX_WORDS = 300  # of each report, counted at white space; the original cuts what is longer

PROMPT = """\
Objective: Evaluate the accuracy of a candidate radiology report in comparison to a reference radiology \
report composed by expert radiologists.

    Process Overview: You will be presented with:

    1. The criteria for making a judgment.
    2. The reference radiology report.
    3. The candidate radiology report.
    4. The desired format for your assessment.

    1. Criteria for Judgment:

    For each candidate report, determine:

    The count of clinically significant errors.
    The count of clinically insignificant errors.

    Errors can fall into one of these categories:

    a) False report of a finding in the candidate.
    b) Missing a finding present in the reference.
    c) Misidentification of a finding's anatomic location/position.
    d) Misassessment of the severity of a finding.
    e) Mentioning a comparison that isn't in the reference.
    f) Omitting a comparison detailing a change from a prior study.
    Note: Concentrate on the clinical findings rather than the report's writing style. Evaluate only the \
findings that appear in both reports.

    2. Reference Report:
    {reference}

    3. Candidate Report:
    {candidate}

    4. Reporting Your Assessment:

    Follow this specific format for your output, even if no errors are found:
    ```
    [Explanation]:
    <Explanation>

    [Clinically Significant Errors]:
    (a) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>
    ....
    (f) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>

    [Clinically Insignificant Errors]:
    (a) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>
    ....
    (f) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>

    [Matched Findings]:
    <The number of matched findings>. <Finding 1>; <Finding 2>; ...; <Finding n>
    ```
"""


def plain(report: str) -> str:
    """A report as the prompt shows it: one line, single blanks."""
    return " ".join(report.split())


def fits(*reports: str) -> bool:
    """Whether the prompt holds these reports whole."""
    return all(len(report.split()) <= MAX_WORDS for report in reports)


def prompt(reference: str, candidate: str) -> str:
    """The published prompt. Raises `ValueError` for a report that it would cut."""
    if not fits(reference, candidate):
        raise ValueError(f"a report is longer than the prompt's {MAX_WORDS} words: score it in parts")
    # Not str.format: a report may hold braces, and the candidate the reference's placeholder.
    before, _, rest = PROMPT.partition("{reference}")
    between, _, after = rest.partition("{candidate}")
    return before + plain(reference) + between + plain(candidate) + after


def chat(text: str, eos: str) -> str:
    """The prompt as the published inference puts it to a checkpoint, for RadLlama2 (eos `</s>`) and RadPhi2
    (`<|endoftext|>`) alike: the user's turn, an empty turn of the assistant, and the opening of the one to
    come. What the tokenizer puts in front by itself (Llama's `<s>`) is left to it."""
    return f"<|user|>\n{text}{eos}\n<|assistant|>\n{eos}\n<|assistant|>\n"
