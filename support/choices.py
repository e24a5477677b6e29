r"""Multiple choice: the choices as data sets write them, and which of them an answer means.

    a column of choices -- read_choices --> texts, labels     an answer -- meant --> {0, 2}, A and C

A letter is written as (B), B., Option B, \text{B}, **B**, $B$ or "B - blue"; several as "A, C",
"C and A" or "AC". An answer may also be the text of a choice. Where it is both, as with the choices
D, C, B, A, the right answer is read as a text, a given one as a letter.
"""

import ast
import json
import re

from support.answers import answers_match

LONGEST = 500  # characters of an answer that are looked at
TRUTH = {"yes": True, "true": True, "correct": True}
TRUTH |= {"no": False, "false": False, "incorrect": False}

FULLWIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)}  # Ｂ is B
WRAPPER = re.compile(
    r"\\(?:text\w*|math\w+|[mf]?box|boxed|bm|boldsymbol|underline|emph|operatorname) ?\{([^{}]*)\}"
)
STYLE = re.compile(
    r"\$([^$]*)\$ | \\\((.*?)\\\) | \\[ ,;!] | \\(?:bf|it|rm|displaystyle|left|right)(?![a-z])"
    r"| \*\* | __ | ` | </?(?:b|i|em|strong|answer)>",
    re.VERBOSE,
)
QUOTED = re.compile(r"([\"'“‘*_{])(.*)[\"'”’*_}]", re.DOTALL)
LEAD = re.compile(
    r"(?:(?:so|thus|therefore|both|the|my|final|correct|right|best|answer|option|choice|letter)s?\b"
    r"[ :=]*(?:(?:is|are)\b[ :]*)?)+",
    re.IGNORECASE,
)
TAIL = re.compile(r" (?:is|are) (?:the )?(?:correct|right|best)(?: (?:answer|option|choice)s?)?$")
LETTER = re.compile(r"[(\[]?([A-Za-z])[.:]?[)\]]?")
# A letter before a text; group 2 is there if the letter is set off, as in "B. blue", "(B) blue".
FIRST = re.compile(r"[(\[]?([A-Za-z])(?:([)\]][.:]?|[.:](?= )| ?[–—=|:]| -(?= ))|[ ,.(-]) ?(.+)")
LAST = re.compile(r"(.+?) ?[(\[]([A-Za-z])[)\]]")


def bare(text):
    r"""A text without what only dresses it: LaTeX, bold, quotes, spaces, the full stop.

    >>> bare(r"\textbf{(B)}"), bare("**Yes.**"), bare("$5$ cm"), bare('"blue".')
    ('(B)', 'Yes', '5 cm', 'blue')
    """
    text, before = text.translate(FULLWIDTH), None
    while text != before:
        before = text
        text = STYLE.sub(r" \1\2", WRAPPER.sub(r"\1", text))
        text = " ".join(text.split()).rstrip(" .,;:")
        quoted = QUOTED.fullmatch(text)
        text = quoted[2] if quoted else text
    return text


def without_lead(text):
    """What an answer says: "The answer is option B." -> "B"."""
    text = bare(text)
    lead = LEAD.match(text)
    return bare(TAIL.sub("", text[lead.end() :] if lead else text))


def truth(text, goes_on=False):
    """True or False if the text is a word for yes or no, else None. It may go on: "Yes, it is"."""
    for words in (bare(text), without_lead(text)):
        word = re.match(r"\W*(\w+)" if goes_on else r"\W*(\w+)\W*$", words)
        if word and word[1].casefold() in TRUTH:
            return TRUTH[word[1].casefold()]
    return None


# ---------------------------------------------------------------------------- what an answer means


def agree(text, choice):
    """Does this text say the same as the choice?"""
    text, choice = bare(text), bare(choice)
    if text.casefold() == choice.casefold() or answers_match(text, choice):
        return True
    return truth(choice) is not None and truth(text, goes_on=True) == truth(choice)


def number_of(letter):
    return ord(letter.upper()) - 65


def one(text, choices, as_text):
    """The number of the choice that a bare text means for sure, or None."""
    texts = [bare(choice) for choice in choices]
    letter = LETTER.fullmatch(text)
    if text in texts and (as_text or not letter):
        return texts.index(text)
    if letter and number_of(letter[1]) < len(texts):
        return texts.index(texts[number_of(letter[1])])  # the first of those that are equal
    pairs = [(m[1], m[3]) for m in [FIRST.fullmatch(text)] if m]
    pairs += [(m[2], m[1]) for m in [LAST.fullmatch(text)] if m]
    for letter, words in pairs:
        choice = texts[number_of(letter)] if number_of(letter) < len(texts) else None
        if choice is not None and (agree(words, choice) or agree(words.strip("()[] "), choice)):
            return texts.index(choice)
    fits = {texts.index(choice) for choice in texts if agree(text, choice)}
    return fits.pop() if len(fits) == 1 else None


def several(text, count):
    """{0, 2} of "A, C", "C and A", "(A)(C)" and "AC". Empty if there is anything else."""
    words = re.findall(r"\w+", re.sub(r"(?i)\b(?:and|both|only)\b", " ", text))
    if len(words) == 1:
        words = list(words[0])
    found, known = [word.upper() for word in words], {chr(65 + i) for i in range(count)}
    if len(set(found)) < len(found) or not set(found) <= known:
        return frozenset()
    return frozenset(map(number_of, found))


def meant(text, choices, as_text=False):
    """The numbers of the choices that a text means, by letter or in words. Empty if it means none.

    >>> colours = ("red", "blue", "green")
    >>> [sorted(meant(text, colours)) for text in ("(B) blue", "Blue", "C and A", "AC", "a car")]
    [[1], [1], [0, 2], [0, 2], []]
    >>> [sorted(meant("B", ("D", "C", "B", "A"), as_text)) for as_text in (False, True)]
    [[1], [2]]
    """
    text = text[:LONGEST]
    for whole in (bare(text), without_lead(text)):
        number = one(whole, choices, as_text)
        if number is not None:
            return frozenset([number])
    lines = text.split("\n")
    pieces = lines if len(lines) > 1 else re.split(r"[,;/&]|\band\b", whole)
    numbers = [one(bare(piece), choices, as_text) for piece in pieces if piece.strip()]
    if len(numbers) > 1 and None not in numbers:
        return frozenset(numbers)
    letters = several(whole, len(choices))
    # "B. It is the blue one": a letter that is set off, and words that are no choice.
    if not letters and number_of(letter_of(whole) or "z") < len(choices):
        return frozenset([number_of(letter_of(whole))])
    return letters


def letter_of(text):
    """The letter by which a text means a choice, where the choices are not known. "" if none."""
    text = without_lead(text)
    letter, first = LETTER.fullmatch(text), FIRST.fullmatch(text)
    if letter:
        return letter[1].upper()
    return first[1].upper() if first and first[2] else ""


def same_letters(given, gold):
    """Is the right answer a letter, or several, and does another answer mean the same?

    >>> same_letters("(B) blue", "B"), same_letters("CA", "A, C"), same_letters("blue", "Blue")
    (True, True, False)
    """
    if not re.fullmatch(r"[(\[]?[A-Z][)\]]?(?:\W+(?:and )?[A-Z]\b\)?)*", bare(gold)):
        return False
    wanted, letter = several(bare(gold), 26), letter_of(given)
    return several(without_lead(given), 26) == wanted or [*map(number_of, letter)] == [*wanted]


# ------------------------------------------------------------------------- as data sets write them


def unpacked(value):
    """A list or a dict that was written as text: JSON, Python, or numpy ("['a' 'b']")."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    commas = re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", value.strip())
    for read, text in ((json.loads, value), (ast.literal_eval, commas)):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            pass  # of the other kind, or a text that begins with a bracket
    return value


def listed(text):
    r"""The choices that are written in a text, labelled A, B, ...; empty if there are not two.

    >>> listed("Which?\nA. red\nB. blue"), listed("(A) red (B) blue"), listed("A. red B. blue")
    (['red', 'blue'], ['red', 'blue'], [])
    """
    in_lines = r"^\s*(?:(?:Options|Choices): *)?[(\[]?([A-Z])[.):\]]\s*(\S.*?)[ ;,]*$"
    in_a_line = r"\(([A-Z])\) *(\S.*?)[ ;,]*(?=\([A-Z]\)|$)"
    for pattern in (in_lines, in_a_line):
        found = re.findall(pattern, text, re.MULTILINE)
        texts = [words for i, (letter, words) in enumerate(found) if number_of(letter) == i]
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
        texts = listed("\n".join(lines)) or lines
        if len(texts) < 2:
            raise ValueError(f"cannot read the choices {value!r}")
        return texts, []
    if isinstance(value, dict):
        pairs = list(value.items())
        if isinstance(value.get("text"), list):  # {"text": [...], "label": [...]}
            pairs = list(zip(value["label"], value["text"]))
    elif value and all(isinstance(choice, dict) for choice in value):
        pairs = [(choice["label"], choice["text"]) for choice in value]
    else:
        texts = [str(choice) for choice in value or [] if choice is not None]
        own = listed("\n".join(texts))  # ["A. red", "B. blue"]
        return own if len(own) == len(texts) else texts, []
    pairs = [(label_of(label), str(choice)) for label, choice in pairs if choice is not None]
    if {label for label, _ in pairs} == {chr(65 + i) for i in range(len(pairs))}:
        pairs.sort()
    return [choice for _, choice in pairs], [label for label, _ in pairs]


def label_of(value):
    return str(value).strip(" ().[]:").upper()


def right_choice(value, choices, labels):
    """The numbers that one right answer means: a label, a letter, a text, or a number from 0 on."""
    text = str(value).strip()
    if label_of(text) in labels:
        return {labels.index(label_of(text))}
    number = int(float(text)) if re.fullmatch(r"\d+(\.0)?", text) else len(choices)
    by_text = meant(text, choices, as_text=True)
    is_number = isinstance(value, int | float) and bare(text) not in map(bare, choices)
    if number < len(choices) and (is_number or not by_text):
        return {number}
    if not by_text:
        raise ValueError(f"the answer {text} is none of the choices {', '.join(choices)}")
    return by_text


def right_choices(value, choices, labels):
    """The right answer of a row as a text that `meant` reads. ValueError if it is no choice.

    >>> right_choices(1, ["red", "blue"], []), right_choices("B", ["red", "blue"], [])
    ('(B) blue', 'B')
    """
    items = unpacked(value)
    items = items if isinstance(items, list | tuple) else [value]
    found = set().union(*(right_choice(item, choices, labels) for item in items))
    if len(items) == 1 and meant(str(items[0]), choices, as_text=True) == found:
        return str(items[0])
    return "\n".join(f"({chr(65 + i)}) {choices[i]}" for i in sorted(found))
