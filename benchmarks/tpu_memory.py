"""What the TPU compiler says of a train step on a slice that is not there: memory, seconds, out of memory or not.

The model is the 1.10B Llama of the table (L16 D2048 H32 KV8 hd64 F8192 V32000, untied), FSDP, rows of 2048.
Example: python benchmarks/tpu_memory.py --topology v5e-16 --rows-per-chip 4
"""

import argparse
import json
import time

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters
from slmjax.recipes.config import default_config, run_config, set_budget
from slmjax.recipes.language_model import build
from slmjax.sharding.topologies import topology_devices
from slmjax.training.program import TRAIN

MODEL = ModelConfig(
    vocab_size=32000,
    num_layers=16,
    embed_dim=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    ffn_dim=8192,
    context_length=2048,
    tie_embeddings=False,
)


def measure(topology: str, rows_per_chip: int, remat: str, dump: str = "") -> dict:
    """Compile the step for `topology`; the compiler's own account of its memory, bytes a device."""
    devices = topology_devices(topology)
    config = default_config(MODEL)
    set_budget(config, steps=1000)
    config.data.sequence_length = 2048
    config.training.batch_size = rows_per_chip * len(devices)
    config.training.remat = remat
    program = build(run_config(config), devices=devices).program
    start = time.perf_counter()
    result = {"topology": topology, "rows_per_chip": rows_per_chip, "remat": remat}
    try:
        compiled = program.compile()[TRAIN]
    except UserError as error:
        return result | {"fits": False, "error": str(error.__cause__)[:200], "seconds": time.perf_counter() - start}
    memory = compiled.memory_analysis()
    if dump:
        with open(dump, "w") as file:
            file.write(compiled.as_text())
    return result | {
        "fits": True,
        "parameters": count_parameters(MODEL).total,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "peak_bytes": getattr(memory, "peak_memory_in_bytes", None),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e-16")
    parser.add_argument("--rows-per-chip", type=int, nargs="+", default=[4])
    parser.add_argument("--remat", default="full")
    parser.add_argument("--dump", default="", help="write the optimized HLO here")
    args = parser.parse_args()
    for rows in args.rows_per_chip:
        print(json.dumps(measure(args.topology, rows, args.remat, args.dump)), flush=True)


if __name__ == "__main__":
    main()
