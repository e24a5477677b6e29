"""One whole GRPO step against TRL's GRPOTrainer: rollouts, log-probs, reference, update.

    pip install trl==1.16.0 accelerate datasets          besides requirements.txt
    python bench/step_bench.py                           both models; half an hour, mostly 100m
    python bench/step_bench.py --only tiny --steps 5     the embedded base alone

(measured with accelerate 1.15.0)

    tiny       the embedded base, Proposer's prompts: 16 prompts x 4 replies of 64 tokens
    100m       random weights, about 100 M parameters, the real 151,936 words: 2 prompts of 600
               tokens x 8 replies of 128, as a Solver has it
    100m-long  the same, 2 prompts of 210 tokens x 8 replies of 512: hardly anything to share
    2b         (on a GPU) the shape of Qwen2-VL-2B, bf16 compute: 4 prompts x 8 replies of 512

Same weights, prompts, group size, temperature, KL (0.01), clip and AdamW step, float32 on a CPU.
Every reply runs to the full length: the end token is one that is never drawn. TRL has its defaults,
with these exceptions, all in its favour or needed for equal work: the numbers above, and float32
(its default is bf16 autocast, on CPUs as well). Gradient checkpointing is its default, and ours for
real models; on tiny ours has none, and TRL is shown without it and with it. Prompts are text alone:
TRL takes pictures through a processor that needs torchvision. Worth knowing: without Triton, TRL
projects every position onto the vocabulary, prompts and padding as well.

Each engine has a process of its own, and makes a step when it is its turn. The first step of each
is not counted; x is their time by ours, step by step. Memory: the most that its process ever held
resident, program and weights included (on a GPU: that was allocated).
"""

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # see mmzero.py
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from generate_bench import random_vlm

from generate import generate
from grpo import Rollout, group_advantages, make_optimizer, train_step
from prompts import TOPICS, fill
from support import machine
from vlm import VLM

CUDA = torch.cuda.is_available()
# prompts, replies each, tokens of a reply, gradient checkpointing, words of a prompt
WORK = {
    "tiny": (16, 4, 64, False, None),
    "100m": (2, 8, 128, True, 73),
    "100m-long": (2, 8, 512, True, 25),
    "2b": (4, 8, 512, True, 95),
}
SHAPES = {
    "100m": dict(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
    ),
    "2b": dict(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
    ),
}
LR, LOSS = 1e-6, dict(clip_low=0.2, clip_high=0.3, kl_coef=0.01)


def checkpoint(name, folder) -> Path:
    """A checkpoint that both engines load. Its end token is never drawn: every reply has the full
    length."""
    if name == "tiny":
        vlm = VLM.load("tiny", device="cpu")
    else:
        vlm = random_vlm(folder, "cpu", torch.float32, **SHAPES[name.split("-")[0]])
    vlm.tokenizer.eos_token = "<|video_pad|>"
    vlm.model.generation_config.eos_token_id = vlm.config.video_token_id
    vlm.save(folder / name)
    return folder / name


def texts(name, vlm) -> list[str]:
    count, words = WORK[name][0], WORK[name][4]
    if words is None:
        return [fill(vlm.prompts["proposer"], topic=TOPICS[i % len(TOPICS)]) for i in range(count)]
    found = []
    for i in range(count):
        topics = [TOPICS[(i + j) % len(TOPICS)].split()[0] for j in range(words)]
        found.append(" ".join(f"{topic} {j}" for j, topic in enumerate(topics)))
    return found


def reward(text: str) -> float:
    """Any number that differs between replies."""
    return zlib.crc32(text.encode()) / 2**32


def ours(name, folder):
    """-> a function that makes one step, as mmzero.py does."""
    # As mmzero.main does.
    machine.keep_freed_memory()
    prompts, n, tokens, checkpointing, _ = WORK[name]
    actor, policy = VLM.load(folder), VLM.load(folder, dtype="float32")
    if checkpointing:
        policy.model.gradient_checkpointing_enable()
        policy.model.train()
    asked = [actor.encode(text) for text in texts(name, actor)]
    reference, optimizer, steps = policy.state(), make_optimizer(policy, lr=LR), iter(range(10**9))

    def step():
        actor.load_state(policy.weights())
        replies = generate(actor, asked, n=n, max_new_tokens=tokens, seed=next(steps))
        assert all(len(r.tokens) == tokens for group in replies for r in group)
        advantages = group_advantages([[reward(r.text) for r in group] for group in replies])
        rollouts = []
        for i, group in enumerate(replies):
            for reply, a in zip(group, advantages[i].tolist()):
                logps, finished = reply.full_logps, reply.finished
                rollouts.append(Rollout(asked[i], reply.tokens, logps, a, finished, group=i))
        actor.load_state(reference)
        statistics_ = train_step(
            policy,
            actor,
            rollouts,
            optimizer,
            groups_per_update=prompts,
            temperature=1.0,
            token_budget=4096,
            max_grad_norm=1.0,
            **LOSS,
        )
        assert statistics_["updates"] == 1 and statistics_["logp_gap"] < (0.5 if CUDA else 1e-2)

    return step


def theirs(name, folder, steps, checkpointing, turn):
    """`steps` steps of TRL, each when `turn` comes back."""
    import datasets
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    prompts, n, tokens, _, _ = WORK[name]
    vlm = VLM.load(folder, device="cpu")
    chats = [[{"role": "user", "content": text}] for text in texts(name, vlm)]
    rows = datasets.Dataset.from_dict({"prompt": chats})
    # 8 is TRL's default.
    batch = min(8, prompts * n)
    config = GRPOConfig(
        output_dir=str(Path(folder).parent / "out"),
        use_cpu=not CUDA,
        bf16=CUDA,
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=prompts * n // batch,
        num_generations=n,
        max_completion_length=tokens,
        beta=LOSS["kl_coef"],
        epsilon=LOSS["clip_low"],
        epsilon_high=LOSS["clip_high"],
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_steps=steps,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            turn()
            self.begun = time.perf_counter()

        def on_step_end(self, *_, **__):
            if CUDA:
                torch.cuda.synchronize()
            print("seconds", time.perf_counter() - self.begun, flush=True)

    GRPOTrainer(
        model,
        lambda completions, **_: [reward(c[0]["content"]) for c in completions],
        config,
        rows,
        processing_class=vlm.tokenizer,
        callbacks=[Clock()],
    ).train()


def alone(engine, name, folder, steps):
    """In a process of its own: say that it is ready, make a step for each line that comes in, and
    at the end say how much memory it took."""

    def turn():
        print("ready 0", flush=True)
        sys.stdin.readline()

    if engine != "ours":
        theirs(name, folder, steps, engine != "TRL" or WORK[name][3], turn)
    else:
        step = ours(name, folder)
        for _ in range(steps):
            turn()
            begun = time.perf_counter()
            step()
            if CUDA:
                torch.cuda.synchronize()
            print("seconds", time.perf_counter() - begun, flush=True)
    print("peak", peak(), flush=True)


def hear(child, word) -> float:
    """The number behind this word in what a child says next."""
    line = next((line for line in child.stdout if line.startswith(word)), None)
    if line is None:
        sys.exit(f"step_bench.py: an engine ended before it said its {word}")
    return float(line.split()[1])


def peak() -> float:
    """GB: of the GPU, or resident memory of this process."""
    if CUDA:
        return torch.cuda.max_memory_allocated() / 1e9
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def start(engine, name, folder, steps):
    command = [sys.executable, __file__, "--alone", engine, name, folder, str(steps)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return subprocess.Popen(command, text=True, **pipes)


def compare(name, folder, steps):
    """-> seconds of each step and peak memory, of each engine"""
    names = ["ours", "TRL"]
    if not WORK[name][3]:
        names.append("TRL, checkpointing")
    engines = {engine: start(engine, name, folder, steps) for engine in names}
    seconds = {engine: [] for engine in names}
    for _ in range(steps):
        # Nobody works while another's step is timed.
        for child in engines.values():
            hear(child, "ready")
        for engine, child in engines.items():
            print("go", file=child.stdin, flush=True)
            seconds[engine].append(hear(child, "seconds"))
    return seconds, {engine: hear(child, "peak") for engine, child in engines.items()}


def show(name, asked, seconds, peaks):
    prompts, replies, tokens, _, _ = WORK[name]
    lengths = f"{min(asked)} to {max(asked)} tokens"
    print(f"\n{name}: {prompts} prompts of {lengths} x {replies} replies of {tokens}")
    for engine in seconds:
        # The first step of each is not counted.
        ratios = [a / b for a, b in zip(seconds[engine][1:], seconds["ours"][1:])]
        print(
            f"    {engine:<18} {statistics.median(seconds[engine][1:]):7.2f} s   "
            f"x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"{peaks[engine]:6.2f} GB   ours is {peaks['ours'] / peaks[engine]:.0%}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each engine [3]")
    models = ["tiny", "100m"] + ["2b"] * CUDA
    parser.add_argument("--only", nargs="+", default=models, choices=[*WORK], help="which models")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)  # engine, model, folder, steps
    args = parser.parse_args()
    if args.alone:
        return alone(*args.alone[:3], int(args.alone[3]))
    # Looked for, not imported: that would count as our memory.
    for name in ("trl", "accelerate", "datasets"):
        if importlib.util.find_spec(name) is None:
            needed = "pip install trl==1.16.0 accelerate datasets"
            sys.exit(f"step_bench.py: {name} is missing; {needed}")
    device = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, TRL {importlib.metadata.version('trl')}, {device}")
    for name in args.only:
        with tempfile.TemporaryDirectory() as scratch:
            folder = checkpoint(name, Path(scratch))
            vlm = VLM.load(folder, device="cpu")
            asked = [len(vlm.encode(text).tokens) for text in texts(name, vlm)]
            del vlm
            show(name, asked, *compare(name, folder, args.steps + 1))


if __name__ == "__main__":
    main()
