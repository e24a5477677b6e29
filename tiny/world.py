"""The procedural world that the embedded base was pretrained on: small scenes, drawn in code, with questions.

MM-Zero starts from a vision-language model that can already read pictures and write code; the method then adds no
data at all. This file is the *pretraining corpus* of our stand-in for such a model (`tiny/build.py` makes it) and
the source of its held-out test. The self-play loop itself never imports it: only `eval.py` does, for the test.

A scene is a handful of coloured shapes on a 10 x 10 grid, origin top left, drawn at 64 x 64 pixels:

    kind       content type   caption                               what has to be read
    bars       data_chart     bars: red 3, blue 7, green 5          heights
    shapes     geometry       shapes: red 4x3, blue 2x6             widths and heights
    plan       timeline       plan: red 1-4, blue 3-7, green 6-9    starts and ends
    map        map            map: red 2,5, blue 6,1, green 4,8     places, east and north
    table      table          table: red blue / green red           colours of cells
    chain      diagram        chain: red > blue > green             who points to whom

Every question is a list of `reads` (what to look at, with the true values) and a rule `solve` from the values to
what is known after each look, and the answer; so `build.py` can write down the reasoning, and also that of somebody
who misread a value, with the answer that follows: that is how the base gets its room for improvement.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = ("red", "blue", "green", "orange", "purple", "black")
SIZE = 64  # pixels; the grid has 10 units of 6.4 pixels
# Of every eight scenes six are for pretraining, one for choosing settings, one for the test: see `split`.
SPLITS = ("validation", "test", *["train"] * 6)


@dataclass(frozen=True)
class Question:
    text: str
    reads: tuple[tuple[str, int | str], ...]  # ("red", 3): what is looked at, and what is there
    solve: Callable[
        ..., tuple[tuple, int | str]
    ]  # the values, in order -> (what is known after each look), the answer

    @property
    def answer(self) -> str:
        return str(self.solve(*(value for _, value in self.reads))[1])


@dataclass(frozen=True)
class Scene:
    kind: str
    content_type: str
    caption: str  # says everything that is in the picture
    shapes: tuple[
        tuple, ...
    ]  # ("rect", x, y, w, h, colour), ("circle", cx, cy, r, colour), ("line", ...)
    easy: tuple[Question, ...]  # answered by one look
    hard: tuple[Question, ...]  # answered by several looks and a step of reasoning


# Rules. A network of four layers answers in one step what takes one step: sums, counts and comparisons over a list
# are worked out along it, with the result so far behind each look (None: nothing yet).


def look(value):
    return (None,), value


def add(x, y):
    return (None, x + y), x + y


def less(x, y):
    return (None, abs(x - y)), abs(x - y)


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
        so_far, walking = [], False
        for value in values:
            so_far.append(
                so_far[-1] + 1
                if walking
                else 0
                if value == name
                else so_far[-1]
                if so_far
                else None
            )
            walking = (walking or value == name) and value != to
        return tuple(so_far), so_far[-1] or 0

    return rule


def pairs(rng: random.Random, items: Sequence) -> tuple:
    """Two different items in random order."""
    return tuple(rng.sample(list(items), 2))


def bars(rng) -> Scene:
    """Three or four bars, each 1 to 9 high."""
    colours = rng.sample(COLOURS, rng.choice((3, 4)))
    height = {c: rng.randint(1, 9) for c in colours}
    (a, b), everything = pairs(rng, colours), tuple(height.items())
    high, low = (a, b) if height[a] >= height[b] else (b, a)
    read = lambda *names: tuple((c, height[c]) for c in names)

    def extreme(sign):  # the best so far, with its value; of equal ones the left
        def rule(*values):
            best = [
                max(range(n), key=lambda i: (sign * values[i], -i))
                for n in range(1, len(values) + 1)
            ]
            return tuple(f"{colours[i]} {values[i]}" for i in best), colours[best[-1]]

        return rule

    easy = [Question(f"How tall is {c}?", read(c), look) for c in colours]
    hard = [
        Question(f"What do {a} and {b} add up to?", read(a, b), add),
        Question(f"How much taller is {high} than {low}?", read(high, low), less),
    ]
    ordered = sorted(height.values())
    if ordered[-1] > ordered[-2]:
        hard.append(Question("Which of the bars is tallest?", everything, extreme(1)))
    if ordered[0] < ordered[1]:
        hard.append(Question("Which of the bars is shortest?", everything, extreme(-1)))
    limit = rng.randint(2, 7)
    hard.append(
        Question(f"How many bars are above {limit}?", everything, tally(lambda v: v > limit))
    )
    if (height[a] + height[b]) % 2 == 0:
        hard.append(
            Question(
                f"What is the mean of {a} and {b}?",
                read(a, b),
                lambda x, y: ((None, x + y), (x + y) // 2),
            )
        )
    shapes = [("rect", 1 + 2 * i, 10 - v, 2, v, c) for i, (c, v) in enumerate(everything)]
    return Scene(
        "bars",
        "data_chart",
        "bars: " + ", ".join(f"{c} {v}" for c, v in everything),
        tuple(shapes),
        tuple(easy),
        tuple(hard),
    )


def rectangles(rng) -> Scene:
    """Two rectangles side by side, 2 to 5 wide and 2 to 9 high."""
    colours = rng.sample(COLOURS, 2)
    size = {c: (rng.randint(2, 5), rng.randint(2, 9)) for c in colours}
    a, b = pairs(rng, colours)
    both = lambda c: ((f"{c} wide", size[c][0]), (f"{c} high", size[c][1]))
    easy = [
        Question(f"How wide is {a}?", both(a)[:1], look),
        Question(f"How high is {a}?", both(a)[1:], look),
        Question(f"How high is {b}?", both(b)[1:], look),
    ]
    hard = [
        Question(f"What is the area of {a}?", both(a), lambda w, h: ((None, w * h), w * h)),
        Question(
            f"What is the perimeter of {a}?", both(a), lambda w, h: ((None, w + h), 2 * (w + h))
        ),
        Question(f"How wide are {a} and {b} together?", (both(a)[0], both(b)[0]), add),
        Question(f"How high are {a} and {b} on top of each other?", (both(a)[1], both(b)[1]), add),
    ]
    shapes = [
        ("rect", 5 * i, 10 - size[c][1], size[c][0], size[c][1], c) for i, c in enumerate(colours)
    ]
    return Scene(
        "shapes",
        "geometry",
        "shapes: " + ", ".join(f"{c} {w}x{h}" for c, (w, h) in size.items()),
        tuple(shapes),
        tuple(easy),
        tuple(hard),
    )


def plan(rng) -> Scene:
    """A timeline of three tasks, each a bar from its start to its end on a scale of 0 to 9."""
    colours = rng.sample(COLOURS, 3)
    span = {}
    for c in colours:
        start = rng.randint(0, 7)
        span[c] = (start, rng.randint(start + 1, 9))
    a, b = pairs(rng, colours)
    both = lambda c: ((f"{c} from", span[c][0]), (f"{c} to", span[c][1]))
    easy = [
        Question(f"When does {a} start?", both(a)[:1], look),
        Question(f"When does {a} end?", both(a)[1:], look),
        Question(f"When does {b} start?", both(b)[:1], look),
    ]
    hard = [
        Question(f"How long is {a}?", both(a), less),
        Question(
            f"How long are {a} and {b} together?",
            both(a) + both(b),
            lambda s, e, t, f: ((None, e - s, None, f"{f - t} {e - s + f - t}"), e - s + f - t),
        ),
        Question(
            f"How long after the start of {a} does {b} end?",
            (both(a)[0], both(b)[1]),
            lambda s, f: ((None, None), max(0, f - s)),
        ),
    ]
    shapes = [("rect", s, 1 + 3 * i, e - s, 2, c) for i, (c, (s, e)) in enumerate(span.items())]
    return Scene(
        "plan",
        "timeline",
        "plan: " + ", ".join(f"{c} {s}-{e}" for c, (s, e) in span.items()),
        tuple(shapes),
        tuple(easy),
        tuple(hard),
    )


def land(rng) -> Scene:
    """A map with three towns, each at (east, north) from 1 to 9."""
    colours = rng.sample(COLOURS, 3)
    spots = rng.sample([(x, y) for x in (1, 3, 5, 7, 9) for y in (1, 3, 5, 7, 9)], 3)
    spots = sorted((min(9, x + rng.randint(0, 1)), y) for x, y in spots)  # told from west to east
    place = dict(zip(colours, spots))
    a, b = pairs(rng, colours)
    both = lambda c: ((f"{c} east", place[c][0]), (f"{c} north", place[c][1]))
    easy = [
        Question(f"How far east is {a}?", both(a)[:1], look),
        Question(f"How far north is {a}?", both(a)[1:], look),
        Question(f"How far north is {b}?", both(b)[1:], look),
    ]
    east, north = zip(both(a), both(b))
    hard = [
        Question(
            f"How many steps is it from {a} to {b}?",
            east + north,
            lambda x, u, y, v: (
                (None, abs(x - u), None, f"{abs(y - v)} {abs(x - u) + abs(y - v)}"),
                abs(x - u) + abs(y - v),
            ),
        ),
        Question(f"How far is {a} from the south west corner?", both(a), add),
        Question(f"How many steps north or south is {b} from {a}?", north, less),
        Question(
            f"Is {a} further north or further east?",
            both(a),
            lambda x, y: ((None, None), "east" if x > y else "north" if y > x else "same"),
        ),
    ]
    shapes = [("rect", 0, 0, 10, 10, "wheat")] + [
        ("circle", x, 10 - y, 1, c) for c, (x, y) in place.items()
    ]
    return Scene(
        "map",
        "map",
        "map: " + ", ".join(f"{c} {x},{y}" for c, (x, y) in place.items()),
        tuple(shapes),
        tuple(easy),
        tuple(hard),
    )


def table(rng) -> Scene:
    """Two rows of two coloured cells."""
    palette = rng.sample(COLOURS, 3)
    cells = [rng.choice(palette) for _ in range(4)]
    reads = tuple((f"{1 + i // 2}.{1 + i % 2}", c) for i, c in enumerate(cells))
    row, column, c = rng.randint(1, 2), rng.randint(1, 2), rng.choice(palette)
    at = lambda r, k: reads[2 * (r - 1) + k - 1]
    same = lambda v, w: ((None, None), "one" if v == w else "two")
    easy = [
        Question(f"What is in row {row}, column {column}?", (at(row, column),), look),
        Question(f"What is in row {3 - row}, column {column}?", (at(3 - row, column),), look),
    ]
    hard = [
        Question(f"How many cells are {c}?", reads, tally(lambda v: v == c)),
        Question(
            f"How many cells of row {row} are {c}?",
            (at(row, 1), at(row, 2)),
            tally(lambda v: v == c),
        ),
        Question(f"Has row {row} one colour or two?", (at(row, 1), at(row, 2)), same),
        Question(f"Has column {column} one colour or two?", (at(1, column), at(2, column)), same),
    ]
    shapes = [("rect", 5 * (i % 2), 5 * (i // 2), 4, 4, c) for i, c in enumerate(cells)]
    return Scene(
        "table",
        "table",
        "table: " + " / ".join(" ".join(cells[i : i + 2]) for i in (0, 2)),
        tuple(shapes),
        tuple(easy),
        tuple(hard),
    )


def chain(rng) -> Scene:
    """A flow diagram: three or four nodes in the corners, the first a box; a line has the colour of the node it leaves."""
    names = rng.sample(COLOURS, rng.choice((3, 4)))
    spots = rng.sample([(2, 2), (8, 2), (2, 8), (8, 8)], len(names))
    reads = tuple((str(i + 1), c) for i, c in enumerate(names))
    i = rng.randrange(len(names) - 1)
    easy = [
        Question("Which node is first?", reads[:1], look),
        Question(f"What follows {names[i]}?", ((names[i], names[i + 1]),), look),
    ]
    j, k = sorted(rng.sample(range(len(names)), 2))
    hard = [
        Question("Which node is last?", reads, lambda *v: ((None,) * len(v), v[-1])),
        Question(
            f"How many steps lead from {names[j]} to {names[k]}?",
            reads,
            steps_since(names[j], names[k]),
        ),
        Question(f"How many nodes come after {names[j]}?", reads, steps_since(names[j])),
        Question(f"What is two steps after {names[0]}?", reads[:3], lambda *v: ((None,) * 3, v[2])),
    ]
    shapes = [("line", *spots[n], *spots[n + 1], names[n]) for n in range(len(names) - 1)]
    x, y = spots[0]
    shapes += [("rect", x - 2, y - 2, 4, 4, names[0])] + [
        ("circle", *spot, 1, c) for spot, c in zip(spots[1:], names[1:])
    ]
    return Scene(
        "chain", "diagram", "chain: " + " > ".join(names), tuple(shapes), tuple(easy), tuple(hard)
    )


KINDS: dict[str, Callable[[random.Random], Scene]] = {
    "bars": bars,
    "shapes": rectangles,
    "plan": plan,
    "map": land,
    "table": table,
    "chain": chain,
}


def split(scene: Scene) -> str:
    """ "train", "validation" or "test": a function of the picture alone, so the base sees a scene in every role or in none."""
    return SPLITS[zlib.crc32(scene.caption.encode()) % len(SPLITS)]


def random_scene(rng: random.Random, kind: str | None = None, of: str = "train") -> Scene:
    while True:
        scene = KINDS[kind or rng.choice(list(KINDS))](rng)
        if split(scene) == of:
            return scene


# ----------------------------------------------------------------------------------------------- drawing


def svg(shapes: Sequence[tuple]) -> str:
    """
    >>> print(svg([("circle", 2, 7, 1, "red")]))
    <svg width="64" height="64" viewBox="0 0 10 10">
    <circle cx="2" cy="7" r="1" fill="red"/>
    </svg>
    """
    form = {
        "rect": '<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>',
        "circle": '<circle cx="{}" cy="{}" r="{}" fill="{}"/>',
        "line": '<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}"/>',
    }
    body = "\n".join(form[kind].format(*rest) for kind, *rest in shapes)
    return f'<svg width="{SIZE}" height="{SIZE}" viewBox="0 0 10 10">\n{body}\n</svg>'


def pixel(*units: int) -> list[int]:
    return [round(6.4 * u) for u in units]


def boxes(shapes: Sequence[tuple]):
    """(Pillow's method, its corners in pixels, colour) of each shape: what `paint` does and `python` writes down."""
    for kind, *at, colour in shapes:
        if kind == "circle":
            at = [at[0] - at[2], at[1] - at[2], at[0] + at[2], at[1] + at[2]]
        elif kind == "rect":
            at = [at[0], at[1], at[0] + at[2], at[1] + at[3]]
        yield {"rect": "rectangle", "circle": "ellipse", "line": "line"}[kind], pixel(*at), colour


def python(shapes: Sequence[tuple]) -> str:
    """The same picture as a Pillow program.

    >>> print(python([("rect", 1, 7, 2, 3, "red")]))
    from PIL import Image, ImageDraw
    img = Image.new("RGB", (64, 64), "white")
    d = ImageDraw.Draw(img)
    d.rectangle((6, 45, 19, 64), "red")
    """
    head = 'from PIL import Image, ImageDraw\nimg = Image.new("RGB", (64, 64), "white")\nd = ImageDraw.Draw(img)\n'
    return head + "\n".join(
        f'd.{method}(({", ".join(map(str, at))}), "{colour}"{", 6" if method == "line" else ""})'
        for method, at, colour in boxes(shapes)
    )


def paint(shapes: Sequence[tuple]) -> Image.Image:
    """What `python` would draw, drawn here: pretraining needs half a million pictures, and these programs are ours."""
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(picture)
    for method, at, colour in boxes(shapes):
        getattr(draw, method)(at, colour, *((6,) if method == "line" else ()))
    return picture


# ---------------------------------------------------------------------------------------------- the test


@dataclass(frozen=True)
class TestQuestion:
    svg: str  # draw it with render.Renderer
    question: str
    answer: str
    content_type: str


def heldout(n: int, seed: int = 0, kind: str = "hard", of: str = "test") -> list[TestQuestion]:
    """n questions on pictures that the base was never shown, kinds in turn. `kind`: "easy" or "hard"; `of`: see `split`."""
    rng = random.Random(f"held-out {kind} {seed}")
    kinds, test = list(KINDS), []
    for i in range(n):
        scene = random_scene(rng, kinds[i % len(kinds)], of)
        question = rng.choice(getattr(scene, kind))
        test.append(
            TestQuestion(svg(scene.shapes), question.text, question.answer, scene.content_type)
        )
    return test
