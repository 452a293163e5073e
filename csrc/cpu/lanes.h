// Over the lanes of one vector.
#pragma once

#include "exponential.h"

namespace amopo {
inline namespace CPU_CAPABILITY {

template <typename T>
double add_lanes(const at::vec::Vectorized<T>& value) {
  constexpr std::int64_t kLanes = at::vec::Vectorized<T>::size();
  T lanes[kLanes];
  value.store(lanes);
  double sum = 0.0;
  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    sum += lanes[lane];
  }
  return sum;
}

inline float largest_lane(const Vec& value) {
  constexpr std::int64_t kLanes = Vec::size();
  float lanes[kLanes];
  value.store(lanes);
  float largest = lanes[0];
  for (std::int64_t lane = 1; lane < kLanes; ++lane) {
    largest = lanes[lane] > largest ? lanes[lane] : largest;
  }
  return largest;
}

} // namespace CPU_CAPABILITY
} // namespace amopo
