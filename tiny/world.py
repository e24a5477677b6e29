"""The procedural world that the embedded base was pretrained on: small scenes with questions.

MM-Zero starts from a vision-language model that can already read pictures and write code; the
method then adds no data at all. This file is the *pretraining corpus* of our stand-in for such a
model (`tiny/build.py` makes it) and the source of its held-out test. The self-play loop itself
never imports it: only `eval.py` does, for the test.

A scene is a handful of coloured shapes on a 10 x 10 grid, origin top left, drawn at 64 x 64 pixels:

    kind       content type   caption                               what has to be read
    bars       data_chart     bars: red 3, blue 7, green 5          heights
    shapes     geometry       shapes: red 4x3, blue 2x6             widths and heights
    plan       timeline       plan: red 1-4, blue 3-7, green 6-9    starts and ends
    map        map            map: red 2,5, blue 6,1, green 4,8     places, east and north
    table      table          table: red blue / green red           colours of cells
    chain      diagram        chain: red > blue > green             who points to whom

Every question is a list of `reads` (what to look at, with the true values) and a rule `solve` from
the values to what is known after each look, and the answer. So `build.py` can write down the
reasoning, and also that of somebody who misread a value, with the answer that follows: that is how
the base gets its room for improvement.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tiny.drawing import svg

COLOURS = ("red", "blue", "green", "orange", "purple", "black")
# Of eight scenes six are for pretraining, one for choosing settings, one for the test: see `split`.
SPLITS = ("validation", "test", *["train"] * 6)


@dataclass(frozen=True)
class Question:
    text: str
    # What is looked at, and what is there: ("red", 3).
    reads: tuple[tuple[str, int | str], ...]
    # The values, in order -> (what is known after each look), the answer.
    solve: Callable[..., tuple[tuple, int | str]]

    @property
    def answer(self) -> str:
        return str(self.solve(*(value for _, value in self.reads))[1])


@dataclass(frozen=True)
class Scene:
    kind: str
    content_type: str
    caption: str  # says everything that is in the picture
    # ("rect", x, y, w, h, colour), ("circle", cx, cy, r, colour), ("line", x, y, u, v, colour)
    shapes: tuple[tuple, ...]
    easy: tuple[Question, ...]  # answered by one look
    hard: tuple[Question, ...]  # answered by several looks and a step of reasoning


def make_scene(kind, content_type, items, shapes, easy, hard, **names) -> Scene:
    """`hard` lists (text, reads, rule), `easy` (text, what is looked at); `names` stand for the
    {names} in the texts."""

    def questions(rows):
        return tuple(Question(text.format(**names), reads, rule) for text, reads, rule in rows)

    easy, caption = [(text, (read,), look) for text, read in easy], f"{kind}: {items}"
    return Scene(kind, content_type, caption, tuple(shapes), questions(easy), questions(hard))


# Rules. A network of four layers answers in one step what takes one step: sums, counts and
# comparisons over a list are worked out along it, with the result so far behind each look (None:
# nothing yet).


def look(*values):
    """The answer is what was seen last."""
    return (None,) * len(values), values[-1]


def add(x, y):
    return (None, x + y), x + y


def less(x, y):
    return (None, abs(x - y)), abs(x - y)


def mean(x, y):
    return (None, x + y), (x + y) // 2


def area(width, height):
    return (None, width * height), width * height


def perimeter(width, height):
    return (None, width + height), 2 * (width + height)


def delay(start, end):
    return (None, None), max(0, end - start)


def one_or_two(colour, other):
    return (None, None), "one" if colour == other else "two"


def tally(counts: Callable[[object], bool]):
    """
    >>> tally(lambda v: v > 3)(8, 2, 5)
    ((1, 1, 2), 2)
    """

    def rule(*values):
        so_far = tuple(sum(map(counts, values[:i])) for i in range(1, len(values) + 1))
        return so_far, so_far[-1]

    return rule


def steps_since(name: str, to: str | None = None):
    """Walk along a chain and count the steps since `name`, up to `to` if it is given.

    >>> steps_since("b", "c")("a", "b", "c", "d")
    ((None, 0, 1, 1), 1)
    """

    def rule(*values):
        so_far, count, walking = [], None, False
        for value in values:
            if walking:
                count += 1
            elif value == name:
                count = 0
            so_far.append(count)
            walking = (walking or value == name) and value != to
        return tuple(so_far), count or 0

    return rule


def extreme(colours: Sequence[str], sign: int):
    """The colour of the highest value (`sign` 1) or the lowest (-1); of equal ones the left.

    >>> extreme(("red", "blue"), 1)(3, 5)
    (('red 3', 'blue 5'), 'blue')
    """

    def rule(*values):
        so_far, best = [], 0
        for i, value in enumerate(values):
            if sign * value > sign * values[best]:
                best = i
            so_far.append(f"{colours[best]} {values[best]}")
        return tuple(so_far), colours[best]

    return rule


def bars(rng) -> Scene:
    """Three or four bars, each 1 to 9 high."""
    colours = rng.sample(COLOURS, rng.choice((3, 4)))
    height = {c: rng.randint(1, 9) for c in colours}
    a, b = rng.sample(colours, 2)
    everything = tuple(height.items())
    high, low = (a, b) if height[a] >= height[b] else (b, a)
    limit = rng.randint(2, 7)
    above = tally(lambda v: v > limit)

    def read(*names):
        return tuple((c, height[c]) for c in names)

    easy = [(f"How tall is {c}?", (c, height[c])) for c in colours]
    hard = [
        ("What do {a} and {b} add up to?", read(a, b), add),
        ("How much taller is {high} than {low}?", read(high, low), less),
    ]
    # Questions with one answer only: no two tallest bars, no half of a unit.
    ordered = sorted(height.values())
    if ordered[-1] > ordered[-2]:
        hard.append(("Which of the bars is tallest?", everything, extreme(colours, 1)))
    if ordered[0] < ordered[1]:
        hard.append(("Which of the bars is shortest?", everything, extreme(colours, -1)))
    hard.append(("How many bars are above {limit}?", everything, above))
    if (height[a] + height[b]) % 2 == 0:
        hard.append(("What is the mean of {a} and {b}?", read(a, b), mean))

    caption = ", ".join(f"{c} {v}" for c, v in everything)
    shapes = [("rect", 1 + 2 * i, 10 - v, 2, v, c) for i, (c, v) in enumerate(everything)]
    names = {"a": a, "b": b, "high": high, "low": low, "limit": limit}
    return make_scene("bars", "data_chart", caption, shapes, easy, hard, **names)


def rectangles(rng) -> Scene:
    """Two rectangles side by side, 2 to 5 wide and 2 to 9 high."""
    colours = rng.sample(COLOURS, 2)
    size = {c: (rng.randint(2, 5), rng.randint(2, 9)) for c in colours}
    a, b = rng.sample(colours, 2)
    wide = {c: (f"{c} wide", size[c][0]) for c in colours}
    high = {c: (f"{c} high", size[c][1]) for c in colours}

    easy = [
        ("How wide is {a}?", wide[a]),
        ("How high is {a}?", high[a]),
        ("How high is {b}?", high[b]),
    ]
    hard = [
        ("What is the area of {a}?", (wide[a], high[a]), area),
        ("What is the perimeter of {a}?", (wide[a], high[a]), perimeter),
        ("How wide are {a} and {b} together?", (wide[a], wide[b]), add),
        ("How high are {a} and {b} on top of each other?", (high[a], high[b]), add),
    ]

    caption = ", ".join(f"{c} {w}x{h}" for c, (w, h) in size.items())
    shapes = []
    for i, (c, (w, h)) in enumerate(size.items()):
        shapes.append(("rect", 5 * i, 10 - h, w, h, c))
    return make_scene("shapes", "geometry", caption, shapes, easy, hard, a=a, b=b)


def plan(rng) -> Scene:
    """A timeline of three tasks, each a bar from its start to its end on a scale of 0 to 9."""
    colours = rng.sample(COLOURS, 3)
    span = {}
    for c in colours:
        first = rng.randint(0, 7)
        span[c] = (first, rng.randint(first + 1, 9))
    a, b = rng.sample(colours, 2)
    start = {c: (f"{c} from", span[c][0]) for c in colours}
    end = {c: (f"{c} to", span[c][1]) for c in colours}

    def together(s, e, t, f):
        total = e - s + f - t
        return (None, e - s, None, f"{f - t} {total}"), total

    easy = [
        ("When does {a} start?", start[a]),
        ("When does {a} end?", end[a]),
        ("When does {b} start?", start[b]),
    ]
    everything = (start[a], end[a], start[b], end[b])
    hard = [
        ("How long is {a}?", (start[a], end[a]), less),
        ("How long are {a} and {b} together?", everything, together),
        ("How long after the start of {a} does {b} end?", (start[a], end[b]), delay),
    ]

    caption = ", ".join(f"{c} {s}-{e}" for c, (s, e) in span.items())
    shapes = [("rect", s, 1 + 3 * i, e - s, 2, c) for i, (c, (s, e)) in enumerate(span.items())]
    return make_scene("plan", "timeline", caption, shapes, easy, hard, a=a, b=b)


def land(rng) -> Scene:
    """A map with three towns, each at (east, north) from 1 to 9."""
    colours = rng.sample(COLOURS, 3)
    spots = rng.sample([(x, y) for x in (1, 3, 5, 7, 9) for y in (1, 3, 5, 7, 9)], 3)
    spots = sorted((min(9, x + rng.randint(0, 1)), y) for x, y in spots)  # told from west to east
    place = dict(zip(colours, spots))
    a, b = rng.sample(colours, 2)
    east = {c: (f"{c} east", place[c][0]) for c in colours}
    north = {c: (f"{c} north", place[c][1]) for c in colours}

    def steps(x, u, y, v):
        total = abs(x - u) + abs(y - v)
        return (None, abs(x - u), None, f"{abs(y - v)} {total}"), total

    def further(x, y):
        direction = "same"
        if x != y:
            direction = "east" if x > y else "north"
        return (None, None), direction

    easy = [
        ("How far east is {a}?", east[a]),
        ("How far north is {a}?", north[a]),
        ("How far north is {b}?", north[b]),
    ]
    both = (east[a], east[b], north[a], north[b])
    place_of_a, norths = (east[a], north[a]), (north[a], north[b])
    hard = [
        ("How many steps is it from {a} to {b}?", both, steps),
        ("How far is {a} from the south west corner?", place_of_a, add),
        ("How many steps north or south is {b} from {a}?", norths, less),
        ("Is {a} further north or further east?", place_of_a, further),
    ]

    caption = ", ".join(f"{c} {x},{y}" for c, (x, y) in place.items())
    shapes = [("rect", 0, 0, 10, 10, "wheat")]
    shapes += [("circle", x, 10 - y, 1, c) for c, (x, y) in place.items()]
    return make_scene("map", "map", caption, shapes, easy, hard, a=a, b=b)


def table(rng) -> Scene:
    """Two rows of two coloured cells."""
    palette = rng.sample(COLOURS, 3)
    cells = [rng.choice(palette) for _ in range(4)]
    reads = tuple((f"{1 + i // 2}.{1 + i % 2}", c) for i, c in enumerate(cells))
    row, column, c = rng.randint(1, 2), rng.randint(1, 2), rng.choice(palette)
    count = tally(lambda v: v == c)

    def at(r, k):
        return reads[2 * (r - 1) + k - 1]

    in_row, in_column = (at(row, 1), at(row, 2)), (at(1, column), at(2, column))

    easy = [
        ("What is in row {row}, column {column}?", at(row, column)),
        ("What is in row {other}, column {column}?", at(3 - row, column)),
    ]
    hard = [
        ("How many cells are {c}?", reads, count),
        ("How many cells of row {row} are {c}?", in_row, count),
        ("Has row {row} one colour or two?", in_row, one_or_two),
        ("Has column {column} one colour or two?", in_column, one_or_two),
    ]

    caption = " / ".join(" ".join(cells[i : i + 2]) for i in (0, 2))
    shapes = [("rect", 5 * (i % 2), 5 * (i // 2), 4, 4, c) for i, c in enumerate(cells)]
    names = {"row": row, "other": 3 - row, "column": column, "c": c}
    return make_scene("table", "table", caption, shapes, easy, hard, **names)


def chain(rng) -> Scene:
    """A flow diagram: three or four nodes in the corners, the first of them a box.

    A line has the colour of the node it leaves.
    """
    nodes = rng.sample(COLOURS, rng.choice((3, 4)))
    spots = rng.sample([(2, 2), (8, 2), (2, 8), (8, 8)], len(nodes))
    reads = tuple((str(i + 1), c) for i, c in enumerate(nodes))
    i = rng.randrange(len(nodes) - 1)
    j, k = sorted(rng.sample(range(len(nodes)), 2))
    names = {"at": nodes[i], "start": nodes[j], "end": nodes[k], "first": nodes[0]}

    easy = [
        ("Which node is first?", reads[0]),
        ("What follows {at}?", (nodes[i], nodes[i + 1])),
    ]
    hard = [
        ("Which node is last?", reads, look),
        ("How many steps lead from {start} to {end}?", reads, steps_since(nodes[j], nodes[k])),
        ("How many nodes come after {start}?", reads, steps_since(nodes[j])),
        ("What is two steps after {first}?", reads[:3], look),
    ]

    shapes = [("line", *spots[n], *spots[n + 1], nodes[n]) for n in range(len(nodes) - 1)]
    x, y = spots[0]
    shapes.append(("rect", x - 2, y - 2, 4, 4, nodes[0]))
    shapes += [("circle", *spot, 1, c) for spot, c in zip(spots[1:], nodes[1:])]
    return make_scene("chain", "diagram", " > ".join(nodes), shapes, easy, hard, **names)


KINDS: dict[str, Callable[[random.Random], Scene]] = {
    "bars": bars,
    "shapes": rectangles,
    "plan": plan,
    "map": land,
    "table": table,
    "chain": chain,
}


def split(scene: Scene) -> str:
    """-> "train", "validation" or "test".

    It depends on the picture alone, so the base sees a scene in every role or in none.
    """
    return SPLITS[zlib.crc32(scene.caption.encode()) % len(SPLITS)]


def random_scene(rng: random.Random, kind: str | None = None, of: str = "train") -> Scene:
    while True:
        scene = KINDS[kind or rng.choice(list(KINDS))](rng)
        if split(scene) == of:
            return scene


# ------------------------------------------------------------------------------------ the test


@dataclass(frozen=True)
class TestQuestion:
    svg: str  # draw it with render.Renderer
    question: str
    answer: str
    content_type: str


def heldout(n: int, seed: int = 0, kind: str = "hard", of: str = "test") -> list[TestQuestion]:
    """n questions on pictures that the base was never shown, kinds of scenes in turn.

    `kind` is "easy" or "hard"; for `of` see `split`.
    """
    rng = random.Random(f"held-out {kind} {seed}")
    kinds, test = list(KINDS), []
    for i in range(n):
        scene = random_scene(rng, kinds[i % len(kinds)], of)
        question = rng.choice(getattr(scene, kind))
        picture = svg(scene.shapes)
        test.append(TestQuestion(picture, question.text, question.answer, scene.content_type))
    return test
