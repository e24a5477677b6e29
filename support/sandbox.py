"""Confinement: how code nobody has read becomes a picture without harming whoever asked for it.

    trainer --(exec, pipe)--> helper --(fork, pipe)--> child

- The trainer runs no untrusted code, decodes no image format, starts no thread and never forks itself (unsafe beside CUDA and
  threads). It sends source text and reads raw RGB rows.
- A helper is a fresh Python, single-threaded, imports done: its forks are cheap and safe. It runs no untrusted code either. It
  ends a late child by SIGKILL: in cairo's endless loops (a radius of 1e30) no Python handler would run.
- A child draws, locked in by `confine`: hundreds of SVGs (data that CairoSVG interprets), or one Python program.

Held on Linux, and proved by `self_test` at each start: a program reads its libraries and the files it wrote, in a folder that is
emptied after it. It cannot read or write others, connect, start a process or thread, signal, change permissions, run programs.
Landlock guards the files, seccomp the system calls (without Landlock: every open, too). If a promise is broken, Python is
refused. Wall clock, processor time, memory and scratch are limited for each child.
Not held: the kernel is shared, a hole in it is a way out; stat() and readlink() tell which files exist; memory is limited per
worker, not in all; files deleted while open escape the limit on scratch (not 16 MB each); time limits are not exact.
"""

import contextlib
import ctypes
import errno
import os
import resource
import select
import shutil
import signal
import site
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

LINUX = sys.platform == "linux"
LIFE = {"svg": 500, "python": 1}  # items after which, or after an error, a fresh child takes over
LANGUAGES, NOBODY = list(LIFE), 65534
MAX_SIDE = 2048  # pixels: what claims to be larger is not read
MEMORY, FILE_SIZE, OPEN_FILES = 1 << 30, 16 << 20, 40  # bytes, bytes, count: limits of a child
SCRATCH, SCRATCH_FILES = 64 << 20, 200  # bytes, count: of the files that a program has written
ITEM = struct.Struct("<BI")  # trainer to helper: which of LANGUAGES, bytes of source that follow
REPLY = struct.Struct(
    "<HHIf"
)  # back: width, height, bytes of text that follow, seconds. Where there are pixels, their rows lie
#                                   in the file `pixels`; else (a width or height of 0) the text says why.
TAMPERED = "the program tampered with its result"


class NoPicture(Exception):
    """A reason in our own words why an item has no picture."""


def receive(descriptor, size, wait=lambda: None):
    """Exactly `size` bytes. EOFError: they end before. `wait` is called ahead of each read."""
    data = b""
    while len(data) < size:
        wait()
        data += (part := os.read(descriptor, size - len(data)))
        if not part:
            raise EOFError
    return data


def send(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def reply(descriptor, width, height, text, seconds=0.0):
    send(descriptor, REPLY.pack(width, height, len(text), seconds) + text)


# -------------------------------------------------------------------------------- in the trainer
class Helper:
    """The trainer's end of a helper: `script --worker scratch timeout pixels`, which is to call `serve`."""

    def __init__(self, script, scratch, timeout, environment):
        # A bare environment: a program that reads it finds no token. HOME is scratch, so the place of `pip install --user` must
        # be named. One thread for BLAS: a process with threads must not fork. Page faults are much of a short program's time:
        # malloc is to take huge pages where the kernel grants them, from one growing heap.
        passed = (
            "PATH",
            "PYTHONPATH",
            "LD_LIBRARY_PATH",
            "DYLD_LIBRARY_PATH",
            "DYLD_FALLBACK_LIBRARY_PATH",
        )
        bare = {name: os.environ[name] for name in passed if name in os.environ} | {
            "HOME": str(scratch),
            "PYTHONUSERBASE": site.getuserbase(),
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:glibc.malloc.mmap_threshold=33554432",
        }
        # Children write their rows here, and we read when the writer is dead or idle. (Two pipes would copy twice as often.)
        self.pixels = (
            os.memfd_create("pixels") if LINUX else os.dup(tempfile.TemporaryFile().fileno())
        )
        self.process = (
            subprocess.Popen(  # its own session: Ctrl-C in the terminal reaches the trainer alone
                [sys.executable, script, "--worker", scratch, str(timeout), str(self.pixels)],
                env=bare | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                pass_fds=[self.pixels],
            )
        )

    def fileno(self):  # for `multiprocessing.connection.wait`
        return self.process.stdout.fileno()

    def send(self, language, source):
        """Send the next item only after the answer to this one: so neither side can block on a full pipe."""
        with contextlib.suppress(BrokenPipeError):  # it is dead, as `receive` will find
            send(
                self.process.stdin.fileno(),
                ITEM.pack(LANGUAGES.index(language), len(source)) + source,
            )

    def receive(self):
        """-> (width, height, RGB rows, seconds) or (0, 0, reason, seconds). EOFError: the helper is gone."""
        width, height, length, seconds = REPLY.unpack(receive(self.fileno(), REPLY.size))
        body, size = receive(self.fileno(), length), 3 * width * height
        if size and len(body := os.pread(self.pixels, size, 0)) < size:
            width, body = 0, TAMPERED.encode()
        os.ftruncate(
            self.pixels, 0
        )  # so what the next program finds there, or passes off, is its own
        os.lseek(
            self.pixels, 0, os.SEEK_SET
        )  # the place is shared, too: writing behind it would make rows of zeros
        return width, height, body, seconds

    def stop(self):
        self.process.stdin.close()  # tells it to leave
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self.process.kill()  # nothing, if it has left
        self.process.wait()
        self.process.stdout.close()
        os.close(self.pixels)


# -------------------------------------------------------------------------------- in a helper
def serve(scratch, timeout, pixels, drawers, prepare, readable):
    """Answer items from stdin on stdout until stdin ends: the trainer has closed it, or is gone. The first reply is "ready", a
    line on what the kernel lacks, a line on what Python could do here (both empty where all is well).
    pixels: descriptor of the file for rows. drawers: {language: function(source) -> PIL picture, mode RGB}, called in a child.
    prepare(language, source bytes): called here, before a fork, for imports that all programs share.
    readable: the files and folders that children may read.
    """
    folder, probe = Path(scratch, f"item-{os.getpid()}"), Path(scratch, f"probe-{os.getpid()}")
    folder.mkdir()  # where children work. (Not parents: scratch is gone if the trainer has left)
    probe.touch()
    (
        os.chmod(scratch, 0o711),
        os.chmod(probe, 0o777),
    )  # open to any uid, so that the locks are what is tested
    uid, ruleset = spare_uid(readable), landlock(readable, folder)
    os.chown(folder, uid, -1)
    if LINUX:
        Path("/proc/self/oom_score_adj").write_text(
            "1000"
        )  # if memory runs out, the kernel takes us and our children first
    drawers = drawers | {"self-test": self_test}
    locks = {name: (uid, ruleset, seccomp(ruleset, is_program=name != "svg")) for name in drawers}
    children = {}  # by language

    def draw(language, source):
        if language not in children:
            children[language] = Child(
                drawers[language], LIFE.get(language, 1), folder, timeout, pixels, locks[language]
            )
        answer = children[language].draw(source)
        if not children[language].life:
            children.pop(language).kill()
            empty(folder)
        return answer

    try:
        lacks = "" if ruleset else "the kernel has no Landlock: Python programs can open no files"
        verdict = draw("self-test", str(probe).encode())[2].decode()
        reply(1, 0, 0, f"ready\n{lacks}\n{verdict * (verdict != 'all held')}".encode())
        while True:
            index, length = ITEM.unpack(receive(0, ITEM.size))
            language, source = LANGUAGES[index], receive(0, length)
            prepare(language, source)
            started = time.monotonic()
            reply(1, *draw(language, source), time.monotonic() - started)
    except (EOFError, BrokenPipeError, SystemExit):  # the trainer is done with us, or gone
        for child in children.values():
            child.kill()
        empty(folder)
        shutil.rmtree(scratch, ignore_errors=True)  # for all helpers: a killed trainer cannot


def spare_uid(readable):
    """The uid for children: nobody's if we are root, but our own if others may not read Python and its libraries, as those in
    /root. (Children lose root's capabilities all the same.)"""
    if os.geteuid():
        return os.geteuid()
    try:
        os.setgroups([]), os.setegid(NOBODY), os.seteuid(NOBODY)
        for path in readable:
            os.close(os.open(path, os.O_RDONLY))
        return NOBODY
    except OSError:  # or this container has no such uid
        return 0
    finally:
        os.seteuid(0), os.setegid(0)


def empty(folder):
    """Delete what a program left, but not the folder itself: to make and delete that can take 6 ms."""
    with contextlib.suppress(
        FileNotFoundError
    ):  # scratch is gone: the trainer or a faster helper deleted it
        for entry in list(os.scandir(folder)):
            if entry.is_dir(
                follow_symlinks=False
            ):  # only where mkdir is not refused. rmtree cannot go 1,000 deep
                for command in ("chmod", "-R", "u+rwx"), ("rm", "-rf"):
                    subprocess.run([*command, entry.path], check=False, stderr=subprocess.DEVNULL)
            else:
                os.unlink(entry)


class Child:
    """The helper's end of a child process, forked here. life: how many items it may yet draw."""

    def __init__(self, drawer, life, folder, timeout, pixels, locks):
        self.life, self.folder, self.timeout, self.status, helper = (
            life,
            folder,
            timeout,
            None,
            os.getpid(),
        )
        (theirs, self.sources), (self.results, their_results) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                confine(folder, life * timeout, helper, locks, theirs, their_results, pixels)
                child_main(drawer, theirs, their_results, pixels)
            finally:
                os._exit(1)  # never back into the helper's code, and no traceback
        os.close(theirs), os.close(their_results)

    def draw(self, source):
        """-> (width, height, b"") or (0, 0, reason). What the child sends is checked, not believed."""
        deadline = time.monotonic() + self.timeout

        def wait():
            ready = []
            while not ready:
                if time.monotonic() > deadline:
                    raise NoPicture(f"took longer than {self.timeout:g} s")
                ready = select.select([self.results, 0], [], [], 0.02)[0]
                if (
                    0 in ready
                ):  # while a child draws, stdin has nothing but its end: the trainer is gone
                    raise SystemExit
                with contextlib.suppress(FileNotFoundError):  # deleted just now
                    sizes = [
                        entry.stat(follow_symlinks=False).st_blocks * 512
                        for entry in os.scandir(self.folder)
                    ]
                    if len(sizes) > SCRATCH_FILES or sum(sizes) > SCRATCH:
                        raise NoPicture(
                            f"wrote more than {SCRATCH >> 20} MB or {SCRATCH_FILES} files"
                        )

        self.life -= 1
        try:
            send(self.sources, struct.pack("<I", len(source)) + source)
            width, height, length, _ = REPLY.unpack(receive(self.results, REPLY.size, wait))
            if max(width, height) > MAX_SIDE or length > (0 if width and height else 4096):
                raise NoPicture(TAMPERED)
            if width and height:
                return width, height, b""
            problem = receive(self.results, length, wait)
        except NoPicture as error:
            problem = str(error).encode()
        except (EOFError, BrokenPipeError):
            problem = b"the program ended before its picture could be taken"
            if os.WIFSIGNALED(self.kill()):
                number = os.WTERMSIG(self.status)
                problem = (
                    f"the program was ended by signal {number}, {signal.strsignal(number)}".encode()
                )
        self.life = (
            0  # after a mere error too: cairo caches a font that failed, and later items need it
        )
        return 0, 0, problem

    def kill(self):
        """End the child and what it started in its session -> its status, its own if it had ended before."""
        if self.status is None:
            for end in (
                os.killpg,
                os.kill,
            ):  # not the group alone: it may not have reached its setsid yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]
            os.close(self.sources), os.close(self.results)
        return self.status


# -------------------------------------------------------------------------------- the locks
libc = ctypes.CDLL(None, use_errno=True)

# The system calls that drawing takes, as name, number on x86_64, number on aarch64 (-: has none). Whatever is not listed fails
# with EPERM: sockets, processes, threads, exec, signals, chmod, mkdir, links, mounts, ptrace, io_uring ...
SYSCALLS = """
    read 0 63  write 1 64  readv 19 65  writev 20 66  pread64 17 67  pwrite64 18 68  lseek 8 62  close 3 57  dup 32 23  dup2 33 -
    dup3 292 24  pipe 22 -  pipe2 293 59  fcntl 72 25  ioctl 16 29  ftruncate 77 46  sendfile 40 71  time 201 -  stat 4 -
    lstat 6 -  fstat 5 80  newfstatat 262 79  statx 332 291  access 21 -  faccessat 269 48  chdir 80 49  faccessat2 439 439
    readlink 89 -  readlinkat 267 78  getdents64 217 61  getcwd 79 17  statfs 137 43  uname 63 160  fstatfs 138 44  umask 95 166
    fadvise64 221 223  poll 7 -  ppoll 271 73  select 23 -  pselect6 270 72  brk 12 214  mmap 9 222  munmap 11 215  mremap 25 216
    mprotect 10 226  madvise 28 233  futex 202 98  sched_yield 24 124  sched_getaffinity 204 123  getrandom 318 278
    clock_gettime 228 113  clock_getres 229 114  gettimeofday 96 169  clock_nanosleep 230 115  nanosleep 35 101  times 100 153
    getrusage 98 165  sysinfo 99 179  prlimit64 302 261  getpid 39 172  getppid 110 173  gettid 186 178  getuid 102 174
    geteuid 107 175  getgid 104 176  getegid 108 177  rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139
    sigaltstack 131 132  restart_syscall 219 128  exit 60 93  exit_group 231 94"""
OPENS = "open 2 -  openat 257 56"
CHANGES = "unlink 87 -  unlinkat 263 35  rename 82 -  renameat 264 38  renameat2 316 276"  # Landlock says which files
ARCHITECTURES = {
    "x86_64": (0xC000003E, 1),
    "aarch64": (0xC00000B7, 2),
}  # the kernel's constant, the column above
# Calls of which only some forms are allowed: (argument, mask, values that the masked argument may have). Not F_SETFL (the trainer
# shares `pixels`), F_SETOWN, leases, locks; of ioctl: is it a terminal, its size, close on exec; the last two: of this process.
FORMS = {
    "fcntl": (1, ~0, (0, 1, 2, 3, 1030)),
    "ioctl": (1, ~0, (0x5401, 0x5413, 0x5450, 0x5451)),
    "prlimit64": (0, ~0, (0,)),
    "sched_getaffinity": (0, ~0, (0,)),
}
READ_ONLY = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC, (os.O_RDONLY,)
# Not O_RDONLY | O_TRUNC: it empties files that Landlock before version 3 (Linux 6.2) only lets a program read.
READ_WRITE = os.O_ACCMODE | os.O_TRUNC, (0, 1, 2, 1 | os.O_TRUNC, 2 | os.O_TRUNC)


def seccomp(ruleset, is_program):
    """-> a filter, as a program of the kernel's BPF machine; None: we do not know this machine's numbers."""
    if not LINUX or os.uname().machine not in ARCHITECTURES or sys.maxsize < 1 << 32:
        return None
    architecture, column = ARCHITECTURES[os.uname().machine]
    # CairoSVG opens fonts late. A program could open anything: only with Landlock.
    words = [SYSCALLS] + [OPENS] * (bool(ruleset) or not is_program) + [CHANGES] * bool(ruleset)
    words, opens = " ".join(words).split(), READ_WRITE if ruleset else READ_ONLY
    forms = FORMS | {"open": (1, *opens), "openat": (2, *opens)}
    load, jump_unless_equal, skip, mask_with, give = 0x20, 0x15, 0x05, 0x54, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: with errno 1, EPERM

    def step(code, value, jump=0):  # `jump`: instructions to skip where a comparison fails
        return struct.pack("=HBBI", code, 0, jump, value & 0xFFFFFFFF)

    program = step(load, 4) + step(
        jump_unless_equal, architecture, 2
    )  # a call in another machine's numbering
    program += (
        step(load, 0) + step(skip, 1) + step(give, kill)
    )  # ends the process; else load the number
    for name, number in zip(words[::3], words[column::3]):
        body = step(give, allow)
        if name in forms:
            argument, mask, values = forms[name]
            body = step(load, 16 + 8 * argument) + step(
                mask_with, mask
            )  # its lower half: all of these are ints
            body += b"".join(
                step(jump_unless_equal, value, 1) + step(give, allow) for value in values
            )
            body += step(give, refuse)
        if number != "-":
            program += step(jump_unless_equal, int(number), len(body) // 8) + body
    return program + step(give, refuse)


def landlock(readable, writable):
    """-> descriptor of a set of rules (closed to all else: every file, every folder); None: no Landlock here."""
    create, add = 444, 445  # the same numbers on all machines
    version = libc.syscall(create, None, 0, 1) if LINUX else -1
    if version < 1:
        return None
    handled = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(
        version, 0xFFFF
    )  # all that this version knows
    ruleset = libc.syscall(create, struct.pack("Q", handled), 8, 0)
    read, read_folder, write = 1 << 2, 1 << 3, 1 << 1 | 1 << 14 & handled  # write: and truncate
    rules = [(path, read | read_folder * os.path.isdir(path)) for path in readable]
    rules += [
        (os.devnull, read | write),
        (writable, read | read_folder | write | 1 << 5 | 1 << 8),
    ]  # remove, make
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH)
        if libc.syscall(add, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0):
            raise OSError(ctypes.get_errno(), "landlock_add_rule", str(path))
        os.close(descriptor)
    return ruleset


def self_test(probe):
    """In a child: try what must fail, on a file whose permissions would allow it."""

    def fork():
        if os.fork() == 0:
            os._exit(0)

    attempts = {
        "read files": lambda: open(probe),
        "write files": lambda: open(probe, "a"),
        "use the network": socket.socket,
        "start processes": fork,
        "send signals": lambda: os.kill(os.getppid(), 0),
        "change permissions": lambda: os.chmod(".", 0o700),
        "run other programs": lambda: os.execv(probe, [probe]),
    }
    broken = []
    for name, attempt in attempts.items():
        try:
            attempt()
            broken.append(name)
        except OSError as error:
            if (
                error.errno == errno.ENOEXEC
            ):  # so far that the kernel looked into the (empty) program
                broken.append(name)
    raise NoPicture(f"Python programs could {', '.join(broken)}" if broken else "all held")


# -------------------------------------------------------------------------------- in a child
def confine(folder, seconds, helper, locks, *kept):
    """Between fork and untrusted code: give up for good what drawing does not need. The order matters."""
    uid, ruleset, program = locks
    os.setsid()
    limits = {"CORE": 0, "FSIZE": FILE_SIZE, "NOFILE": OPEN_FILES, "CPU": int(seconds) + 1}
    limits |= (
        {"AS": MEMORY, "NPROC": 0} if LINUX else {}
    )  # NPROC 0: no process, no thread (root is exempt)
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.chdir(folder)
    if uid != os.geteuid():
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if LINUX:
        libc.capset(
            struct.pack("Ii", 0x20080522, 0), bytes(24)
        )  # no capability is left, to root neither
        libc.prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: die with the helper (a change of uid would undo it) ...
        if os.getppid() != helper:  # ... unless it died before that line
            os._exit(1)
        libc.prctl(
            4, 0, 0, 0, 0
        )  # PR_SET_DUMPABLE: no dump for a crash handler, which RLIMIT_CORE does not keep from running
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no setuid program gives more rights
    if ruleset is not None and libc.syscall(446, ruleset, 0):  # landlock_restrict_self
        os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # 0 and 1 lead to the trainer
        os.dup2(null, descriptor)
    kept = [2, *sorted(kept), 65536]
    for low, high in zip(kept, kept[1:]):
        os.closerange(low + 1, high)
    if program is not None:
        program = ctypes.create_string_buffer(program, len(program))
        failed = libc.prctl(
            22, 2, struct.pack("HP", len(program) // 8, ctypes.addressof(program))
        )  # PR_SET_SECCOMP: filter
        if (
            failed and ctypes.get_errno() != errno.EINVAL
        ):  # (EINVAL: this kernel has none, as `self_test` found out)
            os._exit(1)


def child_main(drawer, sources, results, pixels):
    while True:
        source = receive(sources, *struct.unpack("<I", receive(sources, 4))).decode()
        try:
            picture = drawer(source)
            os.lseek(pixels, 0, os.SEEK_SET)
            send(pixels, picture.tobytes())
            answer = *picture.size, b""
        except (
            BaseException
        ) as error:  # a program may raise anything: SystemExit, GeneratorExit, ...
            answer = 0, 0, describe(error).encode("utf-8", "replace")[:4096]
        reply(results, *answer)


def describe(error):
    """-> "NameError: name 'x' is not defined (line 3)": the last line of the drawn program that took part."""
    if isinstance(error, NoPicture):
        return str(error)
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == "main.py"
    ]
    text, line = (
        (error.msg, error.lineno)
        if isinstance(error, SyntaxError)
        else (str(error), lines and lines[-1])
    )
    return (
        type(error).__name__ + (f": {text}" if text else "") + (f" (line {line})" if line else "")
    )
