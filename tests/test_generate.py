"""The engine against its slow twins: the library's generate and its logits processors, full
forwards without a cache, single slots, exact probabilities."""

import math
import runpy
import sys
import weakref
from pathlib import Path

import pytest
import torch
import transformers
from helpers_models import for_the_library, make_checkpoint, padded
from PIL import Image

import generate as engine
from generate import Completion, Engine, generate, least_kept, sample, uniforms
from support import flash
from support.cache import Cache
from support.checkpoint import FAMILIES
from vlm import VLM, Prompt

NOTHING = torch.tensor([], dtype=torch.long)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: make_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders):
    return {family: VLM.load(folder) for family, folder in folders.items()}


@pytest.fixture
def model(models):
    """Qwen2-VL, with many tokens that end a reply, so that lengths differ."""
    model = models["qwen2_vl"]
    before, model.eos_ids = model.eos_ids, tuple(range(100, 125))
    yield model
    model.eos_ids = before


def picture(width, height):
    torch.manual_seed(width)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())


def ragged(model):
    a, b, c = picture(50, 70), picture(64, 64), picture(33, 90)
    return [
        model.encode(parts)
        for parts in (
            ["hello"],
            [a, "how many bars?"],
            ["draw a circle " * 9],
            ["see ", b, " or ", c, "?"],
            [c, "what?"],
            [b],
            [c, "what is it? 7"],
            [c],
            ["draw a circle " * 8 + "or two"],
        )
    ]


def never(model):
    return [model.config.image_token_id, model.config.video_token_id]


def flat(replies) -> list[Completion]:
    return [reply for group in replies for reply in group]


def tokens_of(replies):
    return [[reply.tokens for reply in group] for group in replies]


def close(found, wanted, rtol=1e-3, atol=1e-3):
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, check_dtype=False)


def reference_logps(model, prompt, tokens, temperature, top_p=1.0, top_k=0):
    """Per token of a reply: its log-prob as drawn and the full one, by one pass without a cache."""
    behind = (prompt.next_position + torch.arange(len(tokens))).expand(3, -1)
    positions = torch.cat([prompt.positions, behind], dim=1)
    whole = Prompt([*prompt.tokens, *tokens], positions, prompt.pictures)
    with torch.no_grad():
        hidden = model.hidden(model.collate([whole]))[0, len(prompt.tokens) - 1 : -1]
        full = (hidden @ model.lm_head.T / temperature).log_softmax(-1)
    probs = full.exp()
    probs[:, never(model)] = 0
    kept = torch.stack([torch.tensor(exact(each.tolist(), top_p, top_k)).log() for each in probs])
    pick = torch.tensor(tokens)[:, None]
    return kept.gather(-1, pick)[:, 0], full.gather(-1, pick)[:, 0]


def exact(probs, top_p=1.0, top_k=0):
    """What is drawn from, in plain Python: top-k, renormalised, then the nucleus, renormalised."""
    order = sorted((i for i in range(len(probs)) if probs[i]), key=lambda i: -probs[i])
    order = order[: top_k or None]
    total, mass, kept = sum(probs[i] for i in order), 0.0, set()
    for i in order:
        kept.add(i)
        mass += probs[i] / total
        if mass >= top_p:
            break
    total = sum(probs[i] for i in kept)
    return [probs[i] / total if i in kept else 0.0 for i in range(len(probs))]


def chi_square(counts, shares):
    """Standard deviations by which chi-square exceeds its mean (Wilson and Hilferty).

    Below 4 is chance.
    """
    assert all(count == 0 for count, share in zip(counts, shares) if share == 0)
    # The rarest share a cell, so that 5 or more are expected in each.
    cells, count, expected = [], 0, 0.0
    for share, found in sorted(zip(shares, counts)):
        count, expected = count + found, expected + sum(counts) * share
        if expected >= 5:
            cells.append((count, expected))
            count, expected = 0, 0.0
    if len(cells) < 2:
        return 0.0
    freedom = len(cells) - 1
    statistic = sum((count - expected) ** 2 / expected for count, expected in cells)
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / 9 / freedom)) / math.sqrt(2 / 9 / freedom)


# ------------------------------------------------------------------------------------ greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_the_library(models, family):
    model = models[family]
    prompts = ragged(model)
    # Padded on the left; positions are theirs to find out.
    batch = for_the_library(padded(model, prompts))
    batch["mm_token_type_ids"] = (batch["input_ids"] == model.config.image_token_id).int()
    batch.pop("position_ids")
    before, model.eos_ids = model.eos_ids, (*range(100, 110), *model.eos_ids)
    try:
        theirs = model.model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=list(model.eos_ids),
            suppress_tokens=never(model),
        )
        theirs = theirs[:, batch["input_ids"].shape[1] :].tolist()
        # Through refills, and all at once.
        for slots in (2, 64):
            ours = flat(generate(model, prompts, max_new_tokens=40, temperature=0, slots=slots))
            for tokens, reply in zip(theirs, ours):
                assert reply.tokens == tokens[: len(reply.tokens)]
                assert reply.finished == (reply.tokens[-1] in model.eos_ids)
                assert reply.finished or len(reply.tokens) == 40
            # Else the end tokens were not tried.
            assert len({len(reply.tokens) for reply in ours}) > 2
    finally:
        model.eos_ids = before


def test_greedy_logps(model):
    prompts = ragged(model)
    replies = flat(generate(model, prompts, max_new_tokens=10, temperature=0))
    for prompt, reply in zip(prompts, replies):
        _, full = reference_logps(model, prompt, reply.tokens, 1.0)
        close(reply.full_logps, full)
        assert reply.logps == [0.0] * len(reply.tokens)


# ---------------------------------------------------------------------------- cached = uncached


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.3),
        dict(temperature=0.7, top_p=0.8),
        dict(temperature=1.0, top_k=5, top_p=0.9),
    ],
)
def test_logps_equal_a_full_forward(models, family, settings):
    model = models[family]
    prompts = ragged(model)
    replies = generate(model, prompts, n=2, max_new_tokens=8, slots=5, **settings)
    for prompt, group in zip(prompts, replies):
        for reply in group:
            kept, full = reference_logps(model, prompt, reply.tokens, **settings)
            close(reply.logps, kept, atol=2e-3)
            close(reply.full_logps, full, atol=2e-3)
            # What is cut off goes to the tokens that are left.
            assert all(a >= b - 1e-5 for a, b in zip(reply.logps, reply.full_logps))


# ------------------------------------------------------------------------------ one stream each


def test_batching_changes_nothing(model, monkeypatch):
    # The last two repeat the first two.
    prompts = ragged(model) + ragged(model)[:2]
    settings = dict(n=3, max_new_tokens=20, temperature=1.1, top_p=0.9, seed=7)
    together = tokens_of(generate(model, prompts, **settings))
    assert len({len(tokens) for group in together for tokens in group}) > 5
    for slots, budget in ((1, 2048), (5, 2048), (7, 1), (100, 2048)):
        monkeypatch.setitem(engine.PREFILL, "cpu", budget)
        assert tokens_of(generate(model, prompts, **settings, slots=slots)) == together
    # More completions, more tokens or more prompts leave those that were there as they were.
    more = generate(model, prompts + prompts[:1], **{**settings, "n": 5})
    assert [group[:3] for group in tokens_of(more)[:-1]] == together
    more = generate(model, prompts, **{**settings, "max_new_tokens": 25})
    assert [[tokens[:20] for tokens in group] for group in tokens_of(more)] == together
    # Nor does it matter who samples which prompts, once their numbers are known.
    for numbers in ([0, 2, 4, 6, 8, 10], [9, 1]):
        some = [prompts[number] for number in numbers]
        found = generate(model, some, **settings, numbers=numbers)
        assert tokens_of(found) == [together[number] for number in numbers]


def test_seeds(model):
    # Long replies: none alike by chance.
    model.eos_ids = (2,)
    prompts = [model.encode("hello")] * 2
    one, two, other = (
        generate(model, prompts, n=4, max_new_tokens=20, seed=seed) for seed in (1, 1, 2)
    )
    assert one == two
    # Every completion, of either copy of the prompt, is its own.
    texts = [tuple(reply.tokens) for reply in flat(one + other)]
    assert len(set(texts)) == len(texts)


# ------------------------------------------------------------------------- prompts into slots


def prefilled(monkeypatch, *arguments, **settings):
    """The batches that generate prefills."""
    batches, hidden = [], VLM.hidden
    with monkeypatch.context() as patch:

        def spy(self, batch, past):
            batches.append(batch)
            return hidden(self, batch, past)

        patch.setattr(VLM, "hidden", spy)
        generate(*arguments, **settings)
    return batches


def test_prompts_are_prefilled_once(model, monkeypatch):
    a, b = picture(32, 32), picture(33, 33)
    questions = [("hello", []), ("hello", []), ("what?", [a]), ("what?", [b]), ("what?", [a])]
    prompts = [model.encode(*question) for question in questions]
    batches = prefilled(monkeypatch, model, prompts, n=4, max_new_tokens=3)
    # "hello", and the question about each of two pictures.
    assert sum(len(batch["input_ids"]) for batch in batches) == 3


def test_questions_about_a_picture_stay_together(model, monkeypatch):
    """Three prompts fit into the budget of a prefill; the second picture's second question comes
    along all the same. So each picture goes through the vision tower once."""
    cut = [model.cut(picture(32, 32 + i)) for i in range(3)]
    questions = ("how many?", "how long?")
    prompts = [model.encode(question, [one]) for question in questions for one in cut]
    longest = max(len(prompt.tokens) for prompt in prompts)
    monkeypatch.setitem(engine.PREFILL, "cpu", 3 * longest)
    batches = prefilled(monkeypatch, model, prompts, n=2, max_new_tokens=3)
    assert len(batches) == 2
    assert sum(len(batch["image_grid_thw"]) for batch in batches) == 3


def steps_of(monkeypatch, *arguments, **settings):
    """How many slots each step takes, and the replies."""
    steps, advance = [], Engine.advance
    with monkeypatch.context() as patch:

        def spy(self, m, width):
            steps.append(m)
            return advance(self, m, width)

        patch.setattr(Engine, "advance", spy)
        return steps, flat(generate(*arguments, **settings))


def test_a_slot_is_refilled_at_once(model, monkeypatch):
    """Every step computes each token drawn and no other; no slot is idle while anything waits."""
    steps, replies = steps_of(monkeypatch, model, ragged(model), n=3, max_new_tokens=30, slots=7)
    lengths = [len(reply.tokens) for reply in replies]
    assert sum(steps) == sum(lengths)
    assert len(set(lengths)) > 5
    assert all(m == 7 for m in steps[: -max(lengths)])


def test_cost_follows_the_sum_of_tokens(model, monkeypatch):
    """One reply in a hundred twice as long as the longest: both the tokens computed and the steps
    grow by less than 5 %."""
    model.eos_ids, cost = (), {}
    prompts = [model.encode(str(number)) for number in range(50)]
    for longest in (20, 40):
        # 1 to 20, and two of the two hundred that are longer.
        limits = torch.arange(200).view(50, 4) % 20 + 1
        limits[12::25, 1] = longest
        steps, replies = steps_of(monkeypatch, model, prompts, n=4, max_new_tokens=limits, slots=16)
        assert [len(reply.tokens) for reply in replies] == limits.flatten().tolist()
        assert sum(steps) == limits.sum()
        cost[longest] = limits.sum(), len(steps)
    for before, after in zip(cost[20], cost[40]):
        assert before < after < 1.05 * before


# ------------------------------------------------------------------------------------ the draw


class OnCuda(torch.Tensor):
    """A tensor that calls itself one of CUDA, and is computed with on the CPU."""

    device = torch.device("cuda")


def test_image_tokens_are_never_drawn(model):
    """A policy can learn to say <|image_pad|>; a reply that contains it breaks the next pass."""
    words, excluded = len(model.lm_head), torch.tensor(never(model))
    logits = torch.zeros(50, words)
    logits[:, never(model)[0]] = 9
    u = uniforms(0, 0, 0, 50)
    for temperature in (0, 1):
        tokens, logps, full = sample(logits, u, temperature, 1.0, 0, excluded)
        assert not set(tokens.tolist()) & set(never(model))
        # As a trainer would score it.
        close(full, logits.log_softmax(-1)[:, 0], 1e-5, 1e-5)
        if temperature:
            close(logps, torch.full((50,), -math.log(words - 2)), 1e-5, 1e-5)
    model.eos_ids = (2,)
    for reply in flat(generate(model, ragged(model), n=5, max_new_tokens=30, temperature=5.0)):
        assert not set(reply.tokens) & set(never(model))


def test_uniforms():
    def grid(seed):
        rows = [torch.stack([uniforms(seed, p, c, 50) for c in range(25)]) for p in range(40)]
        return torch.stack(rows)

    u = grid(3)  # [prompts, completions, tokens]
    assert len(set(u[..., 0].flatten().tolist())) == 1000
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1
    counts = torch.histc(u.float(), bins=100, min=0, max=1)
    assert chi_square(counts.tolist(), [0.01] * 100) < 4
    # Neighbouring tokens, completions, prompts and seeds are unrelated.
    for x, y in (
        (u[..., :-1], u[..., 1:]),
        (u[:, :-1, 0], u[:, 1:, 0]),
        (u[:-1, :, 0], u[1:, :, 0]),
        (u[..., 0], grid(4)[..., 0]),
    ):
        correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
        assert abs(correlation) * math.sqrt(x.numel()) < 4
    # Any integer is a seed.
    assert torch.equal(uniforms(-1, 2, 2, 5), uniforms(-1, 2, 2, 5))
    assert not torch.equal(uniforms(-1, 2, 2, 5), uniforms(1, 2, 2, 5))
    # Each number is what it is, however many are asked for.
    assert torch.equal(uniforms(3, 2, 2, 9), u[2, 2, :9])


SETTINGS = [
    (1, 1, 0),
    (0.5, 1, 0),
    (2, 1, 0),
    (1, 0.9, 0),
    (1, 0.5, 0),
    (1, 0.01, 0),
    (1, 1, 4),
    (1, 1, 1),
    (1, 1, 99),
    (0.7, 0.95, 5),
    (1.5, 0.6, 3),
]


@pytest.mark.parametrize("temperature, top_p, top_k", SETTINGS)
def test_sampler_against_the_exact_distribution(temperature, top_p, top_k):
    torch.manual_seed(0)
    logits = torch.randn(12) * 1.5
    shares = exact((logits / temperature).softmax(-1).tolist(), top_p, top_k)
    u = uniforms(5, 0, 0, 30000)
    each = logits.expand(len(u), -1)
    tokens, logps, full = sample(each, u, temperature, top_p, top_k, NOTHING)
    counts = torch.bincount(tokens, minlength=12).tolist()
    assert chi_square(counts, shares) < 4
    close(logps, torch.tensor(shares)[tokens].log(), 1e-4, 1e-5)
    close(full, (logits / temperature).log_softmax(-1)[tokens], 1e-4, 1e-5)


@pytest.mark.parametrize("temperature, top_p, top_k", SETTINGS)
def test_sampler_against_the_library(temperature, top_p, top_k):
    """At each u the token that the library's logits processors leave there, with its log-prob."""
    torch.manual_seed(1)
    logits, u = torch.randn(200, 300) * 2, uniforms(6, 0, 0, 200)
    scores = transformers.TemperatureLogitsWarper(float(temperature))(None, logits)
    if top_k:
        scores = transformers.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = transformers.TopPLogitsWarper(top_p)(None, scores)
    kept = scores.log_softmax(-1)
    tokens, logps, full = sample(logits, u, temperature, top_p, top_k, NOTHING)
    mass = kept.double().exp().cumsum(-1)
    before = torch.cat([torch.zeros(200, 1), mass[:, :-1]], dim=1).gather(1, tokens[:, None])[:, 0]
    assert (before - 1e-5 < u).all()
    assert (u < mass.gather(1, tokens[:, None])[:, 0] + 1e-5).all()
    close(logps, kept.gather(1, tokens[:, None])[:, 0], 1e-4, 1e-4)
    close(full, (logits / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0], 1e-4, 1e-4)


def test_whole_engine_against_the_exact_distribution(model):
    prompt = model.encode("what?", [picture(32, 32)])
    with torch.no_grad():
        logits = model.hidden(model.collate([prompt]))[0, -1] @ model.lm_head.T
    probs = (logits / 1.5).softmax(-1)
    probs[never(model)] = 0
    shares = exact(probs.tolist(), top_k=10)
    replies = generate(model, [prompt], n=2000, max_new_tokens=1, temperature=1.5, top_k=10)[0]
    first = torch.tensor([reply.tokens[0] for reply in replies])
    counts = torch.bincount(first, minlength=len(shares)).tolist()
    assert chi_square(counts, shares) < 4


def test_extreme_uniforms_stay_inside():
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -200.0, -math.inf]]).expand(2, -1)
    u = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for top_p, top_k in ((1, 0), (0.99, 0), (1, 2)):
        tokens, logps, _ = sample(logits, u, 1.0, top_p, top_k, NOTHING)
        assert tokens.tolist() == [1, 2] and logps.isfinite().all()


@pytest.mark.parametrize("vocabulary", [50, 5000])
@pytest.mark.parametrize("spread", [0.01, 3.0])  # nuclei of nearly all tokens; of a few
@pytest.mark.parametrize("kind", [torch.Tensor, OnCuda])  # sorted by numpy; by torch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the latter has many ties
def test_least_kept(vocabulary, spread, kind, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(3, vocabulary) * spread).to(dtype)
    for temperature, top_p, top_k in ((1, 0.5, 0), (0.7, 0.95, 0), (1, 1, 7), (0.7, 0.8, 40)):
        found = least_kept(logits.as_subclass(kind), temperature, top_p, top_k)
        probs = (logits.double() / temperature).softmax(-1)
        for own, each, least in zip(logits, probs, found):
            shares = exact(each.tolist(), top_p, top_k)
            smallest = min(float(own[i]) for i, share in enumerate(shares) if share)
            # At a flat 5000 tokens the sum can cross top_p a token sooner or later in another
            # precision.
            assert math.isclose(least.item(), smallest, abs_tol=1e-4)
    # The engine finds out later.
    nan = torch.full((2, vocabulary), math.nan, dtype=dtype).as_subclass(kind)
    assert least_kept(nan, 1.0, 0.9, 0).shape == (2, 1)


@pytest.mark.parametrize("temperature, top_p, top_k", [(1, 0.9, 0), (0.7, 0.95, 40), (1, 1, 5)])
def test_the_nucleus_of_bf16_logits_is_that_of_their_probabilities(temperature, top_p, top_k):
    """A nucleus found by sorting logits in bf16; log-probs are float32 all the same."""
    torch.manual_seed(0)
    logits = (4 * torch.randn(40, 5000)).bfloat16()
    u = uniforms(1, 0, 0, 40)
    drawn = sample(logits.as_subclass(OnCuda), u, temperature, top_p, top_k, NOTHING)
    tokens, logps, full = (each.as_subclass(torch.Tensor) for each in drawn)
    wanted = sample(logits.float(), u, temperature, top_p, top_k, NOTHING)
    assert torch.equal(tokens, wanted[0]) and full.dtype == torch.float32
    close(logps, wanted[1], 1e-5, 1e-5)
    scaled = logits.float() / temperature
    close(full, scaled.log_softmax(-1).gather(1, tokens[:, None])[:, 0], 1e-5, 1e-5)


# ------------------------------------------------------------------------------ ends and errors


def test_ends(model):
    prompts = ragged(model)
    replies = flat(generate(model, prompts, n=5, max_new_tokens=10))
    finished = [reply for reply in replies if reply.finished]
    cut = [reply for reply in replies if not reply.finished]
    assert finished and cut
    for reply in replies:
        assert len(reply.tokens) == len(reply.logps) == len(reply.full_logps) <= 10
        assert not any(token in model.eos_ids for token in reply.tokens[:-1])
    decode = model.tokenizer.decode
    for reply in finished:
        assert reply.tokens[-1] in model.eos_ids
        assert reply.text == decode(reply.tokens[:-1], skip_special_tokens=True)
    for reply in cut:
        assert len(reply.tokens) == 10 and reply.tokens[-1] not in model.eos_ids
        assert reply.text == decode(reply.tokens, skip_special_tokens=True)
    short = flat(generate(model, prompts, max_new_tokens=1))
    assert [len(reply.tokens) for reply in short] == [1] * 9
    assert generate(model, []) == []


@pytest.mark.parametrize(
    "wrong",
    [
        dict(n=0),
        dict(max_new_tokens=0),
        dict(temperature=-1),
        dict(temperature=math.nan),
        dict(top_p=0),
        dict(top_p=1.1),
        dict(top_k=-1),
        dict(slots=0),
    ],
)
def test_nonsense_settings(model, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        generate(model, [model.encode("hi")], **wrong)


def test_slots_are_planned_from_free_memory(model, monkeypatch):
    """The plan counts what the engine then allocates; what cannot fit is refused before."""
    prompt = model.encode("hello")
    longest = len(prompt.tokens) + 5
    cache = Cache(model, 4, longest)
    cache.grow(longest, 4)
    cache = sum(layer.nbytes for layer in cache.layers)  # of four slots
    each = cache // 4 + flash.DRAW["cpu"] * model.config.get_text_config().vocab_size
    for slots in (1, 3):
        free = (each * slots + each // 2) * 10 // 9
        monkeypatch.setattr(flash, "free_bytes", lambda device, free=free: free)
        assert flash.slots_that_fit(model, 64, longest) == slots
    assert flash.slots_that_fit(model, 2, longest) == 2
    few = generate(model, [prompt], n=6, max_new_tokens=5, seed=1)
    monkeypatch.setattr(flash, "free_bytes", lambda device: each // 2)
    with pytest.raises(ValueError, match="needs .* GB of cache"):
        generate(model, [prompt], n=6, max_new_tokens=5)
    monkeypatch.undo()
    many = generate(model, [prompt], n=6, max_new_tokens=5, seed=1)
    assert tokens_of(few) == tokens_of(many)


def test_slots_are_halved_as_often_as_memory_runs_out_and_that_is_remembered(
    model, monkeypatch, capsys
):
    run, slots, engines, room = Engine.run, [], [], 3
    monkeypatch.setattr(model, "slot_limit", math.inf)
    prompts = [model.encode("hello")]
    before = tokens_of(generate(model, prompts, n=30, max_new_tokens=3))

    def crowded(self, *work):
        # The memory of the first one is free before the second begins.
        assert not any(engine() for engine in engines)
        engines.append(weakref.ref(self))
        slots.append(self.slots)
        if self.slots > room:
            raise torch.cuda.OutOfMemoryError("no room")
        return run(self, *work)

    monkeypatch.setattr(Engine, "run", crowded)
    assert tokens_of(generate(model, prompts, n=30, max_new_tokens=3)) == before
    assert slots == [30, 15, 7, 3]
    assert capsys.readouterr().err.count("generate: out of GPU memory; from now on ") == 3
    generate(model, prompts, n=30, max_new_tokens=3)
    assert slots[4:] == [3]
    room = 0
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no room"):
        generate(model, prompts, n=30, max_new_tokens=3)


def test_diverged_weights(model):
    state = model.state()
    try:
        with torch.no_grad():
            model.lm_head.fill_(math.nan)
        for settings in ({}, dict(top_p=0.9), dict(top_k=5)):
            with pytest.raises(RuntimeError, match="diverged"):
                generate(model, [model.encode("hi")], **settings)
    finally:
        model.load_state(state)


def test_command_line(folders, tmp_path, capsys, monkeypatch):
    folder = folders["qwen2_vl"]
    picture(50, 70).save(tmp_path / "a.png")
    command = ["generate.py", "--model", folder, "--prompt", "what?", "--image"]
    command += [tmp_path / "a.png", "-n", 2, "--max-new-tokens", 3]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    runpy.run_path(str(Path(engine.__file__)), run_name="__main__")
    output = capsys.readouterr().out
    assert output.startswith("--- 1 ---\n") and "--- 2 ---" in output
    (tmp_path / "b.png").write_text("no picture")
    for wrong, word in (
        (["--image", tmp_path / "b.png"], "b.png"),
        (["--top-p", "7"], "top_p"),
        (["--image", tmp_path / "c.png"], "c.png"),
        (["--model", "no-such"], "no-such"),
    ):
        with pytest.raises(SystemExit) as stop:
            engine.main(["--model", str(folder), "--prompt", "what?", *map(str, wrong)])
        # Exit status 1, one line on stderr.
        assert word in stop.value.code and "\n" not in stop.value.code
