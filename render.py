"""Code to picture: run the SVG or Python that a Coder wrote and hand back what it drew (the step from Coder to Solver in the
paper's method). Here: the pool of helper processes, and the two functions that draw in them. sandbox.py: how these are confined.
SVG opens no file (it may embed a small `data:` PNG or JPEG). Text looks alike on all machines.

Which picture of a Python program counts: the last `Image.save` (matplotlib's `savefig` ends there too), else a variable `img` or
`image`, else the open matplotlib figure. Every mode ends as RGB on white.
"""

import argparse
import base64
import contextlib
import fcntl
import functools
import gc
import importlib.util
import io
import logging
import math
import os
import random
import re
import shutil
import sys
import tempfile
import urllib.parse
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor

from support import sandbox
from support.sandbox import NoPicture

MAX_SOURCE = 256_000  # bytes of code
MAX_SIDE = {"svg": 1024, "python": sandbox.MAX_SIDE}  # pixels; a larger picture is scaled down
MAX_ASPECT = 100  # the vision towers refuse 200 : 1
DEFAULT_SIDE = 512  # pixels, for an SVG with neither size nor viewBox
# Packages that children may read (those that programs may use, and what these import), modules imported ahead.
PACKAGES = """PIL numpy matplotlib mpl_toolkits pylab contourpy kiwisolver cycler dateutil six fontTools packaging pyparsing
    cairosvg cairocffi cffi _cffi_backend tinycss2 cssselect2 defusedxml webencodings""".split()
PRELOADED = """numpy.random numpy.linalg numpy.fft PIL.ImageChops PIL.ImageDraw PIL.ImageEnhance PIL.ImageFilter PIL.ImageFont
    PIL.ImageOps PIL.ImagePath PIL.ImageStat bisect bz2 calendar cmath colorsys copy csv datetime decimal fractions heapq json
    logging lzma pickle pprint secrets statistics string textwrap typing unicodedata uuid""".split()
NO_CAIRO = "CairoSVG does not load; it takes `pip install cairosvg` and the cairo library: `apt install libcairo2` or `brew install cairo`"
SAID = set()  # what this process has already told about the kernel


@dataclass(frozen=True)
class Rendering:
    """What became of one item: exactly one of `image` (PIL, RGB) and `error` (one printable line) is set."""

    image: Image.Image | None
    error: str | None
    seconds: float

    @classmethod
    def of(cls, width, height, body, seconds):
        """What a helper sent: RGB rows, or the text of an error where there are no pixels."""
        if not width or not height:
            text = "".join(c if c.isprintable() else " " for c in body.decode("utf-8", "replace"))
            error = (
                " ".join(text.split())[:300] or sandbox.TAMPERED
            )  # for terminals and logs: printable, short, on one line
        elif max(width, height) > MAX_ASPECT * min(width, height):
            error = f"extreme shape: {width} x {height} pixels, more than {MAX_ASPECT} : 1"
        elif body == body[:3] * (width * height):
            error = f"blank picture: all of it has the colour #{body[:3].hex()}"
        else:  # frombytes copies rows; nothing is decoded
            return cls(Image.frombytes("RGB", (width, height), body), None, seconds)
        return cls(None, error, seconds)


# -------------------------------------------------------------------------------- in the trainer
class Renderer:
    """A pool of helpers; a context manager, or call `close()`. Not for two threads at once.
    workers: how many draw in parallel (default: one per core; started when there is work for them). timeout: wall-clock seconds for
    one item. unsafe_python: run Python even where the kernel cannot confine it. Else `refusal` says why it is refused there.
    RuntimeError: nothing can draw here; it says what to install."""

    def __init__(self, workers=None, timeout=5.0, unsafe_python=False):
        if (workers is not None and workers < 1) or not timeout > 0:
            raise ValueError(
                f"workers must be at least 1 and timeout above 0, not {workers} and {timeout}"
            )
        self.workers, self.timeout, self.unsafe_python = (
            workers or os.cpu_count(),
            timeout,
            unsafe_python,
        )
        self.helpers, self.refusal = [], None
        self.scratch, lock = make_scratch()
        # A finalizer also runs at exit and on garbage collection. It shares the list: it sees later helpers.
        self.close = weakref.finalize(self, _close, self.helpers, self.scratch, lock)
        self.environment = pin_fonts(self.scratch)
        self._start(1)  # one now, so that a missing library is noticed here

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def render(self, items, progress=False):
        """[(code | None, "svg" | "python"), ...] -> list[Rendering], in the same order."""
        from multiprocessing import connection  # not at the top: helpers do without

        from tqdm import tqdm

        results, queue = [None] * len(items), deque()
        for index, (code, language) in enumerate(items):
            if language not in MAX_SIDE:
                raise ValueError(f"language must be one of {list(MAX_SIDE)}, not {language!r}")
            source = (code or "").encode("utf-8", "replace")
            problem = (
                "there is no code"
                if not source.strip()
                else f"the code is longer than {MAX_SOURCE // 1000} kB"
                if len(source) > MAX_SOURCE
                else self.refusal
                if language == "python"
                else None
            )
            if problem:
                results[index] = Rendering(None, problem, 0.0)
            else:
                queue.append((index, language, source))
        owed, died = (
            {},
            set(),
        )  # helper -> its item (index, language, source); items a helper died of
        bar = tqdm(total=len(queue), desc="render", leave=False, disable=not progress)
        try:
            while queue or owed:
                self._start(min(self.workers, len(queue)))
                for helper in self.helpers:
                    if queue and helper not in owed:
                        owed[helper] = queue.popleft()
                        helper.send(*owed[helper][1:])
                ready = connection.wait(list(owed), self.timeout + 60)
                for helper in (
                    [] if ready else owed
                ):  # they keep the clock themselves: after such a silence they are broken
                    helper.process.kill()
                for helper in ready:
                    item = owed[helper]  # owed until the answer is read: see `finally`
                    try:
                        results[item[0]] = Rendering.of(*helper.receive())
                    except (
                        EOFError
                    ):  # it died, perhaps of the out-of-memory killer: another takes its place
                        self._drop(helper)
                        if item in died:
                            results[item[0]] = Rendering(None, "its process died twice", 0.0)
                        else:  # the item may be innocent: once more
                            died.add(item)
                            queue.appendleft(item)
                    del owed[helper]
                    bar.update(results[item[0]] is not None)
        finally:
            bar.close()
            for (
                helper
            ) in owed:  # after an exception: late answers must not pass for those of the next call
                self._drop(helper)
        return results

    def _start(self, count):
        """See to it that there are `count` helpers."""
        fresh = [
            sandbox.Helper(os.path.abspath(__file__), self.scratch, self.timeout, self.environment)
            for _ in range(count - len(self.helpers))
        ]
        self.helpers += fresh
        for helper in fresh:
            try:
                word, lacks, danger = helper.receive()[2].decode().split("\n")
            except EOFError:
                word = "a rendering process did not start (its own message is above)"
            if word != "ready":
                self.close()
                raise RuntimeError(word)
            if danger and not self.unsafe_python:
                self.refusal = (
                    f"{danger} on this machine: refused (--unsafe-python runs them all the same)"
                )
            for line in {lacks, self.refusal or danger} - {""} - SAID:
                SAID.add(line)
                print(f"render.py: {line}", file=sys.stderr)

    def _drop(self, helper):
        self.helpers.remove(helper)
        helper.process.kill()
        helper.stop()


def _close(helpers, scratch, lock):
    for helper in helpers:
        helper.stop()
    shutil.rmtree(scratch, ignore_errors=True)
    os.close(lock)


def make_scratch():
    """-> a new folder, and a descriptor that holds a lock on it while we live. Deletes folders without a lock: they belonged to
    trainers that were killed together with their helpers."""
    for folder in Path(tempfile.gettempdir()).glob("mmzero-render-*"):
        with (
            contextlib.suppress(OSError),
            contextlib.ExitStack() as stack,
        ):  # locked, another user's, or gone
            stack.callback(os.close, lock := os.open(folder, os.O_RDONLY))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="mmzero-"))
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # before it has the name that others look for
    return folder.rename(folder.with_name(folder.name.replace("-", "-render-", 1))), lock


def pin_fonts(scratch):
    """Make matplotlib's DejaVu fonts the only ones: text looks the same everywhere. -> environment to find them."""
    spec = importlib.util.find_spec("matplotlib")  # finds the folder, does not import the package
    if spec is None:
        raise RuntimeError(
            "matplotlib is missing (its fonts are used for SVG too): pip install matplotlib"
        )
    folder = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    (
        scratch / "fonts"
    ).mkdir()  # $XDG_DATA_DIRS/fonts is where Pillow's truetype("DejaVuSans.ttf") looks
    for font in folder.glob("DejaVu*.ttf"):
        (scratch / "fonts" / font.name).symlink_to(font)
    rules = "".join(
        f'<match>{test}<edit name="family" mode="append_last"><string>DejaVu {font}</string></edit></match>'
        for test, font in (
            ('<test name="family"><string>serif</string></test>', "Serif"),
            ('<test name="family"><string>monospace</string></test>', "Sans Mono"),
            ("", "Sans"),
        )
    )
    (scratch / "fonts.conf").write_text(
        f"<fontconfig><dir>{scratch}/fonts</dir><cachedir>{scratch}/fontconfig</cachedir>{rules}</fontconfig>"
    )
    return {
        "FONTCONFIG_FILE": f"{scratch}/fonts.conf",
        "XDG_DATA_DIRS": f"{scratch}",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": f"{scratch}/mpl",
    }


# -------------------------------------------------------------------------------- in a helper
def worker(scratch, timeout, pixels):
    """A helper's life; `Renderer._start` reads its first reply."""
    try:
        from cairosvg import surface
        from cairosvg.parser import Node
    except (ImportError, OSError):
        return sandbox.reply(1, 0, 0, f"{NO_CAIRO}\n\n".encode())
    normalise(Node)
    lay_out_once(surface)
    draw_svg(
        '<svg xmlns="http://www.w3.org/2000/svg"><text>a</text></svg>'
    )  # forks inherit the font caches
    gc.freeze()  # the collector leaves what is there alone, so forks go on sharing its pages
    # What children may read: a few packages with their C libraries, the standard library, the pinned fonts.
    specs = filter(None, map(importlib.util.find_spec, PACKAGES))
    paths = [
        Path(path) for spec in specs for path in spec.submodule_search_locations or [spec.origin]
    ]
    paths += [path for home in {path.parent for path in paths} for path in home.glob("*.libs")]
    paths += [
        path for path in Path(os.__file__).parent.iterdir() if path.name[4:] != "-packages"
    ]  # site-, dist-
    paths += [Path(scratch, name) for name in ("fonts", "fonts.conf", "fontconfig")]
    paths += map(Path, ("/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo"))
    drawers, readable = (
        {"svg": draw_svg, "python": draw_python},
        [path for path in paths if path.exists()],
    )
    sandbox.serve(scratch, timeout, pixels, drawers, prepare, readable)


def prepare(language, source):
    """Import once, in the helper, what each program would import in its own fork (or, without Landlock, could not)."""
    if language == "python" and "numpy" not in sys.modules:
        for name in PRELOADED:
            importlib.import_module(name)
        Image.init()  # all file formats
        sys.modules["PIL.ImageFont"].load_default(16)
        gc.freeze()
    if (
        b"matplotlib" in source and "matplotlib" not in sys.modules
    ):  # it makes forks dearer: only if used
        logging.disable(logging.WARNING)  # "building the font cache"
        import matplotlib.font_manager as fonts
        import matplotlib.pyplot as plt

        home = os.path.dirname(
            fonts.__file__
        )  # other fonts of this machine would draw another text elsewhere
        fonts.fontManager.ttflist = [
            font for font in fonts.fontManager.ttflist if font.fname.startswith(home)
        ]
        # After a fork matplotlib opens fonts anew, by io.open: they come from memory, which needs no right to open.
        data = {
            str(path): path.read_bytes() for path in Path(home).glob("mpl-data/fonts/ttf/*.ttf")
        }
        io.open = lambda name, *rest, **more: (
            io.BytesIO(data[name])
            if isinstance(name, str) and name in data
            else open(name, *rest, **more)
        )
        plt.plot([1], label="$a^2$")
        plt.legend()
        plt.savefig(io.BytesIO())  # loads the writer
        plt.close()
        gc.freeze()


# -------------------------------------------------------------------------------- in a child
@functools.lru_cache(1000)
def plain_colour(text):
    """A colour as models write it -> as CairoSVG reads it. What is not known here passes unchanged.
    >>> [plain_colour(text) for text in ("hsl(120deg 100% 25% / 50%)", "rgb(9 8 7 / .5)", "#ff000080", "red")]
    ['rgba(0,128,0,0.5)', 'rgba(9,8,7,0.5)', 'rgba(255,0,0,0.502)', 'red']
    """
    short = re.fullmatch("#([0-9a-f]{4}){1,2}", text := text.strip().lower())
    value = r"([^\s,/()]+)"
    function = re.fullmatch(
        rf"(rgb|hsl)a?\(\s*{value}[\s,]+{value}[\s,]+{value}(?:[\s,/]+{value})?\s*\)", text
    )
    try:
        if short:
            *rgb, alpha = ImageColor.getrgb(text)
            alpha /= 255
        elif function:
            kind, *parts, alpha = function.groups("1")
            rgb = ImageColor.getrgb(f"{kind}({','.join(parts).replace('deg', '')})")
            alpha = float(alpha.rstrip("%")) / (100 if "%" in alpha else 1)
        return "rgba({},{},{},{:.3g})".format(*rgb, alpha) if short or function else text
    except ValueError:
        return text


def normalise(node_class):
    """Make every node rewrite what CairoSVG refuses or draws wrongly: colours, "opacity: 50%", a transform's "deg"."""
    read = node_class.__init__

    def read_and_rewrite(node, *args, **kwargs):
        read(node, *args, **kwargs)
        for name in node.keys() & {"fill", "stroke", "stop-color", "flood-color"}:
            node[name] = plain_colour(node[name])
        for name in node.keys() & {
            "opacity",
            "fill-opacity",
            "stroke-opacity",
            "stop-opacity",
            "flood-opacity",
        }:
            if (value := node[name].strip()).endswith("%"):
                node[name] = str(float(value[:-1]) / 100)
        if "deg" in node.get("transform", ""):
            node["transform"] = re.sub(r"(?<=[\d.])deg\b", "", node["transform"])

    node_class.__init__ = read_and_rewrite


def lay_out_once(surface):
    """CairoSVG lays out each text twice: for the outline that a stroke follows, and to fill it. Without a stroke the first only
    costs time (a third of a chart's): `Surface.draw` sets the cursor back after it."""
    layout = surface.text

    def text(canvas, node, draw_as_text=False):
        filled = (
            canvas.stroke_and_fill
            and node.get("display") != "none"
            and node.get("visibility") != "hidden"
        )
        if draw_as_text or not filled or node.get("stroke", "none") != "none":
            layout(canvas, node, draw_as_text)

    surface.text = text
    surface.TAGS.update({tag: text for tag, function in surface.TAGS.items() if function is layout})


def svg_size(width, height, viewbox):
    """Attributes of the root (or None) -> (width, height, viewBox) in pixels, positive and finite. A length that
    depends on a page we do not have ("100%"), or is nonsense, counts as missing.
    >>> svg_size("2in", None, "0 0 100 50"), svg_size("100%", "nan", None)
    ((192.0, 96.0, '0 0 100.0 50.0'), (512, 512.0, '0 0 512 512'))
    """

    def pixels(length):
        match = re.fullmatch(
            r"\s*\+?(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*(px|pt|pc|mm|cm|in|r?em)?\s*", length or ""
        )
        unit = {
            "pt": 4 / 3,
            "pc": 16,
            "mm": 96 / 25.4,
            "cm": 96 / 2.54,
            "in": 96,
            "em": 16,
            "rem": 16,
        }
        value = float(match[1]) * unit.get(match[2], 1) if match else 0
        return value if 1e-6 < value < 1e9 else None

    width, height, box = pixels(width), pixels(height), (viewbox or "").replace(",", " ").split()
    x, y, box_width, box_height = (
        (*box[:2], *map(pixels, box[2:])) if len(box) == 4 else (0, 0, None, None)
    )
    if not box_width or not box_height:
        x, y, box_width, box_height = (
            0,
            0,
            width or height or DEFAULT_SIDE,
            height or width or DEFAULT_SIDE,
        )
    width = width or (height * box_width / box_height if height else box_width)
    return width, height or width * box_height / box_width, f"{x} {y} {box_width} {box_height}"


def fetch(url, resource_type):
    """CairoSVG asks here for all that a document refers to; it gets a small embedded PNG or JPEG only."""
    if resource_type == "text/css":
        return b""  # an imported style sheet is most often a web font, and fonts are pinned anyway
    head = re.match(r"data:image/(?:png|jpe?g);base64,", url, re.IGNORECASE)
    if not head:
        raise NoPicture(
            "refers to something outside the document (only a data: PNG or JPEG can be embedded)"
        )
    data = base64.b64decode(urllib.parse.unquote(url[head.end() :]))
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:  # reads its head only
        if max(picture.size) > MAX_SIDE["svg"]:
            raise NoPicture(
                f"embeds too large a picture: {picture.width} x {picture.height} pixels"
            )
    return data


def draw_svg(source):
    """-> PIL RGB. The size is settled before there is a canvas: width="1e9" is harmless."""
    from cairosvg.parser import Tree
    from cairosvg.surface import PNGSurface

    # A str is decoded already: the encoding its XML declaration names no longer holds.
    source = re.sub(r"^<\?xml[^>]*\?>", "", source.lstrip("\ufeff \t\r\n"))
    tree = Tree(bytestring=source.encode(), url_fetcher=fetch)
    if tree.tag != "svg":
        raise NoPicture(f"the root element is <{tree.tag}>, not <svg>")
    width, height, viewbox = svg_size(*map(tree.get, ("width", "height", "viewBox")))
    tree.update(width=str(width), height=str(height), viewBox=viewbox)
    scale = min(1, MAX_SIDE["svg"] / max(width, height))
    width, height = (max(1, math.ceil(side * scale - 1e-6)) for side in (width, height))
    # PNGSurface is CairoSVG's raster surface; that we never ask it for the PNG doubles the speed.
    canvas = PNGSurface(
        tree, None, 96, output_width=width, output_height=height, background_color="white"
    ).cairo
    canvas.flush()
    # ARGB32 lies in memory as B, G, R, A; on white A is always 255, so nothing is premultiplied.
    return Image.frombuffer(
        "RGB", (width, height), canvas.get_data(), "raw", "BGRX", canvas.get_stride(), 1
    )


def on_white(picture):
    """Any PIL picture -> RGB of an allowed size, with white where it was transparent."""
    if picture.mode in ("La", "RGBa"):  # premultiplied: convert only to their plain form
        picture = picture.convert(picture.mode.upper())
    if picture.has_transparency_data:
        picture = Image.alpha_composite(
            Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")
        )
    scale, picture = MAX_SIDE["python"] / max(picture.size), picture.convert("RGB")  # a copy
    return (
        picture.resize([math.ceil(side * scale) for side in picture.size]) if scale < 1 else picture
    )


def draw_python(source):
    """Run a program as `python main.py` in an empty folder would -> PIL RGB."""
    import numpy

    random.seed(0)
    numpy.random.seed(0)
    saved, late, save, mkdir = [], [], Image.Image.save, os.mkdir

    def inside(path):
        return isinstance(path, (str, os.PathLike)) and os.path.relpath(path)[:2] != ".."

    def write(event, _):
        if late and event in ("open", "os.listdir", "os.scandir", "os.rename"):
            picture, target, args, kwargs = late.pop()
            save(picture, target, *args, **kwargs)

    def save_and_keep(self, target, *args, **kwargs):
        kwargs.setdefault("compress_level", 1)  # of PNG: nobody keeps the file
        picture = self.copy()  # the program may go on changing it
        if not inside(target):
            save(self, target, *args, **kwargs)
        else:
            target = os.path.basename(target)  # there is one folder: "out/a.png" is "a.png"
            # Few programs read what they saved, and a PNG takes a third of a short one's time: at first write one pixel (which
            # finds what is wrong with the arguments), the rest when the next file is opened.
            later = target.lower().endswith(".png") and "save_all" not in kwargs
            with contextlib.suppress(PermissionError):  # without Landlock: a picture, but no file
                save(self.crop((0, 0, 1, 1)) if later else self, target, *args, **kwargs)
                late[:] = [(picture, target, args, kwargs)] * later
        saved[:] = [picture]

    Image.Image.save, Image.Image.show = save_and_keep, lambda self, *args, **kwargs: None
    os.mkdir = lambda path, *args, **kwargs: None if inside(path) else mkdir(path, *args, **kwargs)
    sys.addaudithook(write)
    module = type(sys)("__main__")
    sys.modules["__main__"], sys.argv, module.__file__ = module, ["main.py"], "main.py"
    try:
        exec(compile(source, "main.py", "exec"), vars(module))
    except SystemExit as end:
        if end.code not in (None, 0):
            raise NoPicture(f"the program ended itself: sys.exit({end.code!r})") from None
    if saved:
        return on_white(saved[0])
    for value in map(vars(module).get, ("img", "image")):
        if isinstance(value, numpy.ndarray):
            value = Image.fromarray(value)
        if isinstance(value, Image.Image):
            return on_white(value)
    plt = sys.modules.get("matplotlib.pyplot")
    if plt and plt.get_fignums():
        canvas = plt.gcf().canvas
        canvas.draw()
        return on_white(Image.fromarray(numpy.asarray(canvas.buffer_rgba())))
    raise NoPicture("no picture: nothing was saved, no variable img or image, no open figure")


# -------------------------------------------------------------------------------- the command line
def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draw an SVG file or a Python program's picture.")
    parser.add_argument("file", type=Path, metavar="FILE.svg|FILE.py")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT.png", help="default: FILE.png beside FILE"
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="wall clock, default 5"
    )
    parser.add_argument(
        "--unsafe-python",
        action="store_true",
        help="run Python though this machine cannot confine it",
    )
    args = parser.parse_args(arguments)
    language = {".svg": "svg", ".py": "python"}.get(args.file.suffix.lower())
    output = args.output or args.file.with_suffix(".png")
    try:
        if language is None:
            raise ValueError(f"{args.file}: the name must end in .svg or .py")
        with Renderer(1, args.timeout, args.unsafe_python) as renderer:
            (rendering,) = renderer.render([(args.file.read_text("utf-8-sig"), language)])
        if rendering.error:
            raise ValueError(f"{args.file}: {rendering.error}")
        rendering.image.save(output, "PNG")
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(
        f"{output}: {rendering.image.width} x {rendering.image.height} pixels, {rendering.seconds:.2f} s"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        del sys.path[
            0
        ]  # this file's folder: no file beside it passes for a module that a program imports
        try:
            worker(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
        except FileNotFoundError:
            if not sandbox.select.select([0], [], [], 5)[
                0
            ]:  # else stdin ended: the trainer left, and scratch went, before we
                raise  # were ready
    else:
        main()
