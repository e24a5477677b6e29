"""The plan of a run: parameters counted, memory held against what the code allocates, refusals in one line."""

import json
import random
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers_models import make_checkpoint
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import generate
import grpo
import mmzero
import rewards
from generate import slots_that_fit
from grpo import Rollout, make_optimizer, train_step
from prompts import TOPICS, fill
from support import flash
from support.lora import add_lora, twin
from support.settings import PAPER, PRESETS
from tools import plan as plan_module
from tools.plan import CARDS, SHAPES, fitting, measure, memory, needs, plan, read_config, work
from support.checkpoint import FAMILIES
from vlm import VLM, smart_resize

README = (Path(plan_module.__file__).parent.parent / "README.md").read_text()
# The number of weights in the published checkpoints' files.
PUBLISHED = {
    "Qwen2-VL-2B": 2208985600,
    "Qwen2-VL-7B": 8291375616,
    "Qwen2.5-VL-3B": 3754622976,
    "Qwen2.5-VL-7B": 8292166656,
    "Qwen3-VL-2B": 2127532032,
    "Qwen3-VL-4B": 4437815808,
    "Qwen3-VL-8B": 8767123696,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(name):
    assert measure(read_config(name)).total == PUBLISHED[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_a_folder_are_those_of_its_weights(tmp_path, family):
    folder = make_checkpoint(tmp_path / "model", family, tie=family != "qwen2_vl")
    shape, model = measure(read_config(str(folder))), VLM.load(folder)
    assert (
        shape.total
        == sum(p.numel() for p in model.model.parameters())
        == shape.vision + shape.language + shape.head
    )
    assert shape.ends == len(model.head) * 32 * (2 if family == "qwen2_vl" else 1)
    add_lora(model, 3, 8.0)
    assert 3 * shape.per_rank == sum(w.numel() for w in model.weights().values())


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that live, and their peak: what an allocator has to hand out."""

    def __init__(self, *models):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, WeakIdKeyDictionary()
        for p in (p for model in models for p in model.model.parameters()):
            self.see(p)

    def see(self, tensor):
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known[storage] = size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.gone, size)

    def gone(self, size):
        self.live -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        return result


@pytest.mark.parametrize(
    "family, groups, pictures, checkpointing, lora",
    [
        ("qwen2_vl", 16, False, True, 0),
        ("qwen2_vl", 16, True, True, 0),
        ("qwen2_5_vl", 16, True, True, 0),
        ("qwen3_vl", 16, True, True, 0),
        ("qwen2_vl", 16, False, False, 0),
        ("qwen2_vl", 16, True, True, 4),
        ("qwen2_vl", 4, False, True, 0),
    ],
)
def test_the_formula_is_what_a_training_step_allocates(
    tmp_path, monkeypatch, family, groups, pictures, checkpointing, lora
):
    """The peak of real steps, with the autocast of a GPU: bf16 compute on float32 masters. 4 groups are little beside the
    weights, and come in two passes: a bf16 copy of all weights, kept through a pass as autocast would, is seen by the second."""
    folder = make_checkpoint(
        tmp_path / "model", family, std=0.02, hidden=128, layers=8, inner=768
    )  # 6 times as wide inside, as real ones
    actor = VLM.load(folder, device="cpu", dtype="bfloat16")
    if lora:
        policy = twin(actor)
        add_lora(actor, lora, 8.0), add_lora(policy, lora, 8.0)
    else:
        policy = VLM.load(folder, device="cpu", dtype="float32")
    if checkpointing:
        policy.model.gradient_checkpointing_enable()
        policy.model.train()
    real, hidden, passes = torch.autocast, VLM.hidden, []
    monkeypatch.setattr(
        grpo,
        "torch",
        SimpleNamespace(**vars(torch) | {"autocast": lambda *a, enabled, **k: real(*a, **k)}),
    )

    def spy(self, batch, *rest):
        passes.append(
            (
                batch["input_ids"].numel(),
                int(batch["image_grid_thw"].prod(1).sum()) // 4 if pictures else 0,
            )
        )
        return hidden(self, batch, *rest)

    monkeypatch.setattr(VLM, "hidden", spy)
    rng, rollouts, (longest, budget) = (
        random.Random(0),
        [],
        (90, 4096) if groups == 16 else (20, 120),
    )
    for g in range(groups):
        image = (
            [Image.frombytes("RGB", (128, 128), rng.randbytes(3 * 128 * 128))] if pictures else []
        )
        prompt = policy.encode("how many?", image)
        for advantage in (1.0, -1.0):
            tokens = [rng.randrange(20, 200) for _ in range(longest)]
            rollouts.append(Rollout(prompt, tokens, [0.0] * longest, advantage, group=g))
    optimizer = make_optimizer(policy)
    with Allocated(policy, actor) as allocated:
        for _ in range(2):  # the moments are there from the second on
            train_step(policy, actor, rollouts, optimizer, token_budget=budget)
    m = memory(
        measure(policy.config),
        lora=lora,
        tokens=max(t for t, _ in passes),
        seen=max(p for _, p in passes),
        checkpointing=checkpointing,
    )
    print(
        {k: round(v / 1e6, 1) for k, v in m.items()},
        "measured",
        round(allocated.peak / 1e6, 1),
        "in",
        len(passes),
        "passes",
    )
    assert 0.9 < allocated.peak / m["training"] < 1.06


def test_a_slot_is_what_the_engine_reserves(tmp_path, monkeypatch):
    model, length = (
        VLM.load(
            make_checkpoint(tmp_path / "model", hidden=64, layers=3), device="cpu", dtype="bfloat16"
        ),
        200,
    )
    slot = memory(measure(model.config), length=length)["slot"]
    assert slot == 3 * 2 * 2 * 16 * length * 2 + 24 * len(model.head)
    for free, slots in ((5.01, 5), (4.99, 4)):
        monkeypatch.setattr(flash, "free_bytes", lambda device: int(free * slot / 0.9))
        assert slots_that_fit(model, 99, length) == slots


def test_presets_fit_the_machines_they_are_named_after():
    """By the formula, RESERVE included: the models that a preset is said to be for."""
    models = {
        "1x24gb": ("Qwen2-VL-2B", "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3-VL-4B"),
        "1x48gb": ("Qwen2-VL-2B", "Qwen3-VL-2B"),
        "1x80gb": ("Qwen2-VL-2B", "Qwen3-VL-2B"),
        "8x80gb": tuple(SHAPES),
    }
    for preset, names in models.items():
        for name in names:
            m = needs(PRESETS[preset][0], measure(read_config(name)), int(preset[0]))
            assert m["least"] < 0.97 * CARDS[preset[2:]], (preset, name, m)
            assert fitting(m, CARDS[preset[2:]]) >= 8, (preset, name)


@pytest.mark.parametrize(
    "model, preset, card, gigabytes, slots",
    [
        ("Qwen2-VL-2B", "1x48gb", "48gb", 46, 64),
        ("Qwen2-VL-2B", "1x24gb", "16gb", 8, 32),
        ("Qwen3-VL-8B", "1x24gb", "48gb", 24, 32),
        ("Qwen3-VL-8B", "8x80gb", "80gb", 61, 32),
    ],
)
def test_what_the_readme_says_of_2b_and_8b(model, preset, card, gigabytes, slots):
    m = needs(PRESETS[preset][0], measure(read_config(model)), int(preset[0]))
    assert (round(m["least"] / 1e9), fitting(m, CARDS[card])) == (gigabytes, slots)


def test_the_readme_has_the_tables_of_the_code(capsys):
    plan_module.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert (
        len(rows) == 2 * (2 + len(SHAPES))
        and "\n".join(rows[:10]) in README
        and "\n".join(rows[10:]) in README
    )


def test_work_of_the_paper_by_hand():
    rows = work(PAPER)
    assert rows["P"] == dict(
        proposals=20 * 18 * 4,
        codes=20 * 72 * 4,
        answers=20 * 288 * 10,
        pictures=20 * 288,
        updates=20,
    )
    assert rows["C"] == dict(
        proposals=3304,
        codes=3304 * 4 + 20 * 256 * 4,
        answers=20 * 1024 * 10,
        pictures=3304 * 4 + 20 * 1024,
        updates=80,
    )
    assert rows["S"] == dict(
        proposals=5000, codes=5000, answers=5000 * 20 + 20 * 512 * 8, pictures=5000, updates=80
    )


def test_no_prompt_is_longer_than_what_it_quotes_and_its_template():
    """A prompt needs no limit of its own: the proposal in it was cut at --proposal-tokens, the picture at --max-pixels."""
    model, limit = VLM.load("tiny", device="cpu"), 96
    prompts = [model.encode(fill(model.prompts["proposer"], topic=topic)) for topic in TOPICS]
    fields, longest = dict.fromkeys(rewards.BLOCKS, ""), 0
    template = len(model.encode(fill(model.prompts["coder"]["svg"], **fields)).tokens)
    for group in generate.generate(model, prompts, n=16, max_new_tokens=limit, seed=1):
        for reply in group:
            if proposal := rewards.parse_proposal(reply.text):
                longest = max(
                    longest,
                    len(model.encode(fill(model.prompts["coder"]["svg"], **vars(proposal))).tokens),
                )
    assert template + 20 < longest <= template + limit
    for width, height in ((4000, 3000), (100, 1), (1, 190), (5000, 26), (10_000, 10_000)):
        rows, columns = smart_resize(height, width, 28, PAPER.min_pixels, PAPER.max_pixels)
        assert rows * columns <= PAPER.max_pixels


@pytest.mark.parametrize(
    "gpus, preset, lines",
    [(0, "paper", ("1 GPU", "30.9", "M tokens")), (8, "8x80gb", ("8 GPUs", "gathered"))],
)
def test_a_dry_run_needs_no_network_and_says_why_it_does_not_fit(
    gpus, preset, lines, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(
        plan_module.os, "sysconf", lambda name: {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 4096}[name]
    )  # 17 GB
    with pytest.raises(SystemExit) as stop:
        mmzero.main(
            ["--model", "Qwen2-VL-2B", "--preset", preset, "--dry-run", *[str(gpus)] * bool(gpus)]
        )
    assert "does not fit" in str(stop.value) and "\n" not in str(stop.value)
    text = capsys.readouterr().out
    assert "2,209.0: vision 665.3, language 1,543.7, head tied" in text and all(
        line in text for line in lines
    )


@pytest.mark.parametrize(
    "card, reason", [(85e9, None), (40e9, "GB per GPU are needed, 40.0 are there")]
)
def test_it_fits_or_not_by_the_card(card, reason, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=card)
    )
    monkeypatch.setattr(plan_module.os, "sysconf", lambda name: 2**20)  # 1 TB
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e12))
    found = plan(replace(PRESETS["1x48gb"][0], model="Qwen2-VL-2B"))
    assert found is None if reason is None else reason in found
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e10))
    assert reason or "10.0 are there" in plan(replace(PRESETS["1x48gb"][0], model="Qwen2-VL-2B"))


def test_tiny_fits_on_a_cpu(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        mmzero.main(["--dry-run"])
    assert stop.value.code is None and "it fits this machine" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl_moe", "gemma3"])
def test_a_dry_run_of_another_family_is_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(
        SystemExit,
        match=f"'{kind}'; supported are Qwen2-VL, Qwen2.5-VL .with MiMo-VL. and Qwen3-VL",
    ):
        mmzero.main(["--model", str(tmp_path), "--dry-run"])


def test_a_folder_counts_before_the_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "Qwen2-VL-2B", "qwen3_vl")
    assert read_config("Qwen2-VL-2B").model_type == "qwen3_vl"
