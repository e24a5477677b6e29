"""Code to picture: run the SVG or Python that a Coder wrote and hand back what it drew.

The step from Coder to Solver in the paper's method. Here: the pool of helper processes.
support/sandbox.py says how these are confined, support/cairo.py what becomes of an SVG,
support/programs.py what a Python program finds, and which picture of it counts.
SVG opens no file (it may embed a small `data:` PNG or JPEG). Text looks alike on all machines.
"""

import argparse
import contextlib
import gc
import os
import shutil
import sys
import tempfile
import weakref
from collections import deque
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path

from PIL import Image

from support import machine, programs, sandbox

MAX_SOURCE = 256_000  # bytes of code
MAX_SIDE = {"svg": 1024, "python": sandbox.MAX_SIDE}  # pixels; larger pictures are scaled down
MAX_ASPECT = 100  # the vision towers refuse 200 : 1
NO_CAIRO = "no CairoSVG here: pip install cairosvg, and apt install libcairo2 or brew install cairo"


@dataclass(frozen=True)
class Rendering:
    """What became of one item: exactly one of `image` (PIL, RGB) and `error` (a line) is set."""

    image: Image.Image | None
    error: str | None
    seconds: float


def rendering_of(width, height, body, seconds):
    """What a helper sent, RGB rows or the text of an error -> Rendering. Nothing is decoded."""
    if not width or not height:
        # For terminals and logs: printable, short, on one line.
        text = "".join(c if c.isprintable() else " " for c in body.decode("utf-8", "replace"))
        error = " ".join(text.split())[:300] or sandbox.TAMPERED
    elif max(width, height) > MAX_ASPECT * min(width, height):
        error = f"extreme shape: {width} x {height} pixels, more than {MAX_ASPECT} : 1"
    elif body == body[:3] * (width * height):
        error = f"blank picture: all of it has the colour #{body[:3].hex()}"
    else:
        return Rendering(Image.frombytes("RGB", (width, height), body), None, seconds)
    return Rendering(None, error, seconds)


# -------------------------------------------------------------------------------- in the trainer
class Renderer(contextlib.AbstractContextManager):
    """A pool of helpers; a context manager, or call `close()`. Not for two threads at once.

    workers: how many draw in parallel (default: one per core; started when there is work for them).
    timeout: wall-clock seconds for one item. unsafe_python: run Python even where the kernel cannot
    confine it. Else `refusal` says why it is refused there.
    RuntimeError: nothing can draw here; it says what to install.
    """

    def __init__(self, workers=None, timeout=5.0, unsafe_python=False):
        if (workers is not None and workers < 1) or not timeout > 0:
            raise ValueError(f"workers at least 1, timeout above 0: not {workers}, {timeout}")
        self.workers, self.timeout = workers or machine.cores(), timeout
        self.unsafe_python, self.refusal, self.helpers = unsafe_python, None, []
        self.scratch = Path(tempfile.mkdtemp(prefix="mmzero-drawings-"))
        # A finalizer also runs at exit and on garbage collection. The list is shared with it.
        self.close = weakref.finalize(self, _close, self.helpers, self.scratch)
        programs.pin_fonts(self.scratch)
        self._start(1)  # one now, so that a missing library is noticed here

    def __exit__(self, *_):
        self.close()

    def render(self, items, progress=False):
        """[(code | None, "svg" | "python"), ...] -> list[Rendering], in the same order."""
        from support import screen  # not at the top: helpers do without

        results, queue = [None] * len(items), deque()
        for index, (code, language) in enumerate(items):
            source = (code or "").encode("utf-8", "replace")
            problem = self._problem(source, language)
            if problem:
                results[index] = Rendering(None, problem, 0.0)
            else:
                queue.append((index, language, source))
        with screen.bar(total=len(queue), title="render", shown=progress) as bar:
            self._draw(queue, results, bar)
        return results

    def _problem(self, source, language):
        """Why an item is not drawn at all; None: it is."""
        if language not in MAX_SIDE:
            raise ValueError(f"language must be one of {list(MAX_SIDE)}, not {language!r}")
        if not source.strip():
            return "there is no code"
        if len(source) > MAX_SOURCE:
            return f"the code is longer than {MAX_SOURCE // 1000} kB"
        return self.refusal if language == "python" else None

    def _draw(self, queue, results, bar):
        """Let helpers draw all items (index, language, source), and put down what comes back."""
        owed, died = {}, set()  # helper -> its item; items that a helper died of
        try:
            while queue or owed:
                self._start(min(self.workers, len(queue)))
                for helper in self.helpers:
                    if queue and helper not in owed:
                        owed[helper] = queue.popleft()
                        helper.send(*owed[helper][1:])
                ready = connection.wait([helper.pipe for helper in owed], self.timeout + 60)
                if not ready:  # they keep the clock themselves: they must be broken
                    for helper in owed:
                        helper.process.kill()
                for helper in [helper for helper in owed if helper.pipe in ready]:
                    item = owed[helper]  # owed until the answer is read: see `finally`
                    try:
                        results[item[0]] = rendering_of(*helper.receive())
                    except (EOFError, OSError):  # it died, perhaps of the out-of-memory killer
                        self._drop(helper)
                        if item in died:
                            results[item[0]] = Rendering(None, "its process died twice", 0.0)
                        else:  # it may be innocent: once more
                            died.add(item)
                            queue.appendleft(item)
                    del owed[helper]
                    bar.update(results[item[0]] is not None)
        finally:
            # After an exception: late answers must not pass for those of the next call.
            for helper in owed:
                self._drop(helper)

    def _start(self, count):
        """See to it that there are `count` helpers."""
        script, known = os.path.abspath(__file__), len(self.helpers)
        for _ in range(known, count):
            self.helpers.append(sandbox.Helper(script, self.scratch, self.timeout))
        for helper in self.helpers[known:]:
            try:
                word, danger = helper.receive()[2].decode().split("\n")
            except (EOFError, OSError):
                word = "a rendering process did not start (its own message is above)"
            if word != "ready":
                self.close()
                raise RuntimeError(word)
            if danger and not self.unsafe_python:
                self.refusal = f"{danger} on this machine: refused (--unsafe-python runs them)"
            problem = self.refusal or danger
            if problem and helper is self.helpers[0]:
                print(f"render.py: {problem}", file=sys.stderr)

    def _drop(self, helper):
        self.helpers.remove(helper)
        helper.stop(0)


def _close(helpers, scratch):
    for helper in helpers:
        helper.stop()
    shutil.rmtree(scratch, ignore_errors=True)


# -------------------------------------------------------------------------------- in a helper
def worker(scratch, timeout):
    """A helper's life; `Renderer._start` reads its first reply."""
    try:
        from support import cairo, cairo_draw
    except (ImportError, OSError):
        return sandbox.Connection(0).send_bytes(sandbox.packed(0, 0, f"{NO_CAIRO}\n".encode()))
    cairo_draw.mend()
    modules = {"svg": cairo, "python": programs}
    drawers = {kind: partial(modules[kind].draw, max_side=side) for kind, side in MAX_SIDE.items()}
    drawers["svg"]('<svg xmlns="http://www.w3.org/2000/svg"><text>a</text></svg>')  # fills caches
    gc.freeze()  # the collector leaves what is there alone, so forks go on sharing its pages
    sandbox.serve(scratch, timeout, drawers, programs.prepare, programs.readable(scratch))


# -------------------------------------------------------------------------------- the command line
def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draw an SVG file or a Python program's picture.")
    option = parser.add_argument
    option("file", type=Path, metavar="FILE.svg|FILE.py")
    option("-o", "--output", type=Path, metavar="OUT.png", help="default: FILE.png beside FILE")
    option("--timeout", type=float, default=5.0, metavar="SECONDS", help="wall clock, default 5")
    option("--unsafe-python", action="store_true", help="run Python though nothing confines it")
    args = parser.parse_args(arguments)
    language = {".svg": "svg", ".py": "python"}.get(args.file.suffix.lower())
    output = args.output or args.file.with_suffix(".png")
    try:
        if language is None:
            raise ValueError(f"{args.file}: the name must end in .svg or .py")
        with Renderer(1, args.timeout, args.unsafe_python) as renderer:
            (drawn,) = renderer.render([(args.file.read_text("utf-8-sig"), language)])
        if drawn.error:
            raise ValueError(f"{args.file}: {drawn.error}")
        drawn.image.save(output, "PNG")
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"{output}: {drawn.image.width} x {drawn.image.height} pixels, {drawn.seconds:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        # Not this file's folder: no file beside it passes for a module that a program imports.
        del sys.path[0]
        try:
            worker(sys.argv[2], float(sys.argv[3]))
        except FileNotFoundError:
            if not sandbox.select.select([0], [], [], 5)[0]:
                raise  # (else stdin ended: the trainer left, and scratch went, before we began)
    else:
        main()
