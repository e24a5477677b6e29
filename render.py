"""Code to picture: run the SVG or Python that a Coder wrote and hand back what it drew (the step from Coder to Solver in the paper's method).

This file: the pool of helper processes as the trainer sees it, and the two functions that draw in them.
sandbox.py: how those processes are confined, what that promises and what it does not.

What holds beyond that: SVG opens no file and no connection (it may embed a small `data:` PNG or JPEG); all
Linux machines draw text alike; a picture has a size that the vision towers accept, and more than one colour.

Which picture of a Python program counts: the last `Image.save` (matplotlib's `savefig` ends there too), else
a variable `img` or `image`, else the open matplotlib figure. Every mode ends as RGB on white.
"""

import argparse
import base64
import gc
import importlib.util
import io
import math
import os
import random
import re
import shutil
import sys
import tempfile
import types
import urllib.parse
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import sandbox
from sandbox import NoPicture

MAX_SOURCE = 256_000                                  # bytes of code
MAX_SIDE = {"svg": 1024, "python": sandbox.MAX_SIDE}  # pixels; a larger picture is scaled down
MAX_ASPECT = 100                                      # the vision towers refuse 200 : 1
DEFAULT_SIDE = 512                                    # pixels, for an SVG with neither size nor viewBox
NO_CAIRO = ("CairoSVG does not load; it takes `pip install cairosvg` and the cairo library: "
            "`apt install libcairo2` (Debian, Ubuntu) or `brew install cairo` (macOS)")


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
            # Errors end up in terminals and logs: printable, short, on one line.
            text = "".join(c if c.isprintable() else " " for c in body.decode("utf-8", "replace"))
            error = " ".join(text.split())[:300]
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

    workers: how many draw in parallel (default: one per core; started when there is work for them).
    timeout: wall-clock seconds for one item. RuntimeError: nothing can draw here; it says what to install.
    """

    def __init__(self, workers=None, timeout=5.0):
        if (workers is not None and workers < 1) or not timeout > 0:
            raise ValueError(f"workers must be at least 1 and timeout above 0, not {workers} and {timeout}")
        self.workers, self.timeout, self.helpers = workers or os.cpu_count(), timeout, []
        self.scratch = Path(tempfile.mkdtemp(prefix="mmzero-render-"))
        # A finalizer also runs at exit and on garbage collection. It shares the list: it sees later helpers.
        self.close = weakref.finalize(self, _close, self.helpers, self.scratch)
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
            if source.strip() and len(source) <= MAX_SOURCE:
                queue.append((index, language, source))
            else:
                long = f"the code is longer than {MAX_SOURCE // 1000} kB"
                results[index] = Rendering(None, long if source.strip() else "there is no code", 0.0)
        owed, died = {}, set()  # helper -> its item (index, language, source); items a helper died of
        bar = tqdm(total=len(queue), desc="render", leave=False, disable=not progress)
        try:
            while queue or owed:
                self._start(min(self.workers, len(queue)))
                for helper in self.helpers:
                    if queue and helper not in owed:
                        owed[helper] = queue.popleft()
                        helper.send(*owed[helper][1:])
                ready = connection.wait(list(owed), self.timeout + 60)
                if not ready:  # helpers keep the clock themselves: such a silence means that they are broken
                    for helper in owed:
                        helper.process.kill()
                for helper in ready:
                    item = owed[helper]  # owed until the answer is read: see `finally`
                    try:
                        rendering = Rendering.of(*helper.receive())
                        del owed[helper]
                    except EOFError:  # it died, perhaps of the out-of-memory killer: another takes its place
                        del owed[helper]
                        self._drop(helper)
                        if item not in died:  # the item may be innocent: once more
                            died.add(item)
                            queue.appendleft(item)
                            continue
                        rendering = Rendering(None, "its process died twice", 0.0)
                    results[item[0]] = rendering
                    bar.update()
        finally:
            bar.close()
            for helper in owed:  # after an exception: late answers must not pass for those of the next call
                self._drop(helper)
        return results

    def _start(self, count):
        """See to it that there are `count` helpers."""
        fresh = [sandbox.Helper(os.path.abspath(__file__), self.scratch, self.timeout, self.environment)
                 for _ in range(count - len(self.helpers))]
        self.helpers += fresh
        for helper in fresh:
            try:
                problem = helper.receive()[2].decode()
            except EOFError:
                problem = "a rendering process did not start (its own message is above)"
            if problem != "ready":
                self.close()
                raise RuntimeError(problem)

    def _drop(self, helper):
        self.helpers.remove(helper)
        helper.process.kill()
        helper.stop()


def _close(helpers, scratch):
    for helper in helpers:
        helper.stop()
    shutil.rmtree(scratch, ignore_errors=True)


def pin_fonts(scratch):
    """Make the DejaVu fonts that matplotlib ships the only ones, so that text looks the same everywhere.
    -> the environment in which libraries find them."""
    spec = importlib.util.find_spec("matplotlib")  # finds the folder, does not import the package
    if spec is None:
        raise RuntimeError("matplotlib is missing (its fonts are used for SVG too): pip install matplotlib")
    folder = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    (scratch / "fonts").mkdir()  # $XDG_DATA_DIRS/fonts is where Pillow's truetype("DejaVuSans.ttf") looks
    for font in folder.glob("DejaVu*.ttf"):
        (scratch / "fonts" / font.name).symlink_to(font)
    rule = '<match>{}<edit name="family" mode="append_last"><string>{}</string></edit></match>'
    when = '<test name="family"><string>{}</string></test>'
    (scratch / "fonts.conf").write_text(
        f"<fontconfig><dir>{scratch}/fonts</dir><cachedir>{scratch}/fontconfig</cachedir>"
        + rule.format(when.format("serif"), "DejaVu Serif")
        + rule.format(when.format("monospace"), "DejaVu Sans Mono")
        + rule.format("", "DejaVu Sans") + "</fontconfig>")
    return {"FONTCONFIG_FILE": f"{scratch}/fonts.conf", "XDG_DATA_DIRS": f"{scratch}",
            "MPLBACKEND": "Agg", "MPLCONFIGDIR": f"{scratch}/mpl"}


# -------------------------------------------------------------------------------- in a helper


def worker(scratch, timeout):
    """A helper's life; `Renderer._start` reads its first reply."""
    try:
        import cairosvg.surface  # noqa: F401
    except (ImportError, OSError):
        return sandbox.reply(1, 0, 0, NO_CAIRO.encode())
    draw_svg('<svg xmlns="http://www.w3.org/2000/svg"><text>a</text></svg>')  # forks inherit the font caches
    gc.freeze()  # the collector leaves what is there alone, so forks go on sharing its pages
    sandbox.serve(scratch, timeout, {"svg": draw_svg, "python": draw_python}, prepare)


def prepare(language, source):
    """Import once, in the helper, what each Python program would otherwise import in its own fork."""
    if language == "python" and "numpy" not in sys.modules:
        import numpy.random  # noqa: F401
        from PIL import ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont, ImageOps  # noqa: F401
        Image.preinit()  # the usual file formats
        gc.freeze()
    if b"matplotlib" in source and "matplotlib" not in sys.modules:  # it makes forks dearer: only if used
        import matplotlib.pyplot as plt
        plt.plot([1], label="a")
        plt.legend()
        plt.savefig(io.BytesIO())  # loads the font and the writer
        plt.close()
        gc.freeze()


# -------------------------------------------------------------------------------- in a child


def svg_size(width, height, viewbox):
    """Attributes of the root (or None) -> (width, height, viewBox) in pixels, positive and finite. A length
    that depends on a page we do not have ("100%"), or is nonsense, counts as missing.

    >>> svg_size("2in", None, "0 0 100 50"), svg_size("100%", "nan", None)
    ((192.0, 96.0, '0 0 100.0 50.0'), (512, 512.0, '0 0 512 512'))
    """
    def pixels(length):
        number, units = r"\+?(\d*\.?\d+(?:[eE][+-]?\d+)?)", "(px|pt|pc|mm|cm|in|em|rem)?"
        match = re.fullmatch(rf"\s*{number}\s*{units}\s*", length or "")
        unit = {"pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96, "em": 16, "rem": 16}
        value = float(match[1]) * unit.get(match[2], 1) if match else 0
        return value if 1e-6 < value < 1e9 else None

    width, height, box = pixels(width), pixels(height), (viewbox or "").replace(",", " ").split()
    x, y, box_width, box_height = (*box[:2], *map(pixels, box[2:])) if len(box) == 4 else (0, 0, None, None)
    if not box_width or not box_height:
        x, y, box_width, box_height = 0, 0, width or height or DEFAULT_SIDE, height or width or DEFAULT_SIDE
    width = width or (height * box_width / box_height if height else box_width)
    return width, height or width * box_height / box_width, f"{x} {y} {box_width} {box_height}"


def fetch(url, resource_type):
    """CairoSVG asks here for all that a document refers to; it gets a small embedded PNG or JPEG only."""
    if resource_type == "text/css":
        return b""  # an imported style sheet is most often a web font, and fonts are pinned anyway
    head = re.match(r"data:image/(?:png|jpe?g);base64,", url, re.IGNORECASE)
    if not head:
        raise NoPicture("refers to something outside the document (only a data: PNG or JPEG can be embedded)")
    data = base64.b64decode(urllib.parse.unquote(url[head.end():]))
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:  # reads its head only
        if max(picture.size) > MAX_SIDE["svg"]:
            raise NoPicture(f"embeds too large a picture: {picture.width} x {picture.height} pixels")
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
    surface = PNGSurface(tree, None, 96, output_width=width, output_height=height, background_color="white")
    canvas = surface.cairo
    canvas.flush()
    # ARGB32 lies in memory as B, G, R, A; on white A is always 255, so nothing is premultiplied.
    return Image.frombuffer("RGB", (width, height), canvas.get_data(), "raw", "BGRX", canvas.get_stride(), 1)


def on_white(picture):
    """Any PIL picture -> RGB of an allowed size, with white where it was transparent."""
    if picture.mode in ("La", "RGBa"):  # premultiplied: convert only to their plain form
        picture = picture.convert(picture.mode.upper())
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    scale = min(1, MAX_SIDE["python"] / max(picture.size))
    return picture.convert("RGB").resize([math.ceil(side * scale) for side in picture.size])


def draw_python(source):
    """Run a program as `python main.py` in an empty folder would -> PIL RGB."""
    import numpy

    random.seed(0)
    numpy.random.seed(0)
    saved, save = [], Image.Image.save

    def save_and_keep(self, target, *args, **kwargs):
        if isinstance(target, (str, os.PathLike)):
            target = os.path.basename(target)  # whichever folder it names, the file goes into the empty one
        save(self, target, *args, **kwargs)
        saved[:] = [on_white(self)]            # now: the program may go on changing it

    Image.Image.save = save_and_keep
    Image.Image.show = lambda self, *args, **kwargs: None
    module = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv, module.__file__ = module, ["main.py"], "main.py"
    try:
        exec(compile(source, "main.py", "exec"), vars(module))
    except SystemExit as end:
        if end.code not in (None, 0):
            raise NoPicture(f"the program ended itself: sys.exit({end.code!r})") from None
    if saved:
        return saved[0]
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
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.png", help="default: FILE.png beside FILE")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="wall clock, default 5")
    args = parser.parse_args(arguments)
    language = {".svg": "svg", ".py": "python"}.get(args.file.suffix.lower())
    output = args.output or args.file.with_suffix(".png")
    if language is None:
        raise SystemExit(f"{args.file}: the name must end in .svg or .py")
    try:
        with Renderer(workers=1, timeout=args.timeout) as renderer:
            rendering, = renderer.render([(args.file.read_text("utf-8-sig"), language)])
        if rendering.error:
            raise SystemExit(f"{args.file}: {rendering.error}")
        rendering.image.save(output, "PNG")
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"{output}: {rendering.image.width} x {rendering.image.height} pixels, {rendering.seconds:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        del sys.path[0]  # this file's folder: no file beside it passes for a module that a program imports
        worker(sys.argv[2], float(sys.argv[3]))
    else:
        main()
