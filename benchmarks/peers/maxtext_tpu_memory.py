"""What the TPU compiler says of MaxText's train step: bytes of memory a chip, and the largest batch that fits.

No TPU is needed: `maxtext.trainers.pre_train.train_compile` compiles for a described topology. The model is the 1.10B
Llama of benchmarks/RESULTS.md (L16 D2048 H32 KV8 hd64 F8192 V32000, untied), FSDP over all chips, AdamW, bf16 compute,
float32 master weights, full remat and flash (splash) attention. What follows -- goes to MaxText: `-- NAME=VALUE …`.

Examples (MAXTEXT_PYTHON is the python of an environment with `maxtext[tpu]`, see README.md):
  python benchmarks/peers/maxtext_tpu_memory.py --maxtext-python MT/bin/python --batch 4 --vocab-tiling 8
  python benchmarks/peers/maxtext_tpu_memory.py --maxtext-python MT/bin/python --largest 1 256 --vocab-tiling 8
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time

MODEL = [
    "decoder_block=llama2",
    "base_emb_dim=2048",
    "base_num_query_heads=32",
    "base_num_kv_heads=8",
    "head_dim=64",
    "base_mlp_dim=8192",
    "base_num_decoder_layers=16",
    "vocab_size=32000",
    "remat_policy=full",
    "attention=flash",
]
# libtpu as a compiler only: ask no metadata server for a TPU, and let a stale lock file be.
COMPILER_ENV = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
OOM_MARKS = ("CompileTimeHbmOom", "RESOURCE_EXHAUSTED", "Ran out of memory in memory space hbm")


def compile_once(python: str, topology: str, batch: int, length: int, tiling: int, extra: list[str]) -> dict:
    """Compiles one train step in a fresh process; `batch` sequences of `length` tokens a chip. Returns one report.

    `temp_bytes` and `argument_bytes` are the compiler's, for one chip. Out of memory sets `error` to "out of memory",
    `detail` to the compiler's sentence; any other failure sets `error` to the last lines that MaxText printed.
    """
    find = "import importlib.util as u; print(u.find_spec('maxtext').submodule_search_locations[0])"
    package = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as out:
        command = [python, "-m", "maxtext.trainers.pre_train.train_compile", f"{package}/configs/base.yml"]
        command += [f"compile_topology={topology}", "compile_topology_num_slices=1", *MODEL]
        command += [f"per_device_batch_size={batch}", f"max_target_length={length}", f"num_vocab_tiling={tiling}"]
        command += [
            "run_name=peer",
            f"base_output_directory={out}",
            f"jax_cache_dir={out}/cache",
            "enable_checkpointing=False",
        ]
        command += ["dataset_type=synthetic", *extra]
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=out, env=os.environ | COMPILER_ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    report = {
        "peer": "maxtext",
        "topology": topology,
        "batch_per_device": batch,
        "length": length,
        "vocab_tiling": tiling,
        "extra": extra,
        "temp_bytes": None,
        "argument_bytes": None,
        "seconds": round(time.perf_counter() - begin, 1),
        "error": None,
    }
    for key, name in (("temp_bytes", "temp_size"), ("argument_bytes", "argument_size")):
        if found := re.search(rf"\b{name}_in_bytes=(\d+)", done.stdout):
            report[key] = int(found[1])
    if report["temp_bytes"] is None:
        oom = [line.strip() for line in done.stdout.splitlines() if any(mark in line for mark in OOM_MARKS)]
        report["error"] = "out of memory" if oom else " | ".join(done.stdout.strip().splitlines()[-4:])[-600:]
        if oom:
            report["detail"] = oom[-1][:400]
    return report


def largest_batch(compile_batch, low: int, high: int, beyond: int) -> int | None:
    """The largest batch in [low, high] found to compile, or None if `low` does not; `beyond` more are tried above it.

    Bisection supposes that memory grows with the batch. Near the limit it does not quite (the compiler
    rematerializes on its own when it must), so the batches just above the one that bisection found are compiled too.
    """
    fits: dict[int, bool] = {}

    def compiles(batch: int) -> bool:
        if batch not in fits:
            report = compile_batch(batch)
            if report["error"] not in (None, "out of memory"):
                raise SystemExit(f"batch {batch} failed for another reason than memory: {report['error']}")
            fits[batch] = report["error"] is None
        return fits[batch]

    if not compiles(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if compiles(middle) else (low, middle - 1)
    return next(batch for batch in range(low + beyond, low - 1, -1) if compiles(batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext-python", default=os.environ.get("MAXTEXT_PYTHON"), help="default: $MAXTEXT_PYTHON")
    parser.add_argument("--topology", default="v5e-16", help="MaxText's compile_topology (default v5e-16)")
    parser.add_argument("--batch", type=int, default=4, help="sequences a chip (default 4)")
    parser.add_argument("--length", type=int, default=2048, help="tokens a sequence (default 2048)")
    parser.add_argument("--vocab-tiling", type=int, default=1, help="num_vocab_tiling; must divide batch*length")
    parser.add_argument("--largest", type=int, nargs=2, metavar=("LOW", "HIGH"), help="bisect the batch in [LOW, HIGH]")
    parser.add_argument("--beyond", type=int, default=2, help="batches tried above the one bisected (default 2)")
    parser.add_argument("extra", nargs="*", metavar="NAME=VALUE", help="more MaxText options, after --")
    args = parser.parse_args()
    if not args.maxtext_python:
        parser.error("say which python has MaxText: --maxtext-python, or MAXTEXT_PYTHON in the environment")

    def compile_batch(batch: int) -> dict:
        report = compile_once(args.maxtext_python, args.topology, batch, args.length, args.vocab_tiling, args.extra)
        print(json.dumps(report), flush=True)
        return report

    if args.largest:
        low, high = args.largest
        largest = largest_batch(compile_batch, low, high, args.beyond)
        report = {"largest_batch_per_device": largest, "bounds": [low, high], "vocab_tiling": args.vocab_tiling}
        print(json.dumps(report | {"extra": args.extra}))
    else:
        compile_batch(args.batch)


if __name__ == "__main__":
    main()
