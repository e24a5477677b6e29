"""The chat format of a checkpoint, and why no text can break out of its turn.

What one role wrote is quoted in another's prompt, and a proposal that says <|im_end|> must not end
that turn. So the checkpoint's template is rendered with a slot in the place of each text, and the
special tokens are looked for in that:

    <|im_start|>  user  <|vision_start|> <|image_pad|> <|vision_end|>  SLOT  <|im_end|>  ...

Between them lies ordinary text. There the texts are filled in, and a tokenizer for which <|im_end|>
is ten characters like any others makes tokens of it.
"""

import copy
import itertools
import re

from support.machine import reason


class Chat:
    """The chat template of a tokenizer of transformers."""

    def __init__(self, tokenizer):
        if not tokenizer.chat_template:
            folder = tokenizer.name_or_path
            raise ValueError(f"{folder}: the tokenizer has no chat template (chat_template.jinja)")
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        special = [token.content for token in added if token.special]
        # The longest first: where one begins with another, the longer one is meant.
        special.sort(key=len, reverse=True)
        self.special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        # The same tokenizer, but it sees no special token in a text (other added ones it does).
        self.plain = copy.deepcopy(tokenizer.backend_tokenizer)
        self.plain.encode_special_tokens = True
        self.templates = {}  # (which parts are texts, system) -> the rendered template

    def tokens(self, parts: list, system="") -> list[int]:
        """Token ids of one user turn, up to where the assistant begins to write.

        parts: texts and pictures in their order. A picture is what is no string; it gets one token.
        system: a text of ours, which comes first; else the template's own does, if it has one.
        """
        texts = [part for part in parts if isinstance(part, str)]
        tokens = []
        for piece in self.template(tuple(isinstance(part, str) for part in parts), system):
            if isinstance(piece, int):
                tokens.append(piece)
            else:
                filled = fill_slots(piece, texts)
                tokens += self.plain.encode(filled, add_special_tokens=False).ids
        return tokens

    def template(self, is_text: tuple[bool, ...], system="") -> list[int | str]:
        """The rendered template for texts and pictures in this order: special tokens' ids, and the
        strings between them.

        A string is tokenized with the texts in place, so that merges across a seam ("user\\n" and a
        text that begins with a new line) come out as in training.
        """
        if (is_text, system) not in self.templates:
            numbers = itertools.count()
            content = [
                {"type": "text", "text": slot(next(numbers))} if text else {"type": "image"}
                for text in is_text
            ]
            # The templates of text models know no parts.
            turns = [{"role": "user", "content": slot(0) if is_text == (True,) else content}]
            if system:
                turns.insert(0, {"role": "system", "content": system})
            rendered = self.render(turns, add_generation_prompt=True)
            self.templates[is_text, system] = [
                self.tokenizer.convert_tokens_to_ids(piece)
                if self.special.fullmatch(piece)
                else piece
                for piece in self.special.split(rendered)
                if piece
            ]
        return self.templates[is_text, system]

    def turn_end(self) -> int | None:
        """The special token that the template writes behind an assistant's message, if any does."""
        turns = [{"role": "user", "content": slot(0)}, {"role": "assistant", "content": slot(1)}]
        end = self.special.search(self.render(turns).partition(slot(1))[2])
        return self.tokenizer.convert_tokens_to_ids(end[0]) if end else None

    def render(self, turns, **options) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except Exception as error:  # a template may raise anything
            folder = self.tokenizer.name_or_path
            raise ValueError(f"{folder}: its chat template fails: {reason(error)}") from error


def slot(index: int) -> str:
    """Stands for a text in a rendered template. Unicode keeps these characters for private use."""
    return f"\ue000{index}\ue001"


def fill_slots(piece: str, texts: list[str]) -> str:
    """Put the texts into their slots. In one pass: a slot written inside a text stays what it is.

    >>> fill_slots(f"see {slot(0)}; {slot(1)}", ["a " + slot(1), "b"]) == f"see a {slot(1)}; b"
    True
    """
    return re.sub("\ue000(\\d+)\ue001", lambda match: texts[int(match[1])], piece)
