"""The plan of a run: parameters counted, memory held against what the code allocates, refusals."""

import functools
import json
import random
import re
import sys
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
import mmzero
import rewards
from grpo import Rollout, make_optimizer, train_step
from prompts import TOPICS, fill
from support import flash
from support.checkpoint import FAMILIES
from support.flash import slots_that_fit
from support.lora import add_lora, twin
from support.settings import PAPER, PRESETS, parse
from tools import plan as planning
from tools.plan import CARDS, SHAPES, fitting, measure, memory, needs, read_config, work
from vlm import VLM, smart_resize

ROOT = Path(planning.__file__).parent.parent
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


@functools.cache
def network_of(name):
    return measure(read_config(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(name):
    assert network_of(name).num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_a_folder_are_those_of_its_weights(tmp_path, family):
    folder = make_checkpoint(tmp_path / "model", family, tie=family != "qwen2_vl")
    network, model = measure(read_config(str(folder))), VLM.load(folder, device="cpu")
    assert planning.learnt(network, 0) == sum(p.numel() for p in model.model.parameters())
    add_lora(model, 3, 8.0)
    assert planning.learnt(network, 3) == sum(w.numel() for w in model.weights().values())


# ------------------------------------------------------------------ the formula against real steps


def zeros_of(function, args):
    """What takes minutes in bf16 on a CPU is not computed: its results are zeros of the right size.
    What is allocated does not depend on the numbers. None: `function` is to be called."""
    aten = torch.ops.aten
    if function is aten.mm.default:
        return args[0].new_zeros(args[0].shape[0], args[1].shape[1])
    if function is aten.addmm.default:
        return args[1].new_zeros(args[1].shape[0], args[2].shape[1])
    if function is aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        return tuple(torch.zeros_like(tensor) for tensor in args[1:4])
    if function is aten.convolution_backward.default:
        bias = args[0].new_zeros(args[0].shape[1])
        found = torch.zeros_like(args[1]), torch.zeros_like(args[2]), bias
        return tuple(zeros if wanted else None for zeros, wanted in zip(found, args[-1]))
    return None


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that live, and their peak: what an allocator has to hand out."""

    def __init__(self, *models):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, WeakIdKeyDictionary()
        for model in models:
            for p in model.model.parameters():
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
        result = zeros_of(function, args)
        if result is None:
            result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        return result


@pytest.fixture
def autocast_of_a_gpu(monkeypatch):
    """bf16 compute on float32 masters, wherever the project asks for autocast on a GPU only."""
    real = torch.autocast

    def autocast(*args, enabled=True, **options):
        asker = sys._getframe(1).f_globals["__name__"]
        ours = not asker.startswith(("torch", "transformers"))
        return real(*args, enabled=enabled or ours, **options)

    monkeypatch.setattr(torch, "autocast", autocast)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """family -> a folder: 6 times as wide inside as outside, as the real ones are."""
    root = tmp_path_factory.mktemp("wide")

    @functools.cache
    def folder(family):
        return make_checkpoint(root / family, family, std=0.02, hidden=128, layers=8, inner=768)

    return folder


def make_rollouts(policy, groups, pictures, longest):
    rng, rollouts = random.Random(0), []
    for group in range(groups):
        images = []
        if pictures:
            images = [Image.frombytes("RGB", (128, 128), rng.randbytes(3 * 128 * 128))]
        prompt = policy.encode("how many?", images)
        for advantage in (1.0, -1.0):
            tokens = [rng.randrange(20, 200) for _ in range(longest)]
            rollouts.append(Rollout(prompt, tokens, [0.0] * longest, advantage, group=group))
    return rollouts


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
    wide, monkeypatch, autocast_of_a_gpu, family, groups, pictures, checkpointing, lora
):
    """The peak of real steps. 4 groups are little beside the weights, and come in two passes: a
    bf16 copy of all weights, kept through a pass as autocast would, is seen by the second."""
    actor = VLM.load(wide(family), device="cpu", dtype="bfloat16")
    if lora:
        policy = twin(actor)
        add_lora(actor, lora, 8.0)
        add_lora(policy, lora, 8.0)
    else:
        policy = VLM.load(wide(family), device="cpu", dtype="float32")
    if checkpointing:
        policy.model.gradient_checkpointing_enable()
        policy.model.train()
    hidden, passes = VLM.hidden, []

    def spy(self, batch, *rest):
        patches = int(batch["image_grid_thw"].prod(1).sum()) if pictures else 0
        passes.append((batch["input_ids"].numel(), patches // 4))
        return hidden(self, batch, *rest)

    monkeypatch.setattr(VLM, "hidden", spy)
    longest, budget = (90, 4096) if groups == 16 else (20, 120)
    rollouts = make_rollouts(policy, groups, pictures, longest)
    optimizer = make_optimizer(policy, lr=1e-6, weight_decay=0.01)
    with Allocated(policy, actor) as allocated:
        for _ in range(2):  # the moments are there from the second on
            train_step(
                policy,
                actor,
                rollouts,
                optimizer,
                groups_per_update=groups,
                temperature=1.0,
                token_budget=budget,
                max_grad_norm=1.0,
            )
    needed = memory(
        measure(policy.config),
        lora=lora,
        tokens=max(tokens for tokens, _ in passes),
        seen=max(seen for _, seen in passes),
        checkpointing=checkpointing,
    )
    assert 0.9 < allocated.peak / needed["training"] < 1.06


def test_a_slot_is_what_the_engine_reserves(tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path / "model", hidden=64, layers=3)
    model, length = VLM.load(folder, device="cpu", dtype="bfloat16"), 200
    slot = memory(measure(model.config), length=length)["slot"]
    assert slot == 3 * 2 * 2 * 16 * length * 2 + flash.DRAW["cuda"] * len(model.lm_head)
    monkeypatch.setitem(flash.DRAW, "cpu", flash.DRAW["cuda"])
    for free, slots in ((5.01, 5), (4.99, 4)):
        there = int(free * slot / 0.9)
        monkeypatch.setattr(flash, "free_bytes", lambda device, there=there: there)
        assert slots_that_fit(model, 99, length) == slots


# ------------------------------------------------------------------------------- presets and tables


@pytest.mark.parametrize(
    "preset, models",
    [
        ("1x24gb", ["Qwen2-VL-2B", "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3-VL-4B"]),
        ("1x48gb", ["Qwen2-VL-2B"]),
        ("1x80gb", ["Qwen2-VL-2B"]),
        ("8x80gb", list(SHAPES)),
    ],
)
def test_presets_fit_their_machines_and_the_readme_says_with_how_much(preset, models):
    settings, gpus, (_, card, _) = PRESETS[preset][0], int(preset[0]), CARDS[f"{preset[2:4]} GB"]
    found = [needs(settings, network_of(model), gpus) for model in models]
    gigabytes = {round(needed["least"] / 1e9) for needed in found}
    line = re.search(rf"^\| `{preset}` .*$", (ROOT / "README.md").read_text(), re.MULTILINE)[0]
    said = [int(number) for number in re.findall(r"\d+", line.rsplit("|", 2)[1])]
    assert said == sorted({min(gigabytes), max(gigabytes)})
    # With some room, and enough slots to be of use.
    for needed in found:
        assert needed["least"] < 0.97 * card and fitting(needed, card) >= 8


def test_the_page_has_the_table_of_the_code(capsys, monkeypatch):
    monkeypatch.setattr(planning, "read_config", lambda name: name)
    monkeypatch.setattr(planning, "measure", network_of)
    monkeypatch.setattr(sys, "argv", ["plan.py"])
    planning.main()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2 * (2 + len(SHAPES)) + 1
    page = (ROOT / "docs/memory.md").read_text()
    assert all(table.strip() in page for table in printed.split("\n\n"))


def test_a_role_that_is_never_trained_makes_nothing():
    rows = work(replace(PAPER, coder_steps=0, solver_steps=0))
    assert rows["P"] == work(PAPER)["P"] and rows["C"] == rows["S"] == [0, 0, 0, 0]


def test_work_of_the_paper_by_hand():
    assert work(PAPER) == {
        "P": [20 * 18 * 4, 20 * 72 * 4, 20 * 288 * 10, 20],
        "C": [3304, 3304 * 4 + 20 * 256 * 4, 20 * 1024 * 10, 80],
        "S": [5000, 5000, 5000 * 20 + 20 * 512 * 8, 80],
    }


def test_no_prompt_is_longer_than_what_it_quotes_and_its_template():
    """A prompt needs no limit of its own: the proposal in it was cut at --proposal-tokens, the
    picture at --max-pixels."""
    model, limit = VLM.load("tiny", device="cpu"), 96
    template = model.prompts["coder"]["svg"]
    empty = dict.fromkeys(rewards.BLOCKS, "")
    shortest, longest = len(model.encode(fill(template, **empty)).tokens), 0
    prompts = [model.encode(fill(model.prompts["proposer"], topic=topic)) for topic in TOPICS]
    for group in generate.generate(model, prompts, n=16, max_new_tokens=limit, seed=1):
        for reply in group:
            proposal = rewards.parse_proposal(reply.text)
            if proposal:
                prompt = model.encode(fill(template, **vars(proposal)))
                longest = max(longest, len(prompt.tokens))
    assert shortest + 20 < longest <= shortest + limit
    for width, height in ((4000, 3000), (100, 1), (1, 190), (5000, 26), (10_000, 10_000)):
        rows, columns = smart_resize(height, width, 28, PAPER.min_pixels, PAPER.max_pixels)
        assert rows * columns <= PAPER.max_pixels


# ------------------------------------------------------------------------- does it fit, or why not


@pytest.mark.parametrize(
    "gpus, preset, lines",
    [(0, "paper", ("1 GPU", "30.9", "M tokens")), (8, "8x80gb", ("8 GPUs", "7.7"))],
)
def test_a_dry_run_needs_no_network_and_says_why_it_does_not_fit(
    gpus, preset, lines, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    pages = {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 4096}  # 17 GB
    monkeypatch.setattr(planning.os, "sysconf", pages.get)
    number = [str(gpus)] if gpus else []
    with pytest.raises(SystemExit) as stop:
        mmzero.main(["--model", "Qwen2-VL-2B", "--preset", preset, "--dry-run", *number])
    assert "does not fit" in str(stop.value) and "\n" not in str(stop.value)
    text = capsys.readouterr().out
    assert "Qwen2-VL-2B, 2,209.0 M parameters, all weights" in text
    assert all(line in text for line in lines)


def with_cards(monkeypatch, *sizes, capability=(9, 0)):
    """A machine that has these GPUs, in bytes."""
    major, minor = capability
    facts = [SimpleNamespace(name="T", total_memory=s, major=major, minor=minor) for s in sizes]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(facts))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: facts[number])


@pytest.fixture
def machine(monkeypatch):
    """One card of 85 GB, much memory, an empty disk."""
    facts = {"SC_PHYS_PAGES": 1e12, "SC_PAGE_SIZE": 1, "free": 1e12}
    with_cards(monkeypatch, 85e9)
    monkeypatch.setattr(planning.os, "sysconf", lambda name: facts[name])
    disk = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(free=facts["free"]))
    monkeypatch.setattr(planning, "shutil", disk)
    return facts


TIGHT = replace(PRESETS["1x48gb"][0], model="Qwen2-VL-2B")


def test_what_fits_is_said_with_its_slots(machine, capsys):
    planning.plan(TIGHT)
    assert "it fits this machine, with 388 slots\n" in capsys.readouterr().out
    # A step reads all weights, for however few replies.
    planning.plan(replace(TIGHT, slots=4))
    text = "with 4 slots; that few sample about 4 times as slowly as 16: shorter replies"
    assert text in capsys.readouterr().out


def test_pinned_memory_comes_in_powers_of_two():
    network = SimpleNamespace(parameters=lambda: map(torch.empty, (1, 3, 1000)))
    assert planning.rounding(network) == 0 + 4 + 96
    network = network_of("Qwen2-VL-2B")
    least = needs(TIGHT, network, 1, pinned=False)["host"]
    assert needs(TIGHT, network, 1)["host"] == least + 3 * planning.rounding(network)


def test_what_does_not_fit_is_named(machine, monkeypatch):
    machine["free"] = 1e10
    with pytest.raises(ValueError, match="does not fit: .* GB of disk are needed, 10.0 are there"):
        planning.plan(TIGHT)
    machine["SC_PHYS_PAGES"] = 5e10
    with pytest.raises(ValueError, match="60.8 GB of memory are needed, 50.0 are there"):
        planning.plan(TIGHT)
    with_cards(monkeypatch, 40e9)
    with pytest.raises(ValueError, match="46.8 GB per GPU are needed, 40.0 are there: try"):
        planning.plan(TIGHT)


def test_a_card_that_this_pytorch_does_not_see_is_said(monkeypatch, tmp_path):
    with_cards(monkeypatch)
    (tmp_path / "version").write_text("NVRM version: 470")
    monkeypatch.setattr(planning, "NVIDIA", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for built, reason in ((None, "is built for the CPU alone"), ("13.0", "is built for CUDA 13.0")):
        monkeypatch.setattr(torch.version, "cuda", built)
        with pytest.raises(SystemExit, match=f"an NVIDIA card is here, and PyTorch .* {reason}"):
            mmzero.main(["--model", "Qwen2-VL-2B", "--out", str(tmp_path / "run")])
        # Also where a preset is named.
        with pytest.raises(ValueError, match=reason):
            planning.before_weights(TIGHT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert planning.cards_here() == []
    monkeypatch.setattr(planning, "NVIDIA", tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert planning.cards_here() == []


def test_a_run_of_a_real_model_says_its_plan_before_weights_are_loaded(
    machine, monkeypatch, capsys, tmp_path
):
    said = []

    def stop(load, settings):
        said.append(capsys.readouterr())
        raise ValueError("weights would be loaded now")

    monkeypatch.setattr(mmzero, "load_networks", stop)
    monkeypatch.setattr(mmzero, "check_model", lambda settings: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flags = ["--model", "Qwen2-VL-2B", "--preset", "1x48gb", "--questions", "0"]
    for number, free in enumerate((1e12, 1e10)):
        machine["free"] = free
        with pytest.raises(SystemExit, match="weights would be loaded now"):
            mmzero.main([*flags, "--out", str(tmp_path / f"run{number}")])
    good, bad = said
    assert "it fits this machine" in good.out and "First --explain" in good.out and not good.err
    assert "phase P, at most 720 proposals" in good.out
    # The formula may err: the run begins all the same.
    assert "GB of disk are needed, 10.0 are there; the run begins all the same" in bad.err


def test_tiny_fits_on_a_cpu(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    mmzero.main(["--dry-run"])
    assert "it fits this machine" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl_moe", "gemma3"])
def test_a_dry_run_of_another_family_is_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    families = "Qwen2-VL, Qwen2.5-VL .with MiMo-VL. and Qwen3-VL"
    with pytest.raises(SystemExit, match=f"'{kind}'; supported are {families}"):
        mmzero.main(["--model", str(tmp_path), "--dry-run"])


def test_a_folder_counts_before_the_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "Qwen2-VL-2B", "qwen3_vl")
    assert read_config("Qwen2-VL-2B").model_type == "qwen3_vl"


# ---- the preset that is chosen -------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, card, gpus, preset",
    [
        ("Qwen2-VL-2B", "24 GB", 1, "1x24gb"),
        ("Qwen2-VL-2B", "80 GB", 1, "1x80gb"),
        ("Qwen3-VL-8B", "80 GB", 8, "8x80gb"),
    ],
)
def test_auto_takes_the_largest_that_fits(model, card, gpus, preset, monkeypatch, capsys):
    _, size, _ = CARDS[card]
    with_cards(monkeypatch, *[int(size)] * gpus)
    settings = planning.auto({"model": model}, gpus)
    said = capsys.readouterr().out
    assert f"by hand: --preset {preset} --token-budget {settings.token_budget}\n" in said
    assert settings == replace(PRESETS[preset][0], model=model, token_budget=settings.token_budget)
    needed = needs(settings, network_of(model), gpus)["least"]
    assert needed <= 0.9 * size and f"auto: {needed / 1e9:.1f} of " in said
    # The next size of everything would not fit.
    longer = replace(settings, token_budget=2 * settings.token_budget)
    too_long = needs(longer, network_of(model), gpus)["least"] > 0.9 * size
    assert too_long or settings.token_budget == 65536
    # And what is printed chooses the same by hand.
    by_hand = said.split("by hand: ")[1].split()
    assert parse(["--model", model, *by_hand])[0] == settings


def test_auto_keeps_what_is_given_and_counts_the_gpus_of_the_run(monkeypatch, capsys):
    with_cards(monkeypatch, *[int(85e9)] * 8)
    given = {"model": "Qwen2-VL-2B", "lr": 3e-6, "token_budget": 5000}
    assert planning.auto(given) == replace(PRESETS["1x80gb"][0], **given)  # no torchrun: one GPU
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert planning.auto(given) == replace(PRESETS["8x80gb"][0], **given)
    assert "on 8 GPU; by hand: --preset 8x80gb\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "card, capability, reason",
    [
        (4e9, (9, 0), "Qwen3-VL-8B fits no preset on 1 of these GPUs, which have 4.0 GB"),
        (16e9, (7, 5), "T has no bfloat16, which training needs"),
    ],
)
def test_auto_refuses_in_one_line_before_weights_are_fetched(
    card, capability, reason, monkeypatch, tmp_path
):
    with_cards(monkeypatch, int(card), capability=capability)
    monkeypatch.setattr("support.checkpoint.fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(SystemExit, match=reason) as stop:
        mmzero.main(["--model", "Qwen3-VL-8B", "--out", str(tmp_path / "run")])
    assert "\n" not in str(stop.value) and not (tmp_path / "run").exists()


def test_without_a_gpu_and_for_the_tiny_base_auto_is_what_it_was(monkeypatch, capsys):
    with_cards(monkeypatch)
    assert parse(["--model", "Qwen2-VL-2B"], planning.auto)[0] == replace(
        PAPER, model="Qwen2-VL-2B"
    )
    assert "no GPU here" in capsys.readouterr().out
    assert (
        parse([], planning.auto)[0]
        == parse(["--preset", "auto"], planning.auto)[0]
        == PRESETS["tiny"][0]
    )
    assert capsys.readouterr().out == ""
