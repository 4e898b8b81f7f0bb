"""The command line of a configuration dataclass: presets, YAML files and dotted options, by jsonargparse."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from bgs.config import PRESETS, TrainConfig

HELP = frozenset({"-h", "--help"})
GROUPS = tuple(item.name for item in fields(TrainConfig) if is_dataclass(getattr(TrainConfig(), item.name)))


def training_parser() -> ArgumentParser:
    """Build the parser of `python -m bgs.train`: every field of `TrainConfig` by its dotted name."""
    parser = ArgumentParser(
        prog="python -m bgs.train",
        description=f"{(TrainConfig.__doc__ or '').split(chr(10), 1)[0]} The defaults shown are those that the other "
        "options given lead to.",
        exit_on_error=False,  # its own way out prints every option before what is wrong with one
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; the command line overrides it.")
    parser.add_class_arguments(TrainConfig, nested_key=None, sub_configs=False)
    return parser


def parse_training(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Read the command line of `python -m bgs.train` into a configuration.

    Args:
        arguments: words of the command line; None for this process's own.

    Returns:
        The configuration: the preset of the backbone, then `--config`, then the other options.

    Raises:
        ValueError: an option is unknown or its value is refused.
    """
    words = config_first([with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    parser = training_parser()
    try:
        asked = parser.parse_args([word for word in words if word not in HELP])
        preset = PRESETS / f"{preset_for(asked)}.yaml"
        if HELP & set(words):
            parser.set_defaults(_dotted(yaml.safe_load(preset.read_text(encoding="utf-8"))))
        found = parser.parse_args(["--config", str(preset), *words])
    except ArgumentError as error:
        raise ValueError(f"{' '.join(str(error).split())}; --help lists the options") from error
    instantiated = parser.instantiate(found)
    return TrainConfig(**{name: value for name, value in vars(instantiated).items() if name != "config"})


def _dotted(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every setting of groups by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        is_group = isinstance(value, dict) and name in GROUPS
        found |= _dotted(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return found


def preset_for(asked: Namespace) -> str:
    """Name the preset for what was asked: `text`, `demo` for no data or the tiny checkpoint, else `video`."""
    if asked.backbone == "text":
        return "text"
    return "demo" if asked.checkpoint == "tiny" or (asked.data is None and asked.checkpoint is None) else "video"


def config_first(words: list[str]) -> list[str]:
    """Move `--config FILE` before all else: the command line overrides the file wherever that is named."""
    files: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            files += [word, *[value for value in [next(remaining, None)] if value is not None]]
        elif word.startswith("--config="):
            files.append(word)
        else:
            rest.append(word)
    return files + rest


def with_underscores(word: str) -> str:
    """Accept `--batch-clips` for `--batch_clips`, as people type."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def to_yaml(config: TrainConfig) -> str:
    """Write a configuration as the YAML that `--config` reads."""
    return str(yaml.safe_dump(_plain(config), sort_keys=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else value
