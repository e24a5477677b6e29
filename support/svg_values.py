"""Values in an SVG as models write them -> plain ones, as CairoSVG reads them.

Lengths become pixels, colours `rgb()` or `rgba()`, transforms and paths plain numbers; what
browsers do not understand is left out, as they do. `style` is what an element has from its parents
and itself: "font" (its size in pixels), "root" (that of the root), "box" (width and height of the
viewBox) and all properties.
"""

import functools
import math
import re

import tinycss2.color4

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
LENGTH = re.compile(rf"({NUMBER})([a-zA-Z]*|%)")
UNITS = {"px": 1, "pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96}
SIZES = {"xx-small": 9, "x-small": 10, "small": 13, "medium": 16, "large": 18, "x-large": 24}
SIZES |= {"xx-large": 32, "xxx-large": 48}  # pixels, of a font
ANGLES = {"": 1, "deg": 1, "rad": 180 / math.pi, "turn": 360, "grad": 0.9}  # degrees
PATH = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7, "z": 0}
COMMAND = re.compile(rf"[\s,]*([mlhvcsqtazMLHVCSQTAZ])((?:[\s,]*{NUMBER})*)")
# The two flags of an arc may stick to what follows.
ARC = re.compile(rf"({NUMBER})[\s,]*" * 3 + r"([01])[\s,]*" * 2 + rf"({NUMBER})[\s,]*" * 2)
STEPS = {"translate": (1, 2), "scale": (1, 2), "rotate": (1, 3), "matrix": (6,), "skewX": (1,)}
STEPS |= {"skewY": (1,)}  # how many numbers a part of a transform has
STEP = re.compile(r"[\s,]*([a-zA-Z]+)\s*\(([^()]*)\)")
BARE = {"scale", "scaleX", "scaleY", "matrix"}  # whose numbers have no unit in CSS
KEYWORDS = """text-anchor display visibility font-style font-weight stroke-linecap stroke-linejoin
    dominant-baseline alignment-baseline fill-rule clip-rule paint-order text-decoration""".split()
COLOURS = "fill stroke stop-color color".split()
OPACITIES = "opacity fill-opacity stroke-opacity stop-opacity".split()
LENGTHS = """x y dx dy cx cy r rx ry x1 y1 x2 y2 fx fy width height stroke-width stroke-dasharray
    stroke-dashoffset letter-spacing word-spacing textLength startOffset baseline-shift markerWidth
    markerHeight refX refY offset""".split()
NO_LENGTHS = {"none", "sub", "super", "baseline"}
POSITIVE = set("width height r rx ry stroke-width stroke-dasharray textLength".split())
REFERENCES = {"marker-start": "marker", "marker-mid": "marker", "marker-end": "marker"}
REFERENCES |= {"clip-path": "clipPath", "mask": "mask"}
ANCHORS = {"start", "middle", "end"}


def plain_values(own, style, names, css):
    """Rewrite an element's own properties, in place. names: {id: tag} of the document; css: the
    properties that come from style sheets."""
    plain = {}
    for name in own.keys() & KEYWORDS:
        plain[name] = own[name].lower().replace("collapse", "hidden")
    if plain.get("text-anchor", "start") not in ANCHORS:
        plain["text-anchor"] = None
    if "text-transform" in own and "text-transform" not in css:
        plain["text-transform"] = None
    for name in own.keys() & COLOURS:
        plain[name] = paint(own[name], names)
    for name in own.keys() & OPACITIES:
        plain[name] = plain_share(own[name])
    for name in own.keys() & LENGTHS:
        if own[name] == "normal":
            plain[name] = "0"
        elif own[name] not in NO_LENGTHS:
            plain[name] = plain_length(own[name], style)
            if name in POSITIVE and "-" in (plain[name] or ""):
                plain[name] = None
    for name in own.keys() & REFERENCES:
        target, _ = reference(own[name])
        found = names.get(target) == REFERENCES[name]
        plain[name] = f"url(#{target})" if found else "none"
    if "points" in own:
        plain["points"] = plain_points(own["points"])
    if "d" in own:
        plain["d"] = plain_path(own["d"])
    if not own.get("orient", "auto").startswith("auto"):
        angle = re.match(NUMBER, own["orient"])
        plain["orient"] = angle[0] if angle else "0"
    if "transform" in own:
        plain["transform"] = plain_transform(own["transform"], style, "transform" in css)
    if "transform-origin" in own or "transform-box" in own:
        plain["transform-origin"] = plain_origin(own, style)
    own.update(plain)
    own.pop("filter", None)  # CairoSVG would shift or flood what it cannot blur
    for name in plain:
        if plain[name] is None:
            del own[name]


def plain_share(text):
    """An opacity -> from 0 to 1; what is none counts as 1."""
    match = re.fullmatch(rf"({NUMBER})(%?)", text)
    if not match:
        return "1"
    share = float(match[1])
    if match[2]:
        share /= 100
    return f"{min(max(share, 0), 1):.4g}"


def plain_points(text):
    """Pairs of numbers; a last one without its pair is left out, after an error all are."""
    numbers = re.findall(NUMBER, text)
    if re.sub(NUMBER, "", text).strip(" ,\t\r\n"):
        return ""
    return " ".join(numbers[: len(numbers) // 2 * 2])


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
    if rest.lower() in ("none", "context-fill", "context-stroke"):
        return rest.lower()
    if rest.lower() == "currentcolor":
        return "currentColor"
    return plain_colour(rest) or ("none" if "url(" in text else None)


@functools.lru_cache(1000)
def plain_colour(text):
    """None: it is no colour.

    >>> plain_colour("hsl(120deg 100% 25% / 50%)"), plain_colour("rgb(9 8 7 / .5)")
    ('rgba(0,128,0,0.5)', 'rgba(9,8,7,0.5)')
    >>> plain_colour("#ff000080"), plain_colour("Red"), plain_colour("reddish")
    ('rgba(255,0,0,0.502)', 'rgb(255,0,0)', None)
    """
    colour = tinycss2.color4.parse_color(text)
    # The parser says None of what is no colour, and keeps the word currentcolor.
    if colour is None or isinstance(colour, str):
        return None
    try:
        srgb = colour.to("srgb")
    except NotImplementedError:
        # A space that the parser reads and cannot convert, as docs/rendering.md says.
        return None
    rgb = [round(255 * min(max(c, 0), 1)) for c in srgb.coordinates]
    numbers = ",".join(map(str, rgb))
    return f"rgb({numbers})" if colour.alpha == 1 else f"rgba({numbers},{colour.alpha:.3g})"


def plain_length(text, style):
    """One or more lengths -> pixels; percentages stay. None: one of them is no length.

    >>> plain_length("1.5em, 3pt 20%", {"font": 10})
    '15 4 20%'
    """
    lengths = []
    for length in text.replace(",", " ").split():
        match = LENGTH.fullmatch(length)
        if not match:
            return None
        number, unit, font = float(match[1]), match[2].lower(), style["font"]
        if not unit or unit == "%":
            lengths.append(length)
            continue
        if unit in UNITS:
            scale = UNITS[unit]
        elif unit in ("em", "ex", "ch"):  # the font's height, the height of x, the width of 0
            scale = font * {"em": 1, "ex": 0.547, "ch": 0.636}[unit]
        elif unit in ("rem", "vw", "vh"):
            width, height = style["box"]
            scale = {"rem": style["root"], "vw": width / 100, "vh": height / 100}[unit]
        else:
            return None
        lengths.append(f"{number * scale:.7g}")
    return " ".join(lengths) or None


def font_size(text, style):
    """-> pixels. What is no size counts as missing."""
    parent, text = style["font"], text.lower()
    relative = {"larger": 1.2 * parent, "smaller": parent / 1.2}
    if text in SIZES or text in relative:
        return float((SIZES | relative)[text])
    length = plain_length(text.replace("%", "e-2em"), style)
    return float(length) if length and " " not in length and length[0] != "-" else parent


def plain_path(text):
    """Path data up to the first error, as browsers draw it, its numbers apart.

    >>> plain_path("M1-2 3,4a5 5 0 0110 9 L 7"), plain_path("L 1 2")
    ('M 1 -2 3 4 a 5 5 0 0 1 10 9', '')
    """
    path, end = [], 0
    while True:
        command = COMMAND.match(text, end)
        if not command or not path and command[1] not in "mM":
            break
        letter, numbers = command[1], re.findall(NUMBER, command[2])
        count = PATH[letter.lower()]
        if count == 7:
            numbers = [number for arc in ARC.findall(command[2]) for number in arc]
        whole = len(numbers) // count * count if count else 0
        if whole or not count:
            path += [letter, *numbers[:whole]]
        # A number too few or too many is the last that is read.
        if whole != len(numbers) or count and not whole:
            break
        end = command.end()
    return " ".join(path)


def plain_transform(text, style, css):
    """'' if browsers do not apply it. In CSS lengths and angles have units; in an attribute that is
    an error.

    >>> plain_transform("rotate(.25turn) translateX(2em)", {"font": 10}, css=True)
    'rotate(90) translate(20 0)'
    """
    steps, end = [], 0
    value = rf"({NUMBER})([a-zA-Z%]*)" if css else rf"({NUMBER})()"
    while step := STEP.match(text, end):
        name, end, numbers = step[1], step.end(), []
        if re.sub(value, "", step[2]).strip(" ,\t\r\n"):
            return ""
        for axis, (number, unit) in enumerate(re.findall(value, step[2])):
            bare = not css or name in BARE or not float(number)
            if unit == "%":
                vertical = axis == 1 or name[-1] in "yY"
                numbers.append(float(number) / 100 * style["box"][int(vertical)])
            elif unit in ANGLES and (unit or bare):
                numbers.append(float(number) * ANGLES[unit])
            else:
                length = plain_length(number + unit, style) if unit else None
                numbers.append(float(length or "nan"))
        if css:
            name, numbers = plain_step(name.lower(), numbers)
        if len(numbers) not in STEPS.get(name, ()) or not all(map(math.isfinite, numbers)):
            return ""
        numbers = " ".join(f"{number:.7g}" for number in numbers)
        steps.append(f"{name}({numbers})")
    return "" if text[end:].strip() else " ".join(steps)


def plain_step(name, numbers):
    """A function that only CSS has -> its equal in SVG."""
    if name in ("translatex", "translatey", "scalex", "scaley") and len(numbers) == 1:
        rest = 1 if name.startswith("scale") else 0
        return name[:-1], [numbers[0], rest] if name[-1] == "x" else [rest, numbers[0]]
    names = {"rotatez": "rotate", "skewx": "skewX", "skewy": "skewY", "skew": "skewX"}
    return names.get(name, name), numbers


def plain_origin(own, style):
    """transform-origin -> "x y" in pixels; "box x y" if it is for the box of what is drawn."""
    words = own.get("transform-origin", "0 0").lower().split()[:2]
    if len(words) == 1:
        words.append("center")
    if words[0] in ("top", "bottom") or words[1] in ("left", "right"):
        words.reverse()
    sides = {"left": "0", "top": "0", "center": "50%", "right": "100%", "bottom": "100%"}
    lengths = [plain_length(sides.get(word, word), style) or "0" for word in words]
    if own.pop("transform-box", "") == "fill-box":
        return "box " + " ".join(lengths)
    for axis, length in enumerate(lengths):
        if length.endswith("%"):
            lengths[axis] = f"{float(length[:-1]) / 100 * style['box'][axis]:.7g}"
    return " ".join(lengths)
