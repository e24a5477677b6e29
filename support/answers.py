r"""Read a boxed answer, decide whether two answers are the same, vote (MM-Zero, arXiv 2603.09206).

    reply      -- extract_answer -->  answer: a string, or None if nothing could be read
    answer     -- canonical -->       the key (value, unit) by which answers are compared
    K answers  -- vote -->            their majority, which is the label, and its share c of the K

No true answer is known in self-play, so what passes for equal here decides what is learnt. Answers
are graded as a person would grade them, without algebra and without rounding. Two things differ
from the authors' released code:
    - an answer that cannot be read counts as disagreement. Left out of the denominator, one answer
      of five gives c = 1, and questions that break the Solver look agreed upon
    - none, n/a, unknown and the prompts' placeholders are never answers: five of them would agree
A model wrote the answers: no eval, a cap on their length, no pattern of quadratic time.
"""

import functools
import re
from calendar import day_name, month_name
from collections import Counter
from fractions import Fraction

from support.units import unit_of
from support.writing import plain

MAX_ANSWER = 500  # characters; anything longer is prose, not an answer

# -------------------------------------------------------------------------------- the boxed answer

# A box without braces holds a number or a letter; else the \boxed is only mentioned.
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
UNBRACED = r"\\[dt]?frac ?\{[^{}]*\} ?\{[^{}]*\}|[a-zA-Z](?![^\W_])|[^\s${}*]*\d[^\s${}*]*"


def group_at(text, start):
    r"""The group that opens with "{" at text[start]; "" if it ends nowhere near. \{ is text.

    >>> group_at(r"a{b{c}\}} d", 1)
    '{b{c}\\}}'
    """
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text[start : start + MAX_ANSWER + 2], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : start + brace.end()]
    return ""


def extract_answer(text, shown=frozenset()):
    r"""The content of the last box; None for none, an empty one, a placeholder. A box that never
    closes means that the reply was cut: earlier ones are drafts. shown: see `is_placeholder`.
    \boxed{42}, \boxed {42}, \boxed{{42}}, \fbox{42}, \boxed 42 are boxes, "in \boxed form" is none.

    >>> extract_answer(r"I try \boxed{3}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer(r"I try \boxed{3}, no: \boxed{\frac{1}") is None
    True
    """
    start = len(text)
    # A mention in prose sends us back to the box before it. A few times are enough.
    for _ in range(8):
        start = max(text.rfind(r"\boxed", 0, start), text.rfind(r"\fbox", 0, start))
        box = BOX.match(text, start) if start >= 0 else None
        if box is None:
            return None
        if text.startswith("{", box.end()):
            content = group_at(text, box.end())
            while content.startswith("{") and group_at(content, 0) == content:
                content = content[1:-1].strip()
            return content if content and not is_placeholder(content, shown) else None
        word = re.match(UNBRACED, text[box.end() : box.end() + MAX_ANSWER])
        if word:
            return word[0].rstrip(".,;:!?)")
    return None


THINK_END = re.compile(r"<\s*+/\s*+think\s*+>", re.IGNORECASE)
FORM = re.compile(rf"\s*+<\s*+think\s*+>.*{THINK_END.pattern}\s*+\\boxed\s*+(?=\{{)", re.I | re.S)


def in_form(reply, shown=frozenset()):
    r"""Is the whole reply <think>...</think> and then one \boxed{...} that is not empty?

    Several thoughts, one after the other, are reasoning as well. A reply that begins in the middle
    of the reasoning is not in form, in the released reward neither.

    >>> in_form(r"<think>a</think> <think>b</think> \boxed {7}"), in_form(r"a</think> \boxed{7}")
    (True, False)
    """
    form = FORM.match(reply)
    box = reply[form.end() :].rstrip() if form else ""
    content = box.strip("{} \n")
    return content != "" and group_at(box, 0) == box and not is_placeholder(content, shown)


# What models write when they have no answer.
NOT_ANSWERS = {"", "?", "...", "none", "n/a", "unknown", "null", "nan"}
FILLERS = set("your my the its a an here this final short full easy hard correct".split())
# What our prompts show where a model should write, as `bare` leaves it. A test compares them.
PLACEHOLDERS = {"answer", "question", "working step by step", "reasoning step by step"}
PLACEHOLDERS |= {"description of picture", "elements of picture", "lines of program"}
PLACEHOLDERS |= {"one of data_chart diagram geometry timeline map table other"}


def bare(text):
    """A text without case, punctuation and words like "your": "[Your answer here]" is "answer"."""
    words = re.findall(r"\w+", re.sub(r"\\[a-z]++", " ", text.casefold()))
    return " ".join(word for word in words if word not in FILLERS)


def is_placeholder(text, shown=frozenset()):
    """Did the model copy what a prompt shows where the model should write?

    shown: the `placeholders` (prompts.py) of the prompts of a checkpoint that brings its own.
    """
    return bare(text) in PLACEHOLDERS or bare(text) in shown


# -------------------------------------------------------------------------- numbers, dates, lists

# Possessive quantifiers (*+, ++) give back no digit once read: a kilobyte of digits costs one pass.
DIGITS = r"(?:(?:\d{1,3}(?:,\d{3}|[ ]\d{3})++(?![\d/])|\d++)(?:\.\d*+)?+|\.\d++)"
POWERS = {"hundred": 2, "thousand": 3, "k": 3, "lakh": 5, "crore": 7}
POWERS |= dict.fromkeys("million mil mln mn mm m".split(), 6)
POWERS |= dict.fromkeys("billion bn b".split(), 9) | dict.fromkeys("trillion tn t".split(), 12)
# 5m are metres, $5m are millions; a small b only right behind its number.
SCALE = r"(?i:(?:hundred|thousand|lakh|mil(?:lion)?|mln|mn|crore|billion|bn|trillion|tn)s?)"
SCALE += r"|[kKMBT]|(?<=\d)b|(?(currency)m{1,2}|[^\s\S])"
NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)
    (?P<currency>(?:(?:US)?[$]|[€£¥₹₩]|(?:USD|EUR|GBP|JPY|INR|Rs)\b[.]?)[ ]?)?  (?P<minus>-?)
    (?=[\d.√π])  (?P<top>{DIGITS})?
    (?: /(?P<bottom>[1-9]\d*+) | [ ](?P<mixed>\d++/[1-9]\d*+) )?
    (?: (?P<surd>(?:√(?:\[3\])?(?:\d++(?:\.\d++)?|[^\W\d]|\([^()]*\))|π)++)
        (?: /(?P<divisor>[1-9]\d*+) )? )?
    (?: (?:×10\^|[eE])(?P<exponent>[+-]?\d{{1,3}}) )?
    (?: [ ]?(?P<scale>{SCALE})(?![a-zA-Z]) )?
    (?P<unit>(?![\d.,]).*)""",
    re.VERBOSE | re.DOTALL,
)

# What stands before "=": x, S_(△ABC), P(A), (x,y) are names, 13×6 is a calculation.
NAME = r"(?:\\[a-z]{2,9} ?)?(?:[^\W\d]|[∠△|])[\w∠△|]{0,19}(?:_?\([^()=]{1,20}\))?"
NAME += r"|\([a-zA-Z](?:, ?[a-zA-Z])+\)"
BEFORE = re.compile(rf"(?:({NAME})=)?(?:(?:{NAME}|[-+\d×*/·.()^√π%$! ]++)=)*")


def quantity(text):
    """(value, unit) if the text is one number, else None; unit: "" or what stands around it.

    >>> quantity("$2.5M"), quantity("x=1/2 cm"), quantity("7 of 9"), quantity("1.75π")
    ((Fraction(2500000, 1), '$'), (Fraction(1, 2), 'cm'), None, ('7/4π', ''))
    """
    before = BEFORE.match(text)
    text = text[before.end() :]
    name = before[1] or ""
    number = NUMBER.fullmatch(text)
    # The 1990s are a decade, not 1990 seconds.
    if number is None or re.fullmatch(r"[12]\d{3}s", text):
        return None
    unit = unit_of(number["unit"], number["currency"] or "")
    if unit is None:
        return None

    # top/bottom or top mixed, times a power of ten, times roots and π
    value = Fraction(re.sub("[, ]", "", number["top"] or "1")) / int(number["bottom"] or 1)
    value = (value + Fraction(number["mixed"] or 0)) / int(number["divisor"] or 1)
    power_of_ten = int(number["exponent"] or 0)
    if number["scale"]:
        power_of_ten += POWERS[number["scale"].lower().removesuffix("s")]
    value *= Fraction(10) ** power_of_ten
    if "-" in (number["sign"], number["minus"]):
        value = -value
    return f"{value}{number['surd']}" if number["surd"] else value, unit or name


# Names, whole or in short: jan, janu, ..., january.
MONTHS = {name.lower()[:n]: month for month, name in enumerate(month_name) for n in range(3, 10)}
DAYS = {name.lower()[:n]: name.lower() for name in day_name for n in range(3, 10)}
PLACES = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
ORDINALS = dict(zip(PLACES, "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th 11th 12th".split()))
DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
DATE = re.compile(rf"(?:{DAY}(?: of)? )?([a-z]{{3,9}})\.?(?: {DAY})?(?:,? (\d{{4}}))?")


def calendar(text):
    """A date, a time of day or a weekday as (value, unit), else None; text is in lower case.

    >>> calendar("jan. 5th, 2020"), calendar("9:30 am"), calendar("tues")
    (('2020-1-5', ''), ('9:30', 'am'), ('tuesday', ''))
    """
    # January 5, 2020; 5th of January; March 2021; Monday
    date = DATE.fullmatch(text)
    before, word, after, year = date.groups() if date else [None] * 4
    if word in MONTHS and not (before and after):
        return f"{year or ''}-{MONTHS[word]}-{int(before or after or 0)}", ""
    if word in DAYS and date[0].rstrip(".") == word:
        return DAYS[word], ""

    # 9:30, 9:30 am; but 9 am is a number
    time = re.fullmatch(r"(\d{1,2}:\d\d)(?: ([ap]m))?", text)
    return (time[1], time[2] or "") if time else None


def wording(text):
    """(text, "") for an answer in words: without case, hyphens, a leading "the", a footnote's *."""
    text = re.sub(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})", " ", text.casefold())
    text = re.sub(r"^(?:the|both) (?=.)|\)$(?<=^.\))|(?<=[^\W\d_]{2})[*†]+$", "", text)
    # 4 x y is 4xy, but 1 1/2 is not 11/2.
    if not re.search(r"(?<![\\a-z])[^\W\d_]{3}", text):
        text = re.sub(r"(?<!\d) | (?!\d)", "", text)
    # Calm (3/5) is calm 3/5
    text = re.sub(r" \(([^()]*)\)$", r" \1", text)
    first, space, rest = text.replace("grey", "gray").partition(" ")
    return ORDINALS.get(first, first) + space + rest, ""


def pieces(text, pair):
    """The parts of a list: A, B and C. The comma may be that of 1,000, but not in a pair: (1,234).

    >>> pieces("1,000, 2 and 3,4", False), pieces("1,234", True)
    (['1,000', '2', '3', '4'], ['1', '234'])
    """
    # "2 h 30 min" is a list of two, like "2 h and 30 min".
    text = re.sub(r"(?<=\d) ?([a-zA-Z]+)[ ,]+(?=\d[\d.]* ?[a-zA-Z])", r" \1, ", text)
    comma = "," if pair else r",(?!(?<=\d,)\d{3}(?!\d))"
    return [stripped(part) for part in re.split(rf"(?i),? and | ?& ?|;|{comma}", text)]


QUOTES = ('""', "''", "**", "__")
# Brackets that mean something: [1, 2) and the like are intervals, (1)(2) is a product.
MEANT = re.compile(r"\[.*\d ?,|[(\[].*[()\[\]].")


def stripped(text, pairs=("()", "[]", *QUOTES)):
    """Without quotes, bold and brackets around all of it, and without punctuation at the end."""
    text = text.strip().rstrip(" .,;:")
    if len(text) < 3 or text[0] + text[-1] not in pairs or MEANT.match(text):
        return text
    return stripped(text[1:-1], pairs)


def single(text):
    """The key of a date, a time, a number or a letter with its text; None for other words."""
    return calendar(text.casefold()) or quantity(text) or lettered(text)


# A letter before a text; it has a mark if it is set off, as in "B. blue", "(B) blue".
FIRST = r"[(\[]?(?P<letter>[A-Za-z])(?P<mark>\.?[)\]][.:]?|\.(?= )|:)?[ ,.=|-]*(?P<words>.*)"
# One letter more.
OTHER = r"(?<![\w.])[(\[]?[A-Za-z][.:)\]](?!\w)|\b(?:and|or|not|maybe) [A-Z]\b|^[A-Z]\b(?! \w)"


def lettered(text):
    """(letter, key of the text) if a letter stands before a text, else None.

    >>> lettered("(B) 7 kites"), lettered("B. Red"), lettered("A. 5, B. 6")
    (('b', (Fraction(7, 1), 'kite')), ('b', ('red', '')), None)
    """
    found = re.fullmatch(FIRST, text)
    words = found["words"] if found and found["mark"] else ""
    if not words or re.search(OTHER, words):
        return None
    return found["letter"].lower(), canonical(words) or wording(words)


@functools.lru_cache(maxsize=4096)  # the same few answers are compared over and over
def canonical(answer):
    r"""The key (value, unit) an answer is compared by, or None for what is never an answer.

    value: an exact Fraction if the whole answer is one number, else a text. No algebra and no
    rounding: 2/4 is 0.5, but 0.33 is not 1/3 (0.33 = 1/3 = 0.333 would make 0.33 = 0.333).
    unit: "" or a unit, a currency, "%", the name in "x = 5", the key of the text behind a letter. A
    percentage is a number with the unit %: 25% goes with 25, not with 0.25 (which may be one).

    >>> canonical("1,000"), canonical(r"$\frac{1}{2}$ cm"), canonical(" Q1. "), canonical("n/a")
    ((Fraction(1000, 1), ''), (Fraction(1, 2), 'cm'), ('q1', ''), None)
    """
    if not isinstance(answer, str) or len(answer) > MAX_ANSWER:
        return None
    whole = plain(answer)
    # M = (2,5)
    before = BEFORE.match(whole)
    name = (before[1] or "").replace(" ", "")
    if whole[before.end() :].startswith("("):
        whole = whole[before.end() :]
    text = stripped(whole)
    if text.casefold() in NOT_ANSWERS or is_placeholder(answer):
        return None

    # (1,234) is a pair, 1,234 a number.
    pair = "," in text and whole.startswith("(") and whole != text
    key = None if pair else single(text)
    if key:
        return key

    # A list: the same elements in the same order.
    parts = pieces(text, pair)
    if not 1 < len(parts) <= 20 or not all(parts):
        return wording(text)
    keys = [single(part) or wording(part) for part in parts]
    units = [unit for _, unit in keys]
    # 5 and 6 cm are two lengths.
    if not any(units[:-1]) or len(set(units)) == 1:
        units = units[-1:]
    return ", ".join(str(value) for value, _ in keys), ",".join(map(str, units)) or name


def answers_match(a, b):
    r"""Do two answers say the same? Never raises, always fast. What is no answer matches nothing.

    A number without a unit matches it with any unit, two different units do not match, see `tally`.
    A letter with a text matches the letter, and it matches the text.

    >>> answers_match(r"25\%", "25.0%"), answers_match("5 cm", "5"), answers_match("none", "none")
    (True, True, False)
    """
    a, b = canonical(a), canonical(b)
    if a is None or b is None:
        return False
    same = a[0] == b[0] and (a[1] == b[1] or "" in (a[1], b[1]))
    return same or a[1] == b or b[1] == a


# ----------------------------------------------------------------------------------- the majority


def tally(answers):
    """{answer: votes}, in the order in which they came; None stands for those that were not read.

    Answers with equal keys form a camp, named by its first. "5" matches both "5 cm" and "5 m",
    which differ: a bare number joins the unit most often given with it, and no other. So does a
    letter the text most often given with it, and a text its letter if it was given with one only.

    >>> tally(["7", "5", None, "7.0"]), tally(["5", "5 cm", "5 cm", "5 m"])
    ({'7': 2, '5': 1, None: 1}, {'5 cm': 3, '5 m': 1})
    """
    keys = [canonical(answer) for answer in answers]
    counts = Counter(keys)  # it keeps the order of first appearance

    def camp(key):
        united = [other for other in counts if key and other and other[0] == key[0] and other[1]]
        if united and not key[1]:
            # The first of equals.
            key = max(united, key=counts.get)
        carriers = [other for other in counts if other and other[1] == key]
        return carriers[0] if len(carriers) == 1 else key

    votes = Counter(map(camp, keys))
    return {answers[keys.index(key)] if key else None: count for key, count in votes.items()}


def vote(answers):
    """(majority answer, consistency c = its votes / len(answers)); (None, 0.0) if none was read.

    c is exactly the share of answers that match the majority answer. Of equal camps the first wins.

    >>> vote(["7", "5", None, "7.0"]), vote(["b", "a"]), vote(["unknown", "unknown"])
    (('7', 0.5), ('b', 0.5), (None, 0.0))
    """
    votes = tally(answers)
    votes.pop(None, 0)
    winner = max(votes, key=votes.get, default=None)
    return winner, votes.get(winner, 0) / max(len(answers), 1)
