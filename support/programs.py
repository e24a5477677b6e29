"""What a Python program finds around itself, and which of its pictures counts.

In the trainer: `pin_fonts`. In a helper, before it forks: `readable`, `prepare`. In the child that
runs the program: the rest.
"""

import builtins
import contextlib
import gc
import importlib.util
import io
import logging
import math
import os
import random
import re
import sys
import traceback
from pathlib import Path

from PIL import Image

from support.sandbox import NoPicture

# Packages that children may read (those that programs may use, and what these import).
PACKAGES = """PIL numpy matplotlib mpl_toolkits pylab contourpy kiwisolver cycler dateutil six
    fontTools packaging pyparsing cairosvg cairocffi cffi _cffi_backend tinycss2 cssselect2
    defusedxml webencodings""".split()
PRELOADED = """numpy.random numpy.linalg PIL.ImageDraw PIL.ImageEnhance PIL.ImageFilter
    PIL.ImageFont PIL.ImageOps csv datetime decimal json statistics textwrap""".split()
# Which DejaVu font comes nearest to one that is not here, by a part of its name; else Sans.
FAMILIES = {"mono|courier|consol": "SansMono", "sans": "Sans", "times|georgia|serif": "Serif"}
VECTORS = "pdf eps ps svg svgz pgf".split()  # drawn as pixels: nobody reads these files
ELSEWHERE = {"mnt", "content", "output", "outputs"}  # places of other sandboxes, as /mnt/data


def pin_fonts(scratch):
    """Make matplotlib's DejaVu fonts the only ones -> the environment in which they are found."""
    spec = importlib.util.find_spec("matplotlib")  # finds the folder, does not import the package
    if spec is None:
        raise RuntimeError("matplotlib is missing (its fonts draw SVG): pip install matplotlib")
    folder = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    # $XDG_DATA_DIRS/fonts is where Pillow's truetype("DejaVuSans.ttf") looks.
    (scratch / "fonts").mkdir()
    for font in folder.glob("DejaVu*.ttf"):
        (scratch / "fonts" / font.name).symlink_to(font)
    rules = ""
    for family, font in (("serif", "Serif"), ("monospace", "Sans Mono"), (None, "Sans")):
        test = f'<test name="family"><string>{family}</string></test>' if family else ""
        edit = f'<edit name="family" mode="append_last"><string>DejaVu {font}</string></edit>'
        rules += f"<match>{test}{edit}</match>"
    folders = f"<dir>{scratch}/fonts</dir><cachedir>{scratch}/fontconfig</cachedir>"
    (scratch / "fonts.conf").write_text(f"<fontconfig>{folders}{rules}</fontconfig>")
    return {
        "FONTCONFIG_FILE": f"{scratch}/fonts.conf",
        "XDG_DATA_DIRS": f"{scratch}",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": f"{scratch}/mpl",
    }


def readable(scratch):
    """What children may read: packages with their C libraries, the standard library, our fonts."""
    specs = filter(None, map(importlib.util.find_spec, PACKAGES))
    paths = [
        Path(path) for spec in specs for path in spec.submodule_search_locations or [spec.origin]
    ]
    paths += [path for home in {path.parent for path in paths} for path in home.glob("*.libs")]
    for path in Path(os.__file__).parent.iterdir():
        if path.name not in ("site-packages", "dist-packages"):
            paths.append(path)
    paths += [Path(scratch, name) for name in ("fonts", "fonts.conf", "fontconfig")]
    paths += map(Path, ("/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo"))
    return [path for path in paths if path.exists()]


def prepare(language, source):
    """Import once what each program would import in its fork."""
    if language == "python":
        for name in PRELOADED:
            importlib.import_module(name)
        Image.init()  # all file formats
        # It makes forks dearer: only if used.
        if b"matplotlib" in source and "matplotlib" not in sys.modules:
            prepare_matplotlib()
        gc.freeze()


def prepare_matplotlib():
    logging.disable(logging.WARNING)  # "building the font cache", "font family Arial not found"
    import matplotlib
    import matplotlib.font_manager as fonts
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Other fonts of this machine would draw another text elsewhere.
    home = os.path.dirname(fonts.__file__)
    ours = [font for font in fonts.fontManager.ttflist if font.fname.startswith(home)]
    fonts.fontManager.ttflist = ours
    plt.plot([1], label="$a^2$")
    plt.legend()
    plt.savefig(io.BytesIO())  # loads the writer
    plt.close()
    # There is no screen: programs that ask for a window get the same pictures.
    matplotlib.use = plt.switch_backend = lambda *args, **kwargs: None
    for kind in VECTORS:
        setattr(FigureCanvasAgg, f"print_{kind}", FigureCanvasAgg.print_png)


def set_up():
    """In the child, ahead of a program -> a list that will hold the last picture it saved."""
    import numpy

    random.seed(0)
    numpy.random.seed(0)
    sys.meta_path.insert(0, OnlyKnown)
    keep_one_folder()
    replace_fonts()
    return watch_saves()


class OnlyKnown:
    """Names the modules that are not there, instead of the files that may not be read."""

    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top in PACKAGES or top.startswith("_")
        if known or os.path.exists(f"{top}.py"):
            return None
        raise ModuleNotFoundError(f"No module named {top!r}", name=name)


def inside(path):
    """Is this the name of a file in the program's own folder?"""
    return isinstance(path, (str, os.PathLike)) and os.path.relpath(path)[:2] != ".."


def keep_one_folder():
    """A program has one folder, and none in it: "out/a.csv" is "a.csv", and "out" is the folder."""
    made, mkdir = {"."}, os.mkdir

    def local(path):
        if not inside(path):
            return path
        return "." if os.path.relpath(path) in made else os.path.basename(path)

    def make_folder(path, *args, **kwargs):
        if inside(path):
            folder = Path(os.path.relpath(path))
            made.update(map(str, (folder, *folder.parents)))
        elif os.path.abspath(path).split("/")[1] not in ELSEWHERE:
            mkdir(path, *args, **kwargs)

    def at_home(function):
        return lambda *args, **kwargs: function(*map(local, args[:1]), *args[1:], **kwargs)

    os.mkdir = make_folder
    for name in ("stat", "listdir", "scandir", "chdir", "remove", "unlink"):
        setattr(os, name, at_home(getattr(os, name)))
    builtins.open, io.open = at_home(builtins.open), at_home(io.open)


def replace_fonts():
    """Pillow's truetype("arial.ttf") and the like: the DejaVu font that comes nearest."""
    from PIL import ImageFont

    truetype = ImageFont.truetype

    def nearest(font=None, *args, **kwargs):
        name = str(font).lower()
        try:
            return truetype(font, *args, **kwargs)
        except OSError:
            # A file of another kind, which may not be read, is no font.
            if "/" in name and not name.endswith((".ttf", ".otf", ".ttc")):
                raise
        fits = [family for part, family in FAMILIES.items() if re.search(part, name)] or ["Sans"]
        bold = "-Bold" if re.search(r"bold|bd\.ttf", name) else ""
        return truetype(f"DejaVu{fits[0]}{bold}.ttf", *args, **kwargs)

    ImageFont.truetype = nearest


def watch_saves():
    """-> a list that holds the last picture that was saved."""
    saved, save = [], Image.Image.save

    def save_and_keep(self, target, *args, **kwargs):
        if isinstance(target, (str, os.PathLike)):
            target = os.path.basename(target)  # whatever folder it names
            if target.lower().endswith(tuple(VECTORS)):
                args, kwargs = ("PNG",), {}
        kwargs.setdefault("compress_level", 1)  # of PNG: nobody keeps the file
        save(self, target, *args, **kwargs)
        saved[:] = [self.copy()]  # the program may go on changing it

    Image.Image.save = save_and_keep
    Image.Image.show = lambda self, *args, **kwargs: None
    return saved


def choose(saved, names):
    """Which picture of a program counts: the last `Image.save` (matplotlib's `savefig` ends there
    too), else a variable img or image, else the open matplotlib figure; then an array of that name,
    then the last file that is a picture."""
    import numpy

    if saved:
        return saved[0]
    variables = [names.get("img"), names.get("image")]
    for value in variables:
        if isinstance(value, Image.Image):
            return value
    plt = sys.modules.get("matplotlib.pyplot")
    if plt and plt.get_fignums():
        canvas = plt.gcf().canvas
        canvas.draw()
        return Image.fromarray(numpy.asarray(canvas.buffer_rgba()))
    for value in variables:
        if isinstance(value, numpy.ndarray):
            if value.dtype.kind in "fb":  # shares of white
                value = (numpy.clip(value, 0, 1) * 255).astype("uint8")
            return Image.fromarray(value)
    for entry in sorted(os.scandir("."), key=lambda entry: -entry.stat().st_mtime_ns):
        with contextlib.suppress(OSError):  # it is no picture
            picture = Image.open(entry.path)
            picture.load()
            return picture
    raise NoPicture("no picture: nothing was saved, no variable img or image, no open figure")


def on_white(picture, max_side):
    """Any PIL picture -> RGB of an allowed size, with white where it was transparent."""
    if picture.mode in ("La", "RGBa"):  # premultiplied: convert only to their plain form
        picture = picture.convert(picture.mode.upper())
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    scale, picture = max_side / max(picture.size), picture.convert("RGB")  # a copy
    if scale < 1:
        picture = picture.resize([math.ceil(side * scale) for side in picture.size])
    return picture


def describe(error):
    """-> "NameError: name 'x' is not defined (line 3)": the last line of the program in it."""
    text, line = str(error), None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "main.py":
            line = number
    if isinstance(error, SyntaxError):
        text, line = error.msg, error.lineno
    text = type(error).__name__ + (f": {text}" if text else "")
    return f"{text} (line {line})" if line else text
