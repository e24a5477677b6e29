"""LoRA against the plain network, against its own merged weights, and as peft loads it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from helpers_models import for_the_library, make_checkpoint, picture
from oracle import score, token_logps
from safetensors.torch import load_file, save_file
from test_grpo import make_rollouts

import eval
import mmzero
from generate import generate
from grpo import Rollout, make_optimizer
from support.checkpoint import find_checkpoint
from support.lora import LoRALinear, add_lora, twin
from support.networks import load_networks
from support.run_folder import Phase, Run
from tools import measure
from tools.compare import fingerprint
from vlm import VLM

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture
def folder(request, tmp_path):
    """Of Qwen2-VL, or of the family that a test names."""
    return make_checkpoint(tmp_path / "base", getattr(request, "param", FAMILIES[0]), std=0.15)


of_each_family = pytest.mark.parametrize("folder", FAMILIES, indirect=True)


def shaken(folder, rank=3):
    """A network with adapters that do something."""
    vlm = VLM.load(folder, device="cpu")
    add_lora(vlm, rank, alpha=6.0)
    for weight in vlm.weights().values():
        weight.data += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return vlm


def merged(vlm, folder):
    """The plain network whose weights are W + alpha / r * B A."""
    plain = VLM.load(folder, device="cpu")
    layers = dict(plain.model.named_modules())
    for name, module in vlm.model.named_modules():
        if isinstance(module, LoRALinear):
            scale = vlm.lora["alpha"] / vlm.lora["rank"]
            layers[name].weight.data += (scale * module.lora_B @ module.lora_A).detach()
    return plain


@torch.no_grad()
def logits(vlm):
    """Those of a prompt with pictures, and the prompt as transformers takes it."""
    batch = vlm.collate([vlm.encode("how many bars are red?", [picture(50, 70), picture(60, 40)])])
    return vlm.hidden(batch) @ vlm.lm_head.T, for_the_library(batch)


@of_each_family
def test_all_linear_layers_of_the_language_model_and_nothing_else(folder):
    vlm = VLM.load(folder, device="cpu")
    before = logits(vlm)[0]
    add_lora(vlm, 3, alpha=6.0)
    wrapped = {name for name, module in vlm.model.named_modules() if isinstance(module, LoRALinear)}
    layers = len(vlm.model.model.language_model.layers)
    assert len(wrapped) == 7 * layers and all("language_model.layers" in name for name in wrapped)
    projections = {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.split(".")[-1] for name in wrapped} == projections
    # With B = 0 nothing changes.
    assert torch.equal(logits(vlm)[0], before)


@of_each_family
def test_merged_is_unmerged(folder):
    """To the trainer, and to the sampler."""
    vlm, base = shaken(folder), VLM.load(folder, device="cpu")
    plain, rollouts = merged(vlm, folder), make_rollouts(vlm, groups=2, size=2)
    ours, theirs, before = (score(network, rollouts) for network in (vlm, plain, base))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    # And they did something.
    assert max((a - b).abs().max() for a, b in zip(ours, before)) > 0.05
    prompts, tokens = [r.prompt for r in rollouts[::2]], []
    for network in (vlm, plain, base):
        replies = generate(network, prompts, n=2, max_new_tokens=12, seed=1)
        tokens.append([r.tokens for group in replies for r in group])
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_what_was_learnt(folder, tmp_path, dtype):
    """Also what is far below the last place of the base's weights."""
    vlm = VLM.load(folder, device="cpu", dtype=dtype)
    add_lora(vlm, 3, 6.0)
    for weight in vlm.weights().values():
        weight.data += 1e-6 * torch.randn(weight.shape)
    vlm.prompts = vlm.prompts | {"solver": "look: {question}"}
    vlm.save(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "prompts.json"}
    again = VLM.load(tmp_path / "saved", device="cpu", dtype=dtype)
    assert again.prompts == vlm.prompts and again.lora == vlm.lora == {"rank": 3, "alpha": 6.0}
    ours, theirs = vlm.state(), again.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(w, theirs[n]) and w.dtype == torch.float32 for n, w in ours.items())
    assert torch.equal(logits(vlm)[0], logits(again)[0])
    # Saved again, it names the same base.
    again.save(tmp_path / "again")
    config = [(tmp_path / name / "adapter_config.json").read_text() for name in ("saved", "again")]
    assert config[0] == config[1]


@of_each_family
def test_peft_and_transformers_load_them_on_the_base(folder, tmp_path):
    peft = pytest.importorskip("peft")
    vlm = shaken(folder)
    vlm.save(tmp_path / "saved")
    ours, batch = logits(vlm)
    base = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        assert (base(**batch).logits - ours).abs().max() > 0.05
        by_peft = peft.PeftModel.from_pretrained(base, tmp_path / "saved")
        assert sum("lora_" in name for name, _ in by_peft.named_parameters()) == len(vlm.weights())
        torch.testing.assert_close(by_peft(**batch).logits, ours, atol=1e-4, rtol=1e-4)
        # Transformers finds the base by the name in adapter_config.json.
        alone = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
        torch.testing.assert_close(alone(**batch).logits, ours, atol=1e-4, rtol=1e-4)
    # And the way back.
    by_peft.save_pretrained(tmp_path / "by peft")
    assert torch.equal(logits(VLM.load(tmp_path / "by peft", device="cpu"))[0], ours)


def test_the_base_is_found_by_a_name_that_lasts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_checkpoint(tmp_path / "base")
    for name, lasting in (("base", str(folder)), ("tiny", "tiny")):
        vlm = VLM.load(name, device="cpu")
        add_lora(vlm, 2, 4.0)
        vlm.save("saved")
        config = json.loads(Path("saved/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == lasting

    monkeypatch.setattr("support.checkpoint.fetch", lambda name, hub_id, patterns: folder)
    vlm = VLM.load("Qwen2-VL-2B", device="cpu")
    add_lora(vlm, 2, 4.0)
    assert vlm.base == "Qwen/Qwen2-VL-2B-Instruct"
    vlm.save("saved")
    assert VLM.load("saved", device="cpu").base == vlm.base and find_checkpoint("saved") == folder


def test_adapters_that_cannot_be_loaded_end_in_one_line(tmp_path):
    folder = make_checkpoint(tmp_path / "base")
    shaken(folder).save(tmp_path / "saved")
    file = tmp_path / "saved/adapter_config.json"
    config, weights = json.loads(file.read_text()), tmp_path / "saved/adapter_model.safetensors"

    def refusal(**changed):
        file.write_text(json.dumps(config | changed))
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            VLM.load(tmp_path / "saved", device="cpu")
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
        return str(error.value)

    for name in ("moved/base", "/moved/base"):
        text = refusal(base_model_name_or_path=name)
        assert "saved needs the base that its adapter_config.json names" in text and name in text
    assert "alpha / r" in refusal(use_rslora=True)
    # Not on all of our layers.
    state = load_file(weights)
    save_file({name: w for name, w in state.items() if "q_proj" in name}, weights)
    assert "is not in both" in refusal()
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "adapter_model.safetensors" in refusal()
    weights.unlink()
    assert "adapter_model.safetensors" in refusal()
    file.write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json is no JSON"):
        VLM.load(tmp_path / "saved", device="cpu")


@of_each_family
def test_the_gradient_is_that_of_the_merged_weights(folder):
    """y = (W + s B A) x:  dL/dB = s dL/dW A^T,  dL/dA = s B^T dL/dW; nothing else has one."""
    vlm = shaken(folder)
    plain = merged(vlm, folder)
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
    for name, weight in vlm.model.named_parameters():
        assert (".lora_" in name) == (weight.grad is not None), name


def test_twins_share_the_base_and_not_the_adapters(folder):
    actor = VLM.load(folder, device="cpu")
    add_lora(actor, 2, 4.0)
    policy = twin(actor)
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
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "step"]
    trained = {line["phase"] for line in steps if line["updates"]}
    assert "proposer" in trained
    # What a later start of the command begins with, and what anyone loads.
    folders = {role: str(run.folder / "iter1" / role) for role in mmzero.ROLES}
    roles = mmzero.Roles(settings, folders)
    roles.renderer.close()
    for role, folder in folders.items():
        vlm = VLM.load(folder, device="cpu")
        saved = vlm.state()
        assert bool(sum(w.count_nonzero() for n, w in saved.items() if n.endswith("lora_B"))) == (
            role in trained
        )
        assert Path(folder, "adapter_model.safetensors").stat().st_size < 300_000
        assert saved.keys() == roles.weights[role].keys()
        assert all(torch.equal(w, roles.weights[role][n]) for n, w in saved.items())


def test_eval_gives_the_figures_that_the_run_gave(tmp_path):
    from test_mmzero import LITTLE

    settings = replace(LITTLE, lora=4, probe=0, out=str(tmp_path / "run"))
    run = Run(settings)
    roles = mmzero.Roles(settings, {role: "tiny" for role in mmzero.ROLES})
    roles.renderer.close()
    learnt = roles.weights["solver"]
    generator = torch.Generator().manual_seed(0)
    learnt = {n: w + 0.02 * torch.randn(w.shape, generator=generator) for n, w in learnt.items()}
    roles.weights["solver"] = learnt
    questions = {kind: eval.charts(12, kind=kind) for kind in ("hard", "easy")}
    measure.measure(roles, run, 1, questions)
    roles.policy.load_state(learnt)
    roles.policy.save(run.folder / "iter1/solver")

    flags = ["--questions", "12", "--max-new-tokens", str(settings.answer_tokens)]
    models = ["--model", str(run.folder / "iter1/solver"), "--compare", "tiny"]
    eval.main([*models, *flags, "--out", str(tmp_path / "eval")])
    lines = (tmp_path / "eval/results.jsonl").read_text().splitlines()
    ours, base = (row for row in map(json.loads, lines) if row["set"] == "charts")
    (printed,) = run.evaluations()
    names = "sampled sampled_low sampled_high majority greedy unread questions n".split()
    assert [ours[name] for name in names] == [printed[name] for name in names]
    assert 0 < ours["sampled"] != base["sampled"]
    # What an evaluation keeps of this role is not taken for the base's, or another role's.
    assert fingerprint(str(run.folder / "iter1/solver")) != fingerprint("tiny")


def test_a_run_begins_with_the_adapters_of_another(tmp_path):
    from test_mmzero import LITTLE, evolve

    vlm = VLM.load("tiny", device="cpu")
    add_lora(vlm, 4, 8.0)
    for weight in vlm.weights().values():
        weight.data += 0.05 * torch.randn(weight.shape)
    vlm.save(tmp_path / "solver")
    settings = replace(LITTLE, model=str(tmp_path / "solver"), out=str(tmp_path / "run"))
    for lora, alpha in ((0, 8.0), (2, 8.0), (4, 32.0)):
        with pytest.raises(SystemExit, match="trained on with --lora 4 --lora-alpha 8.0"):
            evolve(replace(settings, lora=lora, lora_alpha=alpha))
        assert not (tmp_path / "run").exists()
    actor, policy = load_networks(VLM.load, replace(settings, lora=4, lora_alpha=8.0))
    for network in (actor, policy):
        assert all(torch.equal(w, network.state()[n]) for n, w in vlm.state().items())
        assert network.base == "tiny"
    # One role alone may begin with them, on the base; and not with all weights.
    one = replace(settings, model="tiny", lora=4, lora_alpha=8.0)
    roles = mmzero.Roles(
        replace(one, start_solver=str(tmp_path / "solver")), dict.fromkeys(mmzero.ROLES)
    )
    roles.renderer.close()
    assert all(torch.equal(w, roles.weights["solver"][n]) for n, w in vlm.state().items())
    assert not any(w.any() for n, w in roles.weights["coder"].items() if "lora_B" in n)
    shutil.copytree(find_checkpoint("tiny"), tmp_path / "whole")
    with pytest.raises(SystemExit, match="holds all weights: with --lora a role starts from"):
        evolve(replace(one, start_coder=str(tmp_path / "whole")))


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
