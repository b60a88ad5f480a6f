"""Whether LoRA on a 3B and an 8B model fits the one chip that Colab lends, by the TPU compiler's own account.

Llama-3.2-3B in bfloat16 with 2 rows of 2048, Llama-3.1-8B in int8 with 1: r=16 on all weight products, AdamW.
Needs libtpu, no TPU. Example: python benchmarks/lora_tpu_memory.py --topology v5e-1
"""

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp

from slmjax.models.counting import count_parameters
from slmjax.models.families.registry import model_config
from slmjax.models.transformer import Transformer
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.language_model import build
from slmjax.sharding.hardware import CHIPS
from slmjax.sharding.topologies import topology_devices
from slmjax.training.program import TRAIN

# Llama-3.1-8B is Llama-3.2's shape with other sizes and a head of its own.
SIZE_8B = {"num_layers": 32, "embed_dim": 4096, "num_heads": 32, "ffn_dim": 14336, "tie_embeddings": False}
CASES = {"3b": ({}, "", 2), "8b": (SIZE_8B, "int8", 1)}


def measure(name: str, topology: str, remat: str) -> dict:
    """Compile the step; bytes of one device."""
    sizes, quantize, rows = CASES[name]
    config = default_config(dataclasses.replace(model_config("llama-3.2-3b"), **sizes))
    set_budget(config, steps=1000)
    config.data.sequence_length = 2048
    config.training.batch_size = rows
    config.training.remat = remat
    config.peft.method = "lora"
    config.peft.quantize = quantize
    run = run_config(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    base = jax.eval_shape(Transformer(run.model).init, jax.random.key(0), tokens)["params"]
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), base)
    program = build(run, devices=topology_devices(topology), base=base).program
    start = time.perf_counter()
    memory = program.compile()[TRAIN].memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    held += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "model": name,
        "topology": topology,
        "parameters": count_parameters(run.model).total,
        "base": quantize or "bfloat16",
        "rows": rows,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": getattr(memory, "peak_memory_in_bytes", None),
        "held_bytes": held,
        "fits": held < CHIPS[topology.partition("-")[0]].hbm_gib * 2**30,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e-1")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--remat", default="full")
    args = parser.parse_args()
    for name in args.models:
        print(json.dumps(measure(name, args.topology, args.remat)), flush=True)


if __name__ == "__main__":
    main()
