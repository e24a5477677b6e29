"""Batched sampling with a KV cache of our own.

The life of a slot (a row of the cache, which holds one completion at a time):

    prompts --prefill, each once--> keys and values --copied into a free slot--> step, step, step, ... --> Completion
                                                             ^                                       |
                                                             +---- the next one of the queue <-------+

One step takes every working slot one token further: the newest token goes through the network, which writes its keys
and values into the cache, and the next one is drawn. A slot starts with the last token of its prompt as its newest, so
one filled a moment ago takes the same step as one in the middle of a reply. When a completion ends, the next of the queue
has its slot before the next step: the rows computed are the tokens drawn, no more. Only when the queue is empty do slots
fall idle; the last working row then moves into the gap, so that slots 0 .. m-1 are always those at work.

A row starts at column 0 of the cache and has its own length: rows of any lengths, with and without pictures, share a
step. There is no padding inside a row, and the mask is simply "column <= length". All rows attend to the same number of
columns; on a CPU, a few that are much longer than the others move to the end, to a number of their own.

Prefill (prefill.py) goes through transformers' forward; the step is written out below on the layers' own weights: with one
new token per row it is half a page. On a CPU ends are looked at after each step. On CUDA (never run yet) its
shapes are fixed and nothing of it waits for the device, so that it is captured as a graph and replayed; ends are looked
at every few steps, and what was drawn after one is dropped.

Shapes: S slots, m working ones, C columns (W of them in use), K key/value heads, G query heads per key/value head,
H head dimension, D hidden size, V vocabulary.
"""

import argparse
import math
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from prefill import prefill
from sampling import sample, streams, uniforms
from vlm import VLM, Prompt

try:
    from flash_attn import flash_attn_with_kvcache
except ImportError:
    flash_attn_with_kvcache = None

APART = 8000  # columns that a step must save before its longest rows are a part of their own, which takes a few more calls
GROWTH = 32  # columns by which the cache grows
EVERY = {"cpu": 1, "cuda": 8}  # steps between two looks at the ends: on a GPU a look makes it wait
PREFILL = {
    "cpu": 2048,
    "cuda": 8192,
}  # tokens prefilled at once: on a CPU their activations should stay in its cache


@dataclass
class Completion:
    tokens: list[int]  # including the end token, if one was reached
    text: str  # without it
    logps: list[float]  # of each token, as it was sampled: temperature, top-k and top-p applied
    full_logps: list[
        float
    ]  # before any was left out: log_softmax(logits / temperature), a trainer's view
    finished: bool  # an end token was reached (otherwise max_new_tokens cut it off)


def generate(
    vlm: VLM,
    prompts: list[Prompt],
    n=1,
    max_new_tokens=512,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    seed=0,
    progress=False,
    slots=None,
    prefill_tokens=None,
    numbers=None,
) -> list[list[Completion]]:
    """n completions of each prompt: a list per prompt, in order.

    max_new_tokens: one number, or one for each completion ([prompts, n]). temperature 0 takes the most probable token
    (logps are then 0, full_logps those of temperature 1). top_k 0 and top_p 1 mean off; top-k comes first, then the
    nucleus of what it left. Image and video tokens are never drawn: in a reply they would stand for pictures that do
    not exist, which the network refuses.
    slots: rows decoded at once, by default 128 on CUDA, on CPU up to 512 (see `slots_that_fit`), fewer where memory is
    short. prefill_tokens: prompt tokens (padding included) prefilled at once, by default PREFILL; twice as many where that
    keeps questions about one picture together. Neither changes what is sampled: token t of completion c of prompt p is drawn
    with a random number that depends on (seed, p, c, t) alone. (Up to rounding, that is: the last bits of a logit depend on
    the shape of the batch it was computed in.) numbers: p of each prompt, by default 0, 1, 2, ...; whoever samples a part of
    a longer list gives the places there, and draws what the whole list would.
    """
    limits = torch.as_tensor(max_new_tokens)
    for wrong, rule in (
        (n < 1, "n must be 1 or more"),
        (bool((limits < 1).any()), "max_new_tokens must be 1 or more"),
        (not temperature >= 0, "temperature must be 0 (greedy) or more"),
        (not 0 < top_p <= 1, "top_p must be above 0 and at most 1 (off)"),
        (top_k < 0, "top_k must be 0 (off) or more"),
        (slots is not None and slots < 1, "slots must be 1 or more"),
    ):
        if wrong:
            raise ValueError(rule)
    if not prompts:
        return []
    longest = max(len(prompt.tokens) for prompt in prompts) + int(limits.max())
    slots = min(slots_that_fit(vlm, slots, longest), n * len(prompts))
    plan = (vlm, prompts, limits.expand(len(prompts), n), (temperature, top_p, top_k), seed)
    with torch.inference_mode():
        try:
            return Engine(*plan, slots, prefill_tokens, numbers).run(progress)
        except torch.cuda.OutOfMemoryError:  # something else took the memory that was planned with
            slots = max(1, slots // 2)
            print(
                f"generate: out of GPU memory; once more from the start with {slots} slots",
                file=sys.stderr,
            )
        torch.cuda.empty_cache()  # out of the except clause, which holds on to the old engine
        return Engine(*plan, slots, prefill_tokens, numbers).run(progress)


def free_bytes(device) -> int:
    """What a cache may take: the free memory of a GPU and what torch holds there unused; half of a computer's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def slots_that_fit(vlm: VLM, wanted: int | None, longest: int) -> int:
    """`wanted`, or as many rows of `longest` tokens as fit into nine tenths of the free memory.

    By default 128 on CUDA (not measured). A CPU needs enough rows to make the reading of the weights small beside the
    arithmetic, for which 16 are taken, not tuned; what more rows save is Python between the layers, which only a small
    network notices: as many as 256 MB hold, but 16 to 512. ValueError if not even one fits: better before an hour of sampling than in its middle.
    """
    text = vlm.config.get_text_config()
    attention = vlm.model.model.language_model.layers[0].self_attn
    cache = (
        2 * text.num_hidden_layers * attention.k_proj.weight.shape[0] * longest * vlm.dtype.itemsize
    )
    sampling = (
        24 * text.vocab_size
    )  # logits, probabilities and what is made of them: six float32 per word
    each, free = cache + sampling, free_bytes(vlm.device) * 9 // 10
    if each > free:
        raise ValueError(
            f"a reply of up to {longest} tokens, prompt included, needs {each / 1e9:.1f} GB of cache, and "
            f"{free / 1e9:.1f} GB are free: shorten max_new_tokens or the prompt, or make the pictures smaller"
        )
    if wanted is None:
        wanted = 128 if vlm.device.type == "cuda" else max(16, min(512, 2**28 // each))
    return max(1, min(wanted, free // each))


# ------------------------------------------------------------------------------------ the engine


class Engine:
    """The cache, the slots and the queue of one call of `generate`. limits [prompts, n]: how long each completion may be."""

    def __init__(self, vlm, prompts, limits, settings, seed, slots, prefill_tokens, numbers=None):
        self.vlm, self.text = vlm, vlm.model.model.language_model
        self.settings, self.prefill_tokens, n = (
            settings,
            prefill_tokens or PREFILL[vlm.device.type],
            limits.shape[1],
        )
        self.results = [[None] * n for _ in prompts]

        # The queue: each distinct prompt with the completions asked of it. Long prompts first, so that neighbours
        # are alike in length and the longest do not come last, when few slots are at work. Questions about the same
        # pictures go together: the vision tower and the prompts' common beginning are computed once for them.
        distinct, families = {}, {}
        for index, prompt in enumerate(prompts):
            key = (prompt.pictures, *prompt.tokens)
            distinct.setdefault(key, (prompt, []))[1].extend(
                (index, completion) for completion in range(n)
            )
            longest, number = families.get(prompt.pictures or key, (0, len(families)))
            families[prompt.pictures or key] = max(longest, len(prompt.tokens)), number

        def place(item):
            (_, (prompt, _)), (longest, number) = item, families[item[0][0] or item[0]]
            return -longest, number, -len(prompt.tokens)

        self.queue = [entry for _, entry in sorted(distinct.items(), key=place)]
        self.ready = []  # prefilled: (pieces of its cache and where they begin, prompt, its completions)

        self.slots = slots = min(slots, limits.numel())
        most, device = int(limits.max()), vlm.device
        attention = self.text.layers[0].self_attn
        self.head_dim, self.kv_heads = (
            attention.head_dim,
            attention.k_proj.weight.shape[0] // attention.head_dim,
        )
        columns = max(len(prompt.tokens) for prompt in prompts) + most
        # On CUDA the cache has its final size at once; on CPU it follows its rows, see `grow`.
        self.keys, self.values = (
            [
                torch.zeros(
                    slots,
                    self.kv_heads,
                    columns if device.type == "cuda" else 0,
                    self.head_dim,
                    dtype=vlm.dtype,
                    device=device,
                )
                for _ in self.text.layers
            ]
            for _ in range(2)
        )  # [S, K, C, H] each
        # Rotations by position. In a reply the three axes of M-RoPE agree: one position a token is enough.
        longest = max(prompt.next_position for prompt in prompts) + most
        positions = torch.arange(longest, device=device)
        cos, sin = self.text.rotary_emb(self.keys[0], positions.expand(3, 1, -1))
        left, right = sin[0].chunk(2, dim=-1)
        self.rotation = torch.stack(
            [cos[0], torch.cat([-left, right], dim=-1)], dim=1
        )  # [positions, 2, H], see `rotate`

        # The state of each slot. `newest` is the token that the next step puts through the network, to column
        # `length`; `drawn` counts the tokens of the reply so far. One place more than `most`: see `advance`.
        def state(*size, dtype=torch.long):
            return torch.zeros(slots, *size, dtype=dtype, device=device)

        self.newest, self.limit = state(), state()
        self.counts = torch.zeros(3, slots, dtype=torch.long, device=device)
        self.length, self.position, self.drawn = self.counts  # what a step adds 1 to
        self.done = ~state(dtype=torch.bool)
        self.tokens, self.logps, self.full_logps = (
            state(most + 1),
            *(state(most + 1, dtype=torch.float32) for _ in range(2)),
        )
        self.random = state(
            most + 1, dtype=torch.float64
        )  # what each token of the reply is drawn with
        self.owner = np.zeros((slots, 2), dtype=int)  # (prompt index, completion index)
        self.free, self.m = list(range(slots))[::-1], 0  # free slots, lowest last; those at work
        self.rows, self.columns = (
            torch.arange(slots, device=device),
            torch.arange(columns + GROWTH, device=device),
        )
        self.heads = torch.arange(slots * self.kv_heads, device=device).view(slots, -1)  # [S, K]

        numbers = torch.tensor(range(len(prompts)) if numbers is None else numbers)
        self.streams, self.limits = (
            streams(seed, int(numbers.max()) + 1, n)[numbers].to(device),
            limits.to(device),
        )  # [prompts, n]
        self.ends = torch.tensor(vlm.eos_ids, dtype=torch.long, device=device)
        self.never = torch.tensor(
            [vlm.config.image_token_id, vlm.config.video_token_id], device=device
        )

        self.every = EVERY[device.type]
        self.graphs, self.pool = (
            ({}, torch.cuda.graph_pool_handle()) if device.type == "cuda" else (None, None)
        )  # parts -> captured step
        self.flash = (
            flash_attn_with_kvcache if device.type == "cuda" and vlm.dtype.itemsize == 2 else None
        )  # it knows no float32

    def run(self, progress) -> list[list[Completion]]:
        bar = tqdm(
            total=sum(map(len, self.results)),
            disable=not progress,
            unit=" completions",
            leave=False,
        )
        while self.admit():
            for _ in range(self.every):
                self.step()
            bar.update(self.retire())
        bar.close()
        return self.results

    # -------------------------------------------------------------------- prompts into slots
    def admit(self) -> bool:
        """Fill the free slots from the queue; of those that stay free leave no gap. False: all is done."""
        rows, begin = [], []
        while self.free and (self.ready or self.queue):
            if not self.ready:
                self.prefill()
            pieces, prompt, waiting = self.ready[0]
            now = waiting[: len(self.free)]
            mine = [self.free.pop() for _ in now]
            at = (
                slice(mine[0], mine[-1] + 1)
                if mine[-1] - mine[0] == len(mine) - 1
                else torch.tensor(mine, device=self.newest.device)
            )
            self.grow(len(prompt.tokens) - 1, self.slots)
            for start, piece in pieces:  # of each layer [K, L, H]
                for cache, one in zip(self.keys + self.values, piece):
                    cache[at, :, start : start + one.shape[1]] = one
            self.owner[mine] = now
            rows += mine
            begin += [(prompt.tokens[-1], len(prompt.tokens) - 1, prompt.next_position - 1)] * len(
                now
            )
            del waiting[: len(now)]
            if not waiting:
                self.ready.pop(0)
        if rows:
            self.newest[rows], self.length[rows], self.position[rows] = torch.tensor(
                begin, device=self.newest.device
            ).T
            self.drawn[rows], self.done[rows] = 0, False
            places = tuple(self.owner[rows].T)
            self.limit[rows] = self.limits[places]
            self.random[rows] = uniforms(
                self.streams[places][:, None],
                torch.arange(self.random.shape[1], device=self.random.device),
            )
        self.m = self.slots - len(self.free)
        gaps = [row for row in self.free if row < self.m]
        movers = sorted(
            set(range(self.m, self.slots)) - set(self.free)
        )  # as many as there are gaps
        if gaps:
            self.move(movers, gaps)
            self.done[movers] = True
        self.free = list(range(self.m, self.slots))[::-1]
        if self.m:
            self.look()
        return self.m > 0

    def grow(self, columns: int, rows: int):
        """On CPU the cache follows its rows: at least these columns. rows: how many of its rows are still of use.

        Rows close together are read a fifth faster than the same rows in a cache of twice the columns.
        """
        if columns > (have := self.keys[0].shape[2]):
            for caches in (self.keys, self.values):
                for layer, cache in enumerate(caches):  # one at a time, to need little memory
                    caches[layer] = F.pad(cache[:rows], (0, 0, 0, columns + GROWTH - have))

    def move(self, rows, places):
        """All that is known of these rows, to these places: a swap, or a copy where the places are free."""
        for state in (
            *self.keys,
            *self.values,
            self.newest,
            self.length,
            self.position,
            self.drawn,
            self.limit,
            self.random,
            self.done,
            self.tokens,
            self.logps,
            self.full_logps,
            self.owner,
        ):
            state[places] = state[rows]

    def look(self):
        """Choose what the next steps attend to: the parts of the rows, each (first row, last + 1, W columns).

        A few rows much longer than the others would widen the attention of all. On a CPU they become the second of two parts.
        """
        m, width = self.m, int(self.length[: self.m].max()) + self.every
        if self.graphs is not None:  # each shape is a graph of its own, so few of them
            m, most = min(self.slots, bucket(m)), self.keys[0].shape[2]
            width = most if self.flash else min(-(-width // 256) * 256, most)
        else:
            self.grow(
                width, m
            )  # slots fall idle only when the queue is empty: they are of no more use
        self.parts = ((0, m, width),)
        if self.graphs is None and m > 1 and m * width > APART:
            lengths, rows = (self.length[:m] + self.every).sort()
            first = self.rows[1:m]  # columns in all, if the second part begins there:
            cost = first * lengths[:-1] + (m - first) * width
            cut = int(cost.argmin()) + 1
            if m * width - cost[cut - 1] > APART:
                long, end = (
                    rows[cut:],
                    self.rows[cut:m],
                )  # the long ones not yet at the end, and those in their places
                early, late = long[long < cut], end[~torch.isin(end, long)]
                if len(early):
                    self.move(torch.cat([early, late]), torch.cat([late, early]))
                self.parts = (0, cut, int(lengths[cut - 1])), (cut, m, width)

    def prefill(self):
        """Run the next prompts through the network, up to their last token, as many as the token budget allows.

        Twice as many, where that keeps questions about one picture together: its vision tower would run again for the rest.
        """
        batch = [self.queue.pop(0)]
        while self.queue:
            pictures = self.queue[0][0].pictures
            budget = self.prefill_tokens * (
                2 if pictures and pictures == batch[-1][0].pictures else 1
            )
            if (len(batch) + 1) * len(batch[0][0].tokens) > budget:
                break
            batch.append(self.queue.pop(0))
        for (prompt, waiting), pieces in zip(
            batch, prefill(self.vlm, [prompt for prompt, _ in batch])
        ):
            self.ready.append((pieces, prompt, waiting))

    # -------------------------------------------------------------------- one token further
    def step(self):
        """One token further for the slots at work; on CUDA by replaying a graph of it."""
        if self.graphs is None:
            return self.advance(self.parts)
        if self.parts in self.graphs:
            return self.graphs[self.parts].replay()
        self.advance(
            self.parts
        )  # a step like any other, and what CUDA does only once (handles, workspaces) is done
        self.graphs[self.parts] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graphs[self.parts], pool=self.pool):
            self.advance(self.parts)  # recorded, not run

    def advance(self, parts):
        """Decode the newest tokens of all rows, draw the next. Rows that are done go along, and stay as they are."""
        m = parts[-1][1]
        going, drawn, rows = ~self.done[:m], self.drawn[:m], self.rows[:m]
        logits = self.decode(m, parts) @ self.vlm.lm_head.T  # [m, V]
        new = sample(logits, self.random[rows, drawn], *self.settings, self.never)
        for record, value in zip((self.tokens, self.logps, self.full_logps), new):
            record[rows, drawn] = value  # for a row that is done: behind its last
        self.newest[:m] = new[0]
        self.counts[:, :m] += going
        # A log-prob that is no number ends a reply: `retire` then says what is wrong.
        self.done[:m] |= (
            (new[0][:, None] == self.ends).any(-1) | (drawn >= self.limit[:m]) | ~new[2].isfinite()
        )

    def decode(self, m: int, parts) -> Tensor:
        """The newest tokens' hidden states [m, D], after writing their keys and values into the cache."""
        length, heads, norm = self.length[:m], self.kv_heads, self.norm
        lengths = length.int()  # as flash-attn wants them
        cos, sin = self.rotation[self.position[:m], :, None].unbind(1)  # [m, 1, H]
        x = self.text.embed_tokens(self.newest[:m])  # [m, D]
        # Each row writes K keys and K values, to its column `length` of them: places in the cache seen as [S * K * C, H].
        at = (self.heads[:m] * self.keys[0].shape[2] + length[:, None]).flatten()  # [m * K]
        masks = (
            []
            if self.flash
            else [self.mask(length[first:last], width, x) for first, last, width in parts]
        )
        for layer, keys, values in zip(self.text.layers, self.keys, self.values):
            attention = layer.self_attn
            h = norm(layer.input_layernorm, x)
            q, k, v = (
                projection(h).view(m, -1, self.head_dim)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if self.vlm.family == "qwen3_vl":
                q, k = norm(attention.q_norm, q), norm(attention.k_norm, k)
            q, k = rotate(torch.cat([q, k], dim=1), cos, sin).split([q.shape[1], heads], dim=1)
            if self.flash:
                seen = self.flash(
                    q[:, None],
                    keys[:m].transpose(1, 2),
                    values[:m].transpose(1, 2),
                    k[:, None],
                    v[:, None],
                    cache_seqlens=lengths,
                    softmax_scale=attention.scaling,
                    causal=True,
                )
            else:
                for cache, new in ((keys, k), (values, v)):
                    cache.view(-1, self.head_dim).index_copy_(0, at, new.reshape(-1, self.head_dim))
                seen = torch.cat(
                    [
                        attend(
                            q[first:last],
                            keys[first:last, :, :width],
                            values[first:last, :, :width],
                            mask,
                            attention.scaling,
                        )
                        for (first, last, width), mask in zip(parts, masks)
                    ]
                )
            x = x + attention.o_proj(seen.view(m, -1))
            x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
        return norm(self.text.norm, x)

    def mask(self, length, width, x) -> Tensor:
        """[m * K, 1, W]: -inf beyond each row's length [m]."""
        beyond = self.columns[:width] > length[:, None]  # [m, W]
        mask = x.new_zeros(beyond.shape).masked_fill_(beyond, -torch.inf)
        return mask[:, None].expand(-1, self.kv_heads, -1).reshape(-1, 1, width)

    @staticmethod
    def norm(module, x):
        """RMSNorm as one call: the library's takes six."""
        return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)

    # -------------------------------------------------------------------- slots into Completions
    def retire(self) -> int:
        """Hand over the rows that are done, and free their slots. Returns how many."""
        gone = self.done[: self.m].nonzero()[:, 0].tolist()
        if gone:
            drawn, *records = (
                state[gone].tolist()
                for state in (self.drawn, self.tokens, self.logps, self.full_logps)
            )
            for row, count, *record in zip(gone, drawn, *records):
                tokens, logps, full_logps = (values[:count] for values in record)
                if not math.isfinite(full_logps[-1]):
                    raise RuntimeError(
                        "the network's logits are not finite numbers: its weights have diverged"
                    )
                finished = tokens[-1] in self.vlm.eos_ids
                text = self.vlm.tokenizer.decode(
                    tokens[:-1] if finished else tokens, skip_special_tokens=True
                )
                prompt, completion = self.owner[row]
                self.results[prompt][completion] = Completion(
                    tokens, text, logps, full_logps, finished
                )
            self.free = sorted([*self.free, *gone], reverse=True)
        return len(gone)


def bucket(m: int) -> int:
    """Rows of the step for m working slots: the next power of two, so that few graphs serve all.

    >>> [bucket(m) for m in (1, 2, 3, 64, 65)]
    [1, 2, 4, 64, 128]
    """
    return 1 << (m - 1).bit_length()


def attend(q, keys, values, mask, scaling) -> Tensor:
    """q [m, K * G, H] look at keys [m, K, W, H] through mask [m * K, 1, W] -> of values [m, K, W, H] what they see, [m, K * G * H]."""
    # The G query heads of one key/value head take the place of G queries: no key is copied G times.
    m, q, keys, values = (
        len(q),
        q.reshape(len(mask), -1, q.shape[-1]),
        keys.flatten(0, 1),
        values.flatten(0, 1),
    )
    scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=scaling)  # [m * K, G, W]
    return (scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values).view(m, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: dimensions i and i + H/2 turn as a pair. x [m, heads, H]; cos, sin [m, 1, H], sin negative in the first half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


# ------------------------------------------------------------------------------------ by hand


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Sample replies of a vision-language model.")
    parser.add_argument(
        "--model", default="tiny", help="tiny, a name like Qwen2-VL-2B, a folder, a hub id"
    )
    parser.add_argument("--prompt", required=True, help="the user's turn")
    parser.add_argument(
        "--image", nargs="+", default=[], metavar="FILE", help="pictures, before the text"
    )
    parser.add_argument("-n", type=int, default=1, help="number of replies (default 1)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, help="longest reply (default 512)"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="0 takes the most probable token"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off (default)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off (default)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        images = [Image.open(name) for name in args.image]
        vlm = VLM.load(args.model)
        replies = generate(
            vlm,
            [vlm.encode(args.prompt, images)],
            args.n,
            args.max_new_tokens,
            args.temperature,
            args.top_p,
            args.top_k,
            args.seed,
        )[0]
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"generate.py: {error}")
    for number, reply in enumerate(replies, 1):
        if len(replies) > 1:
            print(f"--- {number} ---")
        print(reply.text if reply.finished else reply.text + " [cut off]")


if __name__ == "__main__":
    main()
