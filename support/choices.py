r"""Multiple choice: the choices as data sets write them, and which of them an answer means.

    a column of choices -- read_choices --> texts, labels     an answer -- meant --> {0, 2}, A and C

A letter is written as (B), B., Option B, \text{B}, **B**, $B$ or "B - blue"; several as "A, C",
"C and A" or "AC". An answer may also be the text of a choice. Where it is both, as with the choices
D, C, B, A, the right answer is read as a text, a given one as a letter.
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
TRUTH = {"yes": True, "true": True, "correct": True}
TRUTH |= {"no": False, "false": False, "incorrect": False}
# It may go on: "Yes, it is", "No (see above)", but not "No answer", "Yes/No", "No. 5".
SAID = re.compile(
    r"\W*(\w+)(?=\W*$| ?[,;:!(]|\.(?! ?\d)"
    r"|[ -](?:it|he|she|they|there|this|that|the|because|since|as)\b)\W*(\w*)"
)
LETTER = re.compile(r"[(\[]?(?P<letter>[A-Za-z])[.:]?[)\]]?")
LAST = re.compile(r"(?P<words>.+?) ?[(\[](?P<letter>[A-Za-z])[)\]]")
LETTERS = re.compile(r"[(\[]?[A-Z][)\]]?(?:\W+(?:and )?[A-Z]\b\)?)*")
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
    said = SAID.match(bare(text))
    value, more = [TRUTH.get(word.casefold()) for word in said.groups()] if said else (None, None)
    return value if more in (None, value) else None


# ---------------------------------------------------------------------------- what an answer means


def agree(text, choice):
    """Does this text say the same as the choice?

    Among choices a ratio may be given as a fraction, and a fraction as a decimal.

    >>> agree("2/7", "2:7"), agree("0.4444", "4/9"), agree("0.45", "4/9")
    (True, True, False)
    """
    text, choice = bare(text), bare(choice)
    exact = re.sub(r"^(\d+) ?: ?(\d+)$", r"\1/\2", choice)
    if text.casefold() == choice.casefold() or answers_match(text, choice):
        return True
    decimals, value = re.fullmatch(r"-?\d*\.(\d{3,})", text), canonical(exact)
    if decimals and value and isinstance(value[0], Fraction):
        return abs(Fraction(text) - value[0]) < Fraction(1, 10 ** len(decimals[1]))
    if answers_match(text, exact):
        return True
    return truth(choice) is not None and truth(text) == truth(choice)


def number_of(letter):
    return ord(letter.upper()) - 65


def one(text, choices, as_text):
    """The number of the choice that a bare text means for sure, or None."""
    texts = [bare(choice) for choice in choices]
    letter, first, last = (form.fullmatch(text) for form in (LETTER, FIRST, LAST))
    if text in texts and (as_text or not letter):
        return texts.index(text)
    for found in filter(None, (letter, first, last)):
        # The first of choices that are equal.
        for choice in texts[number_of(found["letter"]) :][:1]:
            if found is letter or agree(found["words"], choice):
                return texts.index(choice)

    # "B. It is the blue one" is B; "(B) 70 g" where 70 g is C is nothing, and so is "(B) or (C)".
    number = number_of(first["letter"]) if first and first["mark"] else len(texts)
    if number < len(texts):
        words = first["words"]
        rest = words.casefold().replace(texts[number].casefold(), "")
        names = [rf"(?<!\w){re.escape(choice.casefold())}(?!\w)" for choice in texts if choice]
        clash = OTHER.search(words) or any(re.search(name, rest) for name in names)
        return None if clash or any(agree(words, choice) for choice in texts) else number
    fits = {texts.index(choice) for choice in texts if agree(text, choice)}
    return fits.pop() if len(fits) == 1 else None


def meant(text, choices, as_text=False):
    """The numbers of the choices that a text means, by letter or in words. Empty if it means none.

    >>> colours = ("red", "blue", "green")
    >>> [sorted(meant(text, colours)) for text in ("(B) blue", "Blue", "C and A", "AC", "a car")]
    [[1], [1], [0, 2], [0, 2], []]
    >>> [sorted(meant("B", ("D", "C", "B", "A"), as_text)) for as_text in (False, True)]
    [[1], [2]]
    """
    whole = bare(text[:LONGEST])
    pieces = re.split(r"[,;/&]|\band\b", whole)
    for parts in ([whole], text.split("\n"), pieces):
        numbers = [one(bare(part), choices, as_text) for part in parts if part.strip()]
        if numbers and None not in numbers:
            return frozenset(numbers)
    # Letters alone: "A C", "(A)(C)", "AC".
    words = re.findall(r"\w+", re.sub(r"(?i)\b(?:and|both|only)\b", " ", whole))
    letters = [word.upper() for word in (words[0] if len(words) == 1 else words)]
    known = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if len(set(letters)) == len(letters) and set(letters) <= set(known):
        return frozenset(map(number_of, letters))
    return frozenset()


def same_letters(given, gold):
    """Is the right answer a letter, or several, and does another answer mean the same?

    >>> same_letters("(B) blue", "B"), same_letters("CA", "A, C"), same_letters("blue", "Blue")
    (True, True, False)
    """
    is_letters = LETTERS.fullmatch(bare(gold)) is not None
    return is_letters and meant(given, UNKNOWN) == meant(gold, UNKNOWN)


# ------------------------------------------------------------------------- as data sets write them


def unpacked(value):
    """A list or a dict that was written as text: JSON, Python, or numpy ("['a' 'b']")."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    commas = re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", value.strip())
    for read, text in ((json.loads, value), (ast.literal_eval, commas)):
        # Else it is of the other kind, or a text that begins with a bracket.
        with contextlib.suppress(ValueError, SyntaxError):
            return read(text)
    return value


LABEL = r"[(\[]?([A-Z])[.):\]]"


def listed(text):
    r"""The choices that are written in a text, labelled A, B, ...; empty if there are not two.

    >>> listed("Which?\nA. red\nB. blue"), listed("(A) red (B) blue"), listed("A. red B. blue")
    (['red', 'blue'], ['red', 'blue'], [])
    >>> listed("Options: A. red, B. blue"), listed("Which of (A), (B) and (C) is red?")
    (['red', 'blue'], [])
    """
    *lead, text = re.split(r"(?i:\b(?:options|choices):)", text)
    forms = [rf"^[ \t]*+{LABEL}", r"\(([A-Z])\)"]
    # "Options: A: left, B: right". Without the word it may be anything.
    forms += [rf"(?<![^\s,;]){LABEL}(?=\s)"] if lead else []
    for form in forms:
        # What stands before the first label, a label, what follows it, a label, what follows it
        _, *parts = re.split(form, text, flags=re.MULTILINE)
        texts = []
        for letter, words in zip(parts[::2], parts[1::2]):
            # "Poles (A) and (B) stand apart. How far? (A) 3 m (B) 5 m"
            if letter == "A" and not is_list(texts):
                texts = []
            if letter == chr(65 + len(texts)):
                texts.append(words.split("\n")[0].strip(" ;,"))
        if is_list(texts):
            return texts
    return []


def is_list(texts):
    return len(texts) > 1 and not {"", "and", "or"} & set(texts)


def is_empty(value):
    """None, the nan of pandas, or a blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def read_choices(value):
    """A column of choices -> (texts, labels or []). ValueError if it cannot be read.

    >>> read_choices({"B": "blue", "A": "red"}), read_choices("['red', 'blue']")
    ((['red', 'blue'], ['A', 'B']), (['red', 'blue'], []))
    """
    value = None if is_empty(value) else unpacked(value)
    if isinstance(value, str):
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
    while isinstance(value, list) and value and is_empty(value[-1]):
        value = value[:-1]
    if isinstance(value, list) and any(map(is_empty, value)):  # the others keep their letters
        value = {chr(65 + i): choice for i, choice in enumerate(value)}
    labels = []
    if isinstance(value, dict):
        filled = {label_of(label): text for label, text in value.items() if not is_empty(text)}
        if set(filled) == {chr(65 + i) for i in range(len(filled))}:
            filled = dict(sorted(filled.items()))
        labels, value = [*filled], [*filled.values()]
    texts = [str(choice) for choice in value or []]
    # ["A. red", "B. blue"], but not ["ring (A) turns", "ring (B) turns"]
    own = listed("\n".join(texts)) if texts and re.match(LABEL, texts[0]) else []
    return own if len(own) == len(texts) else texts, labels


def label_of(value):
    return str(value).strip(" ().[]:").upper()


def right_choices(value, choices, labels, as_text=True):
    """The right answer of a row as a text that `meant` reads. ValueError if it is no choice.

    It may be a label, a letter, a text, a number from 0 on, or several of these. as_text: a letter
    that is also the text of a choice is this text.

    >>> right_choices(1, ["red", "blue"], []), right_choices("B", ["red", "blue"], [])
    ('(B) blue', '(B) blue')
    """
    items, found = unpacked(value), set()
    # "[1, 2]" may be one choice.
    if not isinstance(items, list | tuple) or bare(str(value)) in map(bare, choices):
        items = [value]
    numbers = [number_of(label) for label in labels if re.fullmatch("[A-Z]", label)]
    if len(numbers) < len(choices):
        numbers = [*range(len(choices))]
    for item in items:
        text = str(item).strip()
        by_text, letter = meant(text, choices, as_text), re.fullmatch("[A-Z]", label_of(text))
        is_number = re.fullmatch(r"\d+(\.0)?", text) and int(float(text)) in numbers
        counts = isinstance(item, int | float) and text not in choices
        if label_of(text) in labels:
            found.add(labels.index(label_of(text)))
        elif is_number and (counts or not by_text):
            found.add(numbers.index(int(float(text))))
        elif by_text and (text in choices or not letter or number_of(letter[0]) in numbers):
            found |= by_text
        else:
            raise ValueError(f"the answer {text} is none of the choices {', '.join(choices)}")
    return "\n".join(written_out(number, choices) for number in sorted(found))


def written_out(number, choices):
    return f"({chr(65 + number)}) {choices[number]}"


def chosen(answers, question):
    """The answers as a vote should count them: one that means a choice of the question as this.

    >>> chosen(["B", "Blue", "(A) red", "7", None], "Which? (A) red (B) blue")
    ['(B) blue', '(B) blue', '(A) red', '7', None]
    """
    choices = listed(question)
    numbers = [sorted(meant(answer or "", choices)) for answer in answers]
    return [
        written_out(found[0], choices) if len(found) == 1 else answer
        for answer, found in zip(answers, numbers)
    ]
