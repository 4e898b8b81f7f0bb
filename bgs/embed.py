"""`python -m bgs.embed`: embeddings of any video files, by a fine-tuned or a published model, in one table."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from bgs.config import Precision


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m bgs.embed`."""
    parser = argparse.ArgumentParser(prog="python -m bgs.embed", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="VIDEO",
        help="files, folders (searched to the bottom), quoted patterns such as 'videos/**/*.mp4', or @list.txt with a "
        "file on each line",
    )
    parser.add_argument("--model", required=True, help="a run's folder, an embedder's, a model's, or a hub id")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="table to write: .parquet, .npz or .safetensors; see docs/embedding.md",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the table if it is there already")
    parser.add_argument("--frames", type=int, help="frames per clip, of a model without a run (default: the model's)")
    parser.add_argument(
        "--layers",
        help="instead of embeddings, the mean over the tokens of each of these layers: all, or numbers such as 0,6,12 "
        "(0 is what enters the first layer)",
    )
    parser.add_argument(
        "--tokens", type=int, help="tokens in a batch, at least one clip (default: as suits the device)"
    )
    parser.add_argument(
        "--device", help="where the model runs, cpu or cuda:1 for example (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="what the model computes in; auto is bf16 on a GPU that has it and fp32 elsewhere (default: auto)",
    )
    parser.add_argument(
        "--accelerate",
        action=argparse.BooleanOptionalAction,
        help="whether fused kernels run what they can of the model (default: on a GPU)",
    )
    parser.add_argument("--workers", type=int, help="files decoded at a time (default: the number of cores)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 if files could not be used, 2 for other errors."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from bgs.processes import OtherProcessError, join, program

    name = program("bgs.embed")
    try:
        processes = join()
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    logging.getLogger("bgs").setLevel(logging.INFO if processes.first else logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    from bgs.data.clips import BrokenClipsError
    from bgs.embedding.run import choose_device, embed_files
    from bgs.embedding.sources import find_videos
    from bgs.embedding.tables import check_output
    from bgs.models.fused import run_fused
    from bgs.models.loading import load_embedder

    try:
        with processes:
            check_output(options.output, options.overwrite)
            files = find_videos(options.inputs)
            device = choose_device(options.device, processes)
            with processes.in_turns():  # a checkpoint is downloaded once
                embedder = load_embedder(options.model, device=device, frames=options.frames)
            run_fused(embedder.backbone, options.accelerate)
            outcome = embed_files(
                embedder,
                files,
                options.output,
                name=options.model,
                precision=options.precision,
                layers=options.layers,
                tokens=options.tokens,
                workers=options.workers,
                processes=processes,
            )
    except (ValueError, OSError, ImportError, MemoryError, OtherProcessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on from the batches that are finished", file=sys.stderr)
        return 130
    if outcome is None:  # the first process tells
        return 0
    if outcome.errors:
        print(f"bgs.embed: {BrokenClipsError(outcome.errors, len(files))}", file=sys.stderr)
    return 1 if outcome.errors else 0


if __name__ == "__main__":
    sys.exit(main())
