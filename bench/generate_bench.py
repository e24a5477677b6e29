"""Sampling against transformers' own `generate`: `python bench/generate_bench.py`. Some ten minutes on two cores.

Same weights, prompts, pictures, number of replies, sampling settings and end tokens; both engines in turn in one
process, several rounds, medians; `ratio` is ours by theirs in tokens per second, round by round. Replies differ (two
random streams), their lengths have the same distribution; so rates are compared, not times.

    proposals, codes, answers   the embedded base on what a training run asks of it
    long                        random weights, about 100 M parameters, the real 151,936 words, prompts of 600 tokens with
                                a picture in them. One word in 150 ends a reply: lengths are geometric, a long tail, where
                                an engine that waits for the longest of a batch pays for the rest.
    2b                          (on a GPU) the shape of Qwen2-VL-2B in bf16, random weights, replies of 1,000 tokens
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("GOMP_SPINCOUNT", "20000")            # see mmzero.py

import torch
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from eval import charts
from generate import generate
from prompts import TOPICS, fill
from rewards import parse_proposal
from vlm import TINY, VLM


def ours(vlm, prompts, n, **sampling):
    return sum(len(reply.tokens) for group in generate(vlm, prompts, n=n, **sampling) for reply in group)


def theirs(vlm, prompts, n, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, batch=64):
    """transformers' generate in batches of `batch` replies: with everything at once its cache would be as long as the
    longest reply for all of them, and its advice is to batch. Pictures repeated, as it wants them. -> tokens sampled"""
    tokens, ends = 0, torch.tensor(vlm.eos_ids, device=vlm.device)
    step = max(1, batch // n)
    for i in range(0, len(prompts), step):
        inputs = vlm.collate(prompts[i:i + step])
        if "pictures" in inputs:
            order, grids = inputs.pop("pictures").tolist(), inputs["image_grid_thw"]
            patches = inputs["pixel_values"].split(grids.prod(1).tolist())
            inputs["pixel_values"], inputs["image_grid_thw"] = torch.cat([patches[k] for k in order]), grids[order]
        inputs.pop("position_ids")
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == vlm.config.image_token_id).int()
        found = vlm.model.generate(**inputs, do_sample=True, num_return_sequences=n, max_new_tokens=max_new_tokens, temperature=temperature,
                                   top_k=top_k, top_p=top_p, eos_token_id=list(vlm.eos_ids), pad_token_id=vlm.pad_id,
                                   suppress_tokens=[vlm.config.image_token_id, vlm.config.video_token_id])
        ended = torch.isin(found[:, inputs["input_ids"].shape[1]:], ends).int()              # [replies, T]
        tokens += int((ended.cumsum(1) - ended == 0).sum())                                  # up to and with the first end
    return tokens


def compare(name, vlm, prompts, n, rounds, batch=64, **sampling):
    engines = {"ours": lambda: ours(vlm, prompts, n, **sampling), "theirs": lambda: theirs(vlm, prompts, n, batch=batch, **sampling)}
    rates = {engine: [] for engine in engines}
    for number in range(rounds + 1):                                    # the first round is for warming up
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
    print(f"{name:<10} {len(prompts) * n:5} replies of {mean:5.0f} tokens   ours {a:7.0f} tokens/s {a / mean:6.1f} replies/s   "
          f"transformers {b:7.0f}   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def random_vlm(folder, device, dtype, **text) -> VLM:
    """A Qwen2-VL of a real shape and vocabulary with random weights; the words come from the embedded base's tokenizer."""
    base = VLM.load(TINY, device="cpu")
    ids = {k: getattr(base.config, f"{k}_token_id") for k in ("image", "video", "vision_start", "vision_end")}
    config = Qwen2VLConfig(text_config=dict(vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=None,
                                            eos_token_id=None, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]), **text),
                           vision_config=dict(hidden_size=text["hidden_size"], depth=4, embed_dim=320, num_heads=4), tie_word_embeddings=True,
                           **{f"{k}_token_id": v for k, v in ids.items()})
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration(config).to(dtype).eval()
    base.tokenizer.save_pretrained(folder)
    settings = base.side_files["preprocessor_config.json"]
    (folder / "preprocessor_config.json").write_text(settings.replace('"patch_size": 8', '"patch_size": 14')
                                                     .replace('"temporal_patch_size": 1', '"temporal_patch_size": 2'))
    model.generation_config.eos_token_id = list(range(1000, 151936, 150))
    vlm = VLM(model, base.tokenizer, folder)
    vlm.min_pixels, vlm.max_pixels = 256 * 28 * 28, 256 * 28 * 28
    return vlm


def main():
    parser = argparse.ArgumentParser(description="Tokens per second of generate.py against transformers' generate.")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each workload")
    parser.add_argument("--only", nargs="+", default=["proposals", "codes", "answers", "long", "2b"], help="workloads to run")
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if cuda else f'{torch.get_num_threads()} threads'}")
    if {"proposals", "codes", "answers"} & {*args.only}:
        vlm = VLM.load("tiny")
        propose = [vlm.encode(fill(vlm.prompts["proposer"], topic=topic)) for topic in TOPICS]
        if "proposals" in args.only:
            compare("proposals", vlm, propose, 64, args.rounds, batch=512, max_new_tokens=96, top_p=0.95)
        if "codes" in args.only:
            replies = [parse_proposal(r.text) for group in generate(vlm, propose, n=24, max_new_tokens=96) for r in group]
            codes = [vlm.encode(fill(vlm.prompts["coder"]["svg"], **vars(p))) for p in replies if p][:128]
            compare("codes", vlm, codes, 4, args.rounds, batch=512, max_new_tokens=160, temperature=0.7, top_p=0.95)
        if "answers" in args.only:
            answers = [vlm.encode(question, [picture]) for picture, question, _ in charts(128, of="validation")[0]]
            compare("answers", vlm, answers, 8, args.rounds, batch=512, max_new_tokens=64)
    with tempfile.TemporaryDirectory() as folder:
        if "long" in args.only:
            vlm = random_vlm(Path(folder), "cuda" if cuda else "cpu", torch.bfloat16 if cuda else torch.float32, hidden_size=512,
                             intermediate_size=1408, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=128)
            words = " ".join(TOPICS) * 3
            prompts = [vlm.encode(f"{i} {words}"[:900], [Image.new("RGB", (448, 448), (i, 90, 160))]) for i in range(8)]
            print(f"long: {sum(p.numel() for p in vlm.model.parameters()) / 1e6:.0f} M parameters, prompts of {len(prompts[0].tokens)} tokens")
            compare("long", vlm, prompts, 8, args.rounds, max_new_tokens=600)
        if "2b" in args.only and cuda:
            vlm = random_vlm(Path(folder), "cuda", torch.bfloat16, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                             num_attention_heads=12, num_key_value_heads=2)
            vlm.eos_ids = vlm.eos_ids[:1]
            prompts = [vlm.encode(str(i), [Image.new("RGB", (448, 448), (i, 90, 160))]) for i in range(32)]
            for n in (2, 8):
                compare(f"2b x {32 * n}", vlm, prompts, n, args.rounds, batch=256, max_new_tokens=1000)


if __name__ == "__main__":
    main()
