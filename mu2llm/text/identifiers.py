"""The patterns of `scrub`: how dates, telephone numbers, ids and people look in English and Chinese."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from .words import lemma, lexicon


class Pattern(NamedTuple):
    """What `regex` finds (its group `value`, where it has one) becomes `token`, unless `unless` is true.

    length: how much of a value it is; the text goes on after that.
    """

    token: str
    regex: re.Pattern[str]
    unless: Callable[[re.Match[str]], bool] | None = None
    length: Callable[[str], int] = len


@cache
def words(kind: str) -> frozenset[str]:
    """A list of not_names.yaml: `also_words`, `given_names` or `no_name`."""
    listed = yaml.safe_load((Path(__file__).parent / "not_names.yaml").read_text(encoding="utf-8"))
    return frozenset(listed[kind].split())


@cache
def clinical_words() -> frozenset[str]:
    """Every word of the word lists."""
    found: set[str] = set()
    nodes = [lexicon().tree]
    while nodes:
        node = nodes.pop()
        found.update(word for word in node if word)
        nodes += [below for word, below in node.items() if word]
    return frozenset(found)


def is_word(name: str) -> bool:
    """Whether a name is also a word that reports use, so that alone it may mean no person."""
    word = name.lower()
    return word in words("also_words") or word in words("no_name") or lemma(word) in clinical_words()


def _name_length(name: str) -> int:
    """How much of what looks like a name is one: it ends before a clinical word behind a comma or initial's
    dot (unless that is a name too: "J. Stone", "Smith, Mark"), and before its own last dot, which may end a
    sentence."""
    for match in re.finditer(r"([,.])[ \t]*(?P<word>[^\W\d_]{2,})", name):
        goes_on = words("given_names") if match[1] == "," else words("also_words")
        if is_word(match["word"]) and match["word"].lower() not in goes_on:
            return match.start()
    return len(name.rstrip("."))


_UNIT_AHEAD = re.compile(
    r"\s*-?(?:(?:mm|cm|m)[23²³]?|ml|cc|hu|mg|kg|kvp?|ma|msv|mgy|x)(?![a-z])|\s*[%×]", re.I
)
_LEVEL_BEHIND = re.compile(
    r"(?:\b(?:segments?|segs?|levels?|grades?|stages?|series|images?|ribs?|zones?)\s*|[CTLS]\d*[-/]?|[\d.]\s*[x×*]\s*)$",
    re.I,
)
_DATE_CUE = re.compile(
    r"\b(?:on|dated?|from|since|until|of|to|prior|previous|study|exam(?:ination)?|scan|ct|mri|comparison|"
    r"performed|dob|born)\b[\s:,(]*(?:\w+[\s:,(]+)?$",
    re.I,
)


def _clinical_number(match: re.Match[str]) -> bool:
    """A size or a list of levels that is written like a date."""
    text = match.string
    return bool(_UNIT_AHEAD.match(text, match.end())) or bool(
        _LEVEL_BEHIND.search(text[: match.start()][-20:])
    )


def _short_date(match: re.Match[str]) -> bool:
    """Whether d/m/yy is no date: no month fits, it is a size or level, or there are no zeros and no cue."""
    first, second = int(match["a"]), int(match["b"])
    if min(first, second) > 12 or max(first, second) > 31 or _clinical_number(match):
        return True
    padded = len(match["a"]) == len(match["b"]) == 2 and match["mark"] == "/"
    return not padded and not _DATE_CUE.search(match.string[: match.start()][-30:])


def before_unit(match: re.Match[str]) -> bool:
    return bool(_UNIT_AHEAD.match(match.string, match.end()))


_DAY, _MON, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d\d"
_LONG_MONTH = "January|February|March|April|June|July|August|September|October|November|December"
_MONTH = rf"(?:{_LONG_MONTH}|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)"
_ANY_MONTH = rf"(?:{_MONTH}|May)"
_ORDINAL = r"(?:st|nd|rd|th)"
_CLOCK = r"(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?i:\s*[ap]\.?m\b\.?|\s*(?:hrs?|hours|h)\b)?"

_DATES = [
    (rf"(?<![\d.])(?P<y>{_YEAR})([-/.]){_MON}\2{_DAY}(?:[T ]+{_CLOCK})?(?!\d)", None),
    (rf"(?<![\d.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{{6}})?(?!\d)", None),
    (rf"(?<![\d./-]){_DAY}([-/.]){_DAY}\1{_YEAR}(?!\d)", None),
    (r"(?<![\d./-])(?P<a>\d{1,2})(?P<mark>[-/.])(?P<b>\d{1,2})(?P=mark)\d\d(?![\d/]|[.-]\d)", _short_date),
    (
        rf"(?i:\b{_DAY}{_ORDINAL}?[\s.-]+(?:of\s+)?{_ANY_MONTH}\b\.?[\s,.-]+(?:{_YEAR}|'?\d\d\b))",
        before_unit,
    ),
    (rf"(?i:\b{_DAY}[\s.-]?{_ANY_MONTH}[\s.-]?{_YEAR})\b", None),
    (rf"(?<![\d./-]){_MON}/{_YEAR}(?![\d/])", _clinical_number),
    (rf"(?<![\d./-]){_YEAR}[-/](?:0[1-9]|1[0-2])(?![\d/-])", _clinical_number),
    (rf"(?i:\b{_ANY_MONTH}\b\.?[\s-]*{_DAY}{_ORDINAL}?\s*[,-]?\s*{_YEAR}\b)", None),
    (rf"(?i:\b{_ANY_MONTH}\b\.?,?[\s/-]*(?:of\s+)?{_YEAR}\b)", None),
    (rf"\b{_DAY}{_ORDINAL}?[\s-]+(?:of\s+)?{_MONTH}\b", None),
    (rf"\b{_MONTH}\b\.?\s+{_DAY}{_ORDINAL}?\b(?!\.\d)", before_unit),
    (rf"\b(?:{_DAY}{_ORDINAL}(?:\s+of)?\s+May|May\s+{_DAY}{_ORDINAL})\b", None),
    (rf"\b(?:in|from|since|until|last|dated)\s+(?P<value>{_LONG_MONTH})\b", None),
    (r"\b(?:in|since|last)\s+(?P<value>May)\b", None),
    (r"(?<!\d)(?:19|20)?\d\d\s*年\s*\d{1,2}\s*月(?:\s*\d{1,2}\s*[日号])?", None),
    (r"(?<!\d)\d{1,2}\s*月\s*\d{1,2}\s*[日号]", None),
    (rf"\[date\](?:[\s,]*(?:at\s+)?(?:{_CLOCK}|\d{{1,2}}\s*[时点]\s*\d{{1,2}}\s*分?))", None),
    (r"(?<![\d:])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\s*(?i:[ap]\.?m\b\.?|(?:hrs?|hours)\b)", None),
    (
        r"\bat\s+(?P<value>(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?)(?![\d:]|\s*(?:o'?clock|position|ratio))",
        None,
    ),
]

_PHONE_CUE = r"tel(?:ephone)?|phone|mobile|cell|fax|pager|bleep|beeper|ext(?:ension)?"
_PHONES = [
    rf"(?i:\b(?:{_PHONE_CUE})\b\.?\s*(?:no\.?|number)?\s*[:#]?\s*)(?P<value>\+?\(?\d(?:[\s().-]*\d){{3,14}})(?!\d)",
    r"(?i:\b(?:call|contact|dial|ring|reach(?:ed|able)?\s+(?:at|under|on))\b\s*:?\s*)"
    r"(?P<value>\+?\(?\d{3,}\)?[\s.-]?\d{4}|\+?\(?\d{2,}(?:[\s().-]*\d){6,13})(?!\d|\s*(?:mm|cm|HU)\b)",
    r"(?:电话|手机|联系方式|联系电话|传真)(?:号码?)?\s*[:：]?\s*(?P<value>\+?\(?\d(?:[\s().-]*\d){4,14})(?!\d)",
    r"(?<![\d.+])\+\d{1,3}(?:[\s().-]*\d){7,12}(?!\d)",
    r"(?<![\d.-])\(?\d{3}\)?[\s.-]\s?\d{3}[\s.-]\d{4}(?![\d-]|\s*(?:mm|cm|HU)\b)",
    r"(?<![\d.-])\(0\d{1,4}\)\s*\d{3,4}[\s-]?\d{3,4}(?!\d)",
    r"(?<![\d.-])0\d{2,3}-\d{7,8}(?!\d)",
    r"(?<![\dA-Za-z.-])1[3-9]\d{9}(?![\dA-Za-z])",
]

_VALUE = r"(?P<value>(?=[A-Za-z0-9/_-]*\d)[A-Za-z0-9][A-Za-z0-9/_-]{3,})(?!\s*(?:mm|cm|ml|HU)\b|[.,]\d)"
_MARKED = r"\s*(?:(?:no\.?|number|nr\.?|id)\s*[:#]?|[:#])\s*"  # needs a mark: "case 1" alone is a word
_IDS = [
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    r"\bhttps?://[^\s)\]]+",
    rf"(?i:\b(?:accession|mrn|medical\s+record|patient\s+id|pat\.?\s*id|study\s+id|exam\s+id|ssn|nhs)\b(?:{_MARKED}|\s+)){_VALUE}",
    rf"(?i:\b(?:acc|case|order|report|reference|ref|episode|visit|encounter|requisition|request|exam|id)\b\.?{_MARKED}){_VALUE}",
    r"(?:检查号|影像号|放射号|CT号|X线号|住院号|门诊号|病案号|病历号|登记号|流水号|条码号|身份证号码?|身份证|就诊卡号|卡号|患者ID|病人ID|"
    r"申请单号|报告编号|检查编号|编号)\s*[:：#]?\s*(?P<value>[A-Za-z0-9][A-Za-z0-9/_-]{2,})",
    r"(?:床号)\s*[:：]\s*(?P<value>[A-Za-z0-9+-]{1,6}床?)",
    r"(?<![\d.-])\d{3}-\d{2}-\d{4}(?![\d-])",
    r"(?<![\d.])\d+(?:\.\d+){5,}",
    r"(?<![A-Za-z0-9])[A-Z]{1,6}[-_]?\d(?:-?\d){4,}[A-Z0-9]*(?![A-Za-z0-9])",
]
_LONG_NUMBER = r"(?<![\d.,A-Za-z])\d{7,}[Xx]?(?![\d.]\d|[A-Za-z\d])"

_PARTICLE = r"(?:van|von|de|del|der|den|di|da|la|le|bin|al)"
_UPPER = r"[^\W\d_a-zß-öø-ÿ\u4e00-\u9fff]"  # a letter that is no small Latin one and no Han
# Initials with their dots, or a word, with initials stuck to it: the dot behind a word ends a sentence.
_INITIALS = rf"(?:{_UPPER}\.-?|St\.[ \t]?)"
_PART = (
    rf"(?:{_INITIALS}+(?=[\s,])|{_INITIALS}*{_UPPER}[^\W\d_\u4e00-\u9fff]*(?:['’-][^\W\d_\u4e00-\u9fff]+)*)"
)

_DEGREE = r"(?:M\.?D\b\.?|MBBS\b|FRCR\b|FRCPC\b|Ph\.?D\b\.?|RN\b)"
_OF_A_DATE = rf"(?i:{_ANY_MONTH})\b\.?[ \t]*\d"
# No heading, degree or month of a date, and no article: "A" is an initial before a dot or another part.
_WORD = (
    rf"(?!(?i:(?:{'|'.join(sorted(words('no_name')))})\b)|{_DEGREE}|{_OF_A_DATE}"
    rf"|A\b(?!\.[ \t,]|\.{_UPPER}|[ \t]+{_UPPER})){_PART}"
)
_NEXT = rf"(?:,?[ \t]+(?:{_PARTICLE}[ \t]+){{0,2}}|,){_WORD}"
_FIRST = rf"(?:{_PARTICLE}[ \t]+){{0,2}}{_WORD}"
_PERSON = rf"{_FIRST}(?:{_NEXT}){{0,3}}"
_CUE_BY = (
    r"(?:electronically\s+)?(?:signed|dictated|report(?:ed)?|read|reviewed|verified|approved|transcribed|authenticated|"
    r"interpreted|finalized|finalised|prepared|requested|referred|performed)\s+(?:electronically\s+|digitally\s+)?by"
)
_CUE_TO = r"(?:discussed|communicated|conveyed|relayed|telephoned|phoned|reported|spoke|shared)\s+(?:with|to)"
_CUE_ROLE = (
    r"(?:(?:patient(?:'s)?|pt)\s+name|name|(?:referring|ordering|requesting|attending|reporting|consulting|"
    r"interpreting)\s+(?:physician|doctor|radiologist|provider|clinician)|radiologist|physician|attending|resident|"
    r"technologist|surgeon|consultant|signature|signed|cc)"
)
_HAN = r"[\u4e00-\u9fff]"
_SURNAME = (
    "[王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗郑梁谢宋唐许韩邓冯曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁卢姚沈钟姜崔谭陆范汪廖石"
    "金韦贾夏付邹熊孟秦邱侯江尹薛闫段雷龙史陶贺毛郝顾龚邵万覃武钱戴严莫孔]"
)
_TITLE = r"(?:Dr|Mr|Mrs|Ms|Miss|Prof|Professor|Doctor)\b\.?(?:[ \t]+(?:Dr|med|Prof)\b\.?)*"
_HAN_ROLE = (
    r"(?:患者姓名|病人姓名|姓名|(?:报告|审核|诊断|书写|检查|申请|主治|上级)医[师生]|(?:检查)?技师|报告者|审核者|审核人|报告人|"
    r"记录人|签名)"
)
_HAN_TITLE = r"\s*(?:副?主任医师|主治医师|医师|医生|主任|教授|护士长?|大夫|院长)"
_HAN_NAME = rf"{_SURNAME}{_HAN}{{1,2}}"
_NAMES = [
    rf"\b{_TITLE}(?:[ \t]+|(?<=\.))(?P<value>{_PERSON})",
    rf"(?i:\b(?:{_CUE_BY}|{_CUE_TO})\s*:?[ \t]*)(?:Dr\.?[ \t]+)?(?P<value>{_PERSON})",
    rf"(?i:\b{_CUE_ROLE}\s*[:：][ \t]*)(?P<value>{_PERSON})",
    rf"(?i:\b(?:patient(?:'s)?|pt)\s+name[ \t]+)(?P<value>{_PERSON})",
    rf"(?i:\bpatient\s*[:：][ \t]*)(?P<value>{_FIRST}(?:{_NEXT}){{1,3}})",
    rf"\b(?P<value>{_FIRST}(?:[ \t]+{_FIRST}){{0,2}}),?[ \t]+{_DEGREE}",
    rf"{_HAN_ROLE}\s*[:：]\s*(?P<value>(?!男|女|无|未){_HAN}[·\u4e00-\u9fff]{{1,3}}"
    rf"(?:[、/ ,，]{_HAN}{{2,3}})*)(?!{_HAN})",
    rf"(?:患者|病人|审核|复核)\s*[:：]\s*(?P<value>{_HAN_NAME})(?!{_HAN})",
    rf"(?:患者|病人|(?<![\s\S])|(?<=[\n。；]))(?P<value>{_HAN_NAME})(?=\s*[，,（(]\s*[男女](?!{_HAN}))",
    r"(?:(?<=[与和由经请致询,，。；;:：\s(（])|(?<![\s\S]))"
    rf"(?P<value>{_SURNAME}(?!何|围|年资|级){_HAN}{{0,2}}?)(?={_HAN_TITLE})",
]
_AGES = [r"(?<![\d.])(?P<value>9\d|1[01]\d)(?=[\s-]*(?:years?|yrs?|y)[\s/.-]*(?:old\b|o\b)|\s*岁)"]

_SURNAME_FIRST = rf"\b(?P<value>(?P<first>{_WORD}),[ \t]*{_FIRST}(?:[ \t]+{_FIRST})?),?[ \t]+{_DEGREE}"

PATTERNS: tuple[Pattern, ...] = (
    Pattern("[name]", re.compile(_SURNAME_FIRST), lambda match: is_word(match["first"]), _name_length),
    *(Pattern("[name]", re.compile(regex), length=_name_length) for regex in _NAMES),
    *(Pattern("[date]", re.compile(regex), unless) for regex, unless in _DATES),
    *(Pattern("[phone]", re.compile(regex)) for regex in _PHONES),
    *(Pattern("[id]", re.compile(regex)) for regex in _IDS),
    Pattern("[id]", re.compile(_LONG_NUMBER), before_unit),
    *(Pattern("[age]", re.compile(regex)) for regex in _AGES),
)
