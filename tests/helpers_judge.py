"""A text model made on the spot that says yes or no, by nothing but chance: a judge for tests."""

import torch
import transformers
from helpers_models import make_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role + '\n' + message.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_judge(folder, seed=0):
    """A Qwen2 of two layers. Its template is for text alone, as that of Qwen2.5 is."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens(["yes.", "no."])
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2ForCausalLM(config)
    yes, no = tokenizer.convert_tokens_to_ids(["yes.", "no."])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[yes] = torch.randn(32)
        model.lm_head.weight[no] = -model.lm_head.weight[yes]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    # As in the checkpoints on the hub: a judge must not sample.
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=1.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
