"""The procedural world that the embedded base was pretrained on: small scenes, drawn in code, with questions.

MM-Zero starts from a vision-language model that can already read pictures and write code; the method then adds no
data at all. This file is the *pretraining corpus* of our stand-in for such a model (`tiny/build.py` makes it) and
the source of its held-out test. The self-play loop itself never imports it: only `eval.py` does, for the test.

A scene is a handful of coloured shapes on a 10 x 10 grid, origin top left, drawn at 64 x 64 pixels:

    kind       content type   caption                               what has to be read
    bars       data_chart     bars: red 3, blue 7, green 5          heights
    dots       data_chart     dots: red 3, blue 7, green 5          heights
    shapes     geometry       shapes: red 4x3, blue 2x6             widths and heights
    plan       timeline       plan: red 1-4, blue 3-7, green 6-9    starts and ends
    map        map            map: red 2,5, blue 6,1, green 4,8     places, east and north
    table      table          table: red blue red / green red blue  colours of cells
    chain      diagram        chain: red > blue > green             who points to whom

Every question is a list of `reads` (what to look at, with the true values) and a rule `solve` from the values to
intermediate results and the answer, so that `build.py` can write down the reasoning, and also that of somebody who
misread a value, with the answer that follows: that is how the base gets its room for improvement.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = ("red", "blue", "green", "orange", "purple", "black")
SIZE = 64                                           # pixels; the grid has 10 units of 6.4 pixels
# One picture in HOLD_OUT is never shown to the base, in any role: the held-out test is drawn from those.
HOLD_OUT = 8


@dataclass(frozen=True)
class Question:
    text: str
    reads: tuple[tuple[str, int | str], ...]        # ("red", 3): what is looked at, and what is there
    solve: Callable[..., tuple]                     # the values, in order, -> intermediate results, the answer last

    @property
    def answer(self) -> str:
        return str(self.solve(*(value for _, value in self.reads))[-1])


@dataclass(frozen=True)
class Scene:
    kind: str
    content_type: str
    caption: str                                    # says everything that is in the picture
    shapes: tuple[tuple, ...]                       # ("rect", x, y, w, h, colour), ("circle", cx, cy, r, colour), ("line", ...)
    easy: tuple[Question, ...]                      # answered by one look
    hard: tuple[Question, ...]                      # answered by several looks and a step of reasoning


# Rules. A network of four layers answers in one step what takes one step: sums, counts and comparisons over a list
# are worked out along it, one partial result per value.

def look(value):
    return (value,)


def add(*values):
    """
    >>> add(8, 7, 5)
    (15, 20)
    """
    return tuple(sum(values[:i]) for i in range(2, len(values) + 1))


def less(x, y):
    return (abs(x - y),)


def tally(counts: Callable[[object], bool]):
    """
    >>> tally(lambda v: v > 3)(8, 2, 5)
    (1, 1, 2)
    """
    return lambda *values: tuple(sum(map(counts, values[:i])) for i in range(1, len(values) + 1))


def pairs(rng: random.Random, items: Sequence) -> tuple:
    """Two different items in random order."""
    return tuple(rng.sample(list(items), 2))


def levels(rng, kind: str) -> Scene:
    """Bars, or dots: up to four colours, each with a height of 1 to 9."""
    colours = rng.sample(COLOURS, rng.choice((3, 4)))
    height = {c: rng.randint(1, 9) for c in colours}
    (a, b), everything = pairs(rng, colours), tuple(height.items())
    high, low = (a, b) if height[a] >= height[b] else (b, a)
    read = lambda *names: tuple((c, height[c]) for c in names)
    top, bottom = ("tallest", "shortest") if kind == "bars" else ("highest", "lowest")

    def extreme(sign):                              # the best so far; of equal ones the left
        return lambda *values: tuple(colours[max(range(n), key=lambda i: (sign * values[i], -i))] for n in range(2, len(values) + 1))

    easy = [Question(f"How {'tall' if kind == 'bars' else 'high'} is {c}?", read(c), look) for c in colours]
    hard = [Question(f"What do {a} and {b} add up to?", read(a, b), add),
            Question(f"How much {'taller' if kind == 'bars' else 'higher'} is {high} than {low}?", read(high, low), less),
            Question(f"What do the first three {kind} add up to?", everything[:3], add)]
    ordered = sorted(height.values())
    if ordered[-1] > ordered[-2]:
        hard.append(Question(f"Which of the {kind} is {top}?", everything, extreme(1)))
    if ordered[0] < ordered[1]:
        hard.append(Question(f"Which of the {kind} is {bottom}?", everything, extreme(-1)))
    limit = rng.randint(2, 7)
    hard.append(Question(f"How many {kind} are above {limit}?", everything, tally(lambda v: v > limit)))
    if (height[a] + height[b]) % 2 == 0:
        hard.append(Question(f"What is the mean of {a} and {b}?", read(a, b), lambda x, y: (x + y, (x + y) // 2)))
    shapes = [("rect", 1 + 2 * i, 10 - v, 2, v, c) if kind == "bars" else ("circle", 2 + 2 * i, 10 - v, 1, c)
              for i, (c, v) in enumerate(everything)]
    return Scene(kind, "data_chart", f"{kind}: " + ", ".join(f"{c} {v}" for c, v in everything),
                 tuple(shapes), tuple(easy), tuple(hard))


def rectangles(rng) -> Scene:
    """Two rectangles side by side, 2 to 5 wide and 2 to 9 high."""
    colours = rng.sample(COLOURS, 2)
    size = {c: (rng.randint(2, 5), rng.randint(2, 9)) for c in colours}
    a, b = pairs(rng, colours)
    both = lambda c: ((f"{c} wide", size[c][0]), (f"{c} high", size[c][1]))
    easy = [Question(f"How wide is {a}?", both(a)[:1], look), Question(f"How high is {a}?", both(a)[1:], look),
            Question(f"How high is {b}?", both(b)[1:], look)]
    hard = [Question(f"What is the area of {a}?", both(a), lambda w, h: (w * h,)),
            Question(f"What is the perimeter of {a}?", both(a), lambda w, h: (w + h, 2 * (w + h))),
            Question(f"How wide are {a} and {b} together?", (both(a)[0], both(b)[0]), add),
            Question(f"How high are {a} and {b} on top of each other?", (both(a)[1], both(b)[1]), add),
            Question(f"Which has the larger area, {a} or {b}?", both(a) + both(b),
                     lambda w, h, v, g: (w * h, v * g, a if w * h >= v * g else b))]
    shapes = [("rect", 5 * i, 10 - size[c][1], size[c][0], size[c][1], c) for i, c in enumerate(colours)]
    return Scene("shapes", "geometry", "shapes: " + ", ".join(f"{c} {w}x{h}" for c, (w, h) in size.items()),
                 tuple(shapes), tuple(easy), tuple(hard))


def plan(rng) -> Scene:
    """A timeline of three tasks, each a bar from its start to its end on a scale of 0 to 9."""
    colours = rng.sample(COLOURS, 3)
    span = {}
    for c in colours:
        start = rng.randint(0, 7)
        span[c] = (start, rng.randint(start + 1, 9))
    a, b = pairs(rng, colours)
    both = lambda c: ((f"{c} from", span[c][0]), (f"{c} to", span[c][1]))
    easy = [Question(f"When does {a} start?", both(a)[:1], look), Question(f"When does {a} end?", both(a)[1:], look),
            Question(f"When does {b} start?", both(b)[:1], look)]
    hard = [Question(f"How long is {a}?", both(a), less),
            Question(f"How long are {a} and {b} together?", both(a) + both(b), lambda s, e, t, f: (e - s, f - t, e - s + f - t)),
            Question(f"How long do {a} and {b} overlap?", both(a) + both(b), lambda s, e, t, f: (max(s, t), min(e, f), max(0, min(e, f) - max(s, t)))),
            Question(f"How long after the start of {a} does {b} end?", (both(a)[0], both(b)[1]), lambda s, f: (max(0, f - s),))]
    shapes = [("rect", s, 1 + 3 * i, e - s, 2, c) for i, (c, (s, e)) in enumerate(span.items())]
    return Scene("plan", "timeline", "plan: " + ", ".join(f"{c} {s}-{e}" for c, (s, e) in span.items()),
                 tuple(shapes), tuple(easy), tuple(hard))


def land(rng) -> Scene:
    """A map with three towns, each at (east, north) from 1 to 9."""
    colours = rng.sample(COLOURS, 3)
    spots = rng.sample([(x, y) for x in (1, 3, 5, 7, 9) for y in (1, 3, 5, 7, 9)], 3)
    spots = sorted((min(9, x + rng.randint(0, 1)), y) for x, y in spots)          # told from west to east
    place = dict(zip(colours, spots))
    a, b = pairs(rng, colours)
    both = lambda c: ((f"{c} east", place[c][0]), (f"{c} north", place[c][1]))
    easy = [Question(f"How far east is {a}?", both(a)[:1], look), Question(f"How far north is {a}?", both(a)[1:], look),
            Question(f"How far north is {b}?", both(b)[1:], look)]
    hard = [Question(f"How many steps is it from {a} to {b}?", both(a) + both(b), lambda x, y, u, v: (abs(x - u), abs(y - v), abs(x - u) + abs(y - v))),
            Question(f"How far is {a} from the south west corner?", both(a), add),
            Question(f"How many steps north or south is {b} from {a}?", (both(a)[1], both(b)[1]), less),
            Question(f"Is {a} further north or further east?", both(a), lambda x, y: ("east" if x > y else "north" if y > x else "same",))]
    shapes = [("rect", 0, 0, 10, 10, "wheat")] + [("circle", x, 10 - y, 1, c) for c, (x, y) in place.items()]
    return Scene("map", "map", "map: " + ", ".join(f"{c} {x},{y}" for c, (x, y) in place.items()),
                 tuple(shapes), tuple(easy), tuple(hard))


def table(rng) -> Scene:
    """Two rows of three coloured cells."""
    palette = rng.sample(COLOURS, 3)
    cells = [rng.choice(palette) for _ in range(6)]
    reads = tuple((f"{1 + i // 3}.{1 + i % 3}", c) for i, c in enumerate(cells))
    row, column, c = rng.randint(1, 2), rng.randint(1, 3), rng.choice(palette)
    row_2, column_2 = 3 - row, rng.randint(1, 3)
    at = lambda r, k: reads[3 * (r - 1) + k - 1]
    easy = [Question(f"What is in row {row}, column {column}?", (at(row, column),), look),
            Question(f"What is in row {row_2}, column {column_2}?", (at(row_2, column_2),), look)]
    hard = [Question(f"How many cells are {c}?", reads, tally(lambda v: v == c)),
            Question(f"How many cells of row {row} are {c}?", reads[3 * row - 3:3 * row], tally(lambda v: v == c)),
            Question("How many colours are in the table?", reads, lambda *v: tuple(len(set(v[:i])) for i in range(1, 7))),
            Question(f"How many columns have {c} in both rows?", reads,
                     lambda *v: add(0, *(int(v[i] == c == v[i + 3]) for i in range(3))))]
    shapes = [("rect", 3 * (i % 3), 5 * (i // 3), 3, 4, c) for i, c in enumerate(cells)]
    return Scene("table", "table", "table: " + " / ".join(" ".join(cells[i:i + 3]) for i in (0, 3)),
                 tuple(shapes), tuple(easy), tuple(hard))


def chain(rng) -> Scene:
    """A flow diagram: three or four nodes in the corners; a line has the colour of the node it leaves."""
    names = rng.sample(COLOURS, rng.choice((3, 4)))
    spots = rng.sample([(2, 2), (8, 2), (2, 8), (8, 8)], len(names))
    reads = tuple((str(i + 1), c) for i, c in enumerate(names))
    i = rng.randrange(len(names) - 1)
    easy = [Question("Which node is first?", reads[:1], look),
            Question(f"What follows {names[i]}?", ((names[i], names[i + 1]),), look)]
    j, k = sorted(rng.sample(range(len(names)), 2))
    at = lambda v, name: 1 + v.index(name) if name in v else 0               # its number in the chain
    hard = [Question("Which node is last?", reads, lambda *v: v[-1:]),
            Question(f"How many steps lead from {names[j]} to {names[k]}?", reads,
                     lambda *v: (at(v, names[j]), at(v, names[k]), abs(at(v, names[k]) - at(v, names[j])))),
            Question(f"How many nodes come after {names[j]}?", reads, lambda *v: (at(v, names[j]), len(v), len(v) - at(v, names[j]))),
            Question(f"What is two steps after {names[0]}?", reads[:3], lambda *v: v[2:])]
    shapes = [("line", *spots[n], *spots[n + 1], names[n]) for n in range(len(names) - 1)]
    shapes += [("circle", *spot, 1, c) for spot, c in zip(spots, names)]
    return Scene("chain", "diagram", "chain: " + " > ".join(names), tuple(shapes), tuple(easy), tuple(hard))


KINDS: dict[str, Callable[[random.Random], Scene]] = {
    "bars": lambda rng: levels(rng, "bars"), "dots": lambda rng: levels(rng, "dots"), "shapes": rectangles,
    "plan": plan, "map": land, "table": table, "chain": chain}


def is_held_out(scene: Scene) -> bool:
    """A function of the picture alone, so that a scene is held out in every role or in none."""
    return zlib.crc32(scene.caption.encode()) % HOLD_OUT == 0


def random_scene(rng: random.Random, kind: str | None = None, held_out: bool = False) -> Scene:
    while True:
        scene = KINDS[kind or rng.choice(list(KINDS))](rng)
        if is_held_out(scene) == held_out:
            return scene


# ----------------------------------------------------------------------------------------------- drawing

def svg(shapes: Sequence[tuple]) -> str:
    """
    >>> print(svg([("circle", 2, 7, 1, "red")]))
    <svg width="64" height="64" viewBox="0 0 10 10">
    <circle cx="2" cy="7" r="1" fill="red"/>
    </svg>
    """
    form = {"rect": '<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>',
            "circle": '<circle cx="{}" cy="{}" r="{}" fill="{}"/>',
            "line": '<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}"/>'}
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
    return head + "\n".join(f'd.{method}(({", ".join(map(str, at))}), "{colour}"{", 6" if method == "line" else ""})'
                            for method, at, colour in boxes(shapes))


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
    svg: str                                        # draw it with render.Renderer
    question: str
    answer: str
    content_type: str


def heldout(n: int, seed: int = 0, kind: str = "hard") -> list[TestQuestion]:
    """n questions on pictures that the base was never shown, kinds in turn. `kind`: "easy" or "hard"."""
    rng = random.Random(f"held-out {kind} {seed}")
    kinds, test = list(KINDS), []
    for i in range(n):
        scene = random_scene(rng, kinds[i % len(kinds)], held_out=True)
        question = rng.choice(getattr(scene, kind))
        test.append(TestQuestion(svg(scene.shapes), question.text, question.answer, scene.content_type))
    return test
