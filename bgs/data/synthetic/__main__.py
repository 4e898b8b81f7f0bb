"""`python -m bgs.data.synthetic --output DIR --clips 250 --seed 0` makes a synthetic data set."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path

from bgs.data.synthetic.contact_sheet import contact_sheet
from bgs.data.synthetic.dataset import make_dataset
from bgs.data.synthetic.render import STYLES

HELP = {
    "clips": "number of clips; a fifth of them are test clips",
    "seed": "the same seed and settings give the same data set",
    "style": "figures are articulated, on textured scenes; shapes are abstract, on plain ones",
    "size": "width and height of a clip in pixels",
    "fps": "frames per second",
    "duration": "length of a clip in seconds",
    "participants": "number of simulated participants",
    "judgments": "judgments of triplets of train clips",
    "test_judgments": "judgments of triplets of test clips",
    "mixed_judgments": "judgments of triplets that have clips of both",
    "catch_trials": "trials added that show a clip twice, as a share of the judgments",
    "temperature": "of the participants' choices; higher lowers the ceiling",
    "participant_variation": "standard deviation of the participants' log-weights; 0 makes them all alike",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the data set.

    Args:
        arguments: Command line, by default the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bgs.data.synthetic",
        description="Make rendered social animations with simulated odd-one-out judgments, in the published layout.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parameters = inspect.signature(make_dataset).parameters
    for name, text in HELP.items():
        default = parameters[name].default
        choices = tuple(STYLES) if name == "style" else None
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            choices=choices,
            help=f"{text} (default: {default})",
        )
    parser.add_argument("--workers", type=int, help="processes that render; one per core unless given")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help="picture to write of clips of each interaction"
    )
    given = vars(parser.parse_args(arguments))
    picture = given.pop("contact_sheet")
    try:
        folder = make_dataset(**given)
    except ValueError as error:
        parser.error(str(error))
    if picture is not None:
        contact_sheet(folder, picture)


if __name__ == "__main__":
    main()
