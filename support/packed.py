"""The same training step, faster: packed sequences, log-probs in chunks, pictures without waiting.

Shapes: L tokens of a packed sequence, H head size; n reply tokens, D hidden size, V vocabulary, t
tokens or v words of a chunk. Tests hold each fast path equal to its plain twin.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature

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

# ---- packed sequences (plain twin in the tests: a mask over all tokens) --------------------------


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


def has_kernels(device, dtype) -> bool:
    """Can torch's flash kernels take sequences of any lengths here? They know no float32, and no
    GPU before Ampere."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return False
    new_enough = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.backends.cuda.is_flash_attention_available() and new_enough


# From torch 2.12 on the kernels want to be told that heads are grouped.
GROUPED = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def varlen(q, k, v, query_ends, key_ends, longest_query, longest_key, scaling, causal):
    """Attention of segments that lie one behind the other, q [Lq, heads, H], k and v [Lk, key/value
    heads, H] -> [Lq, heads, H]. The ends count from 0, int32. Causal means from the end of the
    keys: the last query of a segment sees all of them, the one before all but one."""
    options = dict(scale=scaling, window_size=(-1, 0) if causal else (-1, -1)) | GROUPED
    ends = query_ends, key_ends, longest_query, longest_key
    return varlen_attn(q, k, v, *ends, **options)


@dataclass(frozen=True, eq=False)
class Segments:
    """For `varlen`. A segment is a prompt or a reply; its queries are its own tokens."""

    keys: Tensor  # where the keys of one segment after the other stand in the packed sequence
    query_ends: Tensor  # [segments + 1] int32, from 0
    key_ends: Tensor
    longest_query: int
    longest_key: int


def lay_out(lengths, device, dtype=torch.float32):
    """Where the segments of a packed sequence are, as attention in `dtype` wants it: see
    `rows_of_segments` and `padded_blocks`.

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


def padded_blocks(segments, total, device) -> tuple[list, Tensor]:
    """Prompts padded to one block, replies to another: one kind is much longer than the other.

    -> blocks (queries [B, q], keys [B, k], visible [B, 1, q, k]: places of B segments), and places
    [L]: where each token's result stands in the flattened blocks.
    """
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
    return blocks, send(places, device)


def packed_attention(module, query, key, value, attention_mask, scaling=None, layout=None, **_):
    """Called by transformers in each layer: query [1, heads, L, H], key and value [1, key/value
    heads, L, H] -> [1, L, heads, H]. layout: of `lay_out`, which says who sees whom."""
    # Under autocast the rotary embedding leaves float32 queries and keys behind.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # [L, heads, H]
    if isinstance(layout, Segments):
        k, v = k.index_select(0, layout.keys), v.index_select(0, layout.keys)
        ends = layout.query_ends, layout.key_ends, layout.longest_query, layout.longest_key
        return varlen(q, k, v, *ends, scaling, causal=True)[None], None

    # As many heads as queries have: on CUDA no fast kernel takes both a mask and grouped heads.
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    (blocks, places), found = layout, []
    for queries, keys, visible in blocks:
        block = F.scaled_dot_product_attention(
            pick(q, queries), pick(k, keys), pick(v, keys), visible, scale=scaling
        )
        found.append(block.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, places)[None], None


@contextmanager
def attention(vlm, kind="packed"):
    """Inside, its language model attends by `kind`, a name of transformers; then as before. With
    checkpointing the backward pass computes layers again, and belongs inside."""
    config = vlm.model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = kind
    try:
        yield
    finally:
        config._attn_implementation = before


def pick(x, places):
    """[L, heads, H] at places [B, q] -> [B, heads, q, H]"""
    # index_select, because its backward is much faster than that of x[places].
    return x.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


# ---- log-probs (plain twin in the tests: all logits at once) -------------------------------------

# How many logits are in memory at a time: 100 MB of float32 and, as a GPU wants few and large
# products, 270 MB. Those of 16,384 tokens and 151,936 words would be 10 GB.
LOGITS = {"cpu": 25_000_000, "cuda": 2**26}


class Logps(torch.autograd.Function):
    """Log-probs and entropies of n tokens, whose [n, V] logits are never there at once.

        z = h W^T / tau        h [n, D] hidden states, W [V, D] lm_head, tau temperature
        p = softmax(z),  logp = log p[target],  entropy = - sum p log p

    Autograd would keep all of z. Here the backward pass makes it once more, a chunk at a time.
    """

    @staticmethod
    def forward(ctx, hidden, targets, lm_head, temperature):
        """-> log-probs [n] of targets [n]; entropies [n], without a gradient"""
        # Under autocast products are made in bf16.
        ctx.dtype, ctx.temperature = working_dtype(lm_head), temperature
        h, weight = hidden.to(ctx.dtype), lm_head.to(ctx.dtype)
        logp, lse, entropy = torch.empty(3, len(h), device=h.device)
        # Some tokens at a time, because each needs all words.
        for at in chunks(len(h), len(weight), h.device):
            z = (h[at] @ weight.T).float().div_(temperature)  # [t, V]
            lse[at] = z.logsumexp(1)
            logp[at] = z.gather(1, targets[at, None])[:, 0] - lse[at]
            # - sum p log p = lse - E[z]
            entropy[at] = lse[at] - z.softmax(1).mul_(z).sum(1)
        ctx.save_for_backward(hidden, targets, lm_head, lse)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx, g, _):
        """g = d loss / d logp:   dz = g (onehot(target) - p) / tau,   dh = dz W,   dW = dz^T h"""
        hidden, targets, lm_head, lse = ctx.saved_tensors
        h, g = hidden.to(ctx.dtype), g[:, None] / ctx.temperature
        dh, dW = torch.zeros_like(hidden, dtype=torch.float32), None
        if ctx.needs_input_grad[2]:  # with LoRA it is frozen
            dW = torch.empty_like(lm_head)
        # Some words at a time, because then each row of dW is written once.
        for at in chunks(len(lm_head), len(h), h.device):
            weight = lm_head[at].to(ctx.dtype)  # [v, D]
            z = (h @ weight.T).float().div_(ctx.temperature)  # [n, v]
            dz = z.sub_(lse[:, None]).exp_().mul_(-g)
            # To a target that is not among these words nothing is added.
            own = targets[:, None] - at.start
            inside = own.clamp(0, len(weight) - 1)
            dz = dz.scatter_add_(1, inside, g * (own == inside)).to(ctx.dtype)
            dh += dz @ weight
            if dW is not None:
                dW[at] = dz.T @ h
        return dh.to(hidden.dtype), None, dW, None


def chunks(length, width, device):
    """Slices of `length` rows with `width` logits each, as many rows as LOGITS lets them have."""
    size = max(1, LOGITS[device.type] // width)
    return [slice(start, start + size) for start in range(0, length, size)]


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
        sizes = visual.spatial_merge_size, visual.window_size, visual.patch_size
        layout["window_index"], borders["window_seqlens"] = get_vision_window_index(grids, *sizes)
    layout = {name: send(tensor, pixels.device) for name, tensor in layout.items()}

    if not has_kernels(pixels.device, working_dtype(pixels)):
        # Picture by picture, as the library does it with borders on the host.
        visual.config._attn_implementation = "sdpa"
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
