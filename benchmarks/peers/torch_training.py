"""Tokens/s of transformers' LlamaForCausalLM with torch.optim.AdamW(fused=True) on CPU, float32.

The model is the 13.8M Llama of benchmarks/RESULTS.md: L6 D384 H6 hd64 F1024 V4096, untied (13,767,552 parameters; tied
it would be 12.2M), batches of 16 x 256 random tokens, cross-entropy over all of them, no clipping, no data loading.
Prints one JSON line a window. To take turns with another program on the same cores, start both with --wait: each window
then begins when a line arrives on standard input. Compilation and warm-up are over when {"ready": …} is printed.

Examples:
  python benchmarks/peers/torch_training.py --best --steps 4 --windows 3
  python benchmarks/peers/torch_training.py --compile default --seconds 20 --windows 5 --wait
"""

import argparse
import itertools
import json
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 4096


def make_step(attention: str, compile_mode: str, batch: int, length: int, autocast: bool):
    """Returns (step, parameters): step() trains on one fresh random batch and returns its loss as a float."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=1024,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        attn_implementation=attention,
        use_cache=False,
        dtype="float32",
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def loss_of(tokens):  # [B, T+1]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))

    compiled = loss_of if compile_mode == "off" else torch.compile(loss_of, mode=compile_mode, dynamic=False)

    def step() -> float:
        loss = compiled(torch.randint(VOCAB, (batch, length + 1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


def window(step, steps: int, seconds: float) -> tuple[int, float, float, float]:
    """Runs at least `steps` steps and `seconds` seconds. Returns (steps run, seconds, CPU seconds used, last loss)."""
    begin, cpu_begin, done, loss = time.perf_counter(), time.process_time(), 0, float("nan")
    while done < steps or time.perf_counter() - begin < seconds:
        loss = step()
        done += 1
    return done, time.perf_counter() - begin, time.process_time() - cpu_begin, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="least number of steps a window (default 4)")
    parser.add_argument(
        "--seconds", type=float, default=0, help="least length of a window (default 0: steps alone decide)"
    )
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument(
        "--warmup", type=int, default=2, help="steps before the first window, compilation in (default 2)"
    )
    parser.add_argument("--wait", action="store_true", help="begin each window when a line arrives on standard input")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument(
        "--compile", choices=["off", "default", "max-autotune"], default="off", help="torch.compile mode"
    )
    parser.add_argument(
        "--precision", choices=["highest", "high", "medium"], default="highest", help="of float32 matmuls"
    )
    parser.add_argument(
        "--best", action="store_true", help="try sdpa/eager x compile off/default first, keep the fastest"
    )
    parser.add_argument("--autocast", action="store_true", help="bf16 autocast: no longer the float32 comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.precision)
    tokens_a_step = args.batch * args.length
    choices = [(args.attention, args.compile)]
    if args.best:
        choices = list(itertools.product(["sdpa", "eager"], ["off", "default"]))
    tried = {}
    warmup_begin = time.perf_counter()
    for choice in choices:
        tried[choice], parameters = make_step(*choice, args.batch, args.length, args.autocast)
        window(tried[choice], args.warmup, 0)
    warmup_seconds = time.perf_counter() - warmup_begin
    rates = dict.fromkeys(choices, 0.0)
    for choice in choices * 3 if args.best else []:  # three rounds, each choice's best: others share the machine
        done, seconds, _, _ = window(tried[choice], 2, 0)
        rates[choice] = max(rates[choice], done * tokens_a_step / seconds)
    attention, compile_mode = best = max(choices, key=rates.__getitem__)
    step = tried.pop(best)
    tried.clear()  # frees the other models
    if args.best:
        print(json.dumps({"tried": {"/".join(choice): round(rate, 1) for choice, rate in rates.items()}}), flush=True)
    setting = {
        "peer": "transformers+torch",
        "torch": torch.__version__,
        "parameters": parameters,
        "attention": attention,
        "compile": compile_mode,
        "precision": args.precision,
        "autocast": args.autocast,
        "threads": args.threads,
    }
    print(json.dumps({"ready": True, "warmup_seconds": round(warmup_seconds, 1), **setting}), flush=True)
    for index in range(args.windows):
        if args.wait and not sys.stdin.readline():
            break
        done, seconds, cpu_seconds, loss = window(step, args.steps, args.seconds)
        rate = round(done * tokens_a_step / seconds, 1)
        report = {"window": index, "steps": done, "seconds": round(seconds, 3), "tokens_per_second": rate, "loss": loss}
        report["cpu_share"] = round(cpu_seconds / seconds / args.threads, 3)  # under ~0.9 others had the cores: discard
        print(json.dumps(report | setting), flush=True)


if __name__ == "__main__":
    main()
