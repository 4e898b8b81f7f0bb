"""`python -m bgs.socialfusion.train`: train SocialFusion on any of its five tasks and evaluate it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser

from bgs.cli import config_first, with_underscores
from bgs.socialfusion.config import TrainConfig

PROGRAM = "bgs.socialfusion.train"


def parse(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Read the command line: `--config FILE`, overridden by options that bear the names of `TrainConfig`'s fields.

    Raises:
        ValueError: an option is unknown or its value is refused.
    """
    parser = ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description=(TrainConfig.__doc__ or "").split("\n", 1)[0],
        exit_on_error=False,  # its own way out prints every option before what is wrong with one
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; the command line overrides it.")
    parser.add_class_arguments(TrainConfig, nested_key=None, sub_configs=False)
    words = config_first([with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    try:
        found = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ValueError(f"{' '.join(str(error).split())}; --help lists the options") from error
    return TrainConfig(**{name: value for name, value in vars(found).items() if name != "config"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        config = parse(arguments)
    except ValueError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bgs").setLevel(logging.INFO)
    # peft asks transformers for this under its old name; nothing that a user of ours could change.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    from rich.console import Console

    from bgs.evaluation.report import TABLE_WIDTH
    from bgs.socialfusion.run import Run
    from bgs.socialfusion.tables import measures_table

    try:
        result = Run(config).execute()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on from {config.run_folder}", file=sys.stderr)
        return 130
    console = Console(width=TABLE_WIDTH)
    if result.measures:
        console.print(measures_table(result.measures))
    console.print(f"{result.folder}: model, metrics and settings; {result.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
