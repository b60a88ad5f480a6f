"""What the assistant wrote is learned to the token, and no message can write a special token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.tokenization.chat_template import ChatTemplate, template_tokens
from slmjax.tokenization.chat_tokens import encode_conversation, encode_messages, tokens_within
from slmjax.tokenization.tokenizer import load_tokenizer

NAMES = ("chatml", "qwen", "llama2", "llama3", "phi3", "zephyr", "marked", "headers")
any_text = st.text(st.characters(exclude_categories=["Cs"]))
texts = any_text.filter(str.strip)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level one with the special tokens of the templates, whose bos, eos and pad are one token."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>", "<s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|eot_id|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the assistant said that the user  said\n\nassistant\n"] * 9, trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(directory / "tokenizer.json"))
    config = '{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}'
    (directory / "tokenizer_config.json").write_text(config)
    return load_tokenizer(directory)


def _chat(contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.mark.parametrize("name", NAMES)
@given(contents=st.lists(texts, min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0))
@settings(deadline=None, max_examples=15)
def test_what_is_learned_is_the_answers_and_their_ends(chat_templates, tokenizer, name, contents):
    case, template = chat_templates[name]
    ids, learned = encode_conversation(tokenizer, template, _chat(contents))
    assert len(ids) == len(learned)
    answers = [c.strip() if case.trims else c for c in contents[1::2]]
    ends = [case.end] * (len(answers) - 1) + [case.last_end or case.end]
    expected = "".join(answer + end for answer, end in zip(answers, ends, strict=True))
    kept = tokenizer.decode(np.asarray(ids)[learned], keep_special=True)
    if case.trims:  # the space before the answer may be of the same token
        assert kept.replace(" ", "") == expected.replace(" ", "")
    else:
        assert kept == expected


@pytest.mark.parametrize("name", NAMES)
@given(contents=st.lists(texts, min_size=1, max_size=3))
@settings(deadline=None, max_examples=15)
def test_the_prompt_is_where_the_learning_begins(chat_templates, tokenizer, name, contents):
    """What a model is asked with is what it was trained on: the learned tokens go on from the prompt's."""
    _, template = chat_templates[name]
    messages = [{"role": "user", "content": "\n".join(contents)}]
    prompt = encode_messages(tokenizer, template, messages, add_generation_prompt=True)
    ids, learned = encode_conversation(tokenizer, template, [*messages, {"role": "assistant", "content": "x"}])
    if name not in ("llama2", "headers"):  # these have no generation prompt
        assert ids[: len(prompt)] == prompt
        assert np.flatnonzero(learned)[0] == len(prompt)


@given(before=any_text, after=any_text, special=st.sampled_from(["</s>", "<|im_end|>", "<|im_start|>"]))
@settings(deadline=None, max_examples=40)
def test_a_special_tokens_string_in_a_message_stays_text(chat_templates, tokenizer, before, after, special):
    _, template = chat_templates["chatml"]
    content = before + special + after
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    ids, learned = encode_conversation(tokenizer, template, chat)
    names = [tokenizer.id_to_token(id) for id in ids]
    assert [names.count(name) for name in ("<|im_start|>", "<|im_end|>", "</s>")] == [2, 2, 0]
    assert tokenizer.decode(np.asarray(ids)[learned], keep_special=True) == content + "<|im_end|>"


@given(st.text(), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=4))
def test_tokens_within_is_overlap(text, gaps):
    ends = np.cumsum([size for pair in gaps for size in pair])
    spans = [(int(end) - size, int(end)) for end, (_, size) in zip(ends[1::2], gaps, strict=True)]
    offsets = [(i, i + 1 + i % 3) for i in range(60)]
    expected = [any(begin < e and end > b for b, e in spans) for begin, end in offsets]
    assert tokens_within(offsets, spans).tolist() == expected


def test_sentencepiece_conversations_are_learned_too(assets, special_tokens, chat_templates):
    tokenizer = load_tokenizer(assets / "data" / "tokenizers" / "llama2")
    ids, learned = encode_conversation(
        tokenizer, chat_templates["llama2"][1], _chat(["hé </s> ☃", "naïve  𓀀", "b", "c"])
    )
    assert [id for id in ids if id < 3] == [1, 2, 1, 2]
    assert tokenizer.decode(np.asarray(ids)[learned], keep_special=True) == "naïve  𓀀 </s>c </s>"


TRICKY = [
    "",
    " ",
    "  two  spaces ",
    "\n\n\t\r\nx",
    "naïve é☃ 𓀀 \u200d👩‍👩‍👧",
    "<|im_end|>",
    "a<|im_start|>b <|im_end|> <|endoftext|>\n",
    "<|im_end",
    "<repo_name><file_sep>x<issue_start>",
    "1234567 3.14 don't I'LL",
    "   def f(x):\n        return x",
    "\u00a0nbsp \ufeffbom \u0301",
]


def test_the_real_tokenizer_encodes_as_transformers(assets):
    transformers = pytest.importorskip("transformers")
    directory = assets / "models" / "smollm2-135m-instruct"
    reference, tokenizer = transformers.AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
    for text in TRICKY:
        assert tokenizer.encode(text, allow_special=True) == reference.encode(text, add_special_tokens=False), text
        plain = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.encode(text) == plain, text
        for special in (False, True):
            ids, offsets = tokenizer.encode_with_offsets(text, special)
            assert ids == tokenizer.encode(text, special)
            assert {place for begin, end in offsets for place in range(begin, end)} == set(range(len(text)))
    assert tokenizer.special_tokens() == reference.added_tokens_encoder
    names = {name: token for name, token in reference.special_tokens_map.items() if isinstance(token, str)}
    assert template_tokens(tokenizer) == names


def test_the_real_models_mask_is_that_of_transformers_with_marks(assets, chat_templates):
    """transformers finds what the assistant wrote only by marks; spaces alone it leaves out of GPT-2's offsets."""
    transformers = pytest.importorskip("transformers")
    directory = assets / "models" / "smollm2-135m-instruct"
    reference, tokenizer = transformers.AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
    case, marked = chat_templates["marked"]
    chat = _chat(["What's up?", " Naïve ☃ answer.", "And?", "No."])
    expected = reference.apply_chat_template(
        chat, chat_template=case.source, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, learned = encode_conversation(tokenizer, marked, chat)
    assert ids == expected["input_ids"]
    assert learned.tolist() == [bool(x) for x in expected["assistant_masks"]]
    # Our own way, without marks, finds the same.
    source = case.source.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    unmarked = ChatTemplate(source, marked.special_tokens)
    again, found = encode_conversation(tokenizer, unmarked, chat)
    assert again == ids
    assert found.tolist() == learned.tolist()
