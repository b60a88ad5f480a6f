"""A recipe in one file: a policy that writes its own batches, and a value network that learns from a buffer of them.

Batches are generated with the current parameters, the position holds arrays, and there are two kinds of steps, each of
which trains one of two networks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.objectives.loss import Loss, Mean
from slmjax.sharding.mesh import BATCH, MeshConfig, make_mesh
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.config import TrainingConfig
from slmjax.training.program import make_program
from slmjax.training.recipe import Budget, Recipe, Record, Watching
from slmjax.training.step import StepKind

V, T, B, STEPS, LIKED = 11, 6, 4, 7, 3
MODEL = ModelConfig(vocab_size=V, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=24, context_length=T + 1)


@functools.cache
def computed(seed):
    """(program, its training config, sampling, probability of the liked token), compiled once for all runs."""
    model, mesh = Transformer(MODEL), make_mesh(MeshConfig(data=2, fsdp=1), jax.devices()[:2])
    rows = NamedSharding(mesh, P(BATCH))
    training = TrainingConfig(steps=STEPS, batch_size=B, eval_every=3, log_every=1, spike_factor=0, seed=seed)

    def policy_loss(params, frozen, batch, rng):
        del frozen, rng
        logits = model.apply({"params": params["policy"]}, batch["tokens"][:, :-1])
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["tokens"][:, 1:, None], -1)[..., 0]
        advantage_B = batch["rewards"] - params["value"]["bias"]
        loss = -jnp.sum(advantage_B * jnp.sum(log_probs, axis=1))
        reward = Mean(jnp.sum(batch["rewards"]), jnp.float32(advantage_B.size))
        return Loss(loss, jnp.float32(advantage_B.size), {"reward": reward})

    def value_loss(params, frozen, batch, rng):
        del frozen, rng
        error_N = params["value"]["bias"] - batch["rewards"]
        return Loss(jnp.sum(jnp.square(error_N)), jnp.float32(error_N.size), {})

    def init(key, base):
        del base
        return {"policy": model.init(key, jnp.zeros((1, 1), jnp.int32))["params"], "value": {"bias": jnp.zeros(())}}, {}

    rewards = {"rewards": jax.ShapeDtypeStruct((B,), jnp.float32, sharding=rows)}
    kinds = {
        "policy": StepKind(
            policy_loss, rewards | {"tokens": jax.ShapeDtypeStruct((B, T + 1), jnp.int32, sharding=rows)}, "policy"
        ),
        "value": StepKind(value_loss, rewards, "value"),
    }
    program = make_program(init, kinds, optax.adam(3e-2), lambda step: jnp.float32(3e-2), mesh, training)
    first = jnp.zeros((1, 1), jnp.int32)
    texts = jax.jit(
        lambda params, rng, step: sample(model, params, jax.random.fold_in(jax.random.wrap_key_data(rng), step))
    )
    liking = jax.jit(lambda p: jax.nn.softmax(model.apply({"params": p}, first)[0, 0])[LIKED])
    return program, training, texts, liking


def online(workdir, seed=0):
    """REINFORCE with a learned baseline on "write the liked token"; policy and value steps take turns."""
    program, training, texts, liking = computed(seed)
    return Recipe(
        program=program,
        batches=Rollouts(texts),
        observers=[Liking(liking)],
        start=program.initialize,
        training=training,
        budget=Budget(STEPS, B * T, 1.0, 1000),
        checkpoint=CheckpointConfig(every=2),
        record=Record({"kind": "online", "seed": seed}, lambda stored: [] if stored["seed"] == seed else ["seed"]),
        description="A policy.",
    )


def sample(model, params, rng):
    """int32 [B, T + 1]: texts that the policy writes after token 0."""

    def write(t, carry):
        tokens_BT, rng = carry
        rng, key = jax.random.split(rng)
        logits = model.apply({"params": params}, tokens_BT)[:, t]
        return tokens_BT.at[:, t + 1].set(jax.random.categorical(key, logits).astype(jnp.int32)), rng

    return jax.lax.fori_loop(0, T, write, (jnp.zeros((B, T + 1), jnp.int32), rng))[0]


class Rollouts:
    def __init__(self, sample):
        self.sample = sample
        self.number, self.buffer = 0, np.zeros((3, B), np.float32)  # rewards of the last texts

    def next(self, state):
        self.number += 1
        if self.number % 2 == 0:
            return "value", {"rewards": self.buffer[self.number % len(self.buffer)]}
        tokens = self.sample(state.params["policy"], state.rng, state.step)
        rewards = (np.asarray(tokens[:, 1:]) == LIKED).mean(axis=1, dtype=np.float32)
        self.buffer = np.roll(self.buffer, 1, axis=0)
        self.buffer[0] = rewards
        return "policy", {"tokens": tokens, "rewards": rewards}

    def position(self):
        return {"number": self.number, "buffer": {"rewards": self.buffer}}

    def seek(self, position):
        self.number, self.buffer = position["number"], position["buffer"]["rewards"]


class Liking(Watching):
    name = "liking"

    def __init__(self, probability):
        self.probability = probability
        self.history = np.zeros(0)

    def measure(self, evaluation):
        liking = float(self.probability(evaluation.state.params["policy"]))
        self.history = np.append(self.history, liking)
        return {"liking": liking, "mean_liking": float(self.history.mean())}

    def position(self):
        return {"history": self.history}

    def seek(self, position):
        self.history = position["history"]
