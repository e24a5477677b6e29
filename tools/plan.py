"""What a run would need, before it begins: no weights are loaded, no GPU and no network is needed.

    python mmzero.py --model Qwen2-VL-2B --preset 1x48gb --dry-run    does a run fit this machine?
    python tools/plan.py               GB per GPU by model, mode and GPUs; slots by preset and card

Parameters are counted on the network itself, built from its config on the meta device. Memory is a
formula: read `memory`. tests/tools/test_plan.py holds it against what real steps allocate.
"""

import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

# Run as a program, it finds the modules above it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from prompts import PROMPTS
from support.checkpoint import FAMILIES, TINY, check_family, find_checkpoint, picture_settings
from support.packed import LOGITS
from support.settings import PAPER, PRESETS, Settings, check

# Public facts of the checkpoints: family, is lm_head tied to the embedding, words, language model
# (SIZES), vision tower (width, layers, inside the MLP; of MiMo-VL from memory: 0.1 % of it).
SIZES = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size"
SHAPES = {
    "Qwen2-VL-2B": ("qwen2_vl", True, 151936, (1536, 28, 12, 2, 8960), (1280, 32, 5120)),
    "Qwen2-VL-7B": ("qwen2_vl", False, 152064, (3584, 28, 28, 4, 18944), (1280, 32, 5120)),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", True, 151936, (2048, 36, 16, 2, 11008), (1280, 32, 3420)),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", False, 152064, (3584, 28, 28, 4, 18944), (1280, 32, 3420)),
    "MiMo-VL-7B": ("qwen2_5_vl", False, 151680, (4096, 36, 32, 8, 11008), (1280, 32, 3456)),
    "Qwen3-VL-2B": ("qwen3_vl", True, 151936, (2048, 28, 16, 8, 6144), (1024, 24, 4096)),
    "Qwen3-VL-4B": ("qwen3_vl", True, 151936, (2560, 36, 32, 8, 9728), (1024, 24, 4096)),
    "Qwen3-VL-8B": ("qwen3_vl", False, 151936, (4096, 36, 32, 8, 12288), (1152, 27, 4304)),
}
# Bytes that the driver shows of an A2, an A10G, an L40S, an H100.
CARDS = {"16gb": 16.1e9, "24gb": 24.1e9, "48gb": 48.3e9, "80gb": 85.0e9}
# What --preset auto tries, and the most tokens of a pass that it asks for.
LARGEST_FIRST, LONGEST_PASS = ("8x80gb", "1x80gb", "1x48gb", "1x24gb"), 65536
RESERVE = 1.5e9  # bytes per GPU that the formula does not see: CUDA's context, fragmentation
PICTURE = 12e3  # bytes of a PNG: the matplotlib chart of bench/render_bench.py
gb = lambda size: f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.3f}"


def read_config(name: str):
    """transformers' config of a folder, of `tiny`, of a short name in SHAPES, or of a hub id."""
    if name not in SHAPES or Path(name).is_dir():
        folder = find_checkpoint(name, weights=False)
        check_family(folder)
        return transformers.AutoConfig.from_pretrained(folder)
    family, tied, words, sizes, (width, layers, inner) = SHAPES[name]
    text = dict(zip(SIZES.split(), sizes), vocab_size=words)
    vision = dict(hidden_size=width, out_hidden_size=sizes[0], intermediate_size=inner)
    if family == "qwen2_vl":
        vision = dict(embed_dim=width, hidden_size=sizes[0], mlp_ratio=inner // width)
    if family == "qwen3_vl":
        text["head_dim"] = 128
        vision["num_position_embeddings"] = 2304
        vision["deepstack_visual_indexes"] = [5, 11, 17] if layers == 24 else [8, 16, 24]
    vision |= {"depth": layers, "num_heads": 16}
    config = getattr(transformers, FAMILIES[family]).config_class
    return config(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def measure(config) -> SimpleNamespace:
    """The parameters of a network, and the sizes that memory depends on.

    >>> shape = measure(read_config("Qwen2-VL-2B"))
    >>> shape.total, shape.vision, shape.language, shape.lm_head
    (2208985600, 665271296, 1543714304, 0)
    """
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[config.model_type])(config)
    language, visual = model.model.language_model, model.model.visual
    text, vision = config.get_text_config(), config.vision_config
    layer = language.layers[0]
    count = lambda module: sum(p.numel() for p in module.parameters())
    linear = lambda module: [m for m in module.modules() if type(m) is torch.nn.Linear]
    lm_head = count(model) - count(model.model)  # 0 where it is the embedding
    return SimpleNamespace(
        family=config.model_type,
        total=count(model),
        vision=count(visual),
        language=count(language),
        lm_head=lm_head,
        ends=count(language.embed_tokens) + lm_head,
        layer=count(layer),
        layers=len(language.layers),
        width=text.hidden_size,
        inner=text.intermediate_size,
        words=text.vocab_size,
        queries=layer.self_attn.q_proj.out_features,  # heads * head size
        keys=layer.self_attn.k_proj.out_features,  # key/value heads * head size
        per_rank=sum(m.in_features + m.out_features for m in linear(language.layers)),
        vision_layers=len(visual.blocks),
        vision_width=visual.patch_embed.embed_dim,
        vision_inner=max(m.out_features for m in linear(visual.blocks[0].mlp)),
        patches=vision.spatial_merge_size**2,  # of a token
        pixels=(vision.patch_size * vision.spatial_merge_size) ** 2,  # of a token
    )


def memory(shape, gpus=1, lora=0, tokens=16384, seen=0, length=8192, checkpointing=True, half=2):
    """Bytes on each GPU by what they are for. tokens: of a pass; seen: those of them of pictures;
    length: of a prompt and its reply; half: bytes of the compute type, 2 for bf16, 4 on a CPU.

    >>> round(memory(measure(read_config("Qwen2-VL-2B")))["held"] / 1e9, 1)     # 2.209 * (2 + 12)
    30.9
    """
    adapters = lora * shape.per_rank
    trained = adapters if lora else shape.total / gpus
    sharded = gpus > 1 and not lora

    # All the time: the actor; float32 masters and AdamW's two moments; adapters of the actor, too.
    held = half * shape.total + (4 + 8) * trained + 4 * adapters
    # While sampling, for each slot: keys and values of all layers, and what drawing a word takes.
    slot = length * 2 * shape.layers * shape.keys * half + 24 * shape.words

    # While training. FSDP has in one piece: two layers; embedding and lm_head, and their gradients.
    gathered = 0
    if sharded:
        gathered = half * (shape.ends + 2 * shape.layer) + 6 * shape.ends
    # What layers keep for the backward pass. The residual stream has the type of the embedding.
    stream = half if sharded or lora else 4
    sizes = shape.width, shape.queries, shape.keys, shape.inner
    layers = tokens * kept(shape.layers, *sizes, stream, half, checkpointing)
    if not checkpointing:  # autograd then keeps every weight in bf16
        layers += half * shape.total
    # That of the vision tower has the type of the convolution, to which Qwen3-VL adds an embedding.
    stream = stream if shape.family == "qwen3_vl" else half
    sizes = *[shape.vision_width] * 3, shape.vision_inner
    vision = shape.patches * seen * kept(shape.vision_layers, *sizes, stream, half, checkpointing)
    # The loss has the logits of a chunk of tokens, and their log-softmax.
    loss = 8 * min(tokens * shape.words, LOGITS["cuda"])
    if lora:  # which leaves vision tower and lm_head alone
        vision = 0
    else:  # lm_head in bf16 and a block of it, and its float32 gradient
        loss += (4 + half) * shape.words * shape.width

    training = {"gradients": 4 * trained, "gathered": gathered, "layers": layers}
    training |= {"vision": vision, "loss": loss}
    return {"held": held, "slot": slot, **training, "training": held + sum(training.values())}


def kept(layers, width, queries, keys, inner, stream, half, checkpointing) -> int:
    """Bytes of a token that layers keep for the backward pass: of one layer norms in float32, the
    residual stream, attention and MLP. With checkpointing all borders, and the inside of one."""
    inside = (16 + stream) * width + half * (2 * queries + 2 * keys + 5 * inner)
    return layers * width * stream + inside if checkpointing else layers * inside


def needs(settings: Settings, shape, gpus: int, pixels=0, half=2) -> dict:
    """memory() of a run, and `least`, what training and a single slot take; `slots`, those asked
    for; `length` of a prompt and its reply; `tokens` of a pass; `host`, bytes of memory; `disk`."""
    # No prompt is longer: what it quotes was cut when it was written, and a picture when it was
    # encoded. A template has a token for three characters or more.
    coder = max(PROMPTS["coder"].values(), key=len)
    picture = (pixels or settings.max_pixels) // shape.pixels
    length = settings.proposal_tokens + max(
        len(PROMPTS["proposer"]) // 3,
        len(coder) // 3 + settings.code_tokens,
        len(PROMPTS["solver"]) // 3 + picture + settings.answer_tokens,
    )
    tokens = max(settings.token_budget, length)  # one reply above the budget is a pass by itself
    seen = tokens * picture / (picture + 128)  # each picture with a short question and reply
    needed = memory(shape, gpus, settings.lora, tokens, seen, length, settings.checkpointing, half)
    least = max(needed["held"] + needed["slot"], needed["training"])
    reserve, slots = RESERVE if half == 2 else 0, settings.slots or 512
    needed |= {"least": least + reserve, "length": length, "tokens": tokens, "slots": slots}

    # The host's memory: three roles in float32, and a state (weights, moments) while it is saved.
    # At the start, a policy of every rank. Checkpoints are float32; of LoRA, adapters alone.
    total, adapters = shape.total, settings.lora * shape.per_rank
    host, checkpoint, state = max(24, 4 * gpus) * total, 4 * total, 12 * total
    if settings.lora:
        host = 2 * total * gpus + 24 * adapters
        checkpoint, state = 4 * adapters, 12 * adapters
    pictures = settings.coder_proposals + settings.solver_proposals + settings.probe
    disk = settings.iterations * (3 * checkpoint + PICTURE * pictures) + 2 * state
    return needed | {"host": host, "disk": disk}


def fitting(needed: dict, card: float) -> int:
    """Slots for which generate.py will find room on a card of so many bytes; 0: it cannot train."""
    if needed["least"] > card:
        return 0
    room = 0.9 * (card - needed["held"] - RESERVE)
    return max(1, min(needed["slots"], int(room / needed["slot"])))


def work(settings: Settings) -> dict[str, dict]:
    """Phase -> what one iteration makes, if everything is valid and drawn: the most it can be.

    >>> work(Settings())["P"]
    {'proposals': 1440, 'codes': 5760, 'answers': 57600, 'pictures': 5760, 'updates': 20}
    """
    rollouts, updates = {}, {}
    for role in ("proposer", "coder", "solver"):
        words = "steps", "prompts", "rollouts", "update"
        steps, prompts, replies, update = (getattr(settings, f"{role}_{word}") for word in words)
        rollouts[role] = steps * prompts * replies
        updates[role] = steps * math.ceil(prompts / update)
    judged = 2 * settings.answers  # an easy and a hard question
    tried = rollouts["proposer"] * settings.codes
    # A role that is never trained has no phase.
    imagined = settings.coder_proposals if settings.coder_steps else 0
    made = settings.solver_proposals if settings.solver_steps else 0
    drawn = imagined * settings.codes + rollouts["coder"]
    solved = made * 2 * settings.labels + rollouts["solver"]
    counts = {
        "P": (rollouts["proposer"], tried, tried * judged, tried, updates["proposer"]),
        "C": (imagined, drawn, rollouts["coder"] * judged, drawn, updates["coder"]),
        "S": (made, made, solved, made, updates["solver"]),
    }
    names = "proposals", "codes", "answers", "pictures", "updates"
    return {phase: dict(zip(names, numbers)) for phase, numbers in counts.items()}


def plan(settings: Settings, gpus=0) -> str | None:
    """Print the plan of a run on so many GPUs (0: those of this machine). -> None if it fits here,
    else one line that says why not."""
    check(settings)
    config, cards = read_config(settings.model), cards_here()
    shape, count = measure(config), len(cards)
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    folder = TINY if settings.model == "tiny" else Path(settings.model)
    pixels = settings.max_pixels or 16384 * shape.pixels  # the hub's limit
    if not settings.max_pixels and (folder / "config.json").exists():
        pixels = picture_settings(folder, config.vision_config)["max_pixels"]

    # On the CPU, where there is no GPU and all fits into memory.
    needed = needs(settings, shape, 1, pixels, half=4)
    needed["host"] += needed["slots"] * needed["slot"] + needed["training"]
    where, alone = "the CPU", needed["host"]
    if gpus or cards or alone > ram:
        gpus = gpus or max(count, 1)
        where = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        needed = needs(settings, shape, gpus, pixels)
    describe(settings, shape, where, needed)

    if count < gpus:
        reason = f"{where} of {gb(needed['least'])} GB or more are needed, {count or 'none'} here"
        if not cards:
            reason += f"; on the CPU it would take {gb(alone)} GB of memory, {gb(ram)} are there"
        return f"does not fit: {reason}"
    if gpus and needed["least"] > min(cards):
        reason = f"{gb(needed['least'])} GB per GPU are needed, {gb(min(cards))} are there"
        advice = "a --preset, --lora 32, a smaller --token-budget, shorter replies or more GPUs"
        return f"does not fit: {reason}: try {advice}"
    out = Path(settings.out or "runs").absolute()
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    for name, need, have in (("memory", needed["host"], ram), ("disk", needed["disk"], free)):
        if need > have:
            return f"does not fit: {gb(need)} GB of {name} are needed, {gb(have)} are there"
    slots = f", with {fitting(needed, min(cards))} slots" if gpus else ""
    print(f"it fits this machine{slots}")


def auto(given: dict, gpus=None) -> Settings:
    """--preset auto: the largest preset that fits, with passes as long as memory allows.

    given: the settings that were. gpus: of a dry run, 0 for those of this machine; None: as many as
    this run has. ValueError: none fits, or the card is too old.
    """
    cards = cards_here()
    if gpus is None:
        gpus = int(os.environ.get("WORLD_SIZE", 1))
    gpus = gpus or len(cards) or 1
    if not cards:
        print("--preset auto: no GPU here, so it is --preset paper")
        return replace(PAPER, **given)
    shape, card = measure(read_config(given["model"])), min(cards)
    fits = lambda settings: needs(settings, shape, gpus)["least"] <= card
    for name in LARGEST_FIRST:
        settings = replace(PRESETS[name][0], **given)
        if int(name[0]) <= gpus and fits(settings):
            break
    else:
        least = gb(needs(settings, shape, gpus)["least"])
        raise ValueError(
            f"{given['model']} fits no preset on {gpus} of these GPUs, which have {gb(card)} GB: "
            f"{name} takes {least}. A smaller model, a larger card, or more of them"
        )
    by_hand = f"--preset {name}"
    if "token_budget" not in given:
        longer = settings
        while longer.token_budget <= LONGEST_PASS and fits(longer):
            settings = longer
            longer = replace(longer, token_budget=2 * longer.token_budget)
        by_hand += f" --token-budget {settings.token_budget}"
    if os.environ.get("RANK", "0") == "0":
        takes = gb(needs(settings, shape, gpus)["least"])
        print(f"--preset auto: {takes} of {gb(card)} GB on {gpus} GPU; by hand: {by_hand}")
    return settings


def cards_here() -> list[int]:
    """The memory of each GPU in bytes. ValueError: one of them has no bfloat16."""
    cards = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        if (facts.major, facts.minor) < (8, 0):
            text = "has no bfloat16, which training needs: take a GPU of 2020 (Ampere) or newer"
            raise ValueError(f"{facts.name} {text}, or hide it with CUDA_VISIBLE_DEVICES=''")
        cards.append(facts.total_memory)
    return cards


def describe(settings: Settings, shape, where: str, needed: dict):
    """Print what a run needs and makes."""
    millions = lambda count: f"{count / 1e6:,.1f}"
    trained, adapters = "all weights", ""
    if settings.lora:
        trained = f"adapters of rank {settings.lora}"
        adapters = f"; adapters {millions(settings.lora * shape.per_rank)}"
    lm_head = millions(shape.lm_head) if shape.lm_head else "tied to the embedding"
    weights = f"vision {millions(shape.vision)}, language {millions(shape.language)}"
    print(f"{settings.model}, {trained}, on {where}")
    print(f"parameters, millions   {millions(shape.total)}: {weights}, head {lm_head}{adapters}")

    names = "gradients", "gathered", "layers", "vision", "loss"
    inside = ", ".join(f"{name} {gb(needed[name])}" for name in names if needed[name])
    slots = f"{needed['slots']} slots of {needed['length']:,} tokens; or fewer slots"
    training = gb(needed["training"] - needed["held"])
    print(f"GB on each, always     {gb(needed['held'])}")
    print(f"    while sampling     {gb(needed['slot'])} more for each of {slots}")
    print(f"    while training     {training} more for {needed['tokens']:,} tokens: {inside}")
    print(f"GB, memory of the host {gb(needed['host'])}")
    print(f"GB, disk               {gb(needed['disk'])} for {settings.iterations} iterations")
    print("one iteration, if everything is valid and drawn, and replies are as long as may be:")
    lengths = settings.proposal_tokens, settings.code_tokens, settings.answer_tokens
    for phase, counts in work(settings).items():
        numbers = "  ".join(f"{number:7,} {name}" for name, number in counts.items())
        tokens = sum(number * length for number, length in zip(counts.values(), lengths))
        print(f"    phase {phase}  {numbers}  {tokens / 1e6:6,.0f} M tokens")


def table(columns, cell, shapes: dict):
    """Print a Markdown table. columns: heading -> what `cell` is given beside the shape."""
    print(f"| {'model':13} | " + " | ".join(f"{name:>7}" for name in columns) + " |")
    widths = [max(len(name), 7) for name in columns]
    print("|:--------------|" + "".join("-" * (width + 1) + ":|" for width in widths))
    for model, shape in shapes.items():
        texts = [cell(shape, *column) for column in columns.values()]
        line = " | ".join(text.rjust(width) for text, width in zip(texts, widths))
        print(f"| {model:13} | {line} |")


def main():
    """The two tables of docs/memory.md."""
    shapes = {model: measure(read_config(model)) for model in SHAPES}
    modes = {"all weights: 1 GPU": (1, 0), "2 GPUs": (2, 0), "4 GPUs": (4, 0), "8 GPUs": (8, 0)}
    modes["LoRA 32: any number"] = (1, 32)
    cards = {"1x24gb on 16 GB": ("1x24gb", "16gb"), "24 GB": ("1x24gb", "24gb")}
    cards |= {"48 GB": ("1x24gb", "48gb"), "1x48gb": ("1x48gb", "48gb")}
    cards |= {"1x80gb": ("1x80gb", "80gb"), "8x80gb": ("8x80gb", "80gb")}

    def least(shape, gpus, lora):
        runs = [replace(PRESETS[preset][0], lora=lora) for preset in ("1x48gb", "8x80gb")]
        return "–".join(f"{needs(run, shape, gpus)['least'] / 1e9:.0f}" for run in runs)

    def slots(shape, preset, card):
        needed = needs(PRESETS[preset][0], shape, int(preset[0]))
        return str(fitting(needed, CARDS[card]) or "no")

    print("GB per GPU: with the lengths of --preset 1x48gb – with those of the paper\n")
    table(modes, least, shapes)
    print("\nSlots, by preset and card\n")
    table(cards, slots, shapes)


if __name__ == "__main__":
    main()
