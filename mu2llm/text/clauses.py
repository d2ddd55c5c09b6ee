"""A sentence as a row of spans, parted into clauses that negation and sides do not cross."""

import re
from dataclasses import dataclass

from mu2llm.text.chinese import is_chinese
from mu2llm.text.words import Span, spans

# After a comma or "and": what opens a new statement whatever stood before.
_OPENS = re.compile(
    r"C?(?:A|T|(?:D|s)?N|P(?=A)"  # a, there, no, with a
    r"|D?s?[wza]?S[SCzsw]{0,4}[VM])"  # the heart is; the lungs are
)
_DOUBTED = re.compile(r"[^,;bCO]*[EH][^,;bCO]*W")
_NOT_A_SUBJECT = re.compile(r"[rVKPMW]")


@dataclass(frozen=True)
class Row:
    """A sentence's spans, their codes as one string, and the number of the clause that each belongs to."""

    text: str
    spans: list[Span]
    codes: str
    clauses: list[int]

    def word(self, index: int) -> str:
        """The characters of a span, in lower case."""
        return self.text[self.spans[index].start : self.spans[index].end].lower()

    def bounds(self, clause: int) -> tuple[int, int]:
        """First span of a clause and one past its last."""
        first = self.clauses.index(clause)
        return first, first + self.clauses.count(clause)


def read_row(text: str) -> Row:
    """Reads a sentence."""
    row = spans(text)
    _settle(row)
    codes = "".join(span.code for span in row)
    return Row(text, row, codes, number_chinese_clauses(codes) if is_chinese(text) else number_clauses(codes))


def number_clauses(codes: str) -> list[int]:
    """The number of the clause that each span of a sentence belongs to.

    A new clause begins at a semicolon, at "but", "except", "while" and the like, and at a comma or "and" that
    is followed by an article, "there", a negation, or a statement with a verb of its own. Commas and "and"
    that only list things ("no mass, nodule or effusion") do not part clauses.
    """
    numbers: list[int] = []
    clause, begin = 0, 0
    for index, code in enumerate(codes):
        if code in ";b" or (code in ",C" and index > begin and _parts(codes, begin, index)):
            clause, begin = clause + 1, index + 1
        numbers.append(clause)
    return numbers


def number_chinese_clauses(codes: str) -> list[int]:
    """The same for Chinese: a comma parts clauses where what follows names a finding or an organ."""
    numbers: list[int] = []
    clause = 0
    for index, code in enumerate(codes):
        following = re.split("[,;]", codes[index + 1 :], maxsplit=1)[0]
        if code == ";" or (code == "," and re.search("[EHSny]", following)):
            clause += 1
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
    if codes[index] == "," and _DOUBTED.match(after):
        return True  # "hypodense lesion, metastasis cannot be excluded"
    opens = _OPENS.match(after)
    if opens:
        if opens.group().endswith(("V", "M")):
            # "the lungs and the heart are": a list of subjects is one statement.
            said = any(code in before for code in "VMKNn")
            follows = codes[index + 1 + opens.end() : index + 2 + opens.end()]
            return said and not ("N" in before and follows == "K" and "V" not in before)
        return True
    segment = re.split(r"[,;bC]", after, maxsplit=1)[0]
    has_verb = any(code in "VMK" for code in before)
    return has_verb and any(code in "VM" for code in segment) and not _NOT_A_SUBJECT.match(segment)


NODE_MM = 10.0  # short axis from which a lymph node counts as enlarged (RECIST 1.1)
_SAID_NEXT = re.compile("[^,;]*[EHny]")
_ALSO_ATTRIBUTES = {
    "calcification": "calcified",
    "low density": "hypodense",
    "enlarged": "enlarged",
    "nodular": "nodular",
}


def _settle(row: list[Span]) -> None:
    """Words that depend on their neighbour: "No, there is", "ground-glass nodule", "aneurysm repair"."""
    codes = "".join(span.code for span in row)
    several = codes.find(":") if re.match("[^:]*[CO,][^:]*:", codes) else 0  # "Mediastinum and hila: ..."
    for index, span in enumerate(row):
        after = row[index + 1].code if index + 1 < len(row) else ""
        if index == 0 and span.code == "N" and after == ",":
            row[index] = span._replace(code="w")
        elif span.code == "N" and not after and index and row[index - 1].code == ":":
            row[index] = span._replace(code="M")  # "Pleural effusion: no."
        elif span.code == "M" and span.value == "none" and _SAID_NEXT.match(codes, index + 1):
            row[index] = span._replace(code="N")  # "lymph nodes, none enlarged"
        elif (span.code in "EH" and after == "x") or (span.code == "L" and index < several):
            row[index] = span._replace(code="w")
        elif span.code == "E" and span.value == "ground-glass opacity" and after == "H":
            row[index] = span._replace(code="a", value="ground-glass")
        elif span.code == "H" and span.value in _ALSO_ATTRIBUTES and _noun_follows(row, index + 1):
            row[index] = span._replace(code="a", value=_ALSO_ATTRIBUTES[span.value])
        elif span.code == "c" and span.value == "increased" and "S" in codes and not set("EH") & set(codes):
            row[index] = span._replace(code="H", value="enlarged")  # "the heart has enlarged since"
        elif span.code == "S" and span.value == "lymph nodes" and _short_axis(row, index) >= NODE_MM:
            row[index] = span._replace(code="E", value="lymphadenopathy")


def _short_axis(row: list[Span], at: int) -> float:
    """The smaller diameter that is told of a span, in mm; 0 where another finding comes first or the size is
    only a bound ("less than 1 cm")."""
    before = re.search("#[asLS]*$", "".join(span.code for span in row[:at]))
    if before:  # "a 12 mm right paratracheal lymph node"
        return min(row[before.start()].value)
    for index, span in enumerate(row[at:], at):
        if span.code in "EHN":
            break
        if span.code == "#":
            return min(span.value) if row[index - 1].value not in _BELOW else 0.0
    return 0.0


_BELOW = ("than", "below", "under", "exceed", "exceeding")


def _noun_follows(row: list[Span], index: int) -> bool:
    while index < len(row) and row[index].code in "agsSL":
        index += 1
    return index < len(row) and row[index].code in "EH"
