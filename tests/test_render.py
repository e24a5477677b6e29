"""render.py: what is drawn, which picture counts, what is refused in which words."""

import os
import subprocess
import sys

import pytest
from helpers_render import DOT, HANG_PYTHON, HANG_SVG, ROOT, draw, pillow, refuse, svg, tiny
from PIL import Image

import render
from render import Renderer

TIMEOUT = 3.0


@pytest.fixture(scope="module")
def renderer():
    with Renderer(workers=2, timeout=20) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def brisk():
    """For items that run into the clock; the others must not, however busy the machine."""
    with Renderer(workers=2, timeout=TIMEOUT) as renderer:
        yield renderer


# ---------------------------------------------------------------- Python


def test_which_picture_counts(renderer):
    new = (
        "from PIL import Image\ndef new(c):\n"
        "  i = Image.new('RGB', (3, 3), c); i.putpixel((0, 0), (1, 2, 3)); return i\n"
    )
    plot = (
        "import matplotlib.pyplot as plt\n"
        "plt.figure(figsize=(1, 1), facecolor='#ff0'); plt.plot([1, 2])\n"
    )
    save = "new('red').save('a.png'); new('lime').save('somewhere/else/b.png')\n"
    variables = "image = new('blue')\nimg = new('aqua')\n"
    cases = [
        (new + plot + variables + save, (0, 255, 0)),
        (new + plot + variables, (255, 255, 0)),
        (new + variables, (0, 255, 255)),
        (new + "image = new('blue'); img = 7", (0, 0, 255)),
        (new + variables + "new('red').show()", (255, 0, 0)),
        (new + plot + variables + "new('red').show()", (255, 0, 0)),
        (plot + "plt.show()\nplt.clf()", (255, 255, 0)),
        (new + plot + save + "plt.show()", (0, 255, 0)),
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
    other = "from PIL import Image\nimg = Image.open('a.png')"
    assert "FileNotFoundError" in refuse(renderer, other)


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


def test_matplotlib_text_is_the_same_whatever_font_it_asks_for(renderer):
    def drawn(family):
        figure = f"plt.figure(figsize=(2, 1)).text(0.1, 0.4, 'Sales 42', family={family!r})"
        return draw(renderer, f"import matplotlib.pyplot as plt\n{figure}").tobytes()

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
    dataclass = "import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: 'int' = 1\n"
    pickled = "import pickle; pickle.loads(pickle.dumps(A()))\n"
    draw(renderer, dataclass + pillow((0, 0, 0)) + pickled)


def test_large_pictures_are_scaled_down(renderer):
    gradient = "Image.linear_gradient('L').resize((4096, 1024)).convert('RGB')"
    assert draw(renderer, f"from PIL import Image\nimg = {gradient}").size == (2048, 512)


def test_errors_name_the_line_and_stay_one_printable_line(renderer):
    def error(code):
        return refuse(renderer, code)

    assert error("x = 1\ny = nothing") == "NameError: name 'nothing' is not defined (line 2)"
    assert error("x = (\n") == "SyntaxError: '(' was never closed (line 1)"
    long = error("raise ValueError('a\\n\\x1b[1mb' + 999 * 'c')")
    assert long.startswith("ValueError: a [1mb")
    assert error("import sys; sys.exit('bye')") == "SystemExit: bye (line 1)"
    assert "signal 11, Segmentation fault" in error("import ctypes; ctypes.string_at(0)")
    assert "before its picture" in error("import os; os._exit(0)")


# ---------------------------------------------------------------- no picture for a Solver


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
    late = [r.seconds for r in together if r.error == f"took longer than {TIMEOUT:g} s"]
    assert len(late) == 2 and min(late) >= TIMEOUT
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
            patch.setattr("support.sandbox.Helper.receive", lambda self: 1 / 0)
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
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match=words) as caught:
        Renderer(workers=1)
    assert "\n" not in str(caught.value)


def run(*arguments):
    command = [sys.executable, ROOT / "render.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_command_line(tmp_path, capsys):
    (tmp_path / "a.svg").write_text(tiny("red"))
    (tmp_path / "b.py").write_text(pillow((1, 2, 3)))
    (tmp_path / "c.py").write_text("x = nothing")
    assert run(tmp_path / "a.svg")[0] == 0
    assert Image.open(tmp_path / "a.png").size == (16, 16)
    render.main([str(tmp_path / "b.py"), "-o", str(tmp_path / "out.png")])
    assert "out.png: 9 x 9 pixels" in capsys.readouterr().out
    assert Image.open(tmp_path / "out.png").getpixel((4, 4)) == (1, 2, 3)
    status, out, err = run(tmp_path / "c.py")
    assert status == 1 and "NameError" in err and err.count("\n") == 1 and out == "", err
    cases = [
        ("none.svg", [], "No such file"),
        ("a.png", [], "must end in .svg"),
        ("a.svg", ["--timeout", "0"], "above 0"),
        ("a.svg", ["-o", str(tmp_path / "no/a")], "No such file"),
    ]
    for name, arguments, words in cases:
        # Python prints a SystemExit's text on stderr, a line of its own, and ends with status 1.
        with pytest.raises(SystemExit) as caught:
            render.main([str(tmp_path / name), *arguments])
        assert words in caught.value.code and "\n" not in caught.value.code
        assert capsys.readouterr().out == ""
    assert not (tmp_path / "c.png").exists()


def test_what_python_needs_is_there_whatever_was_drawn_before():
    """One helper, which draws SVG first: fonts by the names of another system are ours."""
    program = (
        "from PIL import Image, ImageDraw, ImageFont\n"
        "img = Image.new('RGB', (60, 30), 'white')\n"
        "font = ImageFont.truetype('Verdana.ttf', 20)\n"
        "ImageDraw.Draw(img).text((2, 2), 'ab', 'black', font)\n"
    )
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="20">'
    svg += '<text y="15">matplotlib</text></svg>'
    with Renderer(1, timeout=60) as renderer:
        alone = renderer.render([(program, "python")])[0]
    with Renderer(1, timeout=60) as renderer:
        # The word once made the helper believe that it was prepared for Python.
        _, after = renderer.render([(svg, "svg"), (program, "python")])
    assert alone.error is None and after.error is None
    assert alone.image.tobytes() == after.image.tobytes()
