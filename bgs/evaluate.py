"""`python -m bgs.evaluate`: a finished run, or a frozen backbone, against people's judgments."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from bgs.config import FormatConfig


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m bgs.evaluate`."""
    parser = argparse.ArgumentParser(prog="python -m bgs.evaluate", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run")
    parser.add_argument("--backbone", help="without a run: the backbone to evaluate as it is")
    parser.add_argument("--checkpoint", help="of --backbone: hub id or folder (default: the published one)")
    parser.add_argument("--frames", type=int, help="of --backbone: frames per clip (default: the checkpoint's)")
    parser.add_argument("--data", help="judgments: folder, CSV, .npy or .txt (default: those of the run)")
    parser.add_argument("--clips", help="folder of the video files (default: the run's, or clips/ in the data folder)")
    parser.add_argument("--split", choices=("val", "test", "all"), default="test", help="which clips (default: test)")
    parser.add_argument("--output", type=Path, help="JSON file for the measures")
    parser.add_argument("--cache", help="folder for decoded clips (default: $BGS_CACHE or ~/.cache/bgs)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of splits that the data lacks")
    parser.add_argument("--items", nargs=3, metavar="COLUMN", help="the three item columns of a table of judgments")
    parser.add_argument("--choice", metavar="COLUMN", help="the column that holds the odd one")
    parser.add_argument("--participant", metavar="COLUMN", help="the participant column")
    parser.add_argument("--choice-is", choices=("item", "position"), help="what the choice column holds")
    parser.add_argument("--one-indexed", action=argparse.BooleanOptionalAction, help="whether numbering starts at 1")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.backbone is None):
        parser.error("give either a run's folder or --backbone")
    if options.run is None and options.data is None:
        parser.error("--backbone needs --data")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    from rich.console import Console

    from bgs.evaluation.report import TABLE_WIDTH, table, write_json
    from bgs.evaluation.saved import evaluate_frozen, evaluate_run

    format = FormatConfig(**{item.name: getattr(options, item.name) for item in fields(FormatConfig)})
    shared = {name: getattr(options, name) for name in ("split", "clips", "cache", "resamples", "seed")}
    try:
        if options.run is not None:
            found = evaluate_run(options.run, options.data, format=format, **shared)
        else:
            found = evaluate_frozen(
                options.backbone, options.checkpoint, options.data, frames=options.frames, format=format, **shared
            )
        if options.output is not None:
            write_json(options.output, found.to_dict())
    except (ValueError, OSError, ImportError) as error:
        print(f"bgs.evaluate: {error}", file=sys.stderr)
        return 2
    heading = str(options.run or options.backbone)
    Console(width=TABLE_WIDTH).print(table({heading: found}, f"{options.split} clips"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
