"""Every number of a run, as one frozen dataclass; presets for machines; the command line, which is derived from both.

The defaults are the paper's (implementation details: hyper-parameters). Rewards, filters, the numbers of codes, answers and
rollouts, and the loss are the same in every preset: presets change how much is made and how much memory that takes.
"""

import argparse
import dataclasses
import inspect
import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """One sentence per field: it is also the help text of the field's flag."""

    model: str = "tiny"  # tiny, a short name such as Qwen2-VL-2B, a folder, or a hub id
    out: str = ""  # folder of the run; empty: runs/<model>-<language>-seed<seed>
    language: str = "svg"  # what the Coder writes: svg, python, or mixed (taking turns)
    iterations: int = 3  # how often all three roles are trained; 0: only measure the base
    seed: int = 0  # of everything that is sampled
    # Proposer: how much is sampled per step, and how often it is trained in an iteration.
    proposer_steps: int = 20  # GRPO steps (rollout batches) per iteration
    proposer_prompts: int = 18  # prompts (topics, in turn) per step
    proposer_rollouts: int = 4  # G: proposals per prompt
    proposer_update: int = 18  # prompts per optimiser update
    codes: int = 4  # N: codes the frozen Coder writes per proposal
    answers: int = 5  # K: answers of the frozen Solver per question, while training P and C
    # Coder
    coder_steps: int = 20  # GRPO steps per iteration
    coder_proposals: int = 3304  # fresh proposals, of which those of middling render rate are kept
    coder_prompts: int = 256  # proposals per step
    coder_rollouts: int = 4  # G: codes per proposal
    coder_update: int = 64  # proposals per optimiser update
    # Solver
    solver_steps: int = 20  # GRPO steps per iteration
    solver_proposals: int = 5000  # fresh proposals, one code each; the open questions are kept
    labels: int = 10  # answers per question from which the majority label is taken
    solver_prompts: int = 512  # pictures per step
    solver_rollouts: int = 8  # G: answers per picture
    solver_update: int = 128  # pictures per optimiser update
    # GRPO
    lr: float = 1e-6  # AdamW, constant
    weight_decay: float = 0.01  # of AdamW
    kl: float = 0.01  # weight of the k3 KL to the model that the phase began with
    clip_low: float = 0.2  # the ratio may fall to 1 - this
    clip_high: float = 0.3  # and rise to 1 + this
    clip_dual: float = 3.0  # for a negative advantage the surrogate is bounded by this times it
    grad_norm: float = 1.0  # gradients are scaled down to this norm
    token_budget: int = 16384  # tokens per pass; a prompt counts once for its replies
    lora: int = 0  # rank of the adapters that are trained instead of all weights; 0: all weights
    lora_alpha: float = 32.0  # adapters are scaled by this / rank
    save_steps: int = 2  # the state inside a phase is saved every so many steps
    part_proposals: int = 1024  # fresh proposals become data in parts of so many, each saved whole
    checkpointing: bool = True  # recompute activations in the backward pass: less memory, slower
    # Lengths, in tokens
    proposal_tokens: int = 4096  # a proposal is cut here
    code_tokens: int = 4096  # a code is cut here
    answer_tokens: int = 4096  # an answer is cut here
    # Pictures and machine
    min_pixels: int = 262144  # smaller pictures are scaled up to this area; 0: the checkpoint's
    max_pixels: int = 1638400  # larger ones down to this (1280 x 1280); 0: as the checkpoint has it
    slots: int = 0  # completions decoded side by side; 0: 512 on a CPU, 128 on a GPU
    workers: int = 0  # processes that render; 0: one per core
    render_seconds: float = 5.0  # a program that draws for longer is stopped
    unsafe_python: bool = False  # run Python though this machine cannot confine it
    # Measuring, before the first and after every iteration
    questions: int = 420  # held-out questions of either kind; 0: none
    split: str = "test"  # their pictures: test, or validation while choosing settings
    probe: int = 128  # proposals that the three roles make and answer together


PAPER = Settings()
# The embedded base has 1.4 M parameters where the paper's have 2 to 8 billion: a larger step size, smaller batches
# and short texts, so that three iterations take a few minutes on two cores.
TINY = replace(
    PAPER,
    proposer_steps=6,
    coder_steps=6,
    coder_proposals=192,
    coder_prompts=48,
    coder_update=48,
    solver_steps=12,
    solver_proposals=2048,
    solver_prompts=96,
    solver_update=96,
    lr=1.5e-4,
    checkpointing=False,
    proposal_tokens=96,
    code_tokens=160,
    answer_tokens=64,
    min_pixels=0,
    max_pixels=0,
    token_budget=4096,
    save_steps=4,
    part_proposals=2048,
)

# One GPU samples an eighth of what eight do: a quarter of the data, in smaller parts (the 1,024 fill 128 slots on each of eight), ten
# steps (the paper's text has ten), replies of at most 2,048 tokens, pictures of at most 1024 x 768. What fits, and with how much
# room: python tools/plan.py
ONE_GPU = dict(
    proposer_steps=10,
    coder_steps=10,
    solver_steps=10,
    coder_proposals=824,
    solver_proposals=1248,
    coder_prompts=64,
    solver_prompts=128,
    solver_update=64,
    part_proposals=256,
    proposal_tokens=2048,
    code_tokens=2048,
    answer_tokens=2048,
    max_pixels=786432,
)
SHORT = dict(proposal_tokens=1536, code_tokens=1536, answer_tokens=1536, max_pixels=589824)
PRESETS = {  # name: (settings, what it is for)
    "tiny": (TINY, "the embedded base, on two CPU cores"),
    "paper": (PAPER, "batches, lengths and pictures of the paper, all weights"),
    # A step size for adapters: ten times that of all weights, as is usual; not tuned here.
    "1x24gb": (
        replace(PAPER, **ONE_GPU, lora=32, lr=1e-5, token_budget=4096, slots=32),
        "up to 4B, adapters of rank 32, a quarter of the data",
    ),
    # 18 bytes a parameter leave 7 GB of such a card for a pass through 2B: short replies, so that 4,096 tokens hold any of them.
    "1x48gb": (
        replace(PAPER, **ONE_GPU | SHORT, token_budget=4096, slots=64),
        "2B, all weights, a quarter of the data, replies of 1,536 tokens",
    ),
    "1x80gb": (
        replace(PAPER, **ONE_GPU, token_budget=8192),
        "2B, all weights, a quarter of the data, 8,192 tokens a pass",
    ),
    "8x80gb": (
        replace(PAPER, token_budget=8192),
        "up to 8B, all weights cut over 8 GPUs, the paper's data, 8,192 tokens a pass",
    ),
}


def check(s: Settings) -> None:
    """ValueError with one line that says what would be right."""

    def need(name, good, rule):
        if not good:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(s, name)!r}: it should be {rule}"
            )

    need("language", s.language in ("svg", "python", "mixed"), "svg, python or mixed")
    need("split", s.split in ("test", "validation"), "test or validation")
    for f in dataclasses.fields(s):
        if f.type in (int, "int") and f.name not in (
            "seed",
            "iterations",
            "min_pixels",
            "max_pixels",
            "slots",
            "workers",
            "questions",
            "probe",
            "lora",
        ):
            need(f.name, getattr(s, f.name) >= 1, "a whole number, 1 or more")
        elif f.type in (int, float, "int", "float"):
            need(f.name, getattr(s, f.name) >= 0, "0 or more")
    for name in ("proposer_rollouts", "coder_rollouts", "solver_rollouts"):
        need(name, getattr(s, name) >= 2, "2 or more: a group's advantage compares its rollouts")
    need("lora_alpha", s.lora_alpha > 0, "above 0")
    need("lr", 0 < s.lr < 1, "between 0 and 1")
    need("clip_low", s.clip_low < 1, "below 1")
    need("clip_dual", s.clip_dual > 1, "above 1")
    need("grad_norm", s.grad_norm > 0, "above 0")
    need("render_seconds", s.render_seconds > 0, "above 0")
    need(
        "max_pixels",
        not s.max_pixels or s.max_pixels >= s.min_pixels,
        "0, or at least --min-pixels",
    )


def parse(arguments=None) -> tuple[Settings, int | None]:
    """The command line is the settings' fields; what is not given is the preset's. -> (settings, None)

    With --dry-run: (settings, number of GPUs), 0 where neither the flag nor the preset names a number.

    >>> settings, gpus = parse(["--model", "Qwen2-VL-7B", "--preset", "8x80gb", "--dry-run", "--lora", "16"])
    >>> gpus, settings.lora, settings.token_budget           # what is given wins over the preset
    (8, 16, 8192)
    """
    parser = argparse.ArgumentParser(
        description="MM-Zero: three roles of one vision-language model evolve without data.",
        allow_abbrev=False,
    )
    # The comment behind each field is also its help text.
    says = dict(re.findall(r"^    (\w+): .*?# (.*)$", inspect.getsource(Settings), re.MULTILINE))
    for f in dataclasses.fields(Settings):
        kind = {"int": int, "float": float, "str": str, "bool": bool}[
            getattr(f.type, "__name__", f.type)
        ]
        options = (
            dict(action=argparse.BooleanOptionalAction)
            if kind is bool
            else dict(type=kind, metavar=kind.__name__.upper())
        )
        default = [getattr(preset, f.name) for preset in (PAPER, TINY)]
        options["help"] = f"{says[f.name].replace('%', '%%')} [{default[0]}" + (
            f"; tiny: {default[1]}]" if default[0] != default[1] else "]"
        )
        parser.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, **options)
    parser.add_argument(
        "--steps",
        type=int,
        metavar="INT",
        default=argparse.SUPPRESS,
        help="GRPO steps per iteration of all three roles at once",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=argparse.SUPPRESS,
        help="where the other settings come from [tiny for --model tiny, else paper]: "
        + "; ".join(f"{n}: {p[1]}" for n, p in PRESETS.items()),
    )
    parser.add_argument(
        "--dry-run",
        type=int,
        metavar="GPUS",
        nargs="?",
        const=0,
        help="only say what the run would need, and whether it fits this "
        "machine: no weights are loaded [GPUs: those in the preset's name, else of this machine]",
    )
    given = vars(parser.parse_args(arguments))
    if "steps" in given:
        steps = given.pop("steps")
        given = {f"{role}_steps": steps for role in ("proposer", "coder", "solver")} | given
    preset = given.pop("preset", "tiny" if given.get("model", "tiny") == "tiny" else "paper")
    gpus, named = given.pop("dry_run"), re.match(r"(\d+)x", preset)
    return replace(PRESETS[preset][0], **given), int(named[1]) if gpus == 0 and named else gpus
