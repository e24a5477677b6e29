"""transformers 4 loads what a run saves, and computes the same. Half of the field's tools use it.

pip puts such a version, without its dependencies, into a folder that comes first on the path.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_models import picture

from support.checkpoint import TINY
from vlm import VLM

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent.parent
QWEN2 = ("qwen2_vl", "qwen2_5_vl")
# What each needs besides, and the families that it knows.
VERSIONS = {
    "4.53.3": ("tokenizers==0.21.4", QWEN2),
    "4.57.1": ("tokenizers==0.22.2", (*QWEN2, "qwen3_vl")),
}
ALSO = "huggingface-hub==0.36.2 requests urllib3 charset-normalizer idna certifi".split()

WRITES_BASES = """
import sys, transformers
from helpers_models import make_checkpoint
for family in sys.argv[1:]:
    tied, real = family != "qwen2_5_vl", family == "qwen2_5_vl"
    make_checkpoint(family, family, std=0.15, tie=tied, real=real)
print(transformers.__version__)
"""
LOADS_ROLES = """
import sys, torch, transformers
from helpers_models import picture
for name in sys.argv[1:]:
    found = torch.load(name + ".pt")
    network = transformers.AutoModelForImageTextToText.from_pretrained(name, torch_dtype="float32")
    with torch.no_grad():
        logits = network(**found["inputs"], attention_mask=torch.ones(1, found["length"])).logits
    apart = (logits.log_softmax(-1) - found["logps"]).abs().max().item()
    assert apart < 1e-3, (name, apart)
    words = transformers.AutoTokenizer.from_pretrained(name)
    assert words(found["text"], add_special_tokens=False).input_ids == found["words"], name
    cutter = transformers.AutoImageProcessor.from_pretrained(name, use_fast=False)
    cut = cutter([picture(50, 90)], return_tensors="pt")
    assert torch.equal(cut["image_grid_thw"], found["inputs"]["image_grid_thw"]), name
    assert torch.allclose(cut["pixel_values"], found["inputs"]["pixel_values"], atol=1e-5), name
    ends = transformers.GenerationConfig.from_pretrained(name).eos_token_id
    assert set(ends) == set(found["ends"]), name
"""


def outside(folder, version, script, *arguments):
    paths = {"PYTHONPATH": f"{folder}:{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    environment = os.environ | paths
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder.parent, env=environment
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_transformers_4_loads_what_is_saved(version, tmp_path):
    tokenizers, families = VERSIONS[version]
    folder = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
    pip += [f"transformers=={version}", tokenizers, *ALSO]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip(f"pip serves no transformers {version} here")
    made = outside(folder, version, WRITES_BASES, *families)
    assert made.returncode == 0 and made.stdout.strip() == version, made.stderr[-3000:]

    text, saved = "how many bars are red?", []
    for base in (TINY, *(tmp_path / family for family in families)):
        vlm = VLM.load(base, device="cpu", dtype="float32")
        with torch.no_grad():
            for weight in vlm.model.parameters():
                weight.mul_(1.01)
        saved.append(f"{base.name}-role")
        role = tmp_path / saved[-1]
        vlm.save(role)
        # All but the weights are the base's own files.
        names = {file.name for file in base.iterdir()}
        assert names == {file.name for file in role.iterdir()}
        for name in names - {"model.safetensors", "prompts.json"}:
            assert (role / name).read_bytes() == (base / name).read_bytes(), (base, name)
        batch = vlm.collate([vlm.encode(text, [picture(50, 90)])])
        with torch.no_grad():
            logps = (vlm.hidden(batch) @ vlm.lm_head.T).log_softmax(-1)
        inputs = {key: batch[key] for key in ("input_ids", "pixel_values", "image_grid_thw")}
        words = vlm.tokenizer(text, add_special_tokens=False).input_ids
        found = {"inputs": inputs, "length": logps.shape[1], "logps": logps, "ends": vlm.eos_ids}
        found |= {"text": text, "words": words}
        torch.save(found, f"{role}.pt")
    done = outside(folder, version, LOADS_ROLES, *saved)
    assert done.returncode == 0, done.stderr[-3000:]
