// What the vectorised kernels offer, independent of the CPU capability they were compiled for.
//
// The files *_kernel.cpp are compiled once per capability (DEFAULT, AVX2, AVX512). Everything in them lives in a
// namespace of that name, takes raw pointers and starts no threads: hardly any inline function of ATen or of the
// standard library is compiled with AVX instructions. Where one is, objects are linked in ascending order of
// capability, so that the linker keeps the one that runs everywhere.
#pragma once

#include <cstdint>

namespace amopo {

enum class Dtype : int { Float = 0, BFloat16 = 1, Half = 2 };
constexpr int kDtypes = 3;

// Consecutive logits of one row, none of them the target: z = softcap(scale * (logits + bias)).
struct Span {
  const void* logits;
  void* out; // where G goes; may be `logits`
  const float* bias; // nullptr: none
  std::int64_t size;
  float scale; // 1: none
  float softcap; // 0: none
};

struct Mass {
  double sum; // of exp(z - r)
  float maximum; // of z; NaN is skipped (it shows in `sum`)
};

// Per pair of dtypes (logits, out). Combinations that are not supported hold nullptr.
struct RowKernels {
  float (*maximum)(const Span&);
  Mass (*accumulate)(const Span&, float reference); // writes nothing
  Mass (*emit)(const Span&, float reference); // writes exp(z - r), damped by the softcap's derivative
  void (*emit_scaled)(const Span&, float reference, float factor); // the same times `factor`, no sum
  float (*value)(const Span&); // z of the first element
};

struct Moments {
  double sum_logp, mean, variance; // of the log-probs; of their exponentials (population variance)
};

// The running maximum of a row's scores and the sum of their exponentials about it.
struct Softmax {
  float maximum, sum;
};

struct Kernels {
  const char* capability;
  RowKernels rows[kDtypes][kDtypes];
  Moments (*moments)(const float* logps, std::int64_t size);
  // Scores become exponentials about the new maximum; returns what earlier ones must be multiplied by.
  float (*exponentials)(float* scores, std::int64_t size, Softmax& state);
  // Scores become probabilities p = exp(score - lse), the gradients of p become p * (gradient - delta).
  void (*probabilities)(float* scores, float* gradients, std::int64_t size, float lse, float delta);
};

const Kernels& kernels_DEFAULT();
#ifdef AMOPO_HAVE_AVX
const Kernels& kernels_AVX2();
const Kernels& kernels_AVX512();
#endif

// The best of those that torch would choose (ATEN_CPU_CAPABILITY included), decided once per process.
const Kernels& kernels();

} // namespace amopo
