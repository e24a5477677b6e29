"""The engine against its slow twins: the library's generate, full forwards, single rows, exact shares."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_models import for_the_library, make_checkpoint, padded
from PIL import Image

import generate as engine
import prefill
import sampling
from generate import generate
from sampling import least_kept, least_kept_fixed, sample, streams, uniforms
from support.checkpoint import FAMILIES
from vlm import VLM


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: VLM.load(make_checkpoint(root / family, family)) for family in FAMILIES}


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


def reference_logps(model, prompt, tokens, temperature, top_p=1.0, top_k=0):
    """Per token of a reply: its log-prob as sampled and the full one, from one forward without a cache."""
    with torch.no_grad():
        hidden = model.hidden(padded(model, [prompt], [tokens]))[0, len(prompt.tokens) - 1 : -1]
        full = (hidden @ model.lm_head.T / temperature).log_softmax(-1)
    probs = full.exp()
    probs[:, never(model)] = 0
    kept = torch.stack([torch.tensor(exact(row.tolist(), top_p, top_k)).log() for row in probs])
    pick = torch.tensor(tokens)[:, None]
    return kept.gather(-1, pick)[:, 0], full.gather(-1, pick)[:, 0]


def exact(probs, top_p=1.0, top_k=0):
    """What is sampled from, in plain Python: top-k, renormalised, then the nucleus, renormalised."""
    order = sorted((i for i in range(len(probs)) if probs[i]), key=lambda i: -probs[i])[
        : top_k or None
    ]
    total, mass, kept = sum(probs[i] for i in order), 0.0, []
    for i in order:
        kept.append(i)
        mass += probs[i] / total
        if mass >= top_p:
            break
    total = sum(probs[i] for i in kept)
    return [probs[i] / total if i in kept else 0.0 for i in range(len(probs))]


def chi_square(counts, shares):
    """Standard deviations by which chi-square exceeds its mean (Wilson and Hilferty). Below 4 is chance."""
    assert all(count == 0 for count, share in zip(counts, shares) if share == 0)
    cells, pool = [], (0, 0.0)
    for share, count in sorted(zip(shares, counts)):  # the rarest share a cell: 5 or more expected
        pool = (pool[0] + count, pool[1] + sum(counts) * share)
        if pool[1] >= 5:
            cells.append(pool)
            pool = (0, 0.0)
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
    batch = for_the_library(padded(model, prompts))
    batch["mm_token_type_ids"] = (batch["input_ids"] == model.config.image_token_id).int()
    batch.pop("position_ids")  # theirs to find out
    before, model.eos_ids = model.eos_ids, (*range(100, 110), *model.eos_ids)
    try:
        theirs = model.model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=list(model.eos_ids),
            suppress_tokens=never(model),
        )
        for slots in (2, 64):  # through refills, and all at once
            ours = generate(model, prompts, max_new_tokens=40, temperature=0, slots=slots)
            lengths = set()
            for row, (reply,) in zip(theirs[:, batch["input_ids"].shape[1] :].tolist(), ours):
                assert reply.tokens == row[: len(reply.tokens)]
                assert reply.finished == (reply.tokens[-1] in model.eos_ids)
                assert reply.finished or len(reply.tokens) == 40
                lengths.add(len(reply.tokens))
            assert len(lengths) > 2  # else the end tokens were not tried
    finally:
        model.eos_ids = before


def test_greedy_logps(model):
    prompts = ragged(model)
    for prompt, (reply,) in zip(
        prompts, generate(model, prompts, max_new_tokens=10, temperature=0)
    ):
        _, full = reference_logps(model, prompt, reply.tokens, 1.0)
        torch.testing.assert_close(torch.tensor(reply.full_logps), full, rtol=1e-3, atol=1e-3)
        assert reply.logps == [0.0] * len(reply.tokens)


# ------------------------------------------------------------------------------------ cached = uncached


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
            torch.testing.assert_close(torch.tensor(reply.logps), kept, rtol=1e-3, atol=2e-3)
            torch.testing.assert_close(torch.tensor(reply.full_logps), full, rtol=1e-3, atol=2e-3)


def test_a_common_beginning_is_computed_once(models, monkeypatch):
    """The questions about one picture, and long prompts that begin alike: as without sharing, with fewer tokens computed."""
    original, computed = VLM.hidden, []
    monkeypatch.setattr(
        VLM,
        "hidden",
        lambda self, batch, past: (
            computed.append(batch["input_ids"].numel()) or original(self, batch, past)
        ),
    )
    for model in models.values():
        prompts, outcomes = ragged(model), {}
        c = prompts[4].pictures[0]
        families = [
            [prompt for prompt in prompts if prompt.pictures == (c,)],
            [prompt for prompt in prompts if not prompt.pictures],
        ]
        lengths = [
            prefill.common_prefix(family, model.config.image_token_id) for family in families
        ]
        assert lengths[0] > len(c.pixels) // 4 and lengths[1] == 0  # "hello" is among the second
        assert prefill.common_prefix(families[1][1:], model.config.image_token_id) > prefill.SHARED
        assert (
            prefill.common_prefix([prompts[3], prompts[3]], model.config.image_token_id)
            == len(prompts[3].tokens) - 1
        )
        assert prefill.common_prefix(prompts[1:2], model.config.image_token_id) == 0
        for name in ("shared", "alone"):
            with monkeypatch.context() as patch:
                if name == "alone":
                    patch.setattr(prefill, "common_prefix", lambda family, image_token: 0)
                computed.clear()
                outcomes[name] = (
                    generate(model, prompts[1:], n=2, max_new_tokens=8, seed=3),
                    sum(computed),
                )
        for one, other in zip(sum(outcomes["shared"][0], []), sum(outcomes["alone"][0], [])):
            assert one.tokens == other.tokens
            torch.testing.assert_close(
                torch.tensor(one.full_logps), torch.tensor(other.full_logps), rtol=1e-3, atol=1e-3
            )
        assert outcomes["shared"][1] < outcomes["alone"][1]


# ------------------------------------------------------------------------------------ one stream each


def test_batching_changes_nothing(model, monkeypatch):
    prompts = ragged(model) + ragged(model)[:2]  # the last two repeat the first two
    settings = dict(n=3, max_new_tokens=20, temperature=1.1, top_p=0.9, seed=7)
    together = [
        [reply.tokens for reply in replies] for replies in generate(model, prompts, **settings)
    ]
    assert len({len(tokens) for replies in together for tokens in replies}) > 5
    monkeypatch.setattr(engine, "APART", -1)  # rows change places wherever their lengths differ
    for cut in (dict(slots=1), dict(slots=5), dict(slots=7, prefill_tokens=1), dict(slots=100)):
        again = generate(model, prompts, **settings, **cut)
        assert [[reply.tokens for reply in replies] for replies in again] == together
    # More completions or more prompts leave those that were there as they were.
    more = generate(model, prompts + prompts[:1], **{**settings, "n": 5})
    assert [[reply.tokens for reply in replies[:3]] for replies in more[:-1]] == together


def test_seeds(model):
    model.eos_ids = (2,)  # long replies: none alike by chance
    prompts = [model.encode("hello")] * 2
    one, two, other = (
        generate(model, prompts, n=4, max_new_tokens=20, seed=seed) for seed in (1, 1, 2)
    )
    assert one == two
    texts = [tuple(reply.tokens) for replies in one + other for reply in replies]
    assert len(set(texts)) == len(
        texts
    )  # every completion, of either copy of the prompt, is its own


def test_prompts_are_prefilled_once(model, monkeypatch):
    rows = []
    original = VLM.hidden
    monkeypatch.setattr(
        VLM,
        "hidden",
        lambda self, batch, past: (
            rows.append(len(batch["input_ids"])) or original(self, batch, past)
        ),
    )
    a, b = picture(32, 32), picture(33, 33)
    questions = [("hello", []), ("hello", []), ("what?", [a]), ("what?", [b]), ("what?", [a])]
    generate(model, [model.encode(*question) for question in questions], n=4, max_new_tokens=3)
    assert sum(rows) == 3  # "hello", and the question about each of two pictures


def test_questions_about_a_picture_stay_together(model, monkeypatch):
    """Three prompts fit into the budget of a prefill; the second picture's second question comes along all the same."""
    pictures = []
    cut = [model.encode("what?", [picture(32, 32 + i)]).pictures[0] for i in range(3)]
    prompts = [
        model.encode(question, [one]) for one in cut for question in ("how many?", "how long?")
    ]
    original = prefill.forward
    monkeypatch.setattr(
        prefill,
        "forward",
        lambda vlm, heads, *rest: (
            pictures.extend(h.pictures for h in heads if h.pictures) or original(vlm, heads, *rest)
        ),
    )
    generate(model, prompts, n=2, max_new_tokens=3, prefill_tokens=3 * len(prompts[0].tokens))
    assert len(pictures) == 3


def steps_of(monkeypatch, *arguments, **settings):
    """The (rows, columns) of each step, and the replies."""
    steps, advance = [], engine.Engine.advance
    with monkeypatch.context() as patch:
        patch.setattr(
            engine.Engine,
            "advance",
            lambda self, parts: steps.append(parts[-1][1:]) or advance(self, parts),
        )
        return steps, sum(generate(*arguments, **settings), [])


def test_a_slot_is_refilled_at_once(model, monkeypatch):
    """Every step computes each token drawn and no other, and no slot is idle while anything waits."""
    steps, replies = steps_of(monkeypatch, model, ragged(model), n=3, max_new_tokens=30, slots=7)
    total = sum(len(reply.tokens) for reply in replies)
    assert (
        sum(rows for rows, _ in steps) == total
        and len({len(reply.tokens) for reply in replies}) > 5
    )
    assert all(rows == 7 for rows, _ in steps[: -max(len(reply.tokens) for reply in replies)])


def test_cost_follows_the_sum_of_tokens(model, monkeypatch):
    """One reply in a hundred twice as long as the longest: the rows computed grow by less than 5 %, and so do the steps."""
    model.eos_ids, prompts, cost = (), [model.encode(str(number)) for number in range(100)], {}
    for longest in (30, 60):
        limits = torch.arange(400).view(100, 4) % 30 + 1  # 1 to 30
        limits[::25, 1] = longest  # four of the four hundred
        steps, replies = steps_of(monkeypatch, model, prompts, n=4, max_new_tokens=limits, slots=16)
        assert [len(reply.tokens) for reply in replies] == limits.flatten().tolist()
        assert sum(rows for rows, _ in steps) == limits.sum()
        cost[longest] = limits.sum(), len(steps)
    assert all(before < after < 1.05 * before for before, after in zip(cost[30], cost[60]))


def test_long_rows_do_not_widen_the_others(model, monkeypatch):
    """One reply in a hundred twice as long: the columns attended to grow by less than 5 %, and nobody's reply changes."""
    cost, replies, advance = {}, {}, engine.Engine.advance

    def counted(self, parts):
        cost[name] = cost.get(name, 0) + sum((last - first) * width for first, last, width in parts)
        return advance(self, parts)

    monkeypatch.setattr(engine.Engine, "advance", counted)
    model.eos_ids, prompts = (), [model.encode("hello")] * 4
    for name, longest, apart in (
        ("even", 40, 2000),
        ("long", 80, 2000),
        ("together", 80, torch.inf),
    ):
        limits = torch.full((4, 100), 40)
        limits[:, 1] = longest
        monkeypatch.setattr(engine, "APART", apart)
        replies[name] = sum(
            generate(model, prompts, n=100, max_new_tokens=limits, slots=200, seed=1), []
        )
    assert [reply.tokens for reply in replies["long"]] == [
        reply.tokens for reply in replies["together"]
    ]
    assert (
        cost["even"] < cost["long"] < 1.05 * cost["even"] and cost["together"] > 1.1 * cost["even"]
    ), cost


def test_fixed_shapes_and_seldom_looks(models, model, monkeypatch):
    """The step as CUDA takes it: rows of a whole bucket, all columns, ends looked at every few steps. The same replies."""
    for model in models.values():
        settings = dict(n=3, max_new_tokens=20, temperature=1.1, top_p=0.9, seed=7, slots=7)
        plain = generate(model, ragged(model), **settings)
        with monkeypatch.context() as patch:
            patch.setitem(engine.EVERY, "cpu", 4)
            patch.setattr(sampling, "least_kept", least_kept_fixed)
            patch.setattr(
                engine.Engine,
                "step",
                lambda self: self.advance(
                    ((0, min(self.slots, engine.bucket(self.m)), self.parts[-1][2]),)
                ),
            )
            fixed = generate(model, ragged(model), **settings)
        for one, other in zip(sum(plain, []), sum(fixed, [])):
            assert one.tokens == other.tokens and one.finished == other.finished
            torch.testing.assert_close(
                torch.tensor(one.logps), torch.tensor(other.logps), rtol=1e-3, atol=1e-3
            )


def test_flash_attention_is_called_as_documented(models, monkeypatch):
    """flash_attn_with_kvcache writes k and v [B, 1, K, H] at cache_seqlens into caches [B, C, K, H], and attends up to there."""

    def stand_in(q, k_cache, v_cache, k, v, cache_seqlens, softmax_scale, causal):
        assert (
            cache_seqlens.dtype == torch.int32
            and causal
            and q.shape[1] == 1
            and k_cache.stride(-1) == 1
        )
        out = torch.empty_like(q)
        for row, length in enumerate(cache_seqlens.tolist()):
            k_cache[row, length], v_cache[row, length] = k[row, 0], v[row, 0]
            for head in range(q.shape[2]):
                of = head // (q.shape[2] // k.shape[2])
                scores = k_cache[row, : length + 1, of] @ q[row, 0, head] * softmax_scale
                out[row, 0, head] = scores.softmax(0) @ v_cache[row, : length + 1, of]
        return out

    init = engine.Engine.__init__
    for model in models.values():
        settings = dict(n=2, max_new_tokens=6, seed=2, slots=5)
        plain = sum(generate(model, ragged(model), **settings), [])
        with monkeypatch.context() as patch:
            patch.setattr(
                engine.Engine,
                "__init__",
                lambda self, *arguments: init(self, *arguments) or setattr(self, "flash", stand_in),
            )
            flash = sum(generate(model, ragged(model), **settings), [])
        assert [reply.tokens for reply in flash] == [reply.tokens for reply in plain]
        assert [reply.full_logps for reply in flash] == [
            pytest.approx(reply.full_logps, rel=1e-3, abs=1e-3) for reply in plain
        ]


# ------------------------------------------------------------------------------------ the sampler


def test_image_tokens_are_never_drawn(model):
    """A policy can learn to say <|image_pad|>, and a reply that contains it breaks the next forward."""
    with torch.no_grad():
        favourite = never(model)[0]
        for temperature in (0, 1):
            keys = streams(0, 1, 50)[0]
            logits = torch.zeros(50, len(model.lm_head))
            logits[:, favourite] = 9
            u = uniforms(keys, torch.zeros_like(keys))
            tokens, logps, full = sample(logits, u, temperature, 1.0, 0, torch.tensor(never(model)))
            assert not set(tokens.tolist()) & set(never(model))
            torch.testing.assert_close(
                full, logits.log_softmax(-1)[:, 0]
            )  # as a trainer would score it
            if temperature:
                torch.testing.assert_close(
                    logps, torch.full((50,), -math.log(len(model.lm_head) - 2))
                )
    model.eos_ids = (2,)
    for reply in sum(generate(model, ragged(model), n=5, max_new_tokens=30, temperature=5.0), []):
        assert not set(reply.tokens) & set(never(model))


def test_uniforms():
    keys = streams(seed=3, prompts=40, n=25).flatten()
    assert len(set(keys.tolist())) == 1000
    u = torch.stack([uniforms(keys, torch.full_like(keys, step)) for step in range(50)])
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1
    counts = torch.histc(u.float(), bins=100, min=0, max=1)
    assert chi_square(counts.tolist(), [0.01] * 100) < 4
    # Neighbouring steps, completions, prompts and seeds are unrelated.
    grid = u[0].view(40, 25)
    other = uniforms(streams(4, 40, 25).flatten(), torch.zeros(1000, dtype=torch.long))
    for x, y in (
        (u[:-1], u[1:]),
        (grid[:, :-1], grid[:, 1:]),
        (grid[:-1], grid[1:]),
        (u[0], other),
    ):
        correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
        assert abs(correlation) * math.sqrt(x.numel()) < 4
    assert torch.equal(streams(-1, 2, 2), streams(-1, 2, 2))  # any integer is a seed
    assert not torch.equal(streams(-1, 2, 2), streams(1, 2, 2))


@pytest.mark.parametrize(
    "temperature, top_p, top_k",
    [
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
    ],
)
def test_sampler_against_the_exact_distribution(temperature, top_p, top_k):
    torch.manual_seed(0)
    logits = torch.randn(12) * 1.5
    shares = exact((logits / temperature).softmax(-1).tolist(), top_p, top_k)
    keys = streams(5, 100, 300).flatten()
    u = uniforms(keys, torch.zeros_like(keys))
    tokens, logps, full = sample(logits.expand(len(keys), -1), u, temperature, top_p, top_k)
    counts = torch.bincount(tokens, minlength=12).tolist()
    assert chi_square(counts, shares) < 4
    torch.testing.assert_close(logps, torch.tensor(shares)[tokens].log(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        full, (logits / temperature).log_softmax(-1)[tokens], rtol=1e-4, atol=1e-5
    )


def test_whole_engine_against_the_exact_distribution(model):
    prompt = model.encode("what?", [picture(32, 32)])
    with torch.no_grad():
        probs = (model.hidden(model.collate([prompt]))[0, -1] @ model.lm_head.T / 1.5).softmax(-1)
    probs[never(model)] = 0
    shares = exact(probs.tolist(), top_k=10)
    replies = generate(model, [prompt], n=4000, max_new_tokens=1, temperature=1.5, top_k=10)[0]
    first = torch.tensor([reply.tokens[0] for reply in replies])
    counts = torch.bincount(first, minlength=len(shares)).tolist()
    assert chi_square(counts, shares) < 4


def test_extreme_uniforms_stay_inside():
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -200.0, -math.inf]]).expand(2, -1)
    u = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for top_p, top_k in ((1, 0), (0.99, 0), (1, 2)):
        tokens, logps, _ = sample(logits, u, 1.0, top_p, top_k)
        assert tokens.tolist() == [1, 2] and logps.isfinite().all()


@pytest.mark.parametrize("vocabulary", [50, 5000])  # sorted by numpy; by torch, in steps
@pytest.mark.parametrize("spread", [0.01, 3.0])  # nuclei of nearly all tokens; of a few
@pytest.mark.parametrize("least_kept", [least_kept, least_kept_fixed])
def test_least_kept(vocabulary, spread, least_kept):
    torch.manual_seed(0)
    probs = (torch.randn(3, vocabulary, dtype=torch.float64) * spread).softmax(-1).float()
    for top_p, top_k in ((0.5, 0), (0.95, 0), (1, 7), (0.8, 40)):
        for row, least in zip(probs, least_kept(probs, top_p, top_k)):
            shares = exact(row.tolist(), top_p, top_k)
            smallest = min(float(row[i]) for i, share in enumerate(shares) if share)
            # At a flat 5000 tokens the sum can cross top_p a token sooner or later in another precision.
            assert math.isclose(least.item(), smallest, rel_tol=1e-4)
    assert least_kept(torch.full((2, vocabulary), math.nan), 0.9, 0).shape == (
        2,
        1,
    )  # the engine finds out later


# ------------------------------------------------------------------------------------ ends and errors


def test_ends(model):
    prompts = ragged(model)
    replies = sum(generate(model, prompts, n=5, max_new_tokens=10), [])
    finished = [reply for reply in replies if reply.finished]
    cut = [reply for reply in replies if not reply.finished]
    assert finished and cut
    for reply in replies:
        assert len(reply.tokens) == len(reply.logps) == len(reply.full_logps) <= 10
        assert not any(token in model.eos_ids for token in reply.tokens[:-1])
    for reply in finished:
        assert reply.tokens[-1] in model.eos_ids
        assert reply.text == model.tokenizer.decode(reply.tokens[:-1], skip_special_tokens=True)
    for reply in cut:
        assert len(reply.tokens) == 10 and reply.tokens[-1] not in model.eos_ids
        assert reply.text == model.tokenizer.decode(reply.tokens, skip_special_tokens=True)
    assert [len(reply.tokens) for reply in sum(generate(model, prompts, max_new_tokens=1), [])] == [
        1
    ] * 9
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
    """The plan counts what the engine then allocates; what cannot fit is refused before anything runs."""
    prompt = model.encode("hello")
    longest = len(prompt.tokens) + 5
    monkeypatch.setattr(engine, "GROWTH", 0)  # a cache of exactly the columns needed
    machine = engine.Engine(model, [prompt], torch.full((1, 4), 5), (1.0, 1.0, 0), 0, 4, 8192)
    machine.grow(longest, 4)
    cache = sum(c.nbytes for c in machine.keys + machine.values)  # of four slots
    each = cache // 4 + 24 * model.config.get_text_config().vocab_size
    for slots in (1, 3):
        monkeypatch.setattr(
            engine, "free_bytes", lambda device: (each * slots + each // 2) * 10 // 9
        )
        assert engine.slots_that_fit(model, 64, longest) == slots
    assert engine.slots_that_fit(model, 2, longest) == 2
    few = generate(model, [prompt], n=6, max_new_tokens=5, seed=1)
    monkeypatch.setattr(engine, "free_bytes", lambda device: each // 2)
    with pytest.raises(ValueError, match="needs .* GB of cache"):
        generate(model, [prompt], n=6, max_new_tokens=5)
    monkeypatch.undo()
    assert [r.tokens for r in few[0]] == [
        r.tokens for r in generate(model, [prompt], n=6, max_new_tokens=5, seed=1)[0]
    ]


def test_out_of_memory_halves_the_slots_once(model, monkeypatch, capsys):
    run, slots = engine.Engine.run, []

    def crowded(self, progress):
        slots.append(self.slots)
        if self.slots > 3:
            raise torch.cuda.OutOfMemoryError("no room")
        return run(self, progress)

    monkeypatch.setattr(engine.Engine, "run", crowded)
    assert len(generate(model, [model.encode("hello")], n=6, max_new_tokens=3)[0]) == 6
    assert slots == [6, 3] and "with 3 slots" in capsys.readouterr().err
    with pytest.raises(torch.cuda.OutOfMemoryError):
        generate(model, [model.encode("hello")], n=20, max_new_tokens=3)


def test_diverged_weights(model):
    state = model.state()
    try:
        with torch.no_grad():
            model.lm_head.fill_(math.nan)
        with pytest.raises(RuntimeError, match="diverged"):
            generate(model, [model.encode("hi")])
    finally:
        model.load_state(state)


def run(*arguments):
    script = Path(engine.__file__)
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True
    )


def test_command_line(tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "model")
    picture(50, 70).save(tmp_path / "a.png")
    done = run(
        "--model",
        folder,
        "--prompt",
        "what?",
        "--image",
        tmp_path / "a.png",
        "-n",
        2,
        "--max-new-tokens",
        3,
    )
    assert (
        done.returncode == 0
        and done.stdout.startswith("--- 1 ---\n")
        and "--- 2 ---" in done.stdout
    )
    (tmp_path / "b.png").write_text("no picture")
    for wrong, word in (
        (["--image", tmp_path / "b.png"], "b.png"),
        (["--top-p", "7"], "top_p"),
        (["--image", tmp_path / "c.png"], "c.png"),
        (["--model", "no-such"], "no-such"),
    ):
        with pytest.raises(SystemExit) as stop:
            engine.main(["--model", str(folder), "--prompt", "what?", *map(str, wrong)])
        assert (
            word in stop.value.code and "\n" not in stop.value.code
        )  # exit status 1, one line on stderr
