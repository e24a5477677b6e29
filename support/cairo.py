"""An SVG as models write it -> one that CairoSVG draws as a browser would.

Models write for browsers: style sheets, `em`, colours of any kind, references to what is not there.
`normalise` walks a document from the root down and leaves plain attributes (svg_values.py) and a
plain structure. What CairoSVG draws wrongly for all that is drawn anew (cairo_draw.py for shapes,
svg_text.py for text).
"""

import base64
import functools
import io
import math
import re
import urllib.parse
from xml.etree.ElementTree import SubElement

import cssselect2
import tinycss2
from cairosvg.parser import Tree
from cairosvg.surface import PNGSurface
from defusedxml import ElementTree
from PIL import Image

from support.sandbox import NoPicture
from support.svg_values import NUMBER, SIZES, font_size, plain_colour, plain_length, plain_values

MAX_EMBEDDED = 1024  # pixels, of the sides of a picture inside an SVG
DEFAULT_SIDE = 512  # pixels, where there is neither a size nor a viewBox
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
SPACE = "{http://www.w3.org/XML/1998/namespace}space"
SHAPES = {SVG + name for name in ("rect", "circle", "ellipse", "polygon", "path", "use")}
GEOMETRY = ["href", XLINK, *"x y width height rx ry cx cy r d points pathLength".split()]
KNOWN = """svg g defs symbol use switch a image text tspan textPath tref rect circle ellipse line
    polyline polygon path marker mask clipPath pattern linearGradient radialGradient stop""".split()
DECLARATION = re.compile(
    r"""([-\w]+)\s*:\s*((?:[^;"'()]|"[^"]*"|'[^']*'|\((?:[^()]|\([^()]*\))*\))*)"""
)
FONT_SIZE = "|".join([rf"{NUMBER}(?:[a-z]+|%)", "larger", "smaller", *SIZES])
FONT = re.compile(rf"(?i)(.*?)(?<!\S)({FONT_SIZE})\s*(?:/\s*\S+)?\s+(.+)")
VARIABLE = re.compile(r"var\(\s*(--[\w-]+)\s*(?:,((?:[^()]|\([^()]*\))*))?\)")


def draw(source, max_side):
    """-> (CairoSVG's surface with the picture on it, its width and height in pixels). The size is
    settled before there is a canvas: width="1e9" is harmless."""
    # A str is decoded already: the encoding its XML declaration names no longer holds.
    source = re.sub(r"^<\?xml[^>]*\?>", "", source.lstrip("\ufeff \t\r\n"))
    root = ElementTree.fromstring(source, forbid_external=True)
    if root.tag not in ("svg", SVG + "svg"):
        raise NoPicture(f"the root element is <{root.tag.rpartition('}')[2]}>, not <svg>")
    *size, viewbox = svg_size(*map(root.get, ("width", "height", "viewBox")))
    root.set("viewBox", viewbox)
    paper = normalise(root)
    root.attrib.update(width=str(size[0]), height=str(size[1]), viewBox=viewbox)
    tree = Tree(bytestring=Parsed(root), url_fetcher=fetch)
    scale = min(1, max_side / max(size))
    width, height = size = [max(1, math.ceil(side * scale - 1e-6)) for side in size]
    # PNGSurface is CairoSVG's raster surface; that we never ask it for the PNG doubles the speed.
    shape = {"output_width": width, "output_height": height, "background_color": paper}
    canvas = PNGSurface(tree, None, 96, **shape).cairo
    canvas.flush()
    return canvas, size


class Parsed(bytes):
    """What CairoSVG takes for the bytes of a document (see `cairo_draw.mend`)."""

    def __new__(cls, root):
        self = super().__new__(cls, b"parsed")
        self.root = root
        return self


def svg_size(width, height, viewbox):
    """Attributes of the root (or None) -> (width, height, viewBox) in pixels, positive and finite.
    A length that depends on a page we do not have ("100%"), or is nonsense, counts as missing.

    >>> svg_size("2in", None, "0 0 100 50"), svg_size("100%", "nan", None)
    ((192.0, 96.0, '0 0 100.0 50.0'), (512, 512.0, '0 0 512 512'))
    """

    def pixels(length):
        length = plain_length(length or "", {"font": 16, "root": 16, "box": (0, 0)}) or "0"
        value = 0 if "%" in length or " " in length else float(length)
        return value if 1e-6 < value < 1e9 else None

    width, height, box = pixels(width), pixels(height), (viewbox or "").replace(",", " ").split()
    whole = len(box) == 4 and all(re.fullmatch(NUMBER, number) for number in box)
    box_width, box_height = map(pixels, box[2:]) if whole else (None, None)
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
    head = re.match(r"data:image/(?:png|jpe?g);base64,", url, re.IGNORECASE)
    if not head:
        problem = "refers to something outside the document"
        raise NoPicture(f"{problem} (only a data: PNG or JPEG can be embedded)")
    data = base64.b64decode(urllib.parse.unquote(url[head.end() :]))
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:  # reads its head only
        if max(picture.size) > MAX_EMBEDDED:
            size = f"{picture.width} x {picture.height} pixels"
            raise NoPicture(f"embeds too large a picture: {size}")
    return data


# ----------------------------------------------------------------------------- from the root down
def normalise(root):
    """Rewrite a document (an ElementTree element), in place -> the colour of its paper."""
    for element in root.iter():
        if not element.tag.startswith("{"):
            element.tag = SVG + element.tag
    names = {element.get("id"): element.tag.removeprefix(SVG) for element in root.iter()}
    rules = style_sheet(root)
    style = {"font": 16.0, "root": 16.0, "box": (0, 0)}
    own = rewrite(cssselect2.ElementWrapper.from_xml_root(root), style, rules, names)
    paper = own.get("background-color") or own.get("background", "").split(" ")[0]
    return plain_colour(paper) or "white"


def rewrite(wrapper, inherited, rules, names):
    """Rewrite an element and all in it -> its own properties. inherited: what its parent hands
    down; names: {id: tag} of the whole document."""
    element = wrapper.etree_element
    tag, tail = element.tag.removeprefix(SVG), element.tail
    own, css = properties(wrapper, rules, inherited)
    # Of what is not SVG (or a title, or a script) browsers draw nothing, nor what is in it.
    link = own.get("href", own.get(XLINK, ""))
    if tag not in KNOWN or tag == "use" and link[:1] != "#" and not {":", "/"} & set(link):
        element.clear()
        element.tag, element.tail = SVG + "defs", tail
        return {}
    style = inherited | own
    if own.get("font-family") == "monospace" and "font-size" not in style:
        own["font-size"] = "13px"  # a habit of browsers
    if "font-size" in own:
        style["font"] = font_size(own["font-size"], inherited)
        own["font-size"] = f"{style['font']:.7g}"
    if wrapper.parent is None:
        style["root"] = style["font"]
    box = re.findall(NUMBER, own.get("viewBox", ""))
    if len(box) == 4:
        style["box"] = float(box[2]), float(box[3])
    plain_values(own, style, names, css)
    if tag == "a":
        inside = wrapper.parent.local_name in ("text", "tspan", "textPath")
        element.tag = SVG + ("tspan" if inside else "g")
    elif tag == "text":
        tidy(element, own.get(SPACE) == "preserve" or "pre" in own.get("white-space", ""))
        own[SPACE] = "preserve"
    elif tag == "ellipse":
        own |= {"rx": own.get("ry", "0")} | {"ry": own.get("rx", "0")} | own
    elif tag == "marker":
        # Without a viewBox nothing is scaled. (CairoSVG would fit what is in it.)
        own.setdefault("viewBox", f"0 0 {own.get('markerWidth', 3)} {own.get('markerHeight', 3)}")
    if "alignment-baseline" in own:
        own.setdefault("dominant-baseline", own.pop("alignment-baseline"))
    style |= own
    for child in wrapper.iter_children():
        rewrite(child, style, rules, names)
    element.attrib = {name: value for name, value in own.items() if name[0] != "-"}
    if element.tag in SHAPES:
        split(element, style)
    return own


def style_sheet(root):
    """-> a matcher of the rules in all <style> elements. What is no CSS is skipped."""
    rules = None
    for element in root.iter(SVG + "style"):
        rules = rules or cssselect2.Matcher()
        for rule in tinycss2.parse_stylesheet("".join(element.itertext()), True, True):
            if rule.type != "qualified-rule":
                continue
            try:
                selectors = cssselect2.compile_selector_list(rule.prelude)
            except cssselect2.SelectorError:
                continue
            for selector in selectors:
                if selector.pseudo_element is None and not selector.never_matches:
                    rules.add_selector(selector, declarations(tinycss2.serialize(rule.content)))
    return rules


@functools.lru_cache(1000)
def declarations(text):
    """CSS -> [(property, value, is it important?)]; `font` and `marker` in their parts.

    >>> declarations("fill:Red; font: bold 12px/1 serif !important")[:2]
    [('fill', 'Red', False), ('font-weight', 'bold', True)]
    """
    found = []
    for name, value in DECLARATION.findall(re.sub(r"(?s)/\*.*?\*/", "", text)):
        value, _, important = map(str.strip, value.partition("!"))
        parts = {name if name.startswith("--") else name.lower(): value}
        font = FONT.match(value)
        if name == "font" and font:
            weight = re.search(r"bold\w*|[1-9]00", font[1])
            slant = re.search("italic|oblique", font[1])
            parts = {"font-weight": weight[0] if weight else "normal"}
            parts["font-style"] = slant[0] if slant else "normal"
            parts |= {"font-size": font[2], "font-family": font[3]}
        elif name == "marker":
            parts = dict.fromkeys(("marker-start", "marker-mid", "marker-end"), value)
        found += [(*part, important == "important") for part in parts.items()]
    return found


def properties(wrapper, rules, inherited):
    """-> {property: value}: attributes, then style sheets, then `style`; and which are from CSS."""
    own, css = dict(wrapper.etree_element.attrib), set()
    own.pop("font", None)  # no attribute, and our word for the size of the font in pixels
    found = [match[-1] for match in rules.match(wrapper)] if rules else []
    found.append(declarations(own.pop("style", "")))
    for weight in (False, True):
        for name, value, important in (entry for entries in found for entry in entries):
            if important == weight:
                own[name] = value
                css.add(name)
    scope = inherited | own
    for name, value in list(own.items()):
        for _ in range(3 if "var(" in value else 0):  # a variable may name another one
            value = VARIABLE.sub(lambda m: scope.get(m[1], m[2] or ""), value)[:10_000]
        own[name] = value = value.strip() if name != "d" else value
        if value in ("", "inherit", "unset", "revert"):
            del own[name]
        elif value == "initial":
            own[name] = "black" if name == "fill" else "none"
    return own, css


# --------------------------------------------------------------------------------------- structure
def tidy(element, preserve):
    """Make the white space in a <text> what browsers make of it."""
    slots = []  # (element, "text" or "tail"), in reading order

    def collect(parent):
        slots.append((parent, "text"))
        for child in parent:
            collect(child)
            slots.append((child, "tail"))

    collect(element)
    if preserve:
        return
    space = True  # is what was read last a space, or the beginning?
    for slot in slots:
        text = re.sub(r"[ \t\r\n]+", " ", getattr(*slot) or "")
        if space:
            text = text.removeprefix(" ")
        space = text.endswith(" ") if text else space
        setattr(*slot, text)
    for slot in reversed(slots):
        if getattr(*slot):
            setattr(*slot, getattr(*slot).removesuffix(" "))
            break


def split(element, style):
    """Make of a shape a group with the shape in it, where its stroke comes before its fill, or
    where both (or all that a <use> stands for) are to fade together."""
    first = "stroke" in style.get("paint-order", "").split("fill")[0]
    faded = float(element.get("opacity", 1)) < 1
    if element.tag == SVG + "use":
        first, single = False, False
    else:
        single = "none" in (style.get("stroke", "none"), style.get("fill"))
    if single or not (first or faded):
        return
    shape = {name: element.attrib.pop(name) for name in GEOMETRY if name in element.attrib}
    if first:
        quiet = {"fill": "none", "marker-start": "none", "marker-end": "none", "marker-mid": "none"}
        SubElement(element, element.tag, shape | quiet)
        shape["stroke"] = "none"
    SubElement(element, element.tag, shape)
    element.tag = SVG + "g"
