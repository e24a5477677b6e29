"""What CairoSVG gets wrong, mended; and the fonts, so that text looks alike on all machines."""

import base64
import functools
import importlib.util
import io
import math
import re
import urllib.parse
from pathlib import Path

from PIL import Image, ImageColor

from support.sandbox import NoPicture

MAX_SIDE = 1024  # pixels, of a picture and of one embedded in it; a larger picture is scaled down
DEFAULT_SIDE = 512  # pixels, where there is neither a size nor a viewBox
MISSING = "CairoSVG does not load; it takes `pip install cairosvg` and the cairo library: "
MISSING += "`apt install libcairo2` or `brew install cairo`"


def pin_fonts(scratch):
    """Make matplotlib's DejaVu fonts the only ones -> the environment in which they are found."""
    spec = importlib.util.find_spec("matplotlib")  # finds the folder, does not import the package
    if spec is None:
        raise RuntimeError("matplotlib is missing (its fonts draw SVG): pip install matplotlib")
    folder = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    # $XDG_DATA_DIRS/fonts is where Pillow's truetype("DejaVuSans.ttf") looks.
    (scratch / "fonts").mkdir()
    for font in folder.glob("DejaVu*.ttf"):
        (scratch / "fonts" / font.name).symlink_to(font)
    rules = ""
    for family, font in (("serif", "Serif"), ("monospace", "Sans Mono"), (None, "Sans")):
        test = f'<test name="family"><string>{family}</string></test>' if family else ""
        edit = f'<edit name="family" mode="append_last"><string>DejaVu {font}</string></edit>'
        rules += f"<match>{test}{edit}</match>"
    folders = f"<dir>{scratch}/fonts</dir><cachedir>{scratch}/fontconfig</cachedir>"
    (scratch / "fonts.conf").write_text(f"<fontconfig>{folders}{rules}</fontconfig>")
    return {
        "FONTCONFIG_FILE": f"{scratch}/fonts.conf",
        "XDG_DATA_DIRS": f"{scratch}",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": f"{scratch}/mpl",
    }


# -------------------------------------------------------------------------------- in a helper
def mend():
    """Replace what is wrong in CairoSVG itself. ImportError, OSError: it is not there."""
    from cairosvg import surface
    from cairosvg.parser import Node

    normalise(Node)
    lay_out_once(surface)


@functools.lru_cache(1000)
def plain_colour(text):
    """A colour as models write it -> as CairoSVG reads it. What is not known here passes unchanged.

    >>> plain_colour("hsl(120deg 100% 25% / 50%)"), plain_colour("rgb(9 8 7 / .5)")
    ('rgba(0,128,0,0.5)', 'rgba(9,8,7,0.5)')
    >>> plain_colour("#ff000080"), plain_colour("red")
    ('rgba(255,0,0,0.502)', 'red')
    """
    text = text.strip().lower()
    value = r"([^\s,/()]+)"
    function = re.fullmatch(
        rf"(rgb|hsl)a?\(\s*{value}[\s,]+{value}[\s,]+{value}(?:[\s,/]+{value})?\s*\)", text
    )
    try:
        if re.fullmatch("#([0-9a-f]{4}){1,2}", text):
            *rgb, alpha = ImageColor.getrgb(text)
            alpha /= 255
        elif function:
            kind, *parts, alpha = function.groups("1")
            rgb = ImageColor.getrgb(f"{kind}({','.join(parts).replace('deg', '')})")
            alpha = float(alpha.rstrip("%")) / (100 if "%" in alpha else 1)
        else:
            return text
    except ValueError:
        return text
    return "rgba({},{},{},{:.3g})".format(*rgb, alpha)


def normalise(node_class):
    """Make each node rewrite what CairoSVG refuses or draws wrongly."""
    read = node_class.__init__
    colours = {"fill", "stroke", "stop-color", "flood-color"}
    opacities = {"opacity", "fill-opacity", "stroke-opacity", "stop-opacity", "flood-opacity"}

    def read_and_rewrite(node, *args, **kwargs):
        read(node, *args, **kwargs)
        for name in node.keys() & colours:
            node[name] = plain_colour(node[name])
        for name in node.keys() & opacities:
            value = node[name].strip()
            if value.endswith("%"):
                node[name] = str(float(value[:-1]) / 100)
        if "deg" in node.get("transform", ""):
            node["transform"] = re.sub(r"(?<=[\d.])deg\b", "", node["transform"])

    node_class.__init__ = read_and_rewrite


def lay_out_once(surface):
    """CairoSVG lays out each text twice: for the outline that a stroke follows, and to fill it.
    Without a stroke the first only costs time (a third of a chart's)."""
    layout = surface.text

    def text(canvas, node, draw_as_text=False):
        hidden = node.get("display") == "none" or node.get("visibility") == "hidden"
        stroked = node.get("stroke", "none") != "none"
        if draw_as_text or hidden or stroked or not canvas.stroke_and_fill:
            layout(canvas, node, draw_as_text)

    surface.text = text
    surface.TAGS.update({tag: text for tag, function in surface.TAGS.items() if function is layout})


# -------------------------------------------------------------------------------- in a child
def read(source, max_side):
    """-> CairoSVG's tree, and the size (width, height) in pixels to draw it in. The size is settled
    before there is a canvas: width="1e9" is harmless."""
    from cairosvg.parser import Tree

    # A str is decoded already: the encoding its XML declaration names no longer holds.
    source = re.sub(r"^<\?xml[^>]*\?>", "", source.lstrip("\ufeff \t\r\n"))
    tree = Tree(bytestring=source.encode(), url_fetcher=fetch)
    if tree.tag != "svg":
        raise NoPicture(f"the root element is <{tree.tag}>, not <svg>")
    width, height, viewbox = svg_size(*map(tree.get, ("width", "height", "viewBox")))
    tree.update(width=str(width), height=str(height), viewBox=viewbox)
    scale = min(1, max_side / max(width, height))
    return tree, [max(1, math.ceil(side * scale - 1e-6)) for side in (width, height)]


def svg_size(width, height, viewbox):
    """Attributes of the root (or None) -> (width, height, viewBox) in pixels, positive and finite.
    A length that depends on a page we do not have ("100%"), or is nonsense, counts as missing.

    >>> svg_size("2in", None, "0 0 100 50"), svg_size("100%", "nan", None)
    ((192.0, 96.0, '0 0 100.0 50.0'), (512, 512.0, '0 0 512 512'))
    """
    units = {"pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96, "em": 16, "rem": 16}
    number = r"\s*\+?(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*(px|pt|pc|mm|cm|in|r?em)?\s*"

    def pixels(length):
        match = re.fullmatch(number, length or "")
        value = float(match[1]) * units.get(match[2], 1) if match else 0
        return value if 1e-6 < value < 1e9 else None

    width, height, box = pixels(width), pixels(height), (viewbox or "").replace(",", " ").split()
    box_width, box_height = map(pixels, box[2:]) if len(box) == 4 else (None, None)
    if box_width and box_height:
        x, y = box[:2]
    else:
        x, y = 0, 0
        box_width = width or height or DEFAULT_SIDE
        box_height = height or width or DEFAULT_SIDE
    width = width or (height * box_width / box_height if height else box_width)
    return width, height or width * box_height / box_width, f"{x} {y} {box_width} {box_height}"


def fetch(url, resource_type):
    """CairoSVG asks here for all that a document refers to: a small embedded PNG or JPEG only."""
    if resource_type == "text/css":
        return b""  # an imported style sheet is most often a web font, and fonts are pinned anyway
    head = re.match(r"data:image/(?:png|jpe?g);base64,", url, re.IGNORECASE)
    if not head:
        problem = "refers to something outside the document"
        raise NoPicture(f"{problem} (only a data: PNG or JPEG can be embedded)")
    data = base64.b64decode(urllib.parse.unquote(url[head.end() :]))
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:  # reads its head only
        if max(picture.size) > MAX_SIDE:
            size = f"{picture.width} x {picture.height} pixels"
            raise NoPicture(f"embeds too large a picture: {size}")
    return data
