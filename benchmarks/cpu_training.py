"""CPU training of the 13.8M model (L6 D384 H6 F1024 V4096, B16 T256, float32): a line of JSON a window.

It tells tokens/s, and of each step the processor seconds in the program and in the kernel and the page faults, and the
peak of resident memory of the whole process.

Example: python benchmarks/cpu_training.py --steps 4 --windows 3
"""

import argparse
import json
import time

import jax
import numpy as np
from resources import Usage

from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters, flops_per_token
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.language_model import build
from slmjax.training.program import TRAIN, to_devices


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps in a window")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="training.key=value, as in --set remat=full")
    args = parser.parse_args()
    model = ModelConfig(
        vocab_size=4096,
        num_layers=6,
        embed_dim=384,
        num_heads=6,
        ffn_dim=1024,
        context_length=256,
        tie_embeddings=False,
    )
    config = default_config(model)
    set_budget(config, steps=1000)
    config.data.sequence_length = 256
    config.training.batch_size = 16
    for item in args.set:
        key, value = item.split("=")
        config.training[key] = type(config.training[key])(value)
    config = run_config(config)
    program = build(config).program
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4096, (16, 257), dtype=np.int32)
    batch = to_devices(
        {
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "positions": np.tile(np.arange(256, dtype=np.int32), (16, 1)),
            "segments": np.ones((16, 256), np.int32),
            "loss_weights": np.ones((16, 256), np.float32),
        },
        program.kinds[TRAIN].batch,
    )
    state = program.initialize()
    step = program.compile()[TRAIN]
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    flops = flops_per_token(model, 256)
    for _ in range(args.windows):
        before, start = Usage.now(), time.perf_counter()
        for _ in range(args.steps):
            state, metrics = step(state, batch)
        jax.block_until_ready(state)
        rate = args.steps * 16 * 256 / (time.perf_counter() - start)
        print(
            json.dumps(
                {
                    "tokens_per_second": round(rate, 1),
                    "gflops_per_second": round(rate * flops / 1e9, 1),
                    "parameters": count_parameters(model).total,
                    "loss": float(metrics["loss"]),
                    **Usage.now().since(before, args.steps),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
