"""Sampling: prompts into slots, one token further, slots into replies.

Every word of a run is drawn here, as the paper's section 4 sets temperature, top-p and top-k.
A slot is a place in the cache of keys and values; it holds one completion at a time:

    prompts --prefill, each once--> keys and values --into a free slot--> step, step, ... --> reply
                                                           ^                           |
                                                           +---- next of the queue <---+

A step takes each slot at work one token further: its newest token goes through the network, which
adds a column to the cache, and the next is drawn. A slot starts with the last token of its prompt
as the newest, and is filled again as soon as its reply ends. When the queue is empty, the last slot
moves into the gap: slots 0 .. m-1 are those at work. On CUDA nothing in a step waits for the
device: ends are looked for every few steps, and what was drawn after one is dropped.

Shapes: S slots, m of them at work, K key/value heads, H head size, D hidden size, V vocabulary.
"""

import argparse
import math
import sys
import weakref
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from support import flash, screen
from support.cache import Cache, attend, norm, rotate
from support.parallel import send
from vlm import VLM, Prompt

# Steps between two looks at the ends: a look makes a GPU wait.
EVERY = {"cpu": 1, "cuda": 8}
# Tokens prefilled at once, padding included: a CPU should keep their activations in its caches.
PREFILL = {"cpu": 2048, "cuda": 8192}


@dataclass
class Completion:
    tokens: list[int]  # the end token included, if one was reached
    text: str  # without it
    logps: list[float]  # of each token, as it was drawn: temperature, top-k and top-p applied
    full_logps: list[float]  # log_softmax(logits / temperature): what a trainer computes
    finished: bool  # an end token was reached; otherwise max_new_tokens cut the reply off


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
    numbers=None,
) -> list[list[Completion]]:
    """n completions of each prompt: a list per prompt, in order. ValueError: settings out of range.

    max_new_tokens: one number, or one for each completion ([prompts, n]). temperature 0 is greedy
    (logps are then 0, full_logps those of temperature 1). top_k 0 and top_p 1 are off; top-k comes
    first, then the nucleus of what it left. Image and video tokens are never drawn: they would
    stand for pictures that do not exist. slots: completions decoded at once.
    Token t of completion c of prompt p is drawn with a random number that depends on (seed, p, c,
    t) alone. numbers: if `prompts` is part of a longer list, their places in it, which are then p.
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
    limits = limits.expand(len(prompts), n)
    longest = max(len(prompt.tokens) for prompt in prompts) + int(limits.max())
    sampler, numbers = (temperature, top_p, top_k), numbers or range(len(prompts))
    while True:
        room = flash.room_for(vlm, slots, limits.numel(), longest)
        try:
            room.engine = room.engine or Engine(vlm, room.slots, room.columns)
            asked = prompts, limits.tolist(), sampler, seed, numbers
            return room.engine.run(*asked, slots, progress)
        except torch.cuda.OutOfMemoryError:
            # Something else took the memory that was planned with.
            flash.halve(vlm, room)


class Engine:
    """Slots, their cache, the step on them. On CUDA tensors stay in place: graphs read them."""

    @torch.inference_mode()
    def __init__(self, vlm, slots: int, columns: int):
        # An engine that is kept does not keep its network.
        self.vlm, self.text = weakref.proxy(vlm), vlm.model.model.language_model
        self.slots, self.columns = slots, columns
        self.cache = Cache(vlm, slots, columns)
        self.graphs = flash.CapturedSteps(slots, columns) if vlm.device.type == "cuda" else None

        # Of each slot the newest token; how many are drawn, and how many may be. It is done when
        # these two are equal.
        integers = dict(dtype=torch.long, device=vlm.device)
        self.newest, self.drawn, self.limit = torch.zeros(3, slots, **integers)
        # Of each token of a reply the random number it is drawn with, and what `sample` says of it.
        # A slot that is done goes along, and writes to the place behind its reply.
        self.random = torch.zeros(slots, columns, dtype=torch.float64, device=vlm.device)
        self.tokens = torch.zeros(slots, columns, **integers)
        self.logps, self.full_logps = torch.zeros(2, slots, columns, device=vlm.device)

        self.ends = torch.tensor(vlm.eos_ids, **integers)
        never = vlm.config.image_token_id, vlm.config.video_token_id
        self.never = torch.tensor(never, **integers)

    @torch.inference_mode()
    def run(self, prompts, limits, settings, seed, numbers, slots, progress) -> list:
        """limits [prompts][n]: how long each reply may be. slots: at most as many are used."""
        self.settings, self.seed, self.numbers, self.limits = settings, seed, numbers, limits
        self.results = [[None] * len(own) for own in limits]
        self.queue, self.ready = waiting_line(prompts, len(limits[0])), []
        # Free slots, the lowest last; of each slot the completion (p, c) it holds, and its column.
        self.used = min(slots or self.slots, self.slots)
        self.free = list(range(self.used))[::-1]
        self.owner, self.reach = np.zeros((self.slots, 2), int), np.zeros(self.slots, int)
        total, every = sum(map(len, limits)), EVERY[self.vlm.device.type]
        with screen.bar(total=total, unit=" completions", shown=progress) as bar:
            m = self.fill()
            while m:
                # Slots fall idle only when the queue is empty: they are of no more use then.
                width = self.cache.grow(int(self.reach[:m].max()) + every, m)
                for _ in range(every):
                    if self.graphs is None:
                        self.advance(m, width)
                    else:
                        self.graphs(self.advance, self.settings, m, width)
                bar.update(self.retire(m))
                m = self.fill()
        return self.results

    # -------------------------------------------------------------------- prompts into slots

    def fill(self) -> int:
        """Fill the free slots from the queue -> m, how many are at work then."""
        while self.free and (self.ready or self.queue):
            if not self.ready:
                self.prefill()
            prompt, cache, asked = self.ready[0]
            now = asked[: len(self.free)]
            self.place(prompt, cache, now, [self.free.pop() for _ in now])
            del asked[: len(now)]
            if not asked:
                self.ready.pop(0)
        m = self.used - len(self.free)
        gaps = [slot for slot in self.free if slot < m]
        if gaps:
            movers = sorted(set(range(m, self.used)) - set(self.free))
            to, since = send(torch.tensor([gaps, movers]), self.vlm.device)
            self.cache.move(to, since)
            records = self.random, self.tokens, self.logps, self.full_logps
            for state in (self.newest, self.drawn, self.limit, *records):
                state[to] = state[since]
            self.owner[gaps], self.reach[gaps] = self.owner[movers], self.reach[movers]
            self.free = list(range(m, self.used))[::-1]
        return m

    def place(self, prompt, cache, asked, slots):
        """Begin these completions (p, c) of a prompt whose keys and values are known."""
        device, length = self.vlm.device, len(prompt.tokens)
        limits = [self.limits[p][c] for p, c in asked]
        random = [uniforms(self.seed, self.numbers[p], c, max(limits)) for p, c in asked]
        at = send(torch.tensor(slots), device)
        # The first step computes the last token of the prompt again, and puts it where it was.
        self.cache.place(at, cache, prompt.next_position - 1)
        self.newest[at], self.drawn[at] = prompt.tokens[-1], 0
        self.limit[at] = send(torch.tensor(limits), device)
        self.random[at, : max(limits)] = send(torch.stack(random), device)
        self.owner[slots], self.reach[slots] = asked, length - 1

    def prefill(self):
        """Run the next prompts through the network: as many as the token budget allows."""
        batch, longest = [], 0
        while self.queue:
            prompt, _ = self.queue[0]
            longest = max(longest, len(prompt.tokens))
            budget = PREFILL[self.vlm.device.type]
            # Questions about one picture stay together: for the rest the vision tower runs again.
            if batch and prompt.pictures and prompt.pictures == batch[-1][0].pictures:
                budget *= 2
            if batch and (len(batch) + 1) * longest > budget:
                break
            batch.append(self.queue.pop(0))
        inputs = self.vlm.collate([prompt for prompt, _ in batch])
        # Behind each prompt there is padding, which no token sees under a causal mask.
        del inputs["attention_mask"]
        cache = transformers.DynamicCache()
        self.vlm.hidden(inputs, cache)
        # Keys and values [2, B, K, L, H] of each layer.
        layers = [torch.stack([layer.keys, layer.values]) for layer in cache.layers]
        for i, (prompt, asked) in enumerate(batch):
            own = [layer[:, i, :, : len(prompt.tokens)] for layer in layers]
            self.ready.append((prompt, own, asked))

    # -------------------------------------------------------------------- one token further

    def advance(self, m: int, width: int):
        """Decode the newest token of slots 0 .. m-1, draw the next; slots that are done stay so."""
        slot, drawn, limit = self.cache.slots[:m], self.drawn[:m], self.limit[:m]
        logits = self.decode(m, width) @ self.vlm.lm_head.T  # [m, V]
        token, logp, full = sample(logits, self.random[slot, drawn], *self.settings, self.never)
        self.newest[:m] = self.tokens[slot, drawn] = token
        self.logps[slot, drawn] = logp
        self.full_logps[slot, drawn] = full
        more = drawn < limit
        for count in (drawn, self.cache.column[:m], self.cache.position[:m]):
            count += more
        # A log-prob that is no number ends a reply: `retire` then says what is wrong.
        ended = (token[:, None] == self.ends).any(-1) | ~full.isfinite()
        limit[:] = torch.where(ended, drawn, limit)

    def decode(self, m: int, width: int) -> Tensor:
        """The newest tokens' hidden states [m, D]; their keys and values go into the cache."""
        position = self.cache.position[:m, None]
        cos, sin = self.cache.cos[position], self.cache.sin[position]  # [m, 1, H]
        mask = self.cache.mask(m, width)
        x = self.text.embed_tokens(self.newest[:m])  # [m, D]
        for number, layer in enumerate(self.text.layers):
            attention, mlp = layer.self_attn, layer.mlp
            size = attention.head_dim

            h = norm(layer.input_layernorm, x)
            q = attention.q_proj(h).view(m, -1, size)  # [m, K * G, H]
            k = attention.k_proj(h).view(m, -1, size)  # [m, K, H]
            v = attention.v_proj(h).view(m, -1, size)
            if self.vlm.family == "qwen3_vl":
                q, k = norm(attention.q_norm, q), norm(attention.k_norm, k)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys, values = self.cache.write(number, k, v)
            seen = attend(q, keys, values, mask, attention.scaling)
            x = x + attention.o_proj(seen)

            h = norm(layer.post_attention_layernorm, x)
            x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))
        return norm(self.text.norm, x)

    # -------------------------------------------------------------------- slots into replies

    def retire(self, m: int) -> int:
        """Hand over the replies that are done, and free their slots. Returns how many."""
        # The one time that the host waits for the device.
        counts = torch.stack([self.cache.column[:m], self.drawn[:m], self.limit[:m]])
        self.reach[:m], drawn, limit = counts.cpu().numpy()
        gone = (drawn == limit).nonzero()[0].tolist()
        if not gone:
            return 0
        places, longest = send(torch.tensor(gone), self.vlm.device), int(drawn[gone].max())
        records = self.tokens, self.logps, self.full_logps
        replies = zip(*(record[places, :longest].tolist() for record in records))
        for slot, reply in zip(gone, replies):
            tokens, logps, full_logps = (values[: drawn[slot]] for values in reply)
            if not math.isfinite(full_logps[-1]):
                flash.release()  # nor are keys and values
                raise RuntimeError("the logits are not finite numbers: the weights have diverged")
            finished = tokens[-1] in self.vlm.eos_ids
            words = tokens[:-1] if finished else tokens
            text = self.vlm.tokenizer.decode(words, skip_special_tokens=True)
            p, c = self.owner[slot]
            self.results[p][c] = Completion(tokens, text, logps, full_logps, finished)
        self.free = sorted([*self.free, *gone], reverse=True)
        return len(gone)


def waiting_line(prompts: list[Prompt], n: int) -> list[tuple[Prompt, list[tuple[int, int]]]]:
    """Each distinct prompt, with the completions (p, c) asked of it. Long ones first: neighbours
    are alike in length. Questions about the same pictures stand together, see `prefill`."""
    distinct, families = {}, {}
    for p, prompt in enumerate(prompts):
        asked = distinct.setdefault((prompt.pictures, *prompt.tokens), (prompt, []))[1]
        asked += [(p, c) for c in range(n)]
    for entry in sorted(distinct.values(), key=lambda entry: -len(entry[0].tokens)):
        families.setdefault(entry[0].pictures, []).append(entry)
    return [entry for family in families.values() for entry in family]


def uniforms(seed: int, prompt: int, completion: int, count: int) -> Tensor:
    """`count` numbers in [0, 1), float64. Number t depends on (seed, prompt, completion, t) alone.

    Philox scrambles a counter, and has no other state: each completion has a counter of its own.

    >>> uniforms(7, 2, 5, count=3).tolist() == uniforms(7, 2, 5, count=100)[:3].tolist()
    True
    """
    stream = np.random.Philox(key=seed % 2**128, counter=[0, 0, completion, prompt])
    return torch.from_numpy(np.random.Generator(stream).random(count))


def sample(
    logits: Tensor, u: Tensor, temperature, top_p, top_k, never: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Invert the cumulative distribution at u. logits [m, V], u [m] -> token, logp, full_logp [m].

    never: ids that are not drawn. Like those beyond top-k they count in full_logp and not in logp.
    Where logits are not finite, full_logp is nan and the token any: a look would make a GPU wait.

    >>> logits, nothing = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([], dtype=torch.long)
    >>> draw = lambda u, top_p: sample(logits, torch.tensor([u]), 1.0, top_p, 0, nothing)
    >>> [draw(u, 1.0)[0].item() for u in (0.1, 0.49, 0.51, 0.79, 0.81)]
    [0, 0, 1, 1, 2]
    >>> [round(x.exp().item(), 3) for x in draw(0.9, 0.6)[1:]]  # 0.3 of 0.5 + 0.3, and of all
    [0.375, 0.3]
    """
    scaled = logits if temperature in (0, 1) else logits.float() / temperature
    probs = scaled.softmax(-1, dtype=torch.float32)  # [m, V]
    possible = logits.index_fill(1, never, -torch.inf)
    if temperature == 0:
        token = possible.argmax(-1, keepdim=True)
        total = probs.gather(-1, token)
    else:
        # What is not drawn gets probability 0; the rest is drawn in proportion.
        probs.index_fill_(1, never, 0)
        if 0 < top_k < probs.shape[-1] or top_p < 1:
            probs.masked_fill_(possible < least_kept(possible, temperature, top_p, top_k), 0)
        # In float64 u * total < total: the first word above it is there, and has a probability.
        mass = probs.cumsum(-1, dtype=torch.float64)
        total = mass[:, -1:]
        token = torch.searchsorted(mass, u.double()[:, None] * total, right=True)
        token = token.clamp(max=probs.shape[-1] - 1)  # where sums are nan
    full = probs.gather(-1, token).log()
    return token[:, 0], (full - total.log().float())[:, 0], full[:, 0]


def least_kept(logits: Tensor, temperature: float, top_p: float, top_k: int) -> Tensor:
    """The nucleus: [m, 1], the smallest logit in the top-k and in the top_p of these.

    The token that crosses top_p is kept, and so are its exact ties: nothing tells them apart.

    >>> logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    >>> kept = lambda top_p, top_k: least_kept(logits, 1.0, top_p, top_k).exp().item()
    >>> round(kept(0.7, 0), 4), round(kept(1.0, 2), 4)
    (0.25, 0.25)
    >>> round(kept(0.6, 2), 4)  # 0.5 of 0.75 is enough
    0.5
    """
    count = top_k or logits.shape[-1]
    if logits.device.type == "cpu":
        # numpy's sort takes a tenth of the time of torch's.
        ranked = torch.from_numpy(np.sort(logits.float().numpy())).flip(-1)[:, :count]
    elif count < logits.shape[-1]:
        ranked = logits.topk(count).values
    else:
        # In bf16, half of the passes that float32 takes.
        ranked = logits.sort(descending=True).values
    if top_p == 1:
        return ranked[:, -1:]
    probs = (ranked.float() / temperature).softmax(-1)
    mass = probs.cumsum(-1, dtype=torch.float64)
    # The first with which there is enough; the clamp is for sums that are nan.
    crossing = torch.searchsorted(mass, top_p * mass[:, -1:]).clamp(max=ranked.shape[-1] - 1)
    return ranked.gather(-1, crossing)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Sample replies of a vision-language model.")
    add = parser.add_argument
    add("--model", default="tiny", help="tiny, a name like Qwen2-VL-2B, a folder, a hub id")
    add("--prompt", required=True, help="the user's turn")
    add("--image", nargs="+", default=[], metavar="FILE", help="pictures, before the text")
    add("-n", type=int, default=1, help="number of replies (default 1)")
    add("--max-new-tokens", type=int, default=512, help="longest reply (default 512)")
    add("--temperature", type=float, default=1.0, help="0 takes the most probable token")
    add("--top-p", type=float, default=1.0, help="1 is off (default)")
    add("--top-k", type=int, default=0, help="0 is off (default)")
    add("--seed", type=int, default=0)
    settings = vars(parser.parse_args(arguments))
    model, prompt, images = (settings.pop(name) for name in ("model", "prompt", "image"))
    try:
        images = [Image.open(name) for name in images]
        vlm = VLM.load(model)
        replies = generate(vlm, [vlm.encode(prompt, images)], **settings)[0]
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"generate.py: {error}")
    for number, reply in enumerate(replies, 1):
        if len(replies) > 1:
            print(f"--- {number} ---")
        print(reply.text if reply.finished else reply.text + " [cut off]")


if __name__ == "__main__":
    main()
