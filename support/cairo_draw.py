"""What CairoSVG draws wrongly, drawn anew: patterns, masks, dashes, the direction of markers.

`mend` puts it in place, and svg_text.py for text. Only helpers import these files: they take the
cairo library.
"""

import functools
import math
from collections import deque
from types import SimpleNamespace

from cairosvg import css, defs, helpers, surface
from cairosvg.bounding_box import calculate_bounding_box
from cairosvg.helpers import point_angle, size, transform
from cairosvg.surface import cairo
from PIL import Image

from support.svg_text import draw_text

ENDS = "marker", "marker-start", "marker-mid", "marker-end"
SIDES = "x", "y", "width", "height"


def mend():
    """Replace what is wrong in CairoSVG; the rest of it is called from here."""
    for tag in ("a", "tspan", "textPath"):  # `draw_text` draws all that is in a <text>
        surface.TAGS.pop(tag)
    surface.TAGS["text"] = draw_text
    surface.TAGS["path"] = functools.partial(draw_path, surface.path)
    surface.paint_mask = paint_mask
    defs.draw_pattern = draw_pattern
    surface.Surface.draw = functools.partialmethod(draw_node, surface.Surface.draw)
    # Speed: what CairoSVG does for each node to the same few words. For text, it copied the cursor
    # that ours does without; and it looked for style sheets, which `rewrite` has applied.
    surface.normalize = helpers.normalize = functools.lru_cache(1000)(helpers.normalize)
    surface.parse_url = functools.lru_cache(1000)(surface.parse_url)
    surface.copy = SimpleNamespace(deepcopy=lambda value: value)
    css.parse_stylesheets = lambda tree, url: [SimpleNamespace(match=lambda element: ())] * 2


def draw_node(canvas, draw, node):
    """Draw a node with all that is in it, as `draw` does, but for what it gets wrong."""
    context = canvas.context
    # Lines start as they are by default, whatever the parent drew.
    context.set_dash([])
    context.set_line_cap(cairo.LINE_CAP_BUTT)
    context.set_line_join(cairo.LINE_JOIN_MITER)
    if node.get("transform-origin", "").startswith("box"):
        # "box X Y" lies X and Y from the corner of what is drawn.
        left, top, width, height = calculate_bounding_box(canvas, node) or (0, 0, 0, 0)
        x, y = node["transform-origin"].split()[1:3]
        x, y = left + size(canvas, x, width), top + size(canvas, y, height)
        node["transform-origin"] = f"{x} {y}"
    opacity = node.get("opacity", "1")
    several = node.tag == "use" or "none" not in (node.get("stroke", "none"), node.get("fill"))
    if float(opacity) < 1 and several:
        # Fill and stroke, or all that a <use> stands for, are to fade together.
        node["opacity"] = "1"
        context.push_group()
        draw(canvas, node)
        context.pop_group_to_source()
        context.paint_with_alpha(float(opacity))
        node["opacity"] = opacity
    else:
        draw(canvas, node)


def draw_path(draw, canvas, node):
    """Draw a path; note for its markers where it turns, since CairoSVG is wrong about curves."""
    draw(canvas, node)
    marked = any("url" in node.get(end, "") for end in ENDS)
    node.vertices = corners(canvas.context.copy_path()) if marked else ()


def corners(path):
    """A path -> what CairoSVG's `draw_markers` takes: points, and between two of them the direction
    (turned round) in which the line leaves the one, and that in which it comes to the other."""
    found, start = deque(), None
    for kind, numbers in path:
        # No points: back to the start.
        points = list(zip(numbers[::2], numbers[1::2])) or [start]
        if kind == cairo.PATH_MOVE_TO:
            start, turn = points[0], (0, 0)
        else:
            line = [found[-1], *points]
            steps = [a + b for a, b in zip(line, points) if math.dist(a, b) > 1e-9]
            if not steps:
                continue
            turn = math.pi - point_angle(*steps[0]), point_angle(*steps[-1])
        found += [turn, points[-1]] if found else points
    return found


# ------------------------------------------------------------------------------- patterns and masks
def draw_on(picture, canvas, matrix, nodes, opacity):
    """Draw nodes on a picture of their own."""
    context = canvas.context
    canvas.context = cairo.Context(picture)
    canvas.context.push_group()
    canvas.context.set_matrix(matrix)
    for node in nodes:
        canvas.draw(node)
    canvas.context.pop_group_to_source()
    canvas.context.paint_with_alpha(opacity)
    canvas.context = context


def draw_pattern(canvas, node, name, opacity):
    """Make a pattern the source of what is painted next. Its tile is drawn once."""
    pattern = canvas.patterns[name]
    x, y, width, height = (size(canvas, pattern.get(side), 1) for side in SIDES)
    if pattern.get("patternUnits") != "userSpaceOnUse":
        # They are shares of the box of what is painted.
        left, top, wide, high = calculate_bounding_box(canvas, node) or (0, 0, 0, 0)
        x, width = left + x * wide, width * wide
        y, height = top + y * high, height * high
    tile = cairo.RecordingSurface(cairo.CONTENT_COLOR_ALPHA, (0, 0, width, height))
    draw_on(tile, canvas, cairo.Matrix(), pattern.children, opacity)
    source = cairo.SurfacePattern(tile)
    source.set_extend(cairo.EXTEND_REPEAT)
    transform(canvas, pattern.get("patternTransform"), source)
    shift = cairo.Matrix(1, 0, 0, 1, -x, -y)
    source.set_matrix(source.get_matrix().multiply(shift))
    canvas.context.set_source(source)
    return True  # it is one


def paint_mask(canvas, node, name, opacity):
    """Paint the group that is the context's source, where the mask is light."""
    context = canvas.context
    # Each row of a picture of bytes has a multiple of four.
    width, height = math.ceil(canvas.width / 4) * 4, math.ceil(canvas.height)
    picture = cairo.ImageSurface(cairo.FORMAT_ARGB32, width, height)
    draw_on(picture, canvas, context.get_matrix(), canvas.masks[name].children, opacity)
    picture.flush()
    # Its light times its alpha, which cairo has multiplied in already.
    data = bytes(picture.get_data())
    light = Image.frombuffer("RGB", (width, height), data, "raw", "BGRX", 4 * width, 1).convert("L")
    mask = cairo.ImageSurface(cairo.FORMAT_A8, width, height, bytearray(light.tobytes()), width)
    context.save()
    context.identity_matrix()
    context.mask_surface(mask)
    context.restore()
