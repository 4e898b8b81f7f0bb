"""`python -m bgs.evaluate`: a finished run, a frozen backbone, or embeddings in a file, against people's judgments."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_args

import yaml

from bgs.config import FormatConfig
from bgs.models.pooling import Pooling

OF_BACKBONE = ("checkpoint", "frames", "size", "pooling")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m bgs.evaluate`."""
    parser = argparse.ArgumentParser(prog="python -m bgs.evaluate", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run")
    parser.add_argument("--backbone", help="without a run: the backbone to evaluate as it is")
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="without a run: embeddings computed anywhere, .npz, .parquet or .safetensors; see docs/evaluation.md",
    )
    parser.add_argument("--checkpoint", help="of --backbone: hub id or folder (default: the published one)")
    parser.add_argument("--frames", type=int, help="of --backbone: frames per clip (default: the checkpoint's)")
    parser.add_argument(
        "--size", type=_size, help="of --backbone: pixels per side, or '[height, width]' (default: the checkpoint's)"
    )
    parser.add_argument(
        "--pooling",
        choices=[name for name in get_args(Pooling) if name != "attentive"],
        help="of --backbone: how its tokens become one vector (default: its own way)",
    )
    parser.add_argument("--data", help="judgments: folder, CSV, .npy or .txt (default: those of the run)")
    parser.add_argument("--clips", help="folder of the video files (default: the run's, or clips/ in the data folder)")
    parser.add_argument(
        "--split", choices=("val", "test", "all"), help="which clips (default: test, and all with --embeddings)"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="NAME",
        help="others to compare with, on the same clips: files of embeddings, runs, 'captions' (by the default "
        "sentence encoder) or 'ratings'",
    )
    parser.add_argument(
        "--analyses",
        type=_words,
        default=[],
        metavar="A,B",
        help="of reliability, probes, variance (needs --against), layers; see docs/evaluation.md",
    )
    parser.add_argument(
        "--rsa",
        type=_words,
        default=["pearson", "spearman"],
        metavar="A,B",
        help="correlations, of pearson, spearman, cosine, tau-a (default: pearson,spearman)",
    )
    parser.add_argument(
        "--output", type=Path, help="JSON file for what was found; figures of comparisons and analyses go beside it"
    )
    parser.add_argument(
        "--rdms",
        type=Path,
        metavar="FILE",
        help="write the dissimilarities of people and of all models as rsatoolbox does, .h5 or .hdf5",
    )
    parser.add_argument("--cache", help="folder for decoded clips (default: $BGS_CACHE or ~/.cache/bgs)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws (default: 1000)")
    parser.add_argument("--permutations", type=int, default=1000, help="of the probes (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws and of splits that the data lacks")
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
    if sum(given is not None for given in (options.run, options.backbone, options.embeddings)) != 1:
        parser.error("give one of a run's folder, --backbone and --embeddings")
    if options.run is None and options.data is None:
        parser.error("--backbone and --embeddings need --data")
    for name in OF_BACKBONE:
        if options.backbone is None and getattr(options, name) is not None:
            parser.error(f"--{name} is of --backbone")
    for name, least in {"resamples": 1, "permutations": 0}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name}: {getattr(options, name)}; expected at least {least}")
    if options.output is not None and options.output.is_dir():
        parser.error(f"--output: {options.output} is a folder; expected a JSON file")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    from rich.console import Console

    from bgs.evaluation.analyses import analyse
    from bgs.evaluation.analysis_tables import tables
    from bgs.evaluation.rdm_files import import_h5py, write_rdms
    from bgs.evaluation.report import TABLE_WIDTH, table, write_json
    from bgs.evaluation.saved import Split, data_task, run_task
    from bgs.evaluation.sources import BackboneSource, FileSource, RunSource, Source, find_source

    format = FormatConfig(**{item.name: getattr(options, item.name) for item in fields(FormatConfig)})
    split: Split = options.split or ("all" if options.embeddings else "test")
    try:
        if options.rdms is not None:
            import_h5py(options.rdms)
            if not options.rdms.parent.is_dir():
                raise FileNotFoundError(f"rdms: no folder {options.rdms.parent} for {options.rdms.name}")
        source: Source
        if options.run is not None:
            source = RunSource(options.run)
            task = run_task(source, options.data, split, options.clips, options.cache, format)
        else:
            if options.embeddings is not None:
                source = FileSource(options.embeddings)
            else:
                chosen = {name: getattr(options, name) for name in OF_BACKBONE if getattr(options, name) is not None}
                source = BackboneSource(options.backbone, **chosen, seed=options.seed)
            task = data_task(options.data, split, options.clips, options.cache, format, options.seed)
        if options.rdms is not None and len(task.sets) > 1:
            raise ValueError(f"rdms: the models of {len(task.sets)} folds have no common dissimilarities")
        found = analyse(
            source,
            task,
            against=[find_source(name, options.seed) for name in options.against],
            analyses=options.analyses,
            methods=options.rsa,
            resamples=options.resamples,
            permutations=options.permutations,
            seed=options.seed,
            progress=True,
        )
        if options.rdms is not None:
            write_rdms(options.rdms, found.rdms())
        if options.output is not None:
            write_json(options.output, found.to_dict())
            if options.against or options.analyses:
                from bgs.evaluation.analysis_plots import plot_findings

                plot_findings(found, options.output)
    except (ValueError, OSError, ImportError) as error:
        print(f"bgs.evaluate: {error}", file=sys.stderr)
        return 2
    console = Console(width=TABLE_WIDTH)
    console.print(table(found.evaluations, f"{split} clips"))
    for made in tables(found):
        console.print(made)
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _size(text: str) -> int | list[int]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    sides = found if isinstance(found, list) else [found]
    if len(sides) not in (1, 2) or not all(type(side) is int and side > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}; expected pixels such as 256 or '[256, 384]'")
    return found if isinstance(found, list) else sides[0]


if __name__ == "__main__":
    sys.exit(main())
