"""The same samples, faster: products put together, attention on CUDA, captured steps.

Shapes: m slots at work, W columns of their cache in use, K key/value heads, G query heads for each
of these, H head size. Tests hold each fast path equal to its plain twin.
"""

import os
import weakref

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn import flash_attn_with_kvcache
except ImportError:
    flash_attn_with_kvcache = None

# Columns by which a cache on a CPU grows. The most slots that are of use; the fewest, and the
# columns, that a captured step is made for.
GROWTH, MOST, FEWEST, WIDTHS = 32, 512, 16, 256
# The engine that sampled last, with its cache and graphs, for as long as its network lives.
KEPT = weakref.WeakKeyDictionary()


# ------------------------------------------------------------------------------------ decode


def free_bytes(device) -> int:
    """What a cache may take: of a GPU what is free or unused by torch; of a computer half."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def slots_that_fit(vlm, wanted: int | None, longest: int) -> int:
    """`wanted`, or as many slots of `longest` tokens as nine tenths of the free memory hold.

    By default 512 on CUDA. On a CPU, where only a small network gains by more slots, as many as
    256 MB hold, but 16 to 512. ValueError if not even one fits: better before an hour of sampling.
    """
    text = vlm.config.get_text_config()
    width = vlm.model.model.language_model.layers[0].self_attn.k_proj.weight.shape[0]
    cache = 2 * text.num_hidden_layers * width * longest * vlm.dtype.itemsize
    # Logits, probabilities and what the draw makes of them: six float32 a word.
    each = cache + 24 * text.vocab_size
    free = free_bytes(vlm.device) * 9 // 10
    if each > free:
        raise ValueError(
            f"a reply of up to {longest} tokens, prompt included, needs {each / 1e9:.1f} GB of "
            f"cache, and {free / 1e9:.1f} GB are free: shorten max_new_tokens or the prompt, or "
            "make the pictures smaller"
        )
    if wanted is None:
        wanted = MOST if vlm.device.type == "cuda" else max(16, min(MOST, 2**28 // each))
    return max(1, min(wanted, free // each))


def engine_for(make, vlm, wanted: int | None, replies: int, longest: int, share=1):
    """make(vlm, slots, columns), for `replies` replies of `longest` tokens with their prompts, or a
    `share`-th of them at once. On CUDA it is the engine that sampled last, where that is enough."""
    asked, cuda = min(wanted or MOST, replies), vlm.device.type == "cuda"
    last = KEPT.get(vlm)
    if last is not None:
        enough = last.columns >= longest and last.asked >= asked
        if share == 1 and enough and last.made_for == graphs_read(vlm):
            return last
        asked, longest = max(asked, last.asked), max(longest, last.columns)
        del last
    release()
    if cuda:
        wanted, longest = asked, -(-longest // WIDTHS) * WIDTHS
    slots = min(slots_that_fit(vlm, wanted, longest), asked)
    engine = make(vlm, max(1, slots // share), longest)
    engine.asked, engine.made_for = asked, graphs_read(vlm)
    if cuda:
        KEPT[vlm] = engine
    return engine


def graphs_read(vlm) -> list:
    """What must not have changed if graphs are to be right: end tokens, where the weights lie."""
    return [*vlm.eos_ids, *(weight.data_ptr() for weight in vlm.model.parameters())]


def release():
    """Give back the memory that sampling keeps: whoever trains or loads a network needs it."""
    KEPT.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Cache:
    """Keys and values of S slots, of each layer [2, S, K, C, H], for at most `columns` columns.

    On CUDA it has its final size at once, as captured steps need it. On a CPU it follows its slots.
    """

    def __init__(self, vlm, slots: int, columns: int):
        self.index = torch.arange(slots, device=vlm.device)
        self.columns = torch.arange(columns, device=vlm.device)
        layers = vlm.model.model.language_model.layers
        attention = layers[0].self_attn
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        self.heads = [part.weight.shape[0] // attention.head_dim for part in (q, k, v)]
        now = columns if vlm.device.type == "cuda" else 0
        self.attention = fused_attention if now else plain_attention
        size = 2, slots, self.heads[1], now, attention.head_dim
        self.layers = [torch.zeros(size, dtype=vlm.dtype, device=vlm.device) for _ in layers]
        # [positions, 2, H]: cosine and sine, the latter negative in the first half.
        positions = self.columns.expand(3, 1, -1)
        cos, sin = vlm.model.model.language_model.rotary_emb(self.layers[0], positions)
        first, second = sin[0].chunk(2, dim=-1)
        self.rotation = torch.stack([cos[0], torch.cat([-first, second], dim=-1)], dim=1)

    def grow(self, columns: int, slots: int) -> int:
        """Make room for these columns of the first `slots` slots -> columns, or as many as may be.

        Slots that lie close together are read a fifth faster than in a cache of twice the columns.
        """
        have, most = self.layers[0].shape[3], len(self.columns)
        columns = min(columns, most)
        if columns > have:
            more = min(columns + GROWTH, most) - have
            # One layer at a time, to need little memory.
            for number, layer in enumerate(self.layers):
                self.layers[number] = F.pad(layer[:, :slots], (0, 0, 0, more))
        return columns

    def visible(self, column: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """What slots 0 .. m-1 see whose newest column is `column` [m]: columns up to that one.

        As lengths [m], and as a mask [m * K, 1, W], -inf beyond.
        """
        beyond = self.columns[:width] > column[:, None]  # [m, W]
        mask = self.layers[0].new_zeros(beyond.shape).masked_fill_(beyond, -torch.inf)
        mask = mask[:, None].expand(-1, self.heads[1], -1).reshape(-1, 1, width)
        return column.int() + 1, mask

    def attend(self, number: int, heads, column, visible, scaling) -> Tensor:
        """Of heads [m, K * G + K + K, H] keys and values go into `column` [m] of a layer, and the
        queries see what is there. -> [m, K * G * H]"""
        m, (lengths, mask) = len(heads), visible
        q, k, _ = heads.split(self.heads, dim=1)
        new = heads[:, q.shape[1] :].unflatten(1, (2, -1))
        layer = self.layers[number].transpose(0, 1)  # [S, 2, K, C, H]
        layer[self.index[:m], :, :, column] = new
        keys, values = layer[:m, :, :, : mask.shape[-1]].unbind(1)
        return self.attention(q, keys, values, lengths, mask, scaling)


def plain_attention(q, keys, values, lengths, mask, scaling) -> Tensor:
    """q [m, K * G, H] sees keys, values [m, K, W, H] by mask [m * K, 1, W] -> [m, K * G * H]"""
    # The G query heads of one key/value head take the place of G queries: no key is copied G times.
    m, q = len(q), q.reshape(len(mask), -1, q.shape[-1])
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=scaling)  # [m * K, G, W]
    return (scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values).view(m, -1)


def fused_attention(q, keys, values, lengths, mask, scaling) -> Tensor:
    """The same on CUDA. flash-attn reads of each slot the columns that it has, and no mask."""
    m = len(q)
    if flash_attn_with_kvcache is not None and q.dtype != torch.float32:
        q, keys, values = q[:, None], keys.transpose(1, 2), values.transpose(1, 2)
        options = dict(cache_seqlens=lengths, softmax_scale=scaling, causal=True)
        return flash_attn_with_kvcache(q, keys, values, **options).reshape(m, -1)
    q, mask = q[:, :, None], mask.view(m, -1, *mask.shape[1:])[:, :1]  # [m, 1, 1, W]
    options = dict(scale=scaling, enable_gqa=True)
    return F.scaled_dot_product_attention(q, keys, values, mask, **options).reshape(m, -1)


def norm(module, x) -> Tensor:
    """RMSNorm as one call: the library's takes six."""
    return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def largest(probs: Tensor, count: int) -> Tensor:
    """The largest of probs [m, V], sorted, [m, count or V]."""
    if probs.device.type == "cpu":
        # numpy's sort takes a tenth of the time of torch's.
        return torch.from_numpy(np.sort(probs.numpy(), axis=-1)).flip(-1)[:, :count]
    if count < probs.shape[-1]:
        return probs.topk(count).values
    return probs.sort(descending=True).values


class Product:
    """Linear layers that take the same x [m, in], as one product -> [m, all of their out].

    Adapters (support/lora.py) are two thin products beside it, those of all layers at once.
    """

    def __init__(self, *layers):
        self.layers, self.adapters = layers, []
        self.weight = joined([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = joined(biases) if biases else None

    def refresh(self):
        """Take over the adapters as they are now, in place: graphs read them there."""
        if hasattr(self.layers[0], "lora_A"):
            low = torch.cat([layer.lora_A for layer in self.layers])
            high = torch.block_diag(*[layer.scale * layer.lora_B for layer in self.layers])
            new = [each.to(self.weight.dtype) for each in (low, high)]
            self.adapters = self.adapters or new
            for old, each in zip(self.adapters, new):
                old.copy_(each)

    def __call__(self, x, onto=None) -> Tensor:
        """onto: what the product is added to."""
        if onto is None:
            y = F.linear(x, self.weight, self.bias)
        else:
            onto = onto if self.bias is None else onto + self.bias
            y = torch.addmm(onto, x, self.weight.T)
        if self.adapters:
            low, high = self.adapters
            y = torch.addmm(y, x @ low.T, high.T)
        return y


@torch.inference_mode(False)
def joined(parts: list[Tensor]) -> Tensor:
    """The rows of all parts, which are slices of it from now on: loaded into them, it is in it."""
    if len(parts) == 1:
        return parts[0].data
    whole = torch.cat([part.data for part in parts])
    for part, piece in zip(parts, whole.split([len(part) for part in parts])):
        part.data = piece
    return whole


def products_of(layer) -> list[Product]:
    """Of a layer: into attention and out of it, into the MLP and out of it."""
    a, mlp = layer.self_attn, layer.mlp
    parts = (a.q_proj, a.k_proj, a.v_proj), (a.o_proj,), (mlp.gate_proj, mlp.up_proj)
    return [Product(*part) for part in (*parts, (mlp.down_proj,))]


class CapturedSteps:
    """A step of the decoder as a CUDA graph: captured once for each of a few shapes, then replayed.

    step(m, width) takes slots 0 .. m-1, which attend to `width` columns. Nothing in it may wait for
    the device, and all that it reads and writes must stay in its place in memory.
    """

    def __init__(self, slots: int, columns: int):
        self.slots, self.columns = slots, columns
        self.graphs, self.pool = {}, torch.cuda.graph_pool_handle()

    def __call__(self, step, settings, m: int, width: int):
        """A step of at least this shape: a power of two, whole blocks, so that few graphs serve."""
        slots = max(FEWEST, 1 << (m - 1).bit_length())
        shape = min(slots, self.slots), min(-(-width // WIDTHS) * WIDTHS, self.columns)
        if (shape, settings) in self.graphs:
            return self.graphs[shape, settings].replay()
        # A step like any other: what CUDA does only once (handles, workspaces) is then done.
        step(*shape)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            step(*shape)  # recorded, not run
        self.graphs[shape, settings] = graph
