// Binds ranks, rank correlations and counts of judgments.
#include "bind.h"
#include "cpu/counts.h"
#include "cpu/rank_correlation.h"
#include "cpu/ranks.h"
#include "cpu/soundness.h"

namespace py = pybind11;

namespace bgs {

namespace {

template <typename T>
T* writable(const Tensor& tensor) {
  return static_cast<T*>(const_cast<void*>(tensor.data));
}

void fractional_rank(const Tensor& values, std::int64_t rows, std::int64_t columns, const Tensor& ranks, int threads) {
  const py::gil_scoped_release released;
  if (values.dtype == DType::kFloat64) {
    fractional_ranks(static_cast<const double*>(values.data), rows, columns, writable<double>(ranks), threads);
  } else {
    fractional_ranks(static_cast<const float*>(values.data), rows, columns, writable<double>(ranks), threads);
  }
}

void rank_correlation(const Tensor& distances, const Tensor& target, const Tensor& observed, std::int64_t sets,
                      std::int64_t rows, bool all_finite, bool nan_observed, double rounding, bool bounded,
                      bool target_bounded, std::int32_t method, const Tensor& correlations, int threads) {
  const py::gil_scoped_release released;
  rank_correlations(distances, target, observed, sets, rows, all_finite ? Required::kAll : Required::kObserved,
                    nan_observed, {rounding, bounded, target_bounded}, static_cast<RankMethod>(method),
                    writable<double>(correlations), threads);
}

bool triplet_counts(const Tensor& triplets, std::int64_t count, std::int64_t rows, const Tensor& shown,
                    const Tensor& together, int threads) {
  const py::gil_scoped_release released;
  return count_triplets(triplets, count, rows, writable<std::int64_t>(shown), writable<std::int64_t>(together),
                        threads);
}

}  // namespace

void bind_statistics(py::module_& module) {
  module.def("are_sound", &are_sound, py::call_guard<py::gil_scoped_release>(), py::arg("triplets"), py::arg("sets"),
             py::arg("count"), py::arg("rows"), py::arg("threads"),
             "Say whether all triplets (B, T, 3) name three different rows that there are.");
  module.def("fractional_rank", &fractional_rank, py::arg("values"), py::arg("rows"), py::arg("columns"),
             py::arg("ranks"), py::arg("threads"),
             "Rank the rows of contiguous float32 or float64 values into float64 ranks.");
  module.def("rank_correlation", &rank_correlation, py::arg("distances"), py::arg("target"), py::arg("observed"),
             py::arg("sets"), py::arg("rows"), py::arg("all_finite"), py::arg("nan_observed"), py::arg("rounding"),
             py::arg("bounded"), py::arg("target_bounded"), py::arg("method"), py::arg("correlations"),
             py::arg("threads"),
             "Correlate distances and targets by rank over the observed pairs of every set, into float64; method is 0 "
             "for Spearman, 1 for tau-a, 2 for tau-b.");
  module.def("triplet_counts", &triplet_counts, py::arg("triplets"), py::arg("count"), py::arg("rows"),
             py::arg("shown"), py::arg("together"), py::arg("threads"),
             "Count triplets into two int64 matrices; say whether each named three different rows.");
}

}  // namespace bgs
