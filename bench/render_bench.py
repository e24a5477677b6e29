"""Pictures per second and core: render.py against CairoSVG in process and against one subprocess per item.

    taskset -c 0 python bench/render_bench.py [--seconds 3]

One worker, so trainer, helper and child share a core when pinned to it. The rows alternate, round by round: a
busy machine slows all of them alike, and the ratios hold. Every picture is checked to be one.
"""

import argparse
import functools
import io
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cairosvg
from PIL import Image

from render import Renderer


def svg_chart(bars=24):
    """About 3 kB: bars with labels, axes, a title."""
    shapes = [
        f'<rect x="{40 + 30 * i}" y="{360 - 11 * (i * 7 % 25)}" width="22" height="{11 * (i * 7 % 25)}" '
        f'fill="#{40 + i * 7:02x}80c0"/><text x="{42 + 30 * i}" y="380" font-size="11">{i * 7 % 25}</text>'
        for i in range(bars)
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="400" viewBox="0 0 800 400">'
        '<rect width="800" height="400" fill="white"/><text x="300" y="30" font-size="20">Units per week</text>'
        '<line x1="30" y1="360" x2="780" y2="360" stroke="black"/>' + "".join(shapes) + "</svg>"
    )


PILLOW = """\
from PIL import Image, ImageDraw, ImageFont
img = Image.new("RGB", (800, 600), "white")
draw, font = ImageDraw.Draw(img), ImageFont.load_default(16)
for i in range(24):
    draw.rectangle((20 + 32 * i, 500 - 15 * (i * 7 % 25), 44 + 32 * i, 500), fill=(40 + 8 * i, 90, 160), outline="black")
    draw.text((20 + 32 * i, 510), str(i * 7 % 25), fill="black", font=font)
img.save("chart.png")
"""
MATPLOTLIB = """\
import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(8, 6), dpi=100)
ax.bar(range(12), [i * 7 % 25 for i in range(12)], color="teal", label="units")
ax.set_title("Units per week"), ax.set_xlabel("week"), ax.set_ylabel("units"), ax.legend()
fig.tight_layout()
fig.savefig("chart.png")
"""
# What one would write first: a new Python for each program, its PNG decoded by the trainer, no confinement.
PLAIN = {
    "svg": "import cairosvg, sys; cairosvg.svg2png(sys.stdin.buffer.read(), write_to=sys.stdout.buffer)",
    "python": "import io, sys; from PIL import Image; save = Image.Image.save\n"
    "Image.Image.save = lambda self, name, **k: save(self, sys.stdout.buffer, 'PNG')\n"
    "exec(sys.stdin.read())",
}


def in_process(code):
    return Image.open(io.BytesIO(cairosvg.svg2png(code.encode()))).convert("RGB")


def one_subprocess(code, language):
    done = subprocess.run(
        [sys.executable, "-c", PLAIN[language]],
        input=code.encode(),
        stdout=subprocess.PIPE,
        check=True,
        env={"MPLBACKEND": "Agg"},
    )
    return Image.open(io.BytesIO(done.stdout)).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    seconds = parser.parse_args().seconds
    codes = {
        "SVG": (svg_chart(), "svg"),
        "Pillow": (PILLOW, "python"),
        "matplotlib": (MATPLOTLIB, "python"),
    }
    print(f"SVG of {len(codes['SVG'][0])} bytes")
    # A helper that has imported matplotlib is larger, so its forks are dearer: Pillow is measured without and with it.
    with Renderer(workers=1, timeout=60) as light, Renderer(workers=1, timeout=60) as full:

        def ours(renderer, item, batch):
            return [rendering.image for rendering in renderer.render([item] * batch)]

        rows = []  # name, function -> pictures, [pictures, seconds]
        for name, item in codes.items():
            pool, batch = full if name == "matplotlib" else light, 16 if name == "SVG" else 4
            rows.append(
                (f"{name}: render.py", functools.partial(ours, pool, item, batch), [0, 0.0])
            )
            if name == "SVG":
                rows.append(
                    (
                        "SVG: cairosvg.svg2png in process",
                        lambda item=item: [in_process(item[0])],
                        [0, 0.0],
                    )
                )
            rows.append(
                (
                    f"{name}: one subprocess each",
                    lambda item=item: [one_subprocess(*item)],
                    [0, 0.0],
                )
            )
        rows.append(
            (
                "Pillow beside matplotlib: render.py",
                functools.partial(ours, full, codes["Pillow"], 4),
                [0, 0.0],
            )
        )
        for _, draw, _ in rows:
            draw()  # imports and caches
        while any(total[1] < seconds for _, _, total in rows):
            for _, draw, total in rows:
                if total[1] < seconds:
                    started = time.perf_counter()
                    pictures = draw()
                    total[1] += time.perf_counter() - started
                    total[0] += len(pictures)
                    assert all(
                        picture is not None and picture.size[0] == 800 for picture in pictures
                    )
    for name, _, (count, spent) in rows:
        print(f"{name:36} {count / spent:8.1f} pictures per second")


if __name__ == "__main__":
    main()
