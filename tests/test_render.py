"""render.py and sandbox.py: what is drawn, what is refused in which words, how hangs, crashes, kills end."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cairosvg
import pytest
from PIL import Image

import render
import sandbox
from render import Renderer

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = Path(__file__).resolve().parent / "hostile"
SECRET = "canary-8f1c"
TIMEOUT = 1.5

# Python cases whose outcome this version promises. The others try to read, write, connect, start processes or
# signal them; keeping them from it takes the kernel's help, so they are not run.
CONTROLS = """ok_mpl_bar_pie ok_mpl_line ok_mpl_scatter_math ok_pil_alpha ok_pil_bytesio ok_pil_truetype
              ok_stdlib mpl_show""".split()
PICTURES = ["mpl_huge_dpi", "mpl_usetex", *(path.stem for path in (HOSTILE / "python").glob("img_*.py"))]
NO_PROGRAM = "coding_bogus fence indent nul prose whitespace rec_deep rec_parser".split()
ENDINGS = """atexit del_hang exit_0_after_save exit_1_before raise_generatorexit input im_show double_result
             patch_harness patch_main state_leak_set""".split()
LIMITS = "cpu_loop mem_bytearray mem_bigint sig_ignore_all sig_self_stop".split()
LEFTOVERS = "write_unreadable_dir write_disk_one_file".split()  # all inside the scratch folder
SLOW = "write_deep_dirs mem_grow mem_string mem_swallow sig_alarm_cancel stdout_flood_forever".split()


def tiny(colour, size=16):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}">'
            f'<rect x="2" y="3" width="7" height="5" fill="{colour}"/></svg>')


def svg(body, attributes='width="40" height="20"'):
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'


def pillow(colour):
    return f"from PIL import Image\nimg = Image.new('RGB', (9, 9), 'white')\nimg.putpixel((4, 4), {colour})\n"


HANG_SVG = svg('<ellipse cx="1e30" cy="1e30" rx="1e30" ry="1e30" stroke="red"/>', 'width="100" height="100"')
HANG_PYTHON = "while True: pass"
DOT = "<circle cx='9' cy='9' r='5'/>"


@pytest.fixture(scope="module")
def renderer():
    with Renderer(workers=2, timeout=20) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def brisk():
    """For items that run into the clock."""
    with Renderer(workers=2, timeout=TIMEOUT) as renderer:
        yield renderer


def draw(renderer, code, language="python"):
    """The picture of code that must have one."""
    (rendering,) = renderer.render([(code, language)])
    assert rendering.error is None, rendering.error
    return rendering.image


def refuse(renderer, code, language="python"):
    """The error of code that must have one."""
    (rendering,) = renderer.render([(code, language)])
    assert rendering.image is None
    assert rendering.error.isprintable() and 0 < len(rendering.error) <= 300
    return rendering.error


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# ---------------------------------------------------------------- SVG


def test_svg_equals_cairosvg_in_process():
    """The slow, obvious twin: CairoSVG's own PNG, decoded. (No text: this process has other fonts.)"""
    chart = svg('<g transform="rotate(9)"><rect x="3" y="4" width="20" height="9" fill="#c33" opacity="0.5"/>'
                '<path d="M2 2 L30 15 Q 20 3 38 18" stroke="blue" fill="none"/></g>' + DOT)
    codes = [tiny("red"), tiny("#123456", 64), chart]
    with Renderer(workers=1) as renderer:
        for code, rendering in zip(codes, renderer.render([(code, "svg") for code in codes])):
            png = cairosvg.svg2png(code.encode(), background_color="white")
            assert rendering.image.mode == "RGB"
            assert rendering.image.tobytes() == Image.open(io.BytesIO(png)).convert("RGB").tobytes()


@pytest.mark.parametrize("attributes, size", [
    ('width="64" height="48"', (64, 48)), ('viewBox="0 0 30 20"', (30, 20)), ("", (512, 512)),
    ('width="100%" height="9%" viewBox="0 0 30 20"', (30, 20)), ('style="width:50%;height:auto"', (512, 512)),
    ('width="60" viewBox="0 0 30 20"', (60, 40)), ('width="4000" height="1000"', (1024, 256)),
    ('width="1in" height="48pt"', (96, 64)), ('width="1e6" height="1e6" viewBox="0 0 20 20"', (1024, 1024)),
    ('width="20" height="20" viewBox="0 0 nan 3"', (20, 20)),
])
def test_svg_sizes(renderer, attributes, size):
    image = draw(renderer, svg("<circle cx='50%' cy='50%' r='20%'/>", attributes), "svg")
    assert image.size == size
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((size[0] // 2, size[1] // 2)) == (0, 0, 0)


def test_svg_text_is_the_same_whatever_font_it_asks_for(renderer):
    def text(family, word="Total 42"):
        return draw(renderer, svg(f'<text x="2" y="15" font-size="12" font-family="{family}">{word}</text>',
                                  'width="80" height="20"'), "svg").tobytes()
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
        return svg(f'<image href="data:image/{mime or kind.lower()};base64,{data}" width="10" height="10"/>')
    for kind in ("PNG", "JPEG"):
        assert draw(renderer, embed(kind), "svg").getpixel((5, 5))[2] > 240
    assert "too large" in refuse(renderer, embed("PNG", 1100), "svg")
    assert "outside" in refuse(renderer, embed("GIF"), "svg")
    assert refuse(renderer, embed("GIF", mime="png"), "svg")  # the bytes count, not the name
    assert "outside" in refuse(renderer, svg('<image href="/etc/hosts" width="9" height="9"/>' + DOT), "svg")


def test_svg_given_as_text_ignores_its_declared_encoding(renderer):
    word = svg("<text y='15'>é</text>")
    declared = '\ufeff\n<?xml version="1.0" encoding="ISO-8859-1"?>\n' + word
    assert draw(renderer, declared, "svg").tobytes() == draw(renderer, word, "svg").tobytes()


def manifest(language):
    for line in (HOSTILE / f"MANIFEST_{language}.tsv").read_text().splitlines():
        name, expected = line.split("\t")[:2]
        yield name, expected.split()[0].replace("?", "image")


def check_manifest(renderer, language, names, port=0):
    """Every case ends as its manifest says. A blank picture, which we refuse later, counts as drawn."""
    folder, ending = HOSTILE / language, {"svg": ".svg", "python": ".py"}[language]
    items, fill = [], {"__PORT__": str(port), "__SECRET__": str(ROOT / "secret"), "__PID__": str(os.getpid())}
    for name in names:
        data = (folder / (name + ending)).read_bytes()
        code = data.decode("latin-1" if name == "latin1_declared" else "utf-8-sig")
        for key, value in fill.items():
            code = code.replace(key, value)
        items.append((code, language))
    expected, results = dict(manifest(language)), renderer.render(items)
    for name, rendering in zip(names, results, strict=True):
        outcome = "error" if rendering.error and "blank" not in rendering.error else "image"
        assert expected[name] in (outcome, "any"), (name, rendering.error)
        assert rendering.seconds < renderer.timeout + 3, name  # (a busy machine is late to kill)
        assert (rendering.image is None) == (rendering.error is not None)
        assert rendering.error is None or rendering.error.isprintable() and len(rendering.error) <= 300, name
        assert SECRET not in str(rendering.error), name
        if name.startswith("ok_"):
            assert rendering.image is not None and len(rendering.image.getcolors(1 << 22)) > 3, name
    return results


def test_hostile_svg(brisk, monkeypatch):
    """82 attacks, malformed documents and controls: nobody connects, no secret is told, the clock is kept."""
    monkeypatch.setenv("SECRET_TOKEN", SECRET)
    names = [name for name, _ in manifest("svg")]
    assert len(names) == len(list((HOSTILE / "svg").iterdir())) > 80
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        check_manifest(brisk, "svg", names, server.getsockname()[1])
        with pytest.raises(BlockingIOError):
            server.accept()
    draw(brisk, tiny("red"), "svg")


# ---------------------------------------------------------------- Python


@pytest.mark.parametrize("names", [CONTROLS, PICTURES, NO_PROGRAM, ENDINGS], ids=lambda names: names[0])
def test_hostile_python(renderer, names):
    check_manifest(renderer, "python", names)
    assert list(renderer.scratch.glob("item-*/*")) == []
    draw(renderer, pillow((0, 0, 0)))


def test_hostile_python_at_its_limits(brisk):
    check_manifest(brisk, "python", LIMITS + LEFTOVERS)
    assert list(brisk.scratch.glob("item-*/*")) == []
    draw(brisk, pillow((0, 0, 0)))


@pytest.mark.slow
def test_hostile_python_that_takes_its_time(brisk):
    check_manifest(brisk, "python", SLOW)
    assert list(brisk.scratch.glob("item-*/*")) == []


def test_which_picture_counts(renderer):
    new = ("from PIL import Image\ndef new(c):\n"
           "  i = Image.new('RGB', (3, 3), c); i.putpixel((0, 0), (1, 2, 3)); return i\n")
    plot = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1), facecolor='#ff0'); plt.plot([1, 2])\n"
    save = "new('red').save('a.png'); new('lime').save('somewhere/else/b.png')\n"
    variables = "image = new('blue')\nimg = new('aqua')\n"
    cases = [(new + plot + variables + save, (0, 255, 0)), (new + plot + variables, (0, 255, 255)),
             (new + plot + "image = new('blue')", (0, 0, 255)), (new + plot + "img = 7", (255, 255, 0)),
             (plot + "plt.savefig('c.png')\nplt.close()", (255, 255, 0)),
             (new + "i = new('red'); i.save('a.png'); i.paste('blue', (0, 0, 3, 3))", (255, 0, 0))]
    for code, colour in cases:
        image = draw(renderer, code)
        assert image.mode == "RGB" and image.getpixel((image.width - 1, image.height - 1)) == colour
    assert "no picture" in refuse(renderer, "x = 1")


def test_a_saved_file_can_be_opened_again_and_does_not_outlive_its_program(renderer):
    again = pillow((1, 2, 3)) + "img.save('a.png'); del img; img = Image.open('a.png')"
    assert draw(renderer, again).getpixel((4, 4)) == (1, 2, 3)
    assert "FileNotFoundError" in refuse(renderer, "from PIL import Image\nimg = Image.open('a.png')")


def test_an_absolute_name_is_saved_in_scratch(renderer, tmp_path):
    assert draw(renderer, pillow((1, 2, 3)) + f"img.save('{tmp_path}/a.png')").size == (9, 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make, colour", [
    ("Image.new('RGBA', (4, 4), (255, 0, 0, 0))", "ffffff"), ("Image.new('1', (4, 4), 1)", "ffffff"),
    ("Image.new('RGBA', (4, 4), (255, 0, 0, 51))", "ffcccc"), ("Image.new('LA', (4, 4), (0, 51))", "cccccc"),
    ("Image.new('RGBa', (4, 4), (51, 0, 0, 51))", "ffcccc"), ("numpy.full((4, 4, 3), 7, 'uint8')", "070707"),
    ("Image.new('RGB', (4, 4), 'red').quantize(2)", "ff0000"),
    ("Image.new('CMYK', (4, 4), (0, 255, 255, 0))", "ff0000"),
])
def test_every_mode_ends_as_rgb_on_white(renderer, make, colour):
    code = f"import numpy\nfrom PIL import Image\nimg = {make}\n"
    assert refuse(renderer, code) == f"blank picture: all of it has the colour #{colour}"


def test_what_a_program_leaves_is_deleted(tmp_path):
    deep = tmp_path
    for _ in range(150):  # (1,500 and more make shutil.rmtree fail; slow disks take 5 ms for each)
        deep = deep / "d"
        deep.mkdir()
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "closed" / "inner" / "file").write_text("x")
    (tmp_path / "link").symlink_to(ROOT)
    (tmp_path / "closed" / "inner").chmod(0o300), (tmp_path / "closed").chmod(0o300)
    sandbox.empty(tmp_path)
    assert list(tmp_path.iterdir()) == [] and (ROOT / "render.py").exists()
    sandbox.empty(tmp_path / "gone")  # with the whole scratch folder: the trainer was faster


def test_python_runs_as_a_main_program_with_seeds(renderer):
    noise = ("import random, numpy as np\nfrom PIL import Image\nif __name__ == '__main__':\n"
             "  img = Image.fromarray(np.random.randint(0, 255, (8, 8, 3), 'uint8'))\n"
             "  img.putpixel((0, 0), (random.randrange(256), 0, hash('a') % 256))")
    first, second = draw(renderer, noise), draw(renderer, noise)
    with Renderer(workers=1) as other:
        assert first.tobytes() == second.tobytes() == draw(other, noise).tobytes()
    dataclass = "import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: 'int' = 1\n" + pillow((0, 0, 0))
    draw(renderer, dataclass + "import pickle; pickle.loads(pickle.dumps(A()))\n")


def test_large_pictures_are_scaled_down(renderer):
    code = "from PIL import Image\nimg = Image.linear_gradient('L').resize((4096, 1024)).convert('RGB')"
    assert draw(renderer, code).size == (2048, 512)


def test_errors_name_the_line_and_stay_one_printable_line(renderer):
    assert refuse(renderer, "x = 1\ny = nothing") == "NameError: name 'nothing' is not defined (line 2)"
    assert refuse(renderer, "x = (\n") == "SyntaxError: '(' was never closed (line 1)"
    assert refuse(renderer, "raise ValueError('a\\n\\x1b[1mb' + 999 * 'c')").startswith("ValueError: a [1mb")
    assert refuse(renderer, "import sys; sys.exit('bye')") == "the program ended itself: sys.exit('bye')"
    assert "SIGSEGV" in refuse(renderer, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "before its picture" in refuse(renderer, "import os; os._exit(0)")


def test_a_child_sees_no_environment_no_descriptor_no_torch(renderer, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", SECRET)
    with Renderer(workers=1) as fresh:
        code = "import os; raise ValueError([n for n in sorted(os.environ) if n[:4] in ('HOME', 'SECR')])"
        assert refuse(fresh, code) == "ValueError: ['HOME'] (line 1)"
        code = ("import os\nfound = []\nfor f in range(100):\n"
                "  try: found.append(os.readlink(f'/proc/self/fd/{f}')[:5])\n  except OSError: pass\n"
                "raise ValueError(found)")  # null three times; the source and the result
        draw(fresh, tiny("red"), "svg")  # so that there are descriptors of another child to inherit
        assert refuse(fresh, code) == "ValueError: ['/dev/', '/dev/', '/dev/', 'pipe:', 'pipe:'] (line 6)"
        code = "import sys, threading; raise ValueError(['torch' in sys.modules, threading.active_count()])"
        assert refuse(fresh, code).startswith("ValueError: [False, 1]")


def test_limits_are_set_in_the_child(renderer):
    names = [f"RLIMIT_{name}" for name in "CORE FSIZE NOFILE CPU AS NPROC".split()]
    code = f"import resource as r; raise ValueError([r.getrlimit(getattr(r, n))[1] for n in {names}])"
    assert refuse(renderer, code).startswith(
        f"ValueError: [0, {16 << 20}, 40, 21, {1 << 30}, 0]")


@pytest.mark.parametrize("forged", ["b'XXXX' + bytes(12)", "struct.pack('<HHIf', 9, 9, 99, 0)",
                                    "struct.pack('<HHIf', 9000, 1, 27000, 0)",
                                    "struct.pack('<HHIf', 0, 0, 1 << 31, 0)"])
def test_a_forged_result_is_refused(renderer, forged):
    code = f"import os, struct\nfor f in range(3, 40):\n  try: os.write(f, {forged})\n  except OSError: 0\n"
    assert refuse(renderer, code) == "the program tampered with its result"


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
        items += [("import os; os.kill(os.getpid(), 11)", "python")] * (i % 20 == 0)
    together = brisk.render(items)
    assert [r.error for r in together].count(f"took longer than {TIMEOUT:g} s") == 2
    with Renderer(workers=1, timeout=TIMEOUT) as single:
        for item, one in zip(items, together, strict=True):
            if item[0] not in (HANG_SVG, HANG_PYTHON):
                (alone,) = single.render([item])
                assert alone.error == one.error
                assert one.image is None or alone.image.tobytes() == one.image.tobytes()


@pytest.mark.parametrize("item", [(HANG_SVG, "svg"), (HANG_PYTHON, "python")], ids=["svg", "python"])
def test_the_clock_is_kept(item):
    with Renderer(workers=1, timeout=0.4) as renderer:
        draw(renderer, pillow((1, 1, 1)))
        (rendering,) = renderer.render([item])
        assert rendering.error == "took longer than 0.4 s" and 0.4 <= rendering.seconds < 3
        draw(renderer, tiny("red"), "svg")


def test_a_killed_helper_is_replaced():
    with Renderer(workers=2, timeout=5) as renderer:
        items = [(tiny(f"rgb({i},9,9)"), "svg") for i in range(20)]
        expected = [r.image.tobytes() for r in renderer.render(items)]
        renderer.helpers[0].process.kill()  # between two calls
        assert [r.image.tobytes() for r in renderer.render(items)] == expected
        sleeper = ("import time; time.sleep(0.6)\n" + pillow((1, 1, 1)), "python")
        victims = [helper.process.pid for helper in renderer.helpers]  # killed in the middle of an item
        threading.Timer(0.3, lambda: [os.kill(pid, signal.SIGKILL) for pid in victims]).start()
        results = renderer.render([sleeper] * 2 + items)
        assert [r.error for r in results] == [None] * 22
        assert [r.image.tobytes() for r in results[2:]] == expected


def test_an_interrupted_call_leaves_no_answers_for_the_next(monkeypatch):
    with Renderer(workers=1) as renderer:
        draw(renderer, tiny("red"), "svg")
        with monkeypatch.context() as patch:
            patch.setattr("sandbox.Helper.receive", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                renderer.render([(tiny("red"), "svg")] * 5)
        assert draw(renderer, tiny("blue"), "svg").getpixel((5, 5)) == (0, 0, 255)


def test_many_items_do_not_pile_up():
    """1,100 SVG go through three children (500 items each); descriptors and processes stay as they were."""
    with Renderer(workers=1) as renderer:
        draw(renderer, tiny("red"), "svg"), draw(renderer, pillow((1, 1, 1)))
        pid = renderer.helpers[0].process.pid
        before = len(os.listdir(f"/proc/{pid}/fd"))
        child = Path(f"/proc/{pid}/task/{pid}/children")
        first = child.read_text()
        results = renderer.render([(tiny("red"), "svg")] * 1100 + [(pillow((1, 1, 1)), "python")] * 20)
        assert all(r.error is None for r in results)
        assert renderer.helpers[0].process.pid == pid
        assert len(os.listdir(f"/proc/{pid}/fd")) == before
        assert len(child.read_text().split()) == 1 and child.read_text() != first


def test_close_leaves_no_process_and_no_scratch():
    with Renderer(workers=2) as renderer:
        renderer.render([(tiny("red"), "svg"), (pillow((1, 1, 1)), "python")] * 4)
        pids = [helper.process.pid for helper in renderer.helpers]
        pids += [int(pid) for p in pids for pid in Path(f"/proc/{p}/task/{p}/children").read_text().split()]
        assert len(pids) == 4 and all(map(alive, pids)) and renderer.scratch.is_dir()
    assert not any(map(alive, pids)) and not renderer.scratch.exists()


def test_what_a_program_starts_ends_with_it(renderer):
    (rendering,) = renderer.render([("import os, time\npid = os.fork()\nif pid == 0: time.sleep(60)\n"
                                     "raise ValueError(pid)", "python")])
    if "BlockingIOError" not in rendering.error:  # as an ordinary user it cannot start anything
        assert wait_for(lambda: not alive(int(rendering.error.split()[1])), 1)


TRAINER = "import sys; sys.path.insert(0, sys.argv[1])\nfrom render import Renderer\n"


@pytest.mark.parametrize("end, code", [
    ("sys.exit(0)", "img = 1"), ("import os; os._exit(0)", "img = 1"),  # right after rendering, not closed
    ("pass", "import time; time.sleep(50)")])  # or in the middle of it
def test_a_trainer_that_leaves_or_is_interrupted_leaves_no_words_of_helpers(end, code):
    """Ctrl-C goes to all of the terminal's foreground group. The only traceback may be the trainer's own."""
    code = TRAINER + (f"r = Renderer(workers=3, timeout=60)\nitems = [({code!r}, 'python')] * 6\n"
                      f"print(r.scratch, flush=True)\nr.render(items)\n{end}")
    # A shell starts background jobs with SIGINT ignored, and children inherit that: the trainer must not.
    trainer = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    scratch = Path(trainer.stdout.readline().strip())
    if end == "pass":
        assert wait_for(lambda: len(list(scratch.glob("item-*"))) == 3)
        os.killpg(trainer.pid, signal.SIGINT)
    _, words = trainer.communicate(timeout=20)  # returns when helpers, who share stderr, are gone too
    assert words.count("Traceback") == words.count("KeyboardInterrupt\n") == (end == "pass"), words
    assert bool(words) == (end == "pass") and not scratch.exists()


def test_a_killed_trainer_leaves_no_process_and_no_scratch():
    code = (TRAINER + "r = Renderer(workers=1, timeout=60)\n"
            "print(r.scratch, r.helpers[0].process.pid, flush=True)\n"
            "r.render([('import time; time.sleep(50)', 'python')])")
    trainer = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, text=True)
    scratch, helper = trainer.stdout.readline().split()
    children = Path(f"/proc/{helper}/task/{helper}/children")
    assert wait_for(children.read_text)
    pids = [int(helper), *map(int, children.read_text().split())]
    assert len(pids) == 2 and all(map(alive, pids))
    trainer.kill()
    trainer.wait()
    assert wait_for(lambda: not any(map(alive, pids)) and not Path(scratch).exists(), 3)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PDEATHSIG")
def test_a_killed_helper_takes_its_children_with_it():
    with Renderer(workers=1) as renderer:
        pid = renderer.helpers[0].process.pid
        sleeper = threading.Thread(target=renderer.render, args=([("import time; time.sleep(4)", "python")],))
        sleeper.start()
        children = Path(f"/proc/{pid}/task/{pid}/children")
        assert wait_for(children.read_text)
        time.sleep(0.2)  # it is forked; let it reach the program
        (child,) = map(int, children.read_text().split())
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: not alive(child), 2)
        sleeper.join()


def test_the_item_that_kills_its_helper_is_the_one_blamed():
    with Renderer(workers=1) as renderer:
        items = [(pillow((i, 0, 0)), "python") for i in range(5)]
        items[2] = ("import os; os.kill(os.getppid(), 9)", "python")
        results = renderer.render(items * 4)
        assert [i for i, r in enumerate(results) if r.error] == [2, 7, 12, 17]
        assert [r.image.getpixel((4, 4))[0] for r in results if r.image] == [0, 1, 3, 4] * 4


# ---------------------------------------------------------------- missing parts, the command line


@pytest.mark.parametrize("error, words", [
    ("OSError('no library called \"cairo-2\" was found')", "apt install libcairo2"),
    ("ImportError('no cairosvg')", "pip install cairosvg")])
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
    cases = [("c.py", [], "NameError"), ("none.svg", [], "No such file"), ("a.png", [], "must end in .svg"),
             ("a.svg", ["--timeout", "0"], "above 0"), ("a.svg", ["-o", tmp_path / "no/a"], "No such file")]
    for name, arguments, words in cases:
        arguments = [tmp_path / name, *arguments]
        status, out, err = run(*arguments)
        assert status == 1 and words in err and err.count("\n") == 1 and out == "", err
    assert not (tmp_path / "c.png").exists()


def test_nothing_is_left_in_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Renderer(workers=1) as renderer:
        draw(renderer, pillow((1, 1, 1)))
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
