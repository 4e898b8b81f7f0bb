// Binds the hybrid loss of small sets. What launches it is a parameter: the tests bind the same functions to a CPU.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bind.h"
#include "cuda/hybrid_small.h"

namespace bgs::cuda {

// `launch` is called as launch(const HybridSmall&, void* workspace, int device, std::uintptr_t stream).
template <typename Launch>
void bind_hybrid_small(pybind11::module_& module, Launch launch) {
  namespace py = pybind11;
  module.attr("CUDA_SMALL_ROWS") = kMostRows;
  module.attr("CUDA_SMALL_COLUMNS") = kMostColumns;

  module.def(
      "cuda_hybrid_loss_small_workspace",
      [](std::int32_t sets, std::int32_t rows, std::int32_t columns, std::int32_t target_columns, std::int64_t triplets,
         bool target, bool weights, bool triplet_weights, bool gradient) {
        const HybridSmallSizes sizes{sets,    rows,           columns,         target_columns, triplets, target,
                                     target && weights, triplet_weights, gradient};
        return plan_hybrid_small(sizes, nullptr).bytes;
      },
      py::arg("sets"), py::arg("rows"), py::arg("columns"), py::arg("target_columns"), py::arg("triplets"),
      py::kw_only(), py::arg("target"), py::arg("weights"), py::arg("triplet_weights"), py::arg("gradient"),
      "Count the bytes of device memory, aligned to 256, that cuda_hybrid_loss_small needs to work in.");

  module.def(
      "cuda_hybrid_loss_small",
      [launch](Tensor embeddings, Tensor triplets, Tensor target, Tensor target_embeddings, Tensor mask, Tensor weights,
               Tensor triplet_weights, Tensor triplet_targets, Tensor lengths, std::int32_t sets, std::int32_t rows,
               std::int32_t columns, std::int32_t target_columns, std::int64_t count, double alpha, double beta,
               std::int32_t triplet, double temperature, double margin, std::int32_t metric, std::int32_t target_metric,
               std::int32_t rsa, Tensor losses, Tensor terms, Tensor gradient, std::uintptr_t workspace,
               std::size_t bytes, int device, std::uintptr_t stream) {
        if (rows > kMostRows || columns > kMostColumns || target_columns > kMostColumns) {
          throw std::invalid_argument("cuda_hybrid_loss_small: expected at most " + std::to_string(kMostRows) +
                                      " rows of " + std::to_string(kMostColumns) + " columns, got " +
                                      std::to_string(rows) + " of " + std::to_string(columns) + " and " +
                                      std::to_string(target_columns));
        }
        HybridSmall call;
        const bool has_target = target || target_embeddings;
        call.sizes = {sets, rows, columns, target_columns, count, has_target, has_target && weights,
                      static_cast<bool>(triplet_weights), static_cast<bool>(gradient)};
        call.embeddings = embeddings;
        call.triplets = triplets;
        call.target = target;
        call.target_embeddings = target_embeddings;
        call.mask = mask;
        call.weights = weights;
        call.triplet_weights = triplet_weights;
        call.triplet_targets = triplet_targets;
        call.lengths = lengths;
        call.alpha = alpha;
        call.beta = beta;
        call.temperature = static_cast<float>(temperature);
        call.margin = static_cast<float>(margin);
        call.metric = static_cast<Metric>(metric);
        call.target_metric = static_cast<Metric>(target_metric);
        call.form = static_cast<Form>(triplet);
        call.rsa = static_cast<Rsa>(rsa);
        call.losses = static_cast<float*>(const_cast<void*>(losses.data));
        call.terms = static_cast<float*>(const_cast<void*>(terms.data));
        call.terms_stride = terms.stride[0];
        call.gradient = static_cast<float*>(const_cast<void*>(gradient.data));
        const std::size_t needed = plan_hybrid_small(call.sizes, nullptr).bytes;
        if (bytes < needed) {
          throw std::invalid_argument("cuda_hybrid_loss_small: expected a workspace of at least " +
                                      std::to_string(needed) + " bytes, got " + std::to_string(bytes));
        }
        if (sets > 0) launch(call, reinterpret_cast<void*>(workspace), device, stream);
      },
      py::arg("embeddings"), py::arg("triplets"), py::arg("target"), py::arg("target_embeddings"), py::arg("mask"),
      py::arg("weights"), py::arg("triplet_weights"), py::arg("triplet_targets"), py::arg("lengths"), py::arg("sets"),
      py::arg("rows"), py::arg("columns"), py::arg("target_columns"), py::arg("count"), py::arg("alpha"),
      py::arg("beta"), py::arg("triplet"), py::arg("temperature"), py::arg("margin"), py::arg("metric"),
      py::arg("target_metric"), py::arg("rsa"), py::arg("losses"), py::arg("terms"), py::arg("gradient"),
      py::arg("workspace"), py::arg("bytes"), py::arg("device"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(),
      "Compute the hybrid loss of small sets and its gradient in one launch on a device and a stream, which is not "
      "waited for. Words are their places in METRICS, FORMS and METHODS; losses (B,), terms (3, B) and gradient "
      "(B, N, D), contiguous, are float32; without a gradient none is computed.");
}

}  // namespace bgs::cuda
