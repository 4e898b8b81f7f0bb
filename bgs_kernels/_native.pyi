from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: str
    openmp: int | None
    cuda_compiler: str | None
    cuda_architectures: list[str]

Tensor = tuple[int, int, tuple[int, ...]] | None

def build_info() -> BuildInfo: ...
def fractional_rank(values: Tensor, rows: int, columns: int, ranks: Tensor, threads: int) -> None: ...
def rank_correlation(
    distances: Tensor,
    target: Tensor,
    observed: Tensor,
    sets: int,
    rows: int,
    all_finite: bool,
    nan_observed: bool,
    rounding: float,
    bounded: bool,
    target_bounded: bool,
    method: int,
    correlations: Tensor,
    threads: int,
) -> None: ...
def triplet_counts(triplets: Tensor, count: int, rows: int, shown: Tensor, together: Tensor, threads: int) -> bool: ...
