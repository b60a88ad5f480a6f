"""Records to examples: token ids and which of them are learned, and a report of what was left out."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from slmjax.data.conversations.messages import assistant_weights, turn_weight
from slmjax.data.conversations.records import OPTIONAL, Conversation, Passage, parse_record
from slmjax.data.conversations.unwritten import Unwritten
from slmjax.data.reading.fields import ABSENT, find_field
from slmjax.data.sft_config import ConversationSource, SftConfig
from slmjax.data.sources import read_records
from slmjax.data.split import content_key
from slmjax.errors import UserError, one_line
from slmjax.files import local_path
from slmjax.tokenization.chat_template import PLAIN_TEMPLATE, ChatTemplate, choose_template, template_tokens
from slmjax.tokenization.chat_tokens import encode_conversation, encode_messages, tokens_within
from slmjax.tokenization.tokenizer import Tokenizer

KeyedExample = tuple[int, np.ndarray, np.ndarray]  # hash of the content, token ids, how much each is learned


@dataclasses.dataclass
class EncodingReport:
    """Counts of what became of the records.

    Attributes:
        examples: those to train and to validate on.
        tokens, learned: the tokens in them, and how many of these are learned (as targets).
        truncated, tokens_cut: examples that lost their end, and how many tokens that was in all.
        open_ended: examples whose last learned token is not special, so that they do not teach the model to stop.
        unwritten: conversations with something that the chat template does not write, by what it is.
        marked_others: conversations in which a turn of someone else than the assistant is marked to be learned.
        skipped: records by reason; `first` quotes the first of each.
    """

    examples: int = 0
    tokens: int = 0
    learned: int = 0
    truncated: int = 0
    tokens_cut: int = 0
    open_ended: int = 0
    unwritten: Counter[str] = dataclasses.field(default_factory=Counter)
    marked_others: int = 0
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    first: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.examples:,} examples of {self.tokens:,} tokens, of which {self.learned:,} are learned"]
        if self.truncated:
            lines.append(f"{self.truncated:,} were too long and lost {self.tokens_cut:,} tokens at their end")
        if self.open_ended:
            lines.append(f"{self.open_ended:,} end without a special token: they do not teach the model to stop")
        lines += [
            f"{count:,} have {what} that the chat template does not write" for what, count in self.unwritten.items()
        ]
        if self.marked_others:
            lines.append(
                f"{self.marked_others:,} mark turns of others than the assistant as to be learned, and they are not"
            )
        lines += [
            f"{count:,} skipped ({reason}). The first: {self.first[reason]}" for reason, count in self.skipped.items()
        ]
        return "\n".join(lines)

    def skip(self, reason: str, sentence: str) -> None:
        """Count a record."""
        self.skipped[reason] += 1
        self.first.setdefault(reason, sentence)


@dataclasses.dataclass
class Encoder:
    """The way from a record to an example: what its steps share."""

    config: SftConfig
    tokenizer: Tokenizer
    report: EncodingReport
    template: ChatTemplate | None
    tool_template: ChatTemplate | None
    unwritten: Unwritten = dataclasses.field(default_factory=Unwritten)

    def encode_source(self, name: str, source: ConversationSource, progress: bool) -> Iterator[KeyedExample]:
        """The examples of one source, in its order."""
        special = set(self.tokenizer.special_tokens().values())
        unseen = {ours: theirs for ours, theirs in source.fields.items() if ours in OPTIONAL}
        for where, record in tqdm(
            read_records(source.files), desc=f"read {name}", unit=" records", disable=not progress
        ):
            unseen = {ours: theirs for ours, theirs in unseen.items() if find_field(record, theirs) is ABSENT}
            try:
                item = parse_record(record, source.fields, self.config.system)
                ids, learned = self._passage(item) if isinstance(item, Passage) else self._conversation(item)
                if not learned[1:].any():
                    if isinstance(item, Conversation) and 0 in map(turn_weight, item.messages):
                        self.report.skip("marked as not to be learned", f"{where}.")
                        continue
                    raise UserError("No token of the record is learned.")
            except UserError as error:
                sentence = f"{where}: {error}"
                if self.config.on_invalid == "error":
                    raise UserError(f"{sentence} Set data.on_invalid=skip to leave such records out.") from error
                self.report.skip("cannot be learned from", sentence)
                continue
            if self.config.loss != "all":
                self.report.open_ended += int(ids[np.flatnonzero(learned)[-1]]) not in special
            if (fitting := self._fitting(ids, learned, where)) is not None:
                self._count(*fitting)
                yield _content_key(item, self.config.seed), *fitting

        for ours, theirs in unseen.items():
            raise UserError(
                f"No record of {source.path} has the field {theirs!r} that its fields give as {ours}: correct its name."
            )

    def _conversation(self, item: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """int32 token ids, and how much each is learned: bool [tokens], or float32 where turns have weights."""
        template = self.tool_template if item.tools else self.template
        if template is None:
            raise UserError(
                "The record is a conversation, and the tokenizer has no chat template: set "
                'data.chat_template to "plain" or to a file of Jinja, or give records of prompt and completion.'
            )
        weights = assistant_weights(item.messages)
        arguments = (self.tokenizer, template, item.messages)
        if self.config.loss == "all":
            ids = encode_messages(*arguments, tools=item.tools)
            learned = np.ones(len(ids), bool)
            if weights is not None:
                _, within = encode_conversation(*arguments, tools=item.tools)
                _, shares = encode_conversation(*arguments, tools=item.tools, weights=weights)
                learned = np.where(within, shares, np.float32(1))
        else:
            last = item.completion if self.config.loss == "completion" else None
            if last is not None and item.messages[-1]["role"] != "assistant":
                raise UserError("The last message is not the assistant's, so there is no completion.")
            ids, learned = encode_conversation(*arguments, tools=item.tools, last=last, weights=weights)
        self._count_lost(template, item)
        return np.asarray(ids, np.int32), learned

    def _count_lost(self, template: ChatTemplate, item: Conversation) -> None:
        """Count what the template does not write, and marks of turns that do not decide anything."""
        self.report.unwritten.update(self.unwritten.check(template, item))
        others = [turn_weight(message) for message in item.messages if message["role"] != "assistant"]
        if self.config.loss != "all":
            self.report.marked_others += any(others)
        elif any(weight is not None and weight != 1 for weight in others):
            raise UserError(
                "A turn of the user has a weight, which data.loss=all does not take: set data.loss=assistant."
            )

    def _passage(self, item: Passage) -> tuple[np.ndarray, np.ndarray]:
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        if item.prompt is None and self.config.loss != "all":
            raise UserError(
                f"The record is plain text without turns, of which data.loss={self.config.loss} selects nothing: "
                "set data.loss=all."
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
        sentence = f"{where} has {len(ids):,} tokens, more than the {most:,} of data.sequence_length + 1"
        if self.config.on_long == "error":
            raise UserError(f"{sentence}: raise data.sequence_length, or set data.on_long to truncate or skip.")
        if self.config.on_long == "skip":
            self.report.skip("too long", f"{sentence}.")
            return None
        if not learned[1:most].any():
            self.report.skip("too long, and what is learned lies beyond the end", f"{sentence}.")
            return None
        self.report.truncated += 1
        self.report.tokens_cut += len(ids) - most
        return ids[:most], learned[:most]

    def _count(self, ids: np.ndarray, learned: np.ndarray) -> None:
        report = self.report
        report.examples += 1
        report.tokens += len(ids)
        report.learned += int(np.count_nonzero(learned[1:]))


def sft_templates(config: SftConfig, tokenizer: Tokenizer) -> tuple[ChatTemplate | None, ChatTemplate | None]:
    """The chat template of a run, and that of its conversations with tools: most often the same one."""
    template = sft_template(config, tokenizer)
    setting = tokenizer.settings.get("chat_template")
    if config.chat_template or choose_template(setting, tools=True) == choose_template(setting):
        return template, template
    return template, ChatTemplate.of(tokenizer, tools=True)


def sft_template(config: SftConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template of a run: the config's, or else the tokenizer's, if any.

    Raises:
        UserError: it cannot be read, or does not compile.
    """
    if config.chat_template == "plain":
        return ChatTemplate(PLAIN_TEMPLATE, template_tokens(tokenizer))
    if config.chat_template:
        path = local_path(config.chat_template, "data.chat_template")
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), template_tokens(tokenizer))
        except (OSError, ValueError) as error:
            raise UserError(
                f"data.chat_template={path} cannot be read ({one_line(error)}): give a file of UTF-8 text."
            ) from error
    return ChatTemplate.of(tokenizer) if tokenizer.settings.get("chat_template") else None


def _content_key(item: Conversation | Passage, seed: int) -> int:
    return content_key(json.dumps(dataclasses.asdict(item), sort_keys=True).encode(), seed)
