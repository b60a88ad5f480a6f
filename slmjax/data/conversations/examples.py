"""Fine-tuning data: examples in memory, as packing reads them, to train on and to validate on."""

import dataclasses

import numpy as np

from slmjax.console import say
from slmjax.data.conversations.encoding import Encoder, EncodingReport, sft_templates
from slmjax.data.mixture import Mixture
from slmjax.data.sft_config import SftConfig
from slmjax.data.split import held_out_keys
from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import Tokenizer


class ExampleStore:
    """Examples in memory.

    Args:
        name: what errors call them.
        examples: of each its token ids, and of the same length how much each is learned: bool, or float32 from 0 to 1.
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
        """float32 [sum(lengths)]: 1, or the weight of its turn, where the token is learned."""
        return self._learned[self._places(documents, starts, lengths)].astype(np.float32)

    def _places(self, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        before = np.cumsum(lengths) - lengths
        return np.repeat(self._begins[documents] + starts - before, lengths) + np.arange(int(lengths.sum()))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse a model whose vocabulary does not hold every id."""
        if len(self._ids) and (largest := int(self._ids.max())) >= vocab_size:
            raise UserError(
                f"The token id {largest} in {self.name} is beyond the model's vocabulary of {vocab_size}: "
                "fine-tune with the tokenizer that came with the model."
            )


@dataclasses.dataclass(frozen=True)
class FineTuningData:
    """All that a run of supervised fine-tuning reads: what it trains on, and what it validates on."""

    train: Mixture
    validation: list[ExampleStore]
    report: EncodingReport


def load_examples(config: SftConfig, tokenizer: Tokenizer, *, progress: bool = True) -> FineTuningData:
    """Read, render, tokenize and split the records of `config`; what was left out is told on stderr with `progress`.

    The same on every process of a run: it depends on the files and the config alone.

    Raises:
        UserError: bad sources; a record that the config does not let pass, with its place; nothing left to learn.
    """
    if not config.sources:
        raise UserError("There is nothing to fine-tune on: name at least one source in data.sources.")
    if tokenizer.eos_id is None:
        raise UserError("The tokenizer names no token that ends a text: set eos_token in its tokenizer_config.json.")
    report = EncodingReport()
    encoder = Encoder(config, tokenizer, report, *sft_templates(config, tokenizer))
    keyed = {name: list(encoder.encode_source(name, source, progress)) for name, source in config.sources.items()}
    own = {name: list(encoder.encode_source(name, source, progress)) for name, source in config.validation.items()}
    if progress:
        say(str(report))
    for name, examples in {**keyed, **own}.items():
        if not examples:
            reasons = " ".join(report.first.values()).rstrip(".") or "it has no records"
            raise UserError(
                f"Nothing of the source {name!r} can be learned from ({reasons}): take it out of the config."
            )
    keys = [[key for key, _, _ in examples] for examples in keyed.values()]
    held_out = set() if own else held_out_keys(keys, config.validation_fraction)
    train = {
        name: ExampleStore(name, [(ids, learned) for key, ids, learned in examples if key not in held_out])
        for name, examples in keyed.items()
    }
    weights = {name: source.weight for name, source in config.sources.items()}
    validation = own or {name: [e for e in examples if e[0] in held_out] for name, examples in keyed.items()}
    stores = [ExampleStore(name, [(ids, learned) for _, ids, learned in e]) for name, e in validation.items() if e]
    return FineTuningData(Mixture(train, weights), stores, report)
