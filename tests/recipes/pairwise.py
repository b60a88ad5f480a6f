"""A recipe in one file: a reward model trained on pairs, beside a frozen reference.

Two rows a record (chosen, rejected), a head that is not the language model's, a second network that is frozen and comes
from the base's own files, and metrics of its own.
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
from slmjax.training.program import TRAIN, make_program, process_rows
from slmjax.training.recipe import Budget, Recipe, Record, Watching
from slmjax.training.step import StepKind

V, T, B, D, STEPS = 23, 8, 8, 16, 6
MODEL = ModelConfig(vocab_size=V, num_layers=1, embed_dim=D, num_heads=2, ffn_dim=24, context_length=T)
TRAINING = TrainingConfig(
    steps=STEPS, batch_size=B, accumulation=2, eval_every=2, log_every=1, spike_factor=0, ema_decay=0.9
)


@functools.cache
def computed(seed):
    """(program, rewards of tokens, a function that makes the base): compiled once for all runs of a seed."""
    model, mesh = Transformer(MODEL), make_mesh(MeshConfig(data=2, fsdp=1), jax.devices()[:2])
    rows = NamedSharding(mesh, P(BATCH))

    def features(params, tokens_BT):
        """float32 [B, D]: the last hidden state."""
        return model.apply({"params": params}, tokens_BT, method="hidden")[0][:, -1]

    def objective(params, frozen, batch, rng):
        """Bradley-Terry, -log sigmoid(r(chosen) - r(rejected)), and the distance to the reference's features."""
        del rng
        h_B2D, r_B2D = (
            features(tree, batch["tokens"].reshape(-1, T)).reshape(-1, 2, D)
            for tree in (params["network"], frozen["reference"])
        )
        reward_B2 = h_B2D @ params["head"]
        margin_B = reward_B2[:, 0] - reward_B2[:, 1]
        drift = jnp.sum(jnp.square(h_B2D - r_B2D))
        loss, weight = -jnp.sum(batch["weights"] * jax.nn.log_sigmoid(margin_B)), jnp.sum(batch["weights"])
        metrics = {
            "loss": Mean(loss),
            "margin": Mean(jnp.sum(margin_B), jnp.float32(margin_B.size)),
            "drift": Mean(drift),
        }
        return Loss(loss + 0.01 * drift, weight, metrics)

    def init(key, base):
        return {"network": base, "head": 0.1 * jax.random.normal(key, (D,))}, {"reference": base}

    def reward(params, tokens):
        return features(params["network"], tokens) @ params["head"]

    @jax.jit
    def read_base():
        return model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]

    batch = {
        "tokens": jax.ShapeDtypeStruct((B, 2, T), jnp.int32, sharding=rows),
        "weights": jax.ShapeDtypeStruct((B,), jnp.float32, sharding=rows),
    }
    program = make_program(
        init,
        {TRAIN: StepKind(objective, batch)},
        optax.adamw(1e-2),
        lambda step: jnp.float32(1e-2),
        mesh,
        TRAINING,
        base=jax.eval_shape(read_base),
        rebuilt=("reference",),
    )
    return program, jax.jit(reward), read_base


def pairwise(workdir, seed=0):
    """The recipe; the base is made from a seed, as if it had been read from files."""
    program, reward, read_base = computed(seed)
    rows = program.kinds[TRAIN].batch["tokens"].sharding
    return Recipe(
        program=program,
        batches=Pairs(process_rows(rows, B)),
        observers=[Margins(reward)],
        start=lambda: program.initialize(read_base()),
        resume=lambda state: program.complete(state, read_base()),
        training=TRAINING,
        budget=Budget(STEPS, 2 * B * T, 1.0, 1000),
        checkpoint=CheckpointConfig(every=2),
        record=Record({"kind": "pairwise", "seed": seed}, lambda stored: [] if stored["seed"] == seed else ["seed"]),
        description="A reward model.",
    )


def record(number):
    """The pair of this number: the chosen row counts up, the rejected one is noise."""
    rng = np.random.default_rng(number)
    start = rng.integers(0, V)
    return np.stack([(start + np.arange(T)) % V, rng.integers(0, V, T)]).astype(np.int32)


class Pairs:
    def __init__(self, rows):
        self.rows, self.number = rows, 0

    def next(self, state):
        del state
        numbers = [self.number * B + row for row in self.rows]
        self.number += 1
        weights = np.asarray([0.5 + (n % 3) for n in numbers], np.float32)
        return TRAIN, {"tokens": np.stack([record(n) for n in numbers]), "weights": weights}

    def position(self):
        return {"number": self.number}

    def seek(self, position):
        self.number = position["number"]


class Margins(Watching):
    name = "margins"

    def __init__(self, reward):
        self.heldout = np.stack([record(10**6 + n) for n in range(4)])
        self.reward = reward

    def measure(self, evaluation):
        rewards = [np.asarray(self.reward(evaluation.state.ema, rows)) for rows in self.heldout.swapaxes(0, 1)]
        return {"validation_margin": float(np.mean(rewards[0] - rewards[1]))}
