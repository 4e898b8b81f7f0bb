"""The table's ratios are those of the same size and mode, and what was not measured is said with its reason."""

import json

import pytest

from benchmarks import table


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


@pytest.fixture
def run():
    launched = {"kernels": 1, "memsets": 2, "copies": 0, "names": {}}
    return {
        "benchmark": "a loss",
        "environment": {
            "device": "a device",
            "torch": "2.0",
            "revision": "abc",
            "date": "today",
            "threads": 1,
            "cores": 2,
            "busy_before": 0.5,
            "shared_machine": True,
        },
        "baselines": ["reference", "compile"],
        "ceilings": {"bytes_per_second": 4e12, "flops": {"bfloat16": 8e14}, "gemm_size": 8192, "copy_bytes": 1},
        "cases": [
            case("large", 1000, "reference", 12.0),
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
                rates={"tflops": 123.4, "gb_per_second": 1.0, "floor_ms": 1.0, "share_of_floor": 0.8},
            ),
            case("small", 10, "fused", 0.5),
            case("small", 10, "reference", 1.0),
            case("small", 10, "reference", 100.0, mode="float32"),
            {"size": "huge", "mode": "bfloat16", "contender": "reference", "status": "skipped", "reason": "too big"},
        ],
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
    assert table.speedup(cases, cases[2], "reference") == 8.0
    assert table.speedup(cases, cases[2], "compile") == 4.0
    assert table.speedup(cases, cases[3], "reference") == 2.0
    assert table.speedup(cases, cases[3], "compile") is None
    assert table.speedup(cases, cases[-1], "reference") is None


def test_a_row_holds_what_was_measured(run):
    row = cells(table.section(run), "large", "fused")
    assert row[2:] == ["1.5", "8.00", "4.00", "1.25", "1 2m + 1", "3", "1.5", "123", "80%"]


def test_columns_that_a_run_leaves_empty_are_left_out(run):
    assert "forward" not in header(table.section(run))
    run["cases"][0]["forward_ms"] = {"median_ms": 2.0}
    text = table.section(run)
    assert header(text)[:6] == ["size", "contender", "step ms", "x reference", "x compile", "forward"]
    assert cells(text, "large", "reference")[5] == "2" and cells(text, "large", "fused")[5] == ""


def test_contenders_that_took_turns_are_compared_by_rounds(run):
    run["cases"][2]["faster_than"] = {"reference": {"median": 7.5}}
    run["cases"][2]["graph_faster_than"] = {"reference": {"median": 9.0}}
    run["cases"][2]["chosen"] = "triton"
    row = dict(zip(header(table.section(run)), cells(table.section(run), "large", "fused (triton)"), strict=True))
    assert (row["x reference"], row["graph x reference"]) == ("7.50", "9.00")
    assert row["x compile"] == ""  # not in the same turns


def test_requirements_are_listed(run):
    run["bars"] = [
        {"what": "speed", "required": ">= 2", "found": 2.5, "met": True, "cases": 3},
        {"what": "memory", "required": "<= 1", "found": 1.25, "met": False, "cases": 1},
        {"what": "other", "required": "<= 1", "found": None, "met": None, "cases": 0},
    ]
    text = table.section(run)
    assert "- speed >= 2: 2.5, met (3 cases)" in text
    assert "- memory <= 1: 1.25, **missed** (1 case)" in text
    assert "- other <= 1: not measured" in text


def test_sizes_ascend_and_modes_are_apart(run):
    text = table.section(run)
    assert text.index("| small | fused") < text.index("| large | reference")
    assert text.index("**bfloat16**") < text.index("**float32**") < text.index("| small | reference | 100 |")


def test_what_was_not_measured_is_said(run):
    text = table.section(run)
    assert "- skipped: too big: huge bfloat16 reference" in text
    assert "Other work was running" in text
    run["environment"]["shared_machine"] = False
    assert "Other work was running" not in table.section(run)


def test_a_folder_gets_a_table_and_a_plot(run, tmp_path):
    pytest.importorskip("matplotlib")
    run["cases"] += [case(f"a size with a long name {n}", n, "fused", 1.0, mode=f"mode {n}") for n in range(5)]
    (tmp_path / "loss.json").write_text(json.dumps(run))
    assert table.main([str(tmp_path)]) == 0
    assert "(loss.png)" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "loss.png").stat().st_size > 0


def test_a_folder_without_results_is_an_error(tmp_path, capsys):
    assert table.main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
