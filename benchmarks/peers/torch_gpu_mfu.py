"""Tokens/s and MFU of transformers' LlamaForCausalLM under torch.compile + SDPA on one NVIDIA GPU.

Precision: bf16 autocast over float32 parameters, which are the master weights; gradients and AdamW (fused) are float32.
Cross-entropy in float32, no clipping, random tokens already on the GPU, no activation checkpointing unless --remat.
Shapes (vocabulary 32000, untied):
  0.35b  L24 D1024 H16 KV8 hd64  F2816   348,701,696 parameters
  1.1b   L16 D2048 H32 KV8 hd64  F8192 1,104,218,112 parameters
  3b     L28 D3072 H24 KV8 hd128 F8192 3,015,355,392 parameters
FLOP rule, per token: 6 * (parameters of matrix products: lm_head in, embedding lookup out) + 6 * L * H * hd * T (causal
attention: forward 2 products * 2 FLOP * H * hd * T/2 a layer, training three times that). Recomputation is not counted.

Examples:
  python benchmarks/peers/torch_gpu_mfu.py --shape 1.1b --batch 8 16 --sdp any cudnn
  python benchmarks/peers/torch_gpu_mfu.py --smoke            # a tiny shape on CPU: checks the script, measures nothing
"""

import argparse
import contextlib
import itertools
import json
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

# name: (layers, width, query heads, KV heads, head_dim, FFN width, vocabulary)
SHAPES = {
    "0.35b": (24, 1024, 16, 8, 64, 2816, 32000),
    "1.1b": (16, 2048, 32, 8, 64, 8192, 32000),
    "3b": (28, 3072, 24, 8, 128, 8192, 32000),
    "tiny": (2, 64, 4, 2, 16, 128, 256),
}
# Dense bf16 peak of the chip, FLOP/s, by a part of the name that CUDA gives (vendor's data sheets, SXM boards).
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def train_flops_per_token(shape: tuple[int, ...], length: int) -> float:
    """Training FLOP for one token by the rule above."""
    L, D, H, K, hd, width, V = shape
    matmul = L * (D * hd * (2 * H + 2 * K) + 3 * D * width) + D * V
    return 6.0 * matmul + 6.0 * L * H * hd * length


def measure(shape: tuple[int, ...], batch: int, length: int, sdp: str, device: str, args: argparse.Namespace) -> dict:
    """Trains `args.warmup` + `args.steps` steps. Returns tokens_per_second, model_tflops, peak bytes and parameters."""
    L, D, H, K, hd, width, V = shape
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=hd,
        intermediate_size=width,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
        dtype="float32",
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).train()
    if args.remat:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(V, (8, batch, length + 1), device=device)  # eight batches, taken in turn

    def loss_of(tokens):  # [B, T+1]
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().reshape(-1, V), tokens[:, 1:].reshape(-1))

    compiled = loss_of if args.compile == "off" else torch.compile(loss_of, mode=args.compile, dynamic=False)

    def step(index: int) -> torch.Tensor:
        loss = compiled(tokens[index % len(tokens)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    with sdpa_kernel(BACKENDS[sdp]) if sdp in BACKENDS else contextlib.nullcontext():
        for index in range(args.warmup):
            step(index)
        synchronize()
        begin = time.perf_counter()
        for index in range(args.steps):
            loss = step(index)
        synchronize()
        seconds = time.perf_counter() - begin
    rate = args.steps * batch * length / seconds
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_seconds": seconds / args.steps,
        "tokens_per_second": rate,
        "model_tflops": rate * train_flops_per_token(shape, length) / 1e12,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "loss": loss.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=["0.35b", "1.1b"])
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="sequences a step; each value is one run")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument(
        "--sdp", nargs="+", choices=["any", *BACKENDS], default=["any"], help="SDPA backend; one run each"
    )
    parser.add_argument("--compile", choices=["default", "max-autotune-no-cudagraphs", "off"], default="default")
    parser.add_argument("--remat", action="store_true", help="transformers' gradient checkpointing in every layer")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peak-tflops", type=float, help="bf16 peak of the GPU where its name is not known here")
    parser.add_argument("--smoke", action="store_true", help="tiny shape on CPU, batch 2 x 32, 2 steps")
    args = parser.parse_args()
    if args.smoke:
        args.shape, args.batch, args.length, args.sdp, args.warmup, args.steps = ["tiny"], [2], 32, ["any"], 1, 2
    elif not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --smoke checks the script on CPU")
    device = "cpu" if args.smoke else "cuda"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = args.peak_tflops * 1e12 if args.peak_tflops else next((p for key, p in PEAKS.items() if key in name), None)
    torch.set_float32_matmul_precision("high")

    for shape, batch, sdp in itertools.product(args.shape, args.batch, args.sdp):
        report = {
            "peer": "transformers+torch",
            "torch": torch.__version__,
            "device": name,
            "shape": shape,
            "error": None,
        }
        report |= {"batch": batch, "length": args.length, "sdp": sdp, "compile": args.compile, "remat": args.remat}
        torch.compiler.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            report |= measure(SHAPES[shape], batch, args.length, sdp, device, args)
            report["mfu"] = report["model_tflops"] * 1e12 / peak if peak else None
        except torch.cuda.OutOfMemoryError:
            report["error"] = "out of memory"
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
