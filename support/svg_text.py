"""The text of an SVG, laid out and painted as browsers do it, in CairoSVG's place.

`gather` makes letters of a <text> and of what is in it, `place` sets them from left to right and
moves whole chunks for text-anchor, `paint_run` paints letters that stand side by side.
"""

import functools
import math
import os
from dataclasses import dataclass

from cairosvg import surface
from cairosvg.helpers import normalize, paint, size
from cairosvg.surface import cairo
from PIL import ImageFont

LINES = {"underline": 0.1, "line-through": -0.3, "overline": -0.95}  # below the baseline, in em
CASES = {"uppercase": str.upper, "lowercase": str.lower, "capitalize": str.title}


def zoom(context):
    """-> how many pixels of the picture one unit is."""
    matrix = context.get_matrix()
    return math.sqrt(abs(matrix.xx * matrix.yy - matrix.xy * matrix.yx)) or 1


@dataclass(eq=False)
class Letter:
    """One character of a <text>. shift: down, for its baseline; path: the points of its <textPath>;
    x: along the path, if there is one, None: behind the letter before; width: with the space behind
    it; scale: of its width; rotate: radians."""

    char: str
    node: object
    opacity: float
    shift: float
    path: list | None
    x: float | None = None
    y: float | None = None
    dx: float | None = None
    dy: float | None = None
    rotate: float = 0.0
    width: float = 0.0
    scale: float = 1.0


def draw_text(canvas, node, draw_as_text=False):
    """Lay out and paint a <text> with all that is in it."""
    if draw_as_text:  # CairoSVG's second call, to fill what it thinks is laid out
        return
    opacity = 1.0 if node.children else float(node.get("opacity", 1))  # (else a group's)
    letters = gather(canvas, node, opacity, 0.0, None)
    if not letters:
        return
    place(canvas, node, letters)
    run = []
    for letter in [*letters, None]:
        if run and not (letter and follows(run[-1], letter)):
            if "url(" in run[0].node.get("fill", "") + run[0].node.get("stroke", ""):
                run[0].node["text_bounding_box"] = bounding_box(canvas, node, letters)
            paint_run(canvas, run)
            run = []
        run.append(letter)


def bounding_box(canvas, text, letters):
    """-> (x, y, width, height) of a laid out text, for its gradients."""
    ascent, descent, _ = choose_font(canvas, text)
    left, top = min(a.x for a in letters), min(a.y for a in letters) - ascent
    right, bottom = max(a.x + a.width for a in letters), max(a.y for a in letters) + descent
    return left, top, right - left, bottom - top


def gather(canvas, node, opacity, shift, path):
    """-> the letters of a node and of what is in it, with the numbers that are set for them."""
    if node.get("display") == "none" or node.tag == "defs":
        return []
    if node.tag == "textPath":
        path = flat_path(canvas, (node.get_href() or "")[1:])
    if node.tag != "text":
        opacity *= float(node.get("opacity", 1))
        shift += baseline_shift(canvas, node)
    down = shift + baseline(canvas, node)
    text = CASES.get(node.get("text-transform"), str)(node.text or "")
    letters = [Letter(char, node, opacity, down, path) for char in text]
    for child in node.children:
        letters += gather(canvas, child, opacity, shift, path)
    for name in ("x", "y", "dx", "dy"):
        for letter, length in zip(letters, node.get(name, "").split()):
            if getattr(letter, name) is None:  # not set further in
                setattr(letter, name, size(canvas, length, name[-1]))
    angles = normalize(node["rotate"]).split() if "rotate" in node else ()
    angles = [math.radians(float(angle)) for angle in angles]
    for number, letter in enumerate(letters):
        if angles and not letter.rotate:
            letter.rotate = angles[min(number, len(angles) - 1)]
    if node.tag == "textPath" and letters:
        length = sum(map(math.dist, path, path[1:]))
        letters[0].x, letters[0].y = size(canvas, node.get("startOffset"), length), 0.0
    return letters


def choose_font(canvas, node):
    """Set the font of a node -> its ascent, its descent, the name of its file."""
    height = float(node.get("font-size", 16))
    family, bold, file = font_face(node.get("font-family", ""), node.get("font-weight", ""))
    # True is cairo's number for italic, and for bold.
    slanted = node.get("font-style") in ("italic", "oblique")
    canvas.context.select_font_face(family, slanted, bold)
    canvas.context.set_font_size(height)
    # Ascent and descent of all DejaVu fonts, in whole pixels, as browsers have them.
    scale = zoom(canvas.context)
    return round(0.928 * height * scale) / scale, round(0.236 * height * scale) / scale, file


@functools.lru_cache(1000)
def font_face(families, weight):
    """-> the family that is there, is it bold?, the name of its file.

    >>> font_face("'Courier New', monospace", "600")
    ('monospace', True, 'DejaVuSansMono-Bold.ttf')
    """
    names = [name.strip("\"' ") for name in families.split(",")]
    names = [name.lower() if "DejaVu" not in name else name for name in names]
    names = [name for name in names if name in ("serif", "monospace") or "DejaVu" in name]
    family = names[0] if names else "sans-serif"
    bold = weight in ("bold", "bolder") or weight.isdigit() and int(weight) >= 600
    file = {"serif": "DejaVuSerif", "monospace": "DejaVuSansMono"}.get(family, "DejaVuSans")
    return family, bold, f"{file}{'-Bold' if bold else ''}.ttf"


@functools.lru_cache(4000)
def kerning(file, pair):
    """How much further apart than others these two letters stand, in em."""
    path = os.path.join(os.environ["XDG_DATA_DIRS"], "fonts", file)
    font = functools.lru_cache(ImageFont.truetype)(path, 1000)
    return (font.getlength(pair) - sum(map(font.getlength, pair))) / 1000


def baseline(canvas, node):
    """How far down a node's letters go for its dominant-baseline, as browsers have it."""
    kind = node.get("dominant-baseline", "auto")
    if kind in ("auto", "alphabetic"):
        return 0.0
    ascent, descent, _ = choose_font(canvas, node)
    if kind == "middle":
        return -canvas.context.text_extents("x")[1] / 2
    places = {"central": (ascent - descent) / 2, "hanging": ascent * 0.8}
    places |= {"mathematical": ascent / 2, "text-before-edge": ascent}
    places |= {"text-after-edge": -descent, "ideographic": -descent}
    return places.get(kind, 0.0)


def baseline_shift(canvas, node):
    """How far down a node's letters go for its own baseline-shift (which is not inherited)."""
    value = node.get("baseline-shift", "baseline")
    if value == node.parent.get("baseline-shift") or value == "baseline":
        return 0.0
    if value in ("sub", "super"):
        ascent, descent, _ = choose_font(canvas, node)
        return (ascent + descent) / (2 if value == "sub" else -2)
    return -size(canvas, value, float(node.get("font-size", 16)))


def place(canvas, text, letters):
    """Give each letter its place, from left to right; text-anchor then moves whole chunks."""
    x = y = 0.0
    node, chunks = None, []
    for letter in letters:
        if letter.node is not node:
            node, before = letter.node, ""
            file, height = choose_font(canvas, node)[2], float(node.get("font-size", 16))
            spacing = size(canvas, node.get("letter-spacing"))
            word_spacing = size(canvas, node.get("word-spacing"))
        if letter.x is not None or letter.y is not None or not chunks:
            before = ""
            chunks.append([])
        x = (x if letter.x is None else letter.x) + (letter.dx or 0)
        y = (y if letter.y is None else letter.y) + (letter.dy or 0)
        if before:
            x += kerning(file, before + letter.char) * height
        letter.x, letter.y, before = x, y, letter.char
        letter.width = canvas.context.text_extents(letter.char)[4] + spacing
        if letter.char == " ":
            letter.width += word_spacing
        x += letter.width
        chunks[-1].append(letter)
    if "textLength" in text and len(letters) > 1:
        stretch(letters, size(canvas, text["textLength"]), text.get("lengthAdjust"))
    for chunk in chunks:
        width = chunk[-1].x + chunk[-1].width - chunk[0].x
        anchor = {"middle": width / 2, "end": width}.get(chunk[0].node.get("text-anchor"), 0)
        for letter in chunk:
            letter.x -= anchor


def stretch(letters, length, adjust):
    """Make a text as long as it is to be, by space between its letters or by wider ones."""
    start, width = letters[0].x, letters[-1].x + letters[-1].width - letters[0].x
    for number, letter in enumerate(letters):
        if adjust == "spacingAndGlyphs":
            letter.scale = length / width
            letter.x = start + (letter.x - start) * letter.scale
            letter.width *= letter.scale
        else:
            letter.x += (length - width) / (len(letters) - 1) * number


def follows(a, b):
    """May two letters be painted as one piece?"""
    near = abs(a.x + a.width - b.x) < 1e-3 and abs(a.y - b.y) < 1e-3 and a.node is b.node
    spaced = "letter-spacing" in a.node or "word-spacing" in a.node or a.scale != 1
    return near and not (spaced or a.rotate or b.rotate or a.path)


def flat_path(canvas, name):
    """-> the points of a path, its curves as short lines."""
    if name not in canvas.paths:
        return []
    canvas.stroke_and_fill, before = False, canvas.stroke_and_fill
    canvas.context.new_path()
    canvas.draw(canvas.paths[name])
    points = [item[1] for item in canvas.context.copy_path_flat() if item[1]]
    canvas.context.new_path()
    canvas.stroke_and_fill = before
    return points


def spot(letter):
    """-> the matrix that puts a letter in its place. None: it is beyond the ends of its path."""
    x, y, angle = letter.x, letter.y, letter.rotate
    matrix = cairo.Matrix()
    if letter.path is not None:
        rest, half = x + letter.width / 2, letter.width / 2  # the middle of a letter is on the path
        for (ax, ay), (bx, by) in zip(letter.path, letter.path[1:]):
            length = math.dist((ax, ay), (bx, by))
            if 0 <= rest <= length > 0:
                matrix.translate(ax + (bx - ax) * rest / length, ay + (by - ay) * rest / length)
                matrix.rotate(math.atan2(by - ay, bx - ax))
                x = -half
                break
            rest -= length
        else:
            return None
    matrix.translate(x, y + letter.shift)
    matrix.rotate(angle)
    matrix.scale(letter.scale, 1)
    return matrix


def paint_run(canvas, run):
    """Fill and stroke letters that stand side by side, or a single one."""
    context, first, node = canvas.context, run[0], run[0].node
    matrix, word = spot(first), "".join(letter.char for letter in run)
    if matrix is None or node.get("visibility") == "hidden":
        return
    choose_font(canvas, node)
    if not canvas.stroke_and_fill:  # it is to clip
        context.save()
        context.transform(matrix)
        context.move_to(0, 0)
        context.text_path(word)
        context.restore()
        return
    context.new_path()
    height, width = float(node.get("font-size", 16)), run[-1].x + run[-1].width - first.x
    steps = ["fill", "stroke"]
    if node.get("paint-order", "").split("fill")[0].count("stroke"):
        steps.reverse()
    for step in steps:
        if step == "stroke" and node.get("stroke", "none") == "none":
            continue
        context.save()
        target, colour = paint(node.get(step, "black"))
        opacity = first.opacity * float(node.get(f"{step}-opacity", 1))
        if not surface.gradient_or_pattern(canvas, node, target, opacity):
            context.set_source_rgba(*canvas.map_color(colour, opacity))
        context.transform(matrix)
        if step == "fill":
            for line in LINES.keys() & node.get("text-decoration", "").split():
                thick = max(height / 18, 1)
                context.rectangle(0, LINES[line] * height, width / first.scale, thick)
                context.fill()
            context.move_to(0, 0)
            context.show_text(word)
        else:
            context.set_line_width(size(canvas, node.get("stroke-width", "1")))
            context.move_to(0, 0)
            context.text_path(word)
            context.stroke()
        context.restore()
        context.new_path()
