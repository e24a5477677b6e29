"""The text of an SVG, laid out and painted as browsers do it, in CairoSVG's place.

`gather` makes pieces of a <text> and of what is in it, `place` sets them from left to right and
moves whole chunks for text-anchor, `paint_piece` paints what stands side by side.
"""

import functools
import math
import os
import re
import unicodedata
from dataclasses import dataclass, field

from cairosvg import surface
from cairosvg.bounding_box import EMPTY_BOUNDING_BOX, extend_bounding_box
from cairosvg.helpers import paint, point_angle, size
from cairosvg.surface import cairo
from PIL import ImageFont

# How far letters go down for a dominant-baseline, in em of the DejaVu fonts.
BASELINES = {"middle": 0.273, "central": 0.346, "mathematical": 0.464, "hanging": 0.742}
BASELINES |= {"text-before-edge": 0.928, "text-after-edge": -0.236, "ideographic": -0.236}
LINES = {"underline": 0.06, "line-through": -0.36, "overline": -1.03}  # their tops, in em
FONTS = {"serif": "DejaVu Serif", "monospace": "DejaVu Sans Mono"}  # else DejaVu Sans
FAMILY = re.compile(r"(?:^|,)\s*(serif|monospace)\s*(?:,|$)")
open_font = functools.lru_cache(ImageFont.truetype)
FONT = "font-family", "font-size", "font-weight", "font-style"
PLACES = "x", "y", "dx", "dy"
SPACING = {"letter-spacing", "word-spacing"}
# Soft hyphens, joiners, marks of direction or that an emoji is meant; a letter with its accents.
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
LETTER = re.compile("(?s).[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]*")
CASES = {"uppercase": str.upper, "lowercase": str.lower, "capitalize": str.title}


@dataclass
class Piece:
    """Letters of a <text> that are painted at once. shift: down, for their baseline; path: the
    points of their <textPath>; at: the x, y, dx and dy that are set for them. With a path, x goes
    along it."""

    text: str
    node: object
    shift: float
    path: list | None
    at: dict = field(default_factory=dict)
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0


def draw_text(canvas, node):
    """Lay out and paint a <text> with all that is in it."""
    pieces = []
    gather(canvas, node, pieces)
    if not pieces:
        return
    pieces[-1].text = pieces[-1].text.removesuffix(" ")
    place(canvas, pieces)
    box = EMPTY_BOUNDING_BOX  # of the whole <text>: over it runs a gradient
    for piece in pieces:
        y, height = piece.y + piece.shift, height_of(piece.node)
        ends = (piece.x, y - 0.928 * height), (piece.x + piece.width, y + 0.236 * height)
        box = extend_bounding_box(box, ends)
    for piece in pieces:
        piece.node["text_bounding_box"] = box
        paint_piece(canvas, piece)


def gather(canvas, node, pieces, shift=0.0, path=None, single=False):
    """Add the pieces of a node and of what is in it. single: is each letter a piece?"""
    if node.get("display") == "none":
        return
    if node.tag == "textPath":
        path = flat_path(canvas, node.get_href() or "")
    raised = node.get("baseline-shift")
    if raised != node.parent.get("baseline-shift"):  # (CairoSVG hands it down, browsers do not)
        shift -= size(canvas, raised, height_of(node))
    numbers = {name: node[name].split() for name in PLACES if name in node}
    single |= path is not None or not SPACING.isdisjoint(node)
    single |= any(len(values) > 1 for values in numbers.values())
    down = shift + BASELINES.get(node.get("dominant-baseline"), 0.0) * height_of(node)
    font, first, run = font_of(node), len(pieces), ""
    letters = LETTER.findall(visible_text(node, pieces))
    for letter, follower in zip(letters, [*letters[1:], None]):
        run += letter
        # Letters that stand closer or further apart than others do are not painted at once.
        if single or follower is None or kerning(font, letter[0] + follower[0]):
            pieces.append(Piece(run, node, down, path))
            run = ""
    for child in node.children:
        gather(canvas, child, pieces, shift, path, single)
    for name, values in numbers.items():
        for piece, value in zip(pieces[first:], values):
            # What is set further in holds.
            piece.at.setdefault(name, size(canvas, value, name[-1]))
    if node.tag == "textPath" and pieces[first:]:
        length = sum(map(math.dist, path, path[1:]))
        pieces[first].at |= {"x": size(canvas, node.get("startOffset"), length), "y": 0.0}


def visible_text(node, pieces):
    """-> the text of a node, its white space as browsers have it behind the pieces before."""
    text = unicodedata.normalize("NFC", INVISIBLE.sub("", node.text or ""))
    text = CASES.get(node.get("text-transform"), str)(text)
    if "pre" not in node.get("white-space", ""):
        text = re.sub(" +", " ", text)
        if not pieces or pieces[-1].text.endswith(" "):
            text = text.removeprefix(" ")
    return text


def height_of(node):
    """-> the size of its font, in pixels."""
    return float(node.get("font-size", 16))


def font_of(node):
    """-> its family, is it bold?"""
    generic = FAMILY.search(node.get("font-family", ""))
    family = FONTS[generic[1]] if generic else "DejaVu Sans"
    return family, node.get("font-weight") == "bold"


@functools.lru_cache(4000)
def kerning(font, pair):
    """How much further apart than others these two letters stand, in em. cairo does not look."""
    file = font[0].replace(" ", "") + ("-Bold.ttf" if font[1] else ".ttf")
    path = os.path.join(os.environ["XDG_DATA_DIRS"], "fonts", file)
    font = open_font(path, 1000)
    return (font.getlength(pair) - sum(map(font.getlength, pair))) / 1000


def choose_font(canvas, node):
    """Set the font of a node."""
    family, bold = font_of(node)
    slanted = node.get("font-style") in ("italic", "oblique")
    if node.get("text-rendering") == "geometricprecision":  # widths that are no whole pixels
        canvas.context.set_font_options(cairo.FontOptions(hint_metrics=cairo.HINT_METRICS_OFF))
    # True is cairo's number for italic, and for bold.
    canvas.context.select_font_face(family, slanted, bold)
    canvas.context.set_font_size(height_of(node))


def place(canvas, pieces):
    """Give each piece its place, from left to right; text-anchor then moves whole chunks."""
    x = y = 0.0
    chunks, before = [], None
    for piece in pieces:
        choose_font(canvas, piece.node)
        if "x" in piece.at or "y" in piece.at or before is None:
            chunks.append([])
        elif all(before.node.get(name) == piece.node.get(name) for name in FONT):
            pair = before.text[-1:] + piece.text[:1]
            x += kerning(font_of(piece.node), pair) * height_of(piece.node)
        chunks[-1].append(piece)
        piece.x = piece.at.get("x", x) + piece.at.get("dx", 0)
        piece.y = y = piece.at.get("y", y) + piece.at.get("dy", 0)
        piece.width = canvas.context.text_extents(piece.text)[4]
        piece.width += size(canvas, piece.node.get("letter-spacing"))
        if piece.text == " ":
            piece.width += size(canvas, piece.node.get("word-spacing"))
        x, before = piece.x + piece.width, piece
    for chunk in chunks:
        width = chunk[-1].x + chunk[-1].width - chunk[0].x
        anchor = chunk[0].node.get("text-anchor")
        shift = {"middle": width / 2, "end": width}.get(anchor, 0.0)
        for piece in chunk:
            piece.x -= shift


def flat_path(canvas, link):
    """-> the points of a path, its curves as short lines."""
    points = []
    if link[1:] in canvas.paths:
        surface.path(canvas, canvas.paths[link[1:]])
        points = [item[1] for item in canvas.context.copy_path_flat() if item[1]]
        canvas.context.new_path()
    return points


def spot(piece):
    """-> the matrix that puts a piece in its place. None: it is beyond the ends of its path."""
    x, y = piece.x, piece.y + piece.shift
    if piece.path is None:
        return cairo.Matrix(1, 0, 0, 1, x, y)
    half = piece.width / 2
    rest = x + half  # the middle of a letter is on the path
    for a, b in zip(piece.path, piece.path[1:]):
        length = math.dist(a, b)
        if 0 <= rest <= length > 0:
            matrix = cairo.Matrix(1, 0, 0, 1, *a)
            matrix.rotate(point_angle(*a, *b))
            matrix.translate(rest - half, y)
            return matrix
        rest -= length
    return None


def paint_piece(canvas, piece):
    """Fill and stroke a piece; or, in a clip path, only make a path of it."""
    context, node = canvas.context, piece.node
    matrix = spot(piece)
    if matrix is None or node.get("visibility") == "hidden":
        return
    choose_font(canvas, node)
    steps = ["fill"] if canvas.stroke_and_fill else ["clip"]
    if canvas.stroke_and_fill and node.get("stroke", "none") != "none":
        first = node.get("paint-order", "").startswith("stroke")
        steps = ["stroke", "fill"] if first else ["fill", "stroke"]
    for step in steps:
        context.save()
        if step != "clip":
            choose_paint(canvas, node, step)
        context.transform(matrix)
        if step == "fill":
            for line in LINES.keys() & node.get("text-decoration", "").split():
                height = height_of(node)
                context.rectangle(0, LINES[line] * height, piece.width, max(height / 10, 1))
                context.fill()
            context.move_to(0, 0)
            context.show_text(piece.text)
        else:
            context.move_to(0, 0)
            context.text_path(piece.text)
        if step == "stroke":
            context.set_line_width(size(canvas, node.get("stroke-width", "1")))
            context.stroke()
        context.restore()


def choose_paint(canvas, node, step):
    """Make the fill or stroke of a node the source of what is painted next."""
    target, colour = paint(node.get(step, "black"))
    opacity = float(node.get(f"{step}-opacity", 1))
    if node.tag != "text" or not node.children:  # else it fades as a group
        opacity *= float(node.get("opacity", 1))
    if not surface.gradient_or_pattern(canvas, node, target, opacity):
        canvas.context.set_source_rgba(*canvas.map_color(colour, opacity))
