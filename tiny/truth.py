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
# kind -> (one element, what stands between two, how many there are)
SCENES = {
    "bars": (f"{C} ([1-9])", ", ", (3, 4)),
    "shapes": (f"{C} ([2-5])x([2-9])", ", ", (2,)),
    "plan": (rf"{C} (\d)-(\d)", ", ", (3,)),
    "map": (f"{C} (\\d),(\\d)", ", ", (3,)),
    "chain": (C, " > ", (3, 4)),
    "table": (f"{C} {C}", " / ", (2,)),
}


def read(caption):
    """A caption -> (kind, [(colour, numbers ...), ...]), or None if the world would not say it.

    >>> read("shapes: red 2x5, blue 3x9"), read("bars: red 12, blue 3, green 4")
    (('shapes', [('red', 2, 5), ('blue', 3, 9)]), None)
    """
    kind, _, body = caption.strip().partition(": ")
    if kind not in SCENES:
        return None
    element, between, counts = SCENES[kind]
    found = [re.fullmatch(element, part) for part in body.split(between)]
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
        (f"How tall is {C}", high),
        (f"What do {C} and {C} add up to", lambda a, b: high(a) + high(b)),
        (f"How much taller is {C} than {C}", lambda a, b: ahead(high(a), high(b))),
        ("How many bars are above ([1-9])", lambda limit: sum(v > int(limit) for v in values)),
        (f"What is the mean of {C} and {C}", lambda a, b: f"{(high(a) + high(b)) / 2:g}"),
    ]
    for word, end in (("tallest", max(values)), ("shortest", min(values))):
        colours = {c for c, v in items if v == end}
        if len(colours) == 1:
            questions.append((f"Which of the bars is {word}", colours.pop))
    return questions


def shapes(items):
    wide, high = partial(number, items, 1), partial(number, items, 2)
    return [
        (f"How wide is {C}", wide),
        (f"How high is {C}", high),
        (f"What is the area of {C}", lambda c: wide(c) * high(c)),
        (f"What is the perimeter of {C}", lambda c: 2 * wide(c) + 2 * high(c)),
        (f"How wide are {C} and {C} together", lambda a, b: wide(a) + wide(b)),
        (f"How high are {C} and {C} on top of each other", lambda a, b: high(a) + high(b)),
    ]


def plan(items):
    start, end = partial(number, items, 1), partial(number, items, 2)
    late = f"How long after the start of {C} does {C} end"

    def long(colour):
        return end(colour) - start(colour)

    return [
        (f"When does {C} start", start),
        (f"When does {C} end", end),
        (f"How long is {C}", long),
        (f"How long are {C} and {C} together", lambda a, b: long(a) + long(b)),
        (late, lambda a, b: max(0, end(b) - start(a))),
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
        (f"How far east is {C}", east),
        (f"How far north is {C}", north),
        (f"Is {C} further north or further east", further),
        (f"How many steps is it from {C} to {C}", steps),
        (f"How far is {C} from the south west corner", lambda c: east(c) + north(c)),
        (
            f"How many steps north or south is {C} from {C}",
            lambda a, b: abs(north(a) - north(b)),
        ),
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
        (f"How many cells are {C}", [*items[0], *items[1]].count),
        (f"How many cells of row ([12]) are {C}", lambda r, c: row(r).count(c)),
        ("Has row ([12]) one colour or two", lambda r: count(row(r))),
        ("Has column ([12]) one colour or two", lambda k: count(column(k))),
    ]


def chain(items):
    place = partial(find, items)

    def after(colour, steps):
        return items[place(colour) + steps][0]

    return [
        ("Which node is (first|last)", lambda end: items[0 if end == "first" else -1][0]),
        (f"What follows {C}", lambda c: after(c, 1)),
        (f"What is two steps after {C}", lambda c: after(c, 2)),
        (f"How many steps lead from {C} to {C}", lambda a, b: ahead(place(b), place(a))),
        (f"How many nodes come after {C}", lambda c: len(items) - 1 - place(c)),
    ]


QUESTIONS = {
    "bars": bars,
    "shapes": shapes,
    "plan": plan,
    "map": land,
    "table": table,
    "chain": chain,
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
    for pattern, answer in QUESTIONS[kind](items):
        match = re.fullmatch(pattern + r"\?", question.strip())
        if match:
            try:
                return str(answer(*match.groups()))
            except LookupError:
                return None
    return None
