"""LoRA against the plain network, and against its own merged weights."""

import json
from dataclasses import replace

import pytest
import torch
from helpers_models import make_checkpoint
from oracle import score, token_logps, train_step
from safetensors.torch import load_file
from test_grpo import make_rollouts

import mmzero
from generate import generate
from grpo import Rollout, make_optimizer
from support.lora import LoRALinear, add_lora, merged_state, twin
from support.run_folder import Phase, Run
from vlm import VLM

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    return make_checkpoint(tmp_path / "base", request.param, std=0.15)


def shaken(folder, rank=3):
    """A network with adapters that do something."""
    vlm = VLM.load(folder, device="cpu")
    add_lora(vlm, rank, alpha=6.0)
    for weight in vlm.weights().values():
        weight.data += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return vlm


def test_with_b_zero_nothing_changes(folder):
    base, vlm = VLM.load(folder, device="cpu"), VLM.load(folder, device="cpu")
    add_lora(vlm, 4, 8.0)
    rollouts = make_rollouts(base, groups=2, size=2)
    assert all(torch.equal(a, b) for a, b in zip(score(base, rollouts), score(vlm, rollouts)))
    prompts = [r.prompt for r in rollouts[::2]]
    found = []
    for network in (base, vlm):
        replies = generate(network, prompts, n=2, max_new_tokens=8)
        found.append([[r.tokens for r in group] for group in replies])
    assert found[0] == found[1]


def test_all_linear_layers_of_the_language_model_and_nothing_else(folder):
    vlm = shaken(folder)
    wrapped = {name for name, module in vlm.model.named_modules() if isinstance(module, LoRALinear)}
    layers = len(vlm.model.model.language_model.layers)
    assert len(wrapped) == 7 * layers and all("language_model.layers" in name for name in wrapped)
    projections = {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.split(".")[-1] for name in wrapped} == projections


def test_merged_is_unmerged(folder, tmp_path):
    vlm = shaken(folder)
    vlm.save(tmp_path / "saved")
    # A plain checkpoint: the class knows no adapters.
    plain = VLM.load(tmp_path / "saved", device="cpu")
    rollouts = make_rollouts(vlm, groups=2, size=2)
    ours, theirs = score(vlm, rollouts), score(plain, rollouts)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    base = score(VLM.load(folder, device="cpu"), rollouts)
    # And they did something.
    assert max((a - b).abs().max() for a, b in zip(ours, base)) > 0.05
    assert merged_state(vlm.model).keys() == plain.state().keys()
    adapters = load_file(tmp_path / "saved/adapter.safetensors")
    meta = json.loads((tmp_path / "saved/adapter.json").read_text())
    assert meta == {"rank": 3, "alpha": 6.0}
    again = VLM.load(folder, device="cpu")
    add_lora(again, meta["rank"], meta["alpha"])
    again.load_state(adapters)
    assert all(torch.equal(a, b) for a, b in zip(ours, score(again, rollouts)))


def test_only_adapters_get_gradients_and_move(folder):
    vlm = shaken(folder)
    before = {name: p.detach().clone() for name, p in vlm.model.named_parameters()}
    seen, optimizer = {}, make_optimizer(vlm, lr=1e-2)
    step = optimizer.step

    def watch():
        seen.update({n: p.grad is not None for n, p in vlm.model.named_parameters()})
        step()

    optimizer.step = watch
    rollouts = make_rollouts(vlm, groups=2, size=3)
    assert train_step(vlm, None, rollouts, optimizer, kl=0)["updates"] == 1
    for name, weight in vlm.model.named_parameters():
        assert (".lora_" in name) == seen[name] == (not torch.equal(weight, before[name])), name


def test_the_gradient_is_that_of_the_merged_weights(folder, tmp_path):
    """y = (W + s B A) x:  dL/dB = s dL/dW A^T,  dL/dA = s B^T dL/dW."""
    vlm = shaken(folder)
    vlm.save(tmp_path / "saved")
    plain = VLM.load(tmp_path / "saved", device="cpu")
    bundles = [[r] for r in make_rollouts(vlm, groups=1, size=2)]
    tokens = sum(len(bundle[0].tokens) for bundle in bundles)
    for network in (vlm, plain):
        token_logps(network, bundles, weights=torch.ones(tokens))[2].backward()
    whole = dict(plain.model.named_parameters())
    for name, module in vlm.model.named_modules():
        if isinstance(module, LoRALinear):
            dw = whole[f"{name}.weight"].grad
            scale = dw.abs().max() * 2
            near = dict(atol=2e-4, rtol=1e-3)
            db, da = 2 * dw @ module.lora_A.T, 2 * module.lora_B.T @ dw
            torch.testing.assert_close(module.lora_B.grad / scale, db / scale, **near)
            torch.testing.assert_close(module.lora_A.grad / scale, da / scale, **near)


def test_twins_share_the_base_and_not_the_adapters(folder):
    actor = VLM.load(folder, device="cpu")
    policy = twin(actor)
    for vlm in (actor, policy):
        add_lora(vlm, 2, 4.0)
    a, b = dict(actor.model.named_parameters()), dict(policy.model.named_parameters())
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] is b[name]) == (".lora_" not in name)
        # The same beginning.
        assert torch.equal(a[name], b[name])
    b["model.language_model.layers.0.self_attn.q_proj.lora_B"].data += 1
    prompt = actor.encode("how many bars are red?")
    rollout = [Rollout(prompt, [20, 21], [0.0, 0.0])]
    assert not torch.equal(score(actor, rollout)[0], score(policy, rollout)[0])
    actor.load_state(policy.state())
    assert torch.equal(score(actor, rollout)[0], score(policy, rollout)[0])


def test_two_steps_with_adapters(tmp_path, capsys):
    from test_mmzero import LITTLE, evolve

    settings = replace(LITTLE, lora=4, out=str(tmp_path / "run"))
    run = evolve(settings)
    base = VLM.load("tiny", device="cpu", dtype="float32").state()
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "step"]
    trained = {line["phase"] for line in steps if line["updates"]}
    assert "proposer" in trained
    for role in mmzero.ROLES:
        state = VLM.load(run.folder / "iter1" / role, device="cpu").state()
        changed = {name for name, weight in state.items() if not torch.equal(weight, base[name])}
        assert bool(changed) == (role in trained)
        assert all(n.split(".")[-2].endswith("_proj") for n in changed)
        assert (run.folder / f"iter1/{role}/adapter.safetensors").stat().st_size < 300_000
    # what a later start of the command begins with: the adapters, not the merged weights
    roles = mmzero.Roles(
        settings, {role: str(run.folder / "iter1" / role) for role in mmzero.ROLES}
    )
    saved = load_file(run.folder / "iter1/proposer/adapter.safetensors")
    assert saved.keys() == roles.weights["proposer"].keys()
    assert all(torch.equal(saved[n], w) for n, w in roles.weights["proposer"].items())
    roles.renderer.close()


def test_the_reference_is_the_adapters_of_the_phases_start(tmp_path):
    """Not the base, and not what the policy has become: the KL is 0 at a phase's first step, and
    above 0 later."""
    from test_mmzero import LITTLE

    settings = replace(LITTLE, lora=4, lr=1e-2, proposer_update=1, out=str(tmp_path / "run"))
    roles = mmzero.Roles(settings, {role: "tiny" for role in mmzero.ROLES})
    roles.renderer.close()
    start = {
        name: weight + 0.05 * torch.randn(weight.shape)
        for name, weight in roles.weights["proposer"].items()
    }
    # As after an iteration before.
    roles.weights["proposer"] = start
    roles.policy.load_state(start)
    optimizer = make_optimizer(roles.policy, lr=settings.lr, weight_decay=settings.weight_decay)
    phase, kls = Phase(Run(settings), 1, "proposer", roles.policy, optimizer), []
    prompts = [roles.proposer_prompt("spatial and geometric reasoning")]
    terms = [[{"reward": reward} for reward in (1.0, 0.0, 1.0, 0.0)]]
    for step in (1, 2):
        replies = roles.speak("proposer", prompts, 4, phase.seed(step), trained=True)
        statistics = roles.learn(phase, prompts, replies, terms)
        assert statistics["updates"] == 1 and statistics["logp_gap"] < 1e-3
        kls.append(statistics["kl"])
        assert roles.weights["proposer"] is start
        assert all(torch.equal(w, start[n]) for n, w in roles.actor.state().items())
    assert kls[0] == pytest.approx(0, abs=1e-6) and kls[1] > 1e-4
    assert any(not torch.equal(w, start[n]) for n, w in roles.policy.state().items())
