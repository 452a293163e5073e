// What both directions of attention over paths share: units of work, threads, rows of heads as fp32 matrices.
#pragma once

#include "attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

namespace amopo {

constexpr std::int64_t kRows = 192; // of a block: queries times the heads that share keys, about
constexpr std::int64_t kKeys = 256; // of a block of scores: 192 KiB in fp32, with kRows
constexpr std::int64_t kQueries = 256; // of a unit of the forward

struct Unit {
  std::int64_t path, head, first, last; // queries of the segment
  double cost;
};

// Row-major [rows, columns]: the products of torch's BLAS without its dispatcher, which would look at thread-local
// state that the threads of a parallel region do not have.
inline at::Tensor matrix(const float* data, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  return at::from_blob(const_cast<float*>(data), {rows, columns}, {stride, 1}, at::TensorOptions(at::kFloat));
}

inline at::Tensor transposed(const float* data, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  return at::from_blob(const_cast<float*>(data), {columns, rows}, {1, stride}, at::TensorOptions(at::kFloat));
}

template <typename T>
void load_as(const Heads& from, std::int64_t row, std::int64_t head, std::int64_t size, float scale, float* to) {
  const T* source = static_cast<const T*>(from.data) + row * from.stride_row + head * from.stride_head;
  for (std::int64_t i = 0; i < size; ++i) {
    to[i] = static_cast<float>(source[i]) * scale;
  }
}

template <typename T>
void store_as(const Heads& to, std::int64_t row, std::int64_t head, std::int64_t size, float scale, const float* from) {
  T* target = static_cast<T*>(to.data) + row * to.stride_row + head * to.stride_head;
  for (std::int64_t i = 0; i < size; ++i) {
    target[i] = static_cast<T>(from[i] * scale);
  }
}

struct Conversion {
  void (*load)(const Heads&, std::int64_t, std::int64_t, std::int64_t, float, float*);
  void (*store)(const Heads&, std::int64_t, std::int64_t, std::int64_t, float, const float*);
};

inline Conversion conversion_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::BFloat16:
      return {load_as<c10::BFloat16>, store_as<c10::BFloat16>};
    case Dtype::Half:
      return {load_as<c10::Half>, store_as<c10::Half>};
    default:
      return {load_as<float>, store_as<float>};
  }
}

// Memory of one thread, cut into arrays that start at cache lines.
class Scratch {
 public:
  std::int64_t reserve(std::int64_t floats) {
    const std::int64_t start = size_;
    size_ += (floats + 15) / 16 * 16;
    return start;
  }
  std::int64_t size() const {
    return size_;
  }

 private:
  std::int64_t size_ = 0;
};

// What both directions need of a call: its units, blocks and conversions.
class Attention {
 public:
  explicit Attention(const AttentionCall& call)
      : call_(call),
        group_(call.query_heads / call.key_heads),
        block_(std::max<std::int64_t>(1, kRows / group_)),
        convert_(conversion_of(call.dtype)) {}

 protected:
  std::int64_t rows() const {
    return block_ * group_;
  }
  std::int64_t queries(std::int64_t path) const {
    return call_.starts_q[path + 1] - call_.starts_q[path];
  }
  std::int64_t keys(std::int64_t path) const {
    return call_.starts_k[path + 1] - call_.starts_k[path];
  }
  std::int64_t longest() const {
    std::int64_t found = 0;
    for (std::int64_t path = 0; path < call_.paths; ++path) {
      found = std::max(found, keys(path));
    }
    return found;
  }
  // The first key that a query of the segment sees, and one past the last.
  std::int64_t first_key(std::int64_t path, std::int64_t query) const {
    return std::max<std::int64_t>(0, end_key(path, query) - call_.window);
  }
  std::int64_t end_key(std::int64_t path, std::int64_t query) const {
    return keys(path) - queries(path) + query + 1;
  }

  // Of a block of `size` keys from `key` on, those that a query sees: [from, to).
  std::pair<std::int64_t, std::int64_t> seen(
      std::int64_t path, std::int64_t query, std::int64_t key, std::int64_t size) const {
    const std::int64_t from = std::clamp<std::int64_t>(first_key(path, query) - key, 0, size);
    return {from, std::clamp<std::int64_t>(end_key(path, query) - key, from, size)};
  }
  // Zeros for the others.
  static void clear_unseen(float* row, std::int64_t from, std::int64_t to, std::int64_t size) {
    std::fill(row, row + from, 0.0f);
    std::fill(row + to, row + size, 0.0f);
  }

  std::vector<Unit> units(std::int64_t queries_at_once) const {
    std::vector<Unit> found;
    for (std::int64_t path = 0; path < call_.paths; ++path) {
      std::int64_t first = 0;
      do { // once for a path without a query: its keys have a gradient, zero
        const std::int64_t last = std::min(first + queries_at_once, queries(path));
        const double seen = end_key(path, last - 1) - first_key(path, first);
        for (std::int64_t head = 0; head < call_.key_heads; ++head) {
          found.push_back({path, head, first, last, seen * static_cast<double>(last - first)});
        }
        first = last;
      } while (first < queries(path));
    }
    // the longest first, so that no thread is left with one at the end
    std::stable_sort(found.begin(), found.end(), [](const Unit& a, const Unit& b) { return a.cost > b.cost; });
    return found;
  }

  // Whichever thread is free takes the next unit; what a unit writes does not depend on the thread.
  template <typename Work>
  static void run(const std::vector<Unit>& units, std::int64_t scratch, const Work& work) {
    const auto count = static_cast<std::int64_t>(units.size());
    if (count == 0) {
      return;
    }
    // Two also for one unit: outside of a parallel region its products would run on all threads, and add in an order
    // that depends on their number.
    const auto threads = std::min<std::int64_t>(at::get_num_threads(), std::max<std::int64_t>(count, 2));
    const at::Tensor memory = at::empty({threads, scratch}, at::TensorOptions(at::kFloat));
    std::atomic<std::int64_t> next{0};
    at::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t thread = begin; thread < end; ++thread) {
        float* own = memory.data_ptr<float>() + thread * scratch;
        for (std::int64_t unit = next++; unit < count; unit = next++) {
          work(units[unit], own);
        }
      }
    });
  }

  // [keys of the path, size] of one head in fp32: the tensor itself where it can be, else a copy of what the unit sees.
  const float* keys_of(const Heads& from, const Unit& unit, std::int64_t size, float* memory, std::int64_t& stride)
      const {
    const std::int64_t start = call_.starts_k[unit.path];
    if (call_.dtype == Dtype::Float) {
      stride = from.stride_row;
      return static_cast<const float*>(from.data) + start * from.stride_row + unit.head * from.stride_head;
    }
    stride = size;
    const std::int64_t first = first_key(unit.path, unit.first), end = end_key(unit.path, unit.last - 1);
    for (std::int64_t key = first; unit.first < unit.last && key < end; ++key) {
      convert_.load(from, start + key, unit.head, size, 1.0f, memory + key * size);
    }
    return memory;
  }

  // Rows (query, head of the group) of the queries `first` to `last`: [(last - first) * group, size].
  void load_queries(
      const Heads& from, const Unit& unit, std::int64_t first, std::int64_t last, std::int64_t size, float scale,
      float* memory) const {
    for (std::int64_t query = first; query < last; ++query) {
      for (std::int64_t member = 0; member < group_; ++member, memory += size) {
        convert_.load(
            from, call_.starts_q[unit.path] + query, unit.head * group_ + member, size, scale, memory);
      }
    }
  }

  const AttentionCall& call_;
  const std::int64_t group_, block_;
  const Conversion convert_;
};

} // namespace amopo
