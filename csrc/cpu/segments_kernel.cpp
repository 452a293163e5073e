// Moments of one sequence's token probabilities, in double, and this capability's table; compiled once per capability.
#include "kernels.h"
#include "lanes.h"

#include <ATen/cpu/vec/vec.h>

namespace amopo {
inline namespace CPU_CAPABILITY {

void fill_row_kernels(RowKernels (&table)[kDtypes][kDtypes]);
void fill_attention_kernels(Kernels& table);

namespace {

using VecDouble = at::vec::Vectorized<double>;
constexpr std::int64_t kLanes = VecDouble::size();

constexpr std::int64_t kBlock = 256; // 2 KiB of doubles on the stack: one exponential per token, two passes over them

// Mean first, then squares about it: E[p^2] - E[p]^2 would cancel for confident tokens. Blocks are joined by Chan's
// merge (Chan, Golub, LeVeque 1979), which does not cancel either.
Moments moments(const float* logps, std::int64_t size) {
  alignas(64) double probs[kBlock];
  double sum_logp = 0.0, mean = 0.0, square = 0.0;
  for (std::int64_t first = 0; first < size; first += kBlock) {
    const std::int64_t count = size - first < kBlock ? size - first : kBlock;
    const std::int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    for (std::int64_t i = 0; i < count; ++i) {
      probs[i] = static_cast<double>(logps[first + i]);
    }
    for (std::int64_t i = count; i < padded; ++i) {
      probs[i] = 0.0;
    }
    VecDouble block_logp(0.0), block_prob(0.0), block_square(0.0);
    for (std::int64_t i = 0; i < padded; i += kLanes) {
      const VecDouble logp = VecDouble::loadu(probs + i);
      const VecDouble prob = VecDouble::set(VecDouble(0.0), logp.exp(), count - i);
      block_logp = block_logp + logp;
      block_prob = block_prob + prob;
      prob.store(probs + i);
    }
    const auto n = static_cast<double>(count), before = static_cast<double>(first);
    const double block_mean = add_lanes(block_prob) / n;
    for (std::int64_t i = 0; i < padded; i += kLanes) {
      const VecDouble centred =
          VecDouble::set(VecDouble(0.0), VecDouble::loadu(probs + i) - VecDouble(block_mean), count - i);
      block_square = at::vec::fmadd(centred, centred, block_square);
    }
    const double difference = block_mean - mean, total = before + n;
    square += add_lanes(block_square) + difference * difference * before * n / total;
    mean += difference * n / total;
    sum_logp += add_lanes(block_logp);
  }
  return {sum_logp, mean, size > 0 ? square / static_cast<double>(size) : 0.0};
}

} // namespace
} // namespace CPU_CAPABILITY

#define AMOPO_STRING_OF(name) #name
#define AMOPO_STRING(name) AMOPO_STRING_OF(name)
#define AMOPO_JOIN_OF(prefix, name) prefix##name
#define AMOPO_JOIN(prefix, name) AMOPO_JOIN_OF(prefix, name)

const Kernels& AMOPO_JOIN(kernels_, CPU_CAPABILITY)() {
  static const Kernels table = [] {
    Kernels filled{};
    filled.capability = AMOPO_STRING(CPU_CAPABILITY);
    fill_row_kernels(filled.rows);
    filled.moments = moments;
    fill_attention_kernels(filled);
    return filled;
  }();
  return table;
}

} // namespace amopo
