"""Confinement: how code nobody has read becomes a picture without harming whoever asked for it.

    trainer --(exec, pipe)--> helper --(fork, pipe)--> child

- The trainer runs no untrusted code, decodes no image format, starts no thread, never forks itself
  (unsafe beside CUDA and threads). It sends source text and reads raw RGB rows.
- A helper is a fresh Python, single-threaded, imports done: its forks are cheap and safe. It kills
  a late child: in cairo's endless loops (a radius of 1e30) no handler of Python's would run.
- A child draws, locked in by `confine`: hundreds of SVGs (data for CairoSVG), or one program.

docs/security.md says what is promised on Linux, and what is not. `self_test` proves it at each
start; if a promise is broken, Python is refused. Landlock guards the files, seccomp the system
calls. Time, memory and scratch are limited for each child.
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
import time
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

LINUX = sys.platform == "linux"
LIFE = {"svg": 500, "python": 1}  # items after which, or after an error, a fresh child takes over
NOBODY = 65534
MAX_SIDE = 2048  # pixels: what claims to be larger is not read
MEMORY, FILE_SIZE, OPEN_FILES = 1 << 30, 16 << 20, 40  # bytes, bytes, count: limits of a child
SCRATCH, SCRATCH_FILES = 64 << 20, 200  # bytes, count: of the files that a program has written
REPLY = struct.Struct("<HHIf")  # width, height, bytes of rows or of a reason, seconds
TAMPERED = "the program tampered with its result"
# A helper's environment: no token in it, no threads (they must not fork), few page faults.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:"
    "glibc.malloc.mmap_threshold=33554432",
}
PASSED = "PATH PYTHONPATH LD_LIBRARY_PATH DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH".split()
# What the kernel refused, by the modules of the standard library in which the error arose.
REFUSED = {
    "no other process may be started": {"subprocess", "multiprocessing"},
    "the network may not be used": {"socket", "urllib"},
}


class NoPicture(Exception):
    """A reason in our own words why an item has no picture."""


def packed(width, height, body, seconds=0.0):
    return REPLY.pack(width, height, len(body), seconds) + body


# -------------------------------------------------------------------------------- in the trainer
class Helper:
    """The trainer's end of a helper: `script --worker scratch timeout`, calls `serve`."""

    def __init__(self, script, scratch, timeout):
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        home = {"HOME": str(scratch), "PYTHONUSERBASE": site.getuserbase()}
        # $XDG_DATA_DIRS/fonts is where Pillow's truetype("DejaVuSans.ttf") looks.
        fonts = {"FONTCONFIG_FILE": f"{scratch}/fonts.conf", "XDG_DATA_DIRS": str(scratch)}
        self.pipe, theirs = Pipe()
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", scratch, str(timeout)],
            env=ENVIRONMENT | passed | home | fonts,
            start_new_session=True,  # Ctrl-C in the terminal reaches the trainer alone
            stdin=theirs,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()

    def send(self, language, source):
        """Send the next item only after the answer to this one: so the pipe does not fill up."""
        with contextlib.suppress(ConnectionError):  # it is dead, as `receive` will find
            self.pipe.send((language, source))

    def receive(self):
        """-> width, height, RGB rows (if 0 x 0: a reason), seconds. EOFError, OSError: it died."""
        data = self.pipe.recv_bytes()
        width, height, _, seconds = REPLY.unpack_from(data)
        return width, height, data[REPLY.size :], seconds

    def stop(self, patience=5):
        self.pipe.close()  # tells it to leave
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()  # nothing, if it has left
        self.process.wait()


# -------------------------------------------------------------------------------- in a helper
def serve(scratch, timeout, drawers, prepare, readable):
    """Answer items from stdin, a pipe for both ways, until it ends: the trainer closed it, or died.

    The first reply is "ready" and a line on what Python could do here, empty where all is well.
    drawers: {language: function(source) -> PIL, RGB}, called in a child. prepare(language, source
    bytes): called here, before a fork, for imports all share. readable: the files and folders that
    children may read.
    """
    folder, probe = Path(scratch, f"item-{os.getpid()}"), Path(scratch, f"probe-{os.getpid()}")
    folder.mkdir()  # (not its parents: scratch is gone if the trainer has left)
    probe.touch()
    os.chmod(scratch, 0o711)
    os.chmod(probe, 0o777)  # open to any uid, so that the locks are what is tested
    uid, ruleset = spare_uid(readable), landlock(readable, folder)
    os.chown(folder, uid, -1)
    if LINUX:  # if memory runs out, the kernel takes us and our children first
        Path("/proc/self/oom_score_adj").write_text("1000")
    locks = uid, ruleset, seccomp(ruleset)
    pipe, children = Connection(0), {}  # by language
    try:
        test = Child(self_test, 1, folder, timeout, locks)
        danger = test.draw(str(probe).encode())[2]
        test.kill()
        pipe.send_bytes(packed(0, 0, b"ready\n" + danger))
        while True:
            language, source = pipe.recv()
            prepare(language, source)
            started = time.monotonic()
            if language not in children:
                life = LIFE[language]
                children[language] = Child(drawers[language], life, folder, timeout, locks)
            answer = children[language].draw(source)
            if not children[language].life:
                children.pop(language).kill()
                empty(folder)
            pipe.send_bytes(packed(*answer, time.monotonic() - started))
    except (EOFError, ConnectionError, SystemExit):  # the trainer is done with us, or gone
        for child in children.values():
            child.kill()
        empty(folder)
        shutil.rmtree(scratch, ignore_errors=True)  # for all helpers: a killed trainer cannot


def spare_uid(readable):
    """The uid for children: nobody's if we are root, but our own where nobody may not read Python
    and its libraries, as in /root. (Children lose root's capabilities all the same.)"""
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
    """Delete what a program left, not the folder itself: to make and delete that can take 6 ms."""
    with contextlib.suppress(FileNotFoundError):  # somebody has deleted all of scratch
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):  # made by an unconfined program alone
                for command in ("chmod", "-R", "u+rwx"), ("rm", "-rf"):
                    subprocess.run([*command, entry.path], check=False, stderr=subprocess.DEVNULL)
            else:
                os.unlink(entry)


class Child:
    """The helper's end of a child process, forked here. life: how many items it may yet draw."""

    def __init__(self, drawer, life, folder, timeout, locks):
        self.life, self.folder, self.timeout, self.status = life, folder, timeout, None
        theirs, self.sources = Pipe(duplex=False)
        self.results, their_results = Pipe(duplex=False)
        helper = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                confine(folder, life * timeout, helper, locks, theirs, their_results)
                child_main(drawer, theirs, their_results)
            finally:
                os._exit(1)  # never back into the helper's code, and no traceback
        theirs.close(), their_results.close()

    def draw(self, source):
        """-> (width, height, RGB rows) or (0, 0, reason). What the child sends is not believed."""
        deadline = time.monotonic() + self.timeout
        self.life -= 1
        try:
            self.sources.send_bytes(source)
            width, height, length, _ = REPLY.unpack(self.read(REPLY.size, deadline))
            size = 3 * width * height
            as_agreed = length == size if size else length <= 4096
            if max(width, height) > MAX_SIDE or not as_agreed:
                raise NoPicture(TAMPERED)
            body = self.read(length, deadline)
            if size:
                return width, height, body
            problem = body
        except NoPicture as error:
            problem = str(error).encode()
        except (EOFError, BrokenPipeError):
            problem = b"the program ended before its picture could be taken"
            if os.WIFSIGNALED(self.kill()):
                name = f"{os.WTERMSIG(self.status)}, {signal.strsignal(os.WTERMSIG(self.status))}"
                problem = f"the program was ended by signal {name}".encode()
        self.life = 0  # after a mere error too: cairo caches a font that failed, for later items
        return 0, 0, problem

    def read(self, size, deadline):
        """Exactly `size` bytes of what the child sends. NoPicture: too late, or too many files."""
        data = bytearray()
        while len(data) < size:
            ready = select.select([self.results, 0], [], [], 0.02)[0]
            if 0 in ready:  # while a child draws, stdin has nothing but its end: no trainer
                raise SystemExit
            if time.monotonic() > deadline:
                raise NoPicture(f"took longer than {self.timeout:g} s")
            with contextlib.suppress(FileNotFoundError):  # deleted just now
                entries = [entry.stat(follow_symlinks=False) for entry in os.scandir(self.folder)]
                used = sum(entry.st_blocks * 512 for entry in entries)
                if len(entries) > SCRATCH_FILES or used > SCRATCH:
                    raise NoPicture(f"wrote more than {SCRATCH >> 20} MB or {SCRATCH_FILES} files")
            if ready:
                part = os.read(self.results.fileno(), size - len(data))
                if not part:
                    raise EOFError
                data += part
        return bytes(data)

    def kill(self):
        """End the child and its session -> its status, its own if it had ended before."""
        if self.status is None:
            for end in os.killpg, os.kill:  # it may not have reached its setsid yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]
            self.sources.close(), self.results.close()
        return self.status


# -------------------------------------------------------------------------------- the locks
libc = ctypes.CDLL(None, use_errno=True)

# The system calls that drawing takes; a machine has no number for some of them.
SYSCALLS = """
    read write readv writev pread64 pwrite64 lseek close dup dup2 dup3 pipe pipe2 fcntl ioctl
    ftruncate sendfile time stat lstat fstat newfstatat statx access faccessat faccessat2 chdir
    readlink readlinkat getdents64 getcwd statfs fstatfs uname umask fadvise64 poll ppoll select
    pselect6 brk mmap munmap mremap mprotect madvise futex sched_yield sched_getaffinity getrandom
    clock_gettime clock_getres gettimeofday clock_nanosleep nanosleep times getrusage sysinfo
    prlimit64 getpid getppid gettid getuid geteuid getgid getegid rt_sigaction rt_sigprocmask
    rt_sigreturn sigaltstack restart_syscall exit exit_group""".split()
OPENS = ["open", "openat"]
CHANGES = ["unlink", "unlinkat", "rename", "renameat", "renameat2"]
# Calls with few forms: (argument, mask, values of the masked argument, an int). Not F_SETFL,
# F_SETOWN, leases, locks; is it a terminal, its size; of this process only.
INT = (1 << 32) - 1
FORMS = {
    "fcntl": (1, INT, (0, 1, 2, 3, 1030)),
    "ioctl": (1, INT, (0x5401, 0x5413, 0x5450, 0x5451)),
    "prlimit64": (0, INT, (0,)),
    "sched_getaffinity": (0, INT, (0,)),
}
READ_ONLY = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC, (os.O_RDONLY,)
# Not O_RDONLY | O_TRUNC: it empties files that Landlock before version 3 (Linux 6.2) lets us read.
READ_WRITE = os.O_ACCMODE | os.O_TRUNC, (0, 1, 2, 1 | os.O_TRUNC, 2 | os.O_TRUNC)
# Constants of libseccomp; REFUSE: with errno 1, EPERM.
ALLOW, REFUSE, MASKED_EQUAL, OF_OTHER_MACHINES, PLAIN_ERRORS = 0x7FFF0000, 0x00050001, 7, 2, 9


def seccomp(ruleset):
    """-> a function that locks the process that calls it, and returns 0; None: no libseccomp."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    # Without Landlock any file could be opened: only to read, which is enough for CairoSVG's fonts.
    opens = READ_WRITE if ruleset else READ_ONLY
    forms = FORMS | {"open": (1, *opens), "openat": (2, *opens)}
    # Whatever is not named is refused, and so is a call in another machine's numbering.
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(REFUSE))
    library.seccomp_attr_set(rules, OF_OTHER_MACHINES, REFUSE)
    library.seccomp_attr_set(rules, PLAIN_ERRORS, 1)
    for name in SYSCALLS + OPENS + (CHANGES if ruleset else []):
        number = library.seccomp_syscall_resolve_name(name.encode())
        argument, mask, values = forms.get(name, (0, 0, (0,)))
        for value in values if number >= 0 else ():
            form = struct.pack("IIQQ", argument, MASKED_EQUAL, mask, value)
            library.seccomp_rule_add_array(rules, ALLOW, number, name in forms, form)
    return lambda: library.seccomp_load(rules)


def landlock(readable, writable):
    """-> descriptor of a set of rules, closed to every other file and folder; None: none here."""
    version = libc.syscall(444, None, 0, 1) if LINUX else -1  # landlock_create_ruleset
    if version < 1:
        return None
    handled = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(version, 0xFFFF)  # all it knows
    ruleset = libc.syscall(444, struct.pack("Q", handled), 8, 0)
    read, read_folder, write = 1 << 2, 1 << 3, 1 << 1 | 1 << 14 & handled  # write: and truncate
    rules = [(path, read | read_folder * os.path.isdir(path)) for path in readable]
    rules.append((os.devnull, read | write))
    rules.append((writable, read | read_folder | write | 1 << 5 | 1 << 8))  # and remove, make
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH)
        if libc.syscall(445, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0):
            raise OSError(ctypes.get_errno(), "landlock_add_rule", str(path))
        os.close(descriptor)
    return ruleset


def self_test(probe):
    """In a child: try what must fail, on a file anybody may use. Its error: what did not fail."""
    attempts = {
        "read files": lambda: open(probe),
        "write files": lambda: open(probe, "a"),
        "use the network": socket.socket,
        "start processes": lambda: os.fork() or os._exit(0),
        "send signals": lambda: os.kill(os.getppid(), 0),
        "change permissions": lambda: os.chmod(".", 0o700),
        "run other programs": lambda: os.execv(probe, [probe]),
    }
    broken = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            if error.errno != errno.ENOEXEC:  # the kernel looked into the program, which is empty
                continue
        broken.append(name)
    raise NoPicture(f"Python programs could {', '.join(broken)}" if broken else "")


# -------------------------------------------------------------------------------- in a child
def confine(folder, seconds, helper, locks, *kept):
    """Before untrusted code: give up what drawing does not need. kept: what stays open."""
    uid, ruleset, load_filter = locks
    os.setsid()
    limits = {"CORE": 0, "FSIZE": FILE_SIZE, "NOFILE": OPEN_FILES, "CPU": int(seconds) + 1}
    if LINUX:  # NPROC 0: no process, no thread (root is exempt)
        limits |= {"AS": MEMORY, "NPROC": 0}
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
        libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # none is left, to root neither
        # PDEATHSIG: die with the helper (a change of uid would undo it), unless it is dead already;
        # DUMPABLE: no dump for a crash handler; NO_NEW_PRIVS: no setuid program gives more rights.
        for option, value in ((1, signal.SIGKILL), (4, 0), (38, 1)):
            libc.prctl(option, value, 0, 0, 0)
        if os.getppid() != helper:
            os._exit(1)
    if ruleset is not None and libc.syscall(446, ruleset, 0):  # landlock_restrict_self
        os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # 0 leads to the trainer
        os.dup2(null, descriptor)
    borders = [2, *sorted(pipe.fileno() for pipe in kept), 65536]
    for low, high in zip(borders, borders[1:]):
        os.closerange(low + 1, high)
    # (EINVAL: this kernel has no seccomp, as `self_test` found out.)
    if load_filter is not None and load_filter() not in (0, -errno.EINVAL):
        os._exit(1)


def child_main(drawer, sources, results):
    results = open(results.fileno(), "wb")
    while True:
        source = sources.recv_bytes().decode()
        try:
            picture = drawer(source)
            answer = *picture.size, picture.tobytes()
        except BaseException as error:  # a program may raise anything: SystemExit, GeneratorExit
            answer = 0, 0, describe(error).encode("utf-8", "replace")[:4096]
        results.write(packed(*answer))
        results.flush()


def describe(error):
    """-> "NameError: name 'x' is not defined (line 3)": the last line of the program in it. It
    says what was refused, but not where scratch and packages are."""
    if isinstance(error, NoPicture):
        return str(error)
    text, line, modules = str(error), None, {type(error).__module__}
    for frame, number in traceback.walk_tb(error.__traceback__):
        modules.add(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_filename == "main.py":
            line = number
    if isinstance(error, SyntaxError):
        text, line = error.msg, error.lineno
    for words, places in REFUSED.items():
        if isinstance(error, OSError) and places & {name.partition(".")[0] for name in modules}:
            text = f"{words}: {text}"
    places = os.getcwd(), os.path.expanduser("~"), *sys.path, os.path.dirname(sys.executable)
    for folder in filter(None, places):
        text = text.replace(f"{folder}/", "").replace(folder, ".")
    text = type(error).__name__ + (f": {text}" if text else "")
    return f"{text} (line {line})" if line else text
