r"""Read a boxed answer, decide whether two answers are the same, vote (MM-Zero, arXiv 2603.09206).

    reply -- extract_answer --> answer (a string, or None) -- canonical --> the key answers are compared by
    K answers -- vote --> their majority, which becomes the question's label, and its share c of the K

No true answer is known in self-play, so what passes for equal here decides what is learnt. Unlike in the authors' released code
    - an answer that cannot be read counts as disagreement. Left out of the denominator, one readable answer of five gives c = 1,
      and questions that break the Solver look agreed upon;
    - none, n/a, unknown and the like are never answers: five of them would agree perfectly.
Answers were written by a model, so: no eval, no computer algebra, a cap on their length, no regular expression of quadratic time.
"""

import functools
import re
from collections import Counter
from fractions import Fraction

MAX_ANSWER = 500  # characters; anything longer is prose, not an answer

# ------------------------------------------------------------------------------------------ the boxed answer


def last_box(text):
    r"""(content, position after it) of the last \boxed{...}, or None if there is none or it never closes."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start, depth = start + len(r"\boxed{"), 1
    for brace in re.finditer(
        r"\\.|[{}]", text[start : start + MAX_ANSWER + 1], re.DOTALL
    ):  # \{ \} are text
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : start + brace.start()].strip(), start + brace.end()
    return None


def extract_answer(text):
    r"""The content of the last \boxed{...}. If that one never closes the reply was cut: earlier are drafts.

    >>> extract_answer(r"I try \boxed{3}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer(r"I try \boxed{3}, no: \boxed{\frac{1}") is None
    True
    """
    box = last_box(text)
    return box[0] or None if box else None


# ------------------------------------------------------------------------------------------ comparing answers

NOT_ANSWERS = {"", "none", "n/a", "unknown", "null", "nan"}
CHARACTERS = str.maketrans(
    dict(zip("−–—‐‑＋％⁄·⋅º“”‘’", "-----+%/××°\"\"''"))
    | {"²": "^2", "³": "^3", "½": " 1/2", "¼": " 1/4", "¾": " 3/4"}
)
WRAPPERS = (
    r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|operatorname|mbox|boxed) ?\{([^{}]*)\}"
)


def _fraction(match):
    parts = (match[1] or match[2]).strip(), (match[3] or match[4]).strip()
    top, bottom = (part if re.fullmatch(r"[+-]?[\w.]+", part) else f"({part})" for part in parts)
    return f" {top}/{bottom}"  # the space keeps 1\frac{1}{2} a mixed number, 1 1/2


REWRITES = [
    (re.compile(pattern, re.ASCII), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\$((?:[^$\\]|\\.)*+)\$", r"\1"),  # $...$ is math, a single $ is money
        (r"\\[()\[\],!;:]|\\(?:left|right|displaystyle)(?![a-z])", ""),
        (r"\\ |~|\\quad(?![a-z])", " "),
        (r"\{,\}", ","),
        (WRAPPERS, r"\1"),
        (WRAPPERS, r"\1"),  # twice: \text{\textbf{A}}
        (r"\^ ?\{? ?\\circ ?\}?|\\degree(?![a-z])", "°"),
        (r"\\[dtc]?frac ?(?:\{([^{}]+)\}|(\d)) ?(?:\{([^{}]+)\}|(\d))", _fraction),
        (r"\\([%$#&_])", r"\1"),
        (r"\\(?:times|cdot)(?![a-z])", "×"),
        (r"\\pi(?![a-z])", "π"),
        (r"([\^_])\{([+-]?\w+)\}", r"\1\2"),
        (r"\b(?:square|sq\.?) ([a-z]+)", r"\1^2"),
        (r"\bcubic ([a-z]+)", r"\1^3"),
        (r" ?([=+\-*/×^:<>()\[\]{}]) ?", r"\1"),
        (r"^([+-]?)10\^", r"\g<1>1×10^"),
    )
]

# Possessive quantifiers (*+, ++) give back no digit once read, so a kilobyte of digits costs one pass.
DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})++|\d++)(?:\.\d*+)?+|\.\d++)"
SCALES = {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER = re.compile(
    rf"""
    (?:(?P<name>[a-z]\w{{0,9}}=))?  (?P<sign>[+-]?)  (?P<money>[$€£¥]?)
    (?P<top>{DIGITS})  (?: /(?P<bottom>[1-9]\d*+) | [ ](?P<mixed>\d++/[1-9]\d*+) )?
    (?: (?:[×x*]10\^|e)(?P<exponent>[+-]?\d{{1,3}}) )?  (?: [ ]?(?P<scale>{"|".join(SCALES)})(?![a-z]) )?
    (?P<gap>[ ]?)  (?P<unit>[$€£¥] | [a-z°%]++(?:\^?\d)?(?:/[a-z]++(?:\^?\d)?)? )?""",
    re.ASCII | re.VERBOSE,
)

# One spelling per unit. After a space any word of three letters or more is a unit too ("7 apples"), but
# shorter ones only if listed: 3x, 2ab and 5th are not a number with its unit.
UNITS = {
    "",
    *"$ € £ ¥ % m s g h l v w j mm cm km mg kg ml kw mw hz kb mb gb in ft oz min ms am pm".split(),
}
UNIT_NAMES = dict(
    pair.split("=")
    for pair in """percent=% degree=° deg=° dollar=$ usd=$ euro=€ hour=h hr=h
    minute=min second=s sec=s meter=m metre=m centimeter=cm centimetre=cm kilometer=km kilogram=kg""".split()
)
NOT_UNITS = set("and sin cos tan log exp sqrt half halve third quarter dozen".split())


def _unit(word, gap):
    """One spelling of a unit ("" for no word), or None if the word is not a unit."""
    stem, power = re.fullmatch(r"([a-z°%$€£¥]*)(.*)", word).groups()
    stem = stem[:-1] if len(stem) > 3 and stem.endswith("s") else stem
    known = (
        stem in UNITS
        or stem in UNIT_NAMES
        or "°" in stem
        or gap
        and len(stem) > 2
        and stem not in NOT_UNITS
    )
    return UNIT_NAMES.get(stem, stem) + power.replace("^", "") if known else None


def canonical(answer):
    r"""The key (value, unit) an answer is compared by, or None for what is never an answer.

    value: an exact Fraction if the whole answer is one number, else its text without case, LaTeX and spacing.
    unit: "" or what stands around the number: a unit, a currency, "%", or the name in "x = 5".
    A percentage is a number with the unit %: 25% goes with 25, not with 0.25 (which may be one as well).
    No algebra and no rounding: 2/4 is 0.5, but 0.33 is not 1/3 (0.33 = 1/3 = 0.333 would make 0.33 = 0.333).

    >>> canonical("1,000"), canonical(r"$\frac{1}{2}$ cm"), canonical(" Q1. "), canonical("n/a")
    ((Fraction(1000, 1), ''), (Fraction(1, 2), 'cm'), ('q1', ''), None)
    """
    return _canonical(answer) if isinstance(answer, str) and len(answer) <= MAX_ANSWER else None


@functools.lru_cache(maxsize=4096)  # the same few answers are compared over and over
def _canonical(answer):
    text = " ".join(answer.translate(CHARACTERS).casefold().split())
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(" .,;:")
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`*":  # "Paris", **Paris**
        text = text[1:-1].strip().rstrip(" .,;:")
    if text in NOT_ANSWERS:
        return None
    number = NUMBER.fullmatch(text)
    unit = _unit(number["unit"] or "", number["gap"]) if number else None
    if unit is not None:
        value = Fraction(number["top"].replace(",", "")) / int(number["bottom"] or 1)
        value += Fraction(number["mixed"] or 0)
        value *= Fraction(10) ** (int(number["exponent"] or 0) + SCALES.get(number["scale"], 0))
        return -value if number["sign"] == "-" else value, unit or number["money"] or number[
            "name"
        ] or ""
    choice = re.fullmatch(r"\(?([a-z])\)?", text, re.ASCII)  # (B), B) and B. are choice B
    return (choice[1] if choice else re.sub(r" ?, ?", ",", text)), ""


def answers_match(a, b):
    r"""Do two answers say the same? Never raises, always fast. What is never an answer does not match itself.

    A number without a unit matches it with any unit, two different units do not match: see `tally`.

    >>> answers_match(r"25\%", "25.0%"), answers_match("5 cm", "5"), answers_match("-7", "7"), answers_match("none", "none")
    (True, True, False, False)
    """
    a, b = canonical(a), canonical(b)
    return a is not None and b is not None and a[0] == b[0] and (a[1] == b[1] or "" in (a[1], b[1]))


# ---------------------------------------------------------------------------------------------- the majority


def tally(answers):
    """{answer: votes}, in the order in which they came; None stands for those that could not be read.

    Answers with equal keys form a camp, named by its first. "5" matches both "5 cm" and "5 m", which differ, so
    matching alone makes no camps: a bare number joins the unit most often given with that number, and no other.

    >>> tally(["7", "5", None, "7.0"]), tally(["5", "5 cm", "5 cm", "5 m"])
    ({'7': 2, '5': 1, None: 1}, {'5 cm': 3, '5 m': 1})
    """
    keys = [canonical(answer) for answer in answers]
    counts, camp = Counter(keys), {None: None}  # a Counter keeps the order of first appearance
    for value, unit in filter(None, counts):
        united = [key for key in counts if key and key[0] == value and key[1]] if not unit else []
        camp[value, unit] = (
            max(united, key=counts.get) if united else (value, unit)
        )  # max: first of equals
    votes = Counter(camp[key] for key in keys)
    return {answers[keys.index(key)] if key else None: count for key, count in votes.items()}


def vote(answers):
    """(majority answer, consistency c = its votes / len(answers)); (None, 0.0) if nothing could be read.

    c is exactly the share of answers that match the majority answer (see `tally`). Ties go to the camp seen first.

    >>> vote(["7", "5", None, "7.0"]), vote(["b", "a"]), vote(["unknown", "unknown"])
    (('7', 0.5), ('b', 0.5), (None, 0.0))
    """
    votes = tally(answers)
    votes.pop(None, 0)
    winner = max(votes, key=votes.get, default=None)
    return winner, votes[winner] / len(answers) if votes else 0.0
