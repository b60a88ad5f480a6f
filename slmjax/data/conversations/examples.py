"""Fine-tuning examples: records to token ids and what of them is learned, as packing reads them."""

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slmjax.data.conversations.records import Conversation, Passage, parse_record
from slmjax.data.mixture import Mixture
from slmjax.data.sft_config import ConversationSource, SftConfig
from slmjax.data.sources import read_records
from slmjax.errors import UserError
from slmjax.tokenization.chat_template import PLAIN_TEMPLATE, ChatTemplate, template_tokens
from slmjax.tokenization.chat_tokens import encode_conversation, encode_messages, tokens_within
from slmjax.tokenization.tokenizer import Tokenizer


class ExampleStore:
    """Examples in memory.

    Args:
        name: what errors call them.
        examples: of each its token ids, and bool of the same length: which of them are learned.
    """

    def __init__(self, name: str, examples: list[tuple[np.ndarray, np.ndarray]]):
        self.name = name
        self.lengths = np.asarray([len(ids) for ids, _ in examples], np.int64)
        self.num_documents = len(examples)
        self._begins = np.cumsum(self.lengths) - self.lengths
        self._ids = np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in examples)])
        self._learned = np.concatenate([np.zeros(0, bool), *(learned for _, learned in examples)])

    def pieces(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32 [sum(lengths)]: token ids of the pieces example[start : start + length], one after another."""
        return self._ids[self._places(documents, starts, lengths)]

    def loss_weights(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """float32 [sum(lengths)]: 1 where the token is learned."""
        return self._learned[self._places(documents, starts, lengths)].astype(np.float32)

    def _places(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        before = np.cumsum(lengths) - lengths
        return np.repeat(self._begins[documents] + starts - before, lengths) + np.arange(int(lengths.sum()))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse a model whose vocabulary does not hold every id."""
        if len(self._ids) and (largest := int(self._ids.max())) >= vocab_size:
            raise UserError(
                f"token id {largest} in {self.name} is beyond the model's vocabulary of {vocab_size}: "
                "fine-tune with the tokenizer that came with the model"
            )


@dataclasses.dataclass
class Report:
    """What became of the records.

    Attributes:
        examples: that are trained or validated on.
        tokens, learned: in them, the learned ones as targets.
        truncated, tokens_cut: examples that lost their end, and how much that was in all.
        open_ended: examples whose last learned token is no special token, so that they teach no end.
        skipped: records by reason; `first` quotes the first of each.
    """

    examples: int = 0
    tokens: int = 0
    learned: int = 0
    truncated: int = 0
    tokens_cut: int = 0
    open_ended: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    first: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.examples:,} examples of {self.tokens:,} tokens, of which {self.learned:,} are learned"]
        if self.truncated:
            lines.append(f"{self.truncated:,} were too long and lost {self.tokens_cut:,} tokens at their end")
        if self.open_ended:
            lines.append(f"{self.open_ended:,} end without a special token: they do not teach the model to stop")
        lines += [
            f"{count:,} skipped ({reason}); the first: {self.first[reason]}" for reason, count in self.skipped.items()
        ]
        return "\n".join(lines)

    def skip(self, reason: str, sentence: str) -> None:
        """Count a record."""
        self.skipped[reason] += 1
        self.first.setdefault(reason, sentence)


@dataclasses.dataclass(frozen=True)
class Examples:
    """All that a run of supervised fine-tuning reads: what it trains on, and what it validates on."""

    train: Mixture
    validation: list[ExampleStore]
    report: Report


def load_examples(config: SftConfig, tokenizer: Tokenizer, *, progress: bool = True) -> Examples:
    """Read, render, tokenize and split the records of `config`; what was left out is told on stderr with `progress`.

    The same on every process of a run: it depends on the files and the config alone.

    Raises:
        UserError: bad sources; a record that the config does not let pass, with its place; nothing left to learn.
    """
    if not config.sources:
        raise UserError("there is nothing to fine-tune on: name at least one source")
    if tokenizer.eos_id is None:
        raise UserError("the tokenizer names no token that ends a text: set eos_token in its tokenizer_config.json")
    report = Report()
    encoder = _Encoder(config, tokenizer, report, sft_template(config, tokenizer))
    keyed = {name: list(encoder.source(name, source, progress)) for name, source in config.sources.items()}
    own = {name: list(encoder.source(name, source, progress)) for name, source in config.validation.items()}
    if progress:
        print(report, file=sys.stderr)
    for name, examples in {**keyed, **own}.items():
        if not examples:
            reasons = "; ".join(report.first.values()) or "it holds no records"
            raise UserError(f"nothing of the source {name!r} can be learned from: {reasons}")
    held_out = set() if own else _held_out(keyed, config.validation_fraction)
    train = {
        name: ExampleStore(name, [(ids, learned) for key, ids, learned in examples if key not in held_out])
        for name, examples in keyed.items()
    }
    weights = {name: source.weight for name, source in config.sources.items()}
    validation = own or {name: [e for e in examples if e[0] in held_out] for name, examples in keyed.items()}
    stores = [ExampleStore(name, [(ids, learned) for _, ids, learned in e]) for name, e in validation.items() if e]
    return Examples(Mixture(train, weights), stores, report)


_Keyed = tuple[int, np.ndarray, np.ndarray]  # hash of the content, token ids, which of them are learned


def _held_out(sources: dict[str, list[_Keyed]], fraction: float) -> set[int]:
    """The hashes that go to validation: those below the fraction, or a source's smallest where none is."""
    chosen: set[int] = set()
    for examples in sources.values():
        keys = {key for key, _, _ in examples}
        below = {key for key in keys if key < fraction * 2.0**64}
        chosen |= below or ({min(keys)} if fraction and len(keys) > 1 else set())
    return chosen


@dataclasses.dataclass
class _Encoder:
    """The way from a record to an example: what its steps share."""

    config: SftConfig
    tokenizer: Tokenizer
    report: Report
    template: ChatTemplate | None

    def source(self, name: str, source: ConversationSource, progress: bool) -> Iterator[_Keyed]:
        """The examples of one source, in its order."""
        special = set(self.tokenizer.special_tokens().values())
        for where, record in tqdm(
            read_records(source.files), desc=f"read {name}", unit=" records", disable=not progress
        ):
            try:
                item = parse_record(record, source.fields, self.config.system)
                ids, learned = self._passage(item) if isinstance(item, Passage) else self._conversation(item)
                if not learned[1:].any():
                    raise UserError("nothing of it is learned")
            except UserError as error:
                sentence = f"{where}: {error}"
                if self.config.on_invalid == "error":
                    raise UserError(f"{sentence} (or set on_invalid to skip such records)") from error
                self.report.skip("cannot be learned from", sentence)
                continue
            if self.config.loss != "all":
                self.report.open_ended += int(ids[np.flatnonzero(learned)[-1]]) not in special
            if (fitting := self._fitting(ids, learned, where)) is not None:
                self._count(*fitting)
                yield _key(item, self.config.seed), *fitting

    def _conversation(self, item: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """int32 token ids and bool [tokens]."""
        template = self.template
        if template is None:
            raise UserError(
                'it is a conversation, and the tokenizer has no chat template: set chat_template to "plain" or to a '
                "file of Jinja, or give records of prompt and completion"
            )
        if self.config.loss == "all":
            ids = encode_messages(self.tokenizer, template, item.messages, tools=item.tools)
            return np.asarray(ids, np.int32), np.ones(len(ids), bool)
        last = item.completion if self.config.loss == "completion" else None
        if last is not None and item.messages[-1]["role"] != "assistant":
            raise UserError("its last message is not the assistant's, so it has no completion")
        ids, learned = encode_conversation(self.tokenizer, template, item.messages, tools=item.tools, last=last)
        return np.asarray(ids, np.int32), learned

    def _passage(self, item: Passage) -> tuple[np.ndarray, np.ndarray]:
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        if item.prompt is None and self.config.loss != "all":
            raise UserError(
                f'it is a text without turns, of which no {self.config.loss} can be learned: set loss to "all"'
            )
        prompt = item.prompt or ""
        text = prompt + item.completion
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        learned = tokens_within(offsets, [(0 if self.config.loss == "all" else len(prompt), len(text))])
        before = [bos] if self.config.add_bos and bos is not None else []
        assert eos is not None  # load_examples saw to it
        return np.asarray([*before, *ids, eos], np.int32), np.concatenate(
            [np.zeros(len(before), bool), learned, [True]]
        )

    def _fitting(self, ids: np.ndarray, learned: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The example, shortened if need be and allowed; None where it is left out."""
        most = self.config.sequence_length + 1
        if len(ids) <= most:
            return ids, learned
        sentence = f"{where} has {len(ids):,} tokens, more than the {most:,} of sequence_length + 1"
        if self.config.on_long == "error":
            raise UserError(f"{sentence}: raise sequence_length, or set on_long to truncate or skip")
        if self.config.on_long == "skip":
            self.report.skip("too long", sentence)
            return None
        if not learned[1:most].any():
            self.report.skip("too long, and what is learned lies beyond the end", sentence)
            return None
        self.report.truncated += 1
        self.report.tokens_cut += len(ids) - most
        return ids[:most], learned[:most]

    def _count(self, ids: np.ndarray, learned: np.ndarray) -> None:
        report = self.report
        report.examples += 1
        report.tokens += len(ids)
        report.learned += int(learned[1:].sum())


def sft_template(config: SftConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template of a run: the config's, or else the tokenizer's, if any.

    Raises:
        UserError: it cannot be read, or does not compile.
    """
    if config.chat_template == "plain":
        return ChatTemplate(PLAIN_TEMPLATE, template_tokens(tokenizer))
    if config.chat_template:
        path = Path(config.chat_template)
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), template_tokens(tokenizer))
        except (OSError, ValueError) as error:
            raise UserError(f"the chat template {path} cannot be read ({error})") from error
    return ChatTemplate.of(tokenizer) if tokenizer.settings.get("chat_template") else None


def _key(item: Conversation | Passage, seed: int) -> int:
    content = json.dumps(dataclasses.asdict(item), sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=seed.to_bytes(16, "little")).digest(), "little")
