"""The tokenizer classes of transformers: which one reads a directory, and what each makes of a vocabulary.

From version 5 on, transformers takes of a tokenizer.json only the vocabulary, the merges and the post-processor where
the class is one of these; how text is normalized, cut and decoded is the class's own.

Source: transformers 5, models/auto/tokenization_auto.py and models/*/tokenization_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from slmjax.tokenization.backends import SPACE

GENERIC = "TokenizersBackend"  # the class that takes a tokenizer.json as it is
_END = "<|endoftext|>"
_GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
_QWEN2 = _GPT4 + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN3_5 = _GPT4 + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Cutting:
    """The parts of the `tokenizers` library that prepare text before it is merged, and that put it together again."""

    normalizer: Any
    pre_tokenizer: Any
    decoder: Any


@dataclass(frozen=True)
class TokenizerClass:
    """The properties of a class that hold whatever tokenizer.json says.

    Attributes:
        cutting: from the settings.
        model: of byte pairs: how pairs and unknown characters are treated. unknown: whether it knows the unk_token.
        roles: the special tokens where the settings name none.
        files: of the vocabulary and the merges, where there is no tokenizer.json; one name: a SentencePiece model.
        named: special tokens of its own, in the order in which they are added.
        adds_bos: where the settings do not say so: None is as the post-processor does.
        replaces_processor: even that of a tokenizer.json is replaced by what the settings say of bos and eos.
        flags_roles: special tokens that tokenizer.json does not have as such become such, "plainly" without what else
            is said of them; "" where they do not.
    """

    cutting: Callable[[Settings], Cutting]
    roles: Mapping[str, str | None]
    model: Mapping[str, Any] = field(default_factory=dict)
    unknown: bool = False
    files: tuple[str, ...] = ("vocab.json", "merges.txt")
    named: Mapping[str, str] = field(default_factory=dict)
    adds_bos: bool | None = None
    replaces_processor: bool = False
    flags_roles: str = ""


def _byte_level(settings: Settings, normalizer: Any = None, cuts: tuple[Any, ...] = (), whole: bool = False) -> Cutting:
    prefix = bool(settings.get("add_prefix_space"))
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not whole)
    return Cutting(normalizer, pre_tokenizers.Sequence([*cuts, last]) if cuts else last, decoders.ByteLevel())


def _gpt2(settings: Settings) -> Cutting:
    return _byte_level(settings)


def _gpt_neox(settings: Settings) -> Cutting:
    return _byte_level(settings, normalizers.NFC())


def _cohere(settings: Settings) -> Cutting:
    return _byte_level(settings, normalizers.NFC(), (pre_tokenizers.Digits(individual_digits=True),))


def _qwen2(settings: Settings) -> Cutting:
    cut = pre_tokenizers.Split(Regex(_QWEN2), "isolated")
    return _byte_level(settings, normalizers.NFC(), (cut,), whole=True)


def _qwen3_5(settings: Settings) -> Cutting:
    cut = pre_tokenizers.Split(Regex(_QWEN3_5), "isolated")
    return _byte_level(settings, normalizers.NFC(), (cut,), whole=True)


def metaspace(scheme: str, *, strip: bool) -> Cutting:
    """SentencePiece's cutting as Llama's class writes it: a prefixed space "always", "first" or "never"."""
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    parts += [decoders.Strip(content=" ", left=1)] if strip else []
    cut = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    return Cutting(None, cut, decoders.Sequence(parts))


def _prefixes(settings: Settings) -> bool:
    return settings.get("add_prefix_space") in (None, True)


def _llama(settings: Settings) -> Cutting:
    scheme = ("always" if settings.get("legacy") else "first") if _prefixes(settings) else "never"
    return metaspace(scheme, strip=_prefixes(settings))


def _code_llama(settings: Settings) -> Cutting:
    return metaspace("first" if _prefixes(settings) else "never", strip=True)


def _gemma(settings: Settings) -> Cutting:
    decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return Cutting(normalizers.Replace(" ", SPACE), pre_tokenizers.Split(" ", "merged_with_previous"), decoder)


_BYTES = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
_FALLBACK = {"fuse_unk": True, "byte_fallback": True}
_GPT2_ROLES = {"bos_token": _END, "eos_token": _END, "unk_token": _END, "pad_token": None}
_QWEN_ROLES = {"bos_token": None, "eos_token": _END, "unk_token": _END, "pad_token": _END}
_LLAMA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_FILL_IN = {"prefix": f"{SPACE}<PRE>", "middle": f"{SPACE}<MID>", "suffix": f"{SPACE}<SUF>", "eot": f"{SPACE}<EOT>"}

CLASSES: dict[str, TokenizerClass] = {
    "GPT2Tokenizer": TokenizerClass(_gpt2, _GPT2_ROLES, _BYTES),
    "GPTNeoXTokenizer": TokenizerClass(
        _gpt_neox, {**_GPT2_ROLES, "pad_token": "<|padding|>"}, _BYTES, replaces_processor=True
    ),
    "Qwen2Tokenizer": TokenizerClass(_qwen2, _QWEN_ROLES, _BYTES, flags_roles="plainly"),
    "Qwen3_5Tokenizer": TokenizerClass(_qwen3_5, _QWEN_ROLES, _BYTES),
    "CohereTokenizer": TokenizerClass(
        _cohere,
        {
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "unk_token": "<UNK>",
            "sep_token": "<SEP>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "mask_token": "<MASK_TOKEN>",
        },
        _BYTES,
        flags_roles="as set",
    ),
    "LlamaTokenizer": TokenizerClass(_llama, _LLAMA_ROLES, _FALLBACK, files=("tokenizer.model",)),
    "CodeLlamaTokenizer": TokenizerClass(
        _code_llama,
        _LLAMA_ROLES,
        _FALLBACK,
        unknown=True,
        files=("tokenizer.model",),
        named={f"{name}_token": token for name, token in _FILL_IN.items()} | {"fill_token": "<FILL_ME>"},
        adds_bos=True,
    ),
    "GemmaTokenizer": TokenizerClass(
        _gemma,
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        _FALLBACK,
        unknown=True,
        files=("tokenizer.model",),
    ),
}

# By model type: the class that transformers has for it. Where tokenizer_config.json names another, that one is taken,
# unless the model's is GENERIC, or the published files of these models are known to name a wrong one.
_BY_MODEL_TYPE = {
    "GPT2Tokenizer": "blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj hyperclovax_vision_v2 instructblip instructblipvideo "
    "jais2 opt phi starcoder2",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "Qwen2Tokenizer": "audioflamingo3 colqwen2 cosmos3_omni dots3_note fun_asr_nano hunyuan_vl internvl lighton_ocr "
    "moss_transcribe_diarize ovis2 qianfan_ocr qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 "
    "qwen3_asr qwen3_moe qwen3_next qwen3_omni_moe qwen3_vl qwen3_vl_moe vibevoice",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
    "CohereTokenizer": "aya_vision cohere cohere2",
    "LlamaTokenizer": "idefics idefics2",
    "CodeLlamaTokenizer": "code_llama",
    "GemmaTokenizer": "diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma "
    "shieldgemma2 t5gemma zaya",
    GENERIC: "EvollaModel arctic aria beam bigbird_pegasus camembertv2-base canary chatlm cohere_asr ernie4_5 "
    "ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite glm4v glm4v_moe glm_image glmasr got_ocr2 gpt_bigcode "
    "gradium_phonon_tts granite granitemoe granitemoehybrid granitemoeshared h2ovl_chat hyperclovax hyperclovax_vlm "
    "internlm2 internlm3 iquestcoder jamba kimi_k25 kimi_linear kosmos-2 llava llava_next mimo_v2_flash minicpm3 "
    "minicpm_ocr minicpmv minicpmv4_6 minicpmv4_7 minimax_m2 ministral ministral3 mistral mistral3 mistral_large4 "
    "mixtral modernbert modernbert-decoder molmo molmo2 nemo_speechlm nemotron nvfp4 nystromformer olmo2 olmo3 "
    "olmo_hybrid omniasr opencua openvla paddleocr_vl pegasus_x persimmon phi3 phi3_v phimoe pix2struct pixtral "
    "pocket_tts smolvlm stablelm step3_vl umt5 vipllava voxtral voxtral_realtime xlm-roberta-xl",
}
REGISTERED = {model_type: name for name, types in _BY_MODEL_TYPE.items() for model_type in types.split()}
_MISNAMED = (
    "arctic chatlm ernie4_5 ernie4_5_moe fuyu h2ovl_chat hyperclovax hyperclovax_vlm hyperclovax_vision_v2 internlm2 "
    "internlm3 iquestcoder jamba llava llava_next minicpm3 minicpmv minimax_m2 modernbert modernbert-decoder molmo "
    "molmo2 nemotron nvfp4 opencua openvla paddleocr_vl phi3 phi3_v phimoe qwen2 qwen3_5 qwen3_5_moe qwen3_5_moe_text "
    "qwen4_exp step3_vl vipllava cohere_asr camembertv2-base siglip2 smolvlm"
)
MISNAMED = frozenset(_MISNAMED.split())
_MISTRAL = "ministral ministral3 mistral mistral3 mistral_large4 mixtral pixtral voxtral voxtral_realtime"


def class_of(settings: Settings, config: Settings, byte_level: bool) -> str:
    """The name of the class that reads a directory, GENERIC where it has none of its own.

    settings: tokenizer_config.json. config: config.json. byte_level: whether tokenizer.json cuts text into bytes.
    """
    model_type = str(config.get("model_type") or "")
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    named = named.removesuffix("Fast") if isinstance(named, str) else None
    registered = REGISTERED.get(model_type)
    # Llama 3 and others that name Llama 2's class, which cannot read what is of bytes.
    generic = named == "LlamaTokenizer" and byte_level and model_type not in MISNAMED.union(_MISTRAL.split())
    if named is None:
        named = registered
    elif registered is not None and registered != named:
        if registered == GENERIC:
            generic = True
        elif model_type in MISNAMED:
            named = registered
    return GENERIC if generic or named is None or named not in CLASSES else named
