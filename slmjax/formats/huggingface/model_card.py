"""The README.md of an exported model: what it is, and how it is loaded."""

from __future__ import annotations

import json

from slmjax.formats.facts import describe_network
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
    def shown(value: object) -> object:
        return f"{min(value)} to {max(value)}" if isinstance(value, tuple) else value

    facts = {name.replace("_", " "): shown(value) for name, value in describe_network(config).items()}
    parameters = f"{count_parameters(config).total:,}"
    return {"architecture": family.architecture, "parameters": parameters, **facts, "weights": dtype}
