// segment_moments and weighted_loss on tensors: checks, then raw memory. Schemas stand in amopo_kernels/operations.py.
#include "objective.h"
#include "tensor_checks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

namespace amopo {
namespace {

using at::Tensor;

// Kernels never read out of bounds, whatever starts and stops say.
void check_segments(const Tensor& logps, const Tensor& starts, const Tensor& stops) {
  check_vector(logps, logps.dim() == 1 ? logps.size(0) : 0, at::kFloat, "logps");
  for (const Tensor* edges : {&starts, &stops}) {
    TORCH_CHECK_TYPE(edges->scalar_type() == at::kLong, "amopo: starts and stops must be int64");
    TORCH_CHECK_VALUE(edges->is_contiguous(), "amopo: starts and stops must be contiguous");
  }
  TORCH_CHECK_VALUE(
      starts.sizes() == stops.sizes(), "amopo: starts ", starts.sizes(), " and stops ", stops.sizes(), " differ");
  const int64_t *start = starts.const_data_ptr<int64_t>(), *stop = stops.const_data_ptr<int64_t>();
  for (int64_t s = 0; s < starts.numel(); ++s) {
    TORCH_CHECK_VALUE(
        0 <= start[s] && start[s] <= stop[s] && stop[s] <= logps.size(0), "amopo: sequence ", s, " runs from ",
        start[s], " to ", stop[s], ", but there are ", logps.size(0), " log-probs");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> segment_moments_op(
    const Tensor& logps, const Tensor& starts, const Tensor& stops) {
  check_segments(logps, starts, stops);
  const auto fresh = [&] { return at::empty(starts.sizes(), logps.options()); };
  Tensor sum = fresh(), length = fresh(), mean = fresh(), variance = fresh();
  sequence_stats(
      logps.const_data_ptr<float>(), starts.const_data_ptr<int64_t>(), stops.const_data_ptr<int64_t>(),
      starts.numel(), sum.data_ptr<float>(), length.data_ptr<float>(), mean.data_ptr<float>(),
      variance.data_ptr<float>());
  return {sum, length, mean, variance};
}

Weights weights_named(const std::string& name) {
  if (name == "given") {
    return Weights::Given;
  }
  if (name == "gaussian") {
    return Weights::Gaussian;
  }
  if (name == "mean") {
    return Weights::Mean;
  }
  TORCH_CHECK_VALUE(
      name == "uniform", "amopo: weights must be gaussian, mean, uniform or given, got '", name, "'");
  return Weights::Uniform;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mobt_op(
    const Tensor& logps,
    const Tensor& starts,
    const Tensor& stops,
    c10::string_view weights,
    const std::optional<Tensor>& given,
    const Tensor& sample_ids,
    int64_t seed,
    const Tensor& step,
    double beta,
    double gamma,
    c10::string_view pooled,
    const std::optional<Tensor>& present) {
  TORCH_CHECK_VALUE(
      starts.dim() == 3 && starts.size(1) >= 1 && starts.size(2) == 2, "amopo: starts must be [B, K, 2], got ",
      starts.sizes());
  check_segments(logps, starts, stops);
  TORCH_CHECK_VALUE(pooled == "union" || pooled == "sum", "amopo: pooled must be union or sum, got '", pooled, "'");
  const int64_t samples = starts.size(0), objectives = starts.size(1);
  ObjectiveArguments a{};
  a.logps = logps.const_data_ptr<float>();
  a.starts = starts.const_data_ptr<int64_t>();
  a.stops = stops.const_data_ptr<int64_t>();
  a.samples = samples;
  a.objectives = objectives;
  a.beta = beta;
  a.gamma = gamma;
  a.weights = weights_named(std::string(weights));
  a.pooled_union = pooled == "union";
  a.seed = static_cast<uint64_t>(seed);
  if (a.weights == Weights::Given) {
    TORCH_CHECK_VALUE(
        given.has_value() && given->dim() == 2 && given->size(0) == samples && given->size(1) == objectives &&
            given->is_contiguous(),
        "amopo: weights 'given' need a contiguous tensor [", samples, ", ", objectives, "]");
    TORCH_CHECK_TYPE(given->scalar_type() == at::kFloat, "amopo: given weights must be float32");
    a.given = given->const_data_ptr<float>();
  }
  if (present.has_value()) {
    TORCH_CHECK_VALUE(
        present->dim() == 2 && present->size(0) == samples && present->size(1) == objectives &&
            present->is_contiguous(),
        "amopo: present must be a contiguous tensor [", samples, ", ", objectives, "]");
    TORCH_CHECK_TYPE(present->scalar_type() == at::kBool, "amopo: present must be bool");
    a.present = present->const_data_ptr<bool>();
  }
  if (a.weights == Weights::Gaussian) {
    check_vector(sample_ids, samples, at::kLong, "sample_ids");
    TORCH_CHECK_VALUE(
        step.numel() == 1 && step.scalar_type() == at::kLong && step.is_cpu(),
        "amopo: step must be an int64 tensor with one element, on the CPU");
    a.sample_ids = sample_ids.const_data_ptr<int64_t>();
    a.step = static_cast<uint32_t>(*step.const_data_ptr<int64_t>());
  }
  const auto options = logps.options();
  Tensor losses = at::empty({samples}, options);
  Tensor alpha = at::empty({samples, objectives}, options);
  Tensor coefficients = at::empty({samples, objectives, 2}, options);
  Tensor sums = at::empty_like(coefficients), lengths = at::empty_like(coefficients);
  Tensor logged = at::empty({samples, kLogged, objectives}, options);
  a.losses = losses.data_ptr<float>();
  a.alpha = alpha.data_ptr<float>();
  a.coefficients = coefficients.data_ptr<float>();
  a.sums = sums.data_ptr<float>();
  a.lengths = lengths.data_ptr<float>();
  a.logged = logged.data_ptr<float>();
  mobt(a);
  return {losses, alpha, coefficients, sums, lengths, logged};
}

} // namespace

TORCH_LIBRARY_IMPL(amopo, CPU, m) {
  m.impl("segment_moments", segment_moments_op);
  m.impl("weighted_loss", mobt_op);
}

} // namespace amopo
