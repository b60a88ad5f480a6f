"""`slmjax inspect`: what is this, and what does it cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "say what a run, checkpoint, saved model or named model is and what it costs"
EXAMPLE = "slmjax inspect runs/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", help="a run's workdir, a checkpoint, a saved model, or a name such as smollm2-135m")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print architecture, parameters and costs."""
    from slmjax.errors import UserError
    from slmjax.inference.language_model import _read_json, model_config_from
    from slmjax.models.counting import count_parameters, flops_per_token, kv_cache_bytes
    from slmjax.models.families import model_config

    path = Path(args.path)
    facts: dict[str, object] = {}
    if not path.exists():
        config = model_config(args.path)
        facts["kind"] = "named model"
    else:
        inside = path / "config.json" if path.is_dir() else path
        if path.name.isdecimal() and (path.parent.parent / "config.json").is_file():
            inside = path.parent.parent / "config.json"
        if not inside.is_file():
            raise UserError(f"{path} is no slmjax run, checkpoint or model (it has no config.json).")
        values = _read_json(inside)
        if "model" not in values:
            raise UserError(f"{inside} describes no slmjax model.")
        config = model_config_from(values["model"], str(inside))
        facts["kind"] = "run" if "training" in values else "saved model"
        steps = [int(p.name) for p in (inside.parent / "checkpoints").glob("*") if p.name.isdecimal()]
        if steps:
            facts["checkpoints"] = ", ".join(map(str, sorted(steps)))
    count = count_parameters(config)
    T = config.context_length
    facts |= {
        "parameters": count.total,
        "  embedding": count.embedding,
        "  attention": count.attention,
        "  feed-forward": count.feedforward,
        "  norms": count.norms,
        "  head": count.head,
        "layers": config.num_layers,
        "width": config.embed_dim,
        "heads": f"{config.num_heads} query, {config.num_kv_heads} key/value of {config.head_dim}",
        "feed-forward width": str(config.ffn_dim),
        "vocabulary": config.vocab_size,
        "context": T,
        "training GFLOPs a token": round(flops_per_token(config, T) / 1e9, 3),
        "KV cache MiB at context (bf16)": round(kv_cache_bytes(config, T) / 2**20, 2),
        "weights MiB (float32)": round(count.total * 4 / 2**20, 1),
        "training state MiB (AdamW, float32)": round(count.total * 16 / 2**20, 1),
    }
    if args.json:
        print(json.dumps({name.strip(): value for name, value in facts.items()}))
        return 0
    for name, value in facts.items():
        print(f"{name:<38}{value:>20,}" if isinstance(value, int | float) else f"{name:<38}{value!s:>20}")
    return 0
