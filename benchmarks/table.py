"""Turns the JSON files of benchmarks into markdown tables and plots: ``python -m benchmarks.table FOLDER``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

COLUMNS = (
    "size",
    "contender",
    "step ms",
    "forward",
    "backward",
    "graph",
    "kernels",
    "peak MiB",
    "of gradient",
    "TFLOP/s",
    "of floor",
)
"""Before the ratios to the baselines, which come after the times that they are of. What a run leaves empty is left
out."""

ALWAYS = COLUMNS[:3]

VERSIONS = ("torch", "triton", "cuda", "driver", "transformers", "peft", "flash-attn", "pykeops")

PANELS = 4
"""How many modes are plotted, the first ones: the others stand in the table."""

LETTERS = 40
"""How many letters of the sizes' names fit under a panel; longer ones stand upright."""

EXPLANATION = """\
Times are medians in ms. A step is forward and backward, started on an idle device with cold caches; `graph` is the same
step as one replay of a CUDA graph. `x NAME` is how many times faster a step is than NAME's of the same run: where the
two were timed in turns the median over the rounds, of steps, and `graph x NAME` the same of graphs; else the ratio of
the medians. `kernels` are those launched, in forward + backward or in the step, with `m` memsets and `c` copies. `peak
MiB` is the most that a step allocates at a time, `of gradient` that over the size of the gradient. TFLOP/s counts
useful operations in the faster of step and graph; `of floor` is the time that these, or the least traffic, would take
at the measured ceilings over the time taken."""


def speedup(cases: list[dict[str, Any]], case: dict[str, Any], baseline: str, *, graph: bool = False) -> float | None:
    """Compute how many times faster a case is than the baseline's of the same size and mode.

    Args:
        cases: all cases of one run.
        case: one of them.
        baseline: a contender.
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


def section(run: dict[str, Any], *, plot: str | None = None) -> str:
    """Write one run as markdown: what it ran on, a table for each mode, and what was not measured and why.

    Args:
        run: the content of a benchmark's JSON file.
        plot: the file name of its plot.
    """
    lines = [f"## {run['benchmark']}", "", *_about(run), ""]
    if plot is not None:
        lines += [f"![{run['benchmark']}: speedup and share of the floor by size]({plot})", ""]
    lines += _bars(run)
    measured = [case for case in run["cases"] if "step_ms" in case]
    of_case = {id(case): _cells(run, case) for case in measured}
    columns = [name for name in _columns(run) if name in ALWAYS or any(row[name] for row in of_case.values())]
    for mode in _in_order(measured, "mode"):
        lines += [f"**{mode}**", "", _row(columns), _row("---" if n < 2 else "---:" for n in range(len(columns)))]
        of_mode = [case for case in measured if case["mode"] == mode]
        for size in _sizes(of_mode):
            some = [case for case in of_mode if case["size"] == size]
            lines += [_row(of_case[id(case)][name] for name in columns) for case in some]
        lines.append("")
    lines += _left_out(
        "Not measured",
        [(case, f"{case['status']}: {case['reason']}") for case in run["cases"] if "step_ms" not in case],
    )
    lines += _left_out("No graph", [(case, case["no_graph"]) for case in measured if "no_graph" in case])
    return "\n".join(lines)


def draw(run: dict[str, Any], path: Path) -> bool:
    """Plot the speedup over the first baseline and the share of the floor by size.

    Args:
        run: the content of a benchmark's JSON file.
        path: the PNG file to write.

    Returns:
        whether it was written: False without matplotlib or anything to plot.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError as error:
        logger.warning("no plot: %s", error)
        return False
    measured = [case for case in run["cases"] if "step_ms" in case]
    if not measured:
        return False
    modes = _in_order(measured, "mode")[:PANELS]
    sizes = _sizes([case for case in measured if case["mode"] in modes])
    baseline = run["baselines"][0]
    many = max(map(len, sizes)) > LETTERS / len(sizes)
    width = max(4.0, 0.4 * len(sizes))
    figure = Figure(figsize=(width * len(modes) + 1.5, 8 if many else 6), layout="constrained")
    panels = figure.subplots(2, len(modes), squeeze=False, sharex=True, sharey="row")
    for mode, (above, below) in zip(modes, panels.T, strict=True):
        for c, contender in enumerate(_in_order(measured, "contender")):
            by_size = {
                case["size"]: case for case in measured if case["contender"] == contender and case["mode"] == mode
            }
            faster = {size: _drawn(measured, case, baseline) for size, case in by_size.items()}
            share = {size: case.get("rates", {}).get("share_of_floor") for size, case in by_size.items()}
            for axes, values in ((above, faster), (below, share)):
                there = [size for size in sizes if values.get(size) is not None]
                places, heights = [sizes.index(size) for size in there], [values[size] for size in there]
                axes.plot(places, heights, color=f"C{c}", marker="o", markersize=4, label=contender)
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
                axes.tick_params(axis="y", which="minor", labelsize=7)
        above.set_title(mode, fontsize=10)
        below.set_xticks(range(len(sizes)), sizes, rotation=90 if many else 0)
    panels[0, 0].set_ylabel(f"times faster than {baseline}")
    panels[1, 0].set_ylabel("share of the floor")
    panels[1, -1].legend(fontsize=8)
    figure.suptitle(f"{run['benchmark']}: a step on {run['environment']['device']}", fontsize=10)
    figure.savefig(path, dpi=130)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Write table.md and the plots beside the JSON files of a folder."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m benchmarks.table FOLDER", file=sys.stderr)
        return 2
    folder = Path(given[0])
    files = sorted(folder.glob("*.json"))
    runs = [(path, json.loads(path.read_text())) for path in files]
    runs = [(path, run) for path, run in runs if "cases" in run]
    if not runs:
        print(f"{folder}: no JSON file of a benchmark there", file=sys.stderr)
        return 1
    sections = []
    for path, run in runs:
        plot = path.with_suffix(".png")
        sections.append(section(run, plot=plot.name if draw(run, plot) else None))
    (folder / "table.md").write_text("\n".join(["# Benchmarks", "", EXPLANATION, "", *sections]))
    return 0


def _about(run: dict[str, Any]) -> list[str]:
    on = run["environment"]
    versions = [f"{name} {on[name]}" for name in VERSIONS if on.get(name)]
    lines = [f"{on['device']}; {', '.join(versions)}; revision {on['revision']}; {on['date']}."]
    if "cuda" not in on:
        lines.append(f"torch used {on['threads']} of {on['cores']} cores.")
    if on["shared_machine"]:
        lines.append(f"**Other work was running on the machine** ({on['busy_before']:.0%} of it before the run).")
    if run.get("ceilings"):
        ceilings = run["ceilings"]
        rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in ceilings["flops"].items())
        lines.append(
            f"Ceilings measured in the same run: copy {ceilings['bytes_per_second'] / 1e9:.4g} GB/s,"
            f" products of {ceilings['gemm_size']} x {ceilings['gemm_size']}: {rates}."
        )
    return lines


def _left_out(title: str, cases: list[tuple[dict[str, Any], str]]) -> list[str]:
    """List the reasons, and after each the cases that share it."""
    if not cases:
        return []
    by_reason: dict[str, list[str]] = {}
    for case, reason in cases:
        by_reason.setdefault(" ".join(reason.split())[:200], []).append(
            f"{case['size']} {case['mode']} {case['contender']}"
        )
    return [f"{title}:", "", *(f"- {reason}: {', '.join(names)}" for reason, names in by_reason.items()), ""]


def _drawn(cases: list[dict[str, Any]], case: dict[str, Any], baseline: str) -> float | None:
    """Give the speedup that is plotted: that of graphs where there is one."""
    of_graph = speedup(cases, case, baseline, graph=True)
    return speedup(cases, case, baseline) if of_graph is None else of_graph


def _bars(run: dict[str, Any]) -> list[str]:
    """List what is asked of the figures, and whether they reach it."""
    lines = []
    for bar in run.get("bars", []):
        found = "not measured"
        if bar["found"] is not None:
            said = "met" if bar["met"] else "**missed**"
            found = f"{bar['found']:.3g}, {said} ({bar['cases']} case{'s' if bar['cases'] != 1 else ''})"
        lines.append(f"- {bar['what']} {bar['required']}: {found}")
    return [*lines, ""] if lines else []


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
        "forward": _time(case, "forward_ms"),
        "backward": _time(case, "backward_ms"),
        "graph": _time(case, "graph_ms"),
        "kernels": _launched(case),
        "peak MiB": "" if peak is None else f"{peak / 2**20:.4g}",
        "of gradient": f"{case['peak_over_gradient']:.3g}" if "peak_over_gradient" in case else "",
        "TFLOP/s": f"{rates['tflops']:.3g}" if "tflops" in rates else "",
        "of floor": f"{rates['share_of_floor']:.0%}" if "share_of_floor" in rates else "",
    }
    for baseline in run["baselines"]:
        for graph in (False, True):
            ratio = speedup(run["cases"], case, baseline, graph=graph)
            cells[f"graph x {baseline}" if graph else f"x {baseline}"] = "" if ratio is None else f"{ratio:.2f}"
    return cells


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


def _sizes(cases: list[dict[str, Any]]) -> list[str]:
    """The sizes, the smallest first where they say how many rows they have."""
    order = sorted(cases, key=lambda case: case.get("dimensions", {}).get("rows", 0))
    return _in_order(order, "size")


def _in_order(cases: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(case[key] for case in cases))


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
