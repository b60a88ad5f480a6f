"""The quickstart's model: 4.0M-parameter Llama shape on the text of the running Python installation.

Expected on 2 CPU cores: 1.86 bits per byte of held-out text, two to four minutes in all (benchmarks/RESULTS.md).
Run: slmjax quickstart, or slmjax train --config configs/quickstart.py --workdir runs/quickstart
"""

from slmjax.recipes.quickstart_config import get_config

__all__ = ["get_config"]
