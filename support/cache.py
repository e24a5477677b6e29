"""The cache of keys and values, attention to it, and the other parts of a decode step.

A token sees those before it through their keys and values only, and these never change. So they are
kept, and the next token costs one column.

Shapes: S slots, m of them at work; C columns, W of them in use; K key/value heads, G query heads
for each of these, H head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns by which the cache of a CPU grows.
GROWTH = 32


class Cache:
    """Keys and values of S slots, of each layer [2, S, K, C, H]; C grows up to `columns`.

    On CUDA it has its final size at once, as captured steps need it. On a CPU it follows its slots:
    what lies close together is read a fifth faster than in a cache of twice the columns.
    """

    def __init__(self, vlm, slots: int, columns: int):
        text = vlm.model.model.language_model
        attention = text.layers[0].self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        now = columns if vlm.device.type == "cuda" else 0
        size = 2, slots, heads, now, attention.head_dim
        self.layers = [torch.zeros(size, dtype=vlm.dtype, device=vlm.device) for _ in text.layers]
        self.slots = torch.arange(slots, device=vlm.device)
        self.columns = torch.arange(columns, device=vlm.device)
        # Of each slot where the newest token stands: its column here, and its position. In a reply
        # the three axes of M-RoPE agree, so that one position is enough.
        self.column, self.position = torch.zeros(2, slots, dtype=torch.long, device=vlm.device)
        # Cosine and sine of each position [C, H], the latter negative in its first half.
        cos, sin = text.rotary_emb(self.layers[0], self.columns.expand(3, 1, -1))
        first, second = sin[0].chunk(2, dim=-1)
        self.cos, self.sin = cos[0], torch.cat([-first, second], dim=-1)

    def mask(self, m: int, width: int) -> Tensor:
        """[m, 1, 1, W]: 0 where slots 0 .. m-1 see, up to their newest token, and -inf beyond."""
        beyond = self.columns[:width] > self.column[:m, None]
        mask = self.layers[0].new_zeros(beyond.shape).masked_fill_(beyond, -torch.inf)
        return mask[:, None, None]

    def write(self, number: int, k, v) -> tuple[Tensor, Tensor]:
        """The keys and values [m, K, H] of the newest tokens go into a layer. -> all that slots
        0 .. m-1 have there, keys and values [m, K, C, H]"""
        m, (keys, values) = len(k), self.layers[number]
        keys[self.slots[:m], :, self.column[:m]] = k
        values[self.slots[:m], :, self.column[:m]] = v
        return keys[:m], values[:m]

    def place(self, slots, prompt: list, position: int):
        """A prompt's keys and values, of each layer [2, K, L, H], go into the first L columns of
        these slots. Its last token is then the newest, at this position."""
        length = prompt[0].shape[2]
        self.grow(length, len(self.slots))
        for layer, own in zip(self.layers, prompt):
            layer[:, slots, :, :length] = own[:, None]
        self.column[slots], self.position[slots] = length - 1, position

    def move(self, to, since):
        """Slots `to` get what is in slots `since`."""
        for layer in self.layers:
            layer[:, to] = layer[:, since]
        self.column[to], self.position[to] = self.column[since], self.position[since]

    def grow(self, columns: int, slots: int) -> int:
        """Room for these columns of the first `slots` slots -> columns, or as many as may be."""
        have, most = self.layers[0].shape[3], len(self.columns)
        columns = min(columns, most)
        if columns > have:
            more = min(columns + GROWTH, most) - have
            # One layer at a time, to need little memory.
            for number, layer in enumerate(self.layers):
                self.layers[number] = F.pad(layer[:, :slots], (0, 0, 0, more))
        return columns


def attend(q, keys, values, mask, scaling) -> Tensor:
    """softmax(q k^T * scaling + mask) v. Queries [m, K * G, H] see keys and values [m, K, C, H] by
    mask [m, 1, 1, W] -> [m, K * G * H]

    The G query heads of a key/value head take the place of G queries. So no key is copied G times,
    and every card has a fast kernel for it; for grouped heads and a mask most have none.
    """
    m, heads, _, size = keys.shape
    width = mask.shape[-1]
    q, keys, values = q.view(m, heads, -1, size), keys[:, :, :width], values[:, :, :width]
    return F.scaled_dot_product_attention(q, keys, values, mask, scale=scaling).reshape(m, -1)


def norm(module, x) -> Tensor:
    """RMSNorm as one call: the library's takes six."""
    return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def rotate(x, cos, sin) -> Tensor:
    """Rotary embedding of x [m, heads, H]: entries i and i + H/2 turn as a pair."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
