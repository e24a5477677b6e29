"""Training on a GPU against the CPU. `pytest -m gpu` on a machine that has one; else skipped."""

import json

import pytest
import torch
from helpers_models import make_checkpoint
from oracle import train_step
from test_grpo import FAMILIES, Recorder, make_rollouts

import grpo
import mmzero
from support import packed
from support.lora import add_lora, twin
from vlm import VLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture
def float32(monkeypatch):
    """Without autocast, to compare with a CPU to the last digits."""
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: real("cpu", enabled=False))


def networks(folder, device, lora=0):
    """-> policy, and a reference that differs from it: else the KL would be 0."""
    reference = VLM.load(folder, device=device, dtype="float32")
    policy = VLM.load(folder, device=device, dtype="float32")
    if lora:
        policy = twin(reference)
        for vlm in (reference, policy):
            add_lora(vlm, lora, 2.0 * lora)
    with torch.no_grad():
        for weight in reference.weights().values():
            pattern = torch.arange(weight.numel(), dtype=torch.float32) % 7 - 3
            weight += 0.003 * pattern.view(weight.shape).to(device)
    return policy, reference


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_cpu(family, lora, tmp_path, float32):
    folder, found = make_checkpoint(tmp_path / "m", family, std=0.15), {}
    for device in ("cpu", "cuda"):
        policy, reference = networks(folder, device, lora)
        rollouts = make_rollouts(policy, groups=4, longest=80)
        recorder = Recorder(policy)
        statistics = train_step(policy, reference, rollouts, recorder, token_budget=400)
        found[device] = statistics, recorder.seen[0].cpu()
    (cpu, gradient), (cuda, gradient2) = found["cpu"], found["cuda"]
    for name in ("loss", "kl", "entropy", "grad_norm", "approx_kl"):
        assert cuda[name] == pytest.approx(cpu[name], rel=1e-3, abs=1e-5), name
    scale = gradient.abs().max()
    assert scale > 0.01 and cpu["kl"] > 0
    torch.testing.assert_close(gradient2 / scale, gradient / scale, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_the_step_is_nearly_that_of_float32(family, tmp_path, monkeypatch):
    """As a run makes it: autocast, and flash kernels where the card has them."""
    folder, found = make_checkpoint(tmp_path / "m", family, std=0.15), []
    for _ in range(2):
        policy, reference = networks(folder, "cuda")
        rollouts = make_rollouts(policy, groups=4, longest=80)
        recorder = Recorder(policy)
        found.append((train_step(policy, reference, rollouts, recorder), recorder.seen[0].cpu()))
        monkeypatch.setattr(packed, "has_kernels", lambda device, dtype: False)
    (fast, gradient), (slow, gradient2) = found
    assert fast["loss"] == pytest.approx(slow["loss"], rel=0.1, abs=0.05)
    cosine = torch.cosine_similarity(gradient.flatten(), gradient2.flatten(), dim=0)
    assert cosine > 0.98, cosine


def test_a_step_that_runs_out_of_memory_is_made_in_smaller_passes(tmp_path, monkeypatch, capsys):
    folder = make_checkpoint(tmp_path / "m", std=0.15)
    policy, reference = networks(folder, "cuda")
    rollouts, original, calls = make_rollouts(policy, groups=4), grpo.policy_pass, []

    def full(*args, **settings):
        calls.append(args)
        if len(calls) == 1:
            # More than the card has.
            size = torch.cuda.get_device_properties(0).total_memory + 2**30
            torch.empty(size, dtype=torch.uint8, device="cuda")
        return original(*args, **settings)

    monkeypatch.setattr(grpo, "policy_pass", full)
    statistics = train_step(policy, reference, rollouts, Recorder(policy), token_budget=1000)
    assert statistics["updates"] == 1 and policy.token_limit == 500
    assert "out of GPU memory" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [0, 4])
def test_a_run_of_two_steps(lora, tmp_path):
    """The default loop, small: it ends, it went on the GPU, and its figures are finite."""
    flags = (
        "--iterations 1 --steps 2 --proposer-prompts 4 --coder-proposals 16 --coder-prompts 4 "
        "--coder-update 4 --solver-proposals 48 --solver-prompts 4 --solver-update 4 "
        f"--questions 8 --probe 8 --workers 1 --lora {lora} --out {tmp_path / 'run'}"
    )
    run = mmzero.main(flags.split())
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert len(steps) >= 4 and all(line["logp_gap"] < 0.5 for line in steps)
    assert all(torch.isfinite(torch.tensor(line["grad_norm"])) for line in steps)
    assert len(run.evaluations()) == 2
