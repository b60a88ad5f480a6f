"""Random models of transformers with real tokenizers, and lm-evaluation-harness asking transformers and slmjax of them.

Both sides get the same task objects: the harness's official files over the small data of tests/evaluation.
"""

import functools
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from slmjax.evaluation.harness.model import HarnessModel
from slmjax.formats.models import load
from tests.evaluation import miniatures
from tests.parity.miniatures import random_model

torch.set_num_threads(1)  # for networks as small as these
CONTEXT, VOCAB = 2048, 420
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are small.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Begins with the bos token, which the tokenizer adds too, trims messages, and takes no system message.
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system message') }}"
    "{% endif %}[{{ m['role'] }}] {{ m['content'] | trim }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
_SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}


def corpus() -> list[str]:
    """The texts of all miniatures."""
    lines = [json.dumps(s, ensure_ascii=False) for splits in miniatures.DATASETS.values() for s in splits.values()]
    return [line.replace('", "', " ").replace('": "', " ") for line in lines]


@functools.cache
def _sentencepiece() -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text[i : i + 1000] for text in corpus() for i in range(0, len(text), 1000)),
        model_writer=out,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return out.getvalue()


def _byte_level(special: list[str], begin: str = "") -> str:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, special.index(begin))]
        )
    return tokenizer.to_str()


def _write(folder: Path, name: str, content: str | bytes, **settings: Any) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _sentencepiece_llama(folder: Path) -> Any:
    """Adds its bos token and a space before the first word."""
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    _write(folder, "tokenizer.model", _sentencepiece(), tokenizer_class="LlamaTokenizer", **roles)
    return transformers.LlamaConfig(**_SIZES, bos_token_id=1, eos_token_id=2)


def _byte_level_gpt2(folder: Path) -> Any:
    """One special token, which begins and ends texts and is added to none."""
    end = "<|endoftext|>"
    _write(folder, "tokenizer.json", _byte_level([end]), tokenizer_class="GPT2Tokenizer", bos_token=end, eos_token=end)
    return transformers.GPT2Config(**_GPT2, bos_token_id=0, eos_token_id=0)


def _qwen_without_bos(folder: Path) -> Any:
    """No bos token; a chat template that brings its own system text."""
    text = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    roles = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    _write(folder, "tokenizer.json", text, tokenizer_class="Qwen2Tokenizer", **roles)
    return transformers.Qwen2Config(**_SIZES, bos_token_id=None, eos_token_id=2, tie_word_embeddings=True)


def _llama_with_bos(folder: Path) -> Any:
    """A tokenizer.json that adds the bos token, and a chat template that writes it too."""
    text = _byte_level(["<|begin|>", "<|end|>"], begin="<|begin|>")
    roles = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": STRICT}
    _write(folder, "tokenizer.json", text, tokenizer_class="PreTrainedTokenizerFast", **roles)
    return transformers.LlamaConfig(**_SIZES, bos_token_id=0, eos_token_id=1)


def _mistral_with_window(folder: Path) -> Any:
    """Every layer sees the last 24 tokens."""
    text = _byte_level(["<unk>", "<s>", "</s>"])
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(folder, "tokenizer.json", text, tokenizer_class="PreTrainedTokenizerFast", **roles)
    return transformers.MistralConfig(**_SIZES, sliding_window=24, bos_token_id=1, eos_token_id=2)


MODELS = {
    "sentencepiece": _sentencepiece_llama,
    "byte-level": _byte_level_gpt2,
    "no bos": _qwen_without_bos,
    "adds bos": _llama_with_bos,
    "sliding window": _mistral_with_window,
}


def make_directory(name: str, folder: Path) -> Path:
    """A model of MODELS as transformers saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    random_model(MODELS[name](folder)).save_pretrained(folder)
    return folder


class Theirs(HFLM):
    """The harness's own class in float32; what it was asked for in tokens is kept.

    It generates one text at a time: of several, one that has met its stop string goes on until all have.
    """

    def __init__(self, folder: Path, **settings: Any):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        super().__init__(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=8, **settings)
        self.scored: list[tuple[list[int], list[int]]] = []
        self.prompts: list[list[int]] = []

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        self.scored += [(list(context), list(tail)) for _, context, tail in requests]
        return super()._loglikelihood_tokens(requests, **{**kwargs, "disable_tqdm": True})

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.batch_size_per_gpu, size = 1, self.batch_size_per_gpu
        texts = super().generate_until(requests, disable_tqdm=True)
        self.batch_size_per_gpu = size
        return texts

    def _model_generate(self, context: torch.Tensor, **kwargs: Any) -> Any:
        self.prompts += context.tolist()
        return super()._model_generate(context, **kwargs)


class Ours(HarnessModel):
    """`HarnessModel`, of which is kept what it was asked for in tokens."""

    def __init__(self, folder: Path, **settings: Any):
        super().__init__(load(folder), **settings)
        self.scored: list[tuple[list[int], list[int]]] = []
        self.prompts: list[list[int]] = []

    def _score(self, requests: Any, pairs: Any, tell: Any, disable_tqdm: bool) -> Any:
        self.scored += [(list(context), list(tail)) for context, tail in pairs]
        return super()._score(requests, pairs, tell, True)

    def _generate(self, asked, members, requests, prompts, texts, disable_tqdm) -> None:
        self.prompts += [prompts[i][-(self.max_length - asked.max_new_tokens) :] for i in members]
        super()._generate(asked, members, requests, prompts, texts, True)


class MiniatureTask(ConfigurableTask):
    """A task by its official file, over the data of `miniatures`."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(config={key: v for key, v in (config or {}).items() if key != "class"}, **kwargs)

    def download(self, *args: Any, **kwargs: Any) -> None:
        splits = miniatures.DATASETS[self.DATASET_PATH, self.DATASET_NAME]
        self.dataset = {split: Dataset.from_list(records) for split, records in splits.items()}


FOLDERS = {"arc_easy": "arc", "arc_challenge": "arc", "boolq": "super_glue/boolq", "social_iqa": "siqa"}
FOLDERS |= {"truthfulqa_mc1": "truthfulqa", "truthfulqa_mc2": "truthfulqa", "lambada_openai": "lambada"}
FOLDERS |= {"mmlu_anatomy": "mmlu/default", "minerva_math_algebra": "minerva_math"}


def build_tasks(names: Iterable[str], shots: int, gen_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Task objects by name; shots: of those tasks whose file does not say 0 itself."""
    root = Path(lm_eval.__file__).parent / "tasks"
    folders = sorted({str(root / FOLDERS.get(name, name)) for name in names})
    manager = TaskManager(include_defaults=False, include_path=folders)
    index, tasks = manager.task_index, {}
    for name in names:
        task = manager._factory.build(index[name], overrides={"class": MiniatureTask}, registry=index)
        if task.get_config("num_fewshot") != 0:
            task.set_config("num_fewshot", shots)
        if gen_kwargs and task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", gen_kwargs, update=True)
        tasks[name] = task
    return tasks


def ask(lm: Any, tasks: dict[str, Any], **settings: Any) -> Any:
    """The results of the harness's `evaluate`, with samples and without errors that it would bootstrap."""
    for task in tasks.values():
        task.set_fewshot_seed(1234)
    return lm_eval.evaluate(lm, {"tasks": tasks, "groups": {}}, bootstrap_iters=0, log_samples=True, **settings)


def assert_same(theirs: Theirs, ours: Ours, names: Iterable[str], shots: int, **settings: Any) -> None:
    """Both sides get the same strings and tokens, and give the same numbers, flags, texts and metrics.

    Log-likelihoods are within 1e-4, those of whole documents and all perplexities within a relative 1e-5.
    """
    tasks = build_tasks(names, shots, settings.pop("gen_kwargs", {"max_gen_toks": 12}))
    a, b = (ask(lm, tasks, **settings) for lm in (theirs, ours))
    assert ours.scored == theirs.scored
    assert sorted(ours.prompts) == sorted(theirs.prompts)
    for name in names:
        for their_sample, our_sample in zip(a["samples"][name], b["samples"][name], strict=True):
            for key in ("arguments", "target", "doc_hash", "prompt_hash", "target_hash"):
                assert our_sample[key] == their_sample[key], (name, key)
            _assert_same_answers(name, flat(their_sample["resps"]), flat(our_sample["resps"]))
        assert b["results"][name].keys() == a["results"][name].keys()
        for metric, value in a["results"][name].items():
            if isinstance(value, float) and any(inexact in metric for inexact in ("perplexity", "bits_per_byte")):
                value = pytest.approx(value, rel=1e-5)
            elif name == "truthfulqa_mc2" and metric == "acc,none":  # a share of probability
                value = pytest.approx(value, abs=1e-5)
            assert b["results"][name][metric] == value, (name, metric)


def flat(answers: Any) -> list[Any]:
    """The answers to an item's requests: (log-likelihood, greedy or not), a log-likelihood, or a text."""
    return [answer for repeats in answers for answer in repeats]


def _assert_same_answers(name: str, theirs: list[Any], ours: list[Any]) -> None:
    assert len(ours) == len(theirs), name
    for their, our in zip(theirs, ours, strict=True):
        if isinstance(their, str):
            assert our == their, name
        elif isinstance(their, tuple | list):
            assert float(our[0]) == pytest.approx(float(their[0]), abs=1e-4), name
            assert our[1] == their[1], name
        else:
            assert our == pytest.approx(their, rel=1e-5), name
