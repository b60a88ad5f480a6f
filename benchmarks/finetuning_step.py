"""Full and LoRA fine-tuning steps of a real model on CPU, float32, in turn with transformers, torch and peft.

Each side is a process of its own: it warms up, and then trains a window of steps on random tokens whenever it is its
turn. LoRA has rank 16 on all linear layers of the network, AdamW everywhere. Prints tokens/s and the peak of resident
memory (of the whole process: imports, loading and compiling too) of each side, and the ratios of each round.

Needs slmjax[parity] and a Hugging Face directory. Example:
  slmjax convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2 --format huggingface --dtype float32
  python benchmarks/finetuning_step.py --model smollm2 --rounds 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from resources import Usage, environment

ROWS, LENGTH, RANK = 4, 256, 16


def ours(model: str, method: str, remat: str) -> Callable[[], object]:
    """A step of slmjax."""
    import jax
    import numpy as np

    import slmjax
    from slmjax.recipes.config import default_config, run_config, set_budget
    from slmjax.recipes.language_model import build
    from slmjax.training.program import TRAIN, to_devices

    lm = slmjax.load(model)
    config = default_config(lm.config)
    set_budget(config, steps=1000)
    config.data.sequence_length, config.training.batch_size = LENGTH, ROWS
    config.training.remat, _, unroll = remat.partition("@")
    config.training.scan_unroll = int(unroll or -1)
    config.peft.method, config.peft.base, config.peft.lora.r = method, model, RANK
    program = build(run_config(config), base=lm.params).program
    params = lm.params
    del lm
    state, step = program.initialize(params), program.compile()[TRAIN]
    del params
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (ROWS, LENGTH + 1), dtype=np.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "segments": np.ones((ROWS, LENGTH), np.int32),
        "loss_weights": np.ones((ROWS, LENGTH), np.float32),
    }
    batch = to_devices(batch, program.kinds[TRAIN].batch)
    held = [state]

    def run():
        held[0], metrics = step(held[0], batch)
        return jax.device_get(metrics)

    return run


def theirs(model: str, method: str) -> Callable[[], object]:
    """A step of transformers and torch, with peft for LoRA."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        network = get_peft_model(network, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    tokens = torch.randint(0, network.config.vocab_size, (ROWS, LENGTH))

    def run():
        loss = network(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)  # as ours does
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def serve(args: argparse.Namespace) -> None:
    """Be one side: a window of steps for each line on standard input."""
    whose, method = args.side.partition("@")[0].split("-")
    step = ours(args.model, method, args.remat) if whose == "ours" else theirs(args.model, method)
    step()
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        before, begin = Usage.now(), time.perf_counter()
        for _ in range(args.steps):
            step()
        seconds = time.perf_counter() - begin
        used = Usage.now().since(before, args.steps)
        print(json.dumps({"rate": args.steps * ROWS * LENGTH / seconds, **used}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps in a window")
    parser.add_argument("--remat", default="auto", help="our training.remat, or REMAT@UNROLL")
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["ours-full", "theirs-full", "ours-lora", "theirs-lora"],
        help="each may end in @ALLOCATOR of resources.py, as ours-full@kept does",
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args)
        return
    processes = {}
    for side in args.sides:
        command = [sys.executable, __file__, "--side", side, "--model", args.model, "--steps", str(args.steps)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        pipes["env"] = environment(side.partition("@")[2])
        processes[side] = subprocess.Popen([*command, "--remat", args.remat], **pipes)
        if processes[side].stdout.readline().strip() != "ready":
            raise SystemExit(f"{side} failed: run {' '.join(command)}")
    results = {side: [] for side in args.sides}
    for _ in range(args.rounds):
        for side, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            results[side].append(json.loads(process.stdout.readline()))
            print(f"{side} {results[side][-1]}", file=sys.stderr)
    for process in processes.values():
        process.kill()
    rates = {side: [window["rate"] for window in windows] for side, windows in results.items()}
    peaks = {side: windows[-1]["peak"] for side, windows in results.items()}
    for side in args.sides:
        user, system, faults = (
            statistics.median(w[key] for w in results[side]) for key in ("user", "system", "faults")
        )
        low, high = min(rates[side]), max(rates[side])
        print(
            f"{side:12} {statistics.median(rates[side]):7.1f} tokens/s ({low:.1f} to {high:.1f}), a step {user:.2f} s "
            f"in the program, {system:.2f} s in the kernel, {faults:.0f} page faults; peak {peaks[side] / 1e9:.2f} GB"
        )
    pairs = ("ours-full", "theirs-full"), ("ours-lora", "theirs-lora"), ("ours-lora", "ours-full")
    matching = [(a, b) for x, y in pairs for a in rates for b in rates if a.startswith(x) and b.startswith(y)]
    for a, b in matching:
        ratios = sorted(x / y for x, y in zip(rates[a], rates[b], strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{a} / {b}: tokens/s {spread}, peak memory {peaks[a] / peaks[b]:.2f}")


if __name__ == "__main__":
    main()
