"""`python -m slmjax.lm_eval --model slmjax --model_args path=PATH ...`: lm-evaluation-harness's command line.

lm-eval 0.4 finds models of other packages by no other way; its next release does (`lm_eval --model slmjax`).
"""

from importlib import import_module

if __name__ == "__main__":
    raise SystemExit(import_module("slmjax.cli.lm_eval").command())
