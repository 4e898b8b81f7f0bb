"""The results in README.md, written from the committed ``benchmarks/results/*/figures.json``: every number in them, and
every claim that goes by numbers, is computed here. ``python -m benchmarks.table`` writes them, ``--check`` compares.
"""

from __future__ import annotations

import statistics
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import fraction, measure, read, speedup

ROOT = Path(__file__).parents[1]

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

WIDTH = 120

Figures = Mapping[str, Any]

NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 10: "Ten"}

TEXT_MODES, SEEDS = ("hybrid", "triplet", "rsa"), (0, 1, 2)

MEASURES = {
    "three-way accuracy": ("odd_one_out", "three_way"),
    "two-way accuracy": ("odd_one_out", "two_way"),
    "RSA Spearman": ("rsa", "spearman"),
    "explained variance": ("rsa", "explained_variance"),
}

LOSS_MODES = {"float32 highest": "float32", "bfloat16": "bfloat16"}

LOSS_ROWS = 250
"""Sizes of fewer embeddings get a sentence, not a row each, down to those of"""

SMALL_ROWS = 16

OURS = ("native", "triton")

EAGER = ("eager", "eager in half")
"""The faster of them is what is compared with."""

STATISTICS = {
    ("spearman of 8M pairs", "float64"): "Spearman's correlation of 8 million pairs",
    ("tau-b of 1M pairs", "float64"): "Kendall's tau-b of 1 million pairs",
    ("5M judgments of 250", "int64"): "counts of 5 million judgments of 250 items",
    ("5M judgments of 1854", "int64"): "counts of 5 million judgments of 1,854 items",
}

NOTHING = "Nothing has been measured on this version yet."

JUDGMENTS = """\
**Human judgments.** {folds}-fold cross-validation over the {items} training clips of the published social-similarity
data, from captions only (all-MiniLM-L6-v2). The held-out judgments of all folds are pooled: {number} a seed. The model
is a linear head that starts as the identity; how strongly it is held there, and for how many epochs, is chosen by
cross-validation within the training clips of each fold. The table gives three-way accuracy with its 95 % bootstrap
interval over clips; two-way accuracy and Spearman's correlation are means over seeds."""

JUDGMENTS_FOUND = """\
Three-way accuracy is above the frozen encoder's in {better} runs. The 95 % interval of the difference excludes zero in
{accuracy} runs; that of the difference in Spearman's correlation does in {spearman}{gains}.{means} The seeds divide the
clips differently; they are not independent samples. A run takes {seconds}:"""

MEANS = """ \
The means of the three modes lie within {apart} of each other; the interval of a single run is at least {wide} wide."""

ANALYSES = """\
**Reliability.** Split halves of the {participants} participants correlate at r = {half}; the reliability of the full
matrix is {all_pairs}, which bounds the correlation of any model at {ceiling} (Pearson). Over all {items} clips,
distances between the frozen caption embeddings correlate with people's at r = {pearson}. They explain {text} of the
variance of held-out clips' dissimilarities; ratings explain {ratings}; {shared} is shared:"""

ANIMATIONS = """\
**Synthetic social animations**, `make train`. A small VideoMAE with random weights is trained on {train} clips, with
{val} for validation, and tested on {test} held-out clips and {number:,} judgments of them. The command takes {seconds},
rendering and evaluation included."""

LOSS = """\
The hybrid loss with its gradient{backend}. Eager is written by hand in PyTorch, as a user would: one product, the
triplets gathered, cross-entropy, and a correlation over flat indices of the observed pairs that are made beforehand
([`peers.py`](bgs_kernels/bench/peers.py)); beside bfloat16, the faster of it and the same with its product in bfloat16.
{columns} Contenders take turns in one process, after their results were
compared with float64; a ratio is the median over rounds."""

LOSS_COLUMNS = {
    "x tuned": "Tuned is the same with the indices of the triplets' pairs made beforehand as well.",
    "x compiled": "Compiled is the fastest mode of `torch.compile` of eager.",
    "of the products": "The products are the two full matrix products of a step alone.",
}

SMALL = "From {least} to {most} embeddings it is {slowest:.1f} to {fastest:.1f} times as fast as eager."

DECODING = "Video files are decoded and resized {ratio} times as fast as by a plain loop over PyAV in one thread."

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
    if not check:
        path.write_text(after, encoding="utf-8")
    elif after != before:
        print(f"{path}: not the results in benchmarks/results; run python -m benchmarks.table", file=sys.stderr)
        return 1
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
        parts += kernels(name, figures, "on the CPU", said=parts)
    for name, figures in on_gpu.items():
        parts += kernels(name, figures, "on a GPU", said=parts)
    return "\n\n".join(parts if on_gpu else [*parts, NO_GPU])


def training(run: dict[str, Any]) -> list[str]:
    """Write what was trained and evaluated, paragraph by paragraph.

    Args:
        run: the section that ``benchmarks.bench_training`` wrote.
    """
    of_name = {case["name"]: case for case in run["cases"] if case["status"] == "ok"}
    text = {(case["mode"], case["seed"]): case for case in of_name.values() if case["run"] == "text"}
    text = dict(sorted(text.items()))  # however often a run was tried
    parts = [_fill(f"Trained and evaluated on {_machine(run['environment'])}.")] if of_name else []
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
    about = {
        "folds": NUMBERS.get(first["folds"], str(first["folds"])),
        "items": first["items"],
        "number": _between([_three_way(one)["n"] for one in found.values()]),
    }
    rows = [["", *(f"seed {seed}" for seed in SEEDS), "mean", "two-way", "RSA Spearman"]]
    frozen = {seed: one["frozen"] for (_, seed), one in found.items()}
    rows.append(["frozen encoder", *_of_seeds(frozen)])
    for mode in TEXT_MODES:
        rows.append([mode, *_of_seeds({seed: one for (its, seed), one in found.items() if its == mode})])
    of_mode = {mode: [found[mode, seed] for seed in SEEDS if (mode, seed) in found] for mode in TEXT_MODES}
    means = ""
    if all(len(some) == len(SEEDS) for some in of_mode.values()):
        centres = [statistics.mean(_three_way(one)["value"] for one in some) for some in of_mode.values()]
        widths = [high - low for low, high in (_three_way(one)["ci95"] for one in found.values())]
        means = MEANS.format(apart=fraction(max(centres) - min(centres)), wide=fraction(min(widths)))
    better = sum(_three_way(one["difference"])["value"] > 0 for one in found.values())
    claims = {
        "better": _share(better, found),
        "accuracy": _share(sum(_clear(one, "odd_one_out", "three_way") for one in found.values()), found),
        "spearman": _share(sum(_clear(one, "rsa", "spearman") for one in found.values()), found),
        "gains": _gains(of_mode),
        "means": means,
        "seconds": _between([case["seconds"] for case in text.values()], _duration),
    }
    command = next(iter(text.values()))["command"]
    return [_fill(JUDGMENTS, **about), _table(rows), _fill(JUDGMENTS_FOUND, **claims), _command(command)]


def analyses(case: dict[str, Any]) -> list[str]:
    """Write what the analyses of the captions found."""
    found = case["found"]
    reliability, variance = found["reliability"][0], found["variance"]
    about = {name: fraction(reliability[name], digits=2) for name in ("half", "all_pairs", "ceiling")}
    about |= {"participants": reliability["participants"], "items": variance["items"]}
    about |= {name: measure(variance["explained"][name]) for name in ("text", "ratings")}
    about |= {"shared": measure(variance["parts"]["text + ratings"]), "pearson": measure(found["rsa"]["pearson"])}
    return [_fill(ANALYSES, **about), _command(case["command"])]


def animations(case: dict[str, Any]) -> list[str]:
    """Write what ``make train`` found."""
    found, clips = case["found"], case["found"]["clips"]
    rows = [["", "before training", "fine-tuned", "difference", "ceiling"]]
    for name, (family, which) in MEASURES.items():
        before, after, gain = (each[family][which] for each in (found["frozen"], found, found["difference"]))
        ceiling = (after.get("ceiling") or {}).get("upper")
        bound = "" if ceiling is None else fraction(ceiling)
        rows.append([name, measure(before), measure(after), measure(gain, "+"), bound])
    number, seconds = _three_way(found)["n"], _duration(case["seconds"])
    return [_fill(ANIMATIONS, number=number, seconds=seconds, **clips), _table(rows)]


def kernels(folder: str, figures: Figures, where: str, *, said: Collection[str]) -> list[str]:
    """Write what was measured of the kernels on one device.

    Args:
        folder: the name of its folder.
        figures: its results.
        where: "on the CPU" or "on a GPU".
        said: the paragraphs before: what explains the table of one device explains that of the next.
    """
    suites = [run for name, run in figures.items() if isinstance(run, dict) and "cases" in run and name != "training"]
    if not suites:
        return []
    link = f"[all results](benchmarks/results/{folder}/table.md)"
    on = max((run["environment"] for run in suites), key=lambda on: on["date"])
    parts = [_fill(f"**Kernels {where}**: {_machine(on)} ({link}).")]
    if "hybrid_loss" in figures:
        paragraphs = loss(figures["hybrid_loss"])
        parts += [each for each in paragraphs[:1] if each not in said] + paragraphs[1:]
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
    backends = {case["contender"] for case in cases if case["contender"] in OURS}
    rows, small = [], []
    for mode, dtype in LOSS_MODES.items():
        of_mode = [case for case in cases if case["mode"] == mode]
        for size in sorted({case["size"] for case in of_mode}, key=lambda size: _dimensions(of_mode, size)["rows"]):
            about, of_size = _dimensions(of_mode, size), {c["contender"]: c for c in of_mode if c["size"] == size}
            ours = min((of_size[name] for name in OURS if name in of_size), key=_taken, default=None)
            eager = min((of_size[name] for name in EAGER if name in of_size), key=_taken, default=None)
            if ours is None:
                continue
            if about["rows"] < LOSS_ROWS:
                ratio = _faster(ours, "eager")
                small += [(about["rows"], ratio)] if ratio is not None and about["rows"] >= SMALL_ROWS else []
                continue
            rows.append(
                {
                    "embeddings, judgments": f"{about['rows']:,} x {about['columns']:,}, {about['triplets']:,}"
                    + (", target embeddings" if about.get("target_columns") else ""),
                    "dtype": dtype,
                    "eager": _ms(eager),
                    "ours": _ms(ours) + (f" (`{ours['contender']}`)" if len(backends) > 1 else ""),
                    "x eager": _times(ours, "eager"),
                    "x eager, `mask=`": _times(of_size.get(f"{ours['contender']} mask"), "eager"),
                    "x tuned": _times(ours, "eager tuned"),
                    "x compiled": _times(ours, "compile"),
                    "of the products": _of_products(ours),
                    "memory": _memory(ours, eager),
                }
            )
    if not rows:
        return []
    filled = [name for name in rows[0] if any(row[name] for row in rows)]
    columns = " ".join(sentence for name, sentence in LOSS_COLUMNS.items() if name in filled)
    backend = f", by backend `{next(iter(backends))}`" if len(backends) == 1 else ""
    table = _table([filled, *([row[name] for name in filled] for row in rows)])
    claims = []
    if small:
        counts, ratios = zip(*small, strict=True)
        extremes = {"least": min(counts), "most": max(counts), "slowest": min(ratios), "fastest": max(ratios)}
        claims.append(SMALL.format(**extremes))
    if missed := [bar for bar in run.get("bars", []) if bar["met"] is False]:
        claims.append("Requirements that are not met: " + "; ".join(map(_bar, missed)) + ".")
    return [_fill(LOSS, columns=columns, backend=backend), table, *([_fill(" ".join(claims))] if claims else [])]


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
    return [_fill(DECODING, ratio=fast)]


def _bars(run: dict[str, Any]) -> str:
    """List what is asked of a benchmark's figures, and whether they meet it."""
    verdicts = {True: ", met", False: ", missed", None: ""}
    lines = [f"- {_bar(bar)}{verdicts[bar['met']]}" for bar in run["bars"]]
    return "\n".join([f"Requirements of {run['benchmark']}:", "", *lines])


def _bar(bar: dict[str, Any]) -> str:
    found = "not measured" if bar["found"] is None else f"{bar['found']:.3g}"
    return f"{bar['what']} {bar['required']}: {found}"


def _on_gpu(figures: Figures) -> bool:
    return any(isinstance(run, dict) and "cuda" in run.get("environment", {}) for run in figures.values())


def _machine(on: dict[str, Any]) -> str:
    day = on["date"].split()[0]
    shared = ", while other work was running" if on["shared_machine"] else ""
    return f"{on['device']}, torch {on['torch']}, {day}, revision {on['revision']}{shared}"


def _of_seeds(found: dict[int, dict[str, Any]]) -> list[str]:
    """Write three-way accuracy by seed, and the means of the three measures where no seed is missing."""
    cells = [measure(_three_way(found[seed])) if seed in found else "" for seed in SEEDS]
    for name in ("three-way accuracy", "two-way accuracy", "RSA Spearman"):
        family, which = MEASURES[name]
        values = [found[seed][family][which]["value"] for seed in SEEDS if seed in found]
        cells.append(fraction(statistics.mean(values)) if len(values) == len(SEEDS) else "")
    return cells


def _three_way(found: dict[str, Any]) -> dict[str, Any]:
    three_way: dict[str, Any] = found["odd_one_out"]["three_way"]
    return three_way


def _clear(found: dict[str, Any], family: str, which: str) -> bool:
    """Say whether the interval of a difference from the frozen encoder excludes zero."""
    interval = found["difference"][family][which]["ci95"]
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _gains(of_mode: Mapping[str, list[dict[str, Any]]]) -> str:
    """List the differences in Spearman's correlation that exclude zero, by mode."""
    listed = []
    for mode, found in of_mode.items():
        clear = [one["difference"]["rsa"]["spearman"]["value"] for one in found if _clear(one, "rsa", "spearman")]
        listed += [f"{mode} {', '.join(fraction(value, '+') for value in clear)}"] if clear else []
    return f" ({'; '.join(listed)})" if listed else ""


def _dimensions(cases: Iterable[dict[str, Any]], size: str) -> dict[str, Any]:
    return next(case["dimensions"] for case in cases if case["size"] == size)


def _taken(case: dict[str, Any]) -> float:
    """The time of a step, as a graph where there is one, in ms."""
    return float(case.get("graph_ms", case["step_ms"])["median_ms"])


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
    of = f" of {eager['peak_bytes'] / 2**20:,.1f}" if eager is not None and "peak_bytes" in eager else ""
    return f"{own}{of} MiB"


def _ms(case: dict[str, Any] | None) -> str:
    if case is None:
        return ""
    taken = _taken(case)
    return f"{taken:,.0f} ms" if taken >= 100 else f"{taken:.3g} ms"


def _share(part: int, of: Collection[Any]) -> str:
    if part == len(of):
        return f"all {part}"
    return f"{part or 'none'} of the {len(of)}"


def _between(values: Sequence[float], write: Any = "{:,}".format) -> str:
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def _fill(paragraph: str, **figures: Any) -> str:
    filled = paragraph.format(**figures) if figures else paragraph
    return textwrap.fill(filled, WIDTH, break_long_words=False, break_on_hyphens=False)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def _command(line: str) -> str:
    return f"```sh\n{line}\n```"
