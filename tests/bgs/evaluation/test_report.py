"""The table a person reads, and the JSON file."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from bgs.data.judgments import Judgments
from bgs.evaluation.evaluate import Held, evaluate
from bgs.evaluation.report import TABLE_WIDTH, table, write_json


def test_table_shows_values_intervals_and_difference_in_its_width() -> None:
    rng = np.random.default_rng(0)
    triplets = np.array([rng.choice(10, 3, replace=False) for _ in range(200)])
    people = Judgments(items=tuple("abcdefghij"), triplets=triplets)
    found = {
        name: evaluate([Held(torch.randn(10, 3, generator=torch.Generator().manual_seed(seed)), people)], resamples=50)
        for seed, name in enumerate(("before training", "fine-tuned"))
    }
    console = Console(width=TABLE_WIDTH, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(found, "title", compare=("fine-tuned", "before training")))
    text = console.export_text()
    for evaluation in found.values():
        measure = evaluation.measures["odd_one_out.three_way"]
        assert f"{measure.value:.3f}" in text
        assert f"[{measure.ci95[0]:.3f}, {measure.ci95[1]:.3f}]" in text
    values = [evaluation.measures["rsa.pearson"].value for evaluation in found.values()]
    assert f"{values[1] - values[0]:+.3f}" in text
    assert "…" not in text


def test_json_is_written_whole_or_not_at_all(tmp_path) -> None:
    file = tmp_path / "deep/metrics.json"
    write_json(file, {"a": [1, None]})
    assert json.loads(file.read_text()) == {"a": [1, None]}
    for broken in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            write_json(file, broken)
    assert json.loads(file.read_text()) == {"a": [1, None]}
    assert [path.name for path in file.parent.iterdir()] == ["metrics.json"]
