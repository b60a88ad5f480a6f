"""MaxText on CPU at the 13.8M Llama: seconds from process start to the first finished step, and steady tokens/s.

The model is that of torch_training.py (L6 D384 H6 hd64 F1024 V4096, untied, 16 x 256 tokens, float32, AdamW, synthetic
data). Times are those at which MaxText's "completed step" lines arrive here, so nothing that MaxText does before its
own clock starts (imports, initialization, compilation) is left out. Options after -- go to MaxText.

Examples (MAXTEXT_PYTHON is the python of an environment with MaxText, see README.md):
  python benchmarks/peers/maxtext_cpu_training.py --maxtext-python MT/bin/python
  python benchmarks/peers/maxtext_cpu_training.py --maxtext-python MT/bin/python -- remat_policy=full dtype=bfloat16
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time

# remat_policy=minimal keeps matrix products' results: the fastest of MaxText's policies at this size.
MODEL = [
    "decoder_block=llama2",
    "base_emb_dim=384",
    "base_num_query_heads=6",
    "base_num_kv_heads=6",
    "head_dim=64",
    "base_mlp_dim=1024",
    "base_num_decoder_layers=6",
    "vocab_size=4096",
    "attention=dot_product",
    "dtype=float32",
    "remat_policy=minimal",
]
RUN = [
    "hardware=cpu",
    "run_name=peer",
    "enable_checkpointing=False",
    "dataset_type=synthetic",
    "enable_goodput_recording=False",
]
ONE_PROCESS = {
    "JAX_PLATFORMS": "cpu",
    "JOB_INDEX": "0",
    "JOB_COMPLETION_INDEX": "0",
    "PROCESSES_IN_JOB": "1",
    "JAX_PROCESS_COUNT": "1",
    "JAX_COORDINATOR_ADDRESS": "localhost",
    "PYTHONUNBUFFERED": "1",
}


def run_once(python: str, steps: int, batch: int, length: int, extra: list[str]) -> dict:
    """One MaxText run of `steps` steps of `batch` x `length` tokens. Returns the report; `error` holds the last lines.

    Steady tokens/s is taken between the arrivals of step 1 (step 0 still warms caches) and of the last but one: MaxText
    prints a step when the next one has been handed to the device, the last when it leaves the loop.
    """
    find = "import importlib.util as u; print(u.find_spec('maxtext').submodule_search_locations[0])"
    package = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    arrivals: dict[int, float] = {}
    tail: list[str] = []
    with tempfile.TemporaryDirectory() as out:
        command = [python, "-m", "maxtext.trainers.pre_train.train", f"{package}/configs/base.yml", *RUN, *MODEL]
        # An empty compilation cache each time: MaxText's own, ~/jax_cache, would let the second run start faster.
        command += [
            f"base_output_directory={out}",
            f"jax_cache_dir={out}/cache",
            f"steps={steps}",
            f"per_device_batch_size={batch}",
        ]
        command += [f"max_target_length={length}", *extra]
        begin = time.perf_counter()
        with subprocess.Popen(
            command, cwd=out, env=os.environ | ONE_PROCESS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                tail = [*tail[-5:], line.strip()]
                if found := re.search(r"completed step: (\d+)", line):
                    arrivals[int(found[1])] = time.perf_counter() - begin
    first, last = 1, steps - 2
    steady = None
    if first in arrivals and last in arrivals and last > first:
        steady = (last - first) * batch * length / (arrivals[last] - arrivals[first])
    return {
        "peer": "maxtext",
        "seconds_to_first_step": round(arrivals[0], 2) if 0 in arrivals else None,
        "seconds_total": round(time.perf_counter() - begin, 2),
        "steps": len(arrivals),
        "tokens_per_second": round(steady, 1) if steady else None,
        "extra": extra,
        "error": None if process.returncode == 0 else " | ".join(tail)[-600:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext-python", default=os.environ.get("MAXTEXT_PYTHON"), help="default: $MAXTEXT_PYTHON")
    parser.add_argument("--runs", type=int, default=1, help="processes, one after the other (default 1)")
    parser.add_argument("--steps", type=int, default=10, help="steps a run (default 10; 4 or more for tokens/s)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("extra", nargs="*", metavar="NAME=VALUE", help="more MaxText options, after --")
    args = parser.parse_args()
    if not args.maxtext_python:
        parser.error("say which python has MaxText: --maxtext-python, or MAXTEXT_PYTHON in the environment")
    for _ in range(args.runs):
        print(json.dumps(run_once(args.maxtext_python, args.steps, args.batch, args.length, args.extra)), flush=True)


if __name__ == "__main__":
    main()
