"""Confinement: how code nobody has read becomes a picture without harming whoever asked for it.

    trainer --(exec, pipe)--> helper --(fork, pipe)--> child

- The trainer runs no untrusted code, decodes no image format, starts no thread, never forks itself
  (unsafe beside CUDA and threads). It sends source text and reads raw RGB rows.
- A helper is a fresh Python, single-threaded, imports done: its forks are cheap and safe. It kills
  a late child: in cairo's endless loops (a radius of 1e30) no handler of Python's would run.
- A child draws, locked in by `confine`: hundreds of SVGs (data for CairoSVG), or one program.

Held on Linux, and proved by `self_test` at each start: a program reads its libraries and the files
it wrote. It cannot read or write others, connect, start a process or thread, signal, change
permissions, run programs. Landlock guards the files, seccomp the system calls (without Landlock:
every open, too). If a promise is broken, Python is refused. Wall clock, processor time, memory and
scratch are limited for each child.
Not held: the kernel is shared, a hole in it is a way out; stat() and readlink() tell which files
exist; memory is limited per worker, not in all; files deleted while open escape the limit on
scratch (not 16 MB each); time limits are not exact.
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
from pathlib import Path

LINUX = sys.platform == "linux"
LIFE = {"svg": 500, "python": 1}  # items after which, or after an error, a fresh child takes over
LANGUAGES, NOBODY = list(LIFE), 65534
MAX_SIDE = 2048  # pixels: what claims to be larger is not read
MEMORY, FILE_SIZE, OPEN_FILES = 1 << 30, 16 << 20, 40  # bytes, bytes, count: limits of a child
SCRATCH, SCRATCH_FILES = 64 << 20, 200  # bytes, count: of the files that a program has written
ITEM = struct.Struct("<BI")  # trainer to helper: which of LANGUAGES, bytes of source that follow
# Back: width, height, bytes of text that follow, seconds. Where there are pixels, their rows lie in
# the file `pixels`; where width or height is 0, the text says why.
REPLY = struct.Struct("<HHIf")
TAMPERED = "the program tampered with its result"
# A helper's environment: no token in it, no threads (they must not fork), few page faults.
PASSED = "PATH PYTHONPATH LD_LIBRARY_PATH DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH".split()
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=16777216:"
    "glibc.malloc.mmap_threshold=33554432",
}


class NoPicture(Exception):
    """A reason in our own words why an item has no picture."""


def receive(descriptor, size, wait=lambda: None):
    """Exactly `size` bytes. EOFError: they end before. `wait` is called ahead of each read."""
    data = b""
    while len(data) < size:
        wait()
        part = os.read(descriptor, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def send(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def reply(descriptor, width, height, text, seconds=0.0):
    send(descriptor, REPLY.pack(width, height, len(text), seconds) + text)


# -------------------------------------------------------------------------------- in the trainer
class Helper:
    """The trainer's end of a helper: `script --worker scratch timeout pixels`, calls `serve`."""

    def __init__(self, script, scratch, timeout, environment):
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        home = {"HOME": str(scratch), "PYTHONUSERBASE": site.getuserbase()}
        # Children write their rows here; we read when the writer is dead or idle. Pipes would copy.
        file = os.memfd_create("pixels") if LINUX else os.dup(tempfile.TemporaryFile().fileno())
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", scratch, str(timeout), str(file)],
            env=ENVIRONMENT | passed | home | environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches the trainer alone
            pass_fds=[file],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pixels = file

    def fileno(self):  # for `multiprocessing.connection.wait`
        return self.process.stdout.fileno()

    def send(self, language, source):
        """Send the next item only after the answer to this one: so no pipe fills up."""
        head = ITEM.pack(LANGUAGES.index(language), len(source))
        with contextlib.suppress(BrokenPipeError):  # it is dead, as `receive` will find
            send(self.process.stdin.fileno(), head + source)

    def receive(self):
        """-> (width, height, RGB rows, seconds) or (0, 0, reason, seconds). EOFError: it died."""
        head = receive(self.fileno(), REPLY.size)
        width, height, length, seconds = REPLY.unpack(head)
        body, size = receive(self.fileno(), length), 3 * width * height
        if size:
            body = os.pread(self.pixels, size, 0)
        if len(body) < size:
            width, body = 0, TAMPERED.encode()
        os.ftruncate(self.pixels, 0)  # what the next program finds or passes off is to be its own
        os.lseek(self.pixels, 0, os.SEEK_SET)
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
    """Answer items from stdin on stdout until stdin ends: the trainer closed it, or is gone.

    The first reply is "ready", a line on what the kernel lacks, a line on what Python could do here
    (both empty where all is well). pixels: descriptor of the file for rows. readable: the files and
    folders that children may read. drawers: {language: function(source) -> PIL, RGB}, called in a
    child. prepare(language, source bytes): called here, before a fork, for imports all share.
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
    drawers = drawers | {"self-test": self_test}
    locks = {name: (uid, ruleset, seccomp(ruleset, is_program=name != "svg")) for name in drawers}
    children = {}  # by language

    def draw(language, source):
        if language not in children:
            limits = LIFE.get(language, 1), folder, timeout, pixels
            children[language] = Child(drawers[language], *limits, locks[language])
        answer = children[language].draw(source)
        if not children[language].life:
            children.pop(language).kill()
            empty(folder)
        return answer

    try:
        lacks = "" if ruleset else "the kernel has no Landlock: Python programs can open no files"
        danger = draw("self-test", str(probe).encode())[2].decode()
        reply(1, 0, 0, f"ready\n{lacks}\n{danger}".encode())
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
            if entry.is_dir(follow_symlinks=False):  # rmtree cannot go 1,000 deep
                for command in ("chmod", "-R", "u+rwx"), ("rm", "-rf"):
                    subprocess.run([*command, entry.path], check=False, stderr=subprocess.DEVNULL)
            else:
                os.unlink(entry)


class Child:
    """The helper's end of a child process, forked here. life: how many items it may yet draw."""

    def __init__(self, drawer, life, folder, timeout, pixels, locks):
        self.life, self.folder, self.timeout, self.status = life, folder, timeout, None
        theirs, self.sources = os.pipe()
        self.results, their_results = os.pipe()
        helper = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                confine(folder, life * timeout, helper, locks, theirs, their_results, pixels)
                child_main(drawer, theirs, their_results, pixels)
            finally:
                os._exit(1)  # never back into the helper's code, and no traceback
        os.close(theirs), os.close(their_results)

    def draw(self, source):
        """-> (width, height, b"") or (0, 0, reason). What the child sends is not believed."""
        deadline = time.monotonic() + self.timeout
        self.life -= 1
        try:
            send(self.sources, struct.pack("<I", len(source)) + source)
            head = receive(self.results, REPLY.size, lambda: self.wait(deadline))
            width, height, length, _ = REPLY.unpack(head)
            if max(width, height) > MAX_SIDE or length > (0 if width and height else 4096):
                raise NoPicture(TAMPERED)
            if width and height:
                return width, height, b""
            problem = receive(self.results, length, lambda: self.wait(deadline))
        except NoPicture as error:
            problem = str(error).encode()
        except (EOFError, BrokenPipeError):
            problem = b"the program ended before its picture could be taken"
            if os.WIFSIGNALED(self.kill()):
                name = f"{os.WTERMSIG(self.status)}, {signal.strsignal(os.WTERMSIG(self.status))}"
                problem = f"the program was ended by signal {name}".encode()
        self.life = 0  # after a mere error too: cairo caches a font that failed, for later items
        return 0, 0, problem

    def wait(self, deadline):
        """Return when there is something to read. NoPicture: too late, or too much was written."""
        while True:
            if time.monotonic() > deadline:
                raise NoPicture(f"took longer than {self.timeout:g} s")
            ready = select.select([self.results, 0], [], [], 0.02)[0]
            if 0 in ready:  # while a child draws, stdin has nothing but its end: no trainer
                raise SystemExit
            with contextlib.suppress(FileNotFoundError):  # deleted just now
                entries = [entry.stat(follow_symlinks=False) for entry in os.scandir(self.folder)]
                used = sum(entry.st_blocks * 512 for entry in entries)
                if len(entries) > SCRATCH_FILES or used > SCRATCH:
                    raise NoPicture(f"wrote more than {SCRATCH >> 20} MB or {SCRATCH_FILES} files")
            if ready:
                return

    def kill(self):
        """End the child and its session -> its status, its own if it had ended before."""
        if self.status is None:
            for end in os.killpg, os.kill:  # it may not have reached its setsid yet
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(self.pid, signal.SIGKILL)
            self.status = os.waitpid(self.pid, 0)[1]
            os.close(self.sources), os.close(self.results)
        return self.status


# -------------------------------------------------------------------------------- the locks
libc = ctypes.CDLL(None, use_errno=True)

# The system calls that drawing takes: name, its numbers on x86_64 and aarch64 (-: none there).
SYSCALLS = """
    read 0 63  write 1 64  readv 19 65  writev 20 66  pread64 17 67  pwrite64 18 68  lseek 8 62
    close 3 57  dup 32 23  dup2 33 -  dup3 292 24  pipe 22 -  pipe2 293 59  fcntl 72 25
    ioctl 16 29  ftruncate 77 46  sendfile 40 71  time 201 -  stat 4 -  lstat 6 -  fstat 5 80
    newfstatat 262 79  statx 332 291  access 21 -  faccessat 269 48  faccessat2 439 439
    chdir 80 49  readlink 89 -  readlinkat 267 78  getdents64 217 61  getcwd 79 17  statfs 137 43
    fstatfs 138 44  uname 63 160  umask 95 166  fadvise64 221 223  poll 7 -  ppoll 271 73
    select 23 -  pselect6 270 72  brk 12 214  mmap 9 222  munmap 11 215  mremap 25 216
    mprotect 10 226  madvise 28 233  futex 202 98  sched_yield 24 124  sched_getaffinity 204 123
    getrandom 318 278  clock_gettime 228 113  clock_getres 229 114  gettimeofday 96 169
    clock_nanosleep 230 115  nanosleep 35 101  times 100 153  getrusage 98 165  sysinfo 99 179
    prlimit64 302 261  getpid 39 172  getppid 110 173  gettid 186 178  getuid 102 174
    geteuid 107 175  getgid 104 176  getegid 108 177  rt_sigaction 13 134  rt_sigprocmask 14 135
    rt_sigreturn 15 139 sigaltstack 131 132 restart_syscall 219 128 exit 60 93 exit_group 231 94"""
OPENS = "open 2 -  openat 257 56"
CHANGES = "unlink 87 -  unlinkat 263 35  rename 82 -  renameat 264 38  renameat2 316 276"
ARCHITECTURES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}  # constant, column above
# Calls with few forms: (argument, mask, values of the masked argument). Not F_SETFL (the trainer
# shares `pixels`), F_SETOWN, leases, locks; is it a terminal, its size; of this process only.
FORMS = {
    "fcntl": (1, ~0, (0, 1, 2, 3, 1030)),
    "ioctl": (1, ~0, (0x5401, 0x5413, 0x5450, 0x5451)),
    "prlimit64": (0, ~0, (0,)),
    "sched_getaffinity": (0, ~0, (0,)),
}
READ_ONLY = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC, (os.O_RDONLY,)
# Not O_RDONLY | O_TRUNC: it empties files that Landlock before version 3 (Linux 6.2) lets us read.
READ_WRITE = os.O_ACCMODE | os.O_TRUNC, (0, 1, 2, 1 | os.O_TRUNC, 2 | os.O_TRUNC)
# Instructions and verdicts of the kernel's BPF machine. REFUSE: with errno 1, EPERM.
LOAD, JUMP_UNLESS_EQUAL, SKIP, MASK_WITH, GIVE = 0x20, 0x15, 0x05, 0x54, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000


def step(code, value, jump=0):
    """One instruction. jump: how many to skip where a comparison fails."""
    return struct.pack("=HBBI", code, 0, jump, value & 0xFFFFFFFF)


def seccomp(ruleset, is_program):
    """-> a filter, as a program of the BPF machine; None: we do not know this machine's numbers."""
    if not LINUX or os.uname().machine not in ARCHITECTURES or sys.maxsize < 1 << 32:
        return None
    architecture, column = ARCHITECTURES[os.uname().machine]
    # CairoSVG opens fonts late. A program could open anything: only with Landlock.
    table, opens = SYSCALLS, READ_WRITE if ruleset else READ_ONLY
    if ruleset or not is_program:
        table += " " + OPENS
    if ruleset:
        table += " " + CHANGES
    words, forms = table.split(), FORMS | {"open": (1, *opens), "openat": (2, *opens)}

    # A call in another machine's numbering ends the process. Else load the number.
    program = step(LOAD, 4) + step(JUMP_UNLESS_EQUAL, architecture, 2)
    program += step(LOAD, 0) + step(SKIP, 1) + step(GIVE, KILL)
    for name, number in zip(words[::3], words[column::3]):
        body = step(GIVE, ALLOW)
        if name in forms:
            argument, mask, values = forms[name]
            body = step(LOAD, 16 + 8 * argument) + step(MASK_WITH, mask)  # its lower half: an int
            for value in values:
                body += step(JUMP_UNLESS_EQUAL, value, 1) + step(GIVE, ALLOW)
            body += step(GIVE, REFUSE)
        if number != "-":
            program += step(JUMP_UNLESS_EQUAL, int(number), len(body) // 8) + body
    return program + step(GIVE, REFUSE)


def landlock(readable, writable):
    """-> descriptor of a set of rules, closed to every other file and folder; None: none here."""
    create, add = 444, 445
    version = libc.syscall(create, None, 0, 1) if LINUX else -1
    if version < 1:
        return None
    handled = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(version, 0xFFFF)  # all it knows
    ruleset = libc.syscall(create, struct.pack("Q", handled), 8, 0)
    read, read_folder, write = 1 << 2, 1 << 3, 1 << 1 | 1 << 14 & handled  # write: and truncate
    rules = [(path, read | read_folder * os.path.isdir(path)) for path in readable]
    rules.append((os.devnull, read | write))
    rules.append((writable, read | read_folder | write | 1 << 5 | 1 << 8))  # and remove, make
    for path, rights in rules:
        descriptor = os.open(path, os.O_PATH)
        if libc.syscall(add, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0):
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
            broken.append(name)
        except OSError as error:
            if error.errno == errno.ENOEXEC:  # so far that the kernel looked into the empty program
                broken.append(name)
    raise NoPicture(f"Python programs could {', '.join(broken)}" if broken else "")


# -------------------------------------------------------------------------------- in a child
def confine(folder, seconds, helper, locks, *kept):
    """Before untrusted code: give up what drawing does not need. kept: what stays open."""
    uid, ruleset, program = locks
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
    for descriptor in (0, 1, 2):  # 0 and 1 lead to the trainer
        os.dup2(null, descriptor)
    borders = [2, *sorted(kept), 65536]
    for low, high in zip(borders, borders[1:]):
        os.closerange(low + 1, high)
    if program is not None:
        program = ctypes.create_string_buffer(program, len(program))
        rules = struct.pack("HP", len(program) // 8, ctypes.addressof(program))
        # PR_SET_SECCOMP. (EINVAL: this kernel has none, as `self_test` found out.)
        if libc.prctl(22, 2, rules) and ctypes.get_errno() != errno.EINVAL:
            os._exit(1)


def child_main(drawer, sources, results, pixels):
    while True:
        length = struct.unpack("<I", receive(sources, 4))[0]
        source = receive(sources, length).decode()
        try:
            picture = drawer(source)
            os.lseek(pixels, 0, os.SEEK_SET)
            send(pixels, picture.tobytes())
            answer = *picture.size, b""
        except BaseException as error:  # a program may raise anything: SystemExit, GeneratorExit
            name = "" if isinstance(error, NoPicture) else type(error).__name__
            text = ": ".join(filter(None, (name, str(error))))
            answer = 0, 0, text.encode("utf-8", "replace")[:4096]
        reply(results, *answer)
