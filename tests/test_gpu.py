"""The GPU against the CPU, in float32: `python -m pytest -m gpu tests/test_gpu.py -n 0`."""

import pytest
import torch
from helpers_models import make_checkpoint, picture

from generate import Engine, generate
from support import flash
from support.checkpoint import FAMILIES
from support.lora import add_lora
from vlm import VLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    flash.release()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: make_checkpoint(root / family, family) for family in FAMILIES}


def load(folder, device, lora=False):
    vlm = VLM.load(folder, device=device, dtype="float32")
    if lora:
        add_lora(vlm, 3, alpha=6.0)
        generator = torch.Generator().manual_seed(1)
        state = {}
        for name, weight in vlm.state().items():
            state[name] = weight + 0.2 * torch.randn(weight.shape, generator=generator)
        vlm.load_state(state)
    # Many tokens end a reply, so that lengths differ.
    vlm.eos_ids = tuple(range(100, 125))
    return vlm


def replies_of(vlm, **settings):
    texts = ["hello", "draw a circle " * 6, "see or tell", "what?"]
    prompts = [vlm.encode(text) for text in texts]
    prompts += [vlm.encode("how many bars?", [picture(50 + i, 64)]) for i in range(3)]
    settings = dict(n=4, max_new_tokens=24, seed=7, slots=9) | settings
    return [reply for group in generate(vlm, prompts, **settings) for reply in group]


SAMPLERS = {
    "greedy": dict(temperature=0),
    "sampled": dict(temperature=1.1),
    "top-p": dict(temperature=0.8, top_p=0.9),
    "top-k": dict(temperature=1.0, top_k=20, top_p=0.95),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_cpu(folders, family, sampler):
    here, there = (
        replies_of(load(folders[family], device), **SAMPLERS[sampler]) for device in ("cpu", "cuda")
    )
    assert len({len(reply.tokens) for reply in here}) > 3
    # Sums come out a little differently: a draw that falls between two tokens may take the other.
    equal = [(a, b) for a, b in zip(here, there, strict=True) if a.tokens == b.tokens]
    assert len(equal) >= len(here) - 1
    for a, b in equal:
        assert a.finished == b.finished
        assert a.full_logps == pytest.approx(b.full_logps, rel=1e-3, abs=1e-3)


def test_tokens_with_adapters(folders):
    folder = folders["qwen2_vl"]
    here, there = (replies_of(load(folder, device, lora=True)) for device in ("cpu", "cuda"))
    equal = sum(a.tokens == b.tokens for a, b in zip(here, there, strict=True))
    assert equal >= len(here) - 1


def test_graphs_are_kept_and_see_new_weights(folders):
    """A second call captures nothing; after `load_state` it samples as the new weights do."""
    for lora in (False, True):
        vlm, fresh = (load(folders["qwen2_vl"], "cuda", lora) for _ in range(2))
        first = replies_of(vlm)
        engine = flash.KEPT[vlm].engine
        graphs = dict(engine.graphs.graphs)
        assert graphs and replies_of(vlm) == first
        state = {name: 1.3 * weight for name, weight in vlm.state().items()}
        for network in (vlm, fresh):
            network.load_state(state)
        changed = replies_of(vlm)
        assert flash.KEPT[vlm].engine is engine and engine.graphs.graphs == graphs
        assert changed != first
        assert [r.tokens for r in changed] == [r.tokens for r in replies_of(fresh)]


def test_out_of_memory_falls_back_to_half_the_slots(folders, monkeypatch, capsys):
    """The first engine finds less memory than was planned; the replies are the same."""
    vlm = load(folders["qwen2_vl"], "cuda")
    wanted = replies_of(vlm)
    flash.release()
    run, slots, taken = Engine.run, [], []

    def crowded(self, *work):
        slots.append(self.slots)
        taken.append(torch.cuda.memory_allocated())
        if len(slots) == 1:
            raise torch.cuda.OutOfMemoryError("no room")
        return run(self, *work)

    monkeypatch.setattr(Engine, "run", crowded)
    found = replies_of(vlm)
    assert slots == [9, 4] and "from now on 4 replies at a time" in capsys.readouterr().err
    # The first engine's memory was given back before the second was made.
    assert taken[1] < taken[0]
    assert [reply.tokens for reply in found] == [reply.tokens for reply in wanted]
