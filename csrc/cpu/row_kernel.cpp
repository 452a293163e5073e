// The element-wise loops of the row pass; compiled once per CPU capability.
#include "exponential.h"
#include "kernels.h"
#include "lanes.h"

#include <ATen/cpu/vec/functional.h>

#include <limits>
#include <type_traits>

namespace amopo {
inline namespace CPU_CAPABILITY {
namespace {

constexpr std::int64_t kLanes = Vec::size();
constexpr std::int64_t kStep = 2 * kLanes; // one vector of a 16-bit type
constexpr std::int64_t kBlock = 1024; // terms added up in one go: 32 to 64 per lane, so that fp32 sums do not drift
// Bytes that are asked for ahead: hardware prefetching stops at every page, which this loop feels (52 against 45 ms for
// 512 x 151936 logits on one core).
constexpr std::int64_t kAhead = 4096;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Pair {
  Vec low, high;
};

template <typename T>
inline Pair load(const T* data, std::int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    if (count == kStep) {
      return {Vec::loadu(data), Vec::loadu(data + kLanes)};
    }
    return {
        Vec::loadu(data, count < kLanes ? count : kLanes),
        count > kLanes ? Vec::loadu(data + kLanes, count - kLanes) : Vec(0.0f)};
  } else {
    auto [low, high] = at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(data, count));
    return {low, high};
  }
}

template <typename T>
inline void store(T* data, const Pair& pair, std::int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    if (count == kStep) {
      pair.low.store(data);
      pair.high.store(data + kLanes);
      return;
    }
    pair.low.store(data, count < kLanes ? count : kLanes);
    if (count > kLanes) {
      pair.high.store(data + kLanes, count - kLanes);
    }
  } else {
    at::vec::convert_from_float<T>(pair.low, pair.high).store(data, count);
  }
}

inline Vec keep_first(const Vec& value, std::int64_t count) {
  return count <= 0 ? Vec(-kInfinity) : Vec::set(Vec(-kInfinity), value, count);
}

// z of `count` elements from `column` on; lanes past them are -inf, whose exponential is 0.
template <typename T, bool kTransform>
inline Pair transformed(const Span& span, std::int64_t column, std::int64_t count) {
  __builtin_prefetch(static_cast<const T*>(span.logits) + column + kAhead / sizeof(T));
  Pair z = load(static_cast<const T*>(span.logits) + column, count);
  if constexpr (kTransform) {
    if (span.bias != nullptr) {
      const Pair bias = load(span.bias + column, count);
      z = {z.low + bias.low, z.high + bias.high};
    }
    const Vec scale(span.scale);
    z = {z.low * scale, z.high * scale};
    if (span.softcap != 0.0f) {
      const Vec cap(span.softcap);
      z = {(z.low / cap).tanh() * cap, (z.high / cap).tanh() * cap};
    }
  }
  if (count < kStep) {
    z = {keep_first(z.low, count), keep_first(z.high, count - kLanes)};
  }
  return z;
}

inline Vec damped(const Vec& value, const Vec& z, const Vec& inverse_cap) {
  const Vec ratio = z * inverse_cap;
  return value * at::vec::fnmadd(ratio, ratio, Vec(1.0f));
}

// clamp_min(a, b) gives a where b is NaN: NaN never enters the maximum.
inline Vec larger(const Vec& maximum, const Vec& z) {
  return at::vec::clamp_min(maximum, z);
}

// Calls `body(column, count)` for whole steps, then for the rest.
template <typename Body>
inline void steps(std::int64_t begin, std::int64_t end, const Body& body) {
  std::int64_t column = begin;
  for (; column + kStep <= end; column += kStep) {
    body(column, kStep);
  }
  if (column < end) {
    body(column, end - column);
  }
}

template <typename T, bool kTransform>
float maximum_of(const Span& span) {
  Pair largest{Vec(-kInfinity), Vec(-kInfinity)};
  steps(0, span.size, [&](std::int64_t column, std::int64_t count) {
    const Pair z = transformed<T, kTransform>(span, column, count);
    largest = {larger(largest.low, z.low), larger(largest.high, z.high)};
  });
  return largest_lane(larger(largest.low, largest.high));
}

template <typename T, typename Out, bool kTransform, bool kStore>
Mass mass_of(const Span& span, float reference) {
  const Vec r(reference);
  const bool damp = kTransform && kStore && span.softcap != 0.0f;
  const Vec inverse_cap(damp ? 1.0f / span.softcap : 0.0f);
  Pair largest{Vec(-kInfinity), Vec(-kInfinity)};
  Pair total{Vec(0.0f), Vec(0.0f)};
  for (std::int64_t begin = 0; begin < span.size; begin += kBlock) {
    const std::int64_t end = begin + kBlock < span.size ? begin + kBlock : span.size;
    Pair block{Vec(0.0f), Vec(0.0f)};
    steps(begin, end, [&](std::int64_t column, std::int64_t count) {
      const Pair z = transformed<T, kTransform>(span, column, count);
      largest = {larger(largest.low, z.low), larger(largest.high, z.high)};
      Pair g{exponential(z.low - r), exponential(z.high - r)};
      block = {block.low + g.low, block.high + g.high};
      if constexpr (kStore) {
        if (damp) {
          g = {damped(g.low, z.low, inverse_cap), damped(g.high, z.high, inverse_cap)};
        }
        store(static_cast<Out*>(span.out) + column, g, count);
      }
    });
    total = {total.low + block.low, total.high + block.high};
  }
  return {add_lanes(total.low) + add_lanes(total.high), largest_lane(larger(largest.low, largest.high))};
}

template <typename T, typename Out, bool kTransform>
void scaled_of(const Span& span, float reference, float factor) {
  const Vec r(reference), f(factor);
  const bool damp = kTransform && span.softcap != 0.0f;
  const Vec inverse_cap(damp ? 1.0f / span.softcap : 0.0f);
  steps(0, span.size, [&](std::int64_t column, std::int64_t count) {
    const Pair z = transformed<T, kTransform>(span, column, count);
    Pair g{exponential(z.low - r) * f, exponential(z.high - r) * f};
    if (damp) {
      g = {damped(g.low, z.low, inverse_cap), damped(g.high, z.high, inverse_cap)};
    }
    store(static_cast<Out*>(span.out) + column, g, count);
  });
}

inline bool is_transformed(const Span& span) {
  return span.bias != nullptr || span.scale != 1.0f || span.softcap != 0.0f;
}

template <typename T, typename Out>
constexpr RowKernels row_kernels() {
  return {
      [](const Span& span) { return is_transformed(span) ? maximum_of<T, true>(span) : maximum_of<T, false>(span); },
      [](const Span& span, float reference) {
        return is_transformed(span) ? mass_of<T, Out, true, false>(span, reference)
                                    : mass_of<T, Out, false, false>(span, reference);
      },
      [](const Span& span, float reference) {
        return is_transformed(span) ? mass_of<T, Out, true, true>(span, reference)
                                    : mass_of<T, Out, false, true>(span, reference);
      },
      [](const Span& span, float reference, float factor) {
        return is_transformed(span) ? scaled_of<T, Out, true>(span, reference, factor)
                                    : scaled_of<T, Out, false>(span, reference, factor);
      },
      [](const Span& span) {
        float lanes[kLanes];
        transformed<T, true>(span, 0, 1).low.store(lanes);
        return lanes[0];
      },
  };
}

constexpr RowKernels kUnsupported{nullptr, nullptr, nullptr, nullptr, nullptr};

} // namespace

// Rows: dtype of the logits; columns: dtype of G. Half precision logits only give G of their own dtype.
void fill_row_kernels(RowKernels (&table)[kDtypes][kDtypes]) {
  table[0][0] = row_kernels<float, float>();
  table[0][1] = row_kernels<float, c10::BFloat16>();
  table[0][2] = row_kernels<float, c10::Half>();
  table[1][1] = row_kernels<c10::BFloat16, c10::BFloat16>();
  table[2][2] = row_kernels<c10::Half, c10::Half>();
  table[1][0] = table[1][2] = table[2][0] = table[2][1] = kUnsupported;
}

} // namespace CPU_CAPABILITY
} // namespace amopo
