"""Batched sampling with a KV cache of our own.

The life of a slot (a row of the cache, which holds one completion at a time):

    prompts ──prefill once each──> prefix ──copied to n slots──> [sample, decode, sample, decode, ...] ──end token──> Completion
                                                                    ^                                   │
                                                                    └── next completion of the queue <──┘

Slots 0 .. m-1 are at work, the others free. A completion that ends gives its slot to the last working one (one row of the cache is
copied), so a decode step never computes a row that has ended; when half of the slots are free, they are filled from the queue.

Every row starts at column 0 of the cache and has its own length: rows of any lengths, with and without pictures, share a step, and
the mask is "column < length". There is no padding inside a row.

Prefill goes through transformers' forward (vision tower, window attention, deepstack: all theirs). The decode step is written out
below on the layers' own weights: with one new token a row it is a page of code, several times faster than the library's.

Shapes: S slots, m working ones, C columns, K key/value heads, G query heads per key/value head, H head dimension, V vocabulary.
"""
import argparse
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from vlm import VLM, Prompt, next_position

GROWTH = 32         # columns by which the cache grows


@dataclass
class Completion:
    tokens: list[int]           # including the end token, if it was reached
    text: str                   # without it
    logps: list[float]          # log-prob of each token under the distribution it was sampled from (temperature, top-k, top-p)
    full_logps: list[float]     # the same before top-k and top-p: log_softmax(logits / temperature), what the trainer scores
    finished: bool              # an end token was reached (otherwise max_new_tokens cut it off)


def generate(vlm: VLM, prompts: list[Prompt], n=1, max_new_tokens=512, temperature=1.0, top_p=1.0, top_k=0, seed=0,
             progress=False, slots=None, prefill_tokens=8192) -> list[list[Completion]]:
    """n completions of each prompt: a list per prompt, in order.

    temperature 0 takes the most probable token (logps are then 0, full_logps those of temperature 1). top_k 0 and top_p 1 mean
    off; top-k comes first, then the nucleus of what it left. `slots`: rows decoded at once (512 on CPU and 128 on CUDA
    unless told); `prefill_tokens`: prompt tokens (padding included) prefilled at once. Neither changes what is sampled: token number t of completion c of prompt p is drawn
    with a random number that depends on (seed, p, c, t) alone. What remains is rounding: the last bits of a logit depend on
    the shape of the batch it was computed in.
    """
    for bad, rule in ((n < 1, "n must be 1 or more"), (max_new_tokens < 1, "max_new_tokens must be 1 or more"),
                      (temperature < 0, "temperature must be 0 (greedy) or more"), (not 0 < top_p <= 1, "top_p must be in (0, 1]"),
                      (top_k < 0, "top_k must be 0 (off) or more"),
                      (slots is not None and slots < 1, "slots must be 1 or more")):
        if bad:
            raise ValueError(rule)
    if not prompts:
        return []
    slots = slots or (128 if vlm.device.type == "cuda" else 512)
    with torch.inference_mode():
        engine = Engine(vlm, prompts, n, max_new_tokens, temperature, top_p, top_k, seed, slots, prefill_tokens)
        return engine.run(progress)


# ---------------------------------------------------------------------------------------------- sampling

def mix(x: Tensor) -> Tensor:
    """Scramble int64 numbers so that neighbours come out unrelated (the finaliser of splitmix64). Overflow wraps round."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47      # the masks make the shifts logical: int64 drags its sign along
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def streams(seed: int, prompts: int, n: int) -> Tensor:
    """[prompts, n]: for each completion the key of a sequence of random numbers of its own."""
    key = mix(torch.tensor(seed & (1 << 63) - 1) + 1)
    return mix(mix(key + torch.arange(1, prompts + 1))[:, None] + torch.arange(1, n + 1))


def uniforms(keys: Tensor, steps: Tensor) -> Tensor:
    """One number in [0, 1) per row, from the row's key and its step. float64 [m]."""
    bits = mix(keys + (steps + 1) * -0x61C8864680B583EB)
    return (bits >> 11 & (1 << 53) - 1).double() * 2.0 ** -53


def sample(logits: Tensor, u: Tensor, temperature: float, top_p: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token per row by inverting the cumulative distribution at u. logits [m, V], u [m] -> token, logp, full_logp [m].

    >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> [sample(logits, torch.tensor([u]), 1.0, 1.0, 0)[0].item() for u in (0.1, 0.49, 0.51, 0.79, 0.81)]
    [0, 0, 1, 1, 2]
    >>> token, logp, full = sample(logits, torch.tensor([0.9]), 1.0, 0.6, 0)      # the nucleus of 0.6 is {0.5, 0.3}
    >>> token.item(), round(logp.exp().item(), 3), round(full.exp().item(), 3)
    (1, 0.375, 0.3)
    """
    logits = logits.float()
    if temperature == 0:
        full, token = logits.log_softmax(-1).max(-1)                            # [m]
        return token, torch.zeros_like(full), full
    full = (logits / temperature).log_softmax(-1)                               # [m, V]
    probs = full.exp()
    if 0 < top_k < probs.shape[-1] or top_p < 1:
        probs = probs.masked_fill(probs < least_kept(probs, top_p, top_k), 0)
    cdf = probs.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:].contiguous()
    if not bool(total.isfinite().all()):
        raise RuntimeError("the network's logits are not finite numbers: its weights have diverged")
    # The first index whose cumulative probability exceeds u; never one past the last that has any probability at all.
    token = torch.minimum(torch.searchsorted(cdf, u[:, None] * total, right=True), torch.searchsorted(cdf, total))
    full = full.gather(-1, token)[:, 0]
    return token[:, 0], full - total[:, 0].log().float(), full


def least_kept(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """[m, 1]: the smallest probability among the top-k, and of these among the fewest that hold top_p of their mass.

    The token that crosses top_p is kept. So are tokens that tie exactly with the last one, since nothing tells them apart.
    Sorting a whole vocabulary would be the slowest part of sampling. Small ones are sorted by numpy on CPU (30 times faster than
    torch.sort there); of large ones the 64 most probable tokens are taken first, and more only if these do not hold enough.

    >>> least_kept(torch.tensor([[0.1, 0.5, 0.15, 0.25]]), top_p=0.7, top_k=0)
    tensor([[0.2500]])
    >>> least_kept(torch.tensor([[0.1, 0.5, 0.15, 0.25]]), top_p=1.0, top_k=3)
    tensor([[0.1500]])
    """
    vocabulary = probs.shape[-1]
    width = min(top_k or 64, vocabulary)
    while True:
        if probs.device.type == "cpu" and vocabulary <= 4096:
            best = torch.from_numpy(np.sort(probs.numpy(), axis=-1)).flip(-1)[:, :top_k or vocabulary]
        else:
            best = probs.topk(width).values                                     # [m, width], most probable first
        mass = best.cumsum(-1, dtype=torch.float64)
        if top_k or best.shape[-1] == vocabulary or bool((mass[:, -1] >= top_p).all()):
            break
        width = min(8 * width, vocabulary)
    if top_p == 1:
        return best[:, -1:]
    enough = top_p * mass[:, -1:] if top_k else top_p
    kept = (mass - best < enough).sum(-1, keepdim=True)                         # those before which there is not yet enough
    return best.gather(-1, kept - 1)


# ---------------------------------------------------------------------------------------------- the engine

class Engine:
    """The cache, the working slots and the queue of one call of `generate`."""

    def __init__(self, vlm, prompts, n, max_new_tokens, temperature, top_p, top_k, seed, slots, prefill_tokens):
        self.vlm, self.text = vlm, vlm.model.model.language_model
        self.max_new_tokens, self.settings, self.prefill_tokens = max_new_tokens, (temperature, top_p, top_k), prefill_tokens
        self.results = [[None] * n for _ in prompts]
        # The queue: each distinct prompt with the completions asked of it. Long prompts first, so that neighbours are of similar
        # length and the longest do not come last, when few slots are at work.
        distinct = {}
        for index, prompt in enumerate(prompts):
            key = (tuple(prompt.tokens), None if prompt.pixels is None else prompt.pixels.numpy().tobytes())
            distinct.setdefault(key, (prompt, []))[1].extend((index, completion) for completion in range(n))
        self.queue = sorted(distinct.values(), key=lambda entry: -len(entry[0].tokens))
        self.ready = []                                             # prefilled: (keys and values, last hidden state, prompt, completions)

        slots = min(slots, n * len(prompts))
        new = dict(device=vlm.device)
        attention = self.text.layers[0].self_attn
        self.head_dim = attention.head_dim
        self.kv_heads = attention.k_proj.weight.shape[0] // self.head_dim
        self.columns = 0                                            # of the cache; see `resize`
        self.keys, self.values = ([torch.zeros(slots, self.kv_heads, 0, self.head_dim, dtype=vlm.dtype, **new)
                                   for _ in self.text.layers] for _ in range(2))                # per layer [S, K, C, H]
        # Rotation angles of every position. In a reply the three axes of M-RoPE are equal, so one number per token is enough.
        last = max(next_position(prompt) for prompt in prompts) + max_new_tokens
        self.cos, self.sin = (table[0] for table in self.text.rotary_emb(
            self.keys[0], torch.arange(last, **new).expand(3, 1, -1)))          # [positions, H]

        # What each slot is about.
        self.m, self.slots = 0, slots
        self.owner = [None] * slots                                 # (prompt index, completion index)
        self.length, self.position, self.step, self.stream = (torch.zeros(slots, dtype=torch.long, **new) for _ in range(4))
        self.hidden = torch.zeros(slots, self.text.config.hidden_size, dtype=vlm.dtype, **new)
        self.out_tokens = torch.zeros(slots, max_new_tokens, dtype=torch.long, **new)
        self.out_logps, self.out_full = (torch.zeros(slots, max_new_tokens, **new) for _ in range(2))
        self.streams = streams(seed, len(prompts), n).to(vlm.device)
        self.eos = torch.tensor(vlm.eos_ids, **new)

    def run(self, progress):
        from tqdm import tqdm
        bar = tqdm(total=sum(map(len, self.results)), disable=not progress, unit=" completions", leave=False)
        while self.queue or self.ready or self.m:
            if (self.queue or self.ready) and self.m <= self.slots // 2:
                self.admit()
            m = self.m
            rows = torch.arange(m, device=self.eos.device)
            u = uniforms(self.stream[:m], self.step[:m])
            tokens, logps, full = sample(self.hidden[:m] @ self.vlm.head.T, u, *self.settings)
            self.out_tokens[rows, self.step[:m]] = tokens
            self.out_logps[rows, self.step[:m]] = logps
            self.out_full[rows, self.step[:m]] = full
            self.step[:m] += 1
            ended = torch.isin(tokens, self.eos)
            gone = (ended | (self.step[:m] == self.max_new_tokens)).nonzero()[:, 0]
            if len(gone):
                bar.update(len(gone))
                tokens = self.retire(gone.tolist(), ended, tokens)
            if self.m:
                self.hidden[:self.m] = self.decode(tokens)
        bar.close()
        return self.results

    # ------------------------------------------------------------------ prompts into slots
    def admit(self):
        """Fill the free slots from the queue, prefilling what is not ready yet."""
        while self.m < self.slots and (self.queue or self.ready):
            if not self.ready:
                self.prefill()
            prefix, hidden, prompt, waiting = self.ready[0]
            length, count = len(prompt.tokens), min(len(waiting), self.slots - self.m)
            rows = slice(self.m, self.m + count)
            self.resize(max(self.columns, length + GROWTH))
            for cache, new in zip(self.keys + self.values, prefix):
                cache[rows, :, :length] = new[None, :, :length]                 # one prompt's cache, copied to `count` slots
            self.hidden[rows] = hidden
            self.length[rows], self.position[rows], self.step[rows] = length, next_position(prompt), 0
            self.owner[rows] = waiting[:count]
            self.stream[rows] = self.streams[tuple(zip(*waiting[:count]))]
            self.m += count
            del waiting[:count]
            if not waiting:
                self.ready.pop(0)

    def prefill(self):
        """Run the next prompts of the queue through the network: as many as the free slots and the token budget allow."""
        batch, free = [], self.slots - self.m
        while self.queue and free > 0 and (not batch or (len(batch) + 1) * len(batch[0][0].tokens) <= self.prefill_tokens):
            batch.append(self.queue.pop(0))
            free -= len(batch[-1][1])
        prompts = [prompt for prompt, _ in batch]
        # Padded on the right: under the causal mask no token sees the padding behind it, so no mask is needed at all.
        inputs = self.vlm.collate(prompts, side="right")
        del inputs["attention_mask"]
        cache = transformers.DynamicCache()
        hidden = self.vlm.hidden(inputs, cache)                                 # [B, L, D]
        caches = [layer.keys for layer in cache.layers] + [layer.values for layer in cache.layers]      # each [B, K, L, H]
        for row, (prompt, waiting) in enumerate(batch):
            self.ready.append(([c[row] for c in caches], hidden[row, len(prompt.tokens) - 1], prompt, waiting))

    # ------------------------------------------------------------------ slots into Completions
    def retire(self, gone: list[int], ended: Tensor, tokens: Tensor) -> Tensor:
        """Hand over the completions that are done, and close the gaps. Returns the tokens of the rows that go on, [new m]."""
        for row in gone:
            prompt, completion = self.owner[row]
            count, finished = int(self.step[row]), bool(ended[row])
            out = self.out_tokens[row, :count].tolist()
            text = self.vlm.tokenizer.decode(out[:-1] if finished else out, skip_special_tokens=True)
            self.results[prompt][completion] = Completion(
                out, text, self.out_logps[row, :count].tolist(), self.out_full[row, :count].tolist(), finished)
        left = self.m - len(gone)
        holes = [row for row in gone if row < left]
        movers = sorted(set(range(left, self.m)) - set(gone))
        for hole, mover in zip(holes, movers):
            self.owner[hole] = self.owner[mover]
        if holes:
            holes, movers = torch.tensor(holes, device=tokens.device), torch.tensor(movers, device=tokens.device)
            for state in (*self.keys, *self.values, self.length, self.position, self.step, self.stream, self.out_tokens,
                          self.out_logps, self.out_full, tokens):
                state[holes] = state[movers]
        self.m = left
        return tokens[:left]

    # ------------------------------------------------------------------ one token further
    def decode(self, tokens: Tensor) -> Tensor:
        """tokens [m] -> their hidden states [m, D], after writing their keys and values into the cache."""
        m, length = self.m, self.length[:self.m]
        if int(length.max()) == self.columns:
            self.resize(self.columns + GROWTH)
        rows = torch.arange(m, device=tokens.device)
        cos, sin = self.cos[self.position[:m], None], self.sin[self.position[:m], None]         # [m, 1, H]
        # All columns are attended to, and those a row has not reached yet masked away: slicing the cache to the longest row would
        # break it into pieces in memory, which costs more than the few columns of slack.
        mask = torch.arange(self.columns, device=tokens.device) > length[:, None]               # [m, C]
        mask = torch.zeros(m, 1, 1, self.columns, device=tokens.device).masked_fill_(mask[:, None, None], -torch.inf)
        x = self.text.embed_tokens(tokens)                                                      # [m, D]
        for keys, values, layer in zip(self.keys, self.values, self.text.layers):
            attention = layer.self_attn
            h = layer.input_layernorm(x)
            q, k, v = (projection(h).view(m, -1, self.head_dim)
                       for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
            if hasattr(attention, "q_norm"):                                                    # Qwen3-VL
                q, k = attention.q_norm(q), attention.k_norm(k)
            keys[rows, :, length] = rotate(k, cos, sin)                                         # [m, K, H]
            values[rows, :, length] = v
            # The G query heads that share a key/value head stand in the place of G queries: no key is copied G times.
            q = (rotate(q, cos, sin) * attention.scaling).view(m, self.kv_heads, -1, self.head_dim)      # [m, K, G, H]
            weights = (q @ keys[:m].transpose(-1, -2) + mask).softmax(-1)                       # [m, K, G, C], float32
            x = x + attention.o_proj((weights.to(x.dtype) @ values[:m]).reshape(m, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self.length[:m] += 1
        self.position[:m] += 1
        return self.text.norm(x)

    def resize(self, columns: int):
        """Give the cache this many columns. It grows in blocks, so that it is never much wider than its longest row."""
        if columns != self.columns:
            for caches in (self.keys, self.values):
                for index, cache in enumerate(caches):
                    caches[index] = F.pad(cache, (0, 0, 0, columns - self.columns))
            self.columns = columns


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: dimensions i and i + H/2 are turned as a pair. x [m, heads, H], cos and sin [m, 1, H]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


# ---------------------------------------------------------------------------------------------- by hand

def main(arguments=None):
    parser = argparse.ArgumentParser(description="Sample replies of a vision-language model.")
    parser.add_argument("--model", default="tiny", help="tiny, a short name such as Qwen2-VL-2B, a folder, or a hub id")
    parser.add_argument("--prompt", required=True, help="the user's turn")
    parser.add_argument("--image", nargs="*", default=[], metavar="FILE", help="pictures that go before the text")
    parser.add_argument("-n", type=int, default=1, help="number of replies")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token each time")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0, help="0 is off")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    from PIL import Image
    try:
        images = [Image.open(name).convert("RGB") for name in args.image]
        vlm = VLM.load(args.model)
        replies = generate(vlm, [vlm.encode(args.prompt, images)], args.n, args.max_new_tokens, args.temperature, args.top_p,
                           args.top_k, args.seed)[0]
    except (OSError, ValueError) as error:
        sys.exit(f"generate.py: {error}")
    for number, reply in enumerate(replies, 1):
        if len(replies) > 1:
            print(f"--- {number} ---")
        print(reply.text if reply.finished else reply.text + " [cut off]")


if __name__ == "__main__":
    main()
