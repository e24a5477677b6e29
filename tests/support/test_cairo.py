"""cairo.py: SVG as models write it, drawn as it was meant: as a plain SVG of ours that says the
same, or as Chromium draws it (tests/cases/svg; docs/rendering.md says how)."""

import base64
import io

import cairosvg
import numpy as np
import pytest
from helpers_render import DOT, HOSTILE, ROOT, draw, refuse, svg, tiny
from PIL import Image, ImageChops, ImageFilter

from render import Renderer


@pytest.fixture(scope="module")
def renderer():
    with Renderer(workers=2, timeout=20) as renderer:
        yield renderer


def pixels(renderer, body, attributes='width="40" height="20"'):
    return draw(renderer, svg(body, attributes), "svg").tobytes()


def test_svg_equals_cairosvg_in_process():
    """The slow, obvious twin: CairoSVG's own PNG, decoded. (No text: this process has other
    fonts.)"""
    chart = svg(
        '<g transform="rotate(9)">'
        '<rect x="3" y="4" width="20" height="9" fill="#c33" opacity="0.5"/>'
        '<path d="M2 2 L30 15 Q 20 3 38 18" stroke="blue" fill="none"/></g>' + DOT
    )
    codes = [tiny("red"), tiny("#123456", 64), chart]
    with Renderer(workers=1) as renderer:
        for code, rendering in zip(codes, renderer.render([(code, "svg") for code in codes])):
            png = cairosvg.svg2png(code.encode(), background_color="white")
            assert rendering.image.mode == "RGB"
            assert rendering.image.tobytes() == Image.open(io.BytesIO(png)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    "attributes, size",
    [
        ('width="64" height="48"', (64, 48)),
        ('viewBox="0 0 30 20"', (30, 20)),
        ("", (512, 512)),
        ('width="100%" height="9%" viewBox="0 0 30 20"', (30, 20)),
        ('style="width:50%;height:auto"', (512, 512)),
        ('width="60" viewBox="0 0 30 20"', (60, 40)),
        ('width="4000" height="1000"', (1024, 256)),
        ('width="1in" height="48pt"', (96, 64)),
        ('width="1e6" height="1e6" viewBox="0 0 20 20"', (1024, 1024)),
        ('width="40" height="20" viewBox="0 0 400 200px"', (40, 20)),
    ],
)
def test_svg_sizes(renderer, attributes, size):
    image = draw(renderer, svg("<circle cx='50%' cy='50%' r='20%'/>", attributes), "svg")
    assert image.size == size
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((size[0] // 2, size[1] // 2)) == (0, 0, 0)


def test_a_huge_picture_costs_little(renderer):
    """At its own size each of these groups would take 3.6 GB."""
    body = "<g opacity='.9'>" * 20 + DOT + DOT + "</g>" * 20
    assert draw(renderer, svg(body, 'width="30000" height="30000"'), "svg").size == (1024, 1024)
    assert "extreme shape" in refuse(renderer, svg(DOT, 'width="1e8" height="1"'), "svg")


def test_svg_text_is_the_same_whatever_font_it_asks_for(renderer):
    def text(family, word="Total 42"):
        body = f'<text x="2" y="15" font-size="12" font-family="{family}">{word}</text>'
        return pixels(renderer, body, 'width="80" height="20"')

    assert text("Arial") == text("No Such Font") == text("sans-serif") == text("DejaVu Sans")
    assert text("serif") != text("sans-serif") != text("monospace")
    assert text("Arial", "abc") != text("Arial", "xyz")  # glyphs, not boxes


def test_svg_whose_font_breaks_does_not_harm_the_next_one(renderer):
    """cairo caches a font that failed: in the same process, all later text would fail too."""
    breaks, text = (HOSTILE / "svg/font_size_1e6.svg").read_text(), svg("<text y='15'>abc</text>")
    with Renderer(workers=1) as fresh:
        failed, after = fresh.render([(breaks, "svg"), (text, "svg")])
        assert failed.error and after.image.tobytes() == draw(renderer, text, "svg").tobytes()


def test_svg_may_embed_a_small_picture_and_nothing_else(renderer):
    def embed(kind, side=8, mime=None):
        file = io.BytesIO()
        Image.new("RGB", (side, side), (0, 0, 250)).save(file, kind)
        data = base64.b64encode(file.getvalue()).decode()
        link = f"data:image/{mime or kind.lower()};base64,{data}"
        return svg(f'<image href="{link}" width="10" height="10"/>')

    for kind in ("PNG", "JPEG"):
        assert draw(renderer, embed(kind), "svg").getpixel((5, 5))[2] > 240
    assert "too large" in refuse(renderer, embed("PNG", 1100), "svg")
    assert "outside" in refuse(renderer, embed("GIF"), "svg")
    assert refuse(renderer, embed("GIF", mime="png"), "svg")  # the bytes count, not the name
    file = svg('<image href="/etc/hosts" width="9" height="9"/>' + DOT)
    assert "outside" in refuse(renderer, file, "svg")


def test_svg_given_as_text_ignores_its_declared_encoding(renderer):
    word = svg("<text y='15'>é</text>")
    declared = '\ufeff\n<?xml version="1.0" encoding="ISO-8859-1"?>\n' + word
    assert draw(renderer, declared, "svg").tobytes() == draw(renderer, word, "svg").tobytes()


# ---------------------------------------------------------------- as models write, and plainly
FADE = '<linearGradient id="{}"><stop stop-color="red"/><stop offset="1" stop-color="blue"/>'
FADE += "</linearGradient>"


def box(attributes=""):
    place = "" if "x=" in attributes else 'x="5"'
    return f'<rect {place} y="5" width="30" height="20" {attributes}/>'


def group(attributes, body):
    return f"<g {attributes}>{body}</g>"


def line(attributes=""):
    return f'<path d="M5 20 H60" stroke="black" stroke-width="4" {attributes}/>'


TWINS = {
    "ids with capitals, in a style sheet": (
        "<style>.b{fill:url('#barFill')}</style>" + FADE.format("barFill") + box('class="b"'),
        FADE.format("g") + box('fill="url(#g)"'),
    ),
    "markers that are not there": (
        '<marker id="tip"><path d="M0 0h3v3z"/></marker>'
        + line('marker-end="url(#Tip)" marker-start="tip"'),
        line(),
    ),
    "clip paths and masks that are not there": (
        box('clip-path="url(#a)" mask="url(#b)" filter="url(#c)"'),
        box(),
    ),
    "colours and shares": (
        box('fill="#ff0000ff" opacity="50%"')
        + box('x="50" fill="rgb(0 0 255 / 50%)" style="stroke:hsl(720 50% 150%);opacity: 75%"'),
        box('fill="red" opacity="0.5"')
        + box('x="50" fill="blue" fill-opacity="0.5" stroke="white" opacity="0.75"'),
    ),
    "stops of gradients": (
        '<linearGradient id="a"><stop stop-color="#00f8" stop-opacity="50%"/><stop offset="100%" '
        'style="stop-color:lime"/></linearGradient><linearGradient id="b" href="#a"/>'
        + box('fill="url(#b)"'),
        '<linearGradient id="a"><stop stop-color="blue" stop-opacity="0.267"/><stop offset="1" '
        'stop-color="lime"/></linearGradient>' + box('fill="url(#a)"'),
    ),
    "no fill, no stroke": (
        group('fill="red" stroke="lime"', box("fill='' stroke=' '")),
        box('fill="red" stroke="lime"'),
    ),
    "colours that are none": (
        group('fill="red"', box("fill='reddish' stroke='#12345'")),
        box('fill="red"'),
    ),
    "initial": (group('fill="red"', box("fill='initial'")), box()),
    "a fallback": (box('fill="url(#nope) rgb(255, 0, 0)"'), box('fill="red"')),
    "no fallback": (box('fill="url(#nope)" stroke="red"'), box('fill="none" stroke="red"')),
    "currentColor": (
        group('style="color:teal"', box("fill='currentcolor' stroke='CurrentColor'")),
        box('fill="teal" stroke="teal"'),
    ),
    "style sheets": (
        "<style><![CDATA[ /* x */ .a:hover{fill:red} g>.a{fill:blue!important} "
        ".a::before{x:y} @media print{.a{fill:red}} ..{} ]]></style>"
        + group("", box('class="a" style="fill:lime"')),
        box('fill="blue"'),
    ),
    "variables in a circle": (
        "<style>svg{--a:var(--b);--b:var(--a)}rect{fill:var(--a);stroke:var(--c,red)}</style>"
        + group('fill="lime"', box()),
        box('fill="lime" stroke="red"'),
    ),
    "geometry in a style sheet": (
        "<style>rect{x:5px;y:5px;width:30px;height:20px}</style><rect/>",
        box(),
    ),
    "lengths": (
        '<g font-size="10"><rect x=".5em" y="5px" width="3em" height="20.0" rx="calc(1)"/></g>',
        box(),
    ),
    "numbers that are none": (
        '<rect x="NaN" y="5" width="35" height="20" stroke-width="" opacity="null"/>'
        '<rect width="undefined" height="9"/><circle r="-5"/><rect width="9" height="-9"/>',
        '<rect y="5" width="35" height="20"/>',
    ),
    "paths up to the first error": (
        '<path d="M5 5H35V25 L 7"/><path d="L9 9"/><path d="M50 5a9 9 0 11.1 0z M70 NaN"/>',
        '<path d="M5 5 35 5 35 25"/><path d="M50 5 a 9 9 0 1 1 0.1 0 z"/>',
    ),
    "points": (
        '<polygon points="5,5 35,5, 35 25 9"/><polyline points="1,1 2,NaN" stroke="red"/>',
        '<polygon points="5 5 35 5 35 25"/>',
    ),
    "transforms of style sheets": (
        box('style="transform: translateX(32px) rotate(.05turn) scale(1.1)"'),
        box('transform="translate(32 0) rotate(18) scale(1.1)"'),
    ),
    "transforms that are none": (
        box('transform="translate(9px, 3px)"') + box('style="transform:rotate(9)"'),
        box(),
    ),
    "transform-origin": (
        box('style="transform:rotate(30deg);transform-origin:20px 15px"'),
        box('transform="rotate(30 20 15)"'),
    ),
    "transform-origin in a box": (
        box('style="transform:rotate(30deg);transform-box:fill-box;transform-origin:center"'),
        box('transform="rotate(30 20 15)"'),
    ),
    "transform-origin in the view": (
        box('style="transform:rotate(30deg);transform-origin:center"'),
        box('transform="rotate(30 50 35)"'),
    ),
    "fill and stroke fade together": (
        box('stroke="red" stroke-width="8" opacity=".5"'),
        group('opacity=".5"', box("stroke='red' stroke-width='8'")),
    ),
    "a faded use": (
        "<defs>" + box('id="a"') + '</defs><use href="#a" x="9" opacity=".5"/>',
        box('transform="translate(9 0)" fill-opacity=".5"'),
    ),
    "use before its definition": (
        '<use href="#a" fill="red"/><defs>' + box('id="a"') + "</defs>",
        box('fill="red"'),
    ),
    "no dashes in a dashed group": (
        '<g stroke-dasharray="3" stroke-linecap="round" fill="none">'
        + line('stroke-dasharray="none" stroke-linecap="butt"')
        + "</g>",
        line(),
    ),
    "a mask with a hole": (
        '<mask id="m"><rect width="99" height="99" fill="#fff"/><rect x="15" y="15" width="20" '
        'height="20"/></mask><rect x="5" y="5" width="40" height="40" mask="url(#m)"/>',
        '<path fill-rule="evenodd" d="M5 5H45V45H5zM15 15H35V35H15z"/>',
    ),
    "patterns": (
        '<pattern id="dP" width="20" height="50" patternUnits="userSpaceOnUse"><rect width="10" '
        'height="50" fill="red"/></pattern><rect width="40" height="50" fill="url(#dP)"/>'
        '<rect x="40" width="40" height="50" fill="url(#dP)" opacity=".5"/>',
        '<path d="M0 0h10v50h-10zM20 0h10v50h-10z" fill="red"/>'
        '<path d="M40 0h10v50h-10zM60 0h10v50h-10z" fill="red" fill-opacity=".5"/>',
    ),
    "a pattern in parts of a box": (
        '<pattern id="p" width=".5" height="1"><rect width="10" height="50" fill="red"/></pattern>'
        '<rect x="10" width="40" height="50" fill="url(#p)"/>',
        '<path d="M10 0h10v50h-10zM30 0h10v50h-10z" fill="red"/>',
    ),
    "markers are not scaled without a viewBox": (
        '<marker id="m" markerWidth="9" markerHeight="9" refY="2" orient="auto">'
        '<path d="M0 0H4V4H0z" fill="red"/></marker>'
        '<path d="M5 20H40V50" fill="none" stroke="black" marker-end="url(#m)"/>',
        '<path d="M5 20H40V50" fill="none" stroke="black"/><path d="M38 50h4v4h-4z" fill="red"/>',
    ),
    "markers at the ends of curves": (
        '<marker id="m" viewBox="0 0 4 4" refY="2" markerWidth="4" markerHeight="4" '
        'orient="auto-start-reverse"><path d="M0 0H4V4H0z" fill="green"/></marker>'
        '<path d="M20 40C20 10 60 10 60 40" fill="none" stroke="green" stroke-width="2" '
        'marker-end="url(#m)" marker-start="url(#m)"/>',
        '<path d="M20 40C20 10 60 10 60 40" fill="none" stroke="green" stroke-width="2"/>'
        '<path d="M16 40h8v8h-8zM56 40h8v8h-8z" fill="green"/>',
    ),
    "nested documents": (
        '<svg x="5" y="5" width="30" height="20" viewBox="0 0 3 2"><rect width="100%" height="9"/>'
        "</svg>",
        box(),
    ),
    "links": (f"<a href='https://x.org'>{box()}</a>", box()),
    "what is not drawn": (
        box() + "<title>a</title><desc>b</desc><foo>" + box('fill="red"') + "</foo><Rect/>"
        "<script>1</script><foreignObject width='50' height='50'><p>c</p></foreignObject>",
        box(),
    ),
}


@pytest.mark.parametrize("kind", TWINS)
def test_shapes_as_models_write_them(renderer, kind):
    written, plain = (pixels(renderer, body, SIZE) for body in TWINS[kind])
    assert near(written, plain)


SIZE = 'width="100" height="70"'


def near(a, b):
    """Equal but for a few shades at edges."""
    images = [Image.frombytes("RGB", (100, 70), rows) for rows in (a, b)]
    return max(band[1] for band in ImageChops.difference(*images).getextrema()) <= 40


TEXT = '<text x="{}" y="40" font-size="20" {}>{}</text>'
TEXTS = {
    "sizes": [
        '<g font-size="10"><text x="5" y="40" font-size="2em">abc</text></g>',
        '<g font-size="10"><text x="5" y="40"><tspan font-size="200%">abc</tspan></text></g>',
        '<text x="5" y="40" font-size="1.25rem">abc</text>',
        '<text x="5" y="40" font-size="15pt">abc</text>',
        '<text x="5" y="40" style="font: 20px/1 Arial, sans-serif">abc</text>',
        '<g font-size="16.6667px"><text x="5" y="40" font-size="larger">abc</text></g>',
        '<g font-size="20"><text x="5" y="40" font-size="huge">abc</text></g>',
    ],
    "places": [
        TEXT.format(5, "", "a<tspan>b</tspan>c"),
        '<text x="5" y="30" dy="10" font-size="20">a<tspan>bc</tspan></text>',
        '<text x="5" y="30" dy="-10" font-size="20"><tspan dy="10">abc</tspan></text>',
        '<text font-size="20"><tspan x="5" y="40">abc</tspan></text>',
        '<text y="40" dx="5" font-size="20"><tspan/>abc</text>',
        '<text y="40" dx=".25em" font-size="20">\n  <tspan>abc</tspan>\n</text>',
        '<text x="9" y="9" font-size="20"><tspan x="5" y="40">a<tspan>bc</tspan></tspan></text>',
        '<a><text x="5" y="40" font-size="20">a<a href="#x">b</a>c<title>no</title></text></a>',
        '<text x="5" y="40" font-size="20">abc<tspan display="none">def</tspan></text>',
        '<text x="5" y="40" font-size="20">abc<tspan visibility="hidden">def</tspan></text>',
        '<text x="5" y="40" font-size="20">abc<textPath href="#no">def</textPath></text>',
        '<text x="5" y="40" font-size="20" style="text-transform:lowercase">ABC</text>',
        '<text x="5" y="40" font-size="20" font-family="Futura, Arial">abc</text>',
        '<text x="5" y="40" font-size="20" letter-spacing="normal" text-anchor="left">abc</text>',
    ],
    "baselines": [
        '<text x="5" y="40" font-size="20">abc</text>',
        '<text x="5" y="33" font-size="20" dominant-baseline="central">abc</text>',
        '<text x="5" y="21" font-size="20" dominant-baseline="text-before-edge">abc</text>',
        '<text x="5" y="45" font-size="20" dominant-baseline="text-after-edge">abc</text>',
        '<g dominant-baseline="central"><text x="5" y="33" font-size="20">abc</text></g>',
        '<text x="5" y="33" font-size="20"><tspan alignment-baseline="central">abc</tspan></text>',
        '<text x="5" y="40" font-size="20" dominant-baseline="text-top">abc</text>',
        '<text x="5" y="52" font-size="20"><tspan baseline-shift="super">abc</tspan></text>',
        '<text x="5" y="28" font-size="20"><tspan style="baseline-shift:sub">abc</tspan></text>',
        '<text x="5" y="50" font-size="20"><tspan baseline-shift="50%">abc</tspan></text>',
        '<text x="5" y="50" font-size="20"><tspan baseline-shift=".5em">abc</tspan></text>',
    ],
    "paint": [
        TEXT.format(5, 'stroke="red" stroke-width="6" paint-order="stroke"', "abc"),
        TEXT.format(5, 'stroke="red" stroke-width="6" fill="none"', "abc")
        + TEXT.format(5, "", "abc"),
    ],
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_as_models_write_it(renderer, kind):
    first, *others = (pixels(renderer, body, SIZE) for body in TEXTS[kind])
    for number, other in enumerate(others, 1):
        assert near(first, other), TEXTS[kind][number]


def ink(renderer, body):
    """Where a picture is not white: left, top, right, bottom."""
    picture = draw(renderer, svg(body, SIZE), "svg")
    return ImageChops.invert(picture).getbbox()


@pytest.mark.parametrize("anchor, x", [("start", 5), ("middle", 50), ("end", 95)])
def test_text_anchor_moves_the_whole_chunk(renderer, anchor, x):
    anchor = f'text-anchor="{anchor}"'
    whole = ink(renderer, TEXT.format(x, anchor, "a: 42 kg"))
    parts = 'a: <tspan fill="#222">4<tspan>2</tspan></tspan> kg'
    assert ink(renderer, TEXT.format(x, anchor, parts)) == whole
    lines = f'<tspan x="{x}">a: 42 kg</tspan><tspan x="{x}" dy="9">a: 42 kg</tspan>'
    assert ink(renderer, TEXT.format(x, anchor, lines))[::2] == whole[::2]


def test_spaces_between_letters(renderer):
    def width(attribute, text="abcd"):
        left, _, right, _ = ink(renderer, TEXT.format(5, attribute, text))
        return right - left

    assert width('letter-spacing="0.2em"') == width('letter-spacing="4"') == width("") + 12
    assert width('word-spacing="10"', "ab cd") == width("", "ab cd") + 10
    assert width("", "ab \n  cd") == width("", "ab cd")
    assert width('xml:space="preserve"', "ab   cd") > width("", "ab   cd")


def test_text_on_a_path(renderer):
    path = '<path id="Way" d="M10 {0}H90" fill="none"/>'
    words = '<text font-size="20" {}><textPath href="#Way" {}>abc</textPath></text>'
    plain = ink(renderer, TEXT.format(10, "", "abc"))
    assert ink(renderer, path.format(40) + words.format("", "")) == plain
    centre = ink(renderer, TEXT.format(50, 'text-anchor="middle"', "abc"))
    for way in (
        ('text-anchor="middle"', 'startOffset="50%"'),
        ("", 'text-anchor="middle" startOffset="40"'),
    ):
        assert ink(renderer, path.format(40) + words.format(*way)) == centre
    beyond = ink(renderer, path.format(40) + words.format("", 'startOffset="60"'))
    assert beyond[0] >= 70 and beyond[2] < 98  # letters that are beyond its end are not drawn


def test_the_paper_of_the_root(renderer):
    for style in ("background:#123456", "background-color: #123456 ; x: y"):
        image = draw(renderer, svg(DOT, f'{SIZE} style="{style}"'), "svg")
        assert image.getpixel((90, 60)) == (0x12, 0x34, 0x56)
    sheet = "<style>svg{background:teal}</style>"
    assert draw(renderer, svg(sheet + DOT, SIZE), "svg").getpixel((90, 60)) == (0, 128, 128)


# ---------------------------------------------------------------- as Chromium draws them
BROWSER = sorted((ROOT / "tests/cases/svg").glob("*.svg"))


@pytest.mark.parametrize("file", BROWSER, ids=[file.stem for file in BROWSER])
def test_pictures_are_as_a_browser_draws_them(renderer, file):
    """No block of 16 x 16 pixels has 40 that differ clearly, on whatever colour they stand. Both
    pictures are blurred, so that half a pixel does not count."""
    ours = draw(renderer, file.read_text("utf-8"), "svg")
    theirs = Image.open(file.with_suffix(".png"))
    theirs.thumbnail((1024, 1024), Image.Resampling.LANCZOS)
    assert ours.size == theirs.size
    blurred = [picture.filter(ImageFilter.GaussianBlur(1.5)) for picture in (ours, theirs)]
    differ = np.array(ImageChops.difference(*blurred)).max(-1) > 40
    differ = np.pad(differ, [(0, -side % 16) for side in differ.shape])
    height, width = differ.shape
    blocks = differ.reshape(height // 16, 16, width // 16, 16).sum((1, 3))
    assert blocks.max() < 40, np.argwhere(blocks >= 40)
