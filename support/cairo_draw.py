"""What CairoSVG draws wrongly, drawn anew: patterns, masks, dashes, the direction of markers.

`mend` puts it in place, and svg_text.py for text. Only helpers import these files: they take the
cairo library.
"""

import functools
import math
from collections import deque
from types import SimpleNamespace

from cairosvg import defs, helpers, parser, surface
from cairosvg.bounding_box import calculate_bounding_box
from cairosvg.helpers import normalize, size, transform
from cairosvg.surface import cairo
from PIL import Image

from support.svg_text import draw_text, zoom

ENDS = "marker-start", "marker-mid", "marker-end"
LINES = "path", "line", "polyline", "polygon"
SIDES = "x", "y", "width", "height"
MARKED = {"fill": "black", "stroke": "none"}  # what is not said of a shape
STROKES = {"stroke-dasharray", "stroke-linecap", "stroke-linejoin"}


def mend():
    """Replace what is wrong in CairoSVG; the rest of it is called from here."""
    for tag in ("a", "tspan", "textPath"):  # `draw_text` draws all that is in a <text>
        surface.TAGS.pop(tag)
    surface.TAGS["text"] = surface.text = draw_text
    for tag in ("path", "line", "polyline", "polygon", "circle", "ellipse", "rect"):
        surface.TAGS[tag] = functools.partial(draw_shape, surface.TAGS[tag])
    surface.paint_mask = paint_mask
    defs.draw_pattern = draw_pattern
    surface.transform = functools.partial(transform_in_box, surface.transform)
    surface.draw_markers = functools.partial(draw_markers, surface.draw_markers)
    surface.Surface.draw = functools.partialmethod(draw_node, surface.Surface.draw)
    surface.Surface.marked = MARKED
    # A document comes parsed, and its style sheets are in its attributes (see `normalise`).
    parser.ElementTree = SimpleNamespace(fromstring=lambda parsed, **_: parsed.root)
    no_rules = SimpleNamespace(match=lambda element: ())
    parser.css.parse_stylesheets = lambda tree, url: (no_rules, no_rules)
    # Speed: what CairoSVG does for each node to the same few words; and it copied, for text, the
    # cursor that ours does without.
    surface.normalize = helpers.normalize = functools.lru_cache(1000)(helpers.normalize)
    surface.parse_url = functools.lru_cache(1000)(surface.parse_url)
    surface.copy = SimpleNamespace(deepcopy=lambda value: value)


def draw_node(canvas, draw, node):
    """Draw a node with all that is in it, as `draw` does, but for what it gets wrong."""
    context, own = canvas.context, {}
    apart = "clip-path" in node or not STROKES.isdisjoint(node)
    if apart:
        context.save()
    # It starts with lines as they are by default, whatever its parent drew.
    if not STROKES.isdisjoint(node):
        context.set_dash([])
        context.set_line_cap(cairo.LINE_CAP_BUTT)
        context.set_line_join(cairo.LINE_JOIN_MITER)
    clip = canvas.paths.get(node.get("clip-path", "")[len("url(#") : -1])
    if clip:
        prepare_clip(canvas, node, clip)
    # In a marker, context-stroke is the stroke of the shape that it marks.
    for name in MARKED:
        if node.get(name, "").startswith("context-"):
            own[name] = node[name]
            node[name] = canvas.marked[own[name].removeprefix("context-")]
    if node.get("vector-effect") == "non-scaling-stroke":
        own["stroke-width"] = node.get("stroke-width", "1")
        width = size(canvas, own["stroke-width"])
        node["stroke-width"] = str(width / zoom(context))
    draw(canvas, node)
    node.update(own)
    if apart:
        context.restore()


def prepare_clip(canvas, node, clip):
    """What CairoSVG does not do for a clip path: its rule, the box of all but a <rect>."""
    if any(child.get("clip-rule") == "evenodd" for child in clip.children):
        canvas.context.set_fill_rule(cairo.FILL_RULE_EVEN_ODD)
    if clip.get("clipPathUnits") in ("objectBoundingBox", "box"):
        x, y, width, height = calculate_bounding_box(canvas, node) or (0, 0, 1, 1)
        clip["transform"] = f"translate({x} {y}) scale({width} {height})"
        clip["clipPathUnits"] = "box"  # so CairoSVG lets it be


def draw_markers(draw, canvas, node):
    """Draw the markers of a shape, which may ask for its fill and stroke."""
    before = canvas.marked
    canvas.marked = {name: node.get(name, MARKED[name]) for name in MARKED}
    draw(canvas, node)
    canvas.marked = before


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
    node.vertices = deque()
    marked = any("url" in node.get(end, "") for end in ENDS)
    if canvas.stroke_and_fill and marked and node.tag in LINES:
        node.vertices = corners(canvas.context.copy_path())


def corners(path):
    """A path -> what CairoSVG's `draw_markers` takes: points, and between two of them the direction
    (turned round) in which the line leaves the one, and that in which it comes to the other."""
    found, start = deque(), (0, 0)
    for kind, numbers in path:
        points = list(zip(numbers[::2], numbers[1::2]))
        if kind == cairo.PATH_MOVE_TO:
            start = points[0]
            if found:
                found.append((0, 0))
            found.append(start)
            continue
        points = [found[-1], *(points or [start])]  # no points: back to the start
        steps = [step for step in zip(points, points[1:]) if math.dist(*step) > 1e-9]
        if steps:
            angles = []
            for (ax, ay), (bx, by) in (steps[0], steps[-1]):
                angles.append(math.atan2(by - ay, bx - ax))
            found.append((math.pi - angles[0], angles[1]))
            found.append(points[-1])
    return found


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


def sides(canvas, node):
    """-> the x, y, width and height that a node gives in units of the drawing."""
    return [size(canvas, node.get(side), axis) for side, axis in zip(SIDES, "xyxy")]


def draw_pattern(canvas, node, name, opacity):
    """Make a pattern the source of what is painted next -> is it one? Its tile is drawn once."""
    pattern, context = canvas.patterns[name], canvas.context
    left, top, wide, high = calculate_bounding_box(canvas, node) or (0, 0, 0, 0)
    if pattern.get("patternUnits") == "userSpaceOnUse":
        x, y, width, height = sides(canvas, pattern)
    else:
        x, y, width, height = (size(canvas, pattern.get(side), 1) for side in SIDES)
        x, width = left + x * wide, width * wide
        y, height = top + y * high, height * high
    if width <= 0 or height <= 0:
        return False
    # As many pixels as the tile covers on the canvas.
    pixels = (math.ceil(side * zoom(context)) for side in (width, height))
    columns, rows = (min(max(side, 1), 2048) for side in pixels)
    to_tile = inner = cairo.Matrix(columns / width, 0, 0, rows / height)
    if pattern.get("viewBox"):
        left, top, wide, high = map(float, normalize(pattern["viewBox"]).split())
        fit = min(width / wide, height / high)
        right, down = (width - wide * fit) / 2, (height - high * fit) / 2
        inner = cairo.Matrix(fit, 0, 0, fit, right - left * fit, down - top * fit)
        inner = inner.multiply(to_tile)
    elif pattern.get("patternContentUnits") == "objectBoundingBox":
        inner = cairo.Matrix(wide, 0, 0, high).multiply(to_tile)
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
