"""`slmjax inspect`: describe what lies at a path, and what it costs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmjax.inference.language_model import Location
    from slmjax.models.config import ModelConfig
    from slmjax.peft.config import PeftConfig
    from slmjax.tokenization.tokenizer import Tokenizer

HELP = "describe a run, checkpoint, config, saved model or named model, and what it costs"
EXAMPLE = "slmjax inspect runs/quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "path",
        help="run directory, checkpoint, config file, model or adapter directory, .gguf file, hub id, or model name",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="rows of the key/value cache (default: %(default)s)")
    parser.add_argument(
        "--context", type=int, default=0, help="tokens per row of the key/value cache (default: the model's context)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print architecture, parameters and costs; of an adapter its method, base and sizes."""
    from slmjax.errors import UserError
    from slmjax.models.families.registry import model_config

    if args.batch_size < 1 or args.context < 0:
        raise UserError("--batch-size must be at least 1, and --context at least 0 (the model's own).")
    facts: dict[str, Any]
    if (Path(args.path).expanduser() / "adapter_config.json").is_file() and (adapter := _adapter(args.path)):
        return _print(adapter, args.json)
    if "/" in args.path or Path(args.path).expanduser().exists():
        config, facts = _described(args.path)
    else:
        config, facts = model_config(args.path), {"kind": "named model"}
    facts |= _architecture(config) | _costs(config, args.batch_size, args.context or config.context_length)
    return _print(facts, args.json)


def _print(facts: dict[str, Any], as_json: bool) -> int:
    from slmjax.cli.shared.table import print_table

    if as_json:
        print(json.dumps(facts))
    else:
        print_table({name.replace("_", " "): _human(name, value) for name, value in facts.items()})
    return 0


def _adapter(path: str) -> dict[str, Any] | None:
    """What an adapter's files say, without its base; None where a model lies there too."""
    from slmjax.formats.adapters.door import described, is_adapter

    directory = Path(path).expanduser()
    return described(directory) if is_adapter(directory) else None


def _described(path: str) -> tuple[ModelConfig, dict[str, Any]]:
    """A model's config and where it stands; no weight is read."""
    from slmjax.formats.huggingface.directory import is_huggingface
    from slmjax.formats.huggingface.hub import download, is_hub_id
    from slmjax.inference.language_model import locate

    place = download(path) if is_hub_id(path) else Path(path).expanduser()
    if place.is_file() and place.suffix == ".py":
        return _config(place)
    if place.is_file() and place.suffix.lower() == ".gguf":
        return _gguf(place)
    if is_huggingface(place):
        return _huggingface(place)
    location = locate(place)
    return location.config, _provenance(location)


def _config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The network that a config file trains."""
    from slmjax.cli.shared.config_files import load_config
    from slmjax.training.config import run_config

    config = run_config(load_config(str(path), []))
    facts = {"kind": "config", "total_steps": config.total_steps, "tokens_per_step": config.tokens_per_step}
    return config.model, facts | _trained(config.model, config.peft, None)


def _trained(model: ModelConfig, peft: PeftConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """How a run trains, and how many numbers of how many; nothing where it trains all of them."""
    from slmjax.inference.finetuned import count_trained

    if peft.method == "full" and not peft.base:
        return {}
    trained, total = count_trained(model, peft, None if tokenizer is None else tokenizer.encode)
    return {
        "base": peft.base or None,
        "method": peft.method,
        "trained_parameters": trained,
        "trained_and_frozen_parameters": total,
        "trained_share": f"{trained / total:.3%}",
    }


def _huggingface(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    from slmjax.errors import UserError
    from slmjax.formats.huggingface import tokenizer as huggingface_tokenizer
    from slmjax.formats.huggingface.directory import open_huggingface, stop_ids

    place = open_huggingface(directory)
    file = place.tensors.file
    facts: dict[str, Any] = {"kind": f"Hugging Face directory ({place.family.model_type})"}
    facts |= {"dtype": ", ".join(file.dtypes()), "files": len(file.paths), "file_bytes": file.num_bytes()}
    try:
        tokenizer = huggingface_tokenizer.read(directory)
        facts["tokenizer"] = f"{tokenizer.vocab_size:,} tokens ({tokenizer.fingerprint})"
        facts["stop_ids"] = list(stop_ids(place, tokenizer))
    except UserError:
        facts["tokenizer"] = "not found"
    return place.config, facts


def _gguf(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    from slmjax.formats.gguf.file import open_gguf
    from slmjax.formats.gguf.model import read_config
    from slmjax.formats.gguf.tokenizer import tokenizer_from

    file = open_gguf(path)
    tokenizer = tokenizer_from(file.metadata, str(path))
    facts: dict[str, Any] = {"kind": f"GGUF file ({file.metadata.get('general.architecture')})"}
    facts |= {"dtype": ", ".join(sorted({info.kind.name for info in file.tensors.values()}))}
    facts |= {"file_bytes": path.stat().st_size}
    facts["tokenizer"] = f"{tokenizer.vocab_size:,} tokens ({tokenizer.fingerprint})"
    return read_config(file), facts


def _provenance(place: Location) -> dict[str, Any]:
    """Where it stands and what it carries."""
    from slmjax.errors import UserError
    from slmjax.inference.language_model import tokenizer_directory
    from slmjax.inference.saved_model import saved_dtypes
    from slmjax.tokenization.tokenizer import load_tokenizer

    facts: dict[str, Any] = {"kind": place.kind}
    tokenizer: Tokenizer | None
    if place.kind == "saved model":
        facts["dtype"] = ", ".join(saved_dtypes(place.directory))
    else:
        steps = sorted(int(p.name) for p in (place.directory / "checkpoints").glob("*") if p.name.isdecimal())
        facts["step"] = place.step if place.step is not None else (steps[-1] if steps else None)
        facts["total_steps"] = place.description.total_steps
        facts["checkpoints"] = steps
        facts["dtype"] = "float32"
    try:
        tokenizer = load_tokenizer(tokenizer_directory(place))
        facts["tokenizer"] = f"{tokenizer.vocab_size:,} tokens ({tokenizer.fingerprint})"
    except UserError:
        tokenizer, facts["tokenizer"] = None, "not found"
    return facts | _trained(place.config, place.description.peft, tokenizer)


def _architecture(config: ModelConfig) -> dict[str, Any]:
    return {
        "layers": config.num_layers,
        "width": config.embed_dim,
        "heads": config.num_heads,
        "key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "feedforward_width": config.ffn_dim,
        "activation": f"{'gated ' if config.gated else ''}{config.activation}",
        "norm": f"{config.norm}, {config.norm_placement}",
        "position": config.position,
        "window": config.window,
        "vocabulary": config.vocab_size,
        "context": config.context_length,
        "tied_embeddings": config.tie_embeddings,
    }


def _costs(config: ModelConfig, batch_size: int, context: int) -> dict[str, Any]:
    from slmjax.models.counting import count_parameters, flops_per_token, kv_cache_bytes

    count = count_parameters(config)
    return {
        "parameters": count.total,
        "parameters_embedding": count.embedding,
        "parameters_attention": count.attention,
        "parameters_feedforward": count.feedforward,
        "parameters_norms": count.norms,
        "parameters_head": count.head,
        "training_flops_per_token": flops_per_token(config, context),
        "inference_flops_per_token": flops_per_token(config, context, training=False),
        "weights_bytes_float32": 4 * count.total,
        "weights_bytes_bfloat16": 2 * count.total,
        "training_bytes_adamw": 16 * count.total,  # float32 weights, gradients and two moments
        "cache_batch_size": batch_size,
        "cache_context": context,
        "cache_bytes_bfloat16": kv_cache_bytes(config, context, batch_size=batch_size),
    }


def _human(name: str, value: Any) -> Any:
    from slmjax.quantities import format_bytes

    if "_bytes" in name:
        return format_bytes(value)
    if "flops" in name:
        return f"{value / 1e9:,.4g} G"
    if isinstance(value, list | tuple):
        if len(value) <= 6:
            return ", ".join(map(str, value)) or "none"
        return f"{value[0]} ... {value[-1]} ({len(value)})"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
