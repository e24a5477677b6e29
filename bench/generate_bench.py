"""Sampling against transformers' own `generate`: `python bench/generate_bench.py`.

Some ten minutes on two cores. Same weights, prompts, pictures, number of replies, sampling settings
and end tokens; both engines in turn in one process, several rounds, medians. `ratio` is ours by
theirs in tokens per second, round by round. Where ends are drawn, replies differ (two random
streams) and their lengths have the same distribution: so rates are compared, not times.

    proposals, codes, answers   the embedded base on what a training run asks of it
    tail                        ours alone: how much longer it takes when one reply in a hundred is
                                twice as long as the others. The last steps, which have only a few
                                of these to work on, weigh less the more replies there are: for 800,
                                and for 2,048, as many as a phase of a default run asks for
    long                        random weights, about 100 M parameters, the real 151,936 words,
                                prompts of 600 tokens with a picture in them, 8 replies each.
                                Lengths are forced, the same for both: quantiles of a log-normal
                                distribution with sigma 1. Who waits for the longest pays for it
    memory                      peak resident memory of both on `long`, each in its own process
    2b                          only where asked for, and on a GPU: the shape of Qwen2-VL-2B in
                                bf16, prompts of 1,000 tokens with a picture, lengths from 50 to
                                2,000, 64 and 256 replies; how near decoding comes to the memory's
                                speed
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # see mmzero.py

import torch
from PIL import Image
from transformers import LogitsProcessorList, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from eval import charts
from generate import Engine, generate
from prompts import TOPICS, fill
from rewards import parse_proposal
from support.checkpoint import TINY
from vlm import VLM


def ours(vlm, prompts, n, lengths=None, **sampling):
    if lengths is not None:  # no token ends a reply, so each goes up to its limit
        vlm.eos_ids, sampling["max_new_tokens"] = (), lengths
    return sum(
        len(reply.tokens) for group in generate(vlm, prompts, n=n, **sampling) for reply in group
    )


def forced(lengths, end, prompt):
    """For transformers: the end token when a reply has its length, and not before."""

    def process(ids, scores):
        now = (lengths <= ids.shape[1] - prompt + 1).to(scores.device)
        scores[:, end] = torch.where(now, 1e9, -torch.inf)
        return scores

    return LogitsProcessorList([process])


def long_tail(prompts, n, median, longest):
    """[prompts, n] lengths: quantiles of exp(N(log median, 1)), shuffled."""
    quantiles = (torch.arange(prompts * n) + 0.5) / (prompts * n)
    lengths = (torch.special.ndtri(quantiles).exp() * median).long().clamp(1, longest)
    return lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))].view(
        prompts, n
    )


def theirs(
    vlm,
    prompts,
    n,
    max_new_tokens=None,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    batch=64,
    lengths=None,
    min_new_tokens=None,
):
    """transformers' generate in batches of `batch` replies -> tokens sampled.

    With everything at once its cache would be as long as the longest reply for all of them, and its
    advice is to batch. Pictures are repeated, as it wants them.
    """
    if lengths is not None:
        vlm.eos_ids, max_new_tokens = (1000,), int(lengths.max())
    tokens, ends = 0, torch.tensor(vlm.eos_ids, device=vlm.device)
    step = max(1, batch // n)
    for i in range(0, len(prompts), step):
        inputs = vlm.collate(prompts[i : i + step])
        if "pictures" in inputs:
            order, grids = inputs.pop("pictures").tolist(), inputs["image_grid_thw"]
            patches = inputs["pixel_values"].split(grids.prod(1).tolist())
            inputs["pixel_values"], inputs["image_grid_thw"] = (
                torch.cat([patches[k] for k in order]),
                grids[order],
            )
        if "image_grid_thw" in inputs:
            inputs["image_grid_thw"] = inputs["image_grid_thw"].to(vlm.device)
        inputs.pop("position_ids")
        # It wants the padding on the left.
        padding = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
        for name in ("input_ids", "attention_mask"):
            rows = [row.roll(shift) for row, shift in zip(inputs[name], padding)]
            inputs[name] = torch.stack(rows)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == vlm.config.image_token_id).int()
        found = vlm.model.generate(
            **inputs,
            do_sample=True,
            num_return_sequences=n,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_token_id=list(vlm.eos_ids),
            pad_token_id=vlm.pad_id,
            suppress_tokens=[vlm.config.image_token_id, vlm.config.video_token_id],
            logits_processor=None
            if lengths is None
            else forced(lengths[i : i + step].flatten(), 1000, inputs["input_ids"].shape[1]),
        )
        ended = torch.isin(found[:, inputs["input_ids"].shape[1] :], ends).int()  # [replies, T]
        tokens += int((ended.cumsum(1) - ended == 0).sum())  # up to and with the first end
    return tokens


def compare(name, vlm, prompts, n, rounds, batch=64, **sampling):
    engines = {
        "ours": lambda: ours(vlm, prompts, n, **sampling),
        "theirs": lambda: theirs(vlm, prompts, n, batch=batch, **sampling),
    }
    rates = {engine: [] for engine in engines}
    if "lengths" in sampling:  # one long round: warmed up by a short one
        for run in (ours, theirs):
            run(vlm, prompts[:1], n, lengths=torch.full((1, n), 3))
    for number in range(
        1 if "lengths" in sampling else 0, rounds + 1
    ):  # the first round is for warming up
        for engine, run in engines.items():
            torch.manual_seed(number)
            begun = time.perf_counter()
            tokens = run()
            if vlm.device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                rates[engine].append(tokens / (time.perf_counter() - begun))
    mean = tokens / (len(prompts) * n)
    ratios = [a / b for a, b in zip(rates["ours"], rates["theirs"])]
    a, b = (statistics.median(rates[engine]) for engine in ("ours", "theirs"))
    print(
        f"{name:<10} {len(prompts) * n:5} replies of {mean:5.0f} tokens   "
        f"ours {a:7.0f} tokens/s {a / mean:6.1f} replies/s   transformers {b:7.0f}   "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def random_vlm(folder, device, dtype, **text) -> VLM:
    """A Qwen2-VL of a real shape and vocabulary with random weights; the embedded base's words."""
    base = VLM.load(TINY, device="cpu")
    ids = {
        k: getattr(base.config, f"{k}_token_id")
        for k in ("image", "video", "vision_start", "vision_end")
    }
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=151936,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
            **text,
        ),
        vision_config=dict(hidden_size=text["hidden_size"], depth=4, embed_dim=320, num_heads=4),
        tie_word_embeddings=True,
        **{f"{k}_token_id": v for k, v in ids.items()},
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration(config).to(dtype).eval()
    base.tokenizer.save_pretrained(folder)
    settings = base.side_files["preprocessor_config.json"]
    (folder / "preprocessor_config.json").write_text(
        settings.replace('"patch_size": 8', '"patch_size": 14').replace(
            '"temporal_patch_size": 1', '"temporal_patch_size": 2'
        )
    )
    model.generation_config.eos_token_id = list(range(1000, 151936, 150))
    vlm = VLM(model, base.tokenizer, folder)
    vlm.min_pixels, vlm.max_pixels = 256 * 28 * 28, 256 * 28 * 28
    return vlm


def long_workload(cuda, folder):
    vlm = random_vlm(
        Path(folder),
        "cuda" if cuda else "cpu",
        torch.bfloat16 if cuda else torch.float32,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
    )
    words = " ".join(TOPICS) * 3
    prompts = [
        vlm.encode(f"{i} {words}"[:900], [Image.new("RGB", (448, 448), (i, 90, 160))])
        for i in range(8)
    ]
    lengths = long_tail(8, 8, 24, 300)
    size = sum(p.numel() for p in vlm.model.parameters())
    print(
        f"long: {size / 1e6:.0f} M parameters, prompts of {len(prompts[0].tokens)} tokens, "
        f"replies of {int(lengths.min())} to {int(lengths.max())}",
        flush=True,
    )
    return vlm, prompts, lengths


def resident(field):
    """MB: VmRSS is what the process holds now, VmHWM the most it ever held."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) / 1024


def memory(engine, folder):
    """In a process of its own: the peak of one engine on `long`."""
    vlm, prompts, lengths = long_workload(False, folder)
    before = resident("VmRSS")
    {"ours": ours, "theirs": theirs}[engine](vlm, prompts, 8, lengths=lengths)
    print(
        f"memory     {engine:<6} {resident('VmHWM'):6.0f} MB at the peak, "
        f"of them {before:.0f} MB program and weights",
        flush=True,
    )


def tail(count, rounds):
    """Seconds for so many replies of 40 tokens, and with one in a hundred of 80."""
    vlm, seconds, tokens = VLM.load("tiny"), {40: [], 80: []}, {}
    prompts = [vlm.encode(fill(vlm.prompts["proposer"], topic=topic)) for topic in TOPICS]
    for number in range(rounds + 1):
        for longest in sorted(seconds, reverse=number % 2):
            lengths = torch.full((8, count // 8), 40)
            lengths[:, 7::100] = longest
            tokens[longest] = int(lengths.sum())
            begun = time.perf_counter()
            ours(vlm, prompts, count // 8, lengths)
            if number:
                seconds[longest].append(time.perf_counter() - begun)
    grown = [after / before - 1 for before, after in zip(*seconds.values())]
    more = 100 * (tokens[80] / tokens[40] - 1)
    print(
        f"tail       {count} replies, one in a hundred twice as long: "
        f"{100 * statistics.median(grown):+.1f} % time "
        f"({100 * min(grown):+.1f} to {100 * max(grown):+.1f}), +{more:.1f} % tokens",
        flush=True,
    )


def roofline(vlm, prompts, n, lengths):
    """How much of the measured copy bandwidth decoding reaches.

    The weights are read once a step, and of each slot the cache that it has.
    """
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    steps, step = 0, Engine.step
    target = torch.empty_like(source)

    def timed(run, times=1):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(times):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / times

    def counted(self, m, width):
        nonlocal steps
        steps += 1
        return step(self, m, width)

    timed(lambda: target.copy_(source))
    bandwidth = 2 * 2**30 / timed(lambda: target.copy_(source), 20)  # read and written
    prefill = timed(lambda: ours(vlm, prompts, n, torch.ones_like(lengths)))
    Engine.step = counted
    seconds = timed(lambda: ours(vlm, prompts, n, lengths)) - prefill
    Engine.step = step
    text = vlm.config.get_text_config()
    weights = sum(p.nbytes for p in vlm.model.model.language_model.parameters())
    token = (
        4
        * text.num_hidden_layers
        * text.num_key_value_heads
        * text.hidden_size
        // text.num_attention_heads
    )  # bytes, bf16
    context = sum(
        (len(prompt.tokens) + length / 2) * length
        for prompt, replies in zip(prompts, lengths.double())
        for length in replies
    )
    moved = steps * weights + float(context) * token
    print(
        f"2b x {n * len(prompts)}: {steps} steps, {100 * moved / seconds / bandwidth:.0f} % of "
        f"{bandwidth / 1e12:.2f} TB/s copy bandwidth"
    )


def main():
    parser = argparse.ArgumentParser(
        description="Tokens per second of generate.py against transformers' generate."
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each workload")
    names = ["proposals", "codes", "answers", "tail", "long", "memory", "2b"]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names[:-1],
        metavar="NAME",
        help=f"of {', '.join(names)}; all but the last",
    )
    parser.add_argument("--peak", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if args.peak:
        with tempfile.TemporaryDirectory() as folder:
            return memory(args.peak, folder)
    if "2b" in args.only and not cuda:
        sys.exit("generate_bench.py: 2b needs a GPU, and PyTorch finds none here")
    machine = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {machine}")
    if {"proposals", "codes", "answers"} & {*args.only}:
        vlm = VLM.load("tiny")
        propose = [vlm.encode(fill(vlm.prompts["proposer"], topic=topic)) for topic in TOPICS]
        if "proposals" in args.only:
            compare(
                "proposals", vlm, propose, 64, args.rounds, batch=512, max_new_tokens=96, top_p=0.95
            )
        if "codes" in args.only:
            replies = [
                parse_proposal(r.text)
                for group in generate(vlm, propose, n=24, max_new_tokens=96)
                for r in group
            ]
            codes = [
                vlm.encode(fill(vlm.prompts["coder"]["svg"], **vars(p))) for p in replies if p
            ][:128]
            compare(
                "codes",
                vlm,
                codes,
                4,
                args.rounds,
                batch=512,
                max_new_tokens=160,
                temperature=0.7,
                top_p=0.95,
            )
        if "answers" in args.only:
            answers = [
                vlm.encode(question, [picture])
                for picture, question, _ in charts(128, of="validation")[0]
            ]
            compare("answers", vlm, answers, 8, args.rounds, batch=512, max_new_tokens=64)
    if "tail" in args.only:
        for count in (800, 2048):
            tail(count, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        if "long" in args.only:
            vlm, prompts, lengths = long_workload(cuda, folder)
            compare("long", vlm, prompts, 8, 1, lengths=lengths)
            del vlm
        if "memory" in args.only and not cuda:
            for engine in ("theirs", "ours"):
                subprocess.run([sys.executable, __file__, "--peak", engine], check=True)
        if "2b" in args.only:
            vlm = random_vlm(
                Path(folder),
                "cuda",
                torch.bfloat16,
                hidden_size=1536,
                intermediate_size=8960,
                num_hidden_layers=28,
                num_attention_heads=12,
                num_key_value_heads=2,
            )
            words = " ".join(TOPICS) * 9
            prompts = [
                vlm.encode(f"{i} {words}"[:1900], [Image.new("RGB", (448, 448), (i, 90, 160))])
                for i in range(32)
            ]
            print(f"2b: prompts of {len(prompts[0].tokens)} tokens")
            for n in (2, 8):
                lengths = long_tail(32, n, 300, 2000).clamp(min=50)
                compare(f"2b x {32 * n}", vlm, prompts, n, 1, batch=256, lengths=lengths)
                roofline(vlm, prompts, n, lengths)


if __name__ == "__main__":
    main()
