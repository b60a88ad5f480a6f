"""`slmjax tokenizer train|inspect`: train a byte-level BPE tokenizer, or describe one."""

from __future__ import annotations

import argparse

from slmjax.cli.shared.option_types import whole_number
from slmjax.cli.shared.text_sources import add_format_arguments, texts_of
from slmjax.quantities import json_text

HELP = "train a byte-level BPE tokenizer, or look at one"
EXAMPLE = "slmjax tokenizer train --source books.jsonl.gz --vocab-size 8192 --output my-tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="train|inspect")
    train = actions.add_parser(
        "train", help="train a tokenizer on text", epilog=f"Example: {EXAMPLE}", allow_abbrev=False
    )
    train.add_argument("--source", required=True, action="append", help="text; may be given several times")
    train.add_argument(
        "--vocab-size", type=whole_number(257, 1 << 24), required=True, help="number of tokens, at least 257"
    )
    add_format_arguments(train)
    train.add_argument("--output", required=True, help="new or empty directory to write")
    inspect = actions.add_parser(
        "inspect",
        help="describe a tokenizer",
        epilog="Example: slmjax tokenizer inspect my-tokenizer --text 'Once upon a time'",
        allow_abbrev=False,
    )
    inspect.add_argument("path", help="tokenizer.json, SentencePiece .model, or a directory that holds one")
    inspect.add_argument("--text", help="text to show the tokens of")
    inspect.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Train or describe."""
    return _inspect(args) if args.action == "inspect" else _train(args)


def _train(args: argparse.Namespace) -> int:
    from slmjax.errors import UserError
    from slmjax.files import local_path, place_directory
    from slmjax.tokenization.tokenizer import train_bpe

    output = local_path(args.output, "--output").resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists already: give a new or empty directory.")
    tokenizer = train_bpe(texts_of(args.source, args), args.vocab_size)
    with place_directory(output) as partial:
        tokenizer.save(partial)
    print(f"{output}: {tokenizer.vocab_size:,} tokens")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from slmjax.cli.shared.table import print_table
    from slmjax.tokenization.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.path)
    facts: dict[str, object] = {"tokens": tokenizer.vocab_size}
    for role in ("bos", "eos", "pad"):
        id = getattr(tokenizer, f"{role}_id")
        facts[role] = None if id is None else f"{id} {tokenizer.id_to_token(id)}"
    facts["fingerprint"] = tokenizer.fingerprint
    ids = [] if args.text is None else tokenizer.encode(args.text)
    if args.json:
        print(json_text(facts | ({} if args.text is None else {"ids": ids}), ensure_ascii=False))
        return 0
    print_table(facts)
    if args.text is not None:
        num_bytes = len(args.text.encode())
        print(f"\n{len(ids)} tokens for {num_bytes} bytes:")
        for id in ids:
            print(f"  {id:>8}  {tokenizer.decode([id])!r}")
    return 0
