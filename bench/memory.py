"""What a run needs per GPU, by formula: model x (full, LoRA) x GPUs. It opens no model and needs no GPU.

    python bench/memory.py                            the table of the README, for the paper's settings
    python bench/memory.py --lora 64 --slots 32       for others

P parameters, N GPUs, T tokens per pass (--token-budget), L layers, D hidden size. Bytes on each GPU, held all the time:

    actor                 2 P                bf16, whole on each
    policy, full          (4 + 8) P / N      float32 masters and AdamW's two moments, sharded
    policy, LoRA          (4 + 8 + 4) A      its adapters, their moments, the actor's adapters; the base is the actor's

and on top of that whichever is larger. While sampling:

    KV cache              slots * length * 2 * L * key/value heads * head size * 2

while training:

    gradients             4 P / N            LoRA: 4 A
    bf16 weights          2 P (N = 1)        autocast keeps its copies for one forward pass
                          embedding, head and two layers (N > 1): what FSDP holds gathered at a time
    activations           checkpoints at the layers' borders (float32 for N = 1 without LoRA, else bf16), one layer's inside,
                          and the loss: four buffers of 64 MB and a float32 gradient of the head (full)

Not in it: the CUDA context and fragmentation (1 to 2 GB), and the vision tower's activations, which are those of one
picture at a time where a micro-batch has one.
"""
import argparse

#        name            P (10^9)  L    D   heads kv  head  inner  vocabulary  tied
MODELS = (("Qwen2-VL-2B",    2.21, 28, 1536, 12, 2, 128,  8960, 151936, True),
          ("Qwen2.5-VL-3B",  3.75, 36, 2048, 16, 2, 128, 11008, 151936, True),
          ("Qwen3-VL-4B",    4.44, 36, 2560, 32, 8, 128,  9728, 151936, True),
          ("Qwen2-VL-7B",    8.29, 28, 3584, 28, 4, 128, 18944, 152064, False),
          ("Qwen3-VL-8B",    8.77, 36, 4096, 32, 8, 128, 12288, 151936, False))


def memory(model, gpus=1, lora=0, tokens=16384, slots=128, length=2048):
    """Bytes per GPU -> dict of its parts; "sampling" and "training" are the two peaks.

    >>> m = memory(MODELS[0])
    >>> round(m["held"] / 1e9, 1), m["training"] > m["held"]        # 2.21 * (2 + 12)
    (30.9, True)
    """
    _, billions, layers, width, heads, kv, size, inner, words, tied = model
    p = billions * 1e9
    shapes = [(width, heads * size), (width, kv * size), (width, kv * size), (heads * size, width),
              (width, inner), (width, inner), (inner, width)]                   # q k v o gate up down
    layer, ends = sum(i * o for i, o in shapes), words * width * (1 if tied else 2)
    adapters = layers * lora * sum(i + o for i, o in shapes)
    held = 2 * p + (16 * adapters if lora else 12 * p / gpus)
    cache = slots * length * 2 * layers * kv * size * 2
    gathered = 0 if lora else 2 * p if gpus == 1 else 2 * (ends + 2 * layer)
    border = 4 if gpus == 1 and not lora else 2
    inside = tokens * (4 * width + 2 * (heads + 2 * kv) * size + 4 * inner) * 2      # of the layer that is recomputed
    loss = 4 * 2**26 + (0 if lora else 4 * words * width)
    activations = tokens * layers * width * border + inside + loss
    gradients = 4 * adapters if lora else 4 * p / gpus
    return {"held": held, "cache": cache, "gradients": gradients, "gathered": gathered, "activations": activations,
            "sampling": held + cache, "training": held + gradients + gathered + activations}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default, says in (("lora", 32, "rank of the adapters"), ("tokens", 16384, "tokens per pass"),
                                ("slots", 128, "completions decoded side by side"), ("length", 2048, "tokens of the longest, prompt included")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{says} [{default}]")
    args = vars(parser.parse_args())
    lora = args.pop("lora")
    print(f"GB (10^9 bytes) per GPU, while sampling / while training: the larger has to fit. {args}\n")
    print("| model         | full, 1 GPU | full, 2   | full, 4   | full, 8   | LoRA " + f"{lora}".ljust(4) + " |")
    print("|:--------------|------------:|----------:|----------:|----------:|----------:|")
    for model in MODELS:
        cells = [memory(model, n, **args) for n in (1, 2, 4, 8)] + [memory(model, lora=lora, **args)]
        shown = [f"{c['sampling'] / 1e9:.0f} / {c['training'] / 1e9:.0f}" for c in cells]
        print(f"| {model[0]:13} | {shown[0]:>11} | " + " | ".join(f"{s:>9}" for s in shown[1:]) + " |")


if __name__ == "__main__":
    main()
