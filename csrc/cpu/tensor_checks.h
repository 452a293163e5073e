// What a tensor must be before its memory is handed to a kernel.
#pragma once

#include "kernels.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace amopo {

inline Dtype dtype_of(const at::Tensor& tensor, const char* what) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Dtype::Float;
    case at::kBFloat16:
      return Dtype::BFloat16;
    case at::kHalf:
      return Dtype::Half;
    default:
      TORCH_CHECK_TYPE(
          false, "amopo: ", what, " must be float32, bfloat16 or float16, got ", tensor.scalar_type(),
          "; the eager form takes float64");
  }
}

inline void check_matrix(const at::Tensor& matrix, const char* what) {
  TORCH_CHECK_VALUE(matrix.dim() == 2, "amopo: ", what, " must be [rows, columns], got ", matrix.sizes());
  TORCH_CHECK_VALUE(
      matrix.size(1) <= 1 || matrix.stride(1) == 1, "amopo: ", what, " must have unit column stride, got strides ",
      matrix.strides());
}

inline void check_vector(const at::Tensor& vector, int64_t size, at::ScalarType dtype, const char* what) {
  TORCH_CHECK_VALUE(
      vector.dim() == 1 && vector.size(0) == size, "amopo: ", what, " must be [", size, "], got ", vector.sizes());
  TORCH_CHECK_TYPE(vector.scalar_type() == dtype, "amopo: ", what, " must be ", dtype, ", got ", vector.scalar_type());
  TORCH_CHECK_VALUE(
      size <= 1 || vector.stride(0) == 1, "amopo: ", what, " must be contiguous, got stride ", vector.strides());
}

} // namespace amopo
