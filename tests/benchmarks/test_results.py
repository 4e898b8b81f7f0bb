"""The results file holds every case once, is continued where it ended, and is of one device; requirements are
computed.
"""

import json
import logging

import pytest
import torch

from benchmarks import ceilings, command, environment, results, runner

CPU = torch.device("cpu")
HERE = {"device": "a device", "torch": "2.0", "triton": None, "revision": "abc"}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Where the tests run, as far as figures belong to it."""
    monkeypatch.setattr(environment, "describe", lambda device: dict(HERE))
    monkeypatch.setattr(environment, "device_name", lambda device: HERE["device"])
    monkeypatch.setattr(environment, "_version", HERE.get)
    monkeypatch.setattr(environment, "revision", lambda: HERE["revision"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "figures.json"


def opened(path, benchmark="it", **rest):
    return results.Results(
        results.Figures(path, CPU),
        benchmark=benchmark,
        definitions={},
        baselines={"slow": ("slow",), "compile": ("compile",)},
        about=lambda what: {"dimensions": {"rows": 3}},
        rates=lambda case, ceilings: {"tflops": 1.0} | ceilings,
        bars=lambda cases: [results.bar("cases", len(cases), least=2, over=len(cases))],
        **rest,
    )


@pytest.fixture
def made(path):
    return opened(path)


def what(*names, kind="time"):
    return {"kind": kind, "size": "small", "mode": "fast", "contenders": list(names)}


def measured(ms, **rest):
    return {"status": "ok", "step_ms": {"median_ms": ms}, **rest}


def asked(made, *names, kind="time"):
    """Name those that are measured of a job."""
    return [job.what["contenders"] for job in made.remaining([runner.Job(what(*names, kind=kind), 1.0, "p")])]


SKIPPED = {"status": "skipped", "reason": "no time"}
FAILED = {"status": "failed", "reason": "RuntimeError: no"}


def test_a_comparison_gives_one_entry_for_each_contender(made, path):
    made.record(what("a", "b"), {"contenders": {"a": measured(1.0), "b": {"status": "wrong", "reason": "no"}}})
    written = json.loads(path.read_text())["it"]
    first, second = written["cases"]
    assert first["contender"] == "a" and first["rates"] == {"tflops": 1.0} and first["dimensions"] == {"rows": 3}
    assert [case["contender"] for case in made.wrong()] == ["b"] and "rates" not in second
    assert written["bars"] == [{"what": "cases", "required": ">= 2", "found": 2, "met": True, "cases": 2}]


def test_an_outcome_without_contenders_is_that_of_all(made):
    made.record(what("a", "b"), SKIPPED)
    assert [(case["contender"], case["reason"]) for case in made.content["cases"]] == [
        ("a", "no time"),
        ("b", "no time"),
    ]


def test_every_figure_is_said_when_it_is_recorded(made, caplog):
    caplog.set_level(logging.INFO)
    made.record(what("a"), {"contenders": {"a": measured(1.5, faster_than={"slow": {"median": 4.0}})}})
    made.record(what("b"), FAILED)
    assert "small, fast, a: 1.5 ms, 4.00x slow" in caplog.text
    assert "small, fast, b: failed: RuntimeError: no" in caplog.text


def test_runs_of_other_benchmarks_are_kept(made, path):
    made.record(what("a"), {"contenders": {"a": measured(1.0)}})
    other = opened(path, "other")
    other.record(what("b"), {"contenders": {"b": measured(2.0)}})
    made.record(what("c"), {"contenders": {"c": measured(3.0)}})
    written = json.loads(path.read_text())
    assert [case["contender"] for case in written["it"]["cases"]] == ["a", "c"]
    assert [case["contender"] for case in written["other"]["cases"]] == ["b"]


def test_a_second_run_measures_what_the_first_left(made, path):
    first = {"a": measured(1.0), "slow": measured(9.0), "b": FAILED, "c": {"status": "wrong", "reason": "no"}}
    first["d"] = {"status": "unsupported", "reason": "no target"}
    made.record(what(*first), {"contenders": first})
    made.record(what("e"), SKIPPED)
    again = opened(path)
    assert asked(again, "a", "slow", "c", "d") == []
    assert asked(again, "a", "slow", "b", "c", "d", "e") == [["slow", "b", "e"]]  # beside what they are compared with
    assert asked(again, "f") == [["f"]]


def test_what_is_measured_again_replaces_why_it_was_not(made, path, monkeypatch):
    made.record(what("slow", "a"), {"contenders": {"slow": measured(9.0), "a": FAILED}})
    monkeypatch.setattr(environment, "revision", lambda: "def")
    again = opened(path)
    again.record(what("slow", "a"), SKIPPED)
    assert again.content["cases"][1]["reason"] == FAILED["reason"]
    ratio = {"slow": {"median": 5.0}}
    again.record(what("slow", "a"), {"contenders": {"slow": measured(10.0), "a": measured(2.0, faster_than=ratio)}})
    slow, a = again.content["cases"]
    assert slow["step_ms"]["median_ms"] == 9.0 and "revision" not in slow
    assert a["faster_than"] == ratio and a["revision"] == "def" and "reason" not in a


def test_who_takes_part_again_only_gains_a_comparison(made):
    made.record(what("a"), {"contenders": {"a": measured(1.0, faster_than={"slow": {"median": 2.0}})}})
    again = measured(9.0, faster_than={"slow": {"median": 7.0}, "other": {"median": 3.0}})
    made.record(what("a", "b"), {"contenders": {"a": again, "b": measured(2.0)}})
    first, second = made.content["cases"]
    assert first["step_ms"]["median_ms"] == 1.0 and second["contender"] == "b"
    assert first["faster_than"] == {"slow": {"median": 2.0}, "other": {"median": 3.0}}


def test_the_fastest_of_several_baselines_counts_whenever_it_was_measured(made):
    def ratio(median, name):
        return measured(1.0, faster_than={"compile": {"median": median, "contender": name}})

    made.record(what("a"), {"contenders": {"a": ratio(5.0, "default")}})
    for median, name, kept in ((6.0, "other", 5.0), (4.0, "default", 5.0), (3.0, "other", 3.0)):
        made.record(what("a", "b"), {"contenders": {"a": ratio(median, name), "b": measured(1.0)}})
        assert made.content["cases"][0]["faster_than"]["compile"]["median"] == kept


def test_all_take_part_with_one_that_they_are_compared_with(made):
    made.record(what("slow", "a"), {"contenders": {"slow": measured(9.0), "a": measured(1.0)}})
    assert asked(made, "slow", "a", "compile") == [["slow", "a", "compile"]]
    assert asked(made, "slow", "a", "b") == [["slow", "b"]]


def test_launches_go_to_the_case_and_are_counted_once(made):
    made.record(what("a", "b", "c"), {"contenders": {"a": measured(1.0), "b": measured(1.0), "c": FAILED}})
    counted = {"a": {"launches": {"step": {"kernels": 2}}}, "b": {"status": "failed", "reason": "no profiler"}}
    made.record(what("a", "b", kind="launches"), {"contenders": counted})
    first, second, _ = made.content["cases"]
    assert first["launches"]["step"]["kernels"] == 2
    assert second["no_launches"] == "no profiler"
    assert asked(made, "a", "b", "c", kind="launches") == [["b"]]


def test_those_that_another_brought_down_are_measured_again(made):
    asked = []
    for job in made.remaining([runner.Job(what("a", "b", "c"), 1.0, "p"), runner.Job(what("d"), 1.0, "p")]):
        names = job.what["contenders"]
        asked.append(names)
        if "b" in names:
            made.record(job.what, {"contenders": {"b": FAILED}, "broken_by": "b"})
        elif "c" in names:
            made.record(job.what, {"status": "failed", "reason": "stopped after 1 s", "at": "c"})
        else:
            made.record(job.what, {"contenders": {name: measured(1.0) for name in names}})
    assert asked == [["a", "b", "c"], ["a", "c"], ["a"], ["d"]]
    assert [(case["contender"], case["status"]) for case in made.content["cases"]] == [
        ("b", "failed"),
        ("c", "failed"),
        ("a", "ok"),
        ("d", "ok"),
    ]
    assert "at" not in made.content["cases"][1]


def test_those_that_have_their_figures_are_not_measured_again_for_one_that_failed(made):
    made.record(what("slow", "a"), {"contenders": {"slow": measured(9.0), "a": measured(1.0)}})
    jobs = made.remaining([runner.Job(what("slow", "a", "compile"), 1.0, "p")])
    assert next(jobs).what["contenders"] == ["slow", "a", "compile"]
    made.record(what("slow", "a", "compile"), FAILED | {"at": "compile"})
    assert list(jobs) == []


@pytest.mark.parametrize(
    ("other", "reason"),
    [({"device": "another"}, "device 'another', and this is 'a device'"), ({"torch": "1.0"}, "torch '1.0'")],
)
def test_a_file_of_another_device_or_version_is_refused(path, other, reason, capsys):
    path.write_text(json.dumps({"it": {"environment": HERE | other, "cases": []}}))
    with pytest.raises(ValueError, match=f"{path}: it was measured with {reason}.*choose another file"):
        results.Figures(path, CPU)
    parser = command.parser("it", None, device=CPU, sizes=(), contenders=())
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", str(path)])
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no JSON", '{"benchmark": "it", "cases": []}', "[]"])
def test_a_file_of_something_else_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match="choose another file"):
        results.Figures(path, CPU)


def test_other_settings_are_refused(path):
    opened(path, settings={"beta": 0.3}).record(what("a"), {"contenders": {"a": measured(1.0)}})
    opened(path, settings={"beta": 0.3})
    with pytest.raises(ValueError, match="0.3.*0.5"):
        opened(path, settings={"beta": 0.5})


def test_ceilings_are_measured_once(path, monkeypatch):
    found = {"bytes_per_second": 2.0, "flops": {"bfloat16": 1.0}}
    asked = []

    def run(jobs, *, module, seconds, record):
        asked.extend(jobs)
        record({}, {"status": "failed", "reason": "no"} if len(asked) == 1 else found)

    monkeypatch.setattr(runner, "run", run)
    assert ceilings.of(results.Figures(path, CPU)) == {}  # and nothing is written
    for _ in range(2):
        assert ceilings.of(results.Figures(path, CPU)) == {"environment": HERE, **found}
    assert len(asked) == 2
    made = opened(path)
    made.record(what("a"), {"contenders": {"a": measured(1.0)}})
    assert made.content["cases"][0]["rates"]["bytes_per_second"] == 2.0
    assert json.loads(path.read_text())["ceilings"]["flops"] == {"bfloat16": 1.0}


@pytest.mark.parametrize(
    ("found", "limits", "met"),
    [
        (1.4, {"least": 1.3}, True),
        (1.2, {"least": 1.3}, False),
        (1.2, {"most": 1.15}, False),
        (None, {"most": 1}, None),
    ],
)
def test_a_bar_is_met_missed_or_not_measured(found, limits, met):
    assert results.bar("it", found, **limits, over=1)["met"] is met


def test_graphs_are_compared_before_steps():
    case = {"faster_than": {"slow": {"median": 2.0}, "other": {"median": 5.0}}, "graph_faster_than": {}}
    assert results.faster_than(case, "slow") == 2.0
    case["graph_faster_than"] = {"slow": {"median": 3.0}}
    assert results.faster_than(case, "slow") == 3.0
    assert results.faster_than(case, "other") == 5.0
    assert results.faster_than(case, "absent") is None


def test_rates_count_against_the_larger_of_both_floors():
    case = {"step_ms": {"median_ms": 4.0}, "graph_ms": {"median_ms": 2.0}}
    ceilings = {"flops": {"bfloat16": 1e12}, "bytes_per_second": 1e12}
    found = results.rates({"flops": 1e9, "bytes": 5e8}, "bfloat16", case, ceilings)
    assert found == {"tflops": 0.5, "gb_per_second": 250.0, "floor_ms": 1.0, "share_of_floor": 0.5}
    assert results.rates({"flops": 1e9, "bytes": 1.6e9}, "bfloat16", case, ceilings)["share_of_floor"] == 0.8


@pytest.mark.parametrize(
    ("found", "said"), [(2.5, "2.5, met (3 cases)"), (1.0, "1, missed (3 cases)"), (None, "not measured")]
)
def test_a_requirement_is_said(found, said):
    assert results.verdict(results.bar("speed", found, least=2.0, over=3)) == f"speed >= 2: {said}"
