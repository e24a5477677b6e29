"""The true answer to a question about a scene of the tiny world, from the Proposer's words alone.

`world.py` makes scenes and questions at random; here both are read back from text, without its
rules, for the audit (tools/audit.py). What the caption does not settle has no truth: a colour that
is not there, or there twice; two tallest bars; what the world never says; a question that supposes
what is false, such as how much taller the lower of two bars is.
"""

import re
from functools import partial

from tiny.world import COLOURS

C = f"({'|'.join(COLOURS)})"


def matched(pattern, text):
    """The match of the whole text or None; _ in a pattern stands for a colour."""
    return re.fullmatch(pattern.replace("_", C), text)


def read(caption):
    """A caption -> (kind, [(colour, numbers ...), ...]), or None if the world would not say it.

    >>> read("shapes: red 2x5, blue 3x9"), read("bars: red 12, blue 3, green 4")
    (('shapes', [('red', 2, 5), ('blue', 3, 9)]), None)
    """
    kind, _, body = caption.strip().partition(": ")
    if kind not in SCENES:
        return None
    element, between, counts, _ = SCENES[kind]
    found = [matched(element, part) for part in body.split(between)]
    if len(found) not in counts or not all(found):
        return None
    if kind == "plan" and any(match[2] >= match[3] for match in found):
        return None  # a task that ends before it begins
    return kind, [tuple(int(x) if x.isdigit() else x for x in match.groups()) for match in found]


# The questions of each kind: items -> [(pattern of a question, function of its groups)]. `number`
# is the first or second number of a colour. LookupError: no answer is true.


def find(items, colour):
    """The place of the only element of a colour."""
    places = [i for i, item in enumerate(items) if item[0] == colour]
    if len(places) != 1:
        raise LookupError(colour)
    return places[0]


def number(items, which, colour):
    return items[find(items, colour)][which]


def ahead(of, other):
    """By how much one number is above another; the world asks it the right way round only."""
    if of < other:
        raise LookupError(f"{of} is below {other}")
    return of - other


def bars(items):
    high = partial(number, items, 1)
    values = [value for _, value in items]
    questions = [
        ("How tall is _", high),
        ("What do _ and _ add up to", lambda a, b: high(a) + high(b)),
        ("How much taller is _ than _", lambda a, b: ahead(high(a), high(b))),
        ("How many bars are above ([1-9])", lambda limit: sum(v > int(limit) for v in values)),
        ("What is the mean of _ and _", lambda a, b: f"{(high(a) + high(b)) / 2:g}"),
    ]
    for word, end in (("tallest", max(values)), ("shortest", min(values))):
        colours = {c for c, v in items if v == end}
        if len(colours) == 1:
            questions.append((f"Which of the bars is {word}", colours.pop))
    return questions


def shapes(items):
    wide, high = partial(number, items, 1), partial(number, items, 2)
    return [
        ("How wide is _", wide),
        ("How high is _", high),
        ("What is the area of _", lambda c: wide(c) * high(c)),
        ("What is the perimeter of _", lambda c: 2 * wide(c) + 2 * high(c)),
        ("How wide are _ and _ together", lambda a, b: wide(a) + wide(b)),
        ("How high are _ and _ on top of each other", lambda a, b: high(a) + high(b)),
    ]


def plan(items):
    start, end = partial(number, items, 1), partial(number, items, 2)

    def long(colour):
        return end(colour) - start(colour)

    return [
        ("When does _ start", start),
        ("When does _ end", end),
        ("How long is _", long),
        ("How long are _ and _ together", lambda a, b: long(a) + long(b)),
        ("How long after the start of _ does _ end", lambda a, b: max(0, end(b) - start(a))),
    ]


def land(items):
    east, north = partial(number, items, 1), partial(number, items, 2)

    def further(colour):
        if east(colour) == north(colour):
            return "same"
        return "east" if east(colour) > north(colour) else "north"

    def steps(a, b):
        return abs(east(a) - east(b)) + abs(north(a) - north(b))

    return [
        ("How far east is _", east),
        ("How far north is _", north),
        ("Is _ further north or further east", further),
        ("How many steps is it from _ to _", steps),
        ("How far is _ from the south west corner", lambda c: east(c) + north(c)),
        ("How many steps north or south is _ from _", lambda a, b: abs(north(a) - north(b))),
    ]


def table(items):
    def row(r):
        return items[int(r) - 1]

    def column(k):
        return [line[int(k) - 1] for line in items]

    def count(cells):
        return "one" if len(set(cells)) == 1 else "two"

    return [
        ("What is in row ([12]), column ([12])", lambda r, k: row(r)[int(k) - 1]),
        ("How many cells are _", [*items[0], *items[1]].count),
        ("How many cells of row ([12]) are _", lambda r, c: row(r).count(c)),
        ("Has row ([12]) one colour or two", lambda r: count(row(r))),
        ("Has column ([12]) one colour or two", lambda k: count(column(k))),
    ]


def chain(items):
    place = partial(find, items)

    def after(colour, steps):
        return items[place(colour) + steps][0]

    return [
        ("Which node is (first|last)", lambda end: items[0 if end == "first" else -1][0]),
        ("What follows _", lambda c: after(c, 1)),
        ("What is two steps after _", lambda c: after(c, 2)),
        ("How many steps lead from _ to _", lambda a, b: ahead(place(b), place(a))),
        ("How many nodes come after _", lambda c: len(items) - 1 - place(c)),
    ]


# kind -> (one element, what stands between two, how many there are, its questions)
SCENES = {
    "bars": ("_ ([1-9])", ", ", (3, 4), bars),
    "shapes": ("_ ([2-5])x([2-9])", ", ", (2,), shapes),
    "plan": (r"_ (\d)-(\d)", ", ", (3,), plan),
    "map": (r"_ (\d),(\d)", ", ", (3,), land),
    "chain": ("_", " > ", (3, 4), chain),
    "table": ("_ _", " / ", (2,), table),
}


def truth(caption, question):
    """The answer as text, or None where the caption does not settle the question.

    >>> truth("bars: red 4, blue 7, red 2", "How tall is blue?")
    '7'
    >>> [truth("bars: red 4, blue 7, red 2", f"How tall is {c}?") for c in ("red", "green")]
    [None, None]
    """
    scene = read(caption)
    if scene is None or re.search(rf"{C}.*\1", question):  # "red and red"
        return None
    kind, items = scene
    *_, questions = SCENES[kind]
    for pattern, answer in questions(items):
        match = matched(pattern + r"\?", question.strip())
        if match:
            try:
                return str(answer(*match.groups()))
            except LookupError:
                return None
    return None
