"""The peers compute the loss that the reference defines, and ``python -m bgs_kernels.bench`` measures what is right
within its time, and says why the rest was left out.
"""

import dataclasses
import functools
import itertools
import time

import pytest
import torch

from bgs_kernels import attention, hybrid_loss, native
from bgs_kernels.bench import __main__ as command
from bgs_kernels.bench import paired, peers, problem
from bgs_kernels.bench.peers import Settings
from bgs_kernels.pairwise.reference import METRICS

CPU = torch.device("cpu")
SIZE = {"rows": 40, "columns": 12, "triplets": 200}


def drawn(**given):
    return problem.draw(**SIZE | given)


def by_reference(given, x):
    targets = given.target_embeddings
    wide = None if targets is None else targets.double()
    settings = given.settings._asdict()
    return hybrid_loss(
        x.double(), given.triplets, given.target, target_embeddings=wide, **settings, backend="reference"
    )


def exact(given):
    return given.step(functools.partial(by_reference, given))


def errors(name, given):
    return paired.errors(problem.contender(name, given).results(), exact(given))


@pytest.mark.parametrize("target_columns", [0, 6])
@pytest.mark.parametrize("name", ["eager", "eager tuned"])
@pytest.mark.parametrize(
    ("metric", "rsa", "triplet"), list(itertools.product(METRICS, ("pearson", "cosine"), ("softmax", "margin")))
)
def test_peers_agree_with_the_reference(metric, rsa, triplet, name, target_columns):
    settings = Settings(0.6, 0.4, triplet, 0.3, 0.1, metric, rsa)
    found = errors(name, drawn(settings=settings, target_columns=target_columns))
    assert max(found.values()) < 2e-5, found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", peers.PRODUCTS)
def test_peers_in_half_precision_agree_but_for_its_roundings(metric, dtype):
    given = drawn(dtype=dtype, settings=Settings(metric=metric))
    eps = torch.finfo(dtype).eps
    assert max(errors("eager", given).values()) < eps
    contender = problem.contender("eager in half", given)
    found = paired.errors(contender.results(), exact(given))
    assert max(found.values()) < contender.coarse == problem.ROUNDINGS_IN_HALF * eps


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_half_precision_is_for_halves_and_products(metric):
    dtype = torch.float32 if metric == "cosine" else torch.bfloat16
    with pytest.raises(paired.Unsupported, match="half precision"):
        problem.contender("eager in half", drawn(dtype=dtype, settings=Settings(metric=metric)))


def test_observed_pairs_are_those_of_the_upper_triangle():
    target = torch.tensor([[9.0, 1.0, float("nan")], [8.0, 9.0, 3.0], [8.0, 8.0, 9.0]])
    places, targets = peers.observed_pairs(target)
    assert places.tolist() == [1, 5] and targets.tolist() == [1.0, 3.0]
    places, targets = peers.observed_pairs(target, torch.tensor([[True, False, True]] * 3))
    assert places.tolist() == [5] and targets.tolist() == [3.0]


def test_products_are_those_of_a_step():
    x = torch.randn(5, 3)
    torch.testing.assert_close(peers.products(x), (x @ x.T) @ x)


def test_attention_by_hand_is_the_reference():
    rows = torch.randn(3, 2, 4, 9, 8)
    torch.testing.assert_close(peers.attention(*rows), attention(*rows, backend="reference"))


@pytest.mark.parametrize("name", [name for name in problem.contenders(CPU) if problem.is_ours(name)])
def test_our_backends_agree_however_they_are_called(name):
    assert max(errors(name, drawn()).values()) < 2e-6
    with_targets = drawn(target_columns=6)
    if name.endswith("mask"):
        with pytest.raises(paired.Unsupported, match="no unobserved pairs"):
            problem.contender(name, with_targets)
    else:
        assert max(errors(name, with_targets).values()) < 2e-6


def test_the_interpreter_and_the_reference_are_not_measured():
    assert "reference" not in problem.contenders(CPU) and "triton" not in problem.contenders(CPU)


def test_what_does_not_fit_says_so(monkeypatch):
    monkeypatch.setattr(problem, "free_bytes", lambda device: 1 << 10)
    with pytest.raises(paired.Unsupported, match="7.5 matrices of 40 x 40 float32 are 0.0 GiB"):
        problem.contender("eager", drawn())


def test_triplets_name_three_rows():
    triplets = problem.draw_triplets(1000, 3, torch.Generator().manual_seed(0))
    assert triplets.sort(1).values.unique(dim=0).tolist() == [[0, 1, 2]]


def run(capsys, *arguments):
    """Run the command on a small size, by default without compiling."""
    names = ["eager", "products", *(["native"] if native.module is not None else [])]
    status = command.main(["--n", "30", "--d", "8", "--triplets", "50", "--contenders", *names, *arguments])
    return status, capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--dtype", "bfloat16", "--metric", "euclidean", "--triplet", "margin", "--rsa", "cosine"),
        ("--target-embeddings", "5", "--temperature", "0.001"),
    ],
)
def test_a_table_is_printed(capsys, arguments):
    status, text = run(capsys, *arguments, "--seconds", "1")
    assert status == 0, text
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["eager"][2] == "1.00" and rows["products"][3] == "1.00"
    assert "against the reference in float64" in text and f"torch {torch.__version__}" in text
    if native.module is not None:
        assert float(rows["native"][1]) > 0 and float(rows["native"][-1]) < 1e-2


def test_a_wrong_contender_is_not_timed(capsys, monkeypatch):
    def wrong(x, known, settings):
        return peers.eager(x, known, settings) * 1.001

    monkeypatch.setitem(problem.EAGER, "eager tuned", wrong)
    status, text = run(capsys, "--contenders", "eager", "eager tuned", "--seconds", "1")
    assert status == 1 and "eager tuned: wrong: error {'loss': 0.00" in text


def test_what_cannot_be_compiled_says_why_and_stops_nothing(capsys, monkeypatch):
    def compiled(loss, mode):
        raise RuntimeError("no working\ncompiler")

    monkeypatch.setattr(peers, "compiled", compiled)
    status, text = run(capsys, "--contenders", "compile", "eager", "--seconds", "1")
    assert status == 0 and "compile: failed: RuntimeError: no working compiler" in text


def test_compiling_is_stopped_when_it_takes_too_long(capsys, monkeypatch):
    def compiled(loss, mode):
        def slow(x):
            try:
                time.sleep(60)
            except Exception as error:  # as torch.compile does
                raise RuntimeError("wrapped") from error

        return slow

    monkeypatch.setattr(peers, "compiled", compiled)
    begin = time.monotonic()
    status, text = run(capsys, "--contenders", "compile", "eager", "--seconds", "1")
    assert status == 0 and "compile: left out: compiling took more than" in text
    assert time.monotonic() - begin < 20


def test_what_there_is_no_time_for_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(command, "predicted", lambda given: 10.0)
    status, text = run(capsys, "--seconds", "20")
    assert status == 1 and "eager: left out: would take 60 s more; --seconds gives more time" in text
    assert "against nothing" in text


def test_a_slow_size_is_compared_by_blocks(monkeypatch):
    clock = command.Clock(10.0)
    given = drawn()
    found, what = command.exact_results(given, 1.0, clock)
    assert "by blocks" in what and max(paired.errors(found, exact(given)).values()) < 1e-5
    given = dataclasses.replace(given, settings=Settings(metric="dot"))
    found, what = command.exact_results(given, 1.0, clock)
    assert "eager" in what and max(paired.errors(found, exact(given)).values()) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--n", "0"), "--n: expected at least 3, got 0"),
        (("--d", "x"), "--d: invalid integer value: 'x'"),
        (("--triplets", "-1"), "--triplets: expected at least 1, got -1"),
        (("--temperature", "0"), "--temperature: expected a positive number, got 0"),
        (("--device", "tpu"), '--device: expected "cpu" or "cuda", got \'tpu\''),
        (("--contenders", "egaer"), "--contenders: expected some of 'eager', "),
        (("--mask", "--target-embeddings", "3"), "--mask: target embeddings have no unobserved pairs"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(list(arguments))
    assert stopped.value.code == 2 and reason in capsys.readouterr().err
