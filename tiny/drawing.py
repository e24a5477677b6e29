"""The shapes of a scene, drawn three times over: as an SVG, as a Pillow program, and right here.

A scene's shapes are tuples on a grid of 10 x 10 units, y downwards: ("rect", x, y, w, h, colour),
("circle", cx, cy, r, colour), ("line", x, y, u, v, colour).
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw

SIZE = 64  # pixels; the grid has 10 units of 6.4 pixels


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
    """(Pillow's method, its corners in pixels, colour) of each shape, for `paint` and `python`."""
    methods = {"rect": "rectangle", "circle": "ellipse", "line": "line"}
    for kind, *at, colour in shapes:
        if kind == "circle":
            at = [at[0] - at[2], at[1] - at[2], at[0] + at[2], at[1] + at[2]]
        elif kind == "rect":
            at = [at[0], at[1], at[0] + at[2], at[1] + at[3]]
        yield methods[kind], pixel(*at), colour


def python(shapes: Sequence[tuple]) -> str:
    """The same picture as a Pillow program.

    >>> print(python([("rect", 1, 7, 2, 3, "red")]))
    from PIL import Image, ImageDraw
    img = Image.new("RGB", (64, 64), "white")
    d = ImageDraw.Draw(img)
    d.rectangle((6, 45, 19, 64), "red")
    """
    lines = [
        "from PIL import Image, ImageDraw",
        'img = Image.new("RGB", (64, 64), "white")',
        "d = ImageDraw.Draw(img)",
    ]
    for method, at, colour in boxes(shapes):
        corners, width = ", ".join(map(str, at)), ", 6" if method == "line" else ""
        lines.append(f'd.{method}(({corners}), "{colour}"{width})')
    return "\n".join(lines)


def paint(shapes: Sequence[tuple]) -> Image.Image:
    """What `python` would draw, drawn here.

    Pretraining needs half a million pictures, and these programs are ours.
    """
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(picture)
    for method, at, colour in boxes(shapes):
        if method == "line":
            draw.line(at, colour, 6)
        else:
            getattr(draw, method)(at, colour)
    return picture
