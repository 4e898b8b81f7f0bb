"""The results in README.md, written from the committed ``benchmarks/results/*/figures.json``: every number in them, and
every claim that goes by numbers, is computed here. ``python -m benchmarks.table`` writes them, ``--check`` compares.
"""

from __future__ import annotations

import statistics
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import fraction, measure, read, speedup

ROOT = Path(__file__).parents[1]

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

WIDTH = 120

Figures = Mapping[str, Any]

TEXT_MODES, SEEDS = ("hybrid", "triplet", "rsa"), (0, 1, 2)

MEASURES = {
    "three-way accuracy": ("odd_one_out", "three_way"),
    "two-way accuracy": ("odd_one_out", "two_way"),
    "RSA Spearman": ("rsa", "spearman"),
    "explained variance": ("rsa", "explained_variance"),
}

LOSS_MODES = {"float32 highest": "float32", "bfloat16": "bfloat16"}

LOSS_ROWS = 250
"""Sizes of fewer embeddings get a sentence, not a row each."""

OURS = ("native", "triton")

STATISTICS = {
    ("spearman of 8M pairs", "float64"): "Spearman's correlation of 8 million pairs",
    ("tau-b of 1M pairs", "float64"): "Kendall's tau-b of 1 million pairs",
    ("5M judgments of 250", "int64"): "counts of 5 million judgments of 250 items",
    ("5M judgments of 1854", "int64"): "counts of 5 million judgments of 1,854 items",
}

NOTHING = "Nothing has been measured on this version yet."

NO_GPU = """\
**Kernels on a GPU.** Nothing has been measured yet. The Triton kernels are tested against float64 in Triton's
interpreter and compiled for compute capability 8.0, 9.0 and 10.0; the CUDA kernels are compiled for 8.0 and 9.0, and
their device code is tested on a CPU. Until there are measurements, attention runs by PyTorch's own kernels unless
`backend="triton"` is asked for, and projections by cuBLAS with thin Triton kernels beside it."""


def main(root: Path = ROOT, *, check: bool = False) -> int:
    """Write the results between the markers of README.md.

    Args:
        root: the folder of README.md and ``benchmarks/results``.
        check: compare instead of writing.

    Returns:
        the exit status: 1 when a check found a difference.

    Raises:
        ValueError: README.md lacks a marker.
    """
    path = root / "README.md"
    before = path.read_text(encoding="utf-8")
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}")
    after = f"{head}{BEGIN}\n\n{results(root)}\n\n{END}{tail}"
    if check:
        if after != before:
            print(f"{path}: the results are not those of benchmarks/results; run python -m benchmarks.table", file=sys.stderr)
        return int(after != before)
    path.write_text(after, encoding="utf-8")
    return 0


def results(root: Path = ROOT) -> str:
    """Write the results of all devices as markdown.

    Args:
        root: holds ``benchmarks/results``, a folder for each device.
    """
    folders = sorted((root / "benchmarks" / "results").glob("*/figures.json"))
    devices = {path.parent.name: read(path.parent) for path in folders}
    on_cpu = {name: figures for name, figures in devices.items() if not _on_gpu(figures)}
    on_gpu = {name: figures for name, figures in devices.items() if name not in on_cpu}
    parts: list[str] = [] if devices else [NOTHING]
    trained = [figures["training"] for figures in (*on_cpu.values(), *on_gpu.values()) if "training" in figures]
    if trained:
        parts += training(trained[0])
    for name, figures in on_cpu.items():
        parts += kernels(name, figures, "on the CPU")
    for name, figures in on_gpu.items():
        parts += kernels(name, figures, "on a GPU")
    return "\n\n".join(parts if on_gpu else [*parts, NO_GPU])


def training(run: dict[str, Any]) -> list[str]:
    """Write what was trained and evaluated, paragraph by paragraph.

    Args:
        run: the section that ``benchmarks.bench_training`` wrote.
    """
    of_name = {case["name"]: case for case in run["cases"] if case["status"] == "ok"}
    text = {(case["mode"], case["seed"]): case for case in of_name.values() if case["run"] == "text"}
    parts = [_fill(f"Training and evaluation ran on {_machine(run['environment'])}.")] if of_name else []
    if text:
        parts += judgments(text)
    if "analyses" in of_name:
        parts += analyses(of_name["analyses"])
    if "make train" in of_name:
        parts += animations(of_name["make train"])
    return parts


def judgments(text: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """Write the runs on people's judgments of captions.

    Args:
        text: the cases, by mode and seed.
    """
    found = {key: case["found"] for key, case in text.items()}
    first = next(iter(found.values()))
    parts = [
        _fill(
            f"**Human judgments.** {_words(first['folds'])}-fold cross-validation over the {first['items']} training clips"
            " of the published social-similarity data, from captions only (all-MiniLM-L6-v2). The held-out judgments of all"
            f" folds are pooled: {_between([one['odd_one_out']['three_way']['n'] for one in found.values()])} a seed. The"
            " model is a linear head that starts as the identity; how strongly it is held there, and for how many epochs,"
            " is chosen by cross-validation within the training clips of each fold. The table gives three-way accuracy with"
            " its 95 % bootstrap interval over clips; two-way accuracy and Spearman's correlation are means over seeds."
        )
    ]
    rows = [["", *(f"seed {seed}" for seed in SEEDS), "mean", "two-way", "RSA Spearman"]]
    frozen = {seed: one["frozen"] for (_, seed), one in found.items()}
    rows.append(["frozen encoder", *_of_seeds(frozen)])
    for mode in TEXT_MODES:
        rows.append([mode, *_of_seeds({seed: one for (its, seed), one in found.items() if its == mode})])
    parts.append(_table(rows))
    better = sum(one["difference"]["odd_one_out"]["three_way"]["value"] > 0 for one in found.values())
    claims = [
        f"Three-way accuracy is above the frozen encoder's in {_share(better, len(found))} runs.",
        f"The 95 % interval of the difference excludes zero in {_share(*_clear(found, 'odd_one_out', 'three_way'))} runs;"
        f" for Spearman's correlation it does in {_share(*_clear(found, 'rsa', 'spearman'))}{_gains(found)}.",
    ]
    means = [
        statistics.mean(found[mode, seed]["odd_one_out"]["three_way"]["value"] for seed in SEEDS)
        for mode in TEXT_MODES
        if all((mode, seed) in found for seed in SEEDS)
    ]
    if len(means) == len(TEXT_MODES):
        widths = [high - low for low, high in (one["odd_one_out"]["three_way"]["ci95"] for one in found.values())]
        claims.append(
            f"The means of the three modes lie within {fraction(max(means) - min(means))} of each other; the interval of a"
            f" single run is at least {fraction(min(widths))} wide."
        )
    claims.append("The seeds divide the clips differently; they are not independent samples.")
    claims.append(f"A run takes {_between([case['seconds'] for case in text.values()], _duration)}:")
    return [*parts, _fill(" ".join(claims)), _command(next(iter(text.values()))["command"])]


def analyses(case: dict[str, Any]) -> list[str]:
    """Write what the analyses of the captions found."""
    found = case["found"]
    reliability, variance = found["reliability"][0], found["variance"]
    explained, shared = variance["explained"], variance["parts"]["text + ratings"]
    about = (
        f"**Reliability.** Split halves of the {reliability['participants']} participants correlate at r ="
        f" {fraction(reliability['half'], digits=2)}; the reliability of the full matrix is"
        f" {fraction(reliability['all_pairs'], digits=2)}, which bounds the correlation of any model at"
        f" {fraction(reliability['ceiling'], digits=2)} (Pearson). Over all {variance['items']} clips, distances between the"
        f" frozen caption embeddings correlate with people's at r = {measure(found['rsa']['pearson'])}. They explain"
        f" {measure(explained['text'])} of the variance of the dissimilarities of held-out clips, and ratings explain"
        f" {measure(explained['ratings'])}; they share {measure(shared)}:"
    )
    return [_fill(about), _command(case["command"])]


def animations(case: dict[str, Any]) -> list[str]:
    """Write what ``make train`` found."""
    found, clips = case["found"], case["found"]["clips"]
    rows = [["", "before training", "fine-tuned", "difference", "ceiling"]]
    for name, (family, which) in MEASURES.items():
        before, after, gain = (each[family][which] for each in (found["frozen"], found, found["difference"]))
        ceiling = (after.get("ceiling") or {}).get("upper")
        bound = "" if ceiling is None else fraction(ceiling)
        rows.append([name, measure(before), measure(after), measure(gain, "+"), bound])
    about = (
        "**Synthetic social animations**, `make train`. A small VideoMAE with random weights is trained on"
        f" {clips['train']} clips, {clips['val']} more choose the epoch, and {clips['test']} held-out clips with"
        f" {found['odd_one_out']['three_way']['n']:,} judgments test it. It takes {_duration(case['seconds'])}, rendering and"
        " evaluation included."
    )
    return [_fill(about), _table(rows)]


def kernels(folder: str, figures: Figures, where: str) -> list[str]:
    """Write what was measured of the kernels on one device.

    Args:
        folder: the name of its folder.
        figures: its results.
        where: "on the CPU" or "on a GPU".
    """
    suites = [run for name, run in figures.items() if isinstance(run, dict) and "cases" in run and name != "training"]
    if not suites:
        return []
    link = f"[all results](benchmarks/results/{folder}/table.md)"
    on = max((run["environment"] for run in suites), key=lambda on: on["date"])
    parts = [_fill(f"**Kernels {where}**: {_machine(on)} ({link}).")]
    if "hybrid_loss" in figures:
        parts += loss(figures["hybrid_loss"])
    if "statistics" in figures:
        parts += _statistics(figures["statistics"])
    if "decode" in figures:
        parts += _decoding(figures["decode"])
    if _on_gpu(figures):
        parts += [_bars(run) for run in suites if run["benchmark"] != "hybrid_loss" and run.get("bars")]
    return parts


def loss(run: dict[str, Any]) -> list[str]:
    """Write how long the hybrid loss takes, beside what a user would write."""
    cases = [case for case in run["cases"] if case["status"] == "ok" and "step_ms" in case]
    rows, small = [], []
    for mode, dtype in LOSS_MODES.items():
        of_mode = [case for case in cases if case["mode"] == mode]
        for size in sorted({case["size"] for case in of_mode}, key=lambda size: _dimensions(of_mode, size)["rows"]):
            about, of_size = _dimensions(of_mode, size), {c["contender"]: c for c in of_mode if c["size"] == size}
            ours = min((of_size[name] for name in OURS if name in of_size), key=_taken, default=None)
            if ours is None:
                continue
            if about["rows"] < LOSS_ROWS:
                small.append((about["rows"], _faster(ours, "eager")))
                continue
            rows.append(
                {
                    "embeddings, judgments": f"{about['rows']:,} x {about['columns']:,}, {about['triplets']:,}"
                    + (", target embeddings" if about.get("target_columns") else ""),
                    "dtype": dtype,
                    "eager": _ms(of_size.get("eager")),
                    f"`{ours['contender']}`": _ms(ours),
                    "x eager": _times(ours, "eager"),
                    "with `mask=`": _times(of_size.get(f"{ours['contender']} mask"), "eager"),
                    "x tuned": _times(ours, "eager tuned"),
                    "x compiled": _times(ours, "compile"),
                    "of the products": _of_products(ours),
                    "memory": _memory(ours, of_size.get("eager")),
                }
            )
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row))
    filled = [name for name in names if any(row.get(name) for row in rows)]
    about = [
        "The hybrid loss with its gradient. Eager is written by hand in PyTorch, as a user would: one product, the triplets"
        " gathered, cross-entropy, and a correlation over flat indices of the observed pairs that are made beforehand"
        " ([`peers.py`](bgs_kernels/bench/peers.py))."
    ]
    if "x tuned" in filled:
        about.append("Tuned is the same with the indices of the triplets' pairs made beforehand as well.")
    if "x compiled" in filled:
        about.append("Compiled is the fastest mode of `torch.compile` of eager.")
    if "of the products" in filled:
        about.append("The products are the two full matrix products of a step alone.")
    about.append(
        "Contenders take turns in one process, after their results were compared with float64; a ratio is the median over"
        " rounds."
    )
    parts = [_fill(" ".join(about)), _table([filled, *([row.get(name, "") for name in filled] for row in rows)])]
    missed = [bar for bar in run["bars"] if bar["met"] is False]
    claims = []
    if ratios := [ratio for count, ratio in small if ratio is not None and count >= 16]:
        counts = [count for count, _ in small if count >= 16]
        claims.append(
            f"From {min(counts)} to {max(counts)} embeddings it is {min(ratios):.1f} to {max(ratios):.1f} times as fast as eager."
        )
    if missed:
        claims.append("Requirements that are not met: " + "; ".join(map(_bar, missed)) + ".")
    return [*parts, *([_fill(" ".join(claims))] if claims else [])]


def _statistics(run: dict[str, Any]) -> list[str]:
    rows = [["", "`native`", "SciPy or NumPy", ""]]
    for (size, mode), name in STATISTICS.items():
        some = [c for c in run["cases"] if (c["size"], c["mode"]) == (size, mode) and "step_ms" in c]
        ours = next((case for case in some if case["contender"] == "native"), None)
        peers = [case for case in some if case["contender"] not in ("native", "reference")]
        if ours is None or not peers:
            continue
        best = min(peers, key=_taken)
        ratio = speedup(some, ours, best["contender"]) or _taken(best) / _taken(ours)
        rows.append([name, _ms(ours), f"{_ms(best)} ({best['contender']})", f"{ratio:.1f}x"])
    if len(rows) == 1:
        return []
    return ["Statistics, beside the fastest of what SciPy or NumPy offers:", _table(rows)]


def _decoding(run: dict[str, Any]) -> list[str]:
    ratios = []
    for case in run["cases"]:
        if case["contender"] == "bgs" and "step_ms" in case:
            ratio = speedup(run["cases"], case, run["baselines"][0])
            ratios += [] if ratio is None else [ratio]
    if not ratios:
        return []
    fast = f"{min(ratios):.1f}" + (f" to {max(ratios):.1f}" if len(ratios) > 1 else "")
    return [_fill(f"Video files are decoded and resized {fast} times as fast as by a plain loop over PyAV in one thread.")]


def _bars(run: dict[str, Any]) -> str:
    """List what is asked of a benchmark's figures, and whether they meet it."""
    lines = [f"- {_bar(bar)}{'' if bar['met'] is None else ', met' if bar['met'] else ', missed'}" for bar in run["bars"]]
    return "\n".join([f"Requirements of {run['benchmark']}:", "", *lines])


def _bar(bar: dict[str, Any]) -> str:
    found = "not measured" if bar["found"] is None else f"{bar['found']:.3g}"
    return f"{bar['what']} {bar['required']}: {found}"


def _on_gpu(figures: Figures) -> bool:
    return any(isinstance(run, dict) and "cuda" in run.get("environment", {}) for run in figures.values())


def _machine(on: dict[str, Any]) -> str:
    day = on["date"].split()[0]
    return f"{on['device']}, torch {on['torch']}, {day}, revision {on['revision']}"


def _of_seeds(found: dict[int, dict[str, Any]]) -> list[str]:
    """Write three-way accuracy by seed, and the means of the three measures where no seed is missing."""
    cells = [measure(found[seed]["odd_one_out"]["three_way"]) if seed in found else "" for seed in SEEDS]
    for name in ("three-way accuracy", "two-way accuracy", "RSA Spearman"):
        family, which = MEASURES[name]
        complete = all(seed in found for seed in SEEDS)
        cells.append(fraction(statistics.mean(found[seed][family][which]["value"] for seed in SEEDS)) if complete else "")
    return cells


def _clear(found: Mapping[Any, dict[str, Any]], family: str, which: str) -> tuple[int, int]:
    """Count the runs whose difference from the frozen encoder excludes zero, and all runs."""
    return sum(_excludes_zero(one["difference"][family][which]) for one in found.values()), len(found)


def _excludes_zero(difference: dict[str, Any]) -> bool:
    interval = difference["ci95"]
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _gains(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """List the differences in Spearman's correlation that exclude zero, by mode."""
    by_mode = {}
    for mode in TEXT_MODES:
        gains = [found[mode, seed]["difference"]["rsa"]["spearman"] for seed in SEEDS if (mode, seed) in found]
        by_mode[mode] = [fraction(gain["value"], "+") for gain in gains if _excludes_zero(gain)]
    listed = "; ".join(f"{mode} {', '.join(gains)}" for mode, gains in by_mode.items() if gains)
    return f" ({listed})" if listed else ""


def _dimensions(cases: Iterable[dict[str, Any]], size: str) -> dict[str, Any]:
    return next(case["dimensions"] for case in cases if case["size"] == size)


def _taken(case: dict[str, Any]) -> float:
    """The time of a step, as a graph where there is one, in ms."""
    return float(case.get("graph_ms", case.get("step_ms"))["median_ms"])


def _faster(case: dict[str, Any] | None, baseline: str) -> float | None:
    if case is None:
        return None
    ratio = speedup((), case, baseline, graph=True)
    return speedup((), case, baseline) if ratio is None else ratio


def _times(case: dict[str, Any] | None, baseline: str) -> str:
    ratio = _faster(case, baseline)
    return "" if ratio is None else f"{ratio:.1f}x"


def _of_products(case: dict[str, Any]) -> str:
    ratio = case.get("rates", {}).get("of_products")
    return "" if ratio is None else f"{ratio:.2f}"


def _memory(ours: dict[str, Any], eager: dict[str, Any] | None) -> str:
    if "peak_bytes" not in ours:
        return ""
    own = f"{ours['peak_bytes'] / 2**20:,.1f}"
    return f"{own} MiB" if eager is None or "peak_bytes" not in eager else f"{own} of {eager['peak_bytes'] / 2**20:,.1f} MiB"


def _ms(case: dict[str, Any] | None) -> str:
    if case is None:
        return ""
    taken = _taken(case)
    return f"{taken:,.0f} ms" if taken >= 100 else f"{taken:.3g} ms"


def _share(part: int, whole: int) -> str:
    if part == whole:
        return f"all {whole}"
    return f"none of the {whole}" if part == 0 else f"{part} of {whole}"


def _between(values: Sequence[float], write: Any = "{:,}".format) -> str:
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def _words(number: int) -> str:
    return {2: "Two", 3: "Three", 4: "Four", 5: "Five", 10: "Ten"}.get(number, str(number))


def _fill(paragraph: str) -> str:
    return textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def _command(line: str) -> str:
    return f"```sh\n{line}\n```"
