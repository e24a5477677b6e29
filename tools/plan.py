"""What a run would need, before it begins: no weights are loaded, and neither GPU nor network is needed.

    python mmzero.py --model Qwen2-VL-2B --preset 1x48gb --dry-run     the plan of a run, and whether it fits this machine
    python tools/plan.py                                                     GB per GPU by model, mode and GPUs: the tables of the README

Parameters are counted on the network itself, built from its config on the meta device. Memory is a formula. P parameters,
A of them adapters, N GPUs, T tokens of a pass (--token-budget), L layers of width D, V words; bytes on each GPU, held all the time:

    actor                 2 P                bf16, whole on each
    policy                (4 + 8) P / N      float32 masters and AdamW's two moments, sharded
    policy, LoRA          (4 + 8 + 4) A      its adapters, their moments, the actor's adapters; the base is the actor's

and on top of that, while sampling, for each completion that is decoded (as many as fit: generate.slots_that_fit)

    slot                  length * 2 * L * key/value heads * head size * 2 + 24 V

or, while training,

    gradients             4 P / N            LoRA: 4 A
    gathered (N > 1)      what FSDP has in one piece at a time: two layers, embedding and head, and their gradients
    layers                4 T L D at the layers' borders, and the inside of the one that is recomputed (or of all)
    vision                the same of the vision tower, for 4 patches a token; nothing with LoRA, which leaves it alone
    loss                  the logits of a chunk of tokens (200 MB), the head in bf16 and its float32 gradient

tests/test_plan.py holds it against what real steps allocate. Not in it: CUDA's context and fragmentation (RESERVE).
"""

import json
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # run as a program, it finds the modules above it

import torch
import transformers

from support.fused_loss import tokens_at_once, words_at_once
from prompts import PROMPTS
from support.settings import PRESETS, Settings, check
from support.checkpoint import FAMILIES, TINY, check_family, find_checkpoint

# Public facts of the checkpoints, so that a plan needs no network. Language: D, L, heads, key/value heads, inside the MLP, V, head
# tied to the embedding; vision: width, layers, inside the MLP (of MiMo-VL from memory: 0.1 % of its weights hang on it).
SHAPES = {
    "Qwen2-VL-2B": ("qwen2_vl", 1536, 28, 12, 2, 8960, 151936, True, 1280, 32, 5120),
    "Qwen2-VL-7B": ("qwen2_vl", 3584, 28, 28, 4, 18944, 152064, False, 1280, 32, 5120),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", 2048, 36, 16, 2, 11008, 151936, True, 1280, 32, 3420),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", 3584, 28, 28, 4, 18944, 152064, False, 1280, 32, 3420),
    "MiMo-VL-7B": ("qwen2_5_vl", 4096, 36, 32, 8, 11008, 151680, False, 1280, 32, 3456),
    "Qwen3-VL-2B": ("qwen3_vl", 2048, 28, 16, 8, 6144, 151936, True, 1024, 24, 4096),
    "Qwen3-VL-4B": ("qwen3_vl", 2560, 36, 32, 8, 9728, 151936, True, 1024, 24, 4096),
    "Qwen3-VL-8B": ("qwen3_vl", 4096, 36, 32, 8, 12288, 151936, False, 1152, 27, 4304),
}
CARDS = {
    "16gb": 16.1e9,
    "24gb": 24.1e9,
    "48gb": 48.3e9,
    "80gb": 85.0e9,
}  # bytes that the driver shows of an A2, an A10G, an L40S, an H100
RESERVE = 1.5e9  # bytes per GPU that the formula does not see
PICTURE = 12e3  # bytes of a PNG: the matplotlib chart of bench/render_bench.py


def read_config(name: str):
    """The transformers config of a folder, of `tiny`, of a short name in SHAPES, or of a hub id."""
    if name not in SHAPES or Path(name).is_dir():
        check_family(folder := find_checkpoint(name, weights=False))
        return transformers.AutoConfig.from_pretrained(folder)
    family, width, layers, heads, kv, inner, words, tied, eye, depth, eye_inner = SHAPES[name]
    text = dict(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=inner,
        vocab_size=words,
    )
    vision = dict(
        depth=depth,
        num_heads=16,
        hidden_size=eye,
        out_hidden_size=width,
        intermediate_size=eye_inner,
    )
    if family == "qwen2_vl":
        vision = dict(
            depth=depth, num_heads=16, embed_dim=eye, hidden_size=width, mlp_ratio=eye_inner // eye
        )
    if family == "qwen3_vl":
        text |= dict(head_dim=128)
        vision |= dict(
            num_position_embeddings=2304,
            deepstack_visual_indexes=[5, 11, 17] if depth == 24 else [8, 16, 24],
        )
    return getattr(transformers, FAMILIES[family]).config_class(
        text_config=text, vision_config=vision, tie_word_embeddings=tied
    )


def measure(config) -> SimpleNamespace:
    """Parameters by part, and the sizes that memory depends on.

    >>> shape = measure(read_config("Qwen2-VL-2B"))
    >>> shape.total, shape.vision, shape.language, shape.head
    (2208985600, 665271296, 1543714304, 0)
    """
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[config.model_type])(config)
    count = lambda module: sum(p.numel() for p in module.parameters())
    linear = lambda modules: [
        m for module in modules for m in module.modules() if type(m) is torch.nn.Linear
    ]
    text, eye, language, visual = (
        config.get_text_config(),
        config.vision_config,
        model.model.language_model,
        model.model.visual,
    )
    head = count(model) - count(model.model)  # 0 where it is the embedding
    return SimpleNamespace(
        family=config.model_type,
        total=count(model),
        vision=count(visual),
        language=count(language),
        head=head,
        ends=count(language.embed_tokens) + head,
        layer=count(language.layers[0]),
        layers=len(language.layers),
        width=text.hidden_size,
        inner=text.intermediate_size,
        words=text.vocab_size,
        queries=language.layers[0].self_attn.q_proj.out_features,
        keys=language.layers[0].self_attn.k_proj.out_features,
        per_rank=sum(m.in_features + m.out_features for m in linear(language.layers)),
        depth=len(visual.blocks),
        eye_width=visual.patch_embed.embed_dim,
        eye_inner=max(m.out_features for m in linear([visual.blocks[0].mlp])),
        merge=eye.spatial_merge_size**2,
        pixels=(eye.patch_size * eye.spatial_merge_size) ** 2,
    )  # patches, pixels of a token


def memory(
    shape, gpus=1, lora=0, tokens=16384, seen=12000, length=8192, checkpointing=True, half=2
) -> dict:
    """Bytes per GPU by part, named as above. tokens, seen: of a pass, and how many of them are of pictures; length: of a prompt
    and its reply; half: bytes of the compute type, 2 for bf16; on a CPU all is float32.

    >>> round(memory(measure(read_config("Qwen2-VL-2B")))["held"] / 1e9, 1)     # 2.209 * (2 + 12)
    30.9
    """
    s, adapters = shape, lora * shape.per_rank
    stream = (
        4 if gpus == 1 and not lora else half
    )  # the residual stream has the type of the embedding; in the vision
    eye_stream = (
        stream if s.family == "qwen3_vl" else half
    )  # tower of the convolution, to which Qwen3-VL adds an embedding

    def over(
        layers, stream, width, queries, keys, inner
    ):  # bytes a token: what a layer keeps for its backward, norms in float32
        inside = (16 + stream) * width + half * (2 * queries + 2 * keys + 5 * inner)
        return layers * width * stream + inside if checkpointing else layers * inside

    chunk = min(tokens, tokens_at_once(s.words))
    block = min(s.words, words_at_once(chunk))
    parts = {
        "gradients": 4 * adapters if lora else 4 * s.total / gpus,
        "gathered": half * (s.ends + 2 * s.layer) + 6 * s.ends if gpus > 1 and not lora else 0,
        "layers": tokens * over(s.layers, stream, s.width, s.queries, s.keys, s.inner)
        + (0 if checkpointing else half * s.total),
        "vision": 0
        if lora
        else s.merge * seen * over(s.depth, eye_stream, *3 * (s.eye_width,), s.eye_inner),
        "loss": 4 * chunk * (s.words + block)
        + (0 if lora else (4 + half) * s.words * s.width + half * block * s.width),
    }
    own = (
        0 if half == 4 and not lora else half * s.total
    )  # of the actor; on a CPU it lives on those of the role that speaks
    held = own + (16 * adapters if lora else 12 * s.total / gpus)
    return {
        "held": held,
        "slot": length * 2 * s.layers * s.keys * half + 24 * s.words,
        **parts,
        "training": held + sum(parts.values()),
    }


def needs(s: Settings, shape, gpus: int, pixels=0, half=2) -> dict:
    """memory() of a run, and `least`, what training and a single slot take; `slots`, those asked for; `length`, `tokens`.

    No prompt is longer than `length` says: what it quotes was cut when it was written, and a picture when it was encoded. A
    template has a token for three characters or more.
    """
    template = [
        len(text) // 3
        for text in (
            PROMPTS["proposer"],
            max(PROMPTS["coder"].values(), key=len),
            PROMPTS["solver"],
        )
    ]
    picture = (pixels or s.max_pixels) // shape.pixels
    length = max(
        template[0] + s.proposal_tokens,
        template[1] + s.proposal_tokens + s.code_tokens,
        template[2] + s.proposal_tokens + picture + s.answer_tokens,
    )
    tokens = max(
        s.token_budget, length
    )  # a reply that is longer than the budget is a pass by itself
    seen = tokens * picture / (picture + 128)  # each picture with a short question and reply
    m = memory(shape, gpus, s.lora, tokens, seen, length, s.checkpointing, half)
    return m | {
        "least": max(m["held"] + m["slot"], m["training"]) + RESERVE * (half == 2),
        "length": length,
        "tokens": tokens,
        "slots": s.slots or (128 if half == 2 else 512),
    }


def fitting(m: dict, card: float) -> int:
    """Slots that generate.py will find room for on a card of so many bytes: nine tenths of what is free; 0 if training does not fit."""
    return (
        0
        if m["least"] > card
        else max(1, min(m["slots"], int(0.9 * (card - m["held"] - RESERVE) / m["slot"])))
    )


def work(s: Settings) -> dict[str, dict]:
    """Phase -> what one iteration makes, if everything is valid and drawn: the most it can be.

    >>> work(Settings())["P"]
    {'proposals': 1440, 'codes': 5760, 'answers': 57600, 'pictures': 5760, 'updates': 20}
    """

    def steps(role):  # -> rollouts, updates
        count, prompts, rollouts, update = (
            getattr(s, f"{role}_{what}") for what in ("steps", "prompts", "rollouts", "update")
        )
        return count * prompts * rollouts, count * math.ceil(prompts / update)

    (p, p_updates), (c, c_updates), (r, r_updates) = map(steps, ("proposer", "coder", "solver"))
    fresh, sets, judged = s.coder_proposals, s.solver_proposals, 2 * s.answers
    rows = {
        "P": (p, p * s.codes, p * s.codes * judged, p * s.codes, p_updates),
        "C": (fresh, fresh * s.codes + c, c * judged, fresh * s.codes + c, c_updates),
        "S": (sets, sets, sets * 2 * s.labels + r, sets, r_updates),
    }
    return {
        phase: dict(zip(("proposals", "codes", "answers", "pictures", "updates"), row))
        for phase, row in rows.items()
    }


def plan(s: Settings, gpus=0) -> str | None:
    """Print the plan of a run on so many GPUs (0: those of this machine). -> None if it fits here, else one line that says why not."""
    check(s)
    shape = measure(read_config(s.model))
    cards = [
        torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())
    ]
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    file = (TINY if s.model == "tiny" else Path(s.model)) / "preprocessor_config.json"
    pixels = (
        s.max_pixels
        or file.exists()
        and json.loads(file.read_text()).get("max_pixels")
        or 16384 * shape.pixels
    )  # the hub's limit
    # In memory: three roles in float32 and a state (weights, moments) while it is saved; at the start, every rank's policy.
    adapters = s.lora * shape.per_rank
    host = lambda n: 2 * shape.total * n + 24 * adapters if s.lora else max(24, 4 * n) * shape.total
    m = needs(s, shape, 1, pixels, half=4)  # all on the CPU
    alone = host(1) + m["slots"] * m["slot"] + m["training"]
    if not (on_cpu := not gpus and not cards and alone <= ram):
        gpus = gpus or max(len(cards), 1)
        m = needs(s, shape, gpus, pixels)
    held, trained = (alone, "") if on_cpu else (host(gpus), f" per GPU ({gpus})")
    # On disk: checkpoints in float32 (LoRA: merged, in bf16, and the adapters), the old and the new state, the pictures.
    checkpoint, state = (
        (2 * shape.total + 4 * adapters, 12 * adapters)
        if s.lora
        else (4 * shape.total, 12 * shape.total)
    )
    disk = (
        s.iterations
        * (3 * checkpoint + PICTURE * (s.coder_proposals + s.solver_proposals + s.probe))
        + 2 * state
    )
    gb = lambda n: f"{n / 1e9:,.1f}" if n >= 1e9 else f"{n / 1e9:.3f}"

    print(
        f"{s.model}, {f'adapters of rank {s.lora}' if s.lora else 'all weights'}, {'on the CPU' if on_cpu else f'on {gpus} GPU' + 's' * (gpus > 1)}"
    )
    print(
        f"parameters, millions   {shape.total / 1e6:,.1f}: vision {shape.vision / 1e6:,.1f}, language {shape.language / 1e6:,.1f}, head "
        + (f"{shape.head / 1e6:,.1f}" if shape.head else "tied to the embedding")
        + (f"; adapters {adapters / 1e6:,.1f}" if s.lora else "")
    )
    print(f"GB{trained}, always".ljust(23) + gb(m["held"]))
    print(
        "    while sampling".ljust(23)
        + f"{gb(m['slot'])} more for each of {m['slots']} slots of {m['length']:,} tokens; fewer slots where that is too much"
    )
    print(
        "    while training".ljust(23)
        + f"{gb(m['training'] - m['held'])} more for a pass of {m['tokens']:,} tokens: "
        + ", ".join(
            f"{name} {gb(m[name])}"
            for name in ("gradients", "gathered", "layers", "vision", "loss")
            if m[name]
        )
    )
    print(
        f"GB, memory of the host {gb(held)}\nGB, disk               {gb(disk)} for {s.iterations} iterations: checkpoints, states, pictures"
    )
    print(
        "one iteration, at most (everything valid and drawn, every reply as long as it may be; measuring aside):"
    )
    rows, limits = (
        work(s),
        {"proposals": s.proposal_tokens, "codes": s.code_tokens, "answers": s.answer_tokens},
    )
    tokens = {
        phase: sum(row[kind] * limit for kind, limit in limits.items()) / 1e6
        for phase, row in rows.items()
    }
    for phase, row in rows.items():
        print(
            f"    phase {phase}  "
            + "  ".join(f"{number:7,} {name}" for name, number in row.items())
            + f"  {tokens[phase]:6,.0f} M tokens"
        )
    print(
        f"    hours    {sum(tokens.values()):,.0f} M tokens / (3600 * tokens per second); no rate was measured on a GPU yet"
    )

    out = Path(s.out or "runs").absolute()
    free = shutil.disk_usage(next(folder for folder in (out, *out.parents) if folder.exists())).free
    if not on_cpu and len(cards) < gpus:
        return (
            f"does not fit: {gpus} GPU{'s' * (gpus > 1)} of {gb(m['least'])} GB or more are needed, {len(cards) or 'none'} here"
            + f"; on the CPU alone it would take {gb(alone)} GB of memory, {gb(ram)} are there"
            * (not cards)
        )
    if not on_cpu and m["least"] > min(cards):
        return (
            f"does not fit: {gb(m['least'])} GB per GPU are needed, {gb(min(cards))} are there: try a --preset, --lora 32, a smaller "
            "--token-budget, shorter replies or more GPUs"
        )
    for name, need, there in (("memory", held, ram), ("disk", disk, free)):
        if need > there:
            return f"does not fit: {gb(need)} GB of {name} are needed, {gb(there)} are there"
    print("it fits this machine" + ("" if on_cpu else f", with {fitting(m, min(cards))} slots"))


def main():
    """The two tables of the README: GB by model, mode and GPUs; slots by model, preset and card."""

    def table(title, columns, cell):
        print(
            f"{title}\n\n| {'model':13} | "
            + " | ".join(f"{name:>7}" for name, *_ in columns)
            + " |"
        )
        print(
            "|:--------------|"
            + "".join("-" * (max(len(name), 7) + 1) + ":|" for name, *_ in columns)
        )
        for model in SHAPES:
            shape = measure(read_config(model))
            print(
                f"| {model:13} | "
                + " | ".join(cell(shape, *rest).rjust(max(len(name), 7)) for name, *rest in columns)
                + " |"
            )

    def least(shape, gpus, lora):
        return "–".join(
            f"{needs(replace(PRESETS[preset][0], lora=lora), shape, gpus)['least'] / 1e9:.0f}"
            for preset in ("1x48gb", "8x80gb")
        )

    def slots(shape, preset, card):
        return str(fitting(needs(PRESETS[preset][0], shape, int(preset[0])), CARDS[card]) or "no")

    table(
        "GB per GPU: with the lengths and pictures of --preset 1x48gb – with those of the paper",
        [
            ("all weights: 1 GPU", 1, 0),
            ("2 GPUs", 2, 0),
            ("4 GPUs", 4, 0),
            ("8 GPUs", 8, 0),
            ("LoRA 32: any number", 1, 32),
        ],
        least,
    )
    table(
        "\nSlots, by preset and card",
        [
            ("1x24gb on 16 GB", "1x24gb", "16gb"),
            ("24 GB", "1x24gb", "24gb"),
            ("48 GB", "1x24gb", "48gb"),
            ("1x48gb", "1x48gb", "48gb"),
            ("1x80gb", "1x80gb", "80gb"),
            ("8x80gb", "8x80gb", "80gb"),
        ],
        slots,
    )


if __name__ == "__main__":
    main()
