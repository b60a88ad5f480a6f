"""`slmjax tokenizer train|inspect`."""

from __future__ import annotations

import argparse

HELP = "train a byte-level BPE tokenizer, or look at one"
EXAMPLE = "slmjax tokenizer train --source books.jsonl.gz --vocab-size 8192 --output my-tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="train|inspect")
    train = actions.add_parser("train", help="train one on text", epilog=f"Example: {EXAMPLE}")
    train.add_argument("--source", required=True, action="append")
    train.add_argument("--vocab-size", type=int, required=True)
    train.add_argument("--output", required=True)
    inspect = actions.add_parser(
        "inspect", help="describe one", epilog="Example: slmjax tokenizer inspect my-tokenizer"
    )
    inspect.add_argument("path")
    inspect.add_argument("--text", help="show how this is cut")


def run(args: argparse.Namespace) -> int:
    """Train or describe."""
    from slmjax.tokenization.tokenizer import load_tokenizer, train_bpe

    if args.action == "train":
        from slmjax.data.config import SourceConfig
        from slmjax.data.sources import read_documents

        texts = (text for path in args.source for text in read_documents(SourceConfig(path)))
        tokenizer = train_bpe(texts, args.vocab_size)
        tokenizer.save(args.output)
        print(f"{args.output}: {tokenizer.vocab_size} tokens")
        return 0
    tokenizer = load_tokenizer(args.path)
    print(f"tokens        {tokenizer.vocab_size:>10,}")
    for name in ("bos_id", "eos_id", "pad_id"):
        print(f"{name:<14}{getattr(tokenizer, name)!s:>10}")
    print(f"fingerprint   {tokenizer.fingerprint[:16]}")
    if args.text is not None:
        ids = tokenizer.encode(args.text)
        print(f"{len(ids)} tokens: " + " ".join(f"{i}:{tokenizer.decode([i])!r}" for i in ids))
    return 0
