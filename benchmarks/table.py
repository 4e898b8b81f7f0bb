"""Turns the results of a device, its ``figures.json``, into tables. ``python -m benchmarks.table FOLDER`` writes one in
markdown and a plot beside them and, with ``--compact``, prints one for a terminal. Without a folder it writes the
results in README.md from those that are committed (``benchmarks.readme``).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FIGURES, TABLE, PLOT = "figures.json", "table.md", "figures.png"

SUITES = ("hybrid_loss", "attention", "lora", "backbones", "statistics", "decode")
"""The benchmarks that compare contenders, in the order of the table."""

COLUMNS = (
    "size",
    "contender",
    "step ms",
    "graph",
    "of products",
    "of floor",
    "TFLOP/s",
    "peak MiB",
    "of gradient",
    "kernels",
    "outside us",
    "CPU ms",
    "clips/s",
)
"""In table.md; the ratios to the baselines come after the times that they are of. What a run leaves empty is left
out."""

ALWAYS = COLUMNS[:3]

WORDS = ("size", "mode", "contender", "run", "step", "status", "reason")
"""Columns that hold no numbers."""

WIDTH = 120
"""Characters in a line of the compact table."""

NAMES = 4
"""How many cases that were not measured for the same reason the compact table names."""

VERSIONS = ("torch", "triton", "cuda", "driver", "transformers", "peft", "flash-attn", "pykeops")

MODES = 4
"""How many modes of a benchmark are plotted, the first ones: the others are in the table."""

LETTERS = 40
"""How many letters of the sizes' names fit under a panel; longer ones are set upright."""

EXPLANATION = """\
Times are medians in ms. A step is forward and backward, started on an idle device with cold caches; `graph` is the same
step as one replay of a CUDA graph. `x NAME` is the time of NAME over that of the row: the median over rounds in which
the two took turns, where they did, else the ratio of the medians; `graph x NAME` is the same for graphs. What NAME
computes is defined under each table: `eager` is what a user would write by hand, `compile` the fastest mode of
`torch.compile` of it. `of products` is the time over that of the two full matrix products of a step alone. `of floor`
is the time that the useful operations, or the least traffic, would take at the device's own ceilings, over the time
taken; TFLOP/s counts useful operations. Both are of the faster of step and graph. `peak MiB` is the most memory that a
step allocates, `of gradient` that over the size of the gradient. `kernels` are those launched in a step, or in its
forward + backward, with `m` memsets and `c` copies. `outside us` is what a step takes beside the compiled function.
`CPU ms` is the processor time of a step, all threads together."""


def speedup(
    cases: Iterable[dict[str, Any]], case: dict[str, Any], baseline: str, *, graph: bool = False
) -> float | None:
    """Compute how many times faster a case is than the baseline's of the same size and mode.

    Args:
        cases: all cases of one run.
        case: one of them.
        baseline: a comparison, or the contender of the same name.
        graph: whether CUDA graphs are compared, else steps.

    Returns:
        the median over the rounds in which the two took turns, else the ratio of the medians of steps; None where one
        of them was not measured.
    """
    in_turns = case.get("graph_faster_than" if graph else "faster_than")
    if in_turns is not None or graph:
        return float(in_turns[baseline]["median"]) if in_turns and baseline in in_turns else None
    for other in cases:
        same = other["size"] == case["size"] and other["mode"] == case["mode"]
        if same and other["contender"] == baseline and "step_ms" in other and "step_ms" in case:
            return float(other["step_ms"]["median_ms"] / case["step_ms"]["median_ms"])
    return None


def read(folder: Path) -> dict[str, Any]:
    """Read the results of a device.

    Args:
        folder: holds ``figures.json``.

    Raises:
        FileNotFoundError: it does not.
        ValueError: the file is none of results.
    """
    path = folder / FIGURES
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected the file {FIGURES}")
    figures = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(figures, dict) or "cases" in figures:
        raise ValueError(f"{path}: expected a section for each benchmark")
    return figures


def measure(found: Mapping[str, Any], sign: str = "") -> str:
    """Write a value with its 95 % interval as papers do, ".628 [.535, .715]".

    Args:
        found: ``value`` and ``ci95``, as evaluations give them.
        sign: "+" for differences.
    """
    if found["value"] is None:
        return ""
    if found["ci95"] is None:
        return fraction(found["value"], sign)
    return f"{fraction(found['value'], sign)} [{', '.join(fraction(end, sign) for end in found['ci95'])}]"


def fraction(value: float, sign: str = "", digits: int = 3) -> str:
    """Write a number below one without its leading zero."""
    return f"{value:{sign}.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.{digits}f}"


def suites(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the runs that compare contenders, in the order of the table."""
    return [figures[name] for name in SUITES if name in figures]


def markdown(figures: Mapping[str, Any], *, plot: str | None = None) -> str:
    """Write the results of a device as markdown.

    Args:
        figures: the content of its ``figures.json``.
        plot: the file name of the plot.
    """
    lines = ["# Benchmarks", "", *_device(figures), "", EXPLANATION, ""]
    if plot is not None:
        lines += [f"![Speedup by size and benchmark]({plot})", ""]
    lines += [section(run) for run in suites(figures)]
    if "training" in figures:
        lines += ["## training", "", _about(figures["training"]), "", *_table(_training(figures["training"])), ""]
        lines += _listed(_left_out(_without_result(figures["training"])), "Not measured:")
    if figures.get("steps"):
        lines += ["## steps", "", *_table(_steps(figures["steps"])), ""]
    return "\n".join(lines)


def section(run: dict[str, Any]) -> str:
    """Write one run as markdown: what is asked of it, a table for each mode, what was not measured and why, and
    definitions.

    Args:
        run: a benchmark's section of ``figures.json``.
    """
    lines = [f"## {run['benchmark']}", "", _about(run), "", *_listed(_verdicts(run, missed="**missed**"))]
    measured = [case for case in run["cases"] if "step_ms" in case]
    of_case = {id(case): _cells(run, case) for case in measured}
    columns = [name for name in _columns(run) if name in ALWAYS or any(row[name] for row in of_case.values())]
    for mode in _in_order(measured, "mode"):
        of_mode = [case for case in measured if case["mode"] == mode]
        rows = [of_case[id(case)] for case in _by_size(of_mode)]
        lines += [f"**{mode}**", "", *_table([columns, *([row[name] for name in columns] for row in rows)]), ""]
    lines += _listed(_left_out([case for case in run["cases"] if "step_ms" not in case]), "Not measured:")
    lines += _listed(_grouped((case, case["no_graph"]) for case in measured if "no_graph" in case), "No graph:")
    at = ((case, case["revision"]) for case in measured if "revision" in case)
    lines += _listed(_grouped(at), "Measured at another revision:")
    lines += _listed([f"{name}: {what}" for name, what in run.get("definitions", {}).items()], "Definitions:")
    return "\n".join(lines)


def compact(figures: Mapping[str, Any]) -> str:
    """Write the results of a device for a terminal of ``WIDTH`` characters: what matters of every case, what is missing
    and why, what is asked of the figures, and the steps of the run that measured them.

    Args:
        figures: the content of its ``figures.json``.
    """
    lines = _device(figures)
    missing, verdicts = [], []
    for run in suites(figures):
        lines += ["", f"{run['benchmark']}: {_about(run)}", *_aligned(_compact_rows(run))]
        left_out = _left_out([case for case in run["cases"] if "step_ms" not in case], most=NAMES)
        missing += [f"  {run['benchmark']}: {reason}" for reason in left_out]
        verdicts += [f"  {run['benchmark']}: {verdict}" for verdict in _verdicts(run)]
    if "training" in figures:
        run = figures["training"]
        lines += ["", f"training: {_about(run)}", *_aligned(_training(run))]
        missing += [f"  training: {reason}" for reason in _left_out(_without_result(run), most=NAMES)]
    # what a terminal cuts off is the beginning: what there is to be known of the whole comes last
    for title, some in (("not measured", missing), ("requirements", verdicts)):
        lines += ["", title, *some] if some else []
    if figures.get("steps"):
        lines += ["", *_aligned(_steps(figures["steps"]))]
    return "\n".join(map(_wrapped, lines))


def draw(figures: Mapping[str, Any], path: Path) -> bool:
    """Plot speedups by size, over the first baseline that a case was compared with.

    Args:
        figures: the content of ``figures.json``.
        path: the PNG file to write.

    Returns:
        whether it was written: False without matplotlib or anything to plot.
    """
    drawn = [(run, cases) for run in suites(figures) if (cases := [case for case in run["cases"] if "step_ms" in case])]
    if not drawn:
        return False
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError as error:
        logger.warning("no plot: %s", error)
        return False
    figure = Figure(figsize=(4.0 * MODES, 3.6 * len(drawn)), layout="constrained")
    for part, (run, measured) in zip(figure.subfigures(len(drawn), 1, squeeze=False)[:, 0], drawn, strict=True):
        modes = _in_order(measured, "mode")[:MODES]
        shown = [case for case in measured if case["mode"] in modes]
        sizes = _in_order(_by_size(shown), "size")
        upright = max(map(len, sizes)) > LETTERS / len(sizes)
        faster = {id(case): first for case in shown if (first := _first_ratio(run, case)) is not None}
        panels = part.subplots(1, len(modes), squeeze=False, sharey=True)[0]
        for mode, axes in zip(modes, panels, strict=True):
            for c, contender in enumerate(_in_order(shown, "contender")):
                line = [
                    case
                    for case in shown
                    if (case["contender"], case["mode"]) == (contender, mode) and id(case) in faster
                ]
                line.sort(key=lambda case: sizes.index(case["size"]))
                places, heights = [sizes.index(case["size"]) for case in line], [faster[id(case)][1] for case in line]
                axes.plot(places, heights, color=f"C{c % 10}", marker="os^"[c // 10 % 3], markersize=4, label=contender)
            axes.set_title(mode, fontsize=10)
            axes.set_xticks(range(len(sizes)), sizes, rotation=90 if upright else 0, fontsize=8)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            axes.tick_params(axis="y", which="minor", labelsize=7)
        panels[0].set_ylabel("speedup")
        panels[-1].legend(fontsize=7)
        baselines = " or ".join(dict.fromkeys(baseline for baseline, _ in faster.values()))
        part.suptitle(f"{run['benchmark']}: speedup over {baselines}", fontsize=11)
    figure.savefig(path, dpi=110)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Write the tables of a folder, or README's results; the exit status is 1 when there was nothing to write from, or
    when README was to be checked and differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help=f"holds {FIGURES}; none for the results in README.md")
    parser.add_argument("--compact", action="store_true", help="print a table of the folder for a terminal as well")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where README.md differs")
    given = parser.parse_args(arguments)
    if given.folder is None and given.compact:
        parser.error("--compact prints the table of a folder; none was given")
    if given.folder is not None and given.check:
        parser.error("--check is of README.md; no folder can be given")
    try:
        if given.folder is None:
            from benchmarks import readme  # it is written from what this module reads and computes

            return readme.main(check=given.check)
        figures = read(given.folder)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if given.compact:
        print(compact(figures), flush=True)
    plot = PLOT if draw(figures, given.folder / PLOT) else None
    (given.folder / TABLE).write_text(markdown(figures, plot=plot), encoding="utf-8")
    return 0


def _device(figures: Mapping[str, Any]) -> list[str]:
    """Say what was measured on, and what that can do."""
    environments = [
        each["environment"] for each in figures.values() if isinstance(each, dict) and "environment" in each
    ]
    if not environments:
        return []
    on = environments[-1]  # ceilings come first and need the fewest packages
    versions = [f"{name} {on[name]}" for name in VERSIONS if on.get(name)]
    lines = [f"{on['device']}; {', '.join(versions)}."]
    if "cuda" not in on:
        lines.append(f"torch used {on['threads']} of {on['cores']} cores.")
    if (ceilings := figures.get("ceilings")) and "flops" in ceilings:
        rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in ceilings["flops"].items())
        size = ceilings["gemm_size"]
        lines.append(
            f"Ceilings: copy {ceilings['bytes_per_second'] / 1e9:.4g} GB/s, products of {size} x {size} {rates}."
        )
    return lines


def _about(run: dict[str, Any]) -> str:
    on = run["environment"]
    line = f"revision {on['revision']}, {on['date']}"
    if on["shared_machine"]:
        line += f"; other work was running on the machine ({on['busy_before']:.0%} of it before the run)"
    return line


def _without_result(training: dict[str, Any]) -> list[dict[str, Any]]:
    return [case for case in training["cases"] if case["status"] != "ok"]


def _left_out(cases: Sequence[dict[str, Any]], most: int | None = None) -> list[str]:
    return _grouped(((case, f"{case['status']}: {case.get('reason', '')}") for case in cases), most)


def _grouped(cases: Iterable[tuple[dict[str, Any], str]], most: int | None = None) -> list[str]:
    """List the reasons, and after each the cases that share it, the first ones where a most is given."""
    by_reason: dict[str, list[str]] = {}
    for case, reason in cases:
        name = case["name"] if "name" in case else f"{case['size']} {case['mode']} {case['contender']}"
        by_reason.setdefault(" ".join(reason.split())[:200], []).append(name)
    lines = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - most} more" if most is not None and len(names) > most else ""
        lines.append(f"{reason}: {', '.join(names[:most])}{more}")
    return lines


def _verdicts(run: dict[str, Any], missed: str = "MISSED") -> list[str]:
    """Say what is asked of the figures, and whether they meet it."""
    lines = []
    for bar in run.get("bars", []):
        found = "not measured"
        if bar["found"] is not None:
            several = f" ({bar['cases']} cases)" if bar["cases"] != 1 else ""
            found = f"{bar['found']:.3g}, {'met' if bar['met'] else missed}{several}"
        lines.append(f"{bar['what']} {bar['required']}: {found}")
    return lines


def _compact_rows(run: dict[str, Any]) -> list[list[str]]:
    """The rows of the compact table, the header first; the last baselines go where the line would be too long."""
    measured = [case for case in run["cases"] if "step_ms" in case]
    ordered = [case for mode in _in_order(measured, "mode") for case in _by_size(measured) if case["mode"] == mode]
    rows = []
    for case in ordered:
        cells = _cells(run, case)
        faster = {baseline: _ratio(run, case, baseline) for baseline in run["baselines"]}
        ratios = {f"x {name}": "" if ratio is None else f"{ratio:.2f}" for name, ratio in faster.items()}
        head = {"size": case["size"], "mode": case["mode"], "contender": cells["contender"]}
        times = {"ms": cells["step ms"], "graph ms": cells["graph"]}
        last = {"of products": cells["of products"], "of floor": cells["of floor"], "MiB": cells["peak MiB"]}
        rows.append(head | times | ratios | last)
    if not rows:
        return []
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    if "of products" in filled and "of floor" in filled:
        filled.remove("of floor")
    while True:
        shown = [filled, *([row[name] for name in filled] for row in rows)]
        compared = [name for name in filled if name.startswith("x ")]
        if len(compared) < 2 or max(map(len, _aligned(shown))) <= WIDTH:
            return shown
        filled.remove(compared[-1])


def _training(run: dict[str, Any]) -> list[list[str]]:
    """The rows of what was trained and evaluated: before training, after it, and the difference."""
    rows = [["run", "seconds", "three-way accuracy", "difference", "RSA Spearman", "difference"]]
    for case in run["cases"]:
        if case["status"] != "ok":
            continue
        found, row = case["found"], [case["name"], f"{case['seconds']:.0f}"]
        for family, which in (("odd_one_out", "three_way"), ("rsa", "spearman")):
            value = fraction(found[family][which]["value"])
            gain = ""
            if "frozen" in found:
                value = f"{fraction(found['frozen'][family][which]['value'])} -> {value}"
                gain = measure(found["difference"][family][which], sign="+")
            row += [value, gain]
        rows.append(row)
    return rows


def _steps(steps: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    rows = [["step", "status", "seconds", "reason"]]
    for name, step in steps.items():
        seconds = f"{step['seconds']:.0f}" if step.get("seconds") is not None else ""
        rows.append([name, step["status"], seconds, " ".join((step.get("reason") or "").split())])
    return rows


def _columns(run: dict[str, Any]) -> list[str]:
    of_step, of_graph = (tuple(f"{word}x {baseline}" for baseline in run["baselines"]) for word in ("", "graph "))
    return [name for column in COLUMNS for name in (column, *{"step ms": of_step, "graph": of_graph}.get(column, ()))]


def _cells(run: dict[str, Any], case: dict[str, Any]) -> dict[str, str]:
    """Write a case, by column."""
    rates, peak = case.get("rates", {}), case.get("peak_bytes")
    cells = {
        "size": case["size"],
        "contender": case["contender"] + (f" ({case['chosen']})" if "chosen" in case else ""),
        "step ms": _time(case, "step_ms"),
        "graph": _time(case, "graph_ms"),
        "of products": f"{rates['of_products']:.2f}" if "of_products" in rates else "",
        "of floor": f"{rates['share_of_floor']:.0%}" if "share_of_floor" in rates else "",
        "TFLOP/s": f"{rates['tflops']:.3g}" if "tflops" in rates else "",
        "peak MiB": "" if peak is None else f"{peak / 2**20:.4g}",
        "of gradient": f"{case['peak_over_gradient']:.3g}" if "peak_over_gradient" in case else "",
        "kernels": _launched(case),
        "outside us": f"{case['outside_us']:.3g}" if "outside_us" in case else "",
        "CPU ms": _time(case, "cpu_ms"),
        "clips/s": f"{rates['clips_per_second']:.4g}" if "clips_per_second" in rates else "",
    }
    for baseline in run["baselines"]:
        for graph in (False, True):
            ratio = speedup(run["cases"], case, baseline, graph=graph)
            cells[f"graph x {baseline}" if graph else f"x {baseline}"] = "" if ratio is None else f"{ratio:.2f}"
    return cells


def _ratio(run: dict[str, Any], case: dict[str, Any], baseline: str) -> float | None:
    """Give the speedup over a baseline: that of graphs where both have one."""
    ratio = speedup(run["cases"], case, baseline, graph=True)
    return speedup(run["cases"], case, baseline) if ratio is None else ratio


def _first_ratio(run: dict[str, Any], case: dict[str, Any]) -> tuple[str, float] | None:
    """Give the first of the baselines that the case was compared with, and the speedup over it."""
    ratios = ((baseline, _ratio(run, case, baseline)) for baseline in run["baselines"])
    return next(((baseline, ratio) for baseline, ratio in ratios if ratio is not None), None)


def _time(case: dict[str, Any], name: str) -> str:
    return f"{case[name]['median_ms']:.4g}" if name in case else ""


def _launched(case: dict[str, Any]) -> str:
    if "launches" not in case:
        return ""
    return " + ".join(
        str(count["kernels"])
        + (f" {count['memsets']}m" if count["memsets"] else "")
        + (f" {count['copies']}c" if count["copies"] else "")
        for count in case["launches"].values()
    )


def _by_size(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order cases by size, the smallest first where the sizes say how many rows they have, and one size together."""
    order = sorted(cases, key=lambda case: case.get("dimensions", {}).get("rows", 0))
    return [case for size in _in_order(order, "size") for case in cases if case["size"] == size]


def _in_order(cases: Iterable[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(case[key] for case in cases))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows, the header first, as a table in markdown; numbers are set to the right."""
    aligned = ["---" if name in WORDS else "---:" for name in rows[0]]
    return [f"| {' | '.join(cells)} |" for cells in (rows[0], aligned, *rows[1:])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows, the header first, in columns for a terminal; numbers are set to the right."""
    if not rows:
        return []
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = zip(rows[0], row, widths, strict=True)
        aligned = (cell.ljust(width) if name in WORDS else cell.rjust(width) for name, cell, width in cells)
        lines.append("  " + "  ".join(aligned).rstrip())
    return lines


def _listed(items: Sequence[str], title: str = "") -> list[str]:
    if not items:
        return []
    return [*([title, ""] if title else []), *(f"- {item}" for item in items), ""]


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
