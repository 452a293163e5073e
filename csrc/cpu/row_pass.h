// The row pass over raw memory: what amopo_kernels/row_pass.py says, for fp32, bf16 and fp16 logits.
#pragma once

#include "kernels.h"

#include <cstdint>

namespace amopo {

struct RowArguments {
  const void* logits; // [rows, columns], unit column stride
  void* out; // G; nullptr: not wanted; may be `logits`
  const std::int64_t* targets; // [rows]
  const float* bias; // [columns] or nullptr
  Dtype logits_dtype, out_dtype; // out_dtype = logits_dtype where out is nullptr
  std::int64_t rows, columns, logits_stride, out_stride; // strides in elements
  float scale, softcap; // 1 and 0: none
  bool half_range;
  float *reference, *mass, *factor; // [rows] each
};

// Fills logp, reference, mass, factor and G. Targets lie in [0, columns).
void row_pass(const RowArguments& arguments, float* logp);

// Writes G of a vocabulary tile from known reference, mass and factor. Targets outside [0, columns) are not here.
void tile_pass(const RowArguments& arguments);

} // namespace amopo
