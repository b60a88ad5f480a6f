"""tokenizer.ggml.pre: the names under which llama.cpp knows how a text is cut before byte pairs are merged.

Source: the expressions of llama.cpp's src/llama-vocab.cpp, with the normalization of the tokenizers they were made for.
"""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers
from tokenizers import pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS, _REST = r"|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + _WORDS + r"\p{N}" + _REST
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}")


@dataclass(frozen=True)
class PreTokenizer:
    """Expressions that cut a text, each the pieces of the one before it.

    nfc: the text is composed first. ignore_merges: a piece that is a token is one, whatever the merges say.
    """

    splits: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """Build the pre-tokenizer of the `tokenizers` library: pieces are spelled in GPT-2's alphabet of bytes."""
        cuts = [pre_tokenizers.Split(tokenizers.Regex(split), "isolated") for split in self.splits]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# On writing the first that cuts as the tokenizer does gives the name.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((_GPT2,)),
    "olmo": PreTokenizer((_GPT2,), nfc=True),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "bloom": PreTokenizer((" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",)),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
_ALIASES = {
    "gpt-2": ("gpt2", "jais", "mpt", "phi-2", "gigachat", "roberta-bpe", "jina-es", "jina-de", "a.x-4.0"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "dbrx": ("smaug-bpe", "chatglm-bpe", "glm4"),
    "qwen2": ("stablelm2", "megrez"),
    "bloom": ("poro-chat", "gpt3-finnish"),
}
PRE_TOKENIZERS |= {alias: PRE_TOKENIZERS[name] for name, aliases in _ALIASES.items() for alias in aliases}

# Text in which any two of the expressions above cut differently.
_PROBES = (
    "Hello  world, it's 12345 o'clock\r\n\r\n  and I'LL go!!! They'Ve 3.14159",
    " $x+=1; //~`|^<a>  \t\t\n\n foo_bar(baz) 1 22 333 4444 55555",
    "Ünïcödé \uff13\uff13\uff13 ½ 你好\uff0c世界。 नमस्ते। \u06d4\u060c… 한국어 🦙🦙 e\u0301 ﷺ\u00a0\u3000x",
    "don't DON'T 'tis we'd\n \n\n  \ta  b\x0b c'",
)


def name_of(pre: pre_tokenizers.PreTokenizer, *, nfc: bool, ignore_merges: bool) -> str | None:
    """The name under which GGUF knows a pre-tokenizer, by what it does to text; None where it knows it not."""
    pieces = [pre.pre_tokenize_str(text) for text in _PROBES]
    for name, known in PRE_TOKENIZERS.items():
        if (known.nfc, known.ignore_merges) == (nfc, ignore_merges):
            cut = known.build()
            if [cut.pre_tokenize_str(text) for text in _PROBES] == pieces:
                return name
    return None
