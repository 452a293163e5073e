// Counter-based Gaussian noise: Philox4x32-10 (Salmon et al., SC 2011), then Box-Muller; as in amopo_kernels/philox.py.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace amopo {

inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::uint64_t key) {
  auto key_low = static_cast<std::uint32_t>(key), key_high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t second = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {
        static_cast<std::uint32_t>(second >> 32) ^ counter[1] ^ key_low,
        static_cast<std::uint32_t>(second),
        static_cast<std::uint32_t>(first >> 32) ^ counter[3] ^ key_high,
        static_cast<std::uint32_t>(first)};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// The first normal of (seed, step, sample id, objective).
inline double gaussian_noise(std::uint64_t seed, std::uint32_t step, std::int64_t sample_id, std::uint32_t objective) {
  const auto id = static_cast<std::uint64_t>(sample_id);
  const auto words =
      philox4x32({step, static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32), objective}, seed);
  // Upper 24 bits: u1 in (0, 1], u2 in [0, 1).
  const double u1 = (static_cast<double>(words[0] >> 8) + 1.0) * 0x1p-24;
  const double u2 = static_cast<double>(words[1] >> 8) * 0x1p-24;
  constexpr double kTwoPi = 6.283185307179586476925;
  return std::sqrt(-2.0 * std::log(u1)) * std::cos(kTwoPi * u2);
}

} // namespace amopo
