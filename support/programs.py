"""What a Python program finds around itself, and which of its pictures counts.

In the trainer: `pin_fonts`. In a helper, before it forks: `readable`, `prepare`. In a child `draw`
calls the rest.
"""

import builtins
import contextlib
import gc
import importlib.util
import io
import logging
import os
import random
import re
import shutil
import sys
import tempfile
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
KEPT = {}  # of a program, in its child: the picture "saved" last, the one "shown" last


def pin_fonts(scratch):
    """Make matplotlib's DejaVu fonts the only ones, for those who look for some in `scratch`."""
    spec = importlib.util.find_spec("matplotlib")  # finds the folder, does not import the package
    if spec is None:
        raise RuntimeError("matplotlib is missing (its fonts draw SVG): pip install matplotlib")
    folder = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    (scratch / "fonts").mkdir()
    for font in folder.glob("DejaVu*.ttf"):
        (scratch / "fonts" / font.name).symlink_to(font)
    folders = f"<dir>{scratch}/fonts</dir><cachedir>{scratch}/fontconfig</cachedir>"
    (scratch / "fonts.conf").write_text(f"<fontconfig>{folders}</fontconfig>")


def readable(scratch):
    """What children may read: packages with their C libraries, the standard library, our fonts."""
    paths = []
    for spec in filter(None, map(importlib.util.find_spec, PACKAGES)):
        paths += map(Path, spec.submodule_search_locations or [spec.origin])
    paths += [path for home in {path.parent for path in paths} for path in home.glob("*.libs")]
    library = Path(os.__file__).parent.iterdir()
    paths += [path for path in library if path.name not in ("site-packages", "dist-packages")]
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
    from matplotlib.backend_bases import FigureCanvasBase, FigureManagerBase

    # Other fonts of this machine would draw another text elsewhere.
    home = os.path.dirname(fonts.__file__)
    fonts.fontManager.ttflist = [f for f in fonts.fontManager.ttflist if f.fname.startswith(home)]
    plt.title("$a^2$")
    plt.savefig(io.BytesIO())  # loads the writer
    plt.close()
    # There is no screen: programs that ask for a window get the same pictures.
    matplotlib.use = plt.switch_backend = lambda *args, **kwargs: None

    def show(manager):
        if "saved" not in KEPT:  # which counts more
            KEPT["shown"] = picture_of(manager.canvas)

    def savefig(canvas, target, *, format=None, backend=None, **kwargs):
        """With pixels for PDF and the like. A program that looks into its SVG finds one."""
        kind = (format or os.path.splitext(str(target))[1][1:]).lower()
        if kind == "svg":
            print_figure(canvas, target, format=kind, **kwargs)
        # Then SVG is written already. Who names a backend is PdfPages, which is no file.
        if kind == "svg" or backend:
            target = io.BytesIO()
        print_figure(canvas, target, format="png" if kind in VECTORS else format, **kwargs)

    print_figure = FigureCanvasBase.print_figure
    FigureManagerBase.show, FigureCanvasBase.print_figure = show, savefig


def picture_of(canvas):
    canvas.draw()
    return Image.frombytes("RGBA", canvas.get_width_height(), canvas.buffer_rgba())


def draw(source, max_side):
    """Run a program as `python main.py` in an empty folder would -> PIL RGB."""
    import numpy

    random.seed(0)
    numpy.random.seed(0)
    sys.meta_path.insert(0, OnlyKnown)
    keep_one_folder()
    mend_pillow()
    module = type(sys)("__main__")
    sys.modules["__main__"], sys.argv, module.__file__ = module, ["main.py"], "main.py"
    try:
        exec(compile(source, "main.py", "exec"), vars(module))
    except SystemExit as end:
        if end.code:
            raise
    # An open figure is drawn in the program's last line, so that an error has a line.
    last = compile("\n" * source.rstrip().count("\n") + "choose(names)", "main.py", "eval")
    picture = eval(last, {"choose": choose, "names": vars(module)})
    return on_white(picture, max_side)


class OnlyKnown:
    """Names the modules that are not there, instead of the files that may not be read."""

    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ("tkinter", "_tkinter", "turtle"):
            raise ModuleNotFoundError(f"{top} opens a window, and there is no screen", name=name)
        known = top in sys.stdlib_module_names or top in PACKAGES or top.startswith("_")
        if known or os.path.exists(f"{top}.py"):
            return None
        raise ModuleNotFoundError(f"No module named {top!r}", name=name)


def keep_one_folder():
    """A program has one folder, and none in it: "out/a.csv" is "a.csv", and "out" is the folder.

    So is a folder elsewhere ("/mnt/data") that it makes after it looked whether it is there, or
    with `exist_ok`: it wants some place to write. Any other that it makes elsewhere is refused.
    """
    here, mkdir, replace = os.getcwd(), os.mkdir, os.replace
    made, asked = {Path(here)}, set()
    fonts = {font.name: os.readlink(font) for font in os.scandir(os.path.expanduser("~/fonts"))}

    def local(path):
        if not isinstance(path, (str, os.PathLike)):
            return path
        full = Path(os.path.abspath(path))
        asked.add(full)
        if full in made:
            return here
        if made.isdisjoint(full.parents):
            return fonts.get(full.name, path)
        return os.path.join(here, full.name)

    def make_folder(path, *args, **kwargs):
        folder = Path(os.path.abspath(path))
        granted = folder in asked or not made.isdisjoint(folder.parents)
        made.add(folder)
        made.update(parent for parent in folder.parents if not parent.exists())
        if not granted:
            mkdir(path, *args, **kwargs)  # refused; then `exist_ok` looks whether it is there

    def rename(source, target):
        if local(target) != here:  # where all files are, and stay when a folder is deleted
            replace(local(source), local(target))

    def at_home(function):
        return lambda *args, **kwargs: function(*map(local, args[:1]), *args[1:], **kwargs)

    def unless_made(function):
        return lambda path, *args, **kwargs: local(path) == here or function(path, *args, **kwargs)

    os.mkdir = make_folder
    os.rename = os.replace = shutil.move = rename
    os.makedirs = lambda name, mode=0o777, exist_ok=False: Path(name).mkdir(mode, True, exist_ok)
    os.rmdir, shutil.rmtree = unless_made(os.rmdir), unless_made(shutil.rmtree)
    for name in "open stat lstat access listdir scandir chdir remove unlink".split():
        setattr(os, name, at_home(getattr(os, name)))
    builtins.open, io.open = at_home(builtins.open), at_home(io.open)
    # A file may be copied onto itself; its rights and times are not to be changed.
    shutil.copyfile = lambda a, b, **_: Path(b).write_bytes(Path(a).read_bytes())
    shutil.copymode = shutil.copystat = lambda *args, **kwargs: None
    tempfile.tempdir = here  # (the helper's own is elsewhere)


def mend_pillow():
    """A font that is not here is the DejaVu that comes nearest; what is saved or shown is kept."""
    from PIL import ImageFont

    truetype, save = ImageFont.truetype, Image.Image.save

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

    def save_and_keep(self, fp, *args, **kwargs):
        if isinstance(fp, (str, os.PathLike)):
            fp = os.path.basename(fp)  # whatever folder it names
            if fp.lower().endswith(tuple(VECTORS)):
                args, kwargs = ("PNG",), {}
        kwargs.setdefault("compress_level", 1)  # of PNG: nobody keeps the file
        save(self, fp, *args, **kwargs)
        # (`savefig` ends here, too. The program may go on changing it.)
        KEPT["saved"] = self.copy()

    ImageFont.truetype, Image.Image.save = nearest, save_and_keep
    Image.Image.show = lambda self, *args, **kwargs: KEPT.update(shown=self.copy())


def choose(names):
    """Which picture of a program counts: the last saved, else the last shown, the open figure, a
    variable img or image (a picture before an array), the last file that is a picture."""
    import numpy

    if KEPT:
        return KEPT.get("saved") or KEPT["shown"]
    plt = sys.modules.get("matplotlib.pyplot")
    if plt and plt.get_fignums():
        return picture_of(plt.gcf().canvas)
    variables = names.get("img"), names.get("image")
    for value in sorted(variables, key=lambda value: isinstance(value, numpy.ndarray)):
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, numpy.ndarray):
            if value.dtype.kind in "fb":  # shares of white
                value = (numpy.clip(value, 0, 1) * 255).astype("uint8")
            return Image.fromarray(value)
    for entry in sorted(os.scandir("."), key=lambda entry: -entry.stat().st_mtime_ns):
        with contextlib.suppress(OSError):  # it is no picture
            picture = Image.open(entry.path)
            picture.load()
            return picture
    raise NoPicture("no picture: nothing saved or shown, no open figure, no variable img or image")


def on_white(picture, max_side):
    """Any PIL picture -> RGB of an allowed size, with white where it was transparent."""
    if picture.mode in ("La", "RGBa"):  # premultiplied: convert only to their plain form
        picture = picture.convert(picture.mode.upper())
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    picture = picture.convert("RGB")  # a copy
    picture.thumbnail((max_side, max_side))  # never makes it larger
    return picture
