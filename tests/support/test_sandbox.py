"""sandbox.py: promises under attack; how hangs, crashes and kills end; a poorer kernel."""

import ctypes
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers_render import (
    HOSTILE,
    NO_LANDLOCK,
    NO_SECCOMP,
    ROOT,
    alive,
    draw,
    hostile,
    manifest,
    pillow,
    refuse,
    svg,
    tiny,
    wait_for,
    weaken,
)

from render import Renderer
from support import sandbox

SECRET = "canary-8f1c"
LATE = 30  # seconds by which a busy machine may be late to kill


@pytest.fixture(scope="module")
def renderer():
    with Renderer(workers=2, timeout=20) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def brisk():
    """For items that run into the clock."""
    with Renderer(workers=2, timeout=1) as renderer:
        yield renderer


# ---------------------------------------------------------------- the hostile cases


@pytest.fixture
def world(tmp_path, monkeypatch):
    """What an attack goes for: files anybody may read and change, a port, this process."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim.txt").write_text("victim")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "weights").write_bytes(SECRET.encode() * 9)
    for path in (tmp_path, outside, *tmp_path.glob("*/*")):
        path.chmod(0o777)
    monkeypatch.setenv("SECRET_TOKEN", SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield {
            "OUTSIDE": outside,
            "SECRET": tmp_path / "secret",
            "WEIGHTS": tmp_path / "weights",
            "PID": os.getpid(),
            "PORT": server.getsockname()[1],
        }
        with pytest.raises(BlockingIOError):  # nobody knocked
            server.accept()
    state = []
    for path in (outside, *outside.iterdir()):
        stat = path.stat()
        state.append((path.name, stat.st_mode & 0o7777, stat.st_nlink, os.listxattr(path)))
    assert state == [("outside", 0o777, 2, []), ("victim.txt", 0o777, 1, [])]
    assert (outside / "victim.txt").read_text() == "victim"
    left = "/tmp/pwned", "/dev/shm/pwned", os.path.expanduser("~/.x")
    assert not any(map(os.path.lexists, left))


def children(helper):
    """Process ids of a helper's children."""
    pid = helper.process.pid
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def processes(renderer):
    """Helpers and what they forked: all carry the scratch folder in their command lines."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        if str(renderer.scratch).encode() in command and alive(int(path.name)):
            yield int(path.name)


def check(renderer, language, names, world):
    """Every case ends as its manifest says."""
    affinity, expected = os.sched_getaffinity(0), manifest(language)
    results = renderer.render([(hostile(language, name, **world), language) for name in names])
    for name, rendering in zip(names, results, strict=True):
        blank = rendering.error and "blank" in rendering.error  # (drawn, then refused)
        outcome = "error" if rendering.error and not blank else "image"
        assert expected[name][0] in (outcome, "any"), (name, rendering.error)
        assert rendering.seconds < renderer.timeout + LATE, name
        text = rendering.error
        assert text is None or text.isprintable() and len(text) <= 300, name
        assert SECRET not in str(rendering.error), name
        assert rendering.image is None or SECRET.encode() not in rendering.image.tobytes(), name
        if name.startswith("ok_") and name != "ok_try_blocked":
            assert rendering.image is not None and len(rendering.image.getcolors(1 << 22)) > 3, name
    # Of the language drawn last: one that draws SVG.
    count = sum(len(children(helper)) for helper in renderer.helpers)
    assert count <= len(renderer.helpers)
    assert wait_for(lambda: len(set(processes(renderer))) == len(renderer.helpers) + count)
    assert list(renderer.scratch.glob("item-*/*")) == [] and os.sched_getaffinity(0) == affinity
    draw(renderer, tiny("red"), "svg"), draw(renderer, pillow((0, 0, 0)))
    return results


@pytest.mark.parametrize("language, count", [("svg", 95), ("python", 120)])
def test_hostile(language, count, renderer, brisk, world):
    names = list(manifest(language))
    assert len(names) == count == len(list((HOSTILE / language).iterdir()))
    # Whose picture must be there, however busy the machine.
    patience = "ok_", "img_", "mpl_", "state_", "utf8", "latin1"
    patient = [name for name in names if name.startswith(patience)]
    check(renderer, language, patient, world)
    check(brisk, language, [name for name in names if name not in patient], world)


def test_limit_on_scratch(renderer):
    many = "import time\nfor i in range(201): open(str(i), 'w').close()\ntime.sleep(9)"
    assert "wrote more than 64 MB or 200 files" in refuse(renderer, many)
    large = "for i in range(5): open(str(i), 'wb').write(bytes(15 << 20))"
    error = refuse(renderer, f"import time\n{large}\ntime.sleep(9)")
    assert "wrote more than 64 MB" in error
    assert list(renderer.scratch.glob("item-*/*")) == []


MORE_ATTACKS = """
    open('/etc/passwd').read()
    open('/proc/self/environ').read()
    open('/proc/self/fd/0', 'w'); open('/proc/self/status')
    os.open('/', os.O_RDONLY); os.listdir('/')
    os.truncate('__OUTSIDE__/victim.txt', 0)
    os.open('__OUTSIDE__/victim.txt', os.O_RDONLY | os.O_TRUNC)
    os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)
    open(os.__file__, 'a')
    os.utime('__OUTSIDE__/victim.txt'); os.utime('__OUTSIDE__')
    os.chown('__OUTSIDE__/victim.txt', 1, 1)
    os.unlink('__OUTSIDE__/victim.txt')
    os.rmdir('__OUTSIDE__')
    os.mkdir('/tmp/pwned')
    os.mknod('/tmp/pwned')
    os.chroot('.')
    os.setsid()
    os.nice(1)
    os.setpriority(os.PRIO_PROCESS, __PID__, 9)
    os.pidfd_open(__PID__)
    os.posix_spawn('/bin/true', ['true'], {})
    os.eventfd(0)
    os.killpg(0, 9)
    os.sched_setscheduler(__PID__, os.SCHED_IDLE, os.sched_param(0))
    socket.socketpair()
    socket.socket(socket.AF_UNIX)
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', __PORT__))
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    threading.Thread(target=print).start()
    resource.prlimit(__PID__, resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))
    fcntl.fcntl(open('a', 'w'), fcntl.F_SETOWN, __PID__)
    fcntl.flock(open('a', 'w'), fcntl.LOCK_EX)
    fcntl.lockf(open('a', 'w'), fcntl.LOCK_EX)
    signal.pthread_kill(threading.get_ident(), 9)
    call(101, 16, __PID__, 0, 0)
    call(425, 8, bytes(120))
    call(319, b'a', 0)
    call(0x40000000 + 41, 2, 1, 0)
    call(157, 1, 0, 0, 0, 0)
    call(321, 0, bytes(120), 120)
    call(308, 0, 0)
    call(272, 0x10000000)
    call(248, b'user', b'a', b'b', 1, -3)
    call(298, bytes(120), 0, -1, -1, 0)
    call(437, -100, b'/etc/passwd', bytes(24), 24)
    call(438, 3, 0, 0)
    call(317, 0, 0, None)
    call(446, 0, 0)
    call(322, 3, b'', None, None, 0x1000)
    call(29, 7, 4096, 0o1777)
    call(240, b'a', 0o102, 0o600, None)
    call(129, __PID__, 0, bytes(128))
    call(234, __PID__, __PID__, 0)
    call(222, 0, None, bytes(8))
    call(38, 0, bytes(32), None)
    call(275, 3, None, 4, None, 9, 0)
    call(285, 5, 0, 0, 1 << 30)
    call(323, 0)
    call(253)
    os.set_blocking(4, False)
    fcntl.fcntl(5, fcntl.F_SETFL, os.O_APPEND)
    fcntl.fcntl(5, 1033, 2)
"""


def test_more_attacks(renderer, world):
    """Each statement must raise; `call` is a system call by its number on x86_64."""
    attacks = [line.strip() for line in MORE_ATTACKS.strip().splitlines()]
    if platform.machine() != "x86_64":
        attacks = [attack for attack in attacks if "call" not in attack]
    code = (
        "import ctypes, fcntl, os, resource, signal, socket, threading\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(*a):\n"
        "  if libc.syscall(*a) == -1: raise OSError(ctypes.get_errno(), 'refused')\n"
        f"attacks = {attacks}\ngood = []\nfor attack in attacks:\n"
        "  try: exec(attack); good.append(attack)\n"
        "  except (OSError, ValueError, RuntimeError): 0\n"
        "raise ValueError(good)"
    )
    for key, value in world.items():
        code = code.replace(f"__{key}__", str(value))
    assert refuse(renderer, code).startswith("ValueError: []")


ODD = ["1e30", "-1", "nan", "%", "\0", "\ud800", "é" * 99, "9" * 40, *'<&"', "url(#a)", "()"]


def mutants(count, seed=0):
    """Codes that are nearly right: controls with spans lost, doubled, swapped, or made extreme."""
    draw = random.Random(seed)
    controls = {}
    for language in ("svg", "python"):
        names = [name for name in manifest(language) if name.startswith("ok_")]
        controls[language] = [hostile(language, name) for name in names]
    seeds = [(code, language) for language, codes in controls.items() for code in codes]
    for _ in range(count):
        code, language = draw.choice(seeds)
        for _ in range(draw.randint(1, 4)):
            start, other = draw.randrange(len(code)), draw.choice(controls[language])
            end, from_ = start + draw.choice((1, 4, 30)), draw.randrange(len(other))
            spans = "", code[start:end] * 2, other[from_ : from_ + 30], draw.choice(ODD)
            code = code[:start] + draw.choice(spans) + code[end:]
        yield code, language


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_codes(brisk, count):
    items = list(mutants(count))
    results = brisk.render(items)
    for item, result in zip(items, results, strict=True):
        error = result.error
        assert (result.image is None) != (error is None), item
        assert result.seconds < brisk.timeout + LATE, item
        assert error is None or error.isprintable() and 0 < len(error) <= 300, item
    # Neither all broken nor all whole.
    assert count / 20 < sum(r.image is not None for r in results) < count
    draw(brisk, tiny("red"), "svg"), draw(brisk, pillow((0, 0, 0)))


# ---------------------------------------------------------------- what a child sees and sends


def test_a_child_sees_no_environment_no_descriptor_no_torch(monkeypatch):
    for name in ("SECRET_TOKEN", "DEPLOY_TOKEN_PATH", "PATH_TO_KEY", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    with Renderer(workers=1) as fresh:
        ours = {*sandbox.ENVIRONMENT, "HOME", "PYTHONUSERBASE", "FONTCONFIG_FILE", "XDG_DATA_DIRS"}
        # The last two are Python's doing and the helper's own.
        ours |= {"PATH", "PYTHONPATH", "LC_CTYPE", "GOMP_SPINCOUNT"}
        code = f"import os; raise ValueError(sorted({{*os.environ}} - {ours}))"
        assert refuse(fresh, code) == "ValueError: ['LD_LIBRARY_PATH'] (line 1)"
        code = (
            "import os\nfound = []\nfor f in range(100):\n"
            "  try: found.append(os.readlink(f'/proc/self/fd/{f}')[:5])\n  except OSError: pass\n"
            "raise ValueError(found)"
        )
        draw(fresh, tiny("red"), "svg")  # so that there are descriptors of another child to inherit
        # Null three times; source, result.
        found = ["/dev/", "/dev/", "/dev/", "pipe:", "pipe:"]
        assert refuse(fresh, code) == f"ValueError: {found} (line 6)"
        state = "['torch' in sys.modules, threading.active_count()]"
        code = f"import sys, threading; raise ValueError({state})"
        assert refuse(fresh, code).startswith("ValueError: [False, 1]")


def test_limits_are_set_in_the_child(renderer):
    names = [f"RLIMIT_{name}" for name in "CORE FSIZE NOFILE CPU AS NPROC".split()]
    limits = f"[r.getrlimit(getattr(r, n))[1] for n in {names}]"
    code = f"import resource as r; raise ValueError({limits})"
    assert refuse(renderer, code).startswith(f"ValueError: [0, {16 << 20}, 40, 21, {1 << 30}, 0]")


@pytest.mark.parametrize(
    "forged",
    [
        "b'JUNK' + bytes(12)",
        "struct.pack('<HHIf', 9, 9, 99, 0)",
        "struct.pack('<HHIf', 9000, 1, 0, 0)",
        "bytes(12)",
        "struct.pack('<HHIf', 9, 9, 0, 0)",
        "struct.pack('<HHIf', 0, 0, 1 << 31, 0)",
    ],
)
def test_a_forged_result_is_refused(renderer, forged):
    code = (
        "import os, struct\nfor f in range(3, 40):\n"
        f"  try: os.write(f, {forged})\n  except OSError: 0\n"
    )
    assert refuse(renderer, code) == "the program tampered with its result"


def test_a_child_that_cannot_be_locked_in_does_not_run(monkeypatch, tmp_path):
    """The self-test ran long before: when a lock fails later (no memory), the child must end."""
    patch = (
        "seccomp = sandbox.seccomp\n"
        "def failing(ruleset):\n  load = seccomp(ruleset)\n"
        "  return lambda: -12 if os.path.exists(sys.argv[2] + '/fail') else load()\n"
        "sandbox.seccomp = failing"
    )
    weaken(monkeypatch, tmp_path, patch)
    with Renderer(workers=1) as renderer:
        draw(renderer, pillow((1, 2, 3)))
        (renderer.scratch / "fail").touch()
        assert "before its picture" in refuse(renderer, pillow((1, 2, 3)))


def test_what_a_program_leaves_is_deleted(tmp_path):
    deep = tmp_path
    for _ in range(150):  # (1,500 and more make shutil.rmtree fail; slow disks take 5 ms for each)
        deep = deep / "d"
        deep.mkdir()
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    (tmp_path / "link").symlink_to(ROOT)
    inner.chmod(0o300), inner.parent.chmod(0o300)
    sandbox.empty(tmp_path)
    assert list(tmp_path.iterdir()) == [] and (ROOT / "render.py").exists()
    sandbox.empty(tmp_path / "gone")  # with the whole scratch folder: the trainer was faster


# ---------------------------------------------------------------- a poorer kernel


def test_without_landlock_python_is_refused_and_svg_finds_its_fonts(
    monkeypatch, tmp_path, capsys, renderer, world
):
    weaken(monkeypatch, tmp_path, NO_LANDLOCK)
    with Renderer(workers=1, timeout=20) as blind:
        assert "Python programs could read files on this machine: refused" in refuse(blind, "img")
        text = svg("<text y='15' font-weight='bold'>abc</text>")
        assert draw(blind, text, "svg").tobytes() == draw(renderer, text, "svg").tobytes()
    with Renderer(workers=1, timeout=20, unsafe_python=True) as daring:
        assert "PermissionError" in refuse(daring, "open('a', 'w')")
        assert "PermissionError" in refuse(daring, f"open('{world['OUTSIDE']}/victim.txt', 'a')")
    assert capsys.readouterr().err.count("could read files") == 2  # each said once


@pytest.mark.parametrize(
    "patch, could",
    [
        (NO_SECCOMP, "use the network"),
        (NO_SECCOMP + "\n" + NO_LANDLOCK, "read files, write files, use the network"),
    ],
)
def test_with_too_little_left_python_is_refused_and_svg_is_not(
    monkeypatch, tmp_path, capsys, patch, could
):
    weaken(monkeypatch, tmp_path, patch)
    with Renderer(workers=1) as refusing:
        reason = refuse(refusing, pillow((1, 2, 3)))
        # Landlock alone does not let a program be read that is to be run.
        assert could in reason and ("run other programs" in reason) == (NO_LANDLOCK in patch)
        assert "--unsafe-python" in reason and capsys.readouterr().err.count(reason) == 1
        draw(refusing, tiny("red"), "svg")
    with Renderer(workers=1, unsafe_python=True) as daring:
        draw(daring, pillow((1, 2, 3)))
        assert could in capsys.readouterr().err
        pid = None
        if os.geteuid() == 0:  # (a user has RLIMIT_NPROC 0)
            fork = "pid = os.fork()\nif pid == 0: time.sleep(60)\nraise SystemExit(pid)"
            error = refuse(daring, f"import os, time\n{fork}")
            pid = int(error.split()[1])
        assert pid is None or wait_for(lambda: not alive(pid))


def test_names_of_system_calls():
    """A name that libseccomp does not know would be left out in silence."""
    resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
    names = sandbox.SYSCALLS + sandbox.OPENS + sandbox.CHANGES
    assert [name for name in [*names, "nonsense"] if resolve(name.encode()) == -1] == ["nonsense"]
    assert set(sandbox.FORMS) < set(names)


# ---------------------------------------------------------------- many items, crashes, kills


def test_a_killed_helper_is_replaced():
    with Renderer(workers=2, timeout=5) as renderer:
        items = [(tiny(f"rgb({i},9,9)"), "svg") for i in range(20)]
        expected = [r.image.tobytes() for r in renderer.render(items)]
        renderer.helpers[0].process.kill()  # between two calls
        assert [r.image.tobytes() for r in renderer.render(items)] == expected
        sleeper = ("import time; time.sleep(0.6)\n" + pillow((1, 1, 1)), "python")
        # Killed in the middle of an item.
        victims = [helper.process.pid for helper in renderer.helpers]
        threading.Timer(0.3, lambda: [os.kill(pid, signal.SIGKILL) for pid in victims]).start()
        results = renderer.render([sleeper] * 2 + items)
        assert [r.error for r in results] == [None] * 22
        assert [r.image.tobytes() for r in results[2:]] == expected


def test_many_items_do_not_pile_up():
    """1,100 SVG go through three children (500 items each); nothing else changes."""
    with Renderer(workers=1) as renderer:
        draw(renderer, tiny("red"), "svg"), draw(renderer, pillow((1, 1, 1)))
        (helper,) = renderer.helpers
        before = len(os.listdir(f"/proc/{helper.process.pid}/fd"))
        first = children(helper)
        items = [(tiny("red"), "svg")] * 1100 + [(pillow((1, 1, 1)), "python")] * 20
        results = renderer.render(items)
        assert all(r.error is None for r in results)
        assert renderer.helpers == [helper]
        assert len(os.listdir(f"/proc/{helper.process.pid}/fd")) == before
        assert len(children(helper)) == 1 and children(helper) != first


def test_close_leaves_no_process_and_no_scratch(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Renderer(workers=2) as renderer:

        def started():
            renderer.render([(tiny("red"), "svg")] * 8)
            return len(set(processes(renderer))) == 4

        # Which helper takes which item is a race, and a child is born with a helper's first SVG.
        assert wait_for(started, 30)
        pids = list(processes(renderer))
        assert all(map(alive, pids)) and list(tmp_path.iterdir()) == [renderer.scratch]
    assert not any(map(alive, pids)) and list(tmp_path.iterdir()) == []


TRAINER = "import sys; sys.path.insert(0, sys.argv[1])\nfrom render import Renderer\n"


@pytest.mark.parametrize(
    "end, code",
    [
        ("sys.exit(0)", "img = 1"),
        ("import os; os._exit(0)", "img = 1"),  # right after rendering, not closed
        ("pass", "import time; time.sleep(50)"),  # or in the middle of it
    ],
)
def test_a_trainer_that_leaves_or_is_interrupted_leaves_no_words_of_helpers(end, code):
    """Ctrl-C goes to the whole foreground group. The only traceback may be the trainer's own."""
    code = TRAINER + (
        f"r = Renderer(workers=3, timeout=60)\nitems = [({code!r}, 'python')] * 6\n"
        f"print(r.scratch, flush=True)\nr.render(items)\n{end}"
    )
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT)],
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    scratch = Path(trainer.stdout.readline().strip())
    if end == "pass":
        assert wait_for(lambda: len(list(scratch.glob("item-*"))) == 3, 30)
        os.killpg(trainer.pid, signal.SIGINT)
    # Returns when helpers, who share stderr, are gone too.
    _, words = trainer.communicate(timeout=60)
    assert words.count("Traceback") == words.count("KeyboardInterrupt\n") == (end == "pass"), words
    assert bool(words) == (end == "pass") and not scratch.exists()


def test_a_killed_trainer_leaves_no_process_and_no_scratch():
    code = (
        TRAINER + "r = Renderer(workers=1, timeout=60)\n"
        "print(r.scratch, r.helpers[0].process.pid, flush=True)\n"
        "r.render([('import time; time.sleep(50)', 'python')])"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, text=True
    )
    scratch, helper = trainer.stdout.readline().split()
    family = Path(f"/proc/{helper}/task/{helper}/children")
    assert wait_for(family.read_text, 30)
    pids = [int(helper), *map(int, family.read_text().split())]
    assert len(pids) == 2 and all(map(alive, pids))
    trainer.kill()
    trainer.wait()
    assert wait_for(lambda: not any(map(alive, pids)) and not Path(scratch).exists(), 30)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PDEATHSIG")
def test_a_killed_helper_takes_its_children_with_it():
    with Renderer(workers=1) as renderer:
        (helper,) = renderer.helpers
        items = [("import time; time.sleep(3)", "python")]
        sleeper = threading.Thread(target=renderer.render, args=(items,))
        sleeper.start()
        assert wait_for(lambda: children(helper), 30)
        time.sleep(0.2)  # it is forked; let it reach the program
        (child,) = children(helper)
        helper.process.kill()
        assert wait_for(lambda: not alive(child), 30)
        sleeper.join()


def test_the_item_that_kills_its_helper_is_the_one_blamed(monkeypatch, tmp_path):
    weaken(monkeypatch, tmp_path, NO_SECCOMP)  # with it no item can
    with Renderer(workers=1, unsafe_python=True) as renderer:
        items = [(pillow((i, 0, 0)), "python") for i in range(5)]
        items[2] = ("import os; os.kill(os.getppid(), 9)", "python")
        results = renderer.render(items * 2)
        assert [i for i, r in enumerate(results) if r.error] == [2, 7]
        assert [r.image.getpixel((4, 4))[0] for r in results if r.image] == [0, 1, 3, 4] * 2


@pytest.mark.slow
def test_ten_thousand_items_leave_nothing_behind(renderer):
    """No growth of memory, descriptors, processes, neither in this process nor in the helper."""

    def size(pid):
        memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4  # kB
        return memory, len(os.listdir(f"/proc/{pid}/fd")), len(list(processes(one)))

    items = [(tiny(f"rgb({i % 256},9,9)"), "svg") for i in range(90)]
    items += [(pillow((i, 8, 8)), "python") for i in range(8)]
    items += [("<svg", "svg"), ("x = nothing", "python")]
    with Renderer(workers=1) as one:
        one.render(items * 10)
        pids = os.getpid(), one.helpers[0].process.pid
        before = list(map(size, pids))
        for _ in range(10):
            one.render(items * 10)
        for was, now in zip(before, map(size, pids)):
            assert now[1:] == was[1:] and now[0] < was[0] + 8_000, (was, now)
