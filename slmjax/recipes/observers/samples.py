"""What the network answers at each evaluation, so that one sees it learn: a few prompts, greedily, in samples.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.data.conversations.encoding import sft_template
from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError
from slmjax.inference.decoding import Decoder
from slmjax.inference.generate import decode_prompts
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.peft.forward import Network
from slmjax.recipes.check import NEEDS_VALIDATION
from slmjax.recipes.config import RunConfig
from slmjax.recipes.corpus import Corpus
from slmjax.recipes.language_model import ModelProgram
from slmjax.tokenization.chat_tokens import encode_messages
from slmjax.training.processes import is_primary
from slmjax.training.recipe import Evaluation, Watching
from slmjax.training.reporting.metrics import drop_lines_after

FILE_NAME = "samples.jsonl"
_SHOWN = 200  # characters of a prompt's end and of an answer in the log
_TEXT_PROMPT = 24  # tokens of a text that are shown to be continued


class Samples(Watching):
    """Answers the same prompts again and again; its program is compiled at the first evaluation and never again."""

    name = "samples"

    def __init__(self, lm: ModelProgram, corpus: Corpus, workdir: Path):
        """`corpus`: has the validation split that prompts are taken from, and the tokenizer."""
        self._tokenizer = corpus.tokenizer
        self._path = workdir / FILE_NAME
        self._appending = False
        self._prompts = _prompts(lm.config, corpus)
        stops = {i for i in self._tokenizer.special_tokens().values() if i < lm.config.model.vocab_size}
        if self._tokenizer.eos_id is not None:
            stops.add(self._tokenizer.eos_id)
        self._stops, self._num_tokens = sorted(stops), lm.config.training.sample_tokens
        run, mesh = lm.model.execution, lm.program.mesh
        model = Transformer(lm.config.model, Execution(dtype=run.dtype, scan_unroll=run.scan_unroll))
        self._decoder = Decoder(
            Network(model, lm.method.options),
            collections=lambda state: lm.method.variables(*state),
            mesh=mesh if mesh.size > 1 else None,
        )

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Answer, tell the answers, and append them to the file."""
        state, step = evaluation.state, evaluation.step
        params = state.params if state.ema is None else state.ema
        answers = decode_prompts(
            self._decoder,
            (params, state.frozen),
            self._prompts,
            max_new_tokens=self._num_tokens,
            stop_ids=self._stops,
        )
        lines = []
        for prompt, ids in zip(self._prompts, answers, strict=True):
            asked, answer = self._tokenizer.decode(prompt), self._tokenizer.decode(ids)
            lines.append(json.dumps({"step": step, "prompt": asked, "answer": answer}, ensure_ascii=False) + "\n")
            evaluation.say(f"  | {' '.join(asked.split())[-_SHOWN:]}\n  > {' '.join(answer.split())[:_SHOWN]}")
        if is_primary():
            try:
                if not self._appending:  # what a killed run left behind of this step and later ones
                    drop_lines_after(self._path, step - 1)
                    self._appending = True
                with self._path.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:
                raise UserError(f"Cannot write {self._path} ({error.strerror or error}): free space there.") from error
        return {}


def _prompts(config: RunConfig, corpus: Corpus) -> list[list[int]]:
    """Token ids: `training.samples` beginnings of validation examples or texts, then `training.sample_prompts`."""
    t = config.training
    if t.samples and not corpus.validation:
        raise UserError(f"training.samples={t.samples} {NEEDS_VALIDATION}")
    longest = config.model.context_length - t.sample_tokens
    prompts: list[list[int]] = []
    for number in range(t.samples):
        store = corpus.validation[number % len(corpus.validation)]
        turn, turns = number // len(corpus.validation), -(-t.samples // len(corpus.validation))
        document, start = np.asarray([store.num_documents * turn // turns]), np.zeros(1, np.int64)
        length = store.lengths[document]
        ids, learned = (f(document, start, length) for f in (store.pieces, store.loss_weights))
        end = int(np.argmax(learned > 0)) if isinstance(config.data, SftConfig) else 0
        prompts.append(ids[: end or _TEXT_PROMPT].tolist())
    for text in t.sample_prompts:
        prompts.append(_encoded(text, config.data, corpus))
    for prompt in prompts:
        if not 0 < len(prompt) <= longest:
            raise UserError(
                f"A prompt to sample from has {len(prompt)} tokens, and with training.sample_tokens={t.sample_tokens} "
                f"it must have 1 to {longest}: give shorter training.sample_prompts, or ask for fewer training.samples."
            )
    return prompts


def _encoded(text: str, data: Any, corpus: Corpus) -> list[int]:
    """A prompt as the run's data would write it: a user's message where there is a chat template."""
    template = sft_template(data, corpus.tokenizer) if isinstance(data, SftConfig) else None
    if template is not None:
        messages: list[dict[str, Any]] = [{"role": "system", "content": data.system}] if data.system else []
        messages.append({"role": "user", "content": text})
        return encode_messages(corpus.tokenizer, template, messages, add_generation_prompt=True)
    bos = corpus.tokenizer.bos_id
    return [*([bos] if data.add_bos and bos is not None else []), *corpus.tokenizer.encode(text)]
