"""Values in an SVG as models write them -> plain ones, as CairoSVG reads them.

Lengths become pixels, colours `rgba()`; of paths stays what comes before the first error, and what
browsers do not understand is left out, as they do.
"""

import functools
import math
import re

import tinycss2.color4
from cairosvg.surface import parse_font

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
# A number and what may stand behind it; (?>...) never gives a digit back.
N = rf"(?>{NUMBER})[\s,]*"
NUMBERS = re.compile(rf"[\s,]*(?:{N})*")
COMMANDS = {"mltMLT": N * 2, "hvHV": N, "cC": N * 6, "sqSQ": N * 4}
# The two flags of an arc may stick to what follows.
COMMANDS["aA"] = N * 3 + r"[01][\s,]*" * 2 + N * 2
COMMAND = "|".join(rf"[{letters}]\s*(?>{numbers})+" for letters, numbers in COMMANDS.items())
PATH = re.compile(rf"\s*(?=[mM])(?:{COMMAND}|[zZ]\s*)*")
STEPS = {"translate|scale": f"{N}(?:{N})?", "rotate": f"{N}(?:{N}{N})?"}
STEPS |= {"skewX|skewY": N, "matrix": N * 6}
STEP = "|".join(rf"(?:{name})\s*\(\s*{numbers}\)[\s,]*" for name, numbers in STEPS.items())
TRANSFORM = re.compile(rf"\s*(?:{STEP})*")
# In a style sheet each number but 0 needs a unit, those of scale and matrix apart.
UNITLESS = re.compile(r"(?:translate|rotate|skew)\w*\((?:[^()]*[\s,])?[-+.0]*[1-9][.\d]*[\s,)]")
UNITS = {"": 1, "px": 1, "pt": 4 / 3, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96, "rem": 16}
ANGLES = {"px": 1, "deg": 1, "rad": 180 / math.pi, "turn": 360}
UNIT = re.compile(rf"(?<![\d.])((?>{NUMBER}))({'|'.join(ANGLES)})")
SIZES = {"xx-small": "9", "x-small": "10", "small": "13", "medium": "16", "large": "18"}
SIZES |= {"x-large": "24", "xx-large": "32", "larger": "1.2em", "smaller": "0.8333em"}
# DejaVu has two weights; the nearest counts.
BOLD = re.compile(r"(?<!\S)(?:bolder|5[5-9]\d|[6-9]\d\d|1000)(?!\S)")
WORDS = {"sub": "-0.582em", "super": "0.582em", "center": "50%"}
WORDS |= {"left": "0", "top": "0", "right": "100%", "bottom": "100%"}
COLOURS = "fill stroke stop-color color".split()
SHARES = "opacity fill-opacity stroke-opacity stop-opacity offset".split()
LENGTHS = """x y dx dy cx cy r rx ry x1 y1 x2 y2 fx fy width height stroke-width stroke-dasharray
    stroke-dashoffset letter-spacing word-spacing startOffset baseline-shift markerWidth
    markerHeight refX refY transform-origin""".split()
POSITIVE = "width", "height", "r", "rx", "ry", "stroke-width"
GRAMMARS = {"points": NUMBERS, "transform": TRANSFORM}
# What a property may refer to.
REFERENCES = dict.fromkeys(["marker", "marker-start", "marker-mid", "marker-end"], "marker")
REFERENCES |= {"clip-path": "clipPath", "mask": "mask"}


def plain_value(name, value, font, names):
    """The value of a property -> a plain one. None: it counts as missing. font: pixels of an em;
    names: {id: tag} of the document.

    >>> plain_value("d", "M1-2 3,4a5 5 0 0110 9 L 7", 16, {}), plain_value("d", "L 1 2", 16, {})
    ('M1-2 3,4a5 5 0 0110 9 ', None)
    """
    if name in COLOURS:
        return paint(value, names)
    if name in SHARES:
        return pixels(value.replace("%", "e-2"), font)
    if name in LENGTHS and value != "none":
        words = value.lower().replace(",", " ").split()
        lengths = [pixels(WORDS.get(word, word), font) for word in words]
        if None in lengths or name in POSITIVE and value.startswith("-"):
            return None
        if name == "transform-origin" and len(words) == 1:
            lengths.append("50%")
        return " ".join(lengths) or None
    if name in REFERENCES:
        target, _ = reference(value)
        return f"url(#{target})" if names.get(target) == REFERENCES[name] else "none"
    if name in GRAMMARS:
        return value if GRAMMARS[name].fullmatch(value) else ""
    if name == "d":
        # Up to the first error, as browsers draw it; a point that is closed is a dot, too.
        match = PATH.match(value)
        return match and re.sub(r"([mM][^a-zA-Z]*)(?=[zZ])", r"\1h0", match[0])
    if name == "orient" and not value.startswith("auto"):
        return value if NUMBERS.fullmatch(value) else None
    # What has a hyphen is a property of CSS, whose words may be in capitals.
    if "-" in name and name != "shape-rendering" or name in ("display", "visibility"):
        value = value.lower()
    if name == "font-weight":
        return BOLD.sub("bold", value)
    # CairoSVG would shift or flood what it cannot blur.
    return None if name == "filter" else value


def reference(text):
    """-> the id in a url() and what follows it; (None, text) if there is none.

    >>> reference("url('#Fade') red")
    ('Fade', 'red')
    """
    match = re.match(r"""(?is)url\(\s*["']?#([^"')]*?)["']?\s*\)\s*(.*)""", text)
    return match.groups() if match else (None, text)


def paint(text, names):
    """A fill or stroke -> as CairoSVG reads it. None: browsers do not understand it."""
    target, rest = reference(text)
    if names.get(target) in ("linearGradient", "radialGradient", "pattern"):
        return f"url(#{target})"
    word = {"currentcolor": "currentColor", "none": "none"}.get(rest.lower())
    return word or plain_colour(rest) or ("none" if "url(" in text else None)


@functools.lru_cache(1000)
def plain_colour(text):
    """None: it is no colour.

    >>> plain_colour("hsl(120deg 100% 25% / 50%)"), plain_colour("rgb(9 8 7 / .5)")
    ('rgba(0,128,0,0.5)', 'rgba(9,8,7,0.5)')
    """
    colour = tinycss2.color4.parse_color(text)
    # (The word currentcolor stays one, and the parser cannot convert its other spaces.)
    if getattr(colour, "space", None) not in ("srgb", "hsl", "hwb"):
        return None
    srgb = colour.to("srgb")
    red, green, blue = (round(255 * min(max(c, 0), 1)) for c in srgb.coordinates)
    return f"rgba({red},{green},{blue},{colour.alpha:.3g})"


@functools.lru_cache(1000)
def pixels(text, font):
    """-> pixels; a percentage stays. None: it is no length.

    >>> pixels("1.5em", 10), pixels("20%", 10), pixels("wide", 10)
    ('15', '20%', None)
    """
    match = re.fullmatch(rf"({NUMBER})([a-z]*|%)", text.lower())
    if match and match[2] == "%":
        return text
    units = UNITS | {"em": font}
    if not match or match[2] not in units:
        return None
    return f"{float(match[1]) * units[match[2]]:.7g}"


def font_size(text, parent):
    """-> pixels. What is no size counts as missing."""
    length = pixels(SIZES.get(text.lower(), text).replace("%", "e-2em"), parent)
    return float(length) if length and length[0] != "-" else parent


def css_parts(name, value):
    """A declaration of a style sheet -> {attribute: value}.

    >>> css_parts("transform", "rotate(.25turn) translateY(2px)")
    {'transform': 'rotate(90) translate(0 2)'}
    >>> css_parts("font", "650 12px/1 serif")["font-weight"], css_parts("transform", "rotate(9)")
    ('bold', {'transform': 'an error'})
    """
    if name == "font":
        return {} if "--" in value else parse_font(BOLD.sub("bold", value.lower()))
    if name == "transform":
        value = value.replace("translateX(", "translate(").replace("translateY(", "translate(0 ")
        if UNITLESS.search(value):
            value = "an error"
        value = UNIT.sub(lambda match: f"{float(match[1]) * ANGLES[match[2]]:.7g}", value)
    return {name: value}
