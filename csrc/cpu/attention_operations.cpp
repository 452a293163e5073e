// path_attention and its backward on tensors: checks, then raw memory. Schemas stand in amopo_kernels/operations.py.
#include "attention.h"
#include "tensor_checks.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <limits>
#include <tuple>

namespace amopo {
namespace {

using at::Tensor;

Tensor with_unit_stride(const Tensor& tensor) {
  return tensor.size(2) <= 1 || tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

Heads heads_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

void check_dimensions(const Tensor& a, const Tensor& b, const Tensor& c) {
  for (const Tensor* tensor : {&a, &b, &c}) {
    TORCH_CHECK_VALUE(
        tensor->dim() == 3, "amopo: queries, keys and values must be [tokens, heads, size], got ", tensor->sizes());
  }
}

void check_dtype(const Tensor& tensor, const Tensor& q, const char* what) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == q.scalar_type(), "amopo: ", what, " is ", tensor.scalar_type(), ", q is ",
      q.scalar_type());
}

// Kernels never read out of bounds, whatever the starts say.
void check_starts(const Tensor& starts_q, const Tensor& starts_k, int64_t queries, int64_t keys) {
  for (const Tensor* starts : {&starts_q, &starts_k}) {
    TORCH_CHECK_TYPE(starts->scalar_type() == at::kInt, "amopo: starts must be int32, got ", starts->scalar_type());
    TORCH_CHECK_VALUE(
        starts->dim() == 1 && starts->size(0) >= 1 && starts->is_contiguous(),
        "amopo: starts must be contiguous [P + 1], got ", starts->sizes());
  }
  TORCH_CHECK_VALUE(
      starts_q.sizes() == starts_k.sizes(), "amopo: there are starts of ", starts_q.size(0) - 1, " segments and of ",
      starts_k.size(0) - 1, " paths");
  const auto *q = starts_q.const_data_ptr<int32_t>(), *k = starts_k.const_data_ptr<int32_t>();
  const int64_t paths = starts_q.size(0) - 1;
  TORCH_CHECK_VALUE(
      q[0] == 0 && k[0] == 0 && q[paths] == queries && k[paths] == keys, "amopo: segments run from ", q[0], " to ",
      q[paths], " and paths from ", k[0], " to ", k[paths], ", but there are ", queries, " queries and ", keys,
      " keys");
  for (int64_t p = 0; p < paths; ++p) {
    const int64_t of_segment = int64_t{q[p + 1]} - q[p], of_path = int64_t{k[p + 1]} - k[p];
    TORCH_CHECK_VALUE(
        0 <= of_segment && of_segment <= of_path, "amopo: segment ", p, " has ", of_segment, " queries and its path ",
        of_path, " keys; the segment is the end of its path");
  }
}

AttentionCall call_of(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse, const Tensor& starts_q,
    const Tensor& starts_k, double scaling, int64_t window) {
  check_dtype(k, q, "k");
  check_dtype(v, q, "v");
  TORCH_CHECK_VALUE(
      k.size(0) == v.size(0) && k.size(1) == v.size(1) && k.size(2) == q.size(2), "amopo: keys ", k.sizes(),
      " and values ", v.sizes(), " do not fit to each other and to queries ", q.sizes());
  TORCH_CHECK_VALUE(
      k.size(1) > 0 && q.size(1) > 0 && q.size(1) % k.size(1) == 0, "amopo: ", q.size(1),
      " query heads do not share ", k.size(1),
      " key heads evenly");
  TORCH_CHECK_VALUE(q.size(2) > 0 && v.size(2) > 0, "amopo: heads of size 0");
  TORCH_CHECK_VALUE(window >= 0, "amopo: a window of ", window, " keys; 0 is none");
  check_starts(starts_q, starts_k, q.size(0), k.size(0));
  return {
      dtype_of(q, "q"), starts_q.const_data_ptr<int32_t>(), starts_k.const_data_ptr<int32_t>(), starts_q.size(0) - 1,
      q.size(1), k.size(1), q.size(2), v.size(2), window > 0 ? window : std::numeric_limits<int32_t>::max(),
      static_cast<float>(scaling), heads_of(q), heads_of(k), heads_of(v), heads_of(out),
      const_cast<float*>(lse.const_data_ptr<float>())};
}

std::tuple<Tensor, Tensor> path_attention_op(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& starts_q, const Tensor& starts_k, double scaling,
    int64_t window) {
  check_dimensions(q, k, v);
  const Tensor own_q = with_unit_stride(q), own_k = with_unit_stride(k), own_v = with_unit_stride(v);
  const Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  const Tensor lse = at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
  attention_forward(call_of(own_q, own_k, own_v, out, lse, starts_q, starts_k, scaling, window));
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> path_attention_backward_op(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
    const Tensor& starts_q, const Tensor& starts_k, double scaling, int64_t window) {
  check_dimensions(q, k, v);
  check_dimensions(grad, out, q);
  check_dtype(grad, q, "the gradient");
  check_dtype(out, q, "out");
  const std::array<int64_t, 3> shape{q.size(0), q.size(1), v.size(2)};
  const at::IntArrayRef sizes(shape);
  TORCH_CHECK_VALUE(
      grad.sizes() == sizes && out.sizes() == sizes, "amopo: out ", out.sizes(), " and its gradient ", grad.sizes(),
      " must be ", sizes);
  TORCH_CHECK_VALUE(
      lse.scalar_type() == at::kFloat && lse.sizes() == q.sizes().slice(0, 2) && lse.is_contiguous(),
      "amopo: lse must be contiguous fp32 [tokens, heads], got ", lse.scalar_type(), " ", lse.sizes());
  const Tensor own_q = with_unit_stride(q), own_k = with_unit_stride(k), own_v = with_unit_stride(v);
  const Tensor own_grad = with_unit_stride(grad), own_out = with_unit_stride(out);
  const AttentionCall call = call_of(own_q, own_k, own_v, own_out, lse, starts_q, starts_k, scaling, window);
  const Tensor dq = at::empty(q.sizes(), q.options());
  const Tensor dk = at::empty(k.sizes(), k.options()), dv = at::empty(v.sizes(), v.options());
  attention_backward(call, {heads_of(own_grad), heads_of(dq), heads_of(dk), heads_of(dv)});
  return {dq, dk, dv};
}

} // namespace

TORCH_LIBRARY_IMPL(amopo, CPU, m) {
  m.impl("path_attention", path_attention_op);
  m.impl("path_attention_backward", path_attention_backward_op);
}

} // namespace amopo
