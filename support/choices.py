r"""Multiple choice: the choices as data sets write them, and which of them an answer means.

    a column of choices -- read_choices --> texts, labels     an answer -- meant --> {0, 2}, A and C

A letter is written as (B), B., Option B, \text{B}, **B**, $B$ or "B - blue"; several as "A, C",
"C and A" or "AC". An answer may also be the text of a choice. Where it is both, as with the choices
D, C, B, A, a given answer is a letter, and what the right one is depends on the data set.
"""

import ast
import contextlib
import functools
import json
import re
from fractions import Fraction

from support.answers import FIRST, OTHER, QUOTES, answers_match, canonical, stripped
from support.writing import plain

LONGEST = 500  # characters of an answer that are looked at
TRUTH = dict(yes=True, true=True, correct=True, no=False, false=False, incorrect=False)
# It may go on: "Yes, it is", "No (see above)", but not "No answer", "Yes/No", "No. 5".
SAID = r"\W*(\w+)(?=\W*$| ?[,;:!(]|\.(?! ?\d)|[ -](?:it|the(?:y|re)?|this|that|because)\b)\W*(\w*)"
LAST = r"(?P<words>.+?) ?[(\[](?P<letter>[A-Za-z])[)\]]"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BRACKETS = " ().[]:"  # around the label of a choice
LABEL = r"[(\[]?([A-Z])[.):\]]"
# Stand for choices that are not known: no text means one of them.
UNKNOWN = [chr(0xE000 + i) for i in range(26)]


@functools.lru_cache(maxsize=4096)  # the choices are compared with every piece
def bare(text):
    r"""A text in one way of writing, without quotes, bold and the full stop.

    >>> bare(r"\textbf{(B)}"), bare("**Yes.**"), bare("$5$ cm"), bare('"blue".')
    ('(B)', 'Yes', '5 cm', 'blue')
    """
    return stripped(plain(text), QUOTES)


def truth(text):
    """True or False if a text says yes or no, else None.

    >>> truth("No, it is not"), truth("No answer"), truth("Yes, no")
    (False, None, None)
    """
    said = re.match(SAID, bare(text).casefold())
    if said is None:
        return None
    value, more = TRUTH.get(said[1]), TRUTH.get(said[2])
    return value if more in (None, value) else None


def agree(text, choice):
    """Does this text say the same as a bare choice? Among choices 2/7 is 2:7, and 0.4444 is 4/9.

    >>> agree("2/7", "2:7"), agree("0.4444", "4/9"), agree("0.45", "4/9")
    (True, True, False)
    """
    text = bare(text)
    if text.casefold() == choice.casefold() or answers_match(text, choice):
        return True
    fraction = re.sub(r"^(\d+):(\d+)$", r"\1/\2", choice)
    exact = canonical(fraction)
    decimals = re.fullmatch(r"-?\d*\.(\d{3,})", text)
    if decimals and exact and isinstance(exact[0], Fraction):
        return abs(Fraction(text) - exact[0]) < Fraction(1, 10 ** len(decimals[1]))
    says = truth(choice)
    return answers_match(text, fraction) or (says is not None and truth(text) == says)


def one(text, texts):
    """The number of the bare choice that a bare text means for sure, or None."""
    first, last = re.fullmatch(FIRST, text), re.fullmatch(LAST, text)
    if text in texts and (first is None or first["words"]):
        return texts.index(text)
    for found in filter(None, (first, last)):
        number, words = LETTERS.index(found["letter"].upper()), found["words"]
        if number >= len(texts):
            continue
        if not words or agree(words, texts[number]):
            return texts.index(texts[number])  # the first of those that are equal
        # "B. It is the blue one" is B; "(B) 70 g" where 70 g is C is nothing, nor is "(B) or (C)".
        if found is first and found["mark"]:
            others = [other for other in texts if other not in ("", texts[number])]
            names = [OTHER, *(rf"(?i)(?<!\w){re.escape(other)}(?!\w)" for other in others)]
            clash = any(re.search(name, words) for name in names)
            return None if clash or any(agree(words, other) for other in others) else number
    fits = {texts.index(choice) for choice in texts if agree(text, choice)}
    return fits.pop() if len(fits) == 1 else None


def meant(text, choices):
    """The numbers of the choices that a text means, by letter or in words. Empty if it means none.

    >>> colours = ("red", "blue", "green")
    >>> [sorted(meant(text, colours)) for text in ("(B) blue", "Blue", "C and A", "AC", "a car")]
    [[1], [1], [0, 2], [0, 2], []]
    """
    texts = [bare(choice) for choice in choices]
    whole = bare(text[:LONGEST])
    for parts in ([whole], text[:LONGEST].split("\n"), re.split(r"[,;/&]|\band\b", whole)):
        numbers = [one(bare(part), texts) for part in parts if part.strip()]
        if numbers and None not in numbers:
            return frozenset(numbers)
    # Letters alone: "A C", "(A)(C)", "AC".
    letters = re.sub(r"(?i)\b(?:and|both|only)\b|\W", "", whole).upper()
    if len(set(letters)) == len(letters) and set(letters) <= set(LETTERS[: len(texts)]):
        return frozenset(map(LETTERS.index, letters))
    return frozenset()


def same_letters(given, gold):
    """Is the right answer a letter, or several, and does another answer mean the same?

    >>> same_letters("(B) blue", "B"), same_letters("CA", "A, C"), same_letters("blue", "Blue")
    (True, True, False)
    """
    words = set(re.findall(r"\w+", bare(gold))) - {"and"}
    return words <= set(LETTERS) and meant(given, UNKNOWN) == meant(gold, UNKNOWN) != set()


def written_out(numbers, choices):
    return "\n".join(f"({LETTERS[number]}) {choices[number]}" for number in sorted(numbers))


def chosen(answers, question):
    """The answers as a vote should count them: one that means a choice of the question as this.

    >>> chosen(["B", "Blue", "(A) red", "7", None], "Which? (A) red (B) blue")
    ['(B) blue', '(B) blue', '(A) red', '7', None]
    """
    choices = listed(question)
    found = [(answer, meant(answer or "", choices)) for answer in answers]
    return [written_out(said, choices) if len(said) == 1 else answer for answer, said in found]


def label_of(value):
    return str(value).strip(BRACKETS).upper()


def unpacked(value):
    """A list or a dict that was written as text: JSON, Python, or numpy ("['a' 'b']").

    >>> unpacked("['a' 'b']"), unpacked('{"a": 1}'), unpacked("{{42}}"), unpacked("[" * 10**5)[:3]
    (['a', 'b'], {'a': 1}, '{{42}}', '[[[')
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    commas = re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", value.strip())
    for read, text in ((json.loads, value), (ast.literal_eval, commas)):
        # Else it is of the other kind, or a text that begins with a bracket: "{{42}}" is a set in a
        # set. These are what `literal_eval` is documented to raise.
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return read(text)
    return value


def listed(text):
    r"""The choices that are written in a text, labelled A, B, ...; empty if there are not two.

    >>> listed("Which?\nA. red\nB. blue"), listed("(A) red (B) blue"), listed("A. red B. blue")
    (['red', 'blue'], ['red', 'blue'], [])
    >>> listed("Options: A. red, B. blue"), listed("Which of (A), (B) and (C) is red?")
    (['red', 'blue'], [])
    """
    *lead, text = re.split(r"(?i:\b(?:options|choices):)", text)
    # Labels without a text: "Poles (A) and (B) stand apart. How far? (A) 3 m (B) 5 m".
    text = re.sub(r"\([A-Z]\)(?=[\s,;/&]*(?:(?:and|or) )?\([A-Z]\))", "", text)
    forms = [rf"^[ \t]*+{LABEL}", r"\(([A-Z])\)"]
    # "Options: A: left, B: right". Without the word it may be anything.
    forms += [rf"(?<![^\s,;]){LABEL}(?=\s)"] if lead else []
    for form in forms:
        # What stands before the first label, a label, what follows it, a label, what follows it
        _, *parts = re.split(form, text, flags=re.MULTILINE)
        texts = []
        for letter, words in zip(parts[::2], parts[1::2]):
            words = words.split("\n")[0].strip(" ;,")
            if words and LETTERS.index(letter) == len(texts):
                texts.append(words)
        if len(texts) > 1:
            return texts
    return []


def read_choices(value):
    """A column of choices -> (texts, labels or []). ValueError if it cannot be read.

    >>> read_choices({"B": "blue", "A": "red"}), read_choices("['red', 'blue']")
    ((['red', 'blue'], ['A', 'B']), (['red', 'blue'], []))
    """
    value = unpacked(value)
    if isinstance(value, str) and value.strip():
        lines = value.splitlines() if "\n" in value.strip() else re.split("[;|]", value)
        lines = [line.strip() for line in lines if line.strip()]
        value = listed("\n".join(lines)) or lines
        if len(value) < 2:
            raise ValueError(f"cannot read the choices {value[0]!r}")
    # [["red", "blue"]]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = dict(zip(value["label"], value["text"]))
    elif isinstance(value, list) and any(isinstance(choice, dict) for choice in value):
        value = {choice["label"]: choice["text"] for choice in value}
    if not isinstance(value, dict):
        texts = [str(choice) for choice in value or [] if choice is not None]
        # ["A. red", "B. blue"], but not ["ring (A) turns", "ring (B) turns"]
        own = listed("\n".join(texts)) if texts and re.match(LABEL, texts[0]) else []
        return own if len(own) == len(texts) else texts, []
    filled = {label: text for label, text in value.items() if text is not None}
    labelled = {label_of(label): str(text) for label, text in filled.items()}
    if set(labelled) == set(LETTERS[: len(labelled)]):
        labelled = dict(sorted(labelled.items()))
    return [*labelled.values()], [*labelled]


def right_choices(value, choices, labels, letters=False):
    """The right answer of a row as a text that `meant` reads. ValueError if it is no choice.

    It may be a label, a letter, a text, a number from 0 on, or several of these. Where it is a
    letter and also the text of a choice, it is the text, unless the answers are letters.

    >>> right_choices(1, ["red", "blue"], []), right_choices("A", ["B", "A"], [])
    ('(B) blue', '(B) A')
    """
    texts = [bare(choice) for choice in choices]
    items = unpacked(value)
    # "[1, 2]" may be one choice.
    if not isinstance(items, list | tuple) or bare(str(value)) in texts:
        items = [value]
    found = set()
    for item in items:
        text = str(item).strip()
        numbers = meant(text, choices)
        place = int(float(text)) if re.fullmatch(r"\d+(\.0)?", text) else len(texts)
        counts = isinstance(item, int | float) and text not in choices
        if label_of(text) in labels:
            numbers = {labels.index(label_of(text))}
        elif place < len(texts) and (counts or not numbers):
            numbers = {place}
        elif bare(text) in texts and not letters:
            numbers = {texts.index(bare(text))}
        if not numbers:
            raise ValueError(f"the answer {text} is none of the choices {', '.join(choices)}")
        found |= numbers
    return written_out(found, choices)
