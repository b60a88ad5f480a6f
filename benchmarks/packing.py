"""Packing ragged conversations: the share of positions that hold a token, and the losses against unpacked examples.

Conversations of one to four turns are made of the questions and answers of MedQuAD on one subject, rendered with the
model's own chat template. Every packed row that is computed is compared with its conversations one by one, each padded
in a row of its own. Example:
    python benchmarks/packing.py --records ../shared/data/domain/medquad.jsonl.gz \
        --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import gzip
import itertools
import json
import random
import tempfile
from pathlib import Path

import jax
import numpy as np

import slmjax
from slmjax.data.conversations.examples import load_examples
from slmjax.data.packing import PackedRows, empty_row, stack_rows
from slmjax.data.sft_config import SftConfig
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import next_token


def write_conversations(records: Path, output: Path, count: int) -> None:
    """`count` conversations, drawn with a fixed seed, as records of messages."""
    with gzip.open(records, "rt", encoding="utf-8") as file:
        answered = [record for record in map(json.loads, file) if record.get("answer")]
    subjects = [list(group) for _, group in itertools.groupby(answered, key=lambda record: record["focus"])]
    rng = random.Random(0)
    with output.open("w", encoding="utf-8") as file:
        for subject in rng.sample(subjects, count):
            turns = subject[: rng.randint(1, 4)]
            messages = [
                message
                for turn in turns
                for message in (
                    {"role": "user", "content": turn["question"]},
                    {"role": "assistant", "content": turn["answer"]},
                )
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def alone(row: dict) -> list[dict]:
    """The conversations of a packed row, each at the beginning of a row of its own."""
    rows = []
    for segment in range(1, row["segments"].max() + 1):
        inside = np.flatnonzero(row["segments"] == segment)
        own = empty_row(len(row["segments"]))
        for name in own:
            own[name][: len(inside)] = 1 if name == "segments" else row[name][inside]
        rows.append(own)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--compared-rows", type=int, default=16, help="packed rows whose losses are compared")
    args = parser.parse_args()
    lm = slmjax.load(args.model, dtype="float32")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "conversations.jsonl"
        write_conversations(args.records, path, args.conversations)
        config = SftConfig(
            sources={"medquad": {"path": str(path)}},
            sequence_length=args.sequence_length,
            on_long="truncate",
            validation_fraction=0.0,
        )
        examples = load_examples(config, lm.tokenizer)
    store = next(iter(examples.train.stores.values()))
    rows = PackedRows(store, args.sequence_length, "best_fit")
    positions = rows.num_transitions / (len(rows) * args.sequence_length)
    lengths = store.lengths - 1

    step = jax.jit(next_token(Transformer(lm.config, Execution())))
    largest, compared, nll_packed, nll_alone = 0.0, 0, 0.0, 0.0
    for index in np.linspace(0, len(rows) - 1, args.compared_rows).astype(int):
        row = rows[int(index)]
        loss = step({"params": lm.params}, {}, stack_rows([row]), None)
        packed = float(loss.metrics["loss"].sum)
        apart = sum(
            float(step({"params": lm.params}, {}, stack_rows([own]), None).metrics["loss"].sum) for own in alone(row)
        )
        largest = max(largest, abs(packed - apart) / float(loss.weight))
        compared += int(row["segments"].max())
        nll_packed, nll_alone = nll_packed + packed, nll_alone + apart
    print(
        json.dumps(
            {
                "conversations": len(lengths),
                "tokens": {"fewest": int(lengths.min()), "median": int(np.median(lengths)), "most": int(lengths.max())},
                "rows": len(rows),
                "positions_used": round(positions, 4),
                "positions_used_unpacked": round(float(lengths.sum() / (len(lengths) * args.sequence_length)), 4),
                "compared": {"rows": args.compared_rows, "conversations": compared},
                "largest_difference_of_a_row_in_nats_a_token": largest,
                "relative_difference_of_all": abs(nll_packed / nll_alone - 1),
            }
        )
    )


if __name__ == "__main__":
    main()
