"""The kinds of files that fuzz.py damages: how sound ones of models are made, and what reads them."""

import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_damage import Files, Kind
from fuzz_data import MESSAGES, TEXT, compressed_seeds, jsonl_seeds, parquet_seeds, read_data

from slmjax.errors import UserError
from slmjax.formats import facts, models, recognition
from slmjax.formats.adapters.door import open_adapter
from slmjax.formats.adapters.names import names_of
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.model import describe_gguf, save_gguf
from slmjax.formats.huggingface import directory
from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
from slmjax.formats.huggingface.export import families_for
from slmjax.formats.huggingface.families import family_of
from slmjax.formats.safetensors_files import SafetensorsDirectory, write_safetensors
from slmjax.formats.tensors import PlannedTensor
from slmjax.inference.description import Description
from slmjax.inference.language_model import LanguageModel
from slmjax.limited_process import LimitedProcess, ProcessEndedError
from slmjax.models.config import ModelConfig
from slmjax.models.families.registry import families, model_config
from slmjax.models.parameters import abstract_leaves, unflatten
from slmjax.tokenization import chat_template, sentencepiece_proto, template_renderer
from slmjax.tokenization.backends import SentencePieceBackend
from slmjax.tokenization.tokenizer import Tokenizer, train_bpe
from slmjax.untrusted import read_text

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}A: {% generation %}{{ message['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
MARKED = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{%- endfor -%}"
    "{%- if tools is defined and tools -%}{{ tools | tojson }}{%- endif -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def bpe() -> Tokenizer:
    tokenizer = train_bpe(["the old river walks under the light of a stone"] * 4, 264, progress=False)
    tokenizer.settings |= {"chat_template": TEMPLATE, "eos_token": "<|endoftext|>"}
    return tokenizer


def sentencepiece(algorithm: int = sentencepiece_proto.BPE) -> bytes:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab", "c"]
    types = [2, 3, 3, *[6] * 256, *[1] * 6, 4]
    scores = [0.0] * 259 + [-float(i) for i in range(7)]
    roles = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    return sentencepiece_proto.SentencePieceModel(pieces, scores, types, algorithm, roles=roles).to_bytes()


def tiny(vocab: int = 264, **changes: Any) -> ModelConfig:
    shape = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 32, "context_length": 64}
    return ModelConfig(vocab_size=vocab, **(shape | changes))


def model_of(config: ModelConfig, tokenizer: Tokenizer | None = None) -> LanguageModel:
    rng = np.random.default_rng(0)
    leaves = abstract_leaves(config).items()
    params = unflatten({path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in leaves})
    return LanguageModel(config=config, params=params, tokenizer=tokenizer, stop_ids=(0,))


def safetensors_seeds(folder: Path) -> list[Files]:
    arrays = {
        "w": np.ones((2, 3), np.float32),
        "v": np.zeros(4, np.float16),
        "model.norm.weight": np.ones(5, np.float32),
    }
    plans = [PlannedTensor(name, array.shape, array.dtype) for name, array in arrays.items()]
    seeds = []
    for most in (10**6, 20):
        place = folder / str(most)
        place.mkdir()
        write_safetensors(place, plans, arrays.items(), max_shard_bytes=most)
        seeds.append(files_of(place))
    return seeds


def read_safetensors(folder: Path) -> None:
    opened = SafetensorsDirectory(folder)
    opened.shapes(), opened.dtypes(), opened.num_bytes()
    for name in opened.tensors:
        opened.read(name)


def gguf_seeds(folder: Path) -> list[Files]:
    """Two architectures and tokenizers, float and quantized."""
    pieces = Tokenizer(SentencePieceBackend(sentencepiece()))
    for number, (lm, dtype) in enumerate(
        [
            (model_of(tiny(), bpe()), "float16"),
            (model_of(tiny(pieces.vocab_size), pieces), "q8_0"),
            (model_of(tiny(pieces.vocab_size, qk_norm="head"), pieces), "q4_0"),
        ]
    ):
        save_gguf(lm, folder / f"{number}.gguf", dtype=dtype)
    return [{"a.gguf": path.read_bytes()} for path in sorted(folder.iterdir())]


def read_gguf(folder: Path) -> None:
    file = open_gguf(folder / "a.gguf")
    for name in file.tensors:
        file.read(name)
    describe_gguf(folder / "a.gguf")


def tokenizer_seeds(folder: Path) -> list[Files]:
    huggingface_tokenizer.write(bpe(), folder, 64)
    found = files_of(folder)
    words = {"a": 0, "b": 1, "[UNK]": 2, "##b": 3, "ab": 4, "<s>": 5}
    others: list[dict[str, Any]] = [
        {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        | {"vocab": words},
        {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
        {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [["<unk>", 0.0], ["▁", -1.0], ["a", -2.0], ["▁a", -1.5], ["b", -3.0]],
        },
        {"type": "BPE", "vocab": words, "merges": [["a", "b"]], "unk_token": "[UNK]", "byte_fallback": True},
    ]
    added = [{"id": 9, "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}]
    added[0]["normalized"] = False
    prepend = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    seeds = [found]
    for model in others:
        whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "model": model}
        whole["normalizer"] = {"type": "Sequence", "normalizers": prepend}
        whole["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
        whole["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        }
        whole["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
        settings = {"bos_token": "<s>", "eos_token": {"content": "<s>"}, "chat_template": [{"name": "default"}]}
        special = {"pad_token": "<s>", "additional_special_tokens": ["<s>", {"content": "b"}]}
        files = {"tokenizer.json": whole, "tokenizer_config.json": settings, "special_tokens_map.json": special}
        seeds.append({name: json.dumps(values).encode() for name, values in files.items()})
    return seeds


def use_tokenizer(tokenizer: Tokenizer) -> None:
    for special in (False, True):
        ids = tokenizer.encode(TEXT, allow_special=special)
        tokenizer.decode(ids[:20])
    tokenizer.special_tokens()
    chat_template.template_tokens(tokenizer)
    chat_template.choose_template(tokenizer.settings.get("chat_template"))


def read_tokenizer(folder: Path) -> None:
    tokenizer = huggingface_tokenizer.read(folder)
    use_tokenizer(tokenizer)
    out = folder / "out"
    out.mkdir()
    huggingface_tokenizer.write(tokenizer, out, 64)
    huggingface_tokenizer.changes(tokenizer, out)


def sentencepiece_seeds(folder: Path) -> list[Files]:
    settings = json.dumps({"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}).encode()
    algorithms = (sentencepiece_proto.BPE, sentencepiece_proto.UNIGRAM)
    return [{"tokenizer.model": sentencepiece(each), "tokenizer_config.json": settings} for each in algorithms]


def read_sentencepiece(folder: Path) -> None:
    use_tokenizer(huggingface_tokenizer.read(folder))


def shrunk(config: ModelConfig) -> ModelConfig:
    """The network of a named model, with its switches and tiny sizes."""
    heads = 4 if config.num_heads != 1 else 1
    same = config.num_kv_heads == config.num_heads
    small = {"vocab_size": 264, "num_layers": 2, "embed_dim": 32, "num_heads": heads, "ffn_dim": 32, "head_dim": 8}
    return dataclasses.replace(config, **small, num_kv_heads=heads if same else 1, context_length=64)


def config_seeds(folder: Path) -> list[Files]:
    """A directory of transformers for each family whose named models can be shrunk."""
    seeds, tokenizer = [], bpe()
    for names in families().values():
        place = folder / str(len(seeds))
        try:
            models.save(model_of(shrunk(model_config(names[0][0])), tokenizer), place, format="huggingface")
        except (UserError, ValueError, TypeError):
            continue  # its layers differ in size
        found = files_of(place)
        values = json.loads(found["config.json"])
        values |= {"rope_scaling": {"rope_type": "linear", "factor": 2.0}} if "rope_theta" in values else {}
        generation = {"eos_token_id": [0, 3], "temperature": 0.7, "top_p": 0.9, "top_k": 9, "do_sample": True}
        seeds.append(found)
        changed = {
            "config.json": json.dumps(values).encode(),
            "generation_config.json": json.dumps(generation).encode(),
        }
        seeds.append(found | changed)
    assert len(seeds) >= 10
    return seeds


def is_one_of(folder: Path, number: int) -> bool:
    """Whether a case is one of `number` that are read wholly, where that traces the network: by its content."""
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))) % number == 0


def check_names(config: ModelConfig, entries: Any, file: Any, where: str) -> None:
    """In place of `check_tensors`, without tracing the network."""
    if {entry.name for entry in entries} != file.shapes().keys():
        raise UserError(f"{where} does not fit its config.")


def read_config(folder: Path) -> None:
    if is_one_of(folder, 16):
        models.inspect(folder, batch_size=2)
        return
    whole, directory.check_tensors = directory.check_tensors, check_names  # type: ignore[attr-defined]
    try:
        if (folder / "config.json").exists():
            directory.describe_huggingface(folder)
    finally:
        directory.check_tensors = whole  # type: ignore[attr-defined]


def read_own(folder: Path) -> None:
    if is_one_of(folder, 16):
        models.inspect(folder, batch_size=2)
        return
    if recognition.kind_of(folder) not in (None, "huggingface"):
        description = Description.read(folder)
        facts.describe_network(description.model)
        facts.describe_costs(description.model, 2, 9)


def own_seeds(folder: Path) -> list[Files]:
    """Saved models of ours, runs, and runs made before slmjax.json."""
    models.save(model_of(tiny(), bpe()), folder / "a")
    models.save(model_of(tiny(position="alibi", num_layers=2), bpe()), folder / "b")
    saved = [files_of(folder / name) for name in "ab"]
    model = tiny().to_dict()
    peft = {"base": "base", "method": "lora", "lora": {"r": 2, "targets": ["q_proj"]}, "fingerprint": "0" * 64}
    run = {"version": 1, "kind": "run", "model": model, "add_bos": False, "stop_ids": [0], "total_steps": 9}
    run |= {"averaged": True, "tokenizer": "tokenizer"}
    training = {"steps": 9, "tokens": 0, "tokens_per_param": 0.0, "batch_size": 2, "ema_decay": 0.9, "seed": 0}
    data = {"sequence_length": 8, "add_bos": False, "cache_dir": "", "sources": {}}
    old = {
        "model": model,
        "training": training,
        "data": data,
        "peft": {"base": "base", "method": "lora", "lora": {"r": 2, "rank_pattern": [["q", 1]]}},
    }
    runs = [{"slmjax.json": run}, {"slmjax.json": run | {"peft": peft}}, {"config.json": old}]
    return saved + [{name: json.dumps(values).encode() for name, values in files.items()} for files in runs]


def adapter_seeds(folder: Path) -> list[Files]:
    rng = np.random.default_rng(0)

    def files(values: dict[str, Any], name: str, shapes: dict[str, tuple[int, ...]]) -> Files:
        place = folder / str(len(list(folder.iterdir())))
        place.mkdir()
        arrays = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        plans = [PlannedTensor(key, array.shape, array.dtype) for key, array in arrays.items()]
        write_safetensors(place, plans, arrays.items(), max_shard_bytes=10**6, name=name)
        return files_of(place) | {"adapter_config.json": json.dumps(values).encode()}

    layer, weights = "base_model.model.model.layers.0", "adapter_model.safetensors"
    common = {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM", "inference_mode": True, "revision": None}
    lora: dict[str, Any] = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        **common,
    }
    lora |= {"use_rslora": False, "use_dora": False, "lora_dropout": 0.1, "bias": "none", "fan_in_fan_out": False}
    lora |= {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None}
    pairs = {f"{layer}.self_attn.{m}_proj.lora_{x}.weight": s for m, n in (("q", 32), ("v", 16)) for x, s in
             (("A", (2, 32)), ("B", (n, 2)))}  # fmt: skip
    head = {"base_model.model.lm_head.weight": (264, 32), "base_model.model.model.norm.weight": (32,)}
    ia3 = {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        **common,
    }
    scales = {f"{layer}.self_attn.k_proj.ia3_l": (16, 1), f"{layer}.mlp.down_proj.ia3_l": (1, 32)}
    prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3, "num_layers": 1, "token_dim": 16, **common}
    prompt = prefix | {"peft_type": "PROMPT_TUNING", "token_dim": 32, "prompt_tuning_init": "RANDOM"}
    prefix |= {"num_attention_heads": 1, "encoder_hidden_size": 16, "prefix_projection": False}
    hub: dict[str, Any] = {"mh_adapter": True, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu"}
    hub |= {"original_ln_before": False, "residual_before_ln": True, "leave_out": [], "scaling": 1.0}
    whole = {"config": hub, "name": "x", "model_name": "base", "model_type": "llama", "version": "1"}
    at = "model.layers.0.{}_adapters.adapters.x."
    bottleneck = {at.format(place) + part: shape for place in ("attention", "output") for part, shape in
                  (("adapter_down.0.weight", (2, 32)), ("adapter_down.0.bias", (2,)), ("adapter_up.weight", (32, 2)),
                   ("adapter_up.bias", (32,)))}  # fmt: skip
    return [
        files(lora, weights, pairs),
        files(lora | {"modules_to_save": ["lm_head"], "use_rslora": True}, weights, pairs | head),
        files(ia3, weights, scales),
        files(prefix, weights, {"prompt_embeddings": (3, 32)}),
        files(prompt, weights, {"prompt_embeddings": (3, 32)}),
        files(whole, "adapter.safetensors", bottleneck),
    ]


class AdapterReader:
    """Reads adapters and puts them on one base."""

    def __init__(self) -> None:
        self.base: LanguageModel | None = None

    def __call__(self, folder: Path) -> None:
        if self.base is None:
            self.base = model_of(tiny())
            self.names = names_of(self.base.config, family_of("llama"))
            assert families_for(self.base.config)
        models.inspect(folder)
        opened = open_adapter(folder)
        opened.named()
        if "PROMPT" not in opened.method and "P_TUNING" not in opened.method:  # these run the network
            opened.read(self.names, self.base.params, "base")


def template_seeds(folder: Path) -> list[Files]:
    return [{"chat_template.jinja": text.encode()} for text in (TEMPLATE, MARKED, chat_template.PLAIN_TEMPLATE)]


class TemplateReader:
    """Renders templates as `ChatTemplate` does, in one limited process for all of them instead of one for each."""

    def __init__(self) -> None:
        self.process: LimitedProcess | None = None

    def __call__(self, folder: Path) -> None:
        if self.process is None:
            program = Path(__file__).with_name("fuzz_templates.py")
            self.process = LimitedProcess(
                program, {}, memory=1 << 30, seconds=1, wait=1.5, wait_for_start=60, isolated=False
            )
        process = self.process

        class Renderer:
            def __init__(self, source: str, seconds: float):
                self.source = source
                answer = self.ask(None)
                if "error" in answer:
                    raise UserError(f"The chat template is not usable Jinja ({answer['error']}).")
                self.has_generation = bool(answer["generation"])

            def ask(self, request: Any) -> Any:
                try:
                    return process.ask([self.source, request])
                except ProcessEndedError as error:
                    raise UserError("The chat template ran for too long.") from error

            render = ask

        chat_template.TemplateRenderer = Renderer  # type: ignore[assignment, misc]
        try:
            path = folder / "chat_template.jinja"
            source = read_text(path) if path.exists() else ""
            template = chat_template.ChatTemplate(source, {"eos_token": "</s>", "bos_token": "<s>"})
            template.render(MESSAGES[:1], add_generation_prompt=True)
            template.render_with_spans(MESSAGES)
        finally:
            chat_template.TemplateRenderer = template_renderer.TemplateRenderer  # type: ignore[misc]


KINDS: dict[str, Kind] = {
    "safetensors": Kind(22, safetensors_seeds, read_safetensors),
    "GGUF": Kind(10, gguf_seeds, read_gguf),
    "tokenizer": Kind(8, tokenizer_seeds, read_tokenizer),
    "SentencePiece": Kind(10, sentencepiece_seeds, read_sentencepiece),
    "config": Kind(2, config_seeds, read_config, ("config.json",)),
    "slmjax.json": Kind(5, own_seeds, read_own, (".json",)),
    "adapter": Kind(8, adapter_seeds, AdapterReader()),
    "template": Kind(6, template_seeds, TemplateReader()),
    "JSONL": Kind(22, jsonl_seeds, read_data),
    "compressed": Kind(12, compressed_seeds, read_data),
    "Parquet": Kind(6, parquet_seeds, read_data),
}


def keep(names: list[str]) -> None:
    """Leave out all kinds but these."""
    kept = {name: KINDS[name] for name in names}
    KINDS.clear()
    KINDS.update(kept)


def schedule() -> list[str]:
    """Kinds in turn, each as often as its share: case n is of the kind n modulo the length."""
    turns: Iterator[tuple[float, str]] = (
        ((number + 0.5) / kind.share, name) for name, kind in KINDS.items() for number in range(kind.share)
    )
    return [name for _, name in sorted(turns)]
