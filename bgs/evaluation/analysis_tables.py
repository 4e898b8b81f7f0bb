"""Analyses for people to read in the terminal: one table each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bgs.evaluation.analyses import Findings
from bgs.evaluation.compare import Comparison
from bgs.evaluation.layers import LayerwiseRSA
from bgs.evaluation.probes import ProbeDifference, Probes
from bgs.evaluation.reliability import Reliability
from bgs.evaluation.report import LABELS
from bgs.evaluation.variance import Partition


def tables(findings: Findings) -> list[Table]:
    """Lay out what was found besides the measures themselves, in the order in which it is asked for."""
    found = []
    if findings.comparisons:
        found.append(_comparisons(findings.comparisons))
    if findings.reliability is not None:
        found.append(_reliability(findings.reliability))
    for name, probes in (findings.probes or {}).items():
        found.append(_probes(name, probes, findings.probe_differences.get(name)))
    if findings.variance is not None:
        found.append(_variance(findings.variance, findings.reliability))
    found += [_layers(name, layers) for name, layers in (findings.layers or {}).items()]
    return found


def _comparisons(comparisons: Sequence[Comparison]) -> Table:
    found = _table("comparison of models", "paired bootstrap over items; p corrected for the pairs of models (Holm)")
    for heading in ("measure", "first", "second"):
        found.add_column(heading)
    for heading in ("difference", "95 %", "p", "p corrected"):
        found.add_column(heading, justify="right", no_wrap=True)
    for item in comparisons:
        found.add_row(
            LABELS[item.measure],
            item.first,
            item.second,
            _number(item.difference, "+"),
            _range(item.ci95, "+"),
            _number(item.p),
            _number(item.p_corrected),
        )
    return found


def _reliability(parts: Sequence[Reliability]) -> Table:
    found = _table(
        "reliability of people's dissimilarities",
        "halves of the participants, Spearman-Brown; middle 95 % of the splits. It bounds R^2; its root bounds r.",
    )
    for heading in ("halves r", "reliability", "splits", "of all pairs", "ceiling of r", "pairs", "participants"):
        found.add_column(heading, justify="right", no_wrap=True)
    for part in parts:
        found.add_row(
            _number(part.half),
            _number(part.value) if part.reason is None else f"{_number(part.value)} ({part.reason})",
            _range(part.interval),
            _number(part.all_pairs),
            _number(part.ceiling),
            f"{part.pairs:,.0f}",
            f"{part.participants:,}",
        )
    return found


def _probes(name: str, probes: Probes, differences: Sequence[ProbeDifference] | None) -> Table:
    settings = probes.settings
    found = _table(
        f"ratings from {name}, {len(probes.items)} clips",
        f"ridge, {settings['folds']} folds; p by {settings['permutations']} permutations, corrected over ratings "
        "(max-statistic)",
    )
    found.add_column("rating", no_wrap=True)
    for heading in ("r", "95 %", "R^2", "p", "p corrected"):
        found.add_column(heading, justify="right", no_wrap=True)
    if differences:
        found.add_column("first model's r minus this", justify="right")
        found.add_column("p corrected", justify="right", no_wrap=True)
    for number, probe in enumerate(probes.probes):
        cells = [probe.name, _number(probe.r) if probe.r is not None else f"- ({probe.reason})", _range(probe.r_ci95)]
        cells += [_number(probe.r2), _number(probe.p), _number(probe.p_corrected)]
        if differences:
            item = differences[number]
            cells += [f"{_number(item.difference, '+')} {_range(item.ci95, '+')}", _number(item.p_corrected)]
        found.add_row(*cells)
    return found


def _variance(partition: Partition, reliability: Sequence[Reliability] | None) -> Table:
    bound = reliability[0].all_pairs if reliability else None
    known = "" if bound is None else f"; reliability {bound:.3f}"
    found = _table(
        f"variance of people's dissimilarities, {partition.pairs:,} pairs of {partition.items} clips",
        f"cross-validated R^2 of held-out clips, {partition.repeats} times {partition.folds} folds{known}",
    )
    found.add_column("share")
    for heading in ("R^2", "95 %"):
        found.add_column(heading, justify="right", no_wrap=True)
    for names, share in partition.explained.items():
        found.add_row(f"explained by {' and '.join(names)}", _number(share.value), _range(share.ci95))
    for names, share in partition.parts.items():
        kind = "only" if len(names) == 1 else "shared by"
        found.add_row(f"{kind} {' and '.join(names)}", _number(share.value), _range(share.ci95))
    return found


def _layers(name: str, layers: LayerwiseRSA) -> Table:
    chosen = "" if layers.held_out is None else f"; on clips that had no say in the choice {layers.held_out:.3f}"
    found = _table(
        f"RSA by layer of {name}, {layers.method}, {layers.pairs:,} pairs", f"best: layer {layers.best}{chosen}"
    )
    for heading in ("layer", "r", "95 %", "best in draws"):
        found.add_column(heading, justify="right", no_wrap=True)
    for layer in layers.layers:
        found.add_row(str(layer.number), _number(layer.value), _range(layer.ci95), f"{layer.best:.0%}")
    return found


def _table(title: str, caption: str) -> Table:
    return Table(title=title, caption=caption)


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _range(bounds: tuple[float, float] | None, sign: str = "") -> str:
    return "" if bounds is None else f"[{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"
