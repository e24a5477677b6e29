"""render.py: what is drawn, which picture counts, what is refused in which words."""

import base64
import io
import subprocess
import sys

import cairosvg
import pytest
from helpers_render import (
    DOT,
    HANG_PYTHON,
    HANG_SVG,
    HOSTILE,
    ROOT,
    draw,
    pillow,
    refuse,
    svg,
    tiny,
    weaken,
)
from PIL import Image

import render
from render import Renderer

TIMEOUT = 1.0


@pytest.fixture(scope="module")
def renderer():
    with Renderer(workers=2, timeout=20) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def brisk():
    """For items that run into the clock."""
    with Renderer(workers=2, timeout=TIMEOUT) as renderer:
        yield renderer


# ---------------------------------------------------------------- SVG


def test_svg_equals_cairosvg_in_process():
    """The slow, obvious twin: CairoSVG's own PNG, decoded. (No text: this process has other fonts.)"""
    chart = svg(
        '<g transform="rotate(9)"><rect x="3" y="4" width="20" height="9" fill="#c33" opacity="0.5"/>'
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
        return draw(
            renderer,
            svg(
                f'<text x="2" y="15" font-size="12" font-family="{family}">{word}</text>',
                'width="80" height="20"',
            ),
            "svg",
        ).tobytes()

    assert text("Arial") == text("No Such Font") == text("sans-serif") == text("DejaVu Sans")
    assert text("serif") != text("sans-serif") != text("monospace")
    assert text("Arial", "abc") != text("Arial", "xyz")  # glyphs, not boxes


def test_svg_whose_font_breaks_does_not_harm_the_next_one(renderer):
    """cairo puts a font that failed into its cache: in the same process, all later text would fail too."""
    breaks, text = (HOSTILE / "svg/font_size_1e6.svg").read_text(), svg("<text y='15'>abc</text>")
    with Renderer(workers=1) as fresh:
        failed, after = fresh.render([(breaks, "svg"), (text, "svg")])
        assert failed.error and after.image.tobytes() == draw(renderer, text, "svg").tobytes()


def test_svg_may_embed_a_small_picture_and_nothing_else(renderer):
    def embed(kind, side=8, mime=None):
        file = io.BytesIO()
        Image.new("RGB", (side, side), (0, 0, 250)).save(file, kind)
        data = base64.b64encode(file.getvalue()).decode()
        return svg(
            f'<image href="data:image/{mime or kind.lower()};base64,{data}" width="10" height="10"/>'
        )

    for kind in ("PNG", "JPEG"):
        assert draw(renderer, embed(kind), "svg").getpixel((5, 5))[2] > 240
    assert "too large" in refuse(renderer, embed("PNG", 1100), "svg")
    assert "outside" in refuse(renderer, embed("GIF"), "svg")
    assert refuse(renderer, embed("GIF", mime="png"), "svg")  # the bytes count, not the name
    assert "outside" in refuse(
        renderer, svg('<image href="/etc/hosts" width="9" height="9"/>' + DOT), "svg"
    )


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
        return draw(renderer, svg(form.format(shape) + '<path d="M0 15H9V19H0"/>'), "svg").tobytes()

    for form in ("{}", '<g id="a">{}</g><use href="#a" x="9" y="9"/>'):
        assert drawn(attribute, form) == drawn(plain, form)


def test_text_laid_out_once_is_drawn_as_when_laid_out_twice(renderer, monkeypatch, tmp_path):
    """The twin is CairoSVG as it is."""
    path = '<path id="p" d="M5 40 Q 50 5 95 40" fill="none"/>'
    texts = [
        '<text x="5" y="20" font-size="14">Total <tspan font-weight="bold" dy="5">42</tspan> kg</text><text y="60">abc</text>',
        '<text x="50" y="20" text-anchor="middle" rotate="9" letter-spacing="2" opacity=".5">abc</text>',
        '<text x="5 25 45" y="20" stroke="red">abc<tspan stroke="none"> def</tspan></text>',
        '<g stroke="blue"><text x="5" y="20">abc</text></g><text x="5" y="50" visibility="hidden">x<tspan>abc</tspan></text>',
        path
        + '<text><textPath href="#p">along the path</textPath></text><text x="5" y="20" fill="none">abc</text>',
        '<clipPath id="c"><text x="5" y="30" font-size="30">abc</text></clipPath><rect width="90" height="50" clip-path="url(#c)"/>',
        '<g style="display:none"><text x="9" y="9">abc</text></g><text x="5" y="40" fill="url(#g)">abc</text>'
        + DOT,
    ]
    items = [(svg(text, 'width="100" height="70"'), "svg") for text in texts]
    once = [rendering.image.tobytes() for rendering in renderer.render(items)]
    weaken(monkeypatch, tmp_path, "render.lay_out_once = lambda surface: None")
    with Renderer(workers=1) as plain:
        assert once == [rendering.image.tobytes() for rendering in plain.render(items)]


def test_svg_stops_of_gradients_too(renderer):
    def drawn(colour, opacity):
        stops = f'<stop stop-color="{colour}" stop-opacity="{opacity}"/><stop offset="1" stop-color="lime"/>'
        return draw(
            renderer,
            svg(
                f'<linearGradient id="a">{stops}</linearGradient><linearGradient id="b" href="#a"/>'
                '<rect width="30" height="9" fill="url(#b)"/>'
            ),
            "svg",
        ).tobytes()

    assert drawn("#00f8", "50%") == drawn("rgba(0,0,255,0.533)", "0.5") != drawn("blue", "0.5")


# ---------------------------------------------------------------- Python


def test_which_picture_counts(renderer):
    new = (
        "from PIL import Image\ndef new(c):\n"
        "  i = Image.new('RGB', (3, 3), c); i.putpixel((0, 0), (1, 2, 3)); return i\n"
    )
    plot = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1), facecolor='#ff0'); plt.plot([1, 2])\n"
    save = "new('red').save('a.png'); new('lime').save('somewhere/else/b.png')\n"
    variables = "image = new('blue')\nimg = new('aqua')\n"
    cases = [
        (new + plot + variables + save, (0, 255, 0)),
        (new + plot + variables, (0, 255, 255)),
        (new + plot + "image = new('blue')", (0, 0, 255)),
        (new + plot + "img = 7", (255, 255, 0)),
        (plot + "plt.savefig('c.png')\nplt.close()", (255, 255, 0)),
        (new + "i = new('red'); i.save('a.png'); i.paste('blue', (0, 0, 3, 3))", (255, 0, 0)),
    ]
    for code, colour in cases:
        image = draw(renderer, code)
        assert image.mode == "RGB" and image.getpixel((image.width - 1, image.height - 1)) == colour
    assert "no picture" in refuse(renderer, "x = 1")


def test_a_saved_file_can_be_opened_again_and_does_not_outlive_its_program(renderer):
    again = pillow((1, 2, 3)) + "img.save('a.png'); del img; img = Image.open('a.png')"
    assert draw(renderer, again).getpixel((4, 4)) == (1, 2, 3)
    assert "FileNotFoundError" in refuse(
        renderer, "from PIL import Image\nimg = Image.open('a.png')"
    )


@pytest.mark.parametrize(
    "look",
    [
        "img = Image.open('a.png')",
        "import matplotlib.pyplot as plt\nimg = (plt.imread('a.png') * 255).astype('uint8')[:, :, :3]",
        "import io\nimg = Image.open(io.BytesIO(open('a.png', 'rb').read()))",
        "import os\nos.rename('a.png', 'b.png')\nimg = Image.open('b.png')",
        "import pathlib\nassert pathlib.Path('a.png').exists()\nimg = Image.open(pathlib.Path('a.png'))",
        "import os, shutil\nassert os.listdir('.') == ['a.png'] and os.path.getsize('a.png') > 70\n"
        "shutil.copyfile('a.png', 'c')\nimg = Image.open('c')",
    ],
)
def test_a_png_that_is_written_late_is_whole_when_looked_at(renderer, look):
    code = (
        "from PIL import Image\nimport PIL.PngImagePlugin\nnew = Image.linear_gradient('L').convert('RGB'); new.save('a.png')\n"
        "new.paste('red', (0, 0, 256, 256))\nImage.Image.save = None\n" + look
    )
    assert (
        draw(
            renderer,
            code
            + "\nassert img.size == (256, 256) if hasattr(img, 'getpixel') else img.shape[0] == 256",
        ).tobytes()
        == draw(renderer, "from PIL import Image\nimg = Image.linear_gradient('L')").tobytes()
    )


@pytest.mark.parametrize(
    "make, colour",
    [
        ("Image.new('RGBA', (4, 4), (255, 0, 0, 0))", "ffffff"),
        ("Image.new('1', (4, 4), 1)", "ffffff"),
        ("Image.new('RGBA', (4, 4), (255, 0, 0, 51))", "ffcccc"),
        ("Image.new('LA', (4, 4), (0, 51))", "cccccc"),
        ("Image.new('RGBa', (4, 4), (51, 0, 0, 51))", "ffcccc"),
        ("numpy.full((4, 4, 3), 7, 'uint8')", "070707"),
        ("Image.new('RGB', (4, 4), 'red').quantize(2)", "ff0000"),
        ("Image.new('CMYK', (4, 4), (0, 255, 255, 0))", "ff0000"),
    ],
)
def test_every_mode_ends_as_rgb_on_white(renderer, make, colour):
    code = f"import numpy\nfrom PIL import Image\nimg = {make}\n"
    assert refuse(renderer, code) == f"blank picture: all of it has the colour #{colour}"


@pytest.mark.parametrize("name", ["a.png", "out/a.png", "./deep/er/a.jpg", "a b.bmp"])
def test_a_picture_is_saved_under_any_relative_name(renderer, name):
    code = pillow((1, 2, 3)) + (
        "import os\nos.makedirs('out', exist_ok=True); os.mkdir('deep')\n"
        f"i, img = img, None\ni.save({name!r}); i.save(os.path.join(os.getcwd(), 'b.png'))"
    )
    assert draw(renderer, code).size == (9, 9)


def test_a_name_outside_is_refused(renderer, tmp_path):
    for name in (f"{tmp_path}/a.png", "../a.png", "/tmp/a.png"):
        assert "PermissionError" in refuse(renderer, pillow((1, 2, 3)) + f"img.save({name!r})")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_text_is_the_same_whatever_font_it_asks_for(renderer):
    def drawn(family):
        return draw(
            renderer,
            "import matplotlib.pyplot as plt\n"
            f"plt.figure(figsize=(2, 1)).text(0.1, 0.4, 'Sales 42', family={family!r})",
        ).tobytes()

    assert drawn("Arial") == drawn("No Such Font") == drawn("DejaVu Sans") != drawn("DejaVu Serif")


def test_python_runs_as_a_main_program_with_seeds(renderer):
    noise = (
        "import random, numpy as np\nfrom PIL import Image\nif __name__ == '__main__':\n"
        "  img = Image.fromarray(np.random.randint(0, 255, (8, 8, 3), 'uint8'))\n"
        "  img.putpixel((0, 0), (random.randrange(256), 0, hash('a') % 256))"
    )
    first, second = draw(renderer, noise), draw(renderer, noise)
    with Renderer(workers=1) as other:
        assert first.tobytes() == second.tobytes() == draw(other, noise).tobytes()
    dataclass = "import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: 'int' = 1\n" + pillow(
        (0, 0, 0)
    )
    draw(renderer, dataclass + "import pickle; pickle.loads(pickle.dumps(A()))\n")


def test_large_pictures_are_scaled_down(renderer):
    code = "from PIL import Image\nimg = Image.linear_gradient('L').resize((4096, 1024)).convert('RGB')"
    assert draw(renderer, code).size == (2048, 512)


def test_errors_name_the_line_and_stay_one_printable_line(renderer):
    assert (
        refuse(renderer, "x = 1\ny = nothing")
        == "NameError: name 'nothing' is not defined (line 2)"
    )
    assert refuse(renderer, "x = (\n") == "SyntaxError: '(' was never closed (line 1)"
    assert refuse(renderer, "raise ValueError('a\\n\\x1b[1mb' + 999 * 'c')").startswith(
        "ValueError: a [1mb"
    )
    assert (
        refuse(renderer, "import sys; sys.exit('bye')")
        == "the program ended itself: sys.exit('bye')"
    )
    assert "signal 11, Segmentation fault" in refuse(renderer, "import ctypes; ctypes.string_at(0)")
    assert "before its picture" in refuse(renderer, "import os; os._exit(0)")


# ---------------------------------------------------------------- words for what a Solver could not read


def test_blank_and_extreme_pictures_have_their_own_words(renderer):
    assert refuse(renderer, svg(""), "svg") == "blank picture: all of it has the colour #ffffff"
    assert "blank" in refuse(renderer, "from PIL import Image\nimg = Image.new('L', (5, 5), 7)")
    assert "extreme shape" in refuse(renderer, svg(DOT, 'width="404" height="4"'), "svg")
    line = svg("<rect width='9' height='4'/>", 'width="400" height="4"')
    assert draw(renderer, line, "svg").size == (400, 4)
    assert "extreme shape" in refuse(renderer, pillow((0, 0, 0)) + "img = img.resize((2, 3000))")


def test_no_code_and_too_much_code(renderer):
    texts = [None, "", " \n", tiny("red") + " " * render.MAX_SOURCE]
    errors = [rendering.error for rendering in renderer.render([(text, "svg") for text in texts])]
    assert errors == ["there is no code"] * 3 + ["the code is longer than 256 kB"]
    assert renderer.render([]) == []
    with pytest.raises(ValueError, match="language"):
        renderer.render([("x", "html")])
    with pytest.raises(ValueError, match="workers"):
        Renderer(workers=0)


# ---------------------------------------------------------------- many items, crashes, kills


def test_order_is_kept_among_bad_items_and_equals_one_by_one(brisk):
    items = []
    for i in range(60):
        items += [(tiny(f"rgb({i},9,9)"), "svg")] + [(pillow((i, 8, 8)), "python")] * (i % 6 == 0)
        items += [("<svg", "svg")] * (i % 7 == 0)
        items += [(HANG_SVG, "svg")] * (i == 20) + [(HANG_PYTHON, "python")] * (i == 30)
        items += [("import ctypes; ctypes.string_at(0)", "python")] * (i % 20 == 0)
    together = brisk.render(items)
    assert [r.error for r in together].count(f"took longer than {TIMEOUT:g} s") == 2
    with Renderer(workers=1, timeout=TIMEOUT) as single:
        for item, one in zip(items, together, strict=True):
            if item[0] not in (HANG_SVG, HANG_PYTHON):
                (alone,) = single.render([item])
                assert alone.error == one.error
                assert one.image is None or alone.image.tobytes() == one.image.tobytes()


def test_an_interrupted_call_leaves_no_answers_for_the_next(monkeypatch):
    with Renderer(workers=1) as renderer:
        draw(renderer, tiny("red"), "svg")
        with monkeypatch.context() as patch:
            patch.setattr("sandbox.Helper.receive", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                renderer.render([(tiny("red"), "svg")] * 5)
        assert draw(renderer, tiny("blue"), "svg").getpixel((5, 5)) == (0, 0, 255)


# ---------------------------------------------------------------- missing parts, the command line


@pytest.mark.parametrize(
    "error, words",
    [
        ("OSError('no library called \"cairo-2\" was found')", "apt install libcairo2"),
        ("ImportError('no cairosvg')", "pip install cairosvg"),
    ],
)
def test_missing_libraries_are_named(monkeypatch, tmp_path, error, words):
    (tmp_path / "cairosvg.py").write_text(f"raise {error}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=words) as caught:
        Renderer(workers=1)
    assert "\n" not in str(caught.value)


def run(*arguments):
    command = [sys.executable, ROOT / "render.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_command_line(tmp_path):
    (tmp_path / "a.svg").write_text(tiny("red"))
    (tmp_path / "b.py").write_text(pillow((1, 2, 3)))
    (tmp_path / "c.py").write_text("x = nothing")
    assert run(tmp_path / "a.svg")[0] == 0
    assert Image.open(tmp_path / "a.png").size == (16, 16)
    assert run(tmp_path / "b.py", "-o", tmp_path / "out.png")[0] == 0
    assert Image.open(tmp_path / "out.png").getpixel((4, 4)) == (1, 2, 3)
    cases = [
        ("c.py", [], "NameError"),
        ("none.svg", [], "No such file"),
        ("a.png", [], "must end in .svg"),
        ("a.svg", ["--timeout", "0"], "above 0"),
        ("a.svg", ["-o", tmp_path / "no/a"], "No such file"),
    ]
    for name, arguments, words in cases:
        arguments = [tmp_path / name, *arguments]
        status, out, err = run(*arguments)
        assert status == 1 and words in err and err.count("\n") == 1 and out == "", err
    assert not (tmp_path / "c.png").exists()
