"""`python -m bgs.train`: fine-tune a backbone on odd-one-out judgments and evaluate it on held-out clips."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from bgs.cli import parse_training
    from bgs.processes import OtherProcessError, join, program

    name = program("bgs.train")
    try:
        config = parse_training(arguments)
        processes = join()
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bgs").setLevel(logging.INFO if processes.first else logging.ERROR)
    # peft asks transformers for this under its old name; nothing that a user of ours could change.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    from rich.console import Console

    from bgs.evaluation.report import TABLE_WIDTH, table
    from bgs.training.run import Run

    try:
        with processes:
            result = Run(config, processes=processes).execute()
    except (ValueError, OSError, ImportError, FloatingPointError, OtherProcessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command takes it up again from {config.run_folder}", file=sys.stderr)
        return 130
    if result is None:  # the first process tells
        return 0
    console = Console(width=TABLE_WIDTH)
    columns = {"before training": result.frozen, "fine-tuned": result.trained}
    console.print(table(columns, f"{config.backbone}, {config.mode}", compare=("fine-tuned", "before training")))
    console.print(f"{result.folder}: model, metrics and settings; {result.seconds:.0f} s")
    if result.interrupted:
        print("bgs.train: interrupted: this is the best epoch so far", file=sys.stderr)
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
