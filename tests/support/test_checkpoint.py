"""Checkpoints are found, loaded, refused in one line, and written so that anyone can load them."""

import json
import subprocess
import sys

import pytest
import torch
from helpers_models import make_checkpoint, picture
from safetensors.torch import load_file, save_file

from prompts import PROMPTS
from support import checkpoint, packed
from support.checkpoint import FAMILIES, SHORT_NAMES, find_checkpoint
from vlm import VLM


def load(folder, **options):
    return VLM.load(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: make_checkpoint(root / family, family) for family in FAMILIES}


# ------------------------------------------------------------------------------ loading and saving

LOADS_IT_ALONE = """
import sys, torch, transformers
for family in sys.argv[1:]:
    expected = torch.load(family + ".pt")
    model = transformers.AutoModelForImageTextToText.from_pretrained(family)
    # Theirs cuts pictures by a convolution, ours by a product: rounding of logits up to 12.
    assert torch.allclose(model(**expected["batch"]).logits, expected["logits"], atol=1e-4)
    assert set(model.generation_config.eos_token_id) == set(expected["eos_ids"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(family)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False,
                                         add_generation_prompt=True)
    assert tokenizer(text).input_ids == expected["hi"]
    assert transformers.Qwen2VLImageProcessorPil.from_pretrained(family).patch_size == 8
"""


def test_saved_checkpoint_loads_with_the_library_alone(folders, tmp_path):
    for family in FAMILIES:
        model = load(folders[family])
        (tmp_path / family).mkdir()
        (tmp_path / family / "stale").write_text("of an older save")
        with torch.no_grad():
            model.lm_head.mul_(1.5)  # so that saving is not just copying files
        with packed.attention(model, "eager"):
            model.save(tmp_path / family)
        assert not (tmp_path / family / "stale").exists()
        again = load(tmp_path / family)
        hi = model.encode("hi").tokens
        assert again.prompts == model.prompts and again.encode("hi").tokens == hi
        for name, weight in model.state().items():
            assert torch.equal(weight, again.state()[name])
        with torch.no_grad():
            batch = model.collate([model.encode("what?", [picture(50, 70)])])
            logits = model.hidden(batch) @ model.lm_head.T
        expected = dict(batch=batch, logits=logits, eos_ids=model.eos_ids, hi=hi)
        torch.save(expected, tmp_path / f"{family}.pt")
    assert len(list(tmp_path.iterdir())) == 2 * len(FAMILIES)  # nothing temporary is left
    command = [sys.executable, "-c", LOADS_IT_ALONE, *FAMILIES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_save_that_fails_leaves_the_old_checkpoint(folders, tmp_path, monkeypatch):
    model = load(folders["qwen2_vl"])
    model.save(tmp_path / "model")
    # The disk is full, say.
    monkeypatch.setattr(model.tokenizer, "save_pretrained", lambda folder: 1 / 0)
    with torch.no_grad():
        model.lm_head.mul_(2)
    with pytest.raises(ZeroDivisionError):
        model.save(tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").lm_head * 2, model.lm_head)
    # The next save clears away what that one left.
    monkeypatch.undo()
    model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_untied_head_is_saved(tmp_path):
    model = load(make_checkpoint(tmp_path / "model", tie=False))
    assert not torch.equal(model.lm_head, model.model.get_input_embeddings().weight)
    with torch.no_grad():
        model.lm_head.mul_(2)
    model.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out").lm_head, model.lm_head)


def test_prompts_of_the_project_without_prompts_json(tmp_path):
    assert load(make_checkpoint(tmp_path / "model", prompts=False)).prompts == PROMPTS


def test_end_tokens_come_from_both_files(folders, tmp_path):
    model = load(folders["qwen2_vl"])
    end, text_end = model.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert set(model.eos_ids) == {end, text_end}
    model.model.generation_config.eos_token_id = text_end
    model.save(tmp_path / "one")
    # The tokenizer names the other.
    assert set(load(tmp_path / "one").eos_ids) == {end, text_end}


def test_newer_places_of_settings(folders, tmp_path):
    """Picture settings in processor_config.json; chat_template.json before a tokenizer's own."""
    model = load(folders["qwen2_vl"])
    expected = model.encode("what?", [picture(50, 70)]).tokens
    settings = json.loads(model.side_files.pop("preprocessor_config.json"))
    model.side_files["processor_config.json"] = json.dumps({"image_processor": settings})
    template = {"chat_template": model.tokenizer.chat_template}
    model.side_files["chat_template.json"] = json.dumps(template)
    model.tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.encode("what?", [picture(50, 70)]).tokens == expected
    assert (again.patch, again.min_pixels, again.max_pixels) == (8, 256, 16384)


# ---------------------------------------------------------------------------- finding and refusing


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_unknown_names(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        VLM.load("no-such-model")
    assert "Qwen2-VL-2B" in one_line(error)
    with pytest.raises(FileNotFoundError) as error:
        VLM.load(tmp_path)
    assert "config.json" in one_line(error)

    def fetch(hub_id, **_):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for name, hub_id in [
        ("Qwen2-VL-2B", "Qwen/Qwen2-VL-2B-Instruct"),
        ("some/model", "some/model"),
        ("Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("Qwen3-VL-8B", "Qwen/Qwen3-VL-8B-Instruct"),
        ("MiMo-VL-7B", "XiaomiMiMo/MiMo-VL-7B-SFT-2508"),
    ]:
        with pytest.raises(FileNotFoundError) as error:
            VLM.load(name)
        folder = name.split("/")[-1]
        help = f"hf download {hub_id} --local-dir {folder}, then here: --model {folder}"
        assert help in one_line(error)


def test_a_folder_named_like_a_short_name_is_it(monkeypatch, tmp_path):
    """What the line above says works: after `hf download ... --local-dir Qwen2-VL-2B` the same
    command finds the folder."""
    make_checkpoint(tmp_path / "Qwen2-VL-2B", real=True, prompts=False)
    monkeypatch.chdir(tmp_path)
    model = load("Qwen2-VL-2B")
    assert model.prompts == PROMPTS
    assert "You help" in model.tokenizer.decode(model.encode("hi", [picture(64, 64)]).tokens)


def test_short_name_is_fetched_and_another_family_before_its_weights_is_not(
    monkeypatch, folders, tmp_path
):
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision"}')
    hub, asked = {"Qwen/Qwen2-VL-2B-Instruct": folders["qwen2_vl"], "some/llava": tmp_path}, []

    def fetch(hub_id, allow_patterns):
        asked.append("*.safetensors" in allow_patterns)
        return hub[hub_id]

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert find_checkpoint("Qwen2-VL-2B") == folders["qwen2_vl"]
    assert asked == [False, True]
    assert find_checkpoint("Qwen2-VL-2B", weights=False) == folders["qwen2_vl"]
    assert asked == [False, True, False]
    with pytest.raises(ValueError, match="'llava_onevision'; supported are Qwen2-VL"):
        find_checkpoint("some/llava")
    assert asked == [False, True, False, False]


def test_tiny_is_a_folder_of_the_project(monkeypatch, folders, tmp_path):
    monkeypatch.setattr(checkpoint, "TINY", folders["qwen3_vl"])
    assert load("tiny").family == "qwen3_vl"
    monkeypatch.setattr(checkpoint, "TINY", tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        VLM.load("tiny")
    assert "config.json" in one_line(error)


@pytest.mark.parametrize("kind", ["llama", "llava", "qwen3_vl_moe", "internvl", "gemma3"])
def test_another_model_is_refused_by_name(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ValueError) as error:
        VLM.load(tmp_path)
    text = one_line(error)
    assert f"'{kind}'" in text
    for name in ("Qwen2-VL", "Qwen2.5-VL", "MiMo-VL", "Qwen3-VL", *SHORT_NAMES):
        assert name in text


def test_a_config_that_is_no_json(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json"):
        VLM.load(tmp_path)


def test_incomplete_checkpoints(tmp_path):
    folder = make_checkpoint(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(FileNotFoundError) as error:
        load(folder)
    one_line(error)
    (folder / "model.safetensors").write_bytes(whole)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layers.1.mlp" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing.*layers.1.mlp"):  # not: made up at random
        load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="chat template"):
        load(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        load(folder)
