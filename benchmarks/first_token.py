"""Seconds from the start of `slmjax generate` to its first new text, the compilation cached on disk or not.

Example:
  python benchmarks/first_token.py --model SmolLM2-135M-Instruct.Q4_1.gguf --runs 3
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

PROMPT = "The capital of France is"


def seconds_to_first_text(model: str, cache: str) -> float:
    command = [sys.executable, "-m", "slmjax.cli.main", "generate", "--model", model, "--prompt", PROMPT]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | {"XDG_CACHE_HOME": cache}) as process:
        assert process.stdout is not None
        process.stdout.read(len(PROMPT) + 1)
        taken = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"slmjax generate ended with status {process.returncode}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        print(f"nothing cached: {seconds_to_first_text(args.model, cache):.1f} s")
        for _ in range(args.runs):
            print(f"cached on disk: {seconds_to_first_text(args.model, cache):.1f} s")


if __name__ == "__main__":
    main()
