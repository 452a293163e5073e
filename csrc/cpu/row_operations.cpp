// row_pass and tile_pass on tensors: checks, then raw memory. Schemas stand in amopo_kernels/operations.py.
#include "row_pass.h"
#include "tensor_checks.h"

#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include <optional>

namespace amopo {
namespace {

using at::Tensor;

RowArguments row_arguments(
    const Tensor& logits,
    const Tensor& targets,
    const std::optional<Tensor>& bias,
    std::optional<double> scale,
    std::optional<double> softcap,
    bool half_range,
    const Tensor& reference,
    const Tensor& mass,
    const Tensor& factor,
    const std::optional<Tensor>& out) {
  check_matrix(logits, "logits");
  const int64_t rows = logits.size(0), columns = logits.size(1);
  check_vector(targets, rows, at::kLong, "targets");
  check_vector(reference, rows, at::kFloat, "reference");
  check_vector(mass, rows, at::kFloat, "mass");
  check_vector(factor, rows, at::kFloat, "factor");
  RowArguments a{};
  a.logits = logits.const_data_ptr();
  a.logits_dtype = a.out_dtype = dtype_of(logits, "logits");
  a.logits_stride = logits.stride(0);
  a.targets = targets.const_data_ptr<int64_t>();
  a.rows = rows;
  a.columns = columns;
  if (bias.has_value()) {
    check_vector(*bias, columns, at::kFloat, "bias");
    a.bias = bias->const_data_ptr<float>();
  }
  a.scale = static_cast<float>(scale.value_or(1.0));
  TORCH_CHECK_VALUE(!softcap.has_value() || *softcap > 0.0, "amopo: softcap must be positive, got ", *softcap);
  a.softcap = static_cast<float>(softcap.value_or(0.0));
  a.half_range = half_range;
  a.reference = reference.data_ptr<float>();
  a.mass = mass.data_ptr<float>();
  a.factor = factor.data_ptr<float>();
  if (out.has_value()) {
    check_matrix(*out, "out");
    TORCH_CHECK_VALUE(
        out->sizes() == logits.sizes(), "amopo: out must be ", logits.sizes(), " as the logits, got ", out->sizes());
    a.out = out->data_ptr();
    a.out_dtype = dtype_of(*out, "out");
    a.out_stride = out->stride(0);
    TORCH_CHECK_TYPE(
        a.out_dtype == a.logits_dtype || a.logits_dtype == Dtype::Float, "amopo: out must be ", logits.scalar_type(),
        " as the logits, got ", out->scalar_type());
    if (out->numel() == 0) {
      return a;
    }
    if (a.out == a.logits) {
      TORCH_CHECK_VALUE(
          a.out_dtype == a.logits_dtype && (rows <= 1 || a.out_stride == a.logits_stride),
          "amopo: out shares memory with the logits and must then be the logits themselves");
    } else {
      at::assert_no_overlap(*out, logits);
    }
  }
  return a;
}

void row_pass_any(
    const Tensor& logits,
    const Tensor& targets,
    const std::optional<Tensor>& bias,
    std::optional<double> scale,
    std::optional<double> softcap,
    bool half_range,
    const Tensor& logp,
    const Tensor& reference,
    const Tensor& mass,
    const Tensor& factor,
    const std::optional<Tensor>& out) {
  const RowArguments a =
      row_arguments(logits, targets, bias, scale, softcap, half_range, reference, mass, factor, out);
  check_vector(logp, a.rows, at::kFloat, "logp");
  for (int64_t row = 0; row < a.rows; ++row) {
    TORCH_CHECK_INDEX(
        a.targets[row] >= 0 && a.targets[row] < a.columns, "amopo: targets[", row, "] = ", a.targets[row],
        " is outside the vocabulary [0, ", a.columns, ")");
  }
  row_pass(a, logp.data_ptr<float>());
}

void row_pass_op(
    const Tensor& logits,
    const Tensor& targets,
    const std::optional<Tensor>& bias,
    std::optional<double> scale,
    std::optional<double> softcap,
    bool half_range,
    Tensor& logp,
    Tensor& reference,
    Tensor& mass,
    Tensor& factor,
    const std::optional<Tensor>& out) {
  row_pass_any(logits, targets, bias, scale, softcap, half_range, logp, reference, mass, factor, out);
}

void row_pass_inplace_op(
    Tensor& logits,
    const Tensor& targets,
    const std::optional<Tensor>& bias,
    std::optional<double> scale,
    std::optional<double> softcap,
    bool half_range,
    Tensor& logp,
    Tensor& reference,
    Tensor& mass,
    Tensor& factor) {
  row_pass_any(logits, targets, bias, scale, softcap, half_range, logp, reference, mass, factor, logits);
}

void tile_pass_op(
    const Tensor& logits,
    const Tensor& targets,
    const std::optional<Tensor>& bias,
    std::optional<double> scale,
    std::optional<double> softcap,
    bool half_range,
    const Tensor& reference,
    const Tensor& mass,
    const Tensor& factor,
    Tensor& out) {
  tile_pass(row_arguments(logits, targets, bias, scale, softcap, half_range, reference, mass, factor, out));
}

void tile_pass_inplace_op(
    Tensor& logits,
    const Tensor& targets,
    const std::optional<Tensor>& bias,
    std::optional<double> scale,
    std::optional<double> softcap,
    bool half_range,
    const Tensor& reference,
    const Tensor& mass,
    const Tensor& factor) {
  tile_pass(row_arguments(logits, targets, bias, scale, softcap, half_range, reference, mass, factor, logits));
}

} // namespace

TORCH_LIBRARY_IMPL(amopo, CPU, m) {
  m.impl("row_pass", row_pass_op);
  m.impl("row_pass_", row_pass_inplace_op);
  m.impl("tile_pass", tile_pass_op);
  m.impl("tile_pass_", tile_pass_inplace_op);
}

} // namespace amopo
