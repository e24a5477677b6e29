"""What the tests of eval.py, compare.py and benchmarks.py share: an echo, a set of questions."""

import io
import json

from PIL import Image


class Echo:
    """Stands for a VLM. A prompt is the text asked: a fake `generate` can decide the replies."""

    prompts = {"solver": "Look. {question} Put it in \\boxed{}."}
    max_pixels = 10**9

    def encode(self, parts, images=(), system=""):
        """As VLM.encode: a text and pictures, or both in a list. A picture becomes its size."""
        parts = [*images, parts] if isinstance(parts, str) else parts
        assert all(isinstance(part, (str, Image.Image)) for part in parts)
        return system + "".join(
            part if isinstance(part, str) else f"[{part.width}x{part.height}]" for part in parts
        )


def png(colour="white", size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


def write_bench(folder, *rows):
    (folder / "a.png").write_bytes(png())
    path = folder / "bench.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path
