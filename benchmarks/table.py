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
"""Before the ratios to the baselines, which come after the time of a step."""

EXPLANATION = """\
Times are medians in ms. A step is forward and backward, started on an idle device with cold caches; `graph` is the same
step as one replay of a CUDA graph. `x NAME` is how many times faster a step is than NAME's of the same run. `kernels`
are those launched in forward + backward, with `m` memsets and `c` copies. `peak MiB` is the most that a step allocates
at a time, `of gradient` that over the size of the gradient. TFLOP/s counts useful operations in the faster of step and
graph; `of floor` is the time that these, or the least traffic, would take at the measured ceilings over the time
taken."""


def speedup(cases: list[dict[str, Any]], case: dict[str, Any], baseline: str) -> float | None:
    """Compute how many times faster a case's step is than the baseline's of the same size and mode.

    Args:
        cases: all cases of one run.
        case: one of them.
        baseline: a contender.

    Returns:
        the ratio of the medians, None where one of them was not measured.
    """
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
    measured = [case for case in run["cases"] if "step_ms" in case]
    for mode in _in_order(measured, "mode"):
        ratios = tuple(f"x {baseline}" for baseline in run["baselines"])
        header = (*COLUMNS[:3], *ratios, *COLUMNS[3:])
        lines += [f"**{mode}**", "", _row(header), _row("---" if n < 2 else "---:" for n in range(len(header)))]
        of_mode = [case for case in measured if case["mode"] == mode]
        for size in _sizes(of_mode):
            lines += [_row(_cells(run, case)) for case in of_mode if case["size"] == size]
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
    except ImportError as error:
        logger.warning("no plot: %s", error)
        return False
    measured = [case for case in run["cases"] if "step_ms" in case]
    sizes, modes = _sizes(measured), _in_order(measured, "mode")
    if not measured:
        return False
    baseline = run["baselines"][0]
    figure = Figure(figsize=(4 * len(modes) + 1.5, 6), layout="constrained")
    panels = figure.subplots(2, len(modes), squeeze=False, sharex=True, sharey="row")
    for mode, (above, below) in zip(modes, panels.T, strict=True):
        for c, contender in enumerate(_in_order(measured, "contender")):
            by_size = {
                case["size"]: case for case in measured if case["contender"] == contender and case["mode"] == mode
            }
            faster = {size: speedup(measured, case, baseline) for size, case in by_size.items()}
            share = {size: case.get("rates", {}).get("share_of_floor") for size, case in by_size.items()}
            for axes, values in ((above, faster), (below, share)):
                there = [size for size in sizes if values.get(size) is not None]
                places, heights = [sizes.index(size) for size in there], [values[size] for size in there]
                axes.plot(places, heights, color=f"C{c}", marker="o", markersize=4, label=contender)
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
        above.set_title(mode, fontsize=10)
        below.set_xticks(range(len(sizes)), sizes)
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
    versions = [f"{name} {on[name]}" for name in ("torch", "triton", "cuda", "driver", "pykeops") if on.get(name)]
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


def _cells(run: dict[str, Any], case: dict[str, Any]) -> list[str]:
    ratios = [speedup(run["cases"], case, baseline) for baseline in run["baselines"]]
    rates = case.get("rates", {})
    peak = case.get("peak_bytes")
    return [
        case["size"],
        case["contender"],
        _time(case, "step_ms"),
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        _time(case, "forward_ms"),
        _time(case, "backward_ms"),
        _time(case, "graph_ms"),
        _launched(case),
        "" if peak is None else f"{peak / 2**20:.4g}",
        f"{case['peak_over_gradient']:.3g}" if "peak_over_gradient" in case else "",
        f"{rates['tflops']:.3g}" if "tflops" in rates else "",
        f"{rates['share_of_floor']:.0%}" if "share_of_floor" in rates else "",
    ]


def _time(case: dict[str, Any], name: str) -> str:
    return f"{case[name]['median_ms']:.4g}" if name in case else ""


def _launched(case: dict[str, Any]) -> str:
    if "launches" not in case:
        return ""
    return " + ".join(
        str(count["kernels"])
        + (f" {count['memsets']}m" if count["memsets"] else "")
        + (f" {count['copies']}c" if count["copies"] else "")
        for count in (case["launches"]["forward"], case["launches"]["backward"])
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
