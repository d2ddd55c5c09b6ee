"""Where one statement of a sentence ends and the next begins, so that negation and sides stay in their own."""

import re

from mu2llm.text.words import Span

# After a comma, semicolon or "and": what opens a new statement whatever stood before.
_OPENS = re.compile(
    r"C?(?:A|T|(?:D|s)?N|P(?=A)"  # a, there, no, with a
    r"|D?s?[wza]?S[SCzsw]{0,4}[VM])"  # the heart is; the lungs are
)
_NOT_A_SUBJECT = re.compile(r"[rVKPMW]")


def number_clauses(row: list[Span]) -> list[int]:
    """The number of the clause that each span of a sentence belongs to.

    A new clause begins at a semicolon, at "but", "except", "while" and the like, and at a comma or "and" that
    is followed by an article, "there", a negation, or a statement with a verb of its own. Commas and "and"
    that only list things ("no mass, nodule or effusion") do not part clauses.
    """
    codes = "".join(span.code for span in row)
    numbers: list[int] = []
    clause, begin = 0, 0
    for index, code in enumerate(codes):
        if code in ";b" or (code in ",C" and index > begin and _parts(codes, begin, index)):
            clause, begin = clause + 1, index + 1
        numbers.append(clause)
    return numbers


def _parts(codes: str, begin: int, index: int) -> bool:
    before, after = codes[begin:index], codes[index + 1 :]
    if after[:1] in ("C", ","):
        return False  # the decision falls at the next mark
    if not any(code in "EHVMKNny" for code in before):
        return False  # nothing has been said yet: "In the right lung, a nodule"
    if "N" in before and "O" not in after and after[:1] in ("g", "#"):
        return True  # "no effusion, small nodule in the right lung"
    opens = _OPENS.match(after)
    if opens:
        if opens.group().endswith(("V", "M")):
            # "the lungs and the heart are": a list of subjects is one statement.
            said = any(code in before for code in "VMKNn")
            asked = codes[index + 1 + opens.end() : index + 2 + opens.end()]
            return said and not ("N" in before and asked == "K" and "V" not in before)
        return True
    segment = re.split(r"[,;bC]", after, maxsplit=1)[0]
    has_verb = any(code in "VMK" for code in before)
    return has_verb and any(code in "VM" for code in segment) and not _NOT_A_SUBJECT.match(segment)
