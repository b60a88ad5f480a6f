"""Run llama.cpp in a process of its own, for it ends the process where it dislikes a file.

python llama_cpp_side.py logits MODEL TOKENS OUTPUT.npy | tokenize MODEL TEXTS | quantize FROM TO TYPE; lists are JSON.
"""

import json
import sys

import llama_cpp
import numpy as np


def logits(path: str, tokens: list[int]) -> np.ndarray:
    """Of every position, float32 [T, V], with a cache in float32."""
    float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    model = llama_cpp.Llama(path, n_ctx=64, n_batch=64, logits_all=True, n_threads=1, verbose=False, **float32)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def quantize(source: str, target: str, kind: str) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = 1
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        raise SystemExit(f"llama.cpp could not quantize {source}.")


def tokenize(path: str, texts: list[str]) -> list[list[int]]:
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "logits":
        np.save(rest[2], logits(rest[0], json.loads(rest[1])))
    elif what == "tokenize":
        print(json.dumps(tokenize(rest[0], json.loads(rest[1]))))
    else:
        quantize(*rest)
