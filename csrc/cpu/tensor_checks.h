// What a tensor must be before its memory is handed to a kernel.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace amopo {

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
