// Causal attention of segments against the paths of a packed row: raw memory, any CPU; the operations stand in
// attention_operations.cpp, the loops over a row of scores in attention_kernel.cpp.
#pragma once

#include "kernels.h"

#include <cstdint>

namespace amopo {

// `data[row * stride_row + head * stride_head + i]`, in elements of the call's dtype.
struct Heads {
  void* data;
  std::int64_t stride_row, stride_head;
};

// Segment p owns the queries starts_q[p] to starts_q[p + 1], path p the keys starts_k[p] to starts_k[p + 1]. Its last
// query sees its last key; a query sees at most `window` keys.
struct AttentionCall {
  Dtype dtype;
  const std::int32_t *starts_q, *starts_k;
  std::int64_t paths, query_heads, key_heads, size_k, size_v, window;
  float scaling;
  Heads q, k, v, out; // queries [T, query_heads, size_k], keys and values [S, key_heads, .]
  float* lse; // [T, query_heads], log of the sum of exponentials
};

struct AttentionGradients {
  Heads grad, dq, dk, dv; // grad is given, the others are written
};

void attention_forward(const AttentionCall& call);
void attention_backward(const AttentionCall& call, const AttentionGradients& gradients);

} // namespace amopo
