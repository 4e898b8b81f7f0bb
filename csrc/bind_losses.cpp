// Binds the losses and distances on the CPU.
#include <pybind11/stl.h>

#include "bind.h"
#include "cpu/hybrid_loss.h"
#include "cpu/isa.h"
#include "cpu/pairwise_distance.h"
#include "cpu/pool.h"

namespace py = pybind11;

namespace bgs {

namespace {

// Run the build of a kernel that this processor takes.
#if defined(BGS_X86)
#define BGS_RUN(kernel, given)                    \
  switch (cpu::isa()) {                           \
    case cpu::Isa::kAvx512:                       \
      return cpu::avx512::kernel(given);          \
    case cpu::Isa::kAvx2:                         \
      return cpu::avx2::kernel(given);            \
    default:                                      \
      return cpu::baseline::kernel(given);        \
  }
#else
#define BGS_RUN(kernel, given) return cpu::baseline::kernel(given);
#endif

void run(const cpu::HybridLoss& given) { BGS_RUN(hybrid_loss, given) }

void run(const cpu::PairwiseDistance& given) { BGS_RUN(pairwise_distance, given) }

}  // namespace

void bind_losses(py::module_& module) {
  module.def("cpu_isa", [] { return cpu::name_of(cpu::isa()); },
             "Name the instruction set that the CPU kernels use here: baseline, avx2 or avx512.");
  py::class_<cpu::LossSettings>(module, "LossSettings", "The settings of hybrid_loss.")
      .def(py::init([](double alpha, double beta, bool margin_form, double temperature, double margin, int metric,
                       int target_metric, bool centred) {
             return cpu::LossSettings{alpha,  beta,    margin_form,
                                      temperature, margin, static_cast<cpu::Metric>(metric),
                                      static_cast<cpu::Metric>(target_metric), centred};
           }),
           py::arg("alpha"), py::arg("beta"), py::arg("margin_form"), py::arg("temperature"), py::arg("margin"),
           py::arg("metric"), py::arg("target_metric"), py::arg("centred"));
  module.def(
      "hybrid_loss",
      [](const std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>& sizes, bool of_sets,
         const Tensor& embeddings, const Tensor& triplets, const Tensor& target, const Tensor& target_embeddings,
         const Tensor& mask, const Tensor& weights, const Tensor& triplet_weights, const Tensor& triplet_targets,
         const Tensor& lengths, const cpu::LossSettings& settings, bool distinct, int threads, std::int64_t small_rows,
         std::int64_t kept_bytes, std::uintptr_t losses, std::uintptr_t terms, std::uintptr_t gradient) {
        cpu::HybridLoss given(settings);
        std::tie(given.sets, given.rows, given.columns, given.triplet_count, given.target_columns) = sizes;
        const auto placed = [&](const Tensor& tensor) { return of_sets ? tensor : tensor.of_every_set(); };
        given.embeddings = placed(embeddings);
        given.triplets = placed(triplets);
        given.target = placed(target);
        given.target_embeddings = placed(target_embeddings);
        given.mask = placed(mask);
        given.weights = placed(weights);
        given.triplet_weights = placed(triplet_weights);
        given.triplet_targets = placed(triplet_targets);
        given.lengths = lengths;
        given.distinct = distinct;
        given.threads = threads;
        given.small_rows = small_rows;
        given.kept_bytes = kept_bytes;
        given.losses = reinterpret_cast<float*>(losses);
        given.terms = reinterpret_cast<float*>(terms);
        given.gradient = reinterpret_cast<float*>(gradient);
        py::gil_scoped_release unlocked;
        run(given);
      },
      "Compute losses (B,), terms (3, B) unless their address is 0 and, likewise, the gradient (B, N, D), all float32. "
      "Tensors are (address, dtype, strides) or None, of every set or, unless `of_sets`, of the only one; sizes are "
      "(B, N, D, T, E).");
  module.def(
      "pairwise_distance",
      [](const std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>& sizes, const Tensor& x,
         const Tensor& y, int metric, int threads, std::uintptr_t distances, const Tensor& upstream,
         std::uintptr_t x_gradient, std::uintptr_t y_gradient) {
        cpu::PairwiseDistance given;
        std::tie(given.sets, given.rows, given.others, given.columns) = sizes;
        given.x = x;
        given.y = y;
        given.metric = static_cast<cpu::Metric>(metric);
        given.threads = threads;
        given.distances = reinterpret_cast<float*>(distances);
        given.upstream = upstream;
        given.x_gradient = reinterpret_cast<float*>(x_gradient);
        given.y_gradient = reinterpret_cast<float*>(y_gradient);
        py::gil_scoped_release unlocked;
        run(given);
      },
      "Compute distances (B, N, M) or, given the gradient by them, that by x and y; sizes are (B, N, M, D).");
  module.def("held_bytes", &cpu::held_bytes, "Say how much memory is held for later calls.");
  module.def("release_held", &cpu::release_held, "Give what is held for later calls back to the system.");
  module.def("poison", &cpu::poison, "Fill all memory that kernels work in with NaN from now on, or no longer.");
}

}  // namespace bgs
