"""The tables' ratios are those of the same size and mode, and what was not measured is said with its reason."""

import json
from pathlib import Path

import pytest

from benchmarks import table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def case(size, rows, contender, step, *, mode="bfloat16", **rest):
    return {
        "size": size,
        "mode": mode,
        "contender": contender,
        "dimensions": {"rows": rows},
        "status": "ok",
        "step_ms": {"median_ms": step, "low_ms": step, "high_ms": step, "runs": 5},
        **rest,
    }


def environment(**rest):
    return {
        "device": "a device",
        "torch": "2.0",
        "triton": None,
        "revision": "abc",
        "date": "2020-01-01 00:00 UTC",
        "threads": 1,
        "cores": 2,
        "busy_before": 0.5,
        "shared_machine": True,
        **rest,
    }


@pytest.fixture
def run():
    launched = {"kernels": 1, "memsets": 2, "copies": 0, "names": {}}
    return {
        "benchmark": "hybrid_loss",
        "environment": environment(),
        "definitions": {"eager": "written by hand"},
        "baselines": ["eager", "compile"],
        "bars": [
            {"what": "speed", "required": ">= 2", "found": 2.5, "met": True, "cases": 3},
            {"what": "memory", "required": "<= 1", "found": 1.25, "met": False, "cases": 1},
            {"what": "other", "required": "<= 1", "found": None, "met": None, "cases": 0},
        ],
        "cases": [
            case("large", 1000, "eager", 12.0),
            case("large", 1000, "compile", 6.0),
            case(
                "large",
                1000,
                "fused",
                1.5,
                graph_ms={"median_ms": 1.25},
                launches={"forward": launched, "backward": {**launched, "memsets": 0}},
                peak_bytes=3 << 20,
                peak_over_gradient=1.5,
                rates={"tflops": 123.4, "gb_per_second": 1.0, "share_of_floor": 0.8, "of_products": 1.25},
                revision="def",
            ),
            case("small", 10, "fused", 0.5),
            case("small", 10, "eager", 100.0, mode="float32"),
            case("small", 10, "eager", 1.0),
            {"size": "huge", "mode": "bfloat16", "contender": "eager", "status": "skipped", "reason": "too big"},
        ],
    }


@pytest.fixture
def figures(run):
    evaluation = {
        "odd_one_out": {"three_way": {"value": 0.6, "ci95": [0.5, 0.7], "n": 9}},
        "rsa": {"spearman": {"value": 0.4, "ci95": [0.3, 0.5], "n": 9}},
    }
    found = {**evaluation, "frozen": evaluation, "difference": evaluation}
    trained = {"name": "make train", "run": "make-train", "status": "ok", "seconds": 93.4, "found": found}
    other = {"name": "analyses", "run": "analyses", "status": "skipped", "reason": "no data"}
    return {
        "ceilings": {
            "environment": environment(),
            "bytes_per_second": 4e12,
            "flops": {"bfloat16": 8e14},
            "gemm_size": 8192,
            "copy_bytes": 1,
        },
        "statistics": {**run, "benchmark": "statistics", "bars": [], "cases": run["cases"][:2]},
        "hybrid_loss": run,
        "training": {"benchmark": "training", "environment": environment(), "cases": [trained, other]},
        "steps": {
            "parity": {"status": "ok", "seconds": 12.0},
            "lora": {"status": "failed", "reason": "made\nto raise"},
        },
    }


def cells(text, size, contender):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {size} | {contender} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def header(text):
    return [cell.strip() for cell in next(line for line in text.splitlines() if line.startswith("| size")).split("|")][
        1:-1
    ]


def test_ratios_are_to_the_baseline_of_the_same_size_and_mode(run):
    cases = run["cases"]
    assert table.speedup(cases, cases[2], "eager") == 8.0
    assert table.speedup(cases, cases[2], "compile") == 4.0
    assert table.speedup(cases, cases[3], "eager") == 2.0
    assert table.speedup(cases, cases[3], "compile") is None
    assert table.speedup(cases, cases[-1], "eager") is None


def test_a_row_holds_what_was_measured(run):
    text = table.section(run)
    row = dict(zip(header(text), cells(text, "large", "fused"), strict=True))
    assert row == {
        "size": "large",
        "contender": "fused",
        "step ms": "1.5",
        "x eager": "8.00",
        "x compile": "4.00",
        "graph": "1.25",
        "of products": "1.25",
        "of floor": "80%",
        "TFLOP/s": "123",
        "peak MiB": "3",
        "of gradient": "1.5",
        "kernels": "1 2m + 1",
    }


def test_columns_that_a_run_leaves_empty_are_left_out(run):
    assert "CPU ms" not in header(table.section(run))
    run["cases"][0]["cpu_ms"] = {"median_ms": 2.0}
    text = table.section(run)
    assert header(text)[-1] == "CPU ms"
    assert cells(text, "large", "eager")[-1] == "2" and cells(text, "large", "fused")[-1] == ""


def test_contenders_that_took_turns_are_compared_by_rounds(run):
    run["cases"][2]["faster_than"] = {"eager": {"median": 7.5}}
    run["cases"][2]["graph_faster_than"] = {"eager": {"median": 9.0}}
    run["cases"][2]["chosen"] = "triton"
    row = dict(zip(header(table.section(run)), cells(table.section(run), "large", "fused (triton)"), strict=True))
    assert (row["x eager"], row["graph x eager"]) == ("7.50", "9.00")
    assert row["x compile"] == ""  # not in the same turns


def test_requirements_are_listed(run):
    text = table.section(run)
    assert "- speed >= 2: 2.5, met (3 cases)\n" in text
    assert "- memory <= 1: 1.25, **missed**\n" in text
    assert "- other <= 1: not measured\n" in text


def test_sizes_ascend_and_modes_are_apart(run):
    text = table.section(run)
    assert text.index("| small | fused") < text.index("| large | eager")
    assert text.index("**bfloat16**") < text.index("**float32**") < text.index("| small | eager | 100 |")


def test_what_was_not_measured_is_said(run):
    text = table.section(run)
    assert "- skipped: too big: huge bfloat16 eager" in text
    assert "- def: large bfloat16 fused" in text
    assert "other work was running" in text
    run["environment"]["shared_machine"] = False
    assert "other work was running" not in table.section(run)


def test_one_file_holds_all_benchmarks(figures):
    text = table.markdown(figures)
    assert text.count("copy 4000 GB/s") == 1 and text.count("800 TFLOP/s") == 1
    assert (
        text.index("## hybrid_loss") < text.index("## statistics") < text.index("## training") < text.index("## steps")
    )
    assert "| make train | 93 | .600 -> .600 | +.600 [+.500, +.700] |" in text
    assert "- skipped: no data: analyses" in text
    assert "| lora | failed |  | made to raise |" in text


def test_the_compact_table_fits_a_terminal(figures):
    run = figures["hybrid_loss"]
    run["cases"][2]["size"] = "a long name, " * 4
    text = table.compact(figures)
    assert max(map(len, text.splitlines())) <= table.WIDTH
    (heading, *_) = [line.split() for line in text.splitlines() if line.startswith("  size")]
    assert "eager" in heading and "compile" not in heading  # there was no room for the second
    assert "products" in heading and "floor" not in heading


def test_the_compact_table_ends_with_what_matters_of_the_whole(figures):
    lines = table.compact(figures).splitlines()
    (row,) = [line.split() for line in lines if line.split()[:3] == ["large", "bfloat16", "fused"]]
    assert row[3:] == ["1.5", "1.25", "8.00", "4.00", "1.25", "3"]  # ms, graph, x eager, x compile, of products, MiB
    places = [lines.index(line) for line in ("not measured", "requirements", "  step    status  seconds  reason")]
    assert (
        places == sorted(places) and places[0] > lines.index("  hybrid_loss: skipped: too big: huge bfloat16 eager") - 2
    )
    assert "  hybrid_loss: memory <= 1: 1.25, MISSED" in lines
    assert "  training: skipped: no data: analyses" in lines
    assert lines[-1].split() == ["lora", "failed", "made", "to", "raise"]


def test_many_cases_of_one_reason_are_not_all_named(figures):
    bare = figures["hybrid_loss"]["cases"][-1]
    figures["hybrid_loss"]["cases"] += [bare | {"size": f"size {n}"} for n in range(10)]
    assert "too big: huge bfloat16 eager, size 0 bfloat16 eager" in table.compact(figures)
    assert "size 9" not in table.compact(figures) and "and 7 more" in table.compact(figures)
    assert "size 9" in table.markdown(figures)


def test_an_empty_file_has_a_table(capsys, tmp_path):
    (tmp_path / "figures.json").write_text("{}")
    assert table.main([str(tmp_path), "--compact"]) == 0
    assert "figures.png" not in (tmp_path / "table.md").read_text()


def test_a_folder_gets_a_table_and_a_plot(figures, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = figures["hybrid_loss"]
    run["cases"] += [case(f"a size with a long name {n}", n, "fused", 1.0, mode=f"mode {n}") for n in range(5)]
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    assert table.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json", "figures.png", "table.md"}
    assert "(figures.png)" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == ""


def test_a_folder_without_results_is_an_error(tmp_path, capsys):
    assert table.main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "figures.json").write_text('{"cases": []}')
    assert table.main([str(tmp_path)]) == 1
    assert "expected a section for each benchmark" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/figures.json")), ids=lambda path: path.parent.name)
def test_committed_tables_are_those_of_the_figures(path):
    plot = table.PLOT if (path.parent / table.PLOT).exists() else None
    written = (path.parent / table.TABLE).read_text(encoding="utf-8")
    assert "x reference" not in written
    assert written == table.markdown(table.read(path.parent), plot=plot), "run python -m benchmarks.table on the folder"
