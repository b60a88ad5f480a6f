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
# The letters with an upper and a lower case as DeepSeek's first models count them, by code point.
_CASED_RANGES = (
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 "
    "3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 "
    "1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe "
    "1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 "
    "2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183-2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 "
    "a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a "
    "10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_ENDS = (ends.partition("-") for ends in _CASED_RANGES.split())
_CASED = "".join(rf"\x{{{first}}}-\x{{{last or first}}}" for first, _, last in _ENDS)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3 = (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _PUNCTUATED)
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e00-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_AFMOE = (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", _ASIAN, _PUNCTUATED)
# Words end where lower case turns into upper case. GPT-4o joins a contraction to its word, Kimi sets Chinese apart.
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(digits: str, after: str, *, contractions: str = "", without: str = "") -> str:
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = f"{lead}{upper}*{lower}+{contractions}|{lead}{upper}+{lower}*{contractions}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[{after}]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_TEKKEN = _cased(r"\p{N}", r"\r\n/")
_JOINED = f"(?:{_CONTRACTIONS})?"
_GPT4O = _cased(r"\p{N}{1,3}", r"\r\n/", contractions=_JOINED)
_KIMI = r"\p{Han}+|" + _cased(r"\p{N}{1,3}", r"\r\n", contractions=_JOINED, without=r"&&[^\p{Han}]")
_MARKED_WORDS = r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN35 = _CONTRACTIONS + _MARKED_WORDS
_SEED = _CONTRACTIONS + _WORDS + r"\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    "([\\t\\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


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
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "bloom": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
    "deepseek-v3": PreTokenizer(_DEEPSEEK_V3),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True),
    "gpt-4o": PreTokenizer((_GPT4O,)),
    "kimi-k2": PreTokenizer((_KIMI,)),
    "seed-coder": PreTokenizer((_SEED,)),
    "afmoe": PreTokenizer(_AFMOE),
    "chameleon": PreTokenizer(_CHAMELEON),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
_ALIASES = {
    "gpt-2": "gpt2 jais mpt phi-2 gigachat roberta-bpe jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code "
    "a.x-4.0 mellum modern-bert exaone4 trillion granite-docling",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "dbrx": "smaug-bpe chatglm-bpe glm4",
    "qwen2": "stablelm2 megrez",
    "deepseek-r1-qwen": "hunyuan grok-2 kormo f2llmv2 solar-open bailingmoe bailingmoe2 llada-moe",
    "bloom": "poro-chat gpt3-finnish",
    "deepseek-v3": "hunyuan-dense joyai-llm",
    "gpt-4o": "llama4 minimax-m2 kanana2 talkie",
}
PRE_TOKENIZERS |= {alias: PRE_TOKENIZERS[name] for name, aliases in _ALIASES.items() for alias in aliases.split()}

# Text in which any two of the expressions above cut differently.
_PROBES = (
    "Hello  world, it's 12345 o'clock\r\n\r\n  and I'LL go!!! They'Ve 3.14159",
    " $x+=1; //~`|^<a>  \t\t\n\n foo_bar(baz) 1 22 333 4444 55555",
    "Ünïcödé \uff13\uff13\uff13 ½ 你好\uff0c世界。 नमस्ते। \u06d4\u060c… 한국어 🦙🦙 e\u0301 ﷺ\u00a0\u3000x",
    "don't DON'T 'tis we'd\n \n\n  \ta  b\x0b c'",
    "fooBar HTTPServer's ǅ中文Chinese字a./\n 1234567 \u0915\u094d\u0937 …\n\n  IMGIMGAZ ไทย中 ،  1 \u0301 #tag\n'M ?\n",
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
