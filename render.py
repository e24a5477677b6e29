"""Code to picture: run the SVG or Python that a Coder wrote and hand back what it drew (paper, section 2).

    trainer --(exec, pipe)--> helper --(fork, pipe)--> child

- The trainer (whoever holds a `Renderer`) runs no untrusted code, decodes no image format, starts no thread
  and never forks itself (unsafe beside CUDA and threads). It sends source text and receives raw RGB rows.
- A helper is this file started afresh: single-threaded, imports done, so that its forks are cheap and safe.
  It runs no untrusted code either. It holds the clock and ends a late child with SIGKILL: cairo has endless
  loops in C (an ellipse of radius 1e30), in which no signal handler of Python would run.
- A child draws. SVG is data that CairoSVG interprets: one child draws hundreds. Python: one fork a program.

What holds: limits on wall clock, processor time, memory and file size; a child sees neither the environment
nor the descriptors of the trainer; nothing survives the trainer; no item shifts or harms another; SVG opens
no file and no connection (it may embed a small `data:` PNG or JPEG); all Linux machines draw text alike.

What does not: a Python program may open files, sockets and processes with the rights of the user. Keeping it
from that takes the kernel's help (Landlock, seccomp), which belongs into `confine`. Until it is there, run
Python only where that is acceptable.

Which picture of a Python program counts: the last `Image.save` (matplotlib's `savefig` ends there too), else
a variable `img` or `image`, else the open matplotlib figure. Every mode ends as RGB on white.
"""

import argparse
import base64
import contextlib
import ctypes
import gc
import importlib.util
import io
import math
import os
import random
import re
import resource
import select
import selectors
import shutil
import signal
import site
import struct
import subprocess
import sys
import tempfile
import time
import types
import urllib.parse
import weakref
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MAX_SOURCE = 256_000                      # bytes of code
MAX_SIDE = {"svg": 1024, "python": 2048}  # pixels; a larger picture is scaled down
MAX_ASPECT = 100                          # the vision towers refuse 200 : 1
DEFAULT_SIDE = 512                        # pixels, for an SVG with neither size nor viewBox
MEMORY, FILE_SIZE, OPEN_FILES = 1 << 30, 16 << 20, 40  # bytes, bytes, count: limits of a child
BATCH = 8                                 # items a helper is sent at once, at most
SVG_LIFE = 500                            # items after which a fresh child takes over: leaks do not add up
REPLY = struct.Struct("<4sHHIf")          # magic, width, height, bytes that follow, seconds; width 0: error
MAGIC = b"MMZ0"
PARENT = os.getppid()                     # in a helper: the trainer
NO_CAIRO = ("the cairo library is missing; install it with `apt install libcairo2` (Debian, Ubuntu) "
            "or `brew install cairo` (macOS)")


@dataclass(frozen=True)
class Rendering:
    """What became of one item: exactly one of `image` (PIL, RGB) and `error` (one printable line) is set."""

    image: Image.Image | None
    error: str | None
    seconds: float


class NoPicture(Exception):
    """A reason in our own words why an item has no picture."""


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
        self.close = weakref.finalize(self, _close, self.helpers, self.scratch, os.getpid())
        pin_fonts(self.scratch)
        self._start(1)  # one now, so that a missing library is noticed here

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def render(self, items, progress=False):
        """[(code | None, "svg" | "python"), ...] -> list[Rendering], in the same order."""
        from tqdm import tqdm  # not at the top: helpers do without

        results, queue = [None] * len(items), deque()
        for index, (code, language) in enumerate(items):
            if language not in MAX_SIDE:
                raise ValueError(f"language must be one of {list(MAX_SIDE)}, not {language!r}")
            source = (code or "").encode("utf-8", "replace")
            if not source.strip():
                results[index] = Rendering(None, "there is no code", 0.0)
            elif len(source) > MAX_SOURCE:
                results[index] = Rendering(None, f"the code is longer than {MAX_SOURCE // 1000} kB", 0.0)
            else:
                queue.append((index, language, source))
        self._start(min(self.workers, len(queue)))
        deaths, owed = Counter(), {}  # owed: helper -> the items it has yet to answer, in order
        bar = tqdm(total=len(queue), desc="render", leave=False, disable=not progress)
        try:
            while queue or owed:
                self._hand_out(queue, owed)
                for helper in self._ready(owed):
                    try:
                        rendering = helper.receive()
                    except EOFError:  # it died, perhaps of the out-of-memory killer: another takes its place
                        queue.extendleft(reversed(owed.pop(helper)))
                        self._replace(helper)
                        deaths[queue[0]] += 1
                        if deaths[queue[0]] < 2:  # the item may be innocent: once more
                            continue
                        index, rendering = queue.popleft()[0], Rendering(None, "its process died twice", 0.0)
                    else:
                        index = owed[helper].popleft()[0]
                        if not owed[helper]:
                            del owed[helper]
                    results[index] = rendering
                    bar.update()
        finally:
            bar.close()
            for helper in owed:  # after an exception: late answers must not pass for those of the next call
                self._replace(helper)
        return results

    def _hand_out(self, queue, owed):
        """Give idle helpers a batch each. A helper reads all of it before it answers, and is not written to
        while it owes answers: neither side can block on a full pipe. Batches shrink towards the end, so that
        all helpers finish at about the same time."""
        for helper in [helper for helper in self.helpers if helper not in owed]:
            if helper.process.poll() is not None:  # killed while idle: no item is to blame
                helper = self._replace(helper)
            if queue:
                size = max(1, min(BATCH, len(queue) // (2 * self.workers)))
                owed[helper] = deque(queue.popleft() for _ in range(size))
                helper.send(owed[helper])

    def _ready(self, owed):
        with selectors.DefaultSelector() as selector:
            for helper in owed:
                selector.register(helper.process.stdout, selectors.EVENT_READ, helper)
            ready = [key.data for key, _ in selector.select(self.timeout + 60)]
        if not ready:  # helpers keep the clock themselves: such a silence means that they are broken
            for helper in owed:
                helper.process.kill()
        return ready

    def _start(self, count):
        fresh = [_Helper(self.scratch, self.timeout) for _ in range(count - len(self.helpers))]
        self.helpers += fresh
        for helper in fresh:
            try:
                problem = helper.receive().error
            except EOFError:
                problem = "a rendering process did not start (its own message is above)"
            if problem != "ready":
                self.close()
                raise RuntimeError(problem)

    def _replace(self, helper):
        self.helpers.remove(helper)
        helper.process.kill()
        helper.stop()
        self._start(len(self.helpers) + 1)
        return self.helpers[-1]


class _Helper:
    """The trainer's end of a helper process."""

    def __init__(self, scratch, timeout):
        # A bare environment: a program that reads it finds no token. HOME is scratch, so the place of `pip
        # install --user` must be named. One thread for BLAS: a process with threads must not fork.
        passed = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
        env = {name: os.environ[name] for name in passed if name in os.environ} | {
            "HOME": f"{scratch}", "MPLCONFIGDIR": f"{scratch}/mpl", "PYTHONUSERBASE": site.getuserbase(),
            "FONTCONFIG_FILE": f"{scratch}/fonts.conf", "XDG_DATA_DIRS": f"{scratch}", "MPLBACKEND": "Agg",
            "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8",
            "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
        # -P: no file beside this one shadows a module. New session: Ctrl-C reaches the trainer alone.
        self.process = subprocess.Popen(
            [sys.executable, "-P", os.path.abspath(__file__), "--worker", scratch, str(timeout)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env, start_new_session=True)

    def send(self, batch):
        parts = [struct.pack("<I", len(batch))]
        for _, language, source in batch:
            parts += [struct.pack("<?I", language == "svg", len(source)), source]
        with contextlib.suppress(BrokenPipeError):  # it is dead, as `receive` will find
            write_all(self.process.stdin.fileno(), b"".join(parts))

    def receive(self):
        """-> Rendering. Raises EOFError when the helper is gone."""
        _, width, height, length, seconds = REPLY.unpack(self._read(REPLY.size))
        body = self._read(length)
        if width:  # frombytes copies rows, and refuses a wrong number of them; nothing is decoded
            return Rendering(Image.frombytes("RGB", (width, height), body), None, seconds)
        return Rendering(None, body.decode(), seconds)

    def _read(self, size):
        data = bytearray()
        while len(data) < size:
            chunk = self.process.stdout.read(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def stop(self):
        self.process.stdin.close()  # tells it to leave
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def _close(helpers, scratch, owner):
    if os.getpid() == owner:  # not in a forked copy of the trainer
        for helper in helpers:
            helper.process.stdin.close()
        for helper in helpers:
            helper.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def pin_fonts(scratch):
    """Make the DejaVu fonts that matplotlib ships the only ones, so that text looks the same everywhere."""
    spec = importlib.util.find_spec("matplotlib")  # finds the folder, does not import the package
    if spec is None:
        raise RuntimeError("matplotlib is missing (its fonts are used for SVG too): pip install matplotlib")
    folder = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    (scratch / "fonts").mkdir()  # $XDG_DATA_DIRS/fonts is where Pillow's truetype("DejaVuSans.ttf") looks
    for font in folder.glob("DejaVu*.ttf"):
        (scratch / "fonts" / font.name).symlink_to(font)
    family = '<match>{}<edit name="family" mode="append_last"><string>{}</string></edit></match>'
    when = '<test name="family"><string>{}</string></test>'
    (scratch / "fonts.conf").write_text(
        f"<fontconfig><dir>{scratch}/fonts</dir><cachedir>{scratch}/fontconfig</cachedir>"
        + family.format(when.format("serif"), "DejaVu Serif")
        + family.format(when.format("monospace"), "DejaVu Sans Mono")
        + family.format("", "DejaVu Sans") + "</fontconfig>")


def write_all(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view):]


# -------------------------------------------------------------------------------- in a helper


def helper_main(scratch, timeout):
    """Answer batches from stdin on stdout until stdin ends: the trainer has closed it, or is gone."""
    def reply(body, width=0, height=0, seconds=0.0):
        write_all(1, REPLY.pack(MAGIC, width, height, len(body), seconds) + body)

    try:
        import cairosvg.surface  # noqa: F401
    except OSError:
        return reply(NO_CAIRO.encode())
    except ImportError as error:
        return reply(f"{error}: pip install cairosvg".encode())
    draw_svg('<svg xmlns="http://www.w3.org/2000/svg"><text>a</text></svg>')  # forks inherit the font caches
    gc.freeze()  # the collector leaves what is there alone, so forks go on sharing its pages
    reply(b"ready")
    folder = Path(scratch, f"item-{os.getpid()}")  # where Python programs run, one after the other
    folder.mkdir()
    svg_child = child = None
    try:
        while True:
            batch = []
            for _ in range(struct.unpack("<I", receive(0, 4))[0]):
                is_svg, length = struct.unpack("<?I", receive(0, 5))
                batch.append((is_svg, receive(0, length)))
            for is_svg, source in batch:
                if is_svg:
                    child = svg_child = svg_child or Child("svg", "/", timeout)
                else:
                    import_for_python(source)
                    child = Child("python", folder, timeout)
                started = time.monotonic()
                width, height, body = child.draw(source)
                seconds = time.monotonic() - started
                if not is_svg:
                    child.kill()
                    empty(folder)
                elif child.broken or child.drawn == SVG_LIFE:
                    child.kill()
                    svg_child = None
                reply(body, width, height, seconds)
    except (EOFError, BrokenPipeError):  # the trainer is done with us, or gone
        for each in {child, svg_child} - {None}:
            each.kill()
        with contextlib.suppress(FileNotFoundError):  # another helper was faster
            empty(folder)
        shutil.rmtree(scratch, ignore_errors=True)  # for all of us: a killed trainer cannot


def receive(descriptor, size, deadline=math.inf):
    """Exactly `size` bytes. TimeoutError: the deadline (time.monotonic) passed. ConnectionError: the child
    closed. EOFError: the trainer is gone. (While a child draws, stdin has nothing for us but its end.)"""
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        ready = select.select({descriptor, 0}, [], [], min(left, 1))[0]
        if os.getppid() != PARENT or (descriptor and 0 in ready):
            raise EOFError
        if ready:
            chunk = os.read(descriptor, size - len(data))
            if not chunk:
                raise ConnectionError if descriptor else EOFError
            data += chunk
    return bytes(data)


def import_for_python(source):
    """Import once, here, what each program would otherwise import in its own fork."""
    if "numpy" not in sys.modules:
        import numpy.random  # noqa: F401
        from PIL import ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont, ImageOps  # noqa: F401
        Image.preinit()  # the usual file formats
        gc.freeze()
    if b"matplotlib" in source and "matplotlib" not in sys.modules:  # it makes forks dearer: only if used
        with contextlib.suppress(ImportError):  # the program's own import will fail, and say so
            import matplotlib.pyplot as plt
            plt.plot([1], label="a")
            plt.legend()
            plt.savefig(io.BytesIO())  # loads the font and the writer
            plt.close()
            gc.freeze()


def empty(folder):
    """Delete what a program left in its folder. (The folder stays: to make and delete it can take 6 ms.)
    Subfolders are flattened first: shutil.rmtree fails on thousands of nested ones, or without permissions.
    """
    moved = 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry)
                continue
            os.chmod(entry, 0o700)
            for inner in list(os.scandir(entry)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner, 0o700)
                moved += 1
                os.rename(inner, f"{folder}/{os.getpid()}.{moved}")
            os.rmdir(entry)


class Child:
    """The helper's end of a child process, forked here."""

    def __init__(self, language, folder, timeout):
        self.language, self.timeout, self.drawn, self.broken = language, timeout, 0, False
        helper = os.getpid()
        theirs, self.sources = os.pipe()
        self.results, their_results = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                confine(language, folder, timeout, helper, theirs, their_results)
                child_main(draw_svg if language == "svg" else draw_python, theirs, their_results)
            finally:
                os._exit(1)  # never back into the helper's code
        os.close(theirs)
        os.close(their_results)

    def draw(self, source):
        """-> (width, height, RGB rows) or (0, 0, reason). What the child sends is checked, not believed."""
        deadline = time.monotonic() + self.timeout
        self.drawn += 1
        try:
            write_all(self.sources, struct.pack("<I", len(source)) + source)
            magic, width, height, length, _ = REPLY.unpack(receive(self.results, REPLY.size, deadline))
            expected = 3 * width * height if width else min(length, 4096)
            if magic != MAGIC or max(width, height) > MAX_SIDE[self.language] or length != expected:
                raise NoPicture("the program tampered with its result")
            body = receive(self.results, length, deadline)
            if not width:
                raise NoPicture(body.decode("utf-8", "replace"))
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise NoPicture(f"extreme shape: {width} x {height} pixels, more than {MAX_ASPECT} : 1")
            if body == body[:3] * (width * height):
                raise NoPicture(f"blank picture: all of it has the colour #{body[:3].hex()}")
            return width, height, body
        except TimeoutError:
            problem, self.broken = f"took longer than {self.timeout:g} s", True
        except ConnectionError:
            status, self.broken = self.kill(), True
            problem = "the program ended before its picture could be taken"
            if os.WIFSIGNALED(status):
                problem = f"the program was ended by {signal.Signals(os.WTERMSIG(status)).name}"
        except NoPicture as reason:
            problem = str(reason)
        return 0, 0, one_line(problem).encode()

    def kill(self):
        """End the child and what it started in its session -> its status, its own if it had ended before."""
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)  # it may not have reached its setsid yet
        _, status = os.waitpid(self.pid, 0)
        os.close(self.sources)
        os.close(self.results)
        self.pid = None
        return status


def one_line(text):
    r"""An error's text ends up in terminals and logs: printable, short, on one line.

    >>> one_line("one\n two \x1b[31m red")
    'one two [31m red'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text[:4096]).split())[:300]


# -------------------------------------------------------------------------------- in a child


def confine(language, folder, timeout, helper, *pipes):
    """Between fork and untrusted code: give up what is not needed. Stronger locks belong here."""
    os.setsid()
    limits = {"CORE": 0, "FSIZE": FILE_SIZE, "NOFILE": OPEN_FILES}
    if language == "python":  # an SVG child draws hundreds of items: its helper's clock has to do
        limits["CPU"] = math.ceil(timeout) + 1
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the helper ...
        if os.getppid() != helper:     # ... unless it died before that line
            os._exit(1)
        libc.prctl(38, 1, 0, 0, 0)     # PR_SET_NO_NEW_PRIVS: no setuid program gives more rights
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, the kernel takes us first
        limits |= {"AS": MEMORY, "NPROC": 0}  # NPROC 0: no process, no thread (the kernel exempts root)
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # 0 and 1 lead to the trainer
        os.dup2(null, descriptor)
    low, high = sorted(pipes)
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, 65536)
    os.chdir(folder)


def child_main(draw, sources, results):
    reader = open(sources, "rb")
    while head := reader.read(4):
        source = reader.read(*struct.unpack("<I", head)).decode()
        try:
            width, height, body = draw(source)
        except BaseException as error:  # a program may raise anything: SystemExit, GeneratorExit, ...
            width, height, body = 0, 0, describe(error).encode("utf-8", "replace")[:4096]
        write_all(results, REPLY.pack(MAGIC, width, height, len(body), 0.0) + body)


def describe(error):
    """-> "NameError: name 'x' is not defined (line 3)": the last line of the drawn program that took part."""
    if isinstance(error, NoPicture):
        return str(error)
    syntax = isinstance(error, SyntaxError)
    text, line, trace = (error.msg, error.lineno, None) if syntax else (str(error), None, error.__traceback__)
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "main.py" else line
        trace = trace.tb_next
    return type(error).__name__ + (f": {text}" if text else "") + (f" (line {line})" if line else "")


def pixels(length):
    """An absolute SVG length in pixels; None for one that depends on a page we do not have, or is nonsense.

    >>> pixels("1in"), pixels("64"), pixels("100%"), pixels("nan")
    (96.0, 64.0, None, None)
    """
    match = re.fullmatch(r"\s*\+?(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*(px|pt|pc|mm|cm|in|em|rem)?\s*", length or "")
    unit = {"pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96, "em": 16, "rem": 16}
    value = float(match[1]) * unit.get(match[2], 1) if match else 0
    return value if 1e-6 < value < 1e9 else None


def svg_size(width, height, viewbox):
    """Attributes of the root -> (width, height, viewBox | None), positive and finite.

    >>> svg_size("200", None, "0 0 100 50"), svg_size("100%", "100%", None)
    ((200.0, 100.0, '0 0 100.0 50.0'), (512, 512, None))
    """
    width, height, box = pixels(width), pixels(height), (viewbox or "").replace(",", " ").split()
    box_width, box_height = map(pixels, box[2:]) if len(box) == 4 else (None, None)
    if not box_width or not box_height:
        return width or height or DEFAULT_SIDE, height or width or DEFAULT_SIDE, None
    if not width and not height:
        width = box_width
    return (width or height * box_width / box_height, height or width * box_height / box_width,
            f"{box[0]} {box[1]} {box_width} {box_height}")


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
    """-> (width, height, RGB rows). The size is settled before there is a canvas: width="1e9" is harmless."""
    from cairosvg.parser import Tree
    from cairosvg.surface import PNGSurface

    # A str is decoded already: the encoding its XML declaration names no longer holds.
    source = re.sub(r"^<\?xml[^>]*\?>", "", source.lstrip("\ufeff \t\r\n"))
    tree = Tree(bytestring=source.encode(), url_fetcher=fetch)
    if tree.tag != "svg":
        raise NoPicture(f"the root element is <{tree.tag}>, not <svg>")
    width, height, viewbox = svg_size(tree.get("width"), tree.get("height"), tree.pop("viewBox", None))
    tree["width"], tree["height"] = str(width), str(height)
    if viewbox:
        tree["viewBox"] = viewbox
    scale = min(1, MAX_SIDE["svg"] / max(width, height))
    width, height = (max(1, math.ceil(side * scale - 1e-6)) for side in (width, height))
    # PNGSurface is CairoSVG's raster surface; that we never ask it for the PNG doubles the speed.
    canvas = PNGSurface(
        tree, None, 96, output_width=width, output_height=height, background_color="white").cairo
    canvas.flush()
    # ARGB32 lies in memory as B, G, R, A; on white A is always 255, so nothing is premultiplied.
    picture = Image.frombuffer(
        "RGB", (width, height), canvas.get_data(), "raw", "BGRX", canvas.get_stride(), 1)
    return width, height, picture.tobytes()


def on_white(picture):
    """Any PIL picture -> RGB of an allowed size, with white where it was transparent."""
    if 0 in picture.size:
        raise NoPicture("the picture has no pixels")
    if picture.mode in ("La", "RGBa"):  # premultiplied: convert only to their plain form
        picture = picture.convert(picture.mode.upper())
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    scale = min(1, MAX_SIDE["python"] / max(picture.size))
    return picture.convert("RGB").resize([math.ceil(side * scale) for side in picture.size])


def draw_python(source):
    """Run a program as `python main.py` in an empty folder would -> (width, height, RGB rows)."""
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
    plt = sys.modules.get("matplotlib.pyplot")
    variables = [value for value in map(vars(module).get, ("img", "image"))
                 if isinstance(value, (Image.Image, numpy.ndarray))]
    if saved:
        picture = saved[0]
    elif variables:
        array = isinstance(variables[0], numpy.ndarray)
        picture = on_white(Image.fromarray(variables[0]) if array else variables[0])
    elif plt and plt.get_fignums():
        canvas = plt.gcf().canvas
        canvas.draw()
        picture = on_white(Image.fromarray(numpy.asarray(canvas.buffer_rgba())))
    else:
        raise NoPicture("no picture: nothing was saved, no variable img or image, no open figure")
    return *picture.size, picture.tobytes()


# -------------------------------------------------------------------------------- the command line


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draw an SVG file or a Python program's picture.")
    parser.add_argument("file", type=Path, metavar="FILE.svg|FILE.py")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.png", help="default: FILE.png beside FILE")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="wall clock, default 5")
    args = parser.parse_args(arguments)
    language = {".svg": "svg", ".py": "python"}.get(args.file.suffix.lower())
    if language is None:
        raise SystemExit(f"{args.file}: the name must end in .svg or .py")
    output = args.output or args.file.with_suffix(".png")
    try:
        data = args.file.read_bytes()
        declared = re.match(rb"<\?xml[^>]*encoding=[\"']([\w-]+)", data)
        code = data.decode(declared[1].decode() if declared else "utf-8-sig")
        with Renderer(workers=1, timeout=args.timeout) as renderer:
            rendering = renderer.render([(code, language)])[0]
        if rendering.error:
            raise SystemExit(f"{args.file}: {rendering.error}")
        rendering.image.save(output, "PNG")
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise SystemExit(str(error)) from None
    print(f"{output}: {rendering.image.width} x {rendering.image.height} pixels, {rendering.seconds:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        helper_main(sys.argv[2], float(sys.argv[3]))
    else:
        main()
