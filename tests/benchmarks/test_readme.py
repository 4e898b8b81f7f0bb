"""The results in README.md are those of the committed figures, and its claims are what the figures say."""

import copy
import json
import re
from pathlib import Path

import pytest

from benchmarks import readme, table

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {
    "device": "Test CPU, 2 cores",
    "torch": "2.0",
    "revision": "abc",
    "date": "2020-01-01 00:00 UTC",
    "threads": 2,
    "cores": 2,
    "busy_before": 0.0,
    "shared_machine": False,
}


def measured(value, around=0.1, **rest):
    return {"value": value, "ci95": [value - around, value + around], "n": 900, **rest}


def evaluation(three_way, spearman, around=0.1):
    return {
        "odd_one_out": {"three_way": measured(three_way, around), "two_way": measured(three_way + 0.1, around)},
        "rsa": {"spearman": measured(spearman, around), "explained_variance": measured(spearman**2, around)},
    }


def trained(three_way=0.63, spearman=0.42, *, accuracy=0.02, gain=0.05, around=0.04):
    return {
        **evaluation(three_way, spearman),
        "frozen": evaluation(three_way - accuracy, spearman - gain),
        "difference": evaluation(accuracy, gain, around),
        "items": 200,
        "judgments": 24_096,
        "clips": {"train": 384, "val": 96, "test": 120},
        "folds": 5,
    }


def text_run(mode, seed, **found):
    return {
        "name": f"text, {mode}, seed {seed}",
        "run": "text",
        "mode": mode,
        "seed": seed,
        "command": f"python -m bgs.train --seed {seed} --mode {mode}",
        "status": "ok",
        "seconds": 30.0 + seed,
        "found": trained(**found),
    }


ANALYSES = {
    "name": "analyses",
    "run": "analyses",
    "command": "python -m bgs.evaluate",
    "status": "ok",
    "seconds": 20.0,
    "found": {
        "rsa": {"pearson": measured(0.483)},
        "reliability": [{"participants": 215, "half": 0.333, "all_pairs": 0.461, "ceiling": 0.679}],
        "variance": {
            "items": 200,
            "explained": {"text": measured(0.234), "ratings": measured(0.127)},
            "parts": {"text + ratings": measured(0.099)},
        },
    },
}


def timed(contender, ms, *, size="published", rows=250, mode="float32 highest", eager=None, **rest):
    ratios = {"faster_than": {"eager": {"median": eager}}} if eager else {}
    return {
        "size": size,
        "mode": mode,
        "contender": contender,
        "dimensions": {"rows": rows, "columns": 128, "triplets": 24_096, "target_columns": 0},
        "status": "ok",
        "step_ms": {"median_ms": ms},
        "peak_bytes": int(ms * (1 << 20)),
        **ratios,
        **rest,
    }


@pytest.fixture
def figures():
    runs = [text_run(mode, seed) for seed in (0, 1, 2) for mode in ("hybrid", "triplet", "rsa")]
    making = {"name": "make train", "run": "make-train", "command": "make train", "status": "ok", "seconds": 174.2}
    loss = [
        timed("eager", 3.0, eager=1.0),
        timed("native", 0.625, eager=4.8, rates={"of_products": 1.25}),
        timed("native mask", 0.75, eager=4.0),
        timed("eager", 1.0, size="16 rows", rows=16),
        timed("native", 0.25, size="16 rows", rows=16, eager=4.0),
        timed("native", 0.25, size="64 rows", rows=64, eager=2.0),
        {**timed("compile", 1.0), "status": "failed", "reason": "no compiler"},
    ]
    bars = [
        {"what": "x eager", "required": ">= 5", "found": 4.8, "met": False, "cases": 1},
        {"what": "memory", "required": "<= 1", "found": 0.5, "met": True, "cases": 1},
    ]
    ranks = [
        timed(name, ms, size="spearman of 8M pairs", mode="float64") for name, ms in (("scipy", 4000), ("native", 400))
    ]
    return {
        "hybrid_loss": {
            "benchmark": "hybrid_loss",
            "environment": ENVIRONMENT,
            "baselines": ["eager"],
            "bars": bars,
            "cases": loss,
        },
        "statistics": {"benchmark": "statistics", "environment": ENVIRONMENT, "baselines": ["scipy"], "cases": ranks},
        "training": {
            "benchmark": "training",
            "environment": ENVIRONMENT,
            "cases": [*runs, ANALYSES, {**making, "found": trained()}],
        },
    }


@pytest.fixture
def written(tmp_path):
    """Write the results of devices into a README and give its results, their lines joined."""

    def written(**devices):
        (tmp_path / "README.md").write_text(f"before\n{readme.BEGIN}\noutdated\n{readme.END}\nafter\n")
        for name, figures in devices.items():
            folder = tmp_path / "benchmarks" / "results" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "figures.json").write_text(json.dumps(figures))
        assert readme.main(tmp_path) == 0
        text = (tmp_path / "README.md").read_text()
        assert text.startswith(f"before\n{readme.BEGIN}\n") and text.endswith(f"\n{readme.END}\nafter\n")
        assert "outdated" not in text
        return " ".join(text.split())

    return written


def on_gpu(figures):
    """The same figures as if of a GPU, without what was trained."""
    figures = copy.deepcopy({name: figures[name] for name in ("hybrid_loss",)})
    run = figures["hybrid_loss"]
    run["environment"] |= {"device": "Test GPU", "cuda": "13.0"}
    for case in run["cases"]:
        case["contender"] = case["contender"].replace("native", "triton")
        case["graph_ms"] = {"median_ms": case["step_ms"]["median_ms"] / 10}
    run["cases"].append(timed("native", 5.0, eager=0.6))
    figures["lora"] = {**run, "benchmark": "lora", "bars": [{**run["bars"][1], "what": "x peft"}], "cases": []}
    return figures


def test_the_committed_results_are_those_of_the_figures():
    assert readme.main(ROOT, check=True) == 0, "run python -m benchmarks.table"


def test_a_change_of_one_figure_is_found(figures, written, tmp_path, capsys):
    written(cpu=figures)
    assert readme.main(tmp_path, check=True) == 0
    figures["hybrid_loss"]["cases"][0]["step_ms"]["median_ms"] = 3.5
    (tmp_path / "benchmarks/results/cpu/figures.json").write_text(json.dumps(figures))
    before = (tmp_path / "README.md").read_text()
    assert readme.main(tmp_path, check=True) == 1 and "python -m benchmarks.table" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == before


def test_a_readme_without_markers_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("no results here\n")
    with pytest.raises(ValueError, match="results: begin"):
        readme.main(tmp_path)


def test_the_command_line_reaches_it(capsys):
    assert table.main(["--check"]) == 0
    for wrong in (["--compact"], [str(ROOT), "--check"]):
        with pytest.raises(SystemExit):
            table.main(wrong)


def test_without_results_it_is_said_that_there_are_none(written):
    text = written()
    assert readme.NOTHING in text and "Kernels on a GPU.** Nothing has been measured yet" in text


def test_what_people_judged(figures, written):
    text = written(cpu=figures)
    assert "Trained and evaluated on Test CPU, 2 cores, torch 2.0, 2020-01-01, revision abc." in text
    assert "Five-fold cross-validation over the 200 training clips" in text and "are pooled: 900 a seed" in text
    one = ".630 [.530, .730]"
    assert f"| hybrid | {one} | {one} | {one} | .630 | .730 | .420 |" in text
    assert "| frozen encoder | .610 [.510, .710] |" in text
    assert "A run takes 30 s to 32 s: ```sh python -m bgs.train --seed 0 --mode hybrid ```" in text


def test_what_the_analyses_found(figures, written):
    text = written(cpu=figures)
    assert (
        "Split halves of the 215 participants correlate at r = .33; the reliability of the full matrix is .46" in text
    )
    assert "at .68 (Pearson). Over all 200 clips" in text and "at r = .483 [.383, .583]. They explain .234" in text


def test_what_make_train_found(figures, written):
    text = written(cpu=figures)
    assert "trained on 384 clips, with 96 for validation, and tested on 120 held-out clips and 900 judgments" in text
    assert "The command takes 2 min 54 s" in text
    assert "| three-way accuracy | .610 [.510, .710] | .630 [.530, .730] | +.020 [-.020, +.060] | |" in text


def test_claims_about_differences_are_counted(figures, written):
    text = written(cpu=figures)
    assert "above the frozen encoder's in all 9 runs" in text
    assert (
        "excludes zero in none of the 9 runs; that of the difference in Spearman's correlation does in all 9 (hybrid"
        in text
    )
    assert "lie within .000 of each other; the interval of a single run is at least .200 wide" in text
    cases = figures["training"]["cases"]
    for case in cases[1:9]:
        case["found"] = trained(accuracy=-0.05, gain=0.01)
    text = written(cpu=figures)
    assert "above the frozen encoder's in 1 of the 9 runs" in text
    assert "excludes zero in 8 of the 9 runs;" in text and "does in 1 of the 9 (hybrid +.050)." in text


def test_a_run_that_is_missing_leaves_its_means_out(figures, written):
    missing = figures["training"]["cases"][0]
    missing.update(status="failed", reason="exit status 1")
    text = written(cpu=figures)
    assert "| hybrid | | .630 [.530, .730] | .630 [.530, .730] | | | |" in text
    assert "in all 8 runs" in text and "The means of the three modes" not in text


def test_kernels_on_a_cpu(figures, written):
    text = written(cpu=figures)
    assert "**Kernels on the CPU**: Test CPU, 2 cores" in text and "(benchmarks/results/cpu/table.md)" in text
    assert "| 250 x 128, 24,096 | float32 | 3 ms | 0.625 ms | 4.8x | 4.0x | 1.25 | 0.6 of 3.0 MiB |" in text
    assert "x compiled" not in text and "`torch.compile`" not in text  # it failed
    assert "From 16 to 64 embeddings it is 2.0 to 4.0 times as fast as eager." in text
    assert "Requirements that are not met: x eager >= 5: 4.8." in text
    assert "| Spearman's correlation of 8 million pairs | 400 ms | 4,000 ms (scipy) | 10.0x |" in text


def test_what_explains_a_table_is_said_once_but_every_claim_of_a_device(figures, written):
    text = written(one=figures, two=figures)
    assert text.count("Eager is written by hand") == 1
    assert text.count("From 16 to 64 embeddings") == text.count("Requirements that are not met") == 2


def test_the_command_of_the_runs_does_not_depend_on_which_came_last(figures, written):
    cases = figures["training"]["cases"]
    for case in cases:
        if case["run"] == "text":
            case["command"] = f"of {case['mode']}, {case['seed']}"
    before = written(cpu=figures)
    cases.append(cases.pop(0))
    assert written(cpu=figures) == before and "of hybrid, 0" in before


def test_a_gpu_has_its_own_table(figures, written):
    text = written(cpu=figures, gpu=on_gpu(figures))
    assert text.count("**Kernels on a GPU**: Test GPU") == 1 and "Nothing has been measured" not in text
    assert "| 250 x 128, 24,096 | float32 | 0.3 ms | 0.0625 ms (`triton`) | 4.8x |" in text
    assert "Requirements of lora: - x peft <= 1: 0.5, met" in text
    assert text.index("on the CPU**") < text.index("on a GPU**")


def test_other_work_on_the_machine_is_said(figures, written):
    assert "other work" not in written(cpu=figures)
    figures["training"]["environment"] = ENVIRONMENT | {"shared_machine": True}
    assert "revision abc, while other work was running." in written(cpu=figures)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_claim_no_speed_beside_the_results(page):
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(readme.BEGIN)
    prose = " ".join((head + rest.partition(readme.END)[2]).split())
    claims = re.findall(r"[^.]*(?:times as fast|times faster|\d ?x as fast|eager PyTorch)[^.]*", prose)
    assert not claims
