// Samples over threads; everything of a sample in double, rounded once. Eq. 9 and 10 of AMoPO, Liu et al. 2025.
#include "objective.h"

#include "kernels.h"
#include "philox.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace amopo {
namespace {

constexpr std::int64_t kTokensPerTask = 4096; // about 20 us: below that threads cost more than they give

std::int64_t grain(std::int64_t tokens, std::int64_t tasks) {
  return std::max<std::int64_t>(1, kTokensPerTask * tasks / std::max<std::int64_t>(1, tokens));
}

std::int64_t total_length(const std::int64_t* starts, const std::int64_t* stops, std::int64_t sequences) {
  std::int64_t total = 0;
  for (std::int64_t s = 0; s < sequences; ++s) {
    total += stops[s] - starts[s];
  }
  return total;
}

// alpha = softmax over the objectives of one sample; -inf, of an absent one, gives 0
void softmax(std::vector<double>& scores) {
  double largest = -std::numeric_limits<double>::infinity(), total = 0.0;
  for (const double score : scores) {
    largest = std::max(largest, score);
  }
  for (double& score : scores) {
    score = std::exp(score - largest);
    total += score;
  }
  for (double& score : scores) {
    score /= total;
  }
}

void one_sample(const ObjectiveArguments& a, std::int64_t sample, std::vector<double>& alpha) {
  const Kernels& table = kernels();
  std::vector<double> margin(a.objectives), count_chosen(a.objectives), count_rejected(a.objectives);
  const bool* present = a.present == nullptr ? nullptr : a.present + sample * a.objectives;
  const std::int64_t counted =
      present == nullptr ? a.objectives : std::count(present, present + a.objectives, true);
  for (std::int64_t k = 0; k < a.objectives; ++k) {
    const std::int64_t position = sample * a.objectives + k;
    const std::int64_t start_w = a.starts[2 * position], start_l = a.starts[2 * position + 1];
    const std::int64_t length_w = a.stops[2 * position] - start_w, length_l = a.stops[2 * position + 1] - start_l;
    const Moments chosen = table.moments(a.logps + start_w, length_w);
    const Moments rejected = table.moments(a.logps + start_l, length_l);
    const auto t_w = static_cast<double>(length_w), t_l = static_cast<double>(length_l);
    double mu, variance;
    if (a.pooled_union) {
      const double total = std::max(1.0, t_w + t_l), difference = chosen.mean - rejected.mean;
      const double share_w = t_w / total, share_l = t_l / total;
      mu = share_w * chosen.mean + share_l * rejected.mean;
      variance = share_w * chosen.variance + share_l * rejected.variance + share_w * share_l * difference * difference;
    } else {
      mu = chosen.mean + rejected.mean;
      variance = chosen.variance + rejected.variance;
    }
    const double sigma = std::sqrt(variance);
    switch (a.weights) {
      case Weights::Given:
        alpha[k] = a.given[position];
        break;
      case Weights::Uniform:
        alpha[k] = 1.0 / static_cast<double>(counted);
        break;
      case Weights::Mean:
        alpha[k] = mu;
        break;
      case Weights::Gaussian:
        alpha[k] = mu + sigma * gaussian_noise(a.seed, a.step, a.sample_ids[sample], static_cast<std::uint32_t>(k));
        break;
    }
    if (present != nullptr && !present[k]) {
      const bool scored = a.weights == Weights::Gaussian || a.weights == Weights::Mean;
      alpha[k] = scored ? -std::numeric_limits<double>::infinity() : 0.0;
    }
    margin[k] = a.beta * (chosen.sum_logp / t_w - rejected.sum_logp / t_l) - a.gamma;
    count_chosen[k] = t_w;
    count_rejected[k] = t_l;
    const double reward_w = a.beta * chosen.sum_logp / t_w, reward_l = a.beta * rejected.sum_logp / t_l;
    float* logged = a.logged + sample * kLogged * a.objectives + k;
    const double values[] = {
        reward_w, reward_l, reward_w - reward_l, reward_w > reward_l ? 1.0 : 0.0, chosen.sum_logp, rejected.sum_logp};
    for (const double value : values) {
      *logged = static_cast<float>(value);
      logged += a.objectives;
    }
    logged[a.objectives] = static_cast<float>(mu); // behind alpha, which is not known yet
    logged[2 * a.objectives] = static_cast<float>(sigma);
    a.sums[2 * position] = static_cast<float>(chosen.sum_logp);
    a.sums[2 * position + 1] = static_cast<float>(rejected.sum_logp);
    a.lengths[2 * position] = static_cast<float>(t_w);
    a.lengths[2 * position + 1] = static_cast<float>(t_l);
  }
  if (a.weights == Weights::Gaussian || a.weights == Weights::Mean) {
    softmax(alpha);
  }
  double total = 0.0, entropy = 0.0;
  for (const double value : alpha) {
    total += value;
  }
  for (const double value : alpha) { // given weights need not add up to 1, and can all be 0; x ln x goes to 0 with x
    entropy -= value > 0.0 ? value / total * std::log(value / total) : 0.0;
  }
  float* logged = a.logged + sample * kLogged * a.objectives;
  double loss = 0.0;
  for (std::int64_t k = 0; k < a.objectives; ++k) {
    const std::int64_t position = sample * a.objectives + k;
    // softplus(-m) and sigmoid(-m), both from exp(-|m|), which cannot overflow
    const bool counts = present == nullptr || present[k]; // an absent one adds nothing, whatever its margin is
    const double m = counts ? margin[k] : 0.0, decay = std::exp(-std::abs(m));
    loss += alpha[k] * (std::max(-m, 0.0) + std::log1p(decay));
    const double slope = alpha[k] * a.beta * (m > 0.0 ? decay : 1.0) / (1.0 + decay);
    a.alpha[position] = static_cast<float>(alpha[k]);
    logged[6 * a.objectives + k] = static_cast<float>(alpha[k]);
    logged[9 * a.objectives + k] = static_cast<float>(entropy);
    a.coefficients[2 * position] = static_cast<float>(-slope / count_chosen[k]);
    a.coefficients[2 * position + 1] = static_cast<float>(slope / count_rejected[k]);
  }
  a.losses[sample] = static_cast<float>(loss);
}

} // namespace

void mobt(const ObjectiveArguments& a) {
  const std::int64_t tokens = total_length(a.starts, a.stops, 2 * a.samples * a.objectives);
  at::parallel_for(0, a.samples, grain(tokens, a.samples), [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> alpha(a.objectives);
    for (std::int64_t sample = begin; sample < end; ++sample) {
      one_sample(a, sample, alpha);
    }
  });
}

void sequence_stats(
    const float* logps,
    const std::int64_t* starts,
    const std::int64_t* stops,
    std::int64_t sequences,
    float* sum_logp,
    float* length,
    float* mean,
    float* variance) {
  const std::int64_t tokens = total_length(starts, stops, sequences);
  at::parallel_for(0, sequences, grain(tokens, sequences), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      const Moments moments = kernels().moments(logps + starts[s], stops[s] - starts[s]);
      sum_logp[s] = static_cast<float>(moments.sum_logp);
      length[s] = static_cast<float>(stops[s] - starts[s]);
      mean[s] = static_cast<float>(moments.mean);
      variance[s] = static_cast<float>(moments.variance);
    }
  });
}

} // namespace amopo
