"""The data road alone: tokens/s of batches from a prepared corpus, and seconds to resume in the middle.

Example: python benchmarks/data_road.py --text ../shared/data/text/classic_books.jsonl.gz --workdir /tmp/road
"""

import argparse
import json
import time
from pathlib import Path

from slmjax.data.config import DataConfig, RowLayout
from slmjax.data.mixture import Mixture
from slmjax.data.pipeline import training_batches
from slmjax.data.prepare import open_stores, prepare, tokenizer_for


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=400)
    args = parser.parse_args()
    config = DataConfig(sources={"text": {"path": args.text}}, tokenizer="train:8192")
    start = time.perf_counter()
    prepare(config, tokenizer_for(config, args.workdir / "tokenizer"), args.workdir / "corpus")
    prepared = time.perf_counter() - start

    def batches():
        mixture = Mixture(open_stores(args.workdir / "corpus", "train"))
        return training_batches(mixture, RowLayout(1024), batch_size=32, seed=0)

    iterator = batches()
    next(iterator)
    start = time.perf_counter()
    for _ in range(args.batches):
        next(iterator)
    rate = args.batches * 32 * 1024 / (time.perf_counter() - start)
    state = iterator.get_state()
    start = time.perf_counter()
    resumed = batches()
    resumed.set_state(state)
    next(resumed)
    resume = time.perf_counter() - start
    result = {
        "tokens_per_second": round(rate),
        "resume_seconds": round(resume, 3),
        "prepare_seconds": round(prepared, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
