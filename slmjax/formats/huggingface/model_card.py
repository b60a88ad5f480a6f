"""The README.md of an exported model: what it is, and how it is loaded."""

from __future__ import annotations

import json

from slmjax.formats.huggingface.family import HuggingFaceFamily
from slmjax.models.config import ModelConfig
from slmjax.models.counting import count_parameters


def model_card(
    config: ModelConfig,
    family: HuggingFaceFamily,
    dtype: str,
    *,
    name: str,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Markdown with the front matter of Hugging Face's hub; license and base_model only where they are known."""
    front = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= {"license": license} if license else {}
    front |= {"base_model": base_model} if base_model else {}
    header = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items())
    tags = "".join(f"- {tag}\n" for tag in ("slmjax", "jax", family.model_type))
    rows = "".join(f"| {key} | {value} |\n" for key, value in _architecture(config, family, dtype).items())
    return f"""---
{header}tags:
{tags}---

# {name}

A causal language model of {count_parameters(config).total:,} parameters, written by slmjax.

| | |
|---|---|
{rows}
## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
```

```python
import slmjax

lm = slmjax.load("{name}")
```
"""


def _architecture(config: ModelConfig, family: HuggingFaceFamily, dtype: str) -> dict[str, object]:
    def shown(value: int | tuple[int, ...]) -> str:
        return f"{min(value)} to {max(value)}" if isinstance(value, tuple) else str(value)

    return {
        "architecture": family.architecture,
        "parameters": f"{count_parameters(config).total:,}",
        "layers": config.num_layers,
        "width": config.embed_dim,
        "query heads": shown(config.num_heads),
        "key/value heads": shown(config.num_kv_heads),
        "head dimension": config.head_dim,
        "feed-forward width": shown(config.ffn_dim),
        "vocabulary": config.vocab_size,
        "context": config.context_length,
        "weights": dtype,
    }
