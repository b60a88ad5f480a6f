"""The quickstart's model: 3.8M-parameter Llama shape on the text of the running Python installation.

Expected (2 CPU cores): see benchmarks/RESULTS.md, "quickstart".
Run: slmjax quickstart, or slmjax train --config configs/quickstart.py --workdir runs/quickstart
"""

from slmjax.training.quickstart_config import get_config

__all__ = ["get_config"]
