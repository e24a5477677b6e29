"""How long an iteration of a real model takes on a card, before it begins: arithmetic, as a range.

    python mmzero.py --model Qwen2-VL-2B --dry-run

A step of the sampler reads all weights once, the keys and values of every slot, and ranks the
words; its time is what that takes at the card's bandwidth, times the share of it that is reached.
Training is FLOPs at the card's rate, times the share of that. Both shares are those of one H200
(docs/performance.md), and something on either side. How long replies are, and how many proposals
are valid and drawn, nobody knows before: LENGTHS and MADE are guesses. `Clock` corrects them by
what the phases of the run then take.
"""

import time

# Bandwidth in GB/s, dense bf16 TFLOP/s, as published. The first whose words are all in the name.
CARDS = {
    "B200": (8000, 2250),
    "H200": (4800, 989),
    "H100 PCIe": (2000, 756),
    "H100": (3350, 989),
    "A100 40GB": (1555, 312),
    "A100": (2039, 312),
    "RTX 6000 Ada": (960, 364),
    "L40S": (864, 362),
    "A40": (696, 150),
    "A10": (600, 125),
    "L4": (300, 121),
    "A6000": (768, 155),
    "5090": (1792, 210),
    "4090": (1008, 165),
    "4080": (717, 97),
    "3090": (936, 71),
    "3060": (360, 51),
}
# (at best, at worst) from here on. Shares of bandwidth and FLOPs that are reached.
BANDWIDTH, FLOPS = (0.45, 0.3), (0.35, 0.2)
# Tokens of a reply, if its limit allows: of a proposal, a code, an answer.
LENGTHS = ((200, 400), (400, 900), (150, 450))
# Of the replies that are asked for at most, those that are: the rest falls to filters.
MADE = ((1, 1), (0.5, 0.75), (0.4, 0.7))
# Bytes that a draw moves for a word of a slot: 64 x 151,936 took 0.6 ms at 4.2 TB/s with top-k,
# 1.4 ms with a nucleus. Most of what is drawn are answers of a frozen Solver, with top-k.
WORD = 300
PROMPT = 1000  # tokens of one, a picture in it


def card_of(name: str) -> tuple[float, float] | None:
    """Bytes and FLOPs per second, of a card as its driver calls it; None: not in the table.

    >>> card_of("NVIDIA GeForce RTX 4090"), card_of("Tesla V100")
    ((1008000000000.0, 165000000000000.0), None)
    """
    for words, (bandwidth, flops) in CARDS.items():
        if all(word in name for word in words.split()):
            return bandwidth * 1e9, flops * 1e12
    return None


def phases(settings, network, work: dict, slots: int, name: str, gpus=1) -> dict[str, tuple]:
    """Phase -> (seconds at best, at worst) of one iteration; {} for an unknown card.

    network: on the meta device, its sizes are asked for. work: of `plan.work`; name: of the card.
    """
    rates = card_of(name)
    if not rates:
        return {}
    total, text = network.num_parameters(), network.config.get_text_config()
    layer = network.model.language_model.layers[0]
    column = 4 * text.num_hidden_layers * layer.self_attn.k_proj.out_features  # bytes of a token
    limits = settings.proposal_tokens, settings.code_tokens, settings.answer_tokens
    trained = {}
    for phase, role in zip("PCS", ("proposer", "coder", "solver")):
        steps, prompts, rollouts = (
            getattr(settings, f"{role}_{what}") for what in ("steps", "prompts", "rollouts")
        )
        trained[phase] = steps * prompts, rollouts

    found = {}
    for number, (phase, (*counts, _)) in enumerate(work.items()):
        ends = []
        for end in (0, 1):
            lengths = [min(pair[end], limit) for pair, limit in zip(LENGTHS, limits)]
            made = [count * share[end] for count, share in zip(counts, MADE)]
            tokens = sum(count * length for count, length in zip(made, lengths))
            mean = tokens / max(sum(made), 1)
            # A step: all weights in bf16, each slot's columns so far, the words of the draw.
            moved = 2 * total + slots * ((PROMPT + mean / 2) * column + WORD * text.vocab_size)
            sampling = tokens / slots * moved / (rates[0] * BANDWIDTH[end])
            # FLOPs a weight and token. Prefill: 2, once for some four replies. Training: 6, 2 for
            # recomputing, 2 each for the log-probs of the reference and before the step.
            prompts, rollouts = trained[phase]
            packed = prompts * (PROMPT + rollouts * lengths[number])
            flops = 2 * total * PROMPT * sum(made[1:]) / 4 + 12 * total * packed
            ends.append((sampling + flops / (rates[1] * FLOPS[end])) / gpus)
        found[phase] = tuple(ends)
    return found


def said(seconds) -> str:
    """A range of seconds in words.

    >>> said((1260, 3000)), said((7200, 18000))
    ('21 to 50 minutes', '2.0 to 5.0 hours')
    """
    unit, name = (3600, "hours") if seconds[1] >= 2 * 3600 else (60, "minutes")
    digits = 1 if unit == 3600 else 0
    low, high = (f"{end / unit:.{digits}f}" for end in seconds)
    return f"{low} to {high} {name}"


class Clock:
    """Says after each phase how long the rest of the run may take."""

    def __init__(self, estimate: dict, iterations: int):
        """estimate: of `phases`."""
        self.estimate, self.iterations = estimate, iterations
        self.begun, self.measured = time.perf_counter(), {}

    def finish(self, iteration: int, stage: str) -> str:
        """A role's phase is over -> a line. What is measured between them ("eval") is no phase."""
        now, phase = time.perf_counter(), stage[0].upper()
        seconds, self.begun = now - self.begun, now
        if stage == "eval":
            return ""
        self.measured[phase] = seconds
        # What was measured is no range; the rest is off by as much as the phases so far were.
        guessed = [sum(self.estimate[p][end] for p in self.measured) for end in (0, 1)]
        off = sum(self.measured.values()) / (sum(guessed) / 2)
        rest = [0.0, 0.0]
        for k in range(iteration, self.iterations + 1):
            for p, ends in self.estimate.items():
                if (k, "PCS".index(p)) > (iteration, "PCS".index(phase)):
                    own = self.measured.get(p)
                    for end in (0, 1):
                        rest[end] += ends[end] * off if own is None else own
        took = f"phase {phase} took {seconds / 60:.0f} minutes"
        low, high = (end / 60 for end in self.estimate[phase])
        took += f" ({low:.0f} to {high:.0f} estimated)"
        return took + (f"; what is left of the run: about {said(rest)}" if rest[1] else "")
