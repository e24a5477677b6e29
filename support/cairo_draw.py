"""What CairoSVG draws wrongly, drawn anew: patterns, masks, dashes, the direction of markers.

`mend` puts it in place, and svg_text.py for text. Only helpers import these files: they take the
cairo library.
"""

import functools
import math
from collections import deque
from types import SimpleNamespace

from cairosvg import defs, parser, surface
from cairosvg.bounding_box import calculate_bounding_box
from cairosvg.helpers import normalize, size, transform
from cairosvg.surface import cairo
from PIL import Image

from support.svg_text import draw_text, zoom

ENDS = "marker-start", "marker-mid", "marker-end"
SIDES = "x", "y", "width", "height"
STROKES = {"stroke-dasharray", "stroke-linecap", "stroke-linejoin"}


def mend():
    """Replace what is wrong in CairoSVG; the rest of it is called from here."""
    for tag in ("a", "tspan", "textPath"):  # `draw_text` draws all that is in a <text>
        surface.TAGS.pop(tag)
    surface.TAGS["text"] = surface.text = draw_text
    for tag in ("path", "line", "polyline", "polygon", "circle", "ellipse", "rect"):
        surface.TAGS[tag] = functools.partial(draw_shape, surface.TAGS[tag])
    surface.paint_mask, defs.draw_pattern = paint_mask, draw_pattern
    surface.transform = functools.partial(transform_in_box, surface.transform)
    draw, draw_markers = surface.Surface.draw, surface.draw_markers

    def draw_fresh(canvas, node):
        # A child starts with lines as they are by default, whatever its parent drew.
        canvas.context.save()
        if not STROKES.isdisjoint(node):
            canvas.context.set_dash([])
            canvas.context.set_line_cap(cairo.LINE_CAP_BUTT)
            canvas.context.set_line_join(cairo.LINE_JOIN_MITER)
        clip = canvas.paths.get(node.get("clip-path", "")[len("url(#") : -1])
        if clip and any(child.get("clip-rule") == "evenodd" for child in clip.children):
            canvas.context.set_fill_rule(cairo.FILL_RULE_EVEN_ODD)
        # In a marker, context-stroke is the stroke of the shape that it marks.
        own = {name: node[name] for name in ("fill", "stroke") if "context-" in node.get(name, "")}
        for name, value in own.items():
            node[name] = canvas.marked.get(value.removeprefix("context-"), "none")
        if node.get("vector-effect") == "non-scaling-stroke":
            own["stroke-width"] = node.get("stroke-width", "1")
            node["stroke-width"] = str(size(canvas, own["stroke-width"]) / zoom(canvas.context))
        draw(canvas, node)
        node.update(own)
        canvas.context.restore()

    def draw_markers_of(canvas, node):
        before, own = canvas.marked, {"fill": node.get("fill"), "stroke": node.get("stroke")}
        canvas.marked = {"fill": "black", "stroke": "none"} | {k: v for k, v in own.items() if v}
        draw_markers(canvas, node)
        canvas.marked = before

    # A document comes parsed, and its style sheets are in its attributes (see `normalise`).
    parser.ElementTree = SimpleNamespace(fromstring=lambda parsed, **_: parsed.root)
    no_rules = SimpleNamespace(match=lambda element: ())
    parser.css.parse_stylesheets = lambda tree, url: (no_rules, no_rules)
    # CairoSVG's way to lay out text took a copy of its cursor at each node.
    surface.copy = SimpleNamespace(deepcopy=lambda value: value)
    surface.Surface.marked = {}
    surface.Surface.draw, surface.draw_markers = draw_fresh, draw_markers_of


def transform_in_box(draw, canvas, text, gradient=None, transform_origin=None):
    """An origin "box X Y" lies X and Y from the corner of what is drawn (see `plain_origin`)."""
    if transform_origin and transform_origin.startswith("box"):
        x, y, width, height = calculate_bounding_box(canvas, canvas.parent_node) or (0, 0, 0, 0)
        _, right, down = transform_origin.split()
        transform_origin = f"{x + size(canvas, right, width)} {y + size(canvas, down, height)}"
    draw(canvas, text, gradient, transform_origin)


def draw_shape(draw, canvas, node):
    """Draw a shape; scale its dashes by its pathLength; note for its markers where it turns, since
    CairoSVG is wrong about curves."""
    draw(canvas, node)
    length = size(canvas, node.get("pathLength"))
    if length > 0:
        points = [item[1] for item in canvas.context.copy_path_flat() if item[1]]
        scale = sum(map(math.dist, points, points[1:])) / length
        dashes, offset = canvas.context.get_dash()
        canvas.context.set_dash([dash * scale for dash in dashes], offset * scale)
    node.vertices, start = deque(), (0, 0)
    marked = node.tag[0] in "pl" and any("url" in node.get(end, "") for end in ENDS)
    if not canvas.stroke_and_fill or not marked:
        return
    for kind, numbers in canvas.context.copy_path():
        points = list(zip(numbers[::2], numbers[1::2])) or [start]  # (none: back to the start)
        if kind == cairo.PATH_MOVE_TO:
            start = points[0]
            if node.vertices:
                node.vertices.append((0, 0))
            node.vertices.append(start)
            continue
        points.insert(0, node.vertices[-1])
        steps = [(a, b) for a, b in zip(points, points[1:]) if math.dist(a, b) > 1e-9]
        if steps:
            first, last = (math.atan2(b[1] - a[1], b[0] - a[0]) for a, b in (steps[0], steps[-1]))
            node.vertices += [(math.pi - first, last), points[-1]]


# ------------------------------------------------------------------------------- patterns and masks
def draw_elsewhere(canvas, width, height, matrix, nodes, opacity=1.0):
    """Draw nodes on a picture of their own."""
    picture = cairo.ImageSurface(cairo.FORMAT_ARGB32, width, height)
    context, canvas.context = canvas.context, cairo.Context(picture)
    canvas.context.push_group()
    canvas.context.set_matrix(matrix)
    for node in nodes:
        canvas.draw(node)
    canvas.context.pop_group_to_source()
    canvas.context.paint_with_alpha(opacity)
    canvas.context = context
    picture.flush()
    return picture


def draw_pattern(canvas, node, name, opacity):
    """Make a pattern the source of what is painted next -> is it one? Its tile is drawn once."""
    pattern, context = canvas.patterns[name], canvas.context
    box = calculate_bounding_box(canvas, node) or (0, 0, 0, 0)
    sides = [pattern.get(side) for side in SIDES]
    if pattern.get("patternUnits") == "userSpaceOnUse":
        x, y, width, height = (size(canvas, *side) for side in zip(sides, "xyxy"))
    else:
        x, y, width, height = (size(canvas, side, 1) for side in sides)
        x, y, width, height = x * box[2], y * box[3], width * box[2], height * box[3]
        x, y = box[0] + x, box[1] + y
    if width <= 0 or height <= 0:
        return False
    # As many pixels as the tile covers on the canvas.
    pixels = (math.ceil(side * zoom(context)) for side in (width, height))
    columns, rows = (min(max(side, 1), 2048) for side in pixels)
    to_tile = inner = cairo.Matrix(columns / width, 0, 0, rows / height)
    if pattern.get("viewBox"):
        left, top, wide, high = map(float, normalize(pattern["viewBox"]).split())
        fit = min(width / wide, height / high)
        inner = cairo.Matrix(fit, 0, 0, fit, (width - wide * fit) / 2, (height - high * fit) / 2)
        inner = cairo.Matrix(1, 0, 0, 1, -left, -top).multiply(inner).multiply(to_tile)
    elif pattern.get("patternContentUnits") == "objectBoundingBox":
        inner = cairo.Matrix(box[2], 0, 0, box[3]).multiply(to_tile)
    tile = draw_elsewhere(canvas, columns, rows, inner, pattern.children, opacity)
    source = cairo.SurfacePattern(tile)
    source.set_extend(cairo.EXTEND_REPEAT)
    transform(canvas, pattern.get("patternTransform"), source)
    here = cairo.Matrix(1, 0, 0, 1, -x, -y).multiply(to_tile)
    source.set_matrix(source.get_matrix().multiply(here))
    context.set_source(source)
    return True


def paint_mask(canvas, node, name, opacity):
    """Paint the group that is the context's source, where the mask is light."""
    mask, context = canvas.masks[name], canvas.context
    shape = width, height = math.ceil(canvas.width), math.ceil(canvas.height)
    matrix = context.get_matrix()
    if mask.get("maskContentUnits") == "objectBoundingBox":
        x, y, wide, high = calculate_bounding_box(canvas, node) or (0, 0, 1, 1)
        matrix = cairo.Matrix(wide, 0, 0, high, x, y).multiply(matrix)
    picture = draw_elsewhere(canvas, *shape, matrix, mask.children)
    data, stride = bytes(picture.get_data()), picture.get_stride()
    light = Image.frombuffer("RGB", shape, data, "raw", "BGRX", stride, 1)
    # Its light times its alpha, which cairo has multiplied in already.
    light = light.convert("L", (0.2126 * opacity, 0.7152 * opacity, 0.0722 * opacity, 0))
    stride = cairo.ImageSurface.format_stride_for_width(cairo.FORMAT_A8, width)
    rows = Image.new("L", (stride, height))
    rows.paste(light)
    light = cairo.ImageSurface(cairo.FORMAT_A8, *shape, bytearray(rows.tobytes()), stride)
    context.save()
    if mask.get("maskUnits") == "userSpaceOnUse" and "width" in mask:
        context.new_path()
        context.rectangle(
            *(size(canvas, mask.get(side), axis) for side, axis in zip(SIDES, "xyxy"))
        )
        context.clip()
    context.identity_matrix()
    context.mask_surface(light)
    context.restore()
