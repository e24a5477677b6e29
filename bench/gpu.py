"""What one GPU makes of this project, in one command of at most ten minutes:

    python bench/gpu.py                      the shape of Qwen2-VL-2B, random weights: 50 GB
    python bench/gpu.py --lora               with adapters only: fits a card of 16 GB
    python bench/gpu.py --shape tiny --prompts 2 --tokens 16        a try, a minute on any machine

It prints the tables of docs/performance.md as they stand there:

    equality   the embedded base in float32 on the CPU and on the GPU: replies, a step's gradient
    sampling   prompts with a picture x 8 replies of one length: ms a step, tokens/s, how near that
               is to reading weights and cache once (the roofline), and how many times as fast as
               transformers' `generate` (both warmed up)
    training   a step of each role, all weights and adapters: seconds, tokens/s, useful TFLOP/s,
               the share of the time in which the GPU works, peak memory beside the plan's
    split      where the time of one Solver step goes

Useful work of a token and weight: 2 operations for the reference, 2 for the policy, 2 where
activations are computed again, 4 for gradients (2 with frozen weights).
"""

import argparse
import contextlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import torch
import transformers
from generate_bench import theirs
from PIL import Image
from torch.profiler import ProfilerActivity, profile, supported_activities

import grpo
from generate import generate
from prompts import TOPICS
from render import Renderer
from support.checkpoint import FAMILIES, TINY
from support.lora import add_lora, twin
from tools import plan
from vlm import VLM

WORDS = " ".join(TOPICS)
# Of each role: prompts, replies each, has it a picture, how it is sampled while it is trained.
ROLES = {
    "proposer": (16, 4, False, dict(top_p=0.99)),
    "coder": (16, 4, False, dict(temperature=0.7, top_p=0.95)),
    "solver": (8, 8, True, dict(top_p=0.99)),
}
SAMPLERS = {"top-p 1": {}, "top-k 40": dict(top_k=40), "top-p 0.95": dict(top_p=0.95)}


def wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work, *args, **options) -> float:
    wait()
    begun = time.perf_counter()
    work(*args, **options)
    wait()
    return time.perf_counter() - begun


def show(columns, rows):
    print("\n| " + " | ".join(columns) + " |")
    print("|:--" + "|--:" * (len(columns) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


# ------------------------------------------------------------------------------- networks and work


def network(shape: str, dtype, device, folder: Path) -> VLM:
    """Of a real shape and vocabulary, with random weights; the words are those of the tiny base."""
    base = VLM.load(TINY, device="cpu")
    if shape == "tiny":
        return VLM.load(TINY, device=device, dtype=dtype)
    config = plan.read_config(shape)
    for name in ("image", "video", "vision_start", "vision_end"):
        setattr(config, f"{name}_token_id", getattr(base.config, f"{name}_token_id"))
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, FAMILIES[config.model_type])(config).to(dtype).eval()
    base.tokenizer.save_pretrained(folder)
    settings = base.side_files["preprocessor_config.json"]
    settings = settings.replace(
        '"patch_size": 8', f'"patch_size": {config.vision_config.patch_size}'
    )
    settings = settings.replace('"temporal_patch_size": 1', '"temporal_patch_size": 2')
    (folder / "preprocessor_config.json").write_text(settings)
    vlm = VLM(model, base.tokenizer, folder)
    vlm.min_pixels = vlm.max_pixels = 640 * 480
    # No word ends a reply: each has its full length.
    vlm.eos_ids = ()
    return vlm


def ask(vlm, count: int, picture: bool) -> list:
    """Prompts of some 550 tokens: words, or few words and a picture."""
    prompts = []
    for i in range(count):
        images = [Image.new("RGB", (640, 480), (i, 90, 160))] if picture else []
        prompts.append(vlm.encode(f"{i} {WORDS}"[: 150 if picture else 2200], images))
    return prompts


def as_rollouts(prompts, replies) -> list:
    """With advantages that alternate."""
    rollouts = []
    for i, group in enumerate(replies):
        for k, reply in enumerate(group):
            logps, advantage, finished = reply.full_logps, (-1.0) ** k, reply.finished
            one = grpo.Rollout(prompts[i], reply.tokens, logps, advantage, finished, group=i)
            rollouts.append(one)
    return rollouts


def step(policy, actor, rollouts, optimizer, token_budget):
    limits = dict(groups_per_update=len(rollouts), temperature=1.0, max_grad_norm=1.0)
    limits["token_budget"] = token_budget
    return grpo.train_step(policy, actor, rollouts, optimizer, **limits)


# ------------------------------------------------------------------------------------ the measuring


def equality(device):
    """Replies and the gradient of a step, float32 on both."""
    found = {}
    for where in ("cpu", device):
        policy, actor = (VLM.load(TINY, device=where, dtype="float32") for _ in range(2))
        prompts = ask(policy, 4, picture=True)
        settings = dict(n=4, max_new_tokens=48)
        replies = [generate(actor, prompts, temperature=t, **settings) for t in (0, 1)]
        optimizer = grpo.make_optimizer(policy, lr=1e-4)
        norm = step(policy, actor, as_rollouts(prompts, replies[1]), optimizer, 4096)["grad_norm"]
        tokens = [[r.tokens for group in each for r in group] for each in replies]
        found[where] = tokens, norm, policy.state()
    (greedy, sampled), norm, weights = found["cpu"]
    (greedy2, sampled2), norm2, weights2 = found[device]

    def same(a, b):
        return f"{sum(x == y for x, y in zip(a, b))} of {len(a)}"

    apart = max((weights[name] - weights2[name]).abs().max().item() for name in weights)
    columns = ["float32", "greedy equal", "sampled equal", "gradient norm", "weights apart"]
    norms = f"{norm:.3f}, {norm2:.3f}"
    show(
        columns,
        [["CPU, GPU", same(greedy, greedy2), same(sampled, sampled2), norms, f"{apart:.0e}"]],
    )


def bandwidth(device) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(2**30 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * len(source) / min(seconds(target.copy_, source) for _ in range(20))


def least_seconds(vlm, prompts, n, tokens, speed) -> float:
    """To read the weights once a step, and the cache of each slot as long as it is then."""
    language = vlm.model.model.language_model
    key = language.layers[0].self_attn.k_proj.weight.shape[0]
    token = 2 * len(language.layers) * key * vlm.dtype.itemsize
    weights = sum(p.nbytes for p in language.parameters())
    columns = n * sum(len(prompt.tokens) + tokens / 2 for prompt in prompts)
    return (weights + columns * token) / speed


def sampling(vlm, args, speed):
    prompts, rows = ask(vlm, args.prompts, picture=True), []
    size = 8 * len(prompts)
    for name, sampler in SAMPLERS.items():
        sample, other_way = partial(generate, vlm, prompts, 8), partial(theirs, vlm, prompts, 8)
        long, short = sampler | {"max_new_tokens": args.tokens}, sampler | {"max_new_tokens": 1}
        sample(**long)  # captures
        taken = min(seconds(sample, **long) for _ in range(3))
        # Prompts, and all that a call does once.
        begin = min(seconds(sample, **short) for _ in range(3))
        per_step = (taken - begin) / (args.tokens - 1)
        least = least_seconds(vlm, prompts, 8, args.tokens, speed)

        ends, vlm.eos_ids = vlm.eos_ids, (600,)  # which transformers wants to know
        other_way(min_new_tokens=args.tokens, **long)
        other = seconds(other_way, min_new_tokens=args.tokens, **long)
        vlm.eos_ids = ends
        ours, rate = size * args.tokens / taken, size * args.tokens / other
        numbers = f"{1e3 * per_step:.2f}", f"{least / per_step:.0%}", f"{ours:,.0f}", f"{rate:,.0f}"
        rows.append([name, *numbers, f"{ours / rate:.1f}"])
    columns = ["sampler", "ms a step", "of the roofline", "tokens/s", "transformers", "ratio"]
    show(columns, rows)
    print(f"\nPrompts of {len(prompts[0].tokens)} tokens, {size} replies of {args.tokens}.")


def busy(work, *args) -> float:
    """The share of its time in which the GPU runs a kernel."""
    if ProfilerActivity.CUDA not in supported_activities():
        return float("nan")
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        taken = seconds(work, *args)
    kernels = sum(event.self_device_time_total for event in found.key_averages())
    return kernels / 1e6 / taken


def training(make, lora, args, rows):
    """-> policy, actor, optimizer: for `split`."""
    actor = make(torch.bfloat16)
    if lora:
        policy = twin(actor)
        for vlm in (actor, policy):
            add_lora(vlm, lora, 32.0)
    else:
        policy = make(torch.float32)
    policy.model.gradient_checkpointing_enable()
    policy.model.train()
    optimizer = grpo.make_optimizer(policy, lr=1e-6)
    shape = plan.measure(policy.config)
    language = shape.model.language_model.num_parameters()
    vision = shape.model.visual.num_parameters()
    merged = policy.config.vision_config.spatial_merge_size**2  # patches of a token
    for role, (count, n, picture, sampler) in ROLES.items():
        prompts = ask(policy, max(1, count * args.prompts // 8), picture)
        replies = generate(actor, prompts, n, max_new_tokens=args.tokens, **sampler)
        sampled = seconds(generate, actor, prompts, n, max_new_tokens=args.tokens, **sampler)
        rollouts = as_rollouts(prompts, replies)
        learn = partial(step, policy, actor, rollouts, optimizer, args.token_budget)
        learn()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        taken = min(seconds(learn) for _ in range(2))
        tokens = sum(len(p.tokens) for p in prompts) + sum(len(r.tokens) for r in rollouts)
        patches = sum(len(p.pixels) for prompt in prompts for p in prompt.pictures)
        each = 8 if lora else 10
        done = each * language * tokens + (2 if lora else each) * vision * patches
        seen = patches // merged * args.token_budget // max(tokens, 1)
        said = plan.memory(shape, lora=lora, tokens=args.token_budget, seen=seen)["training"]
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else float("nan")
        row = [f"{role}, " + (f"LoRA {lora}" if lora else "all weights"), f"{taken:.2f}"]
        row += [f"{tokens / taken:,.0f}", f"{done / taken / 1e12:.0f}", f"{busy(learn):.0%}"]
        row += [f"{sampled:.2f}", f"{peak / 1e9:.1f}", f"{said / 1e9:.1f}"]
        rows.append(row)
    return policy, actor, optimizer


@contextlib.contextmanager
def clocked(owner, name, clock: list):
    """Adds up in `clock` what calls of owner.name take."""
    original = getattr(owner, name)

    def timed(*args, **options):
        wait()
        begun = time.perf_counter()
        result = original(*args, **options)
        wait()
        clock.append(time.perf_counter() - begun)
        return result

    setattr(owner, name, timed)
    yield
    setattr(owner, name, original)


def split(policy, actor, optimizer, args):
    """Where the time of a Solver step goes; and of a picture of a chart."""
    _, n, picture, sampler = ROLES["solver"]
    prompts = ask(policy, args.prompts, picture)
    settings = dict(n=n, max_new_tokens=args.tokens, **sampler)
    replies = generate(actor, prompts, **settings)
    sampled = seconds(generate, actor, prompts, **settings)
    rollouts, reference, updates = as_rollouts(prompts, replies), [], []
    with clocked(grpo, "reply_logps", reference), clocked(optimizer, "step", updates):
        whole = seconds(step, policy, actor, rollouts, optimizer, args.token_budget)
    state = policy.state()
    taken_out = seconds(policy.state)
    brought_in = seconds(actor.load_state, state)
    head = "<svg xmlns='http://www.w3.org/2000/svg' width='90' height='90'>"
    codes = [(f"{head}<rect width='50' height='{9 + i}'/></svg>", "svg") for i in range(64)]
    with Renderer() as renderer:
        renderer.render(codes)
        drawn = seconds(renderer.render, codes)
    used = sum(reference), whole - sum(reference) - sum(updates), sum(updates)
    columns = ["sampling", "reference", "policy", "optimiser", "state out", "in", "64 pictures"]
    numbers = [f"{x:.2f}" for x in (sampled, *used, taken_out, brought_in, drawn)]
    show(["a Solver step, seconds", *columns], [["", *numbers]])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shape", default="Qwen2-VL-2B", help="a name of tools/plan.py, or tiny")
    add("--lora", action="store_true", help="adapters only, no step of all weights")
    add("--prompts", type=int, default=8, help="prompts with a picture, 8 replies each [8]")
    add("--tokens", type=int, default=256, help="tokens of a reply [256]")
    add("--token-budget", type=int, default=8192, help="tokens of a training pass [8192]")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    speed = bandwidth(device)
    print(f"{name}, {versions}; copy {speed / 1e12:.2f} TB/s; shape {args.shape}", flush=True)
    if device == "cuda":
        equality(device)
    with tempfile.TemporaryDirectory() as scratch:

        def make(dtype):
            return network(args.shape, dtype, device, Path(scratch))

        sampling(make(torch.bfloat16), args, speed)
        rows = []
        for lora in (32,) if args.lora else (32, 0):
            networks = training(make, lora, args, rows)
        columns = "role, trained; seconds; tokens/s; TFLOP/s; busy; sampling, s; peak GB; plan GB"
        show(columns.split("; "), rows)
        split(*networks, args)


if __name__ == "__main__":
    main()
