"""Confinement: how code nobody has read becomes a picture without harming whoever asked for it.

    trainer --(exec, pipe)--> helper --(fork, pipe)--> child

- The trainer runs no untrusted code, decodes no image format, starts no thread and never forks itself (unsafe
  beside CUDA and threads). It sends source text and receives raw RGB rows.
- A helper is a Python started afresh: single-threaded, imports done, so that its forks are cheap and safe. It
  runs no untrusted code either. It holds the clock and ends a late child with SIGKILL: cairo has endless
  loops in C (an ellipse of radius 1e30), in which no signal handler of Python would run.
- A child draws. SVG is data that CairoSVG interprets: one child draws hundreds. Python: one fork a program.

What holds: limits on wall clock, processor time, memory and file size; a child sees neither the environment
nor the descriptors of the trainer; nothing survives the trainer; no item shifts or harms another.

What does not: a Python program may open files, sockets and processes with the rights of the user. Keeping it
from that takes the kernel's help (Landlock, seccomp), which belongs into `confine`. Until it is there, run
Python only where that is acceptable.

What is drawn is none of this file's business: `serve` is given functions from source text to a PIL picture.
"""

import contextlib
import ctypes
import math
import os
import resource
import select
import shutil
import signal
import site
import struct
import subprocess
import sys
import time
from pathlib import Path

LIFE = {"svg": 500, "python": 1}  # items after which, or after an error, a fresh child takes over
LANGUAGES = list(LIFE)
MAX_SIDE = 2048                   # pixels: what claims to be larger is not read
MEMORY, FILE_SIZE, OPEN_FILES = 1 << 30, 16 << 20, 40  # bytes, bytes, count: limits of a child
ITEM = struct.Struct("<BI")       # trainer to helper: which of LANGUAGES, bytes of source that follow
REPLY = struct.Struct("<HHIf")    # back: width, height, bytes of RGB rows that follow, seconds. Without any
#                                   pixels (a width or height of 0), the bytes are the text of an error.


class NoPicture(Exception):
    """A reason in our own words why an item has no picture."""


def write_all(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view):]


def receive(descriptor, size, wait=lambda: None):
    """Exactly `size` bytes. EOFError: they end before. `wait` is called ahead of each read."""
    data = bytearray()
    while len(data) < size:
        wait()
        chunk = os.read(descriptor, size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def reply(descriptor, width, height, body, seconds=0.0):
    write_all(descriptor, REPLY.pack(width, height, len(body), seconds) + body)


# -------------------------------------------------------------------------------- in the trainer


class Helper:
    """The trainer's end of a helper: `script --worker scratch timeout`, which is to call `serve`."""

    def __init__(self, script, scratch, timeout, environment):
        # A bare environment: a program that reads it finds no token. HOME is scratch, so the place of `pip
        # install --user` must be named. One thread for BLAS: a process with threads must not fork.
        passed = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
        bare = {name: os.environ[name] for name in passed if name in os.environ} | {
            "HOME": str(scratch), "PYTHONUSERBASE": site.getuserbase(), "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
        self.process = subprocess.Popen(  # its own session: Ctrl-C in the terminal reaches the trainer alone
            [sys.executable, script, "--worker", scratch, str(timeout)], env=bare | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)

    def fileno(self):  # for `multiprocessing.connection.wait`
        return self.process.stdout.fileno()

    def send(self, language, source):
        """Send the next item only after the answer to this one: so neither side can block on a full pipe."""
        with contextlib.suppress(BrokenPipeError):  # it is dead, as `receive` will find
            write_all(self.process.stdin.fileno(), ITEM.pack(LANGUAGES.index(language), len(source)) + source)

    def receive(self):
        """-> (width, height, RGB rows, seconds) or (0, 0, reason, seconds). EOFError: the helper is gone."""
        width, height, length, seconds = REPLY.unpack(receive(self.fileno(), REPLY.size))
        return width, height, receive(self.fileno(), length), seconds

    def stop(self):
        self.process.stdin.close()  # tells it to leave
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


# -------------------------------------------------------------------------------- in a helper


def serve(scratch, timeout, drawers, prepare):
    """Answer items from stdin on stdout until stdin ends: the trainer has closed it, or is gone.

    drawers: {language: function(source) -> PIL picture, mode RGB}, called in a child.
    prepare(language, source bytes): called here, before a fork, for imports that all programs share.
    """
    folder, children = Path(scratch, f"item-{os.getpid()}"), {}  # where children work; language -> Child
    folder.mkdir(parents=True)
    try:
        reply(1, 0, 0, b"ready")
        while True:
            index, length = ITEM.unpack(receive(0, ITEM.size))
            language, source = LANGUAGES[index], receive(0, length)
            prepare(language, source)
            if language not in children:
                children[language] = Child(drawers[language], LIFE[language], folder, timeout)
            started = time.monotonic()
            answer = children[language].draw(source)
            seconds = time.monotonic() - started
            if not children[language].life:
                children.pop(language).kill()
                empty(folder)
            reply(1, *answer, seconds)
    except (EOFError, BrokenPipeError, SystemExit):  # the trainer is done with us, or gone
        for child in children.values():
            child.kill()
        empty(folder)
        shutil.rmtree(scratch, ignore_errors=True)  # for all helpers: a killed trainer cannot


def empty(folder):
    """Delete what a program left in its folder. (The folder stays: to make and delete it can take 6 ms.)
    Subfolders are flattened first: shutil.rmtree fails on thousands of nested ones, or without permissions.
    """
    moved = 0
    with contextlib.suppress(FileNotFoundError):  # scratch is gone: the trainer or a faster helper deleted it
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
    """The helper's end of a child process, forked here. life: how many items it may yet draw."""

    def __init__(self, draw, life, folder, timeout):
        self.life, self.timeout, self.status, helper = life, timeout, None, os.getpid()
        theirs, self.sources = os.pipe()
        self.results, their_results = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                confine(folder, life * timeout, helper, theirs, their_results)
                child_main(draw, theirs, their_results)
            finally:
                os._exit(1)  # never back into the helper's code, and no traceback
        os.close(theirs)
        os.close(their_results)

    def draw(self, source):
        """-> (width, height, RGB rows) or (0, 0, reason). What the child sends is checked, not believed."""
        deadline = time.monotonic() + self.timeout

        def wait():
            ready = select.select([self.results, 0], [], [], max(0, deadline - time.monotonic()))[0]
            if 0 in ready:  # while a child draws, stdin has nothing but its end: the trainer is gone
                raise SystemExit
            if not ready or time.monotonic() > deadline:
                raise TimeoutError

        self.life -= 1
        try:
            write_all(self.sources, struct.pack("<I", len(source)) + source)
            width, height, length, _ = REPLY.unpack(receive(self.results, REPLY.size, wait))
            size = 3 * width * height
            if max(width, height) > MAX_SIDE or (length != size if size else length > 4096):
                raise ValueError
            body = receive(self.results, length, wait)
            if size:
                return width, height, body
            problem = body.decode("utf-8", "replace")
        except ValueError:
            problem = "the program tampered with its result"
        except TimeoutError:
            problem = f"took longer than {self.timeout:g} s"
        except (EOFError, BrokenPipeError):
            problem = "the program ended before its picture could be taken"
            if os.WIFSIGNALED(self.kill()):
                problem = f"the program was ended by {signal.Signals(os.WTERMSIG(self.status)).name}"
        self.life = 0  # after a mere error too: cairo caches a font that failed, and later items need it
        return 0, 0, problem.encode()

    def kill(self):
        """End the child and what it started in its session -> its status, its own if it had ended before."""
        if self.status is None:
            for end in (os.killpg, os.kill):  # not the group alone: it may not have reached its setsid yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]
            os.close(self.sources)
            os.close(self.results)
        return self.status


# -------------------------------------------------------------------------------- in a child


def confine(folder, seconds, helper, *pipes):
    """Between fork and untrusted code: give up what is not needed. Stronger locks belong here."""
    os.setsid()
    limits = {"CORE": 0, "FSIZE": FILE_SIZE, "NOFILE": OPEN_FILES, "CPU": math.ceil(seconds) + 1}
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
    kept = [2, *sorted(pipes), 65536]
    for low, high in zip(kept, kept[1:]):
        os.closerange(low + 1, high)
    os.chdir(folder)


def child_main(draw, sources, results):
    reader = open(sources, "rb")
    while head := reader.read(4):
        source = reader.read(*struct.unpack("<I", head)).decode()
        try:
            picture = draw(source)
            answer = *picture.size, picture.tobytes()
        except BaseException as error:  # a program may raise anything: SystemExit, GeneratorExit, ...
            answer = 0, 0, describe(error).encode("utf-8", "replace")[:4096]
        reply(results, *answer)


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
