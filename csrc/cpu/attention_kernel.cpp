// Softmax of a row of attention scores and its gradient, in fp32; compiled once per CPU capability.
#include "exponential.h"
#include "kernels.h"
#include "lanes.h"

#include <ATen/cpu/vec/vec.h>

#include <limits>

namespace amopo {
inline namespace CPU_CAPABILITY {

void fill_attention_kernels(Kernels& table);

namespace {

constexpr std::int64_t kLanes = Vec::size();
// A NaN among the scores may be skipped by the maximum; it shows in the sum.
float exponentials(float* scores, std::int64_t size, Softmax& state) {
  const float lowest = -std::numeric_limits<float>::infinity();
  const std::int64_t whole = size / kLanes * kLanes, rest = size - whole;
  Vec highest(lowest);
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    highest = at::vec::maximum(highest, Vec::loadu(scores + i));
  }
  if (rest > 0) {
    highest = at::vec::maximum(highest, Vec::set(Vec(lowest), Vec::loadu(scores + whole, rest), rest));
  }
  const float before = state.maximum, found = largest_lane(highest), maximum = found > before ? found : before;
  // -inf less -inf would be NaN; a row of nothing else has the sum 0 and becomes NaN at its end
  const Vec about(maximum == lowest ? 0.0f : maximum);
  Vec sum(0.0f);
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const Vec value = exponential(Vec::loadu(scores + i) - about);
    value.store(scores + i);
    sum = sum + value;
  }
  if (rest > 0) {
    const Vec value = exponential(Vec::loadu(scores + whole, rest) - about);
    value.store(scores + whole, rest);
    sum = sum + Vec::set(Vec(0.0f), value, rest);
  }
  float rescale[kLanes];
  exponential(Vec(before == lowest ? -88.0f : before - maximum)).store(rescale);
  const float factor = before == lowest ? 0.0f : rescale[0];
  state = {maximum, state.sum * factor + static_cast<float>(add_lanes(sum))};
  return factor;
}

void probabilities(float* scores, float* gradients, std::int64_t size, float lse, float delta) {
  const std::int64_t whole = size / kLanes * kLanes, rest = size - whole;
  const Vec about(lse), mean(delta);
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const Vec p = exponential(Vec::loadu(scores + i) - about);
    p.store(scores + i);
    (p * (Vec::loadu(gradients + i) - mean)).store(gradients + i);
  }
  if (rest > 0) {
    const Vec p = exponential(Vec::loadu(scores + whole, rest) - about);
    p.store(scores + whole, rest);
    (p * (Vec::loadu(gradients + whole, rest) - mean)).store(gradients + whole, rest);
  }
}

} // namespace

void fill_attention_kernels(Kernels& table) {
  table.exponentials = exponentials;
  table.probabilities = probabilities;
}

} // namespace CPU_CAPABILITY
} // namespace amopo
