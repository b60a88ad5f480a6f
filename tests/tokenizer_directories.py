"""Tokenizer directories at random, over all that transformers reads of one."""

import json
import random
from pathlib import Path
from typing import Any

import tokenizers

SPACE = "\u2581"
SENTENCES = [
    "the quick brown fox jumps over the lazy dog, hello there user and assistant ",
    "in 2024 it's 3.14 and  two  spaces\n\tdef f(x): return x  # naïve café 日本語",
]
CLASSES = ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "GemmaTokenizer", "GPTNeoXTokenizer", "CohereTokenizer"]
CLASSES += ["CodeLlamaTokenizer", "Qwen3_5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "OurOwnTokenizer"]
MODEL_TYPES = ["llama", "gpt2", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text", "gpt_neox", "cohere", "olmo2"]
MODEL_TYPES += ["granite", "starcoder2", "glm4", "mpt", "unheard_of"]
NAMES = ["<|im_start|>", "<|im_end|>", "<tool>", "[INST]", "<pad>", "<s>", "</s>", "<unk>", "<bos>", "<eos>", "fox"]
NAMES += ["   ", "<|endoftext|>", f"{SPACE}<PRE>", "é", "12"]
PIECES = [
    *NAMES,
    " ",
    "  ",
    "\n",
    "the",
    " quick",
    "2024",
    "it's",
    "日本",
    "🦙",
    "x",
    ".",
    "\t",
    "a",
    "e\u0301",
    SPACE,
    "Dog ",
]


def byte_level(rng: random.Random, folder: Path) -> dict[str, Any]:
    """A byte-level tokenizer.json; its parts are GPT-2's or others'."""
    pre = tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = rng.choice(
        [
            pre.ByteLevel(add_prefix_space=False),
            pre.ByteLevel(add_prefix_space=True),
            pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=rng.choice([300, 330]),
        special_tokens=rng.sample(NAMES[:10], rng.randrange(4)) if rng.random() < 0.7 else [],
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    if rng.random() < 0.3:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    return json.loads(tokenizer.to_str())


def fallback(rng: random.Random, folder: Path) -> dict[str, Any]:
    """SentencePiece's byte pairs as a tokenizer.json, as Llama 2 and Gemma have them."""
    words = ["the", "fox", "quick", "and", "user"]
    merges: list[list[str]] = []
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    letters = sorted(set("".join(words)) | set("abcdefghij .,12")) + [SPACE]
    for word in [SPACE + word for word in words] + [SPACE * 4]:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces + letters:
                merges.append([word[: end - 1], word[end - 1]])
                letters.append(word[:end])
    vocabulary = {piece: id for id, piece in enumerate(dict.fromkeys(pieces + letters))}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>", "fuse_unk": True}
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
    scheme = rng.choice(["always", "first", "never"])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    normalizer, pre = rng.choice([(None, {**metaspace, "prepend_scheme": scheme}), (prepend, None), (replace, None)])
    joins = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    joins += [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    description = {"version": "1.0", "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": None}
    description |= {"truncation": None, "padding": None, "added_tokens": []}
    return description | {"decoder": {"type": "Sequence", "decoders": joins}, "model": {**model, "byte_fallback": True}}


_MODELS: dict[tuple[Any, ...], bytes] = {}


def sentencepiece_model(rng: random.Random) -> bytes:
    """A SentencePiece model file, one of a few."""
    import io

    import sentencepiece

    kind, prefix = rng.choice(["bpe", "bpe", "unigram"]), rng.random() < 0.7
    extra, nmt, own = rng.random() < 0.5, rng.random() < 0.3, rng.random() < 0.4
    key = (kind, prefix, extra, nmt, own)
    if key not in _MODELS:
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 5),
            model_writer=out,
            vocab_size=320 if kind == "bpe" else 310,
            model_type=kind,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc" if nmt else "identity",
            remove_extra_whitespaces=extra,
            add_dummy_prefix=prefix,
            hard_vocab_limit=False,
            user_defined_symbols=["<tool>", "[INST]"] if own else [],
            control_symbols=["<|im_start|>"],
            minloglevel=2,
        )
        _MODELS[key] = out.getvalue()
    return _MODELS[key]


def write_directory(rng: random.Random, folder: Path) -> None:
    """Write one directory; it may be one that transformers refuses."""
    base = rng.choice(["byte level", "byte level", "slow", "fallback", "sentencepiece"])
    vocabulary: dict[str, int] = {}
    description = None
    if base == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(rng))
    else:
        description = (fallback if base == "fallback" else byte_level)(rng, folder)
        vocabulary = description["model"]["vocab"]
    size = len(vocabulary) or 320
    own = rng.sample(NAMES, rng.randrange(6))
    entries = [_entry(rng, vocabulary.get(name, size + at), name) for at, name in enumerate(own)]
    new = iter(range(size, size + 9))
    entries = [e if e["content"] in vocabulary else {**e, "id": next(new)} for e in entries]
    settings: dict[str, Any] = {}
    if rng.random() < 0.9:
        settings["tokenizer_class"] = rng.choice(_classes(base)) + rng.choice(["", "", "Fast"])
    for role in ("bos", "eos", "unk", "pad"):
        if rng.random() < 0.6:
            settings[f"{role}_token"] = rng.choice([None, *own, *NAMES[:9]])
    for key in ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"):
        if rng.random() < 0.4:
            settings[key] = rng.random() < 0.5
    if rng.random() < 0.3:
        key = rng.choice(["additional_special_tokens", "extra_special_tokens"])
        settings[key] = rng.sample(NAMES, rng.randrange(3))
    if rng.random() < 0.1:
        settings["image_token"] = "<tool>"
    if rng.random() < 0.05:
        settings["split_special_tokens"] = True
    where = rng.choice(["json", "decoder", "both", "file"])
    if where in ("decoder", "both"):
        settings["added_tokens_decoder"] = {
            str(e["id"]): {key: value for key, value in e.items() if key != "id"} for e in entries
        }
    elif rng.random() < 0.3:
        special = {role: settings[role] for role in ("bos_token", "eos_token") if settings.get(role)}
        token = {"lstrip": False, "rstrip": False, "normalized": rng.random() < 0.5, "single_word": False}
        if rng.random() < 0.5:
            special = {role: {"content": content, **token} for role, content in special.items()}
        _write(folder / "special_tokens_map.json", special)
    if where == "file" or (where == "both" and rng.random() < 0.3):
        _write(folder / "added_tokens.json", {e["content"]: e["id"] for e in entries})
    if base == "slow" and description is not None:
        _write(folder / "vocab.json", vocabulary)
        merges = "\n".join(" ".join(pair) for pair in description["model"]["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    elif description is not None:
        if where in ("json", "both"):
            description["added_tokens"] = sorted(entries, key=lambda e: e["id"])
        known = {**vocabulary, **{e["content"]: e["id"] for e in description["added_tokens"]}}
        description["post_processor"] = _processor(rng, known)
        if rng.random() < 0.1:
            padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
            description["padding"] = padding | {"pad_type_id": 0, "pad_token": rng.choice(NAMES[:8])}
        _write(folder / "tokenizer.json", description)
    if rng.random() < 0.95:
        _write(folder / "tokenizer_config.json", settings)
    _write(folder / "config.json", {"model_type": rng.choice(MODEL_TYPES)})


def text(rng: random.Random) -> str:
    """A text with markers, runs of spaces, digits and characters of several bytes."""
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(12)))


def _classes(base: str) -> list[str]:
    fitting = {
        "sentencepiece": CLASSES[2:4] + CLASSES[6:7],
        "fallback": CLASSES[2:4] + CLASSES[6:7],
        "slow": CLASSES[:2],
    }
    generic = CLASSES[8:] if base != "slow" else []
    return (fitting.get(base) or CLASSES) + generic


def _entry(rng: random.Random, id: int, content: str) -> dict[str, Any]:
    flags = {name: rng.random() < 0.2 for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return {"id": id, "content": content, **flags, "special": rng.random() < 0.6}


def _processor(rng: random.Random, known: dict[str, int]) -> dict[str, Any] | None:
    if rng.random() < 0.4 or not known:
        return rng.choice(
            [None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]
        )
    first, last = (rng.choice([None, *(name for name in NAMES if name in known)]) for _ in range(2))
    around = [{"Sequence": {"id": "A", "type_id": 0}}]
    around = [{"SpecialToken": {"id": first, "type_id": 0}}, *around] if first else around
    around = [*around, {"SpecialToken": {"id": last, "type_id": 0}}] if last and rng.random() < 0.3 else around
    used = {part["SpecialToken"]["id"] for part in around if "SpecialToken" in part}
    special = {name: {"id": name, "ids": [known[name]], "tokens": [name]} for name in used}
    pair = [*around, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": around, "pair": pair, "special_tokens": special}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
