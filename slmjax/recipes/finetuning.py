"""Fine-tuning: next-token prediction from a base, whole or by a parameter-efficient method, held to it if asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from slmjax.data.pipeline import Interleaved
from slmjax.models.counting import count_parameters
from slmjax.peft.fingerprint import fingerprint
from slmjax.recipes.check import check
from slmjax.recipes.config import RunConfig
from slmjax.recipes.corpus import open_corpus
from slmjax.recipes.finetuned import expanded
from slmjax.recipes.fisher import with_fisher
from slmjax.recipes.general_text import GeneralText, open_general
from slmjax.recipes.identity import begun_in, record
from slmjax.recipes.language_model import ModelProgram, budget_of, build
from slmjax.recipes.observers.forgetting import Forgetting, Task, Tasks
from slmjax.recipes.observers.losses import Losses, batches_of
from slmjax.recipes.observers.tasks import WatchedTasks, task_scores
from slmjax.recipes.pretraining import TextBatches, run_length, settle, text_observers, text_recipe
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.training.processes import is_primary
from slmjax.training.recipe import Recipe
from slmjax.training.run_directory import refuse_another
from slmjax.training.state import TrainState


def finetuning(
    config: RunConfig,
    workdir: Path,
    base: Any,
    *,
    tokenizer: Tokenizer | None = None,
    stop_ids: Sequence[int] = (),
    generation: Mapping[str, Any] | None = None,
    tasks: Mapping[str, Task] | None = None,
    watched: WatchedTasks | None = None,
) -> Recipe:
    """The recipe of a config with a base.

    Args:
        config: the run.
        workdir: where the data are prepared, if they are not yet.
        base: the parameters of `config.peft.base`; they are used up.
        tokenizer: of the base, for conversations.
        stop_ids, generation: of the base; the run's model ends its answers where its base does, and draws as it does.
        tasks: scores by name, measured before and after beside the losses.
        watched: tasks of the config, which are scored as the network learns.
    """
    config = dataclasses.replace(config, peft=dataclasses.replace(config.peft, fingerprint=fingerprint(base)))
    config, base = expanded(config, base)
    check(config, base=base)
    refuse_another(workdir, record(config))
    begun = begun_in(workdir)
    corpus = open_corpus(config.data, workdir / "data", tokenizer=tokenizer, progress=is_primary(), begun=begun)
    config = settle(config, corpus, begun)
    encode = corpus.tokenizer.encode
    lm = build(config, token_bytes=corpus.tokenizer.token_bytes(), base=base, encode=encode)
    held = config.forgetting
    measuring = bool(held.tokens and held.corpus)
    general, replay = None, None
    if measuring or held.replay or held.ewc:
        place = workdir / "data" / "general"
        general = open_general(config, place, corpus.tokenizer, progress=is_primary(), begun=begun is not None)
        mark = "kl_weights" if held.general_rows_are_held else None
        replay = Interleaved(general.train, held.replay, mark) if held.replay else None

    def start() -> TrainState:
        state = lm.program.initialize(base)
        if general is None or not held.ewc:
            return state
        return with_fisher(lm, state, general.estimation_rows(config.data.sequence_length, held.fisher_rows))

    more: list[Any] = [_general_loss(lm, general)] if measuring and general is not None else []
    came = (stop_ids, generation or {})
    scores = task_scores(watched, lm, corpus.tokenizer, workdir, *came)
    reporting = measuring or bool(held.tasks)
    falling = watched.falling if watched is not None else ()
    after: list[Any] = [Tasks(lm, tasks or {}), Forgetting(config, workdir, falling)] if reporting else []
    trained, total = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (lm.program.state.params, base))
    return text_recipe(
        lm,
        corpus,
        workdir,
        batches=TextBatches(
            corpus.batches(config, lm.rows, replay),
            corpus.digest(general.train) if replay and general else corpus.digest(),
            config.data.on_change,
        ),
        observers=[*text_observers(lm, corpus, workdir, more, scores), *after],
        start=start,
        resume=lambda state: lm.program.complete(state, base),
        budget=budget_of(config, min(1.0, trained / total)),
        stop_ids=stop_ids,
        generation=generation,
        evaluate_first=reporting or bool(scores),
        description=(
            f"{trained:,} trained parameters ({config.peft.method}) on {count_parameters(config.model).total:,} of "
            f"{config.peft.base}, {run_length(lm, corpus)}"
        ),
    )


def _general_loss(lm: ModelProgram, general: GeneralText) -> Losses:
    """The loss on text outside the domain."""
    T, B = lm.config.data.sequence_length, lm.config.training.batch_size
    rows = general.measured_rows(T, lm.config.forgetting.tokens)
    return Losses(lm, lambda: batches_of(rows, T, B, lm.rows), prefix="general_", metrics=("loss",))
