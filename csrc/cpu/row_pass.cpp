// Rows over threads, the clamp, and what is done once per row; the loops over columns are in row_kernel.cpp.
#include "row_pass.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace amopo {
namespace {

constexpr float kClamp = 40.0f;
constexpr float kHalfScale = 4096.0f;
// Sums are added up piece by piece, in order, whoever computes them: the same bits for any number of threads.
constexpr std::int64_t kPiece = 16384;

constexpr std::int64_t item_size(Dtype dtype) {
  return dtype == Dtype::Float ? 4 : 2;
}

class Rows {
 public:
  explicit Rows(const RowArguments& arguments)
      : a_(arguments),
        kernels_(kernels().rows[static_cast<int>(arguments.logits_dtype)][static_cast<int>(arguments.out_dtype)]),
        logits_item_(item_size(arguments.logits_dtype)),
        out_item_(item_size(arguments.out_dtype)) {}

  std::int64_t pieces() const {
    return (a_.columns + kPiece - 1) / kPiece;
  }

  float target_logit(std::int64_t row) const {
    return kernels_.value(span(row, a_.targets[row], a_.targets[row] + 1));
  }

  float maximum(std::int64_t row, std::int64_t piece) const {
    float largest = -std::numeric_limits<float>::infinity();
    around_target(row, piece, [&](const Span& part) { largest = std::max(largest, kernels_.maximum(part)); });
    return largest;
  }

  // Sum and maximum over one piece without the target; writes G if `write`.
  Mass mass(std::int64_t row, std::int64_t piece, float reference, bool write) const {
    Mass total{0.0, -std::numeric_limits<float>::infinity()};
    around_target(row, piece, [&](const Span& part) {
      const Mass mass = write ? kernels_.emit(part, reference) : kernels_.accumulate(part, reference);
      total = {total.sum + mass.sum, std::max(total.maximum, mass.maximum)};
    });
    return total;
  }

  Mass mass(std::int64_t row, float reference, bool write) const {
    Mass total{0.0, -std::numeric_limits<float>::infinity()};
    for (std::int64_t piece = 0; piece < pieces(); ++piece) {
      const Mass mass = this->mass(row, piece, reference, write);
      total = {total.sum + mass.sum, std::max(total.maximum, mass.maximum)};
    }
    return total;
  }

  void emit_scaled(std::int64_t row, std::int64_t piece, float factor) const {
    around_target(
        row, piece, [&](const Span& part) { kernels_.emit_scaled(part, a_.reference[row], factor); });
  }

  // G_y = -S, damped and scaled as the rest of the row.
  void store_target(std::int64_t row, float z, float factor) const {
    const float ratio = a_.softcap != 0.0f ? z / a_.softcap : 0.0f;
    const float g = -a_.mass[row] * (1.0f - ratio * ratio) * factor;
    const std::int64_t index = row * a_.out_stride + a_.targets[row];
    switch (a_.out_dtype) {
      case Dtype::Float:
        static_cast<float*>(a_.out)[index] = g;
        break;
      case Dtype::BFloat16:
        static_cast<c10::BFloat16*>(a_.out)[index] = g;
        break;
      case Dtype::Half:
        static_cast<c10::Half*>(a_.out)[index] = g;
        break;
    }
  }

 private:
  Span span(std::int64_t row, std::int64_t begin, std::int64_t end) const {
    return {
        static_cast<const char*>(a_.logits) + (row * a_.logits_stride + begin) * logits_item_,
        a_.out == nullptr ? nullptr : static_cast<char*>(a_.out) + (row * a_.out_stride + begin) * out_item_,
        a_.bias == nullptr ? nullptr : a_.bias + begin,
        end - begin,
        a_.scale,
        a_.softcap};
  }

  template <typename Body>
  void around_target(std::int64_t row, std::int64_t piece, const Body& body) const {
    const std::int64_t begin = piece * kPiece;
    const std::int64_t end = std::min(begin + kPiece, a_.columns);
    const std::int64_t target = a_.targets[row];
    if (target < begin || target >= end) {
      body(span(row, begin, end));
      return;
    }
    if (target > begin) {
      body(span(row, begin, target));
    }
    if (target + 1 < end) {
      body(span(row, target + 1, end));
    }
  }

  const RowArguments& a_;
  const RowKernels& kernels_;
  const std::int64_t logits_item_, out_item_;
};

bool is_clamped(float maximum, float z) {
  return maximum - z > kClamp;
}

struct Finished {
  float logp, mass, factor;
};

// logp, S and 1 / (e_y + S) in double: rounded once.
Finished finish(float z, float reference, double sum) {
  if (!(z < std::numeric_limits<float>::infinity())) {
    sum = std::numeric_limits<double>::quiet_NaN(); // NaN, or inf - inf as in log_softmax
  }
  const double shift = static_cast<double>(z) - static_cast<double>(reference);
  const bool at_target = reference == z || std::isnan(shift);
  const double total = (at_target ? 1.0 : std::exp(shift)) + sum;
  const double logp = at_target ? -std::log1p(sum) : shift - std::log(total);
  return {static_cast<float>(logp), static_cast<float>(sum), static_cast<float>(1.0 / total)};
}

} // namespace

void row_pass(const RowArguments& a, float* logp) {
  const Rows rows(a);
  const std::int64_t pieces = rows.pieces();
  const bool write = a.out != nullptr;
  const bool in_place = a.out == a.logits;
  const bool scaled = write && a.half_range; // needs S before the first G

  const auto conclude = [&](std::int64_t row, float z, float reference, double sum) {
    const Finished finished = finish(z, reference, sum);
    logp[row] = finished.logp;
    a.reference[row] = reference;
    a.mass[row] = finished.mass;
    a.factor[row] = finished.factor;
  };
  const auto g_factor = [&](std::int64_t row) { return a.half_range ? kHalfScale * a.factor[row] : 1.0f; };

  if (a.rows < at::get_num_threads() && pieces > 1 && !at::in_parallel_region()) {
    // Fewer rows than threads: pieces of rows in parallel. The maximum comes first, so that r is known everywhere.
    std::vector<Mass> partial(a.rows * pieces);
    std::vector<float> targets(a.rows), references(a.rows);
    const auto each = [&](const auto& body) {
      at::parallel_for(0, a.rows * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) {
          body(index / pieces, index % pieces, partial[index]);
        }
      });
    };
    each([&](std::int64_t row, std::int64_t piece, Mass& mass) { mass.maximum = rows.maximum(row, piece); });
    for (std::int64_t row = 0; row < a.rows; ++row) {
      targets[row] = rows.target_logit(row);
      float maximum = targets[row];
      for (std::int64_t piece = 0; piece < pieces; ++piece) {
        maximum = std::max(maximum, partial[row * pieces + piece].maximum);
      }
      references[row] = is_clamped(maximum, targets[row]) ? maximum - kClamp : targets[row];
    }
    each([&](std::int64_t row, std::int64_t piece, Mass& mass) {
      mass = rows.mass(row, piece, references[row], write && !scaled);
    });
    for (std::int64_t row = 0; row < a.rows; ++row) {
      double sum = 0.0;
      for (std::int64_t piece = 0; piece < pieces; ++piece) {
        sum += partial[row * pieces + piece].sum;
      }
      conclude(row, targets[row], references[row], sum);
    }
    if (scaled) {
      each([&](std::int64_t row, std::int64_t piece, Mass&) { rows.emit_scaled(row, piece, g_factor(row)); });
    }
    if (write) {
      for (std::int64_t row = 0; row < a.rows; ++row) {
        rows.store_target(row, targets[row], g_factor(row));
      }
    }
    return;
  }

  at::parallel_for(0, a.rows, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float z = rows.target_logit(row);
      const bool streams = write && !scaled && !in_place;
      float reference = z;
      double sum;
      if (write && !scaled && in_place) {
        // An overflowed row that was written over is lost: its maximum comes first.
        float maximum = z;
        for (std::int64_t piece = 0; piece < pieces; ++piece) {
          maximum = std::max(maximum, rows.maximum(row, piece));
        }
        reference = is_clamped(maximum, z) ? maximum - kClamp : z;
        sum = rows.mass(row, reference, true).sum;
      } else {
        // One read with r = z_y; only the rare clamped row is done again.
        const Mass mass = rows.mass(row, z, streams);
        sum = mass.sum;
        if (is_clamped(mass.maximum, z)) {
          reference = mass.maximum - kClamp;
          sum = rows.mass(row, reference, streams).sum;
        }
      }
      conclude(row, z, reference, sum);
      if (scaled) {
        for (std::int64_t piece = 0; piece < pieces; ++piece) {
          rows.emit_scaled(row, piece, g_factor(row));
        }
      }
      if (write) {
        rows.store_target(row, z, g_factor(row));
      }
    }
  });
}

void tile_pass(const RowArguments& a) {
  const Rows rows(a);
  const std::int64_t pieces = rows.pieces();
  // Every (row, piece) stands alone here: rows are cut when there are too few of them.
  const std::int64_t grain = a.rows < at::get_num_threads() ? 1 : std::max<std::int64_t>(1, pieces);
  at::parallel_for(0, a.rows * pieces, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t row = index / pieces, piece = index % pieces;
      const float factor = a.half_range ? kHalfScale * a.factor[row] : 1.0f;
      const std::int64_t target = a.targets[row];
      const bool here = target / kPiece == piece && target >= 0 && target < a.columns;
      const float z = here ? rows.target_logit(row) : 0.0f;
      rows.emit_scaled(row, piece, factor);
      if (here) {
        rows.store_target(row, z, factor);
      }
    }
  });
}

} // namespace amopo
