// Attention over paths in one parallel region: a unit of work is one path and one key-value head, in the forward some
// of its queries. The matrix products inside a unit are torch's, on one thread.
//
// The query heads of a key-value head read the same keys, so their rows stand together, (query, head) by (query, head),
// and each product serves all of them. A block of queries goes against the keys that its last query sees: half of a
// long path's square is left out, which a kernel that masks computes.
#include "attention.h"
#include "attention_units.h"

#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace amopo {
namespace {

class Forward : Attention {
 public:
  explicit Forward(const AttentionCall& call) : Attention(call) {}

  void operator()() const {
    const std::int64_t kept = call_.dtype == Dtype::Float ? 0 : longest();
    Scratch scratch;
    const std::int64_t k = scratch.reserve(kept * call_.size_k), v = scratch.reserve(kept * call_.size_v);
    const std::int64_t q = scratch.reserve(rows() * call_.size_k), out = scratch.reserve(rows() * call_.size_v);
    const std::int64_t scores = scratch.reserve(rows() * kKeys), states = scratch.reserve(2 * rows());
    run(units(std::max(kQueries, block_)), scratch.size(), [&](const Unit& unit, float* own) {
      std::int64_t stride_k, stride_v;
      const float* own_k = keys_of(call_.k, unit, call_.size_k, own + k, stride_k);
      const float* own_v = keys_of(call_.v, unit, call_.size_v, own + v, stride_v);
      for (std::int64_t first = unit.first; first < unit.last; first += block_) {
        const std::int64_t last = std::min(first + block_, unit.last);
        auto* softmax = reinterpret_cast<Softmax*>(own + states);
        std::fill(softmax, softmax + rows(), Softmax{-std::numeric_limits<float>::infinity(), 0.0f});
        load_queries(call_.q, unit, first, last, call_.size_k, call_.scaling, own + q);
        block(unit, first, last, own + q, own_k, stride_k, own_v, stride_v, own + scores, softmax, own + out);
      }
    });
  }

 private:
  void block(
      const Unit& unit, std::int64_t first, std::int64_t last, const float* q, const float* k, std::int64_t stride_k,
      const float* v, std::int64_t stride_v, float* scores, Softmax* softmax, float* out) const {
    const std::int64_t count = (last - first) * group_;
    at::Tensor result = matrix(out, count, call_.size_v, call_.size_v);
    const std::int64_t start = first_key(unit.path, first), end = end_key(unit.path, last - 1);
    for (std::int64_t key = start; key < end; key += kKeys) {
      const std::int64_t size = std::min(kKeys, end - key);
      at::Tensor s = matrix(scores, count, size, size);
      const at::Tensor own_keys = transposed(k + key * stride_k, size, call_.size_k, stride_k);
      at::cpu::mm_out(s, matrix(q, count, call_.size_k, call_.size_k), own_keys);
      for (std::int64_t row = 0; row < count; ++row) {
        const std::int64_t query = first + row / group_;
        float* own = scores + row * size;
        const auto [from, to] = seen(unit.path, query, key, size);
        clear_unseen(own, from, to, size);
        const float rescale = from == to ? 1.0f : kernels().exponentials(own + from, to - from, softmax[row]);
        if (key > start && rescale != 1.0f) {
          float* earlier = out + row * call_.size_v;
          std::transform(earlier, earlier + call_.size_v, earlier, [&](float x) { return x * rescale; });
        }
      }
      const at::Tensor values = matrix(v + key * stride_v, size, call_.size_v, stride_v);
      if (key == start) {
        at::cpu::mm_out(result, s, values);
      } else {
        at::cpu::addmm_out(result, result, s, values, 1, 1);
      }
    }
    for (std::int64_t row = 0; row < count; ++row) {
      const std::int64_t query = call_.starts_q[unit.path] + first + row / group_;
      const std::int64_t head = unit.head * group_ + row % group_;
      convert_.store(call_.out, query, head, call_.size_v, 1.0f / softmax[row].sum, out + row * call_.size_v);
      call_.lse[query * call_.query_heads + head] = softmax[row].maximum + std::log(softmax[row].sum);
    }
  }
};

class Backward : Attention {
 public:
  Backward(const AttentionCall& call, const AttentionGradients& gradients) : Attention(call), gradients_(gradients) {}

  void operator()() const {
    const std::int64_t all = longest(), kept = call_.dtype == Dtype::Float ? 0 : all;
    Scratch scratch;
    const std::int64_t k = scratch.reserve(kept * call_.size_k), v = scratch.reserve(kept * call_.size_v);
    const std::int64_t dk = scratch.reserve(all * call_.size_k), dv = scratch.reserve(all * call_.size_v);
    const std::int64_t q = scratch.reserve(rows() * call_.size_k), dq = scratch.reserve(rows() * call_.size_k);
    const std::int64_t grad = scratch.reserve(rows() * call_.size_v), out = scratch.reserve(rows() * call_.size_v);
    const std::int64_t scores = scratch.reserve(rows() * kKeys), slopes = scratch.reserve(rows() * kKeys);
    const std::int64_t deltas = scratch.reserve(rows());
    run(units(std::numeric_limits<std::int32_t>::max()), scratch.size(), [&](const Unit& unit, float* own) {
      Arrays a{own + q, own + dq, own + grad, own + out, own + scores, own + slopes, own + deltas, own + dk, own + dv};
      a.k = keys_of(call_.k, unit, call_.size_k, own + k, a.stride_k);
      a.v = keys_of(call_.v, unit, call_.size_v, own + v, a.stride_v);
      std::fill(a.dk, a.dk + keys(unit.path) * call_.size_k, 0.0f);
      std::fill(a.dv, a.dv + keys(unit.path) * call_.size_v, 0.0f);
      for (std::int64_t first = unit.first; first < unit.last; first += block_) {
        block(unit, first, std::min(first + block_, unit.last), a);
      }
      for (std::int64_t key = 0; key < keys(unit.path); ++key) {
        const std::int64_t row = call_.starts_k[unit.path] + key;
        convert_.store(gradients_.dk, row, unit.head, call_.size_k, 1.0f, a.dk + key * call_.size_k);
        convert_.store(gradients_.dv, row, unit.head, call_.size_v, 1.0f, a.dv + key * call_.size_v);
      }
    });
  }

 private:
  struct Arrays {
    float *q, *dq, *grad, *out, *scores, *slopes, *deltas, *dk, *dv;
    const float *k = nullptr, *v = nullptr;
    std::int64_t stride_k = 0, stride_v = 0;
  };

  void block(const Unit& unit, std::int64_t first, std::int64_t last, const Arrays& a) const {
    const std::int64_t count = (last - first) * group_, size_k = call_.size_k, size_v = call_.size_v;
    load_queries(call_.q, unit, first, last, size_k, call_.scaling, a.q);
    load_queries(gradients_.grad, unit, first, last, size_v, 1.0f, a.grad);
    load_queries(call_.out, unit, first, last, size_v, 1.0f, a.out);
    for (std::int64_t row = 0; row < count; ++row) { // what a softmax's gradient takes off each of its terms
      float sum = 0.0f;
      for (std::int64_t i = row * size_v; i < (row + 1) * size_v; ++i) {
        sum += a.grad[i] * a.out[i];
      }
      a.deltas[row] = sum;
    }
    const at::Tensor q = matrix(a.q, count, size_k, size_k), grad = matrix(a.grad, count, size_v, size_v);
    at::Tensor dq = matrix(a.dq, count, size_k, size_k);
    const std::int64_t start = first_key(unit.path, first), end = end_key(unit.path, last - 1);
    for (std::int64_t key = start; key < end; key += kKeys) {
      const std::int64_t size = std::min(kKeys, end - key);
      at::Tensor p = matrix(a.scores, count, size, size), ds = matrix(a.slopes, count, size, size);
      at::cpu::mm_out(p, q, transposed(a.k + key * a.stride_k, size, size_k, a.stride_k));
      at::cpu::mm_out(ds, grad, transposed(a.v + key * a.stride_v, size, size_v, a.stride_v));
      for (std::int64_t row = 0; row < count; ++row) {
        const std::int64_t query = first + row / group_;
        const auto [from, to] = seen(unit.path, query, key, size);
        for (float* own : {a.scores + row * size, a.slopes + row * size}) {
          clear_unseen(own, from, to, size);
        }
        const std::int64_t where = (call_.starts_q[unit.path] + query) * call_.query_heads;
        const float lse = call_.lse[where + unit.head * group_ + row % group_];
        kernels().probabilities(
            a.scores + row * size + from, a.slopes + row * size + from, to - from, lse, a.deltas[row]);
      }
      at::Tensor dk = matrix(a.dk + key * size_k, size, size_k, size_k);
      at::Tensor dv = matrix(a.dv + key * size_v, size, size_v, size_v);
      at::cpu::addmm_out(dv, dv, transposed(a.scores, count, size, size), grad, 1, 1);
      at::cpu::addmm_out(dk, dk, transposed(a.slopes, count, size, size), q, 1, 1);
      const at::Tensor k = matrix(a.k + key * a.stride_k, size, size_k, a.stride_k);
      if (key == start) {
        at::cpu::mm_out(dq, ds, k);
      } else {
        at::cpu::addmm_out(dq, dq, ds, k, 1, 1);
      }
    }
    for (std::int64_t row = 0; row < count; ++row) {
      const std::int64_t query = call_.starts_q[unit.path] + first + row / group_;
      const std::int64_t head = unit.head * group_ + row % group_;
      convert_.store(gradients_.dq, query, head, size_k, call_.scaling, a.dq + row * size_k);
    }
  }

  const AttentionGradients& gradients_;
};

} // namespace

void attention_forward(const AttentionCall& call) {
  Forward{call}();
}

void attention_backward(const AttentionCall& call, const AttentionGradients& gradients) {
  Backward{call, gradients}();
}

} // namespace amopo
