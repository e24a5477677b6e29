"""Pictures per second and core: render.py, CairoSVG in process, one subprocess for each item.

    taskset -c 0 python bench/render_bench.py [--seconds 3]

One worker, so trainer, helper and child share a core when pinned to it. The rows alternate, round
by round: a busy machine slows all of them alike, and the ratios hold. Every picture is checked to
be one.
"""

import argparse
import io
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cairosvg
from PIL import Image

from render import Renderer


def svg_chart(bars=24):
    """About 3 kB: bars with labels, axes, a title."""
    shapes = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="400" viewBox="0 0 800 400">'
        '<rect width="800" height="400" fill="white"/>'
        '<text x="300" y="30" font-size="20">Units per week</text>'
        '<line x1="30" y1="360" x2="780" y2="360" stroke="black"/>'
    ]
    for i in range(bars):
        x, units = 40 + 30 * i, i * 7 % 25
        colour = f"#{40 + i * 7:02x}80c0"
        place = f'x="{x}" y="{360 - 11 * units}" width="22" height="{11 * units}"'
        shapes.append(f'<rect {place} fill="{colour}"/>')
        shapes.append(f'<text x="{x + 2}" y="380" font-size="11">{units}</text>')
    return "".join(shapes) + "</svg>"


PILLOW = """\
from PIL import Image, ImageDraw, ImageFont
img = Image.new("RGB", (800, 600), "white")
draw, font = ImageDraw.Draw(img), ImageFont.load_default(16)
for i in range(24):
    x, units = 20 + 32 * i, i * 7 % 25
    box = (x, 500 - 15 * units, x + 24, 500)
    draw.rectangle(box, fill=(40 + 8 * i, 90, 160), outline="black")
    draw.text((x, 510), str(units), fill="black", font=font)
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
# What one would write first: a new Python for each program, its PNG decoded by the trainer, no
# confinement.
PLAIN = {
    "svg": "import cairosvg, sys\n"
    "cairosvg.svg2png(sys.stdin.buffer.read(), write_to=sys.stdout.buffer)",
    "python": "import io, sys; from PIL import Image; save = Image.Image.save\n"
    "Image.Image.save = lambda self, name, **k: save(self, sys.stdout.buffer, 'PNG')\n"
    "exec(sys.stdin.read())",
}


def in_process(code):
    return [Image.open(io.BytesIO(cairosvg.svg2png(code.encode()))).convert("RGB")]


def one_subprocess(code, language):
    command, given = [sys.executable, "-c", PLAIN[language]], code.encode()
    quiet = {"MPLBACKEND": "Agg"}
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True, env=quiet)
    return [Image.open(io.BytesIO(done.stdout)).convert("RGB")]


def ours(renderer, item, batch):
    return [rendering.image for rendering in renderer.render([item] * batch)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    seconds = parser.parse_args().seconds
    chart, pillow, plot = (svg_chart(), "svg"), (PILLOW, "python"), (MATPLOTLIB, "python")
    print(f"SVG of {len(chart[0])} bytes")
    # A helper that has imported matplotlib is larger, so its forks are dearer: Pillow is measured
    # without and with it.
    with Renderer(workers=1, timeout=60) as light, Renderer(workers=1, timeout=60) as full:
        rows = {
            "SVG: render.py": partial(ours, light, chart, 16),
            "SVG: cairosvg.svg2png in process": partial(in_process, chart[0]),
            "SVG: one subprocess each": partial(one_subprocess, *chart),
            "Pillow: render.py": partial(ours, light, pillow, 4),
            "Pillow: one subprocess each": partial(one_subprocess, *pillow),
            "matplotlib: render.py": partial(ours, full, plot, 4),
            "matplotlib: one subprocess each": partial(one_subprocess, *plot),
            "Pillow beside matplotlib: render.py": partial(ours, full, pillow, 4),
        }
        totals = {name: [0, 0.0] for name in rows}  # pictures, seconds
        for draw in rows.values():
            draw()  # imports and caches
        while any(spent < seconds for _, spent in totals.values()):
            for name, draw in rows.items():
                if totals[name][1] < seconds:
                    started = time.perf_counter()
                    pictures = draw()
                    totals[name][1] += time.perf_counter() - started
                    totals[name][0] += len(pictures)
                    assert all(picture and picture.size[0] == 800 for picture in pictures)
    for name, (count, spent) in totals.items():
        print(f"{name:36} {count / spent:8.1f} pictures per second")


if __name__ == "__main__":
    main()
