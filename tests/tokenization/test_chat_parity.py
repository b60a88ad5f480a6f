"""Conversations become the ids that transformers makes of them, whatever their messages quote."""

import json
import random

import pytest

from slmjax.errors import UserError
from slmjax.formats.huggingface.tokenizer import read
from slmjax.tokenization.chat_template import ChatTemplate
from slmjax.tokenization.chat_tokens import encode_messages
from tests.tokenizer_directories import PIECES, byte_level, fallback, text

NAMES = ["chatml", "qwen", "llama2", "llama3", "gemma", "phi3", "zephyr", "marked", "headers", "thinking"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<end_of_turn>", "<start_of_turn>"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(transformers' tokenizer, ours) of directories that cut text in three manners."""
    transformers = pytest.importorskip("transformers")
    found = []
    for name, build in (("GPT2Tokenizer", byte_level), ("LlamaTokenizer", fallback), ("GemmaTokenizer", fallback)):
        folder = tmp_path_factory.mktemp(name)
        description = build(random.Random(7), folder)
        vocabulary = description["model"]["vocab"]
        for token in SPECIAL:
            vocabulary.setdefault(token, len(vocabulary))
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        description["added_tokens"] = [{"id": vocabulary[t], "content": t, **flags} for t in SPECIAL]
        description["added_tokens"].sort(key=lambda token: token["id"])
        (folder / "tokenizer.json").write_text(json.dumps(description))
        settings = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "pad_token": None}
        settings |= {"unk_token": "<unk>" if build is fallback else None}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "config.json").write_text('{"model_type": "llama"}')
        found.append((transformers.AutoTokenizer.from_pretrained(folder), read(folder)))
    return found


def _conversation(rng: random.Random, quoting: bool) -> list[dict[str, str]]:
    turns = [rng.choice(["user", "system"]), "assistant", *["user", "assistant"] * rng.randrange(3)]
    messages = []
    for role in turns if rng.random() < 0.9 else rng.sample(turns, len(turns)):
        content = text(rng)
        content = content if quoting else "".join(piece for piece in [*content] if piece not in "<>|[]")
        quoted = rng.choice(["", *SPECIAL]) + rng.choice(PIECES) if quoting else ""
        messages.append({"role": role, "content": content + quoted + rng.choice(["", " x", "yes"])})
    return messages


@pytest.mark.parametrize("name", NAMES)
def test_conversations_have_the_ids_of_transformers(pairs, chat_templates, thinking_template, name):
    rng = random.Random(name)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate(thinking_template, tokens) if name == "thinking" else chat_templates[name][1]
    compared = 0
    for number in range(12):
        quoting, prompted = number % 2 == 1, rng.random() < 0.5
        messages = _conversation(rng, quoting)
        for reference, ours in pairs:
            try:
                ids = encode_messages(ours, template, messages, add_generation_prompt=prompted)
            except UserError:
                ids = None
            try:
                expected = reference.apply_chat_template(
                    messages,
                    chat_template=template.source,
                    add_generation_prompt=prompted,
                    sanitize_control_tokens=quoting,
                    return_dict=False,
                )
            except Exception:  # the template's own refusal
                expected = None
            assert ids == expected, messages
            compared += ids is not None
    assert compared >= 6
