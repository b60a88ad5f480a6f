"""A language model as lm-evaluation-harness asks it: log-likelihoods and continuations of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slmjax.console import warn
from slmjax.errors import UserError, first_few
from slmjax.evaluation.harness.chat import ChatPrompts
from slmjax.evaluation.harness.encoding import Encoder, Pair
from slmjax.evaluation.harness.generation import Asked, StopStrings, read_settings
from slmjax.evaluation.harness.model_facts import model_facts, special_tokens
from slmjax.evaluation.scoring.score import NotFiniteError, Score, score
from slmjax.inference.generate import stop_ids_of
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.refilling import generate_rows

try:
    import lm_eval.models  # noqa: F401 (before any model is registered: the harness fills its registry only while it is empty)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise UserError("Evaluation needs lm-evaluation-harness: pip install 'slmjax[eval]'.") from error

_NO_BEGINNING = (
    "The tokenizer has no token to begin a text with, which a text without context needs: give prefix_token_id."
)


class HarnessModel(TemplateLM):
    """A model that lm-evaluation-harness evaluates with its own requests and the numbers of its own `hf` class.

    What is asked at once is scored and generated at once: the order and the size of batches are the engine's.

    Attributes:
        lm: the model.
        truncated: requests by task that were longer than the context and lost their beginning.
        tokenizer: its special tokens, which the harness writes into its results.
        tells_of_cuts: whether a warning tells of these requests too.

    Args:
        max_length: tokens of the context; None: the model's.
        share_prefixes: whether what requests have in common is computed once.
        rows: continuations that are generated at once; 0: as many as suit the machine.
        seed: of tokens that are drawn.
        add_bos_token: whether texts get the tokens that the tokenizer puts around them; None: as the tokenizer does.
        prefix_token_id: the token before a text without context; None: bos, else eos.
        chat_template_args: variables of the chat template.
        enable_thinking: one of these, which many templates read.
        think_end_token: after which the answer of a reasoning model begins, as text or as its id.

    Raises:
        UserError: the model has no tokenizer; a context that it cannot have.
    """

    tells_of_cuts = True

    def __init__(
        self,
        lm: LanguageModel,
        *,
        max_length: int | None = None,
        share_prefixes: bool = True,
        rows: int = 0,
        seed: int = 1234,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
    ):
        super().__init__()
        self.lm = lm.with_context(max_length)
        self.truncated: Counter[str] = Counter()
        self._slmjax_tokenizer = tokenizer = lm.require_tokenizer()
        self._share, self._rows, self._seed, self._think_end = share_prefixes, rows, seed, think_end_token
        self._encoder = Encoder(tokenizer, add_bos=add_bos_token, prefix=prefix_token_id)
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._chat = ChatPrompts(tokenizer, {**(chat_template_args or {}), **thinking})
        self._facts: dict[str, Any] = {}
        self.tokenizer = special_tokens(tokenizer)
        if self._encoder.after:
            warn(
                "the tokenizer ends every text with a special token, contexts too, and so scores as the harness has "
                "them mean little: add_bos_token=False leaves it out"
            )

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text, None where there is none."""
        return self._slmjax_tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int | None:
        """The token before a text without context, None where there is none."""
        return self._encoder.prefix

    @property
    def max_length(self) -> int:
        """Tokens of the context."""
        return self.lm.context_length

    @property
    def tokenizer_name(self) -> str:
        """A name that tells one tokenizer from another, for the harness's cache of requests."""
        return self._slmjax_tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; add_special_tokens: whether some are put around it, None: as the tokenizer does."""
        return self._encoder.encode_bare(string) if add_special_tokens is False else self._encoder.encode(string)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation in its context, in nats, and whether greedy decoding gives it.

        Raises:
            UserError: a continuation without tokens, or longer than the context; a log-likelihood that is not finite.
        """
        pairs = list(self._encoder.encode_pairs([request.args for request in requests]))
        return self._score_pairs(requests, pairs, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the context's length that share no predicted token.

        Raises:
            UserError: a log-likelihood that is not finite; a tokenizer without a token to begin with.
        """
        if self._encoder.prefix is None:
            raise UserError(_NO_BEGINNING)
        texts = self._encoder.encode_many([request.args[0] for request in requests])
        pairs: list[Pair] = []
        owners: list[int] = []
        starts = [0]  # of each text's windows among all
        for owner, ids in enumerate(texts):
            windows = get_rolling_token_windows(ids, self._encoder.prefix, self.max_length, context_len=1)
            pairs += map(make_disjoint_window, windows)
            owners += [owner] * (len(pairs) - len(owners))
            starts.append(len(pairs))
        left = Counter(owners)
        found = [0.0] * len(pairs)
        totals = [0.0] * len(requests)

        def add(index: int, scored: Score) -> None:
            owner = owners[index]
            found[index] = scored.logprob
            left[owner] -= 1
            if not left[owner]:
                totals[owner] = sum(found[starts[owner] : starts[owner + 1]])
                self.cache_hook.add_partial("loglikelihood_rolling", requests[owner].args, totals[owner])

        self._score([requests[owner] for owner in owners], pairs, add, disable_tqdm)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._score_pairs([], [(context, tail) for _, context, tail in requests], disable_tqdm=disable_tqdm)

    def _score_pairs(
        self, requests: Sequence[Instance], pairs: Sequence[Pair], *, disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        def keep(index: int, scored: Score) -> None:
            if requests:
                self.cache_hook.add_partial("loglikelihood", requests[index].args, tuple(scored))

        return [(s.logprob, s.is_greedy) for s in self._score(requests, pairs, keep, disable_tqdm)]

    def _score(
        self,
        requests: Sequence[Instance],
        pairs: Sequence[Pair],
        tell: Callable[[int, Score], None],
        disable_tqdm: bool,
    ) -> list[Score]:
        """Score pairs, of which those beyond the context lose their beginning."""
        room, cut = self.max_length + 1, Counter[str]()
        fitting: list[Pair] = []
        for index, (context, continuation) in enumerate(pairs):
            if not continuation:
                raise UserError(f"The continuation of {_name(requests, index)} has no tokens: check the task's data.")
            if not context:
                raise UserError(_NO_BEGINNING)
            if len(continuation) >= room:
                raise UserError(
                    f"The continuation of {_name(requests, index)} has {len(continuation)} tokens, but the model's "
                    f"context is {self.max_length}: give a larger max_length, or leave the task out."
                )
            if len(context) + len(continuation) > room:
                context = context[len(context) + len(continuation) - room :]
                cut[_task(requests, index)] += 1
            fitting.append((context, continuation))
        self._tell_of_cuts(cut, len(pairs))
        try:
            return score(self.lm, fitting, share=self._share, progress=not disable_tqdm, tell=tell)
        except NotFiniteError as error:
            raise UserError(
                f"The log-likelihood of {_name(requests, error.index)} is not finite, so no score would mean anything: "
                "the model's weights are broken or overflow; try an earlier checkpoint or dtype=float32."
            ) from error

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to its first stop string, the end-of-text token or the most tokens.

        Raises:
            UserError: settings that are not known here; more tokens than the context has.
        """
        prompts = self._encoder.encode_prompts([request.args[0] for request in requests])
        groups: dict[Asked, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(read_settings(request.args[1], self.lm, request.task_name), []).append(index)
        texts = [""] * len(requests)
        for asked, members in groups.items():
            self._generate(asked, members, requests, prompts, texts, disable_tqdm)
        return texts

    def _generate(
        self,
        asked: Asked,
        members: Sequence[int],
        requests: Sequence[Instance],
        prompts: Sequence[list[int]],
        texts: list[str],
        disable_tqdm: bool,
    ) -> None:
        """Generate the members of a group into `texts`."""
        room, cut = self.max_length - asked.max_new_tokens, Counter[str]()
        if room < 1:
            raise UserError(
                f"The task {_task(requests, members[0])} asks for {asked.max_new_tokens} new tokens, but the model's "
                f"context is {self.max_length}: give a smaller max_gen_toks in generation_kwargs."
            )
        fitting = []
        for index in members:
            if not prompts[index]:
                raise UserError(_NO_BEGINNING)
            cut.update([_task(requests, index)] if len(prompts[index]) > room else [])
            fitting.append(prompts[index][-room:])
        self._tell_of_cuts(cut, len(members))
        stops = StopStrings(self._slmjax_tokenizer, asked.until, think_end=self._think_end)

        def keep(number: int, ids: list[int]) -> None:
            index = members[number]
            texts[index] = stops.cut(ids)
            self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])

        eos = self._slmjax_tokenizer.eos_id
        generate_rows(
            self.lm,
            fitting,
            max_new_tokens=asked.max_new_tokens,
            sampling=asked.sampling,
            seed=self._seed,
            stop_ids=tuple(dict.fromkeys([*stop_ids_of(self.lm), *([] if eos is None else [eos])])),
            stop=asked.until,
            rows=self._rows,
            progress=not disable_tqdm,
            tell=keep,
        )

    def _tell_of_cuts(self, cut: Counter[str], count: int) -> None:
        self.truncated.update(cut)
        if cut and self.tells_of_cuts:
            tasks = first_few([f"{number} of {task}" for task, number in cut.most_common()])
            warn(
                f"{cut.total()} of {count} requests are longer than the context of {self.max_length} tokens and lose "
                f"their beginning, as the harness does it: {tasks}"
            )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; add_generation_prompt: False to continue its last message.

        Raises:
            UserError: the model has no chat template, or it refuses the conversation.
        """
        return self._chat.render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's chat template, or of the one of a name; None where none is asked for.

        Raises:
            UserError: there is none, or none of this name.
        """
        if chat_template is False or chat_template is None:
            return None
        return self._chat.choose(None if chat_template is True else chat_template)

    def get_model_info(self) -> dict[str, Any]:
        """Facts of the model that the harness writes among its results' `config`."""
        self._facts = self._facts or model_facts(self.lm)
        return {**self._facts, "truncated_requests": dict(self.truncated)}


def _task(requests: Sequence[Instance], index: int) -> str:
    return (requests[index].task_name if requests else None) or "the requests"


def _name(requests: Sequence[Instance], index: int) -> str:
    """An item as sentences call it."""
    if not requests or requests[index].task_name is None:
        return f"request {index}"
    return f"item {requests[index].doc_id} of the task {requests[index].task_name}"
