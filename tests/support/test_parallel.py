"""Two gloo ranks on the CPU against one process: the same samples, the same gradient, the same kind
of run.

Started by torchrun this file is the worker: `torchrun tests/test_parallel.py OUT.pt CHECKPOINT`.
"""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers_models import make_checkpoint
from PIL import Image

import eval
import grpo
import mmzero
from generate import generate
from support import parallel
from support.lora import add_lora
from vlm import VLM

ROOT = Path(parallel.__file__).parent.parent


def torchrun(*command, ranks=2, **environment):
    paths = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run += ["--nproc-per-node", str(ranks), *map(str, command)]
    environment = os.environ | paths | environment
    return subprocess.run(run, capture_output=True, text=True, env=environment, timeout=900)


# ---- the worker: the same function in one process and in each of two -----------------------------


def make_rollouts(vlm, pictures):
    """Three groups of 3, 2 and 1: an odd number of micro-batches, so that one rank gets a repeat of
    weight 0."""
    rng, rollouts = random.Random(1), []
    for group, size in enumerate((3, 2, 1)):
        images = []
        if pictures:
            noise = bytes(rng.randrange(256) for _ in range(3 * 32 * 32))
            images = [Image.frombytes("RGB", (32, 32), noise)]
        prompt = vlm.encode("how many bars are red? " * (group + 1), images)
        for _ in range(size):
            tokens = rng.choices(range(7, 290), k=rng.randint(2, 9))
            advantage = rng.choice([-1.5, -0.5, 0.7, 1.2])
            logps = [-1.0] * len(tokens)
            rollouts.append(grpo.Rollout(prompt, tokens, logps, advantage, group=group))
    return rollouts


def one_step(checkpoint, pictures, sharded, lora=0, checkpointing=False):
    """Gradients of two updates, weights after them, statistics: all as whole tensors."""
    policy, reference = (VLM.load(checkpoint, device="cpu") for _ in range(2))
    if checkpointing:
        policy.model.gradient_checkpointing_enable()
        policy.model.train()
    if lora:
        add_lora(policy, lora, 8.0)
        # B = 0 would give A no gradient.
        for name, weight in policy.weights().items():
            generator = torch.Generator().manual_seed(len(name))
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    if sharded and parallel.world() > 1:
        parallel.shard(policy.model)
    rollouts, seen = make_rollouts(policy, pictures), []
    optimizer = grpo.make_optimizer(policy, lr=1e-3)
    step = optimizer.step

    def watch():
        learnt = {n: w.grad for n, w in policy.weights().items() if w.grad is not None}
        seen.append({n: parallel.whole(grad).clone() for n, grad in learnt.items()})
        step()

    optimizer.step = watch
    batches = [len(grpo.micro_batches([r for r in rollouts if r.group < 2], 60))]
    statistics = grpo.train_step(
        policy,
        reference,
        rollouts,
        optimizer,
        groups_per_update=2,
        temperature=0.8,
        token_budget=60,
        max_grad_norm=1e9,
        kl_coef=0.3,
    )
    return {
        "gradients": seen,
        "weights": {n: parallel.whole(w.detach()) for n, w in policy.weights().items()},
        "statistics": statistics,
        "batches": batches,
    }


def everything(checkpoint, out):
    vlm = VLM.load(checkpoint, device="cpu")
    prompts = [vlm.encode(f"how many bars are red? {i}") for i in range(5)]
    mine, numbers = parallel.rank_slice(prompts), parallel.rank_slice(range(5))
    replies = generate(vlm, mine, n=2, max_new_tokens=6, seed=3, numbers=numbers)
    replies = parallel.gather(replies)
    result = {"replies": [[r.tokens for r in group] for group in replies]}
    questions, asked = eval.charts(7)[0], []

    def watched(vlm, prompts, **options):
        asked.append(len(prompts))
        return generate(vlm, prompts, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval, "generate", watched)
        found = eval.evaluate(VLM.load("tiny", device="cpu"), questions, n=3, max_new_tokens=48)
    result["evaluation"] = found | {"asked": asked}
    for pictures in (False, True):
        found = one_step(checkpoint, pictures, True, checkpointing=pictures)
        result[f"sharded, pictures {pictures}"] = found
    result["copies"] = one_step(checkpoint, True, False)
    result["lora"] = one_step(checkpoint, True, False, lora=2, checkpointing=True)
    # weights out of the policy and into actor and policy, and a checkpoint of it
    policy, actor = (VLM.load(checkpoint, device="cpu") for _ in range(2))
    for weight in policy.model.parameters():
        weight.data += 1
    if parallel.world() > 1:
        parallel.shard(policy.model)
    state = policy.state()
    actor.load_state(policy.weights())
    result["actor from the policy"] = actor.state()
    actor.load_state(state)
    result["actor from a role"] = actor.state()
    # From whole weights, as when a run goes on.
    policy.load_state(VLM.load(checkpoint, device="cpu").state())
    actor.load_state(policy.state())
    result["policy from whole weights"] = actor.state()
    policy.load_state(state)
    policy.save(Path(out).parent / "saved")
    add_lora(actor, 2, 8.0)
    actor.save(Path(out).parent / "adapters")
    if parallel.rank() == 0:
        torch.save(result, out)


if __name__ == "__main__":
    parallel.start()
    everything(sys.argv[2], sys.argv[1])
    parallel.stop()


# ---- the tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl"])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(
        folder / "checkpoint", request.param, std=0.15, tie=request.param == "qwen2_vl"
    )
    (folder / "one").mkdir(), (folder / "two").mkdir()
    everything(checkpoint, folder / "one/result.pt")
    finished = torchrun(__file__, folder / "two/result.pt", checkpoint)
    assert finished.returncode == 0, finished.stderr[-4000:]
    one, two = (
        torch.load(folder / name / "result.pt", weights_only=True) for name in ("one", "two")
    )
    return folder, one, two


@pytest.mark.parametrize(
    "case", ["sharded, pictures False", "sharded, pictures True", "copies", "lora"]
)
def test_two_ranks_make_the_step_of_one(results, case):
    _, one, two = results
    a, b = one[case], two[case]
    # So that there was a micro-batch to fill up with.
    assert a["batches"][0] % 2 == 1
    # The second update needs log-probs from before the step.
    assert len(a["gradients"]) == len(b["gradients"]) == 2
    # From the same weights to 1e-6. The second update starts from weights that AdamW has moved:
    # where a gradient is rounding noise, it moves them by all of lr in the noise's direction.
    for one_rank, two_ranks, tolerance in zip(a["gradients"], b["gradients"], (1e-6, 1e-5)):
        assert one_rank.keys() == two_ranks.keys()
        assert max(g.abs().max() for g in one_rank.values()) > 0.1
        for name in one_rank:
            assert (one_rank[name] - two_ranks[name]).abs().max() <= tolerance, name
    assert b["statistics"] == pytest.approx(a["statistics"], rel=1e-4, abs=1e-6)
    assert a["statistics"]["kl"] > 1e-5 or case != "lora"
    if case == "lora":
        assert all(".lora_" in name for name in a["weights"])


def test_recomputed_activations_give_the_same_gradient(results):
    _, one, _ = results
    cases = ("copies", "sharded, pictures True")
    without, recomputed = (one[case]["gradients"][0] for case in cases)
    assert without.keys() == recomputed.keys()
    for name in without:
        torch.testing.assert_close(without[name], recomputed[name], atol=1e-6, rtol=1e-5)


def test_samples_do_not_depend_on_the_number_of_ranks(results):
    _, one, two = results
    assert one["replies"] == two["replies"]
    assert len({tuple(tokens) for group in one["replies"] for tokens in group}) > 5


def test_an_evaluation_is_shared_out_and_the_same(results):
    one, two = (dict(result["evaluation"]) for result in results[1:])
    # Rank 0 of two asks 3 of 7 questions.
    assert (one.pop("asked"), two.pop("asked")) == ([7, 7], [3, 3])
    assert one.pop("seconds") and two.pop("seconds") and one == two and 0 < one["sampled"] < 1


def test_weights_travel_between_shards_and_whole_networks(results):
    folder, one, two = results
    base = VLM.load(folder / "checkpoint", device="cpu").state()
    for case, shift in (
        ("actor from the policy", 1),
        ("actor from a role", 1),
        ("policy from whole weights", 0),
    ):
        for name, weight in base.items():
            assert torch.equal(two[case][name], weight + shift)
            assert torch.equal(one[case][name], weight + shift)
    for kind, file in (("saved", "model"), ("adapters", "adapter_model")):
        files = []
        for name in ("one", "two"):
            saved = (folder / name / kind).iterdir()
            files.append({path.name: path.read_bytes() for path in saved})
        assert files[0] == files[1] and f"{file}.safetensors" in files[0]


def test_shards_are_gathered_on_the_device_in_the_type_they_will_have(monkeypatch):
    """Not in host memory in float32, where gloo would gather them."""

    class Shards:
        def __init__(self, tensor):
            self.tensor = tensor

        def to(self, device, dtype):
            return Shards(self.tensor.to(device, dtype))

        def full_tensor(self):
            found.append((self.tensor.device, self.tensor.dtype))
            return self.tensor

    found, weight = [], torch.zeros(3, dtype=torch.bfloat16)
    monkeypatch.setattr(parallel, "DTensor", Shards)
    parallel.assign(weight, Shards(torch.tensor([1.0, 2.0, 3.001])))
    assert found == [(weight.device, torch.bfloat16)] and weight.tolist() == [1, 2, 3]


def test_ranks_decide_together_that_memory_has_run_out(monkeypatch, capsys):
    """Weights are whole on each rank. This one had enough; the other lost its memory twice."""
    policy = SimpleNamespace(weights=dict, token_limit=math.inf)
    rollouts = [SimpleNamespace(prompt=SimpleNamespace(tokens=[1] * 9), tokens=[2])]
    answers, budgets = [[False, True], [False, True], [False, False]], []
    monkeypatch.setattr(parallel, "gather", lambda own: answers.pop(0))
    parallel.within_memory(budgets.append, policy, 400, rollouts)
    assert budgets == [400, 200, 100] and policy.token_limit == 100
    assert capsys.readouterr().err.count("out of GPU memory; from now on") == 2
    # Nor is there an end where no rank can go on.
    monkeypatch.setattr(parallel, "gather", lambda own: [False, True])
    with pytest.raises(torch.cuda.OutOfMemoryError, match="another rank"):
        parallel.within_memory(budgets.append, policy, 400, rollouts)
    assert policy.token_limit <= 10


def test_where_weights_are_sharded_a_rank_without_memory_says_how_to_go_on(monkeypatch):
    def work(budget):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(parallel, "DTensor", torch.Tensor)
    policy = SimpleNamespace(weights=lambda: {"w": torch.zeros(1)}, token_limit=math.inf)
    rollouts = [SimpleNamespace(prompt=SimpleNamespace(tokens=[1]), tokens=[2])]
    with pytest.raises(RuntimeError, match="the same command goes on with --token-budget 200"):
        parallel.within_memory(work, policy, 400, rollouts)


def test_lists_are_shared_out_whole_and_in_order(monkeypatch):
    for world in (1, 2, 3, 5):
        monkeypatch.setattr(parallel, "world", lambda world=world: world)
        for size in (0, 1, 4, 7):
            slices, dealt, items = [], [], list(range(size))
            for rank in range(world):
                monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
                slices += parallel.rank_slice(items)
                if size:
                    dealt.append(parallel.deal(items))
                else:
                    dealt.append([])
            assert slices == items
            # The same number of passes everywhere.
            assert len(set(map(len, dealt))) == 1
            assert sorted(b for each in dealt for b, weight in each if weight) == items


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
    ],
)
def test_processes_that_torchrun_did_not_start_are_refused(variables, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in parallel.SIZES:
        os.environ.pop(name, None)
    os.environ.update(variables)
    for main in (mmzero.main, eval.main):
        with pytest.raises(SystemExit, match="is [28], .* torchrun --nproc-per-node"):
            main([])
    # One task of a cluster is one process.
    os.environ.update(dict.fromkeys(variables, "1"))
    parallel.start()
    assert parallel.world() == 1


SMALL = (
    "--iterations 1 --steps 1 --proposer-prompts 4 --coder-proposals 6 --coder-prompts 4 "
    "--solver-proposals 12 --solver-prompts 4 --questions 7 --probe 8 --workers 1 "
    "--render-seconds 60"
).split()


def test_the_whole_loop_on_two_ranks(tmp_path):
    """Killed once, while phase S makes the second part of its data: both ranks find the first, and
    go on together."""
    killer = tmp_path / "killed.py"
    killer.write_text(
        "import mmzero, os, signal, sys\nfrom support import parallel\n"
        "imagine = mmzero.Roles.imagine\n"
        "def deadly(self, places, *more, **options):\n"
        "    if places == range(6, 12) and parallel.rank() == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return imagine(self, places, *more, **options)\n"
        "mmzero.Roles.imagine = deadly\n"
        "mmzero.main(sys.argv[1:])\n"
    )
    command = (*SMALL, "--part-proposals", "6", "--out", tmp_path / "run")
    assert torchrun(killer, *command).returncode != 0
    assert (tmp_path / "run/iter1/solver.part0.jsonl").is_file()
    finished = torchrun(ROOT / "mmzero.py", *command)
    assert finished.returncode == 0, finished.stderr[-4000:]
    # The line of the iteration and the table at the end, from one rank only.
    assert finished.stdout.count("| it 1 |") == 2
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "eval"] == [0, 1]
    assert [line["asked"] for line in lines if line["kind"] == "data"] == [6, 12]
    assert not list((tmp_path / "run").rglob("*.part*"))
    steps = [line for line in lines if line["kind"] == "step"]
    assert steps and any(line["updates"] for line in steps)
    assert all(line["logp_gap"] < 1e-3 for line in steps if line["updates"])
    for role in ("proposer", "coder", "solver"):
        state = VLM.load(tmp_path / f"run/iter1/{role}", device="cpu").state()
        assert all(weight.isfinite().all() for weight in state.values())
    assert (tmp_path / "run/report.html").is_file()


def test_a_failing_rank_ends_the_run_with_its_message(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import mmzero, sys\nfrom support import parallel\n"
        "def speak(*_, **__):\n"
        "    if parallel.rank() == 1: raise KeyError('the seventh seal')\n"
        "    parallel.gather([1])\n"
        "mmzero.Roles.speak = speak\n"
        "mmzero.main(sys.argv[1:])\n"
    )
    finished = torchrun(script, *SMALL, "--questions", "0", "--out", tmp_path / "run")
    assert finished.returncode != 0
    assert "rank 1: " in finished.stderr and "the seventh seal" in finished.stderr
