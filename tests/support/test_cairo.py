"""cairo.py: SVG as models write it, drawn as it was meant. The twin is a plain SVG of ours."""

import base64
import io

import cairosvg
import pytest
from helpers_render import DOT, HOSTILE, draw, refuse, svg, tiny, weaken
from PIL import Image

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
        ('width="20" height="20" viewBox="0 0 nan 3"', (20, 20)),
    ],
)
def test_svg_sizes(renderer, attributes, size):
    image = draw(renderer, svg("<circle cx='50%' cy='50%' r='20%'/>", attributes), "svg")
    assert image.size == size
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((size[0] // 2, size[1] // 2)) == (0, 0, 0)


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


@pytest.mark.parametrize(
    "attribute, plain",
    [
        ('fill="hsl(120, 100%, 25%)"', 'fill="#008000"'),
        ('fill="hsla(240deg 100% 50% / 1)"', 'fill="blue"'),
        ('fill="#ff0000ff"', 'fill="red"'),
        ('fill="#f00f"', 'fill="red"'),
        ('fill="rgb(255 0 0)"', 'fill="red"'),
        ('fill="rgb(0 0 255 / 50%)"', 'fill="blue" fill-opacity="0.5"'),
        ('style="fill:#0000ff80"', 'fill="blue" fill-opacity=".502"'),
        ('opacity="50%"', 'opacity="0.5"'),
        ('style="opacity: 25%"', 'opacity="0.25"'),
        ('stroke="red" stroke-opacity="30%"', 'stroke="red" stroke-opacity="0.3"'),
        ('fill="rgba(100%, 0%, 0%, 100%)"', 'fill="red"'),
        ('fill="hsl(720 50% 150%)"', 'fill="white" stroke="none"'),
        ('style="transform: rotate(10deg)"', 'transform="rotate(10)"'),
        ('fill="no such colour"', ""),
    ],
)
def test_svg_as_models_write_it(renderer, attribute, plain):
    """By attribute, style or class, and also when drawn through <use>: as its plain twin."""

    def drawn(attribute, form):
        shape = f'<rect x="5" y="2" width="20" height="9" {attribute}/>'
        return pixels(renderer, form.format(shape) + '<path d="M0 15H9V19H0"/>')

    for form in ("{}", '<g id="a">{}</g><use href="#a" x="9" y="9"/>'):
        assert drawn(attribute, form) == drawn(plain, form)


def test_text_laid_out_once_is_drawn_as_when_laid_out_twice(renderer, monkeypatch, tmp_path):
    """The twin is CairoSVG as it is."""
    path = '<path id="p" d="M5 40 Q 50 5 95 40" fill="none"/>'
    texts = [
        '<text x="5" y="20" font-size="14">Total <tspan font-weight="bold" dy="5">42</tspan> kg'
        '</text><text y="60">abc</text>',
        '<text x="50" y="20" text-anchor="middle" rotate="9" letter-spacing="2" opacity=".5">abc'
        "</text>",
        '<text x="5 25 45" y="20" stroke="red">abc<tspan stroke="none"> def</tspan></text>',
        '<g stroke="blue"><text x="5" y="20">abc</text></g>'
        '<text x="5" y="50" visibility="hidden">x<tspan>abc</tspan></text>',
        f'{path}<text><textPath href="#p">along the path</textPath></text>'
        '<text x="5" y="20" fill="none">abc</text>',
        '<clipPath id="c"><text x="5" y="30" font-size="30">abc</text></clipPath>'
        '<rect width="90" height="50" clip-path="url(#c)"/>',
        '<g style="display:none"><text x="9" y="9">abc</text></g>'
        f'<text x="5" y="40" fill="url(#g)">abc</text>{DOT}',
    ]
    items = [(svg(text, 'width="100" height="70"'), "svg") for text in texts]
    once = [rendering.image.tobytes() for rendering in renderer.render(items)]
    weaken(monkeypatch, tmp_path, "cairo.lay_out_once = lambda surface: None")
    with Renderer(workers=1) as plain:
        assert once == [rendering.image.tobytes() for rendering in plain.render(items)]


def test_svg_stops_of_gradients_too(renderer):
    def drawn(colour, opacity):
        stops = f'<stop stop-color="{colour}" stop-opacity="{opacity}"/>'
        stops += '<stop offset="1" stop-color="lime"/>'
        gradients = f'<linearGradient id="a">{stops}</linearGradient>'
        gradients += '<linearGradient id="b" href="#a"/>'
        return pixels(renderer, gradients + '<rect width="30" height="9" fill="url(#b)"/>')

    assert drawn("#00f8", "50%") == drawn("rgba(0,0,255,0.533)", "0.5") != drawn("blue", "0.5")
