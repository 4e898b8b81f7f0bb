"""`python -m bgs.socialfusion.analyse`: what is decodable where, whether tasks conflict, and whether they help."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = "bgs.socialfusion.analyse"
ANALYSES = ("decodability", "conflict")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("run", type=Path, help="folder of a finished run, for transfer the jointly trained one")
    parser.add_argument("--data", type=Path, help="manifest of examples (default: none, transfer alone)")
    parser.add_argument(
        "--analyses", nargs="*", choices=ANALYSES, default=list(ANALYSES), help="of the examples (default: all)"
    )
    parser.add_argument(
        "--single", nargs="+", type=Path, default=[], metavar="RUN", help="single-task runs to compare with"
    )
    parser.add_argument("--batch", type=int, default=8, help="examples at a time")
    parser.add_argument("--folds", type=int, default=5, help="of the probes' cross-validation")
    parser.add_argument("--seed", type=int, default=0, help="of folds and bootstrap draws")
    parser.add_argument("--output", type=Path, help="JSON file (default: analyses.json in the run's folder)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # peft asks transformers for this under its old name; nothing that a user of ours could change.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    from rich.console import Console

    from bgs.evaluation.report import TABLE_WIDTH
    from bgs.socialfusion.tables import conflict_table, decodability_table, transfer_table

    try:
        output = options.output or options.run / "analyses.json"
        found = analyse(options, output)
    except (ValueError, OSError, ImportError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    console = Console(width=TABLE_WIDTH)
    tables: dict[str, Any] = {
        "decodability": decodability_table,
        "conflict": conflict_table,
        "transfer": transfer_table,
    }
    for name, result in found.items():
        console.print(tables[name](result))
    console.print(f"{output}: values and intervals; figures beside it")
    return 0


def analyse(options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Make the analyses that were asked for and write them with their figures.

    Args:
        options: what `build_parser` gave.
        output: JSON file.

    Returns:
        Findings by name of the analysis.

    Raises:
        ValueError: nothing was asked for, or the examples do not allow it.
    """
    import torch

    from bgs.evaluation.plots import save_figure
    from bgs.evaluation.report import write_json
    from bgs.socialfusion.data import read_manifest
    from bgs.socialfusion.decodability import decodability
    from bgs.socialfusion.gradients import gradient_conflict
    from bgs.socialfusion.model import SocialFusion
    from bgs.socialfusion.plots import conflict_figure, decodability_figure, transfer_figure
    from bgs.socialfusion.transfer import read_predictions, transfer

    if options.data is None and not options.single:
        raise ValueError("nothing to do: expected --data MANIFEST, --single RUN ..., or both")
    found: dict[str, Any] = {}
    content: dict[str, Any] = {}
    figures = {}
    if options.data is not None:
        examples = read_manifest(options.data)
        model = SocialFusion.load(options.run / "model").to("cuda" if torch.cuda.is_available() else "cpu")
        if "decodability" in options.analyses:
            decoded = decodability(
                model, examples, batch=options.batch, folds=options.folds, seed=options.seed, progress=True
            )
            if decoded:
                found["decodability"] = decoded
                content["decodability"] = [item.to_dict() for item in decoded]
                figures["decodability"] = decodability_figure(decoded)
        if "conflict" in options.analyses:
            conflict = gradient_conflict(model, examples, batch=options.batch, progress=True)
            found["conflict"], content["conflict"] = conflict, conflict.to_dict()
            figures["conflict"] = conflict_figure(conflict)
    if options.single:
        joint = read_predictions(options.run)
        gained = transfer(joint, [read_predictions(run) for run in options.single], seed=options.seed)
        found["transfer"], content["transfer"] = gained, [item.to_dict() for item in gained]
        figures["transfer"] = transfer_figure(gained)
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save_figure(figure, output.with_name(f"{output.stem}-{name}.png"))
    write_json(output, {"format": 1, **content})
    return found


if __name__ == "__main__":
    sys.exit(main())
