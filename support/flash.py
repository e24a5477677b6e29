"""The same results, faster, on CUDA.

Decode: flash-attn reads and writes the cache, and the whole step is a captured graph.

Shapes: m slots at work, C cache columns, H head dimension.
"""

import torch
from torch import Tensor

try:
    from flash_attn import flash_attn_with_kvcache
except ImportError:
    flash_attn_with_kvcache = None

WIDTHS = 256  # columns by which the width of captured steps grows


# ------------------------------------------------------------------------------------ decode


def can_decode(device, dtype) -> bool:
    """Whether flash-attn is there for a decode step on this device; it knows no float32."""
    return flash_attn_with_kvcache is not None and device.type == "cuda" and dtype.itemsize == 2


def decode_attention(q, k, v, keys, values, lengths, scaling) -> Tensor:
    """k, v [m, key/value heads, H] go into the cache, and q [m, heads, H] looks at what is there.

    keys, values [m, key/value heads, C, H]: the cache. lengths [m] int32: the column that is
    written, which is the last one that is seen. -> [m, 1, heads, H]
    """
    return flash_attn_with_kvcache(
        q[:, None],
        keys.transpose(1, 2),
        values.transpose(1, 2),
        k[:, None],
        v[:, None],
        cache_seqlens=lengths,
        softmax_scale=scaling,
        causal=True,
    )


class CapturedSteps:
    """A step of the decoder as a CUDA graph: captured once for each of a few shapes, then replayed.

    Nothing in the step may wait for the device, and all that it reads and writes must stay in its
    place in memory.
    """

    def __init__(self):
        self.graphs, self.pool = {}, torch.cuda.graph_pool_handle()

    @staticmethod
    def shape(m: int, width: int, slots: int, columns: int, flash: bool) -> tuple[int, int]:
        """Slots and columns of the step: what is needed, rounded up, so that few graphs serve all.

        flash-attn reads no column beyond a slot's length: it gets all of them.
        """
        rounded = -(-width // WIDTHS) * WIDTHS
        return min(slots, bucket(m)), columns if flash else min(rounded, columns)

    def __call__(self, step, *shape):
        """step(*shape), replayed if this shape was captured before."""
        if shape in self.graphs:
            return self.graphs[shape].replay()
        # A step like any other: what CUDA does only once (handles, workspaces) is then done.
        step(*shape)
        self.graphs[shape] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graphs[shape], pool=self.pool):
            step(*shape)  # recorded, not run


def bucket(m: int) -> int:
    """The next power of two.

    >>> [bucket(m) for m in (1, 2, 3, 64, 65)]
    [1, 2, 4, 64, 128]
    """
    return 1 << (m - 1).bit_length()
