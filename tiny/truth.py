"""The true answer to a question about a scene of the tiny world, from the Proposer's words alone (for eval.py's audit).

`world.py` makes scenes and questions at random; here both are read back from text, without its rules. What the caption
does not settle has no truth: a colour that is not there, or there twice; two tallest bars; what the world never says.
"""

import re

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
    element, between, counts = SCENES.get(kind, ("", ", ", ()))
    found = [re.fullmatch(element, part) for part in body.split(between)]
    if (
        len(found) not in counts
        or not all(found)
        or kind == "plan"
        and any(match[2] >= match[3] for match in found)
    ):
        return None
    return kind, [tuple(int(x) if x.isdigit() else x for x in match.groups()) for match in found]


def rules(kind, items):
    """[(pattern of a question, function of its groups)]; LookupError: not there, or twice, or past the end."""
    colours = [item[0] for item in items]
    where = {
        c: k for k, c in enumerate(colours) if colours.count(c) == 1
    }  # the only element of a colour
    one, two = (
        (lambda c: items[where[c]][1]),
        (lambda c: items[where[c]][2]),
    )  # its first and second number
    if kind == "bars":
        values = [value for _, value in items]
        top, low = ({c for c, v in items if v == end} for end in (max(values), min(values)))
        return [
            (f"How tall is {C}", one),
            (f"What do {C} and {C} add up to", lambda a, b: one(a) + one(b)),
            (f"How much taller is {C} than {C}", lambda a, b: abs(one(a) - one(b))),
            *(
                (f"Which of the bars is {word}", lambda c=c: c)
                for word, (c, *ties) in (("tallest", top), ("shortest", low))
                if not ties
            ),
            ("How many bars are above ([1-9])", lambda limit: sum(v > int(limit) for v in values)),
            (f"What is the mean of {C} and {C}", lambda a, b: f"{(one(a) + one(b)) / 2:g}"),
        ]
    if kind == "shapes":
        return [
            (f"How wide is {C}", one),
            (f"How high is {C}", two),
            (f"What is the area of {C}", lambda c: one(c) * two(c)),
            (f"What is the perimeter of {C}", lambda c: 2 * one(c) + 2 * two(c)),
            (f"How wide are {C} and {C} together", lambda a, b: one(a) + one(b)),
            (f"How high are {C} and {C} on top of each other", lambda a, b: two(a) + two(b)),
        ]
    if kind == "plan":
        long = lambda c: two(c) - one(c)
        return [
            (f"When does {C} start", one),
            (f"When does {C} end", two),
            (f"How long is {C}", long),
            (f"How long are {C} and {C} together", lambda a, b: long(a) + long(b)),
            (f"How long after the start of {C} does {C} end", lambda a, b: max(0, two(b) - one(a))),
        ]
    if kind == "map":
        side = lambda c: ("same", "east", "north")[(one(c) > two(c)) + 2 * (one(c) < two(c))]
        return [
            (f"How far east is {C}", one),
            (f"How far north is {C}", two),
            (f"Is {C} further north or further east", side),
            (
                f"How many steps is it from {C} to {C}",
                lambda a, b: abs(one(a) - one(b)) + abs(two(a) - two(b)),
            ),
            (f"How far is {C} from the south west corner", lambda c: one(c) + two(c)),
            (f"How many steps north or south is {C} from {C}", lambda a, b: abs(two(a) - two(b))),
        ]
    if kind == "table":
        count = lambda line: "one" if len(set(line)) == 1 else "two"
        return [
            ("What is in row ([12]), column ([12])", lambda r, k: items[int(r) - 1][int(k) - 1]),
            (f"How many cells are {C}", [*items[0], *items[1]].count),
            (f"How many cells of row ([12]) are {C}", lambda r, c: items[int(r) - 1].count(c)),
            ("Has row ([12]) one colour or two", lambda r: count(items[int(r) - 1])),
            (
                "Has column ([12]) one colour or two",
                lambda k: count([row[int(k) - 1] for row in items]),
            ),
        ]
    return [
        ("Which node is (first|last)", lambda end: colours[-(end == "last")]),
        (f"What follows {C}", lambda c: colours[where[c] + 1]),
        (f"What is two steps after {C}", lambda c: colours[where[c] + 2]),
        (f"How many steps lead from {C} to {C}", lambda a, b: abs(where[a] - where[b])),
        (f"How many nodes come after {C}", lambda c: len(items) - 1 - where[c]),
    ]


def truth(caption, question):
    """The answer as text, or None where the caption does not settle the question.

    >>> [truth("bars: red 4, blue 7, red 2", f"How tall is {colour}?") for colour in ("blue", "red", "green")]
    ['7', None, None]
    """
    scene = read(caption)
    if scene is None or re.search(rf"{C}.*\1", question):  # "red and red"
        return None
    asked = (
        (answer, re.fullmatch(pattern + r"\?", question.strip()))
        for pattern, answer in rules(*scene)
    )
    try:
        return next((str(answer(*match.groups())) for answer, match in asked if match), None)
    except LookupError:
        return None
