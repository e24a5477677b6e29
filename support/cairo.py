"""An SVG as models write it -> one that CairoSVG draws as a browser would.

Models write for browsers: style sheets, `em`, colours of any kind, references to what is not there.
`rewrite` walks a document from the root down and leaves plain attributes (svg_values.py) and a
plain structure. What CairoSVG draws wrongly for all that is drawn anew (cairo_draw.py for shapes,
svg_text.py for text).
"""

import base64
import functools
import io
import math
import re

import cssselect2
import tinycss2
from cairosvg.parser import Tree
from cairosvg.surface import PNGSurface
from defusedxml import ElementTree
from PIL import Image

from support.sandbox import NoPicture
from support.svg_values import NUMBER, css_parts, font_size, pixels, plain_colour, plain_value

MAX_EMBEDDED = 1024  # pixels, of the sides of a picture inside an SVG
MAX_CANVAS, MAX_AREA = 4096, 1 << 23  # pixels, of a side and of all, before it is shrunk
NAME = re.compile(r"[a-z][a-z-]*|--[\w-]+")  # of a property, or of a variable
VAR = re.compile(r"(?i)var\(\s*(--[\w-]+)\s*(?:,((?:[^()]|\([^()]*\))*))?\)")
DEFAULT_SIDE = 512  # pixels, where there is neither a size nor a viewBox
SVG = "{http://www.w3.org/2000/svg}"
SPACE = "{http://www.w3.org/XML/1998/namespace}space"
KNOWN = """svg g defs symbol use switch a image text tspan textPath rect circle ellipse line
    polyline polygon path marker mask clipPath pattern linearGradient radialGradient stop""".split()


def draw(source, max_side):
    """-> PIL RGB, of at most max_side pixels each way. The size is settled before there is a
    canvas: width="1e9" is harmless."""
    # A str is decoded already: the encoding its XML declaration names no longer holds.
    source = re.sub(r"^<\?xml[^>]*\?>", "", source.lstrip("\ufeff \t\r\n"))
    root = ElementTree.fromstring(source, forbid_external=True)
    for element in root.iter():
        if not element.tag.startswith("{"):
            element.tag = SVG + element.tag
    if root.tag != SVG + "svg":
        raise NoPicture(f"the root element is <{root.tag.rpartition('}')[2]}>, not <svg>")
    width, height, viewbox = svg_size(root.get("width"), root.get("height"), root.get("viewBox"))
    names = {element.get("id"): element.tag.removeprefix(SVG) for element in root.iter()}
    wrapper = cssselect2.ElementWrapper.from_xml_root(root)
    rewrite(wrapper, 16.0, {}, style_sheet(root), names)
    paper = plain_colour(root.get("background-color", root.get("background", ""))) or "white"
    root.attrib.update(width=str(width), height=str(height), viewBox=viewbox)
    tree = Tree(bytestring=ElementTree.tostring(root), url_fetcher=fetch)
    # Letters are whole pixels wide: on a smaller canvas lines of text would get longer or shorter.
    # So what is too large is drawn at its own size, or near it, and then shrunk.
    scale = min(1, MAX_CANVAS / max(width, height), math.sqrt(MAX_AREA / (width * height)))
    size = [max(1, math.ceil(side * scale - 1e-6)) for side in (width, height)]
    # PNGSurface is CairoSVG's raster surface; that we never ask it for the PNG doubles the speed.
    form = {"output_width": size[0], "output_height": size[1], "background_color": paper}
    canvas = PNGSurface(tree, None, 96, **form).cairo
    canvas.flush()
    # ARGB32 lies in memory as B, G, R, A; on paper A is always 255, so nothing is premultiplied.
    image = Image.frombuffer("RGB", size, canvas.get_data(), "raw", "BGRX", canvas.get_stride(), 1)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)  # only if it is larger
    return image


def svg_size(width, height, viewbox):
    """Attributes of the root (or None) -> (width, height, viewBox) in pixels, positive and finite.
    A length that depends on a page we do not have ("100%"), or is nonsense, counts as missing.

    >>> svg_size("2in", None, "0 0 100 50"), svg_size("100%", "nan", None)
    ((192.0, 96.0, '0 0 100 50'), (512, 512, '0 0 512 512'))
    """

    def side(length):
        length = pixels(length or "", font=16) or "%"
        value = 0 if "%" in length else float(length)
        return value if 1e-6 < value < 1e9 else None

    width, height = side(width), side(height)
    box = (viewbox or "").replace(",", " ").split()
    whole = len(box) == 4 and all(re.fullmatch(NUMBER, number) for number in box)
    if not (whole and side(box[2]) and side(box[3])):
        width, height = width or height or DEFAULT_SIDE, height or width or DEFAULT_SIDE
        return width, height, f"0 0 {width} {height}"
    width = width or float(box[2])
    return width, height or width * float(box[3]) / float(box[2]), " ".join(box)


def fetch(url, resource_type):
    """CairoSVG asks here for all that a document refers to: a small embedded PNG or JPEG only."""
    head = re.match(r"data:image/(?:png|jpe?g);base64,", url, re.IGNORECASE)
    if not head:
        raise NoPicture("refers to something outside the document (not a data: PNG or JPEG)")
    data = base64.b64decode(url[head.end() :])
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:  # reads its head only
        if max(picture.size) > MAX_EMBEDDED:
            raise NoPicture(f"embeds too large a picture: over {MAX_EMBEDDED} pixels")
    return data


# ----------------------------------------------------------------------------- from the root down
def rewrite(wrapper, font, variables, rules, names):
    """Rewrite an element and all in it, in place. font: the size of its parent's, in pixels;
    variables: those of its parent's style, {name: value}; names: {id: tag} of the document."""
    element = wrapper.etree_element
    tag, tail = element.tag.removeprefix(SVG), element.tail
    if tag == "tref":
        raise NoPicture("has a <tref>, text from elsewhere, which browsers draw no more")
    if tag not in KNOWN:
        # Of what is not SVG (or a title, or a script) browsers draw nothing, nor what is in it.
        element.clear()
        element.tag, element.tail = SVG + "defs", tail
        return
    own, variables = properties(wrapper, rules, variables)
    if "font-size" in own:
        font = font_size(own["font-size"], font)
        own["font-size"] = f"{font:.7g}"
    plain = {name: plain_value(name, value, font, names) for name, value in own.items()}
    plain = {name: value for name, value in plain.items() if value is not None}
    if tag == "text":
        # `gather` makes of the white space what browsers do.
        if own.get(SPACE) == "preserve":
            plain["white-space"] = "pre"
        plain[SPACE] = "preserve"
    elif tag == "marker":
        # Without a viewBox nothing is scaled. (CairoSVG would fit what is in it.)
        box = f"0 0 {plain.get('markerWidth', 3)} {plain.get('markerHeight', 3)}"
        plain.setdefault("viewBox", box)
    if "stroke-dasharray" in plain:
        # Browsers draw no dot where a line ends as one would begin.
        plain.setdefault("stroke-dashoffset", "-1e-2")
    if "alignment-baseline" in plain:
        plain.setdefault("dominant-baseline", plain["alignment-baseline"])
    if plain.get("transform-box") == "fill-box":
        plain["transform-origin"] = "box " + plain.get("transform-origin", "0 0")
    element.attrib = plain
    for child in wrapper.iter_children():
        rewrite(child, font, variables, rules, names)


def style_sheet(root):
    """-> a matcher of the rules in all <style> elements. What is no CSS is skipped."""
    rules = cssselect2.Matcher()
    for element in root.iter(SVG + "style"):
        for rule in tinycss2.parse_stylesheet("".join(element.itertext()), True, True):
            if rule.type != "qualified-rule":
                continue
            try:
                selectors = cssselect2.compile_selector_list(rule.prelude)
            except cssselect2.SelectorError:
                continue
            for selector in selectors:
                if selector.pseudo_element is None:
                    rules.add_selector(selector, declarations(tinycss2.serialize(rule.content)))
    return rules


@functools.lru_cache(1000)
def declarations(text):
    """CSS -> {property: value} of the ordinary ones, and of those that are !important.

    >>> declarations("fill: Red; font: bold 12px/1 serif !important")[0]
    {'fill': 'Red'}
    """
    ordinary, important = {}, {}
    for declaration in tinycss2.parse_blocks_contents(text):
        # (Another name than this, with escapes in it, would make no attribute.)
        if declaration.type != "declaration" or not NAME.fullmatch(declaration.lower_name):
            continue
        name, value = declaration.lower_name, tinycss2.serialize(declaration.value).strip()
        (important if declaration.important else ordinary).update(css_parts(name, value))
    return ordinary, important


def properties(wrapper, rules, variables):
    """-> ({property: value}: attributes, then style sheets, then `style`; variables)."""
    own = dict(wrapper.etree_element.attrib)
    own.pop("font", None)  # browsers know no such attribute
    found = [match[-1] for match in rules.match(wrapper)]
    found.append(declarations(own.pop("style", "")))
    for ordinary, _ in found:
        own |= ordinary
    for _, important in found:
        own |= important
    names = [name for name in own if name.startswith("--")]
    if names:
        variables = variables | {name: own.pop(name) for name in names}
        variables |= {name: fill_in(variables[name], variables) for name in names}
    for name, value in own.items():
        own[name] = fill_in(value.strip(), variables)
        if own[name].lower() == "initial":
            own[name] = "black" if name == "fill" else "none"
    return own, variables


def fill_in(text, variables, rounds=9):
    """Put the values of variables in the place of their var(). Where they refer to each other in a
    circle, or grow with each round, it gives up.

    >>> fill_in("1px var(--ink, red)", {}), fill_in("var(--a)", {"--a": "var(--b)", "--b": "2"})
    ('1px  red', '2')
    """
    if "--" not in text or len(text) > 1000 or not rounds:
        return text
    text = VAR.sub(lambda match: variables.get(match[1].lower(), match[2] or ""), text)
    return fill_in(text, variables, rounds - 1)
