"""`python -m bgs.convert`: Meta's own V-JEPA checkpoints into folders that `--checkpoint` takes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser

from bgs.cli import with_underscores


def build_parser() -> ArgumentParser:
    """Build the parser of `python -m bgs.convert`: every argument of `bgs.models.conversion.convert`."""
    from bgs.models.conversion import convert

    parser = ArgumentParser(
        prog="python -m bgs.convert",
        description=(convert.__doc__ or "").split("\n", 1)[0],
        exit_on_error=False,  # its own way out prints every option before what is wrong with one
    )
    parser.add_function_arguments(convert, as_group=False, as_positional=True, skip={"overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier conversion.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from bgs.models.conversion import convert

    parser = build_parser()
    words = [with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        options = parser.parse_args(words)
    except ArgumentError as error:
        print(f"bgs.convert: {' '.join(str(error).split())}; --help lists the options", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bgs").setLevel(logging.INFO)
    try:
        convert(**vars(parser.instantiate(options)))
    except (ValueError, OSError) as error:
        print(f"bgs.convert: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
