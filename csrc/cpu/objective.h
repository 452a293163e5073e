// Multi-Objective Bradley-Terry over raw memory: from token log-probs to losses and one coefficient per sequence.
#pragma once

#include <cstdint>

namespace amopo {

enum class Weights : int { Given = 0, Gaussian = 1, Mean = 2, Uniform = 3 };

constexpr std::int64_t kLogged = 10;

struct ObjectiveArguments {
  const float* logps; // [N]
  const std::int64_t *starts, *stops; // [B, K, 2]: sequence (sample, objective, chosen | rejected) of logps
  const float* given; // [B, K]; only for Weights::Given
  const std::int64_t* sample_ids; // [B]; only for Weights::Gaussian
  const bool* present; // [B, K]: which objectives count, at least one per sample; null: all
  std::int64_t samples, objectives;
  double beta, gamma;
  Weights weights;
  bool pooled_union;
  std::uint64_t seed;
  std::uint32_t step;
  float* losses; // [B]
  float* alpha; // [B, K]
  float *coefficients, *sums, *lengths; // [B, K, 2]
  float* logged; // [B, kLogged, K], rows in the order of LOGGED in amopo_kernels/mobt.py
};

void mobt(const ObjectiveArguments& arguments);

// Per segment, each [S]: sum of log-probs, tokens, mean and population variance of token probabilities.
void sequence_stats(
    const float* logps,
    const std::int64_t* starts,
    const std::int64_t* stops,
    std::int64_t sequences,
    float* sum_logp,
    float* length,
    float* mean,
    float* variance);

} // namespace amopo
