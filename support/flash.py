"""The same results, faster: products put together, attention on CUDA, captured steps, packed
sequences.

Shapes: m slots at work, W columns of their cache in use, K key/value heads, G query heads for each
of these, H head size; L tokens of a packed sequence. Tests hold each fast path equal to its plain
twin.
"""

import os
import weakref
from dataclasses import dataclass
from inspect import signature

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from support.parallel import send, working_dtype

try:
    from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
except ImportError:
    flash_attn_varlen_func = flash_attn_with_kvcache = None

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


def sent(numbers: Tensor, device) -> Tensor:
    """From the host to the device, which the host does not wait for."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)


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


# ---- packed sequences (plain twin of what follows: the mask of `visible_tokens`) -----------------

# Up to this many tokens of a packed sequence, a mask over all of them is as fast on a CPU: at 100
# tokens 0.7 against 2.1 ms, at 280 3.9 against 3.6, at 1,400 127 against 15 (a layer with 4 heads
# of 32, forward and backward, one core, 2026-11).
SHORT = 256


def pack(bundles):
    """Bundles one behind the other in one sequence, nothing padded:

        prompt | reply | reply | ... | prompt | reply | ...

    Prompt and picture go through the network once, and autograd adds up their gradients.
    -> tokens [L], positions [3, L], sources [n]: where the state stands that predicts each reply
    token, and lengths: of each bundle its prompt's and those of its replies.
    """
    tokens, positions, sources, lengths = [], [], [], []
    for bundle in bundles:
        prompt = bundle[0].prompt
        tokens += prompt.tokens
        positions.append(prompt.positions)
        end_of_prompt = len(tokens) - 1
        for rollout in bundle:
            # The first token is predicted by the prompt's last, the others by the one before.
            sources += [end_of_prompt, *range(len(tokens), len(tokens) + len(rollout.tokens) - 1)]
            tokens += rollout.tokens
            # A reply goes on where its prompt ends, whatever stands between the two.
            follow = prompt.next_position + torch.arange(len(rollout.tokens))
            positions.append(follow.expand(3, -1))
        # A reply ends where its length says: a pad token inside was sampled, and is trained.
        lengths.append([len(prompt.tokens), *(len(rollout.tokens) for rollout in bundle)])
    return torch.tensor(tokens), torch.cat(positions, dim=1), torch.tensor(sources), lengths


def visible_tokens(lengths):
    """The attention mask [L, L]: a token sees its prompt and its own reply, up to itself.

    >>> visible_tokens([[1, 2, 1]]).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    """
    # In which bundle is a token, and in which segment of it: 0 the prompt, 1, 2, ... the replies?
    bundle = [b for b, each in enumerate(lengths) for _ in range(sum(each))]
    segment = [i for each in lengths for i, length in enumerate(each) for _ in range(length)]
    bundle, segment = torch.tensor([bundle, segment])
    visible = (segment == 0) | (segment == segment[:, None])
    return (visible & (bundle == bundle[:, None])).tril()


def has_kernels(device, dtype) -> bool:
    """Can flash kernels take sequences of any lengths here? Those of flash-attn, or else those that
    come with torch. They know no float32, and no GPU before Ampere."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return False
    if flash_attn_varlen_func is not None:
        return True
    new_enough = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.backends.cuda.is_flash_attention_available() and new_enough


# From torch 2.12 on the kernels want to be told that heads are grouped.
GROUPED = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def varlen(q, k, v, query_ends, key_ends, longest_query, longest_key, scaling, causal):
    """Attention of segments that lie one behind the other, q [Lq, heads, H], k and v [Lk, key/value
    heads, H] -> [Lq, heads, H]. The ends count from 0, int32. Causal means from the end of the
    keys: the last query of a segment sees all of them, the one before all but one."""
    facts = q, k, v, query_ends, key_ends, longest_query, longest_key
    if flash_attn_varlen_func is not None:
        return flash_attn_varlen_func(*facts, softmax_scale=scaling, causal=causal)
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(*facts, scale=scaling, window_size=window, **GROUPED)


@dataclass(frozen=True, eq=False)
class Segments:
    """For `varlen`. A segment is a prompt or a reply; its queries are its own tokens."""

    keys: Tensor  # where the keys of one segment after the other stand in the packed sequence
    query_ends: Tensor  # [segments + 1] int32, from 0
    key_ends: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True, eq=False)
class Blocks:
    """For scaled_dot_product_attention: prompts padded to one block, replies to another."""

    blocks: list  # of (queries [B, q], keys [B, k], visible [B, 1, q, k]): places of B segments
    places: Tensor  # [L] where each token's result stands in the flattened blocks


def pays(lengths) -> bool:
    """Is this faster than a mask? lengths: of each bundle its prompt's and those of its replies.
    Any device is answered the same, so that their results can be compared to the last digits."""
    return sum(map(sum, lengths)) > SHORT


def lay_out(lengths, device, dtype=torch.float32):
    """Where the segments of a packed sequence are, as attention in `dtype` wants it -> Segments or
    Blocks.

    The queries of a segment are its tokens. Its keys are the same tokens, and for a reply those of
    its prompt before them.
    """
    segments, start = [], 0
    for prompt_length, *reply_lengths in lengths:
        prompt = torch.arange(start, start + prompt_length)
        segments.append((prompt, prompt))
        start += prompt_length
        for length in reply_lengths:
            reply = torch.arange(start, start + length)
            segments.append((reply, torch.cat([prompt, reply])))
            start += length

    if has_kernels(device, dtype):
        return rows_of_segments(segments, device)
    return padded_blocks(segments, start, device)


def rows_of_segments(segments, device) -> Segments:
    lengths, ends = [], []
    for kind in zip(*segments):
        lengths.append([len(places) for places in kind])
        total = torch.tensor(lengths[-1]).cumsum(0, dtype=torch.int32)
        ends.append(send(F.pad(total, (1, 0)), device))
    keys = torch.cat([keys for _, keys in segments])
    return Segments(send(keys, device), *ends, *map(max, lengths))


def padded_blocks(segments, total, device) -> Blocks:
    """Two blocks and not one, because prompts are much longer than replies, or much shorter."""
    prompts = [(queries, keys) for queries, keys in segments if queries is keys]
    replies = [(queries, keys) for queries, keys in segments if queries is not keys]
    blocks, places, done = [], torch.empty(total, dtype=torch.long), 0
    for block in (prompts, replies):
        queries = pad_sequence([queries for queries, _ in block], batch_first=True)  # [B, q]
        keys = pad_sequence([keys for _, keys in block], batch_first=True)  # [B, k]
        own = torch.tensor([[len(queries)] for queries, _ in block])  # [B, 1]
        before = torch.tensor([[len(keys)] for _, keys in block]) - own  # [B, 1]

        # A query sees the prompt before its segment, and of the segment what is not behind it.
        i, j = torch.arange(queries.shape[1]), torch.arange(keys.shape[1])
        visible = j <= (before + i)[..., None]  # [B, q, k]

        # Where the results of real queries will stand, once the blocks are flattened.
        results = done + torch.arange(queries.numel()).view_as(queries)
        places[torch.cat([queries for queries, _ in block])] = results[i < own]
        done += queries.numel()
        blocks.append([send(tensor, device) for tensor in (queries, keys, visible[:, None])])
    return Blocks(blocks, send(places, device))


def packed_attention(module, query, key, value, attention_mask, scaling=None, layout=None, **_):
    """Called by transformers in each layer: query [1, heads, L, H], key and value [1, key/value
    heads, L, H] -> [1, L, heads, H]. layout: of `lay_out`. None: the mask says who sees whom."""
    # Under autocast the rotary embedding leaves float32 queries and keys behind.
    q, k = query.to(value.dtype), key.to(value.dtype)
    if layout is None:
        found = F.scaled_dot_product_attention(
            q, k, value, attention_mask, scale=scaling, enable_gqa=True
        )
        return found.transpose(1, 2), None

    q, k, v = (x[0].transpose(0, 1) for x in (q, k, value))  # [L, heads, H]
    if isinstance(layout, Segments):
        k, v = k.index_select(0, layout.keys), v.index_select(0, layout.keys)
        ends = layout.query_ends, layout.key_ends, layout.longest_query, layout.longest_key
        return varlen(q, k, v, *ends, scaling, causal=True)[None], None

    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    found = []
    for queries, keys, visible in layout.blocks:
        block = F.scaled_dot_product_attention(
            pick(q, queries), pick(k, keys), pick(v, keys), visible, scale=scaling
        )
        found.append(block.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, layout.places)[None], None


def pick(x, places):
    """[L, heads, H] at places [B, q] -> [B, heads, q, H]"""
    # index_select, because its backward is much faster than that of x[places].
    return x.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


# ---- logits (plain twin in the tests: all of them at once) ---------------------------------------

# How many are in memory at a time: 100 MB of float32 and, as a GPU wants few and large products,
# 270 MB. Those of 16,384 tokens and 151,936 words would be 10 GB.
LOGITS = {"cpu": 25_000_000, "cuda": 2**26}


class Logits:
    """Log-probs of n tokens, and the gradient of a loss made of them, some tokens at a time:

        for at, logp in logits.chunks():
            logits.add(a loss made of logp)
        logits.loss().backward()

    hidden h [n, D], lm_head W [V, D], targets [n]. p is the softmax of the logits h W^T / tau.
    Autograd would hold them all, or ask for a fourth product of their size. So it only gives

        g = d loss / d logp,      dz = g (onehot(target) - p) / tau,
        dh = dz W,                dW = sum of dz^T h over the chunks.
    """

    def __init__(self, hidden, targets, lm_head, temperature):
        self.hidden, self.targets, self.lm_head = hidden, targets, lm_head
        self.temperature = temperature
        # Under autocast products are made in bf16. The sum of dW is kept in float32.
        self.weight = lm_head.detach().to(working_dtype(lm_head))
        self.logp, self.entropy = torch.empty(2, len(hidden), device=hidden.device)
        self.total, self.d_hidden, self.d_lm_head = 0.0, torch.zeros_like(hidden), None
        if lm_head.requires_grad:  # with LoRA it is frozen
            self.d_lm_head = torch.zeros_like(lm_head, dtype=torch.float32)

    def logps(self):
        """-> log-probs [n], entropies [n]"""
        for _ in self.chunks():
            pass
        return self.logp, self.entropy

    def chunks(self):
        """-> (at, logp): a slice of the n tokens, and a leaf with their log-probs [t]"""
        size = max(1, LOGITS[self.weight.device.type] // len(self.weight))
        for start in range(0, len(self.targets), size):
            at = self.at = slice(start, start + size)
            with torch.no_grad():
                h, target = self.hidden[at].to(self.weight.dtype), self.targets[at, None]
                z = (h @ self.weight.T).float().div_(self.temperature)  # [t, V]
                lse = z.logsumexp(1)
                self.logp[at] = z.gather(1, target)[:, 0] - lse
                self.p = z.softmax(1)
                # - sum p log p = lse - E[z]
                self.entropy[at] = lse - z.mul_(self.p).sum(1)
            del z  # p is as large
            self.leaf = self.logp[at].clone().requires_grad_()
            yield at, self.leaf

    def add(self, loss):
        """Add the loss of the chunk at hand, and its gradients while p is there."""
        self.total += loss.detach()
        g = torch.autograd.grad(loss, self.leaf)[0][:, None] / self.temperature  # [t, 1]
        with torch.no_grad():
            dz = self.p.mul_(-g).scatter_add_(1, self.targets[self.at, None], g)
            h, dz = self.hidden[self.at].to(self.weight.dtype), dz.to(self.weight.dtype)
            self.d_hidden[self.at] = dz @ self.weight
            if self.d_lm_head is not None and self.d_lm_head.dtype == dz.dtype:
                self.d_lm_head.addmm_(dz.T, h)  # no second [V, D]
            elif self.d_lm_head is not None:
                self.d_lm_head += dz.T @ h

    def loss(self):
        """The sum of the losses. Its backward pass hands over the gradients that are known."""
        gradients = self.d_hidden, self.d_lm_head
        return KnownGradients.apply(self.hidden, self.lm_head, self.total, *gradients)


class KnownGradients(torch.autograd.Function):
    """A loss, and its gradients by hidden states and lm_head, computed beforehand. FSDP wants to
    see lm_head, which it gathered, get one in a backward pass."""

    @staticmethod
    def forward(ctx, hidden, lm_head, loss, d_hidden, d_lm_head):
        ctx.gradients, ctx.dtype = (d_hidden, d_lm_head), lm_head.dtype
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        # What nobody else holds, autograd takes over without a copy.
        (d_hidden, d_lm_head), ctx.gradients = ctx.gradients, None
        if d_lm_head is not None:
            d_lm_head = d_lm_head.mul_(grad).to(ctx.dtype)
        return d_hidden.mul_(grad), d_lm_head, None, None, None


# ---- pictures (plain twin: attention of the vision tower picture by picture) ---------------------


class LinearPatches(torch.nn.Module):
    """The patch embedding. Its convolution's stride is its kernel, so that it is a linear layer;
    as a convolution bf16 takes a slow path with gigabytes of workspace in some versions of cuDNN.
    """

    def __init__(self, convolution):
        super().__init__()
        self.proj = convolution

    def forward(self, pixels):
        weight = self.proj.weight.flatten(1)
        return F.linear(pixels.to(weight.dtype), weight, self.proj.bias)


def lay_out_pictures(visual, grids, pixels) -> dict:
    """What the vision tower derives from the sizes [pictures, 3] of pictures on the host. On a GPU
    it would wait for them, in each of its layers. Its kind of attention is set here as well."""
    layout = {"position_ids": get_vision_position_ids(grids, visual.spatial_merge_size)}
    borders = {"seqlens": get_vision_cu_seqlens(grids)}
    if hasattr(visual, "window_size"):
        facts = grids, visual.spatial_merge_size, visual.window_size, visual.patch_size
        layout["window_index"], borders["window_seqlens"] = get_vision_window_index(*facts)
    layout = {name: send(tensor, pixels.device) for name, tensor in layout.items()}

    if not has_kernels(pixels.device, working_dtype(pixels)):
        # Picture by picture, as the library does it with borders on the host.
        return layout | {f"cu_{name}": ends for name, ends in borders.items()}
    visual.config._attn_implementation = "flash_pictures"
    for name, ends in borders.items():
        layout[f"cu_{name}"] = send(ends, pixels.device)
        layout[f"max_{name}"[:-1]] = int(ends.diff().max())
    return layout


def picture_attention(module, q, k, v, attention_mask, scaling, cu_seq_lens_q, max_length_q, **_):
    """Called by transformers: q, k, v [1, heads, L, H] of several pictures -> [1, L, heads, H]"""
    q, k, v = (x[0].transpose(0, 1).to(v.dtype) for x in (q, k, v))
    ends = cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q
    return varlen(q, k, v, *ends, scaling, causal=False)[None], None


AttentionInterface.register("packed", packed_attention)
AttentionInterface.register("flash_pictures", picture_attention)
