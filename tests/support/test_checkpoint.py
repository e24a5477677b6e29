"""Checkpoints are found, loaded, refused in one line, and written so that anyone can load them."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers_models import make_checkpoint, picture, write
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import mmzero
from prompts import PROMPTS
from support import checkpoint, packed
from support.checkpoint import FAMILIES, SHORT_NAMES, find_checkpoint
from vlm import VLM


def load(folder, **options):
    return VLM.load(folder, device="cpu", **options)


def change(folder, name, **values):
    write(folder / name, json.loads((folder / name).read_text()) | values)


def nested(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    change(folder, "config.json", text_config=config["text_config"] | values)


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
        # All but the weights are the base's own files: whatever loads that loads this.
        made = {file.name: file.read_bytes() for file in (tmp_path / family).iterdir()}
        base = {file.name: file.read_bytes() for file in folders[family].iterdir()}
        assert made.keys() == base.keys()
        differing = {name for name in made if made[name] != base[name]}
        assert differing == {"model.safetensors", "prompts.json"}
        assert json.loads(made["prompts.json"]) == json.loads(base["prompts.json"])
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


def test_a_save_that_fails_leaves_the_old_checkpoint_and_nothing_else(
    folders, tmp_path, monkeypatch
):
    model = load(folders["qwen2_vl"])
    model.save(tmp_path / "model")
    with torch.no_grad():
        model.lm_head.mul_(2)

    def full(weights, folder, **options):
        save_file({"half": model.lm_head}, folder / "model.safetensors")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_torch_state_dict", full)
    with pytest.raises(OSError, match="model could not be written .No space left on device.: make"):
        model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load(tmp_path / "model").lm_head * 2, model.lm_head)
    # What a kill has left is in nobody's way.
    monkeypatch.undo()
    (tmp_path / ".model.new/half").mkdir(parents=True)
    model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("tie", [False, True])
def test_an_untied_head_is_saved_as_one(tmp_path, tie):
    """Also where config.json says that there is none, but the file has one."""
    folder = make_checkpoint(tmp_path / "model", tie=tie)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = 1.05 * weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = load(folder)
    with torch.no_grad():
        model.lm_head.mul_(2)
    model.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out").lm_head, model.lm_head)
    assert not torch.equal(model.lm_head, model.model.get_input_embeddings().weight)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert not config["tie_word_embeddings"] and not config["text_config"]["tie_word_embeddings"]


def test_prompts_of_the_project_without_prompts_json(tmp_path):
    assert load(make_checkpoint(tmp_path / "model", prompts=False)).prompts == PROMPTS


def test_a_turn_ends_as_the_chat_template_says(folders, tmp_path):
    """Fine-tunes may name <|endoftext|> alone."""
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "model")
    end, text_end = load(folder).tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    change(folder, "generation_config.json", eos_token_id=text_end)
    change(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    assert load(folder).eos_ids == tuple(sorted({end, text_end}))
    # And what is named counts where the template writes nothing behind a turn.
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
        "{% else %}<|image_pad|>{% if message.content[2] %}<|image_pad|>{% endif %}{% endif %}"
        "{% endfor %}"
    )
    assert load(folder).eos_ids == (text_end,)


def test_newer_places_of_settings(folders, tmp_path):
    """Picture settings in processor_config.json; chat_template.json before a tokenizer's own, and
    behind a chat_template.jinja."""
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "model")
    expected = load(folder).encode("what?", [picture(50, 70)]).tokens
    settings = folder / "preprocessor_config.json"
    write(folder / "processor_config.json", {"image_processor": json.loads(settings.read_text())})
    settings.unlink()
    write(folder / "chat_template.json", {"chat_template": "{{ messages[0].content + 1 }}"})
    again = load(folder)
    assert again.encode("what?", [picture(50, 70)]).tokens == expected
    assert (again.patch, again.min_pixels, again.max_pixels) == (8, 256, 16384)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    change(folder, "tokenizer_config.json", chat_template="{{ messages[0].content + 1 }}")
    write(folder / "chat_template.json", {"chat_template": template})
    assert load(folder).encode("what?", [picture(50, 70)]).tokens == expected


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


# What is changed in a whole checkpoint, and what the one line says.


def edit(folder, change):
    """Of the weights: change(name, weight) -> (another name, another weight), or None."""
    file = folder / "model.safetensors"
    changed = (change(*item) for item in load_file(file).items())
    save_file(dict(filter(None, changed)), file, {"format": "pt"})


def cut(folder, name, size):
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


def without(folder, name, *keys):
    file = folder / name
    write(file, {k: v for k, v in json.loads(file.read_text()).items() if k not in keys})


AWQ = {"quant_method": "awq", "bits": 4}
PICTURES = "preprocessor_config.json"
ODD = {
    "quantised": (
        lambda f: change(f, "config.json", quantization_config=AWQ),
        "config.json has a quantization_config; quantised weights cannot be trained",
    ),
    "quantised, in words of MLX": (
        lambda f: change(f, "config.json", quantization={"bits": 4}),
        "config.json has a quantization; quantised",
    ),
    "quantised without a word": (
        lambda f: edit(f, lambda n, w: (n, w.to(torch.int8) if "mlp" in n else w)),
        "model.safetensors has weights of type I8; quantised",
    ),
    "weights cut off": (
        lambda f: cut(f, "model.safetensors", -100),
        "model.safetensors is cut off or damaged",
    ),
    "weights empty": (lambda f: cut(f, "model.safetensors", 0), "model.safetensors is cut off"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "a pickle of something else": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "cannot be loaded",
    ),
    "a weight is missing": (
        lambda f: edit(f, lambda n, w: None if "layers.1.mlp.up" in n else (n, w)),
        "1 weights are missing .*, for example .*layers.1.mlp.up_proj",
    ),
    "names of DDP": (
        lambda f: edit(f, lambda n, w: (f"module.{n}", w)),
        "weights are missing .but there are .* of other names.",
    ),
    "more layers than config.json knows": (
        lambda f: edit(f, lambda n, w: (n.replace("layers.1.", "layers.7."), w)),
        "weights are missing",
    ),
    "fewer layers in config.json": (
        lambda f: nested(f, num_hidden_layers=1, layer_types=["full_attention"]),
        "weights have no place, for example .*layers.1",
    ),
    "another vocabulary": (
        lambda f: edit(f, lambda n, w: (n, w[:-8] if "embed_tokens" in n else w)),
        "1 weights have another shape than by config.json, for example .*embed_tokens",
    ),
    "a tokenizer of another model": (
        lambda f: (
            nested(f, vocab_size=292)
            or edit(f, lambda n, w: (n, w[:-8].clone() if "embed_tokens" in n else w))
        ),
        "the tokenizer has a token 299, the embedding 292 rows",
    ),
    "nan": (
        lambda f: edit(f, lambda n, w: (n, w * torch.nan if "layers.1.mlp.up" in n else w)),
        "1 weights are no finite numbers, for example .*layers.1.mlp.up_proj",
    ),
    "a list": (lambda f: write(f / "config.json", []), "config.json should hold an object"),
    "a type is a list": (lambda f: change(f, "config.json", model_type=["qwen2_vl"]), "type "),
    "layers are a text": (
        lambda f: nested(f, num_hidden_layers="two"),
        "config.json cannot be used",
    ),
    "pictures: no limits": (
        lambda f: without(f, PICTURES, "size"),
        "min_pixels of the preprocessor is None, not a whole number",
    ),
    "pictures: limits of another kind": (
        lambda f: change(f, PICTURES, size={"height": 96, "width": 96}),
        "min_pixels of the preprocessor is None",
    ),
    "pictures: a number as text": (
        lambda f: change(f, PICTURES, max_pixels="9216"),
        "max_pixels of the preprocessor is '9216', not a whole number",
    ),
    "pictures: no mean": (
        lambda f: without(f, PICTURES, "image_mean"),
        "image_mean of the preprocessor is None, not three numbers",
    ),
    "pictures: an empty file": (lambda f: cut(f, PICTURES, 0), f"{PICTURES} is no JSON"),
    "pictures: no file": (lambda f: (f / PICTURES).unlink(), f"no {PICTURES}"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
    "a tokenizer cut off": (lambda f: cut(f, "tokenizer.json", 900), "cannot be loaded"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
    "a template that fails": (
        lambda f: (f / "chat_template.jinja").write_text("{% for %}"),
        "its chat template fails",
    ),
    "a template without pictures": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        "template does not give each picture its image token",
    ),
    "a template that is a text": (
        lambda f: (
            (f / "chat_template.jinja").unlink()
            or write(f / "chat_template.json", "{{ messages }}")
        ),
        "chat_template.json should hold an object",
    ),
    "prompts that are a list": (lambda f: write(f / "prompts.json", []), "prompts.json should"),
    "files in a circle": (
        lambda f: (f / "config.json").unlink() or (f / "config.json").symlink_to("config.json"),
        "has no config.json",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_checkpoints_are_refused_in_one_line(folders, tmp_path, kind):
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "model")
    spoil, says = ODD[kind]
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=says) as error:
        load(folder)
    assert str(folder) in one_line(error)


def test_checkpoints_that_differ_from_ours_and_are_right(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "model")
    expected = load(folder)
    # Half the bits, a value head, a left-over index, no word on patches, an unknown pad token.
    edit(folder, lambda name, weight: (name, weight.half()))
    weights = load_file(folder / "model.safetensors") | {"value_head.weight": torch.zeros(1, 32)}
    save_file(weights, folder / "model.safetensors")
    write(folder / "model.safetensors.index.json", {"weight_map": {"a": "gone.safetensors"}})
    without(folder, PICTURES, "patch_size", "merge_size")
    change(folder, "tokenizer_config.json", pad_token="<|PAD_TOKEN|>")
    change(folder, "config.json", quantization_config=None)
    model = load(folder)
    prompts = [
        [m.encode("what?", [picture(50, 70)]), m.encode("a longer one")] for m in (model, expected)
    ]
    assert [prompt.tokens for prompt in prompts[0]] == [prompt.tokens for prompt in prompts[1]]
    with torch.no_grad():
        found, before = (m.hidden(m.collate(p)) for m, p in zip((model, expected), prompts))
    torch.testing.assert_close(found, before, rtol=0.05, atol=0.05)


def test_quantised_weights_are_refused_by_a_dry_run(folders, tmp_path, capsys):
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "model")
    change(folder, "config.json", quantization_config=AWQ)
    with pytest.raises(SystemExit, match="mmzero.py: .*quantised weights cannot be trained"):
        mmzero.main(["--model", str(folder), "--dry-run"])
