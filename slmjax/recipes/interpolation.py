"""WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903): weights between a base and what was fine-tuned from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from slmjax.console import say as say_on_stderr
from slmjax.data.packing import Row
from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.formats.models import load, save
from slmjax.formats.runs import open_run, read_base
from slmjax.models.parameters import flatten
from slmjax.peft.config import PeftConfig
from slmjax.quantities import json_text
from slmjax.recipes.config import RunConfig, run_config
from slmjax.recipes.corpus import Corpus, open_corpus
from slmjax.recipes.finetuned import expanded
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.general_text import open_general
from slmjax.recipes.language_model import build
from slmjax.recipes.observers.losses import batches_of, mean_losses
from slmjax.recipes.observers.plots import plot_interpolation
from slmjax.sharding.mesh import MeshConfig
from slmjax.untrusted import read_json


def interpolate(
    run: str | Path,
    *,
    points: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
    against: str = "",
    tokens: int = 0,
    output: str | Path | None = None,
    save_as: tuple[float, str | Path] | None = None,
    say: Callable[[str], None] = say_on_stderr,
) -> dict[str, Any]:
    """Losses of a fine-tuned run mixed with its base, and the model of one mix where it is wanted.

    Args:
        run: a fine-tune's workdir, or one of its checkpoints.
        points: weights of the fine-tuned network, from 0 (the base) to 1.
        against: general text, as in `forgetting.corpus`; "" for the run's own. tokens: how much of it; 0 for the run's.
        output: without its ending, where the curve is written as .json and .png; None for interpolation in the workdir.
        save_as: (weight, directory) of a model to save.

    Returns:
        {"run", "base", "general", "tokens", "points", "plot"}; the points as `curve` gives them.

    Raises:
        UserError: the run has no base, a weight is not in [0, 1], or the output cannot be written.
    """
    for weight in (*points, *(save_as or ())[:1]):
        if not 0 <= weight <= 1:
            raise UserError(f"The weight {weight:g} must be a number from 0 (the base) to 1 (the fine-tuned network).")
    place = open_run(run)
    if not place.description.peft.base:
        raise UserError(f"{run} is not a fine-tune: it has no base to be mixed with.")
    config = run_config(read_json(place.directory / "config.json"))
    output = local_path(output, "The output") if output else place.directory / "interpolation"
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written: there is no directory {output.parent}.")
    wanted = config.forgetting
    general = against or wanted.corpus or ForgettingConfig.corpus
    tokens = tokens or wanted.tokens or ForgettingConfig.tokens
    config = dataclasses.replace(config, forgetting=dataclasses.replace(wanted, corpus=general, tokens=tokens))

    tuned = load(run, dtype="float32")
    base_params = expanded(config, read_base(place, lambda base: load(base, dtype="float32"))[0].params)[1]
    begun = place.directory
    corpus = open_corpus(config.data, begun / "data", tokenizer=tuned.tokenizer, begun=begun)
    # Elsewhere than the run's own general text, unless it is that.
    folder = "general" if general == wanted.corpus else "general-interpolation"
    text = open_general(config, begun / "data" / folder, tuned.require_tokenizer(), begun=folder == "general")
    rows = text.measured_rows(config.data.sequence_length, tokens)
    results = curve(config, base_params, tuned.params, points, corpus=corpus, general=rows, say=say)
    plot = output.with_name(output.name + ".png")
    report = {"run": str(run), "base": config.peft.base, "general": general, "tokens": tokens, "points": results}
    report["plot"] = str(plot)
    output.with_name(output.name + ".json").write_text(json_text(report, indent=1) + "\n")
    plot_interpolation(results, plot, title=f"{run} and its base")
    if save_as:
        weight, directory = save_as
        save(dataclasses.replace(tuned, params=mix_weights(base_params, tuned.params, weight)), directory)
    return report


def mix_weights(base: Any, tuned: Any, weight: float) -> Any:
    """(1 - weight) base + weight tuned, float32, leaf by leaf; exactly the base at 0 and the tuned at 1."""
    ours, theirs = ({path: leaf.shape for path, leaf in flatten(tree).items()} for tree in (base, tuned))
    if ours != theirs:
        raise UserError("Only networks of the same shape can be interpolated: these two differ in their parameters.")
    return _mix(base, tuned, jnp.float32(weight))


@jax.jit
def _mix(base: Any, tuned: Any, weight: jax.Array) -> Any:
    return jax.tree.map(lambda b, t: (1 - weight) * b.astype(jnp.float32) + weight * t.astype(jnp.float32), base, tuned)


def curve(
    config: RunConfig,
    base: Any,
    tuned: Any,
    points: Sequence[float],
    *,
    corpus: Corpus,
    general: list[Row],
    say: Callable[[str], None] = say_on_stderr,
) -> list[dict[str, float]]:
    """`weight`, `validation_loss` and `general_loss` (nats a token) of the mix at each point, on the first device.

    config: of the fine-tune, whose data, batch and precision are used; a soft prompt or an adapter has no weights to
    mix. base, tuned: parameters of the plain network.
    """
    training = dataclasses.replace(config.training, ema_decay=0.0, accumulation=1, neftune_alpha=0.0)
    plain = dataclasses.replace(
        config, training=training, peft=PeftConfig(), forgetting=ForgettingConfig(), mesh=MeshConfig(fsdp=1)
    )
    first = jax.local_devices()[0]
    lm = build(plain, token_bytes=corpus.tokenizer.token_bytes(), devices=[first])
    T, B, state = plain.data.sequence_length, training.batch_size, lm.program.state
    results = []
    for weight in points:
        params = jax.device_put(mix_weights(base, tuned, weight), SingleDeviceSharding(first))
        state = dataclasses.replace(state, params={"params": params}, frozen={}, ema=None)
        losses = {}
        if corpus.validation:
            batches = corpus.validation_batches(plain, lm.rows)
            losses["validation_loss"] = mean_losses(lm, lm.eval_step, state, batches)["loss"]
        if general:
            batches = batches_of(general, T, B, lm.rows)
            losses["general_loss"] = mean_losses(lm, lm.eval_step, state, batches)["loss"]
        say(f"weight {weight:g}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        results.append({"weight": float(weight), **losses})
    return results
