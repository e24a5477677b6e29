"""A judge: any text model of transformers reads what the rule calls wrong, and says yes or no.

    eval.py --judge Qwen/Qwen2.5-14B-Instruct       tools/audit.py RUN --judge ...

It is asked in batches, greedily, with the library's own `generate`. Every reply is kept in a file,
so that a judged evaluation that stops goes on. A text cannot break out of its turn, or else a
Solver could write the judge's verdict (support/chat.py).
"""

import hashlib
import json
import os
import re
from pathlib import Path

import torch
import transformers

from support import checkpoint, screen
from support.chat import Chat
from support.machine import reason, replacing
from support.parallel import gather, rank, rank_slice, world
from support.run_folder import read_jsonl

BATCH = 32  # questions side by side
ROOM = 0.9  # of the memory may be weights
WORDS = 8  # tokens of a reply
HASHED = (".safetensors", ".json", ".jinja")  # files of a checkpoint
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def find(name):
    """The folder of a text model, by its path or hub id.

    One line (ValueError, FileNotFoundError) if it is no causal language model, has no chat
    template, or if its weights do not fit this machine: they are fetched after that.
    """
    is_local, small = Path(name).is_dir(), ["*.json", "*.jinja", "*.txt"]
    folder = Path(name) if is_local else checkpoint.fetch(name, name, small)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # many classes: another kind of model, no model, no tokenizer
        what = f"the judge {name} is no causal language model"
        raise ValueError(f"{what}: {reason(error)[:160]}") from error
    Chat(tokenizer)  # ValueError without a template

    needed = sum(weight.numel() for weight in model.parameters()) * DTYPE.itemsize
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if DEVICE == "cuda":
        there = torch.cuda.get_device_properties(DEVICE).total_memory
    if needed > ROOM * there:
        sizes = f"{needed / 1e9:.1f} GB of weights, {there / 1e9:.1f} GB of memory"
        raise ValueError(f"the judge {name} does not fit: {sizes}")
    return folder if is_local else checkpoint.fetch(name, name, [*small, "*.safetensors"])


class Judge:
    """A causal language model with its tokenizer."""

    def __init__(self, folder):
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model, self.chat = network.to(DEVICE).eval(), Chat(tokenizer)
        ends = [*checkpoint.end_tokens(network, self.chat)]
        tokenizer.pad_token_id, tokenizer.padding_side = ends[0], "left"
        # The checkpoint's own settings may sample, or punish repetition.
        self.model.generation_config = transformers.GenerationConfig(
            eos_token_id=ends, pad_token_id=ends[0], max_new_tokens=WORDS
        )

    def reply(self, texts):
        """Greedy replies to one batch of texts, padded on the left."""
        prompts = {"input_ids": [self.chat.tokens([text]) for text in texts]}
        inputs = self.chat.tokenizer.pad(prompts, return_tensors="pt").to(DEVICE)
        made = self.model.generate(**inputs, do_sample=False)
        width = inputs["input_ids"].shape[1]
        return self.chat.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)


def ask(name, texts, path):
    """-> {text: reply}, from the file `path` where this judge was asked before.

    Each rank asks a slice of every chunk; all get all replies, and rank 0 writes.
    """
    folder, judge, known = find(name), None, {}
    mark = {"judge": name, "weights": fingerprint(folder)}
    for row in read_jsonl(path):
        if mark.items() <= row.items():
            known[row["asked"]] = row["reply"]
    new, size = sorted(set(texts) - set(known)), BATCH * world()
    starts = range(0, len(new), size)
    for start in screen.bar(starts, f"judge {name}", " chunks", shown=bool(new)):
        judge = judge or Judge(folder)
        chunk = new[start : start + size]
        own = rank_slice(chunk)
        replies = gather(judge.reply(own) if own else [])
        asked = dict(zip(chunk, replies, strict=True))
        append(path, [mark | {"asked": text, "reply": reply} for text, reply in asked.items()])
        known |= asked
    return {text: known[text] for text in texts}


def verdict(reply):
    """
    >>> verdict("Yes."), verdict(" **no**, it differs"), verdict("Perhaps")
    (True, False, None)
    """
    word = re.match(r"\W*(yes|no)\b", reply, re.IGNORECASE)
    return word[1].lower() == "yes" if word else None


def fingerprint(name):
    """A hash of a checkpoint's files, all of each: few weights may differ. Rank 0 reads them."""
    folders, found = [checkpoint.find_checkpoint(name)], hashlib.sha256()
    if checkpoint.read_json(name, checkpoint.ADAPTERS):
        folders.append(Path(name))
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        if rank() == 0 and path.suffix in HASHED:
            with open(path, "rb") as file:
                found.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return gather([found.hexdigest()[:16]])[0]


def append(path, rows):
    """Rows to the end of a file, by rank 0. Half a line, of whoever was stopped, is cut off."""
    if rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def replace(path, rows):
    """These are all rows of a file, by rank 0. It is never half written."""
    if rank() == 0 and read_jsonl(path) != rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            append(new, rows)
