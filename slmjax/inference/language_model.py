"""A model as its user holds it: config, parameters, tokenizer, and what a fine-tune adds beside them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.inference.decoding import Decoder
from slmjax.models.attention.kernels import attention_for
from slmjax.models.config import ModelConfig
from slmjax.models.execution import Execution
from slmjax.models.linear import cast_weights
from slmjax.models.parameters import Params, flatten
from slmjax.models.transformer import Transformer
from slmjax.models.unstacked import unstack
from slmjax.peft.forward import Network, forward
from slmjax.peft.options import PLAIN, Options
from slmjax.peft.prefix_cache import prefix_length
from slmjax.quantization.weights import dequantized
from slmjax.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """`params` is a nested dict of arrays; `apply` and everything built on it are pure functions of it."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None = None  # None: token ids in, token ids out
    stop_ids: tuple[int, ...] = ()  # at which generation ends; none: the tokenizer's eos alone
    peft: dict[str, Any] = field(default_factory=dict)  # what a fine-tune adds beside `params`, if it is not merged
    options: Options = PLAIN  # of what is added
    generation: Mapping[str, Any] = field(default_factory=dict)  # of generation_config.json, beyond the ids above
    context: int = 0  # tokens of text that the model may be given where its user says it (`with_context`); 0: its own
    path: str = field(default="", compare=False)  # where it was read from, for what is said of it

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer, for what needs text; UserError where the model has none."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.path or 'The model'} has no tokenizer, which text needs: put a tokenizer.json beside its "
                "weights, or give token ids."
            )
        return self.tokenizer

    @cached_property
    def model(self) -> Transformer:
        """The network, run in a way that suits generation on this machine."""
        platform = jax.default_backend()
        on_cpu = platform == "cpu"
        dtype = jnp.float32 if on_cpu else jnp.bfloat16  # XLA's bfloat16 matrix-vector product on CPUs is ~19x slower
        execution = Execution(dtype=dtype, attention=attention_for(platform), scan_unroll=0 if on_cpu else 1)
        return Transformer(self.config, execution)

    @property
    def variables(self) -> dict[str, Any]:
        """The collections of the network, as `peft.forward.forward` takes them with `options`."""
        return self._with_peft(self.params)

    @property
    def context_length(self) -> int:
        """Tokens of text that the model was made for: its context without the prefix, if it has one."""
        return self.context or self.config.context_length - prefix_length(self.peft)

    @property
    def longest_context(self) -> int:
        """Tokens of text that the model may be given: `context_length`, or as far as its rope's scaling extends it."""
        return self.context or self.config.extended_context_length - prefix_length(self.peft)

    def with_context(self, context: int | None) -> LanguageModel:
        """The model with another limit on what it may be given; None leaves it as it is.

        A warning beyond what the model's config extends it to. UserError beyond the rows of a table of positions.
        """
        if context is None:
            return self
        own = self.config.extended_context_length - prefix_length(self.peft)
        if context < 1:
            raise UserError(f"The context {context} must be at least 1.")
        if context > own and self.config.position == "learned":
            raise UserError(
                f"The context {context} is beyond the {own} positions that the model has learned: lower it."
            )
        if context > own:
            warnings.warn(
                f"A context of {context} is beyond the {own} tokens that the model was made for.", stacklevel=2
            )
        return dataclasses.replace(self, context=context)

    def decoding(self, num_rows: int) -> tuple[Decoder, dict[str, Any]]:
        """The decoder that generates so many rows, and its variables.

        On CPU these are a second copy of the parameters, made at the first use and kept until another arrangement is
        asked for: one row and several are fastest in different ones.
        """
        # What is added finds the products by their names, so they must be there one by one.
        on_cpu = jax.default_backend() == "cpu"
        layout = "stacked" if not on_cpu else "fused" if num_rows == 1 and not self.peft else "unstacked"
        if self._arranged.get("layout") != layout:
            self._arranged.clear()  # before the new copy is made: two at once are enough
            self._arranged.update(layout=layout, decoding=self._arrange(layout))
        return self._arranged["decoding"]

    @cached_property
    def _arranged(self) -> dict[str, Any]:
        return {}

    def _arrange(self, layout: str) -> tuple[Decoder, dict[str, Any]]:
        model, dtype = self.model, self.model.execution.dtype
        if layout == "stacked":
            return Decoder(Network(model, self.options)), self._with_peft(cast_weights(self.params, dtype))
        execution = dataclasses.replace(model.execution, layout=layout)
        # Quantized weights are made whole here: a CPU would do it again for every token.
        variables = {"params": unstack(self.config, dequantized(self.params), dtype, layout=layout)}
        if self.peft:
            variables["peft"] = unstack(self.config, self.peft, dtype)
        return Decoder(Network(Transformer(self.config, execution), self.options)), variables

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The mesh over which the parameters lie; None for one device."""
        shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(self.params))
        meshes = (s.mesh for s in shardings if isinstance(s, jax.sharding.NamedSharding) and s.mesh.size > 1)
        found = next(meshes, None)
        return found if isinstance(found, jax.sharding.Mesh) else None

    def apply(self, params: Any, tokens_BT: jax.Array) -> jax.Array:
        """float32 logits [B, T, V] of int32 tokens [B, T]; pure, and may be jitted."""
        return forward(Network(self.model, self.options), self._with_peft(params), tokens_BT)

    def _with_peft(self, params: Any) -> dict[str, Any]:
        return {"params": params, "peft": self.peft} if self.peft else {"params": params}


def require_plain(lm: LanguageModel) -> None:
    """UserError where parameters alone are not the model."""
    if any("lora_" in path or "ia3_" in path for path in flatten(lm.peft)):
        raise UserError(
            "A model's file cannot hold an adapter: load with merge=True, or convert it with --format peft."
        )
    if lm.peft:
        what = "prefix" if prefix_length(lm.peft) else "bottleneck adapter"
        raise UserError(
            f"This model has a {what}, which no file of weights can hold: write it apart (slmjax convert --format "
            f"{'peft' if prefix_length(lm.peft) else 'adapterhub'})."
        )
