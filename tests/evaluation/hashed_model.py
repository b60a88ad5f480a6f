"""A model of lm-evaluation-harness that is a function of its texts: as fast as a hash, and never twice the same."""

import hashlib
from collections import Counter
from typing import Any

from lm_eval.api.model import LM


class HashedModel(LM):
    """Log-likelihoods and words that look random and follow from the text alone. `asked` counts requests by method."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.prompts: list[str] = []

    tokenizer_name = "hashed"

    def get_model_info(self) -> dict[str, str]:
        return {"model_fingerprint": "hashed"}

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [
            self._told("loglikelihood", r, (-10 * self._share(r.args), self._share(r.args) < 0.3)) for r in requests
        ]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        return [self._told("loglikelihood_rolling", r, -100 * self._share(r.args)) for r in requests]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return [self._told("generate_until", r, f"so #### {int(100 * self._share(r.args))}") for r in requests]

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "roles"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in chat_history) + "<assistant>" * add_generation_prompt

    def _told(self, method: str, request: Any, answer: Any) -> Any:
        self.asked[method] += 1
        self.prompts.append(request.args[0])
        self.cache_hook.add_partial(method, request.args, answer)
        return answer

    @staticmethod
    def _share(arguments: Any) -> float:
        """A number from 0 to 1."""
        return int(hashlib.sha256(repr(arguments).encode()).hexdigest()[:8], 16) / 16**8
