"""What the tests of drawing share: small codes, the hostile cases, a weakened sandbox."""

import time
from pathlib import Path

import render

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = Path(__file__).resolve().parent / "hostile"
ENDING = {"svg": ".svg", "python": ".py"}


def tiny(colour, size=16):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}">'
        f'<rect x="2" y="3" width="7" height="5" fill="{colour}"/></svg>'
    )


def svg(body, attributes='width="40" height="20"'):
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'


def pillow(colour):
    new = "img = Image.new('RGB', (9, 9), 'white')"
    return f"from PIL import Image\n{new}\nimg.putpixel((4, 4), {colour})\n"


HANG_SVG = svg(
    '<ellipse cx="1e30" cy="1e30" rx="1e30" ry="1e30" stroke="red"/>', 'width="100" height="100"'
)
HANG_PYTHON = "while True: pass"
DOT = "<circle cx='9' cy='9' r='5'/>"


def draw(renderer, code, language="python"):
    """The picture of code that must have one."""
    (rendering,) = renderer.render([(code, language)])
    assert rendering.error is None, rendering.error
    return rendering.image


def refuse(renderer, code, language="python"):
    """The error of code that must have one."""
    (rendering,) = renderer.render([(code, language)])
    assert rendering.image is None
    assert rendering.error.isprintable() and 0 < len(rendering.error) <= 300
    return rendering.error


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def manifest(language):
    """-> {name: words that say what must hold}; "?" is a control, whose picture must be there."""
    lines = [
        line.split("\t") for line in (HOSTILE / f"MANIFEST_{language}.tsv").read_text().splitlines()
    ]
    return {name: expected.replace("?", "image").split() for name, expected, *_ in lines}


def hostile(language, name, **fields):
    """The code of a case with its placeholders filled in."""
    data = (HOSTILE / language / (name + ENDING[language])).read_bytes()
    code = data.decode("latin-1" if name == "latin1_declared" else "utf-8-sig")
    for field, value in fields.items():
        code = code.replace(f"__{field}__", str(value))
    return code


def weaken(monkeypatch, tmp_path, patch):
    """Let helpers started from here on run `patch` first: as if the kernel lacked something."""
    script = tmp_path / "weak.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import render\nfrom support import cairo, sandbox\ndel sys.path[0]\n"
        f"{patch}\nrender.worker(sys.argv[2], float(sys.argv[3]))\n"
    )
    monkeypatch.setattr(render, "__file__", str(script))


NO_LANDLOCK = "sandbox.landlock = lambda *_: None"
NO_SECCOMP = "sandbox.seccomp = lambda *_, **__: None\nsandbox.spare_uid = lambda _: os.geteuid()"
