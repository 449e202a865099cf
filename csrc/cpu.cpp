// CPU kernels of the token operators. Each row is read once, in blocks that fit the L1 cache and are widened to fp32
// there, so no fp32 copy of the logits is ever made. A row's result does not depend on other rows or on the threads.
#include "common.h"

#include <bit>
#include <cmath>
#include <limits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace octo {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kBlock = 2048;
// fp32 sums run over kLanes lanes and kRun terms, on any machine, and are then added in fp64. 16-bit logits have many
// equal terms, whose rounding errors all have the same sign and would add up in a longer fp32 sum.
constexpr int64_t kLanes = 16, kRun = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// exp(x) for x <= 0, within 2 ulp; exactly 0 below -87, NaN for NaN. Branch-free, so that any compiler vectorises it.
// The polynomial is that of Cephes' expf.
inline float exp_of_negative(float x) {
  const float y = x < -87.0f ? -87.0f : x;
  const float n = (y * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // round to the nearest integer
  const float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = (p * r * r + r) + 1.0f;
  const float power = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : e * power;
}

inline void widen(const float* x, int64_t n, float* z) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) z[i] = x[i];
}

inline void widen(const BFloat16* x, int64_t n, float* z) {
  const auto* bits = reinterpret_cast<const uint16_t*>(x);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) z[i] = std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
}

inline void widen(const Half* x, int64_t n, float* z) {
  int64_t i = 0;
#if defined(__F16C__) && defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    _mm256_storeu_ps(z + i, wide);
  }
#endif
  for (; i < n; ++i) z[i] = static_cast<float>(x[i]);
}

inline void narrow(const float* g, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = g[i];
}

inline void narrow(const float* g, int64_t n, BFloat16* out) {
  auto* bits = reinterpret_cast<uint16_t*>(out);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = std::bit_cast<uint32_t>(g[i]);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // round to nearest, ties to even
    bits[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

inline void narrow(const float* g, int64_t n, Half* out) {
  int64_t i = 0;
#if defined(__F16C__) && defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    const __m128i narrowed = _mm256_cvtps_ph(_mm256_loadu_ps(g + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), narrowed);
  }
#endif
  for (; i < n; ++i) out[i] = static_cast<Half>(g[i]);
}

struct Stats {
  float maximum, sum, weighted, target;
};

// Statistics of a row x by online softmax: the maximum, sum of exp(d), sum of d * exp(d) (entropy only), and x at the
// target, with d = scale * (x - maximum).
template <bool kWithEntropy, class T>
Stats stats_of_row(const T* x, const Logits& dims, int64_t target, float scale) {
  if (target == dims.ignore) return {0.0f, 1.0f, 0.0f, 0.0f};
  alignas(64) float values[kBlock];
  float maximum = -kInfinity;
  double sum = 0.0, weighted = 0.0;
  for (int64_t begin = 0; begin < dims.columns; begin += kBlock) {
    // 1. Widen a block to fp32.
    const int64_t n = std::min(kBlock, dims.columns - begin);
    widen(x + begin, n, values);
    for (int64_t i = n; i % kLanes; ++i) values[i] = -kInfinity;  // pad to whole lanes; adds 0
    // 2. Update the running maximum and rescale the sums to it.
    float top = -kInfinity;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < n; ++i) top = values[i] > top ? values[i] : top;
    if (top > maximum) {
      if (maximum != -kInfinity) {
        const double shift = std::max((maximum - top) * scale, kLowest), factor = std::exp(shift);
        weighted = factor * (weighted + shift * sum);
        sum *= factor;
      }
      maximum = top;
    }
    // 3. Add the block's terms.
    const float base = maximum == -kInfinity ? 0.0f : maximum;
    for (int64_t run = 0; run < n; run += kRun) {
      const int64_t end = std::min(run + kRun, n);
      float sums[kLanes] = {}, weighteds[kLanes] = {};
      for (int64_t i = run; i < end; i += kLanes) {
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          float d = (values[i + lane] - base) * scale;
          d = d < kLowest ? kLowest : d;  // keeps NaN
          const float e = exp_of_negative(d);
          sums[lane] += e;
          if constexpr (kWithEntropy) weighteds[lane] += d * e;
        }
      }
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        sum += sums[lane];
        weighted += weighteds[lane];
      }
    }
  }
  // 4. The logit at the target, if this shard holds it.
  const int64_t column = target - dims.first;
  const bool is_here = 0 <= column && column < dims.columns;
  return {maximum, static_cast<float>(sum), static_cast<float>(weighted),
          is_here ? static_cast<float>(x[column]) : -kInfinity};
}

template <class T>
void stats_of_rows(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Logits& dims,
                   bool entropy, float* stats) {
  const T* x = logits.const_data_ptr<T>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  const float* scale = inverse_temperature.const_data_ptr<float>();
  torch::stable::parallel_for(0, dims.tokens, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* row = x + t * dims.stride;
      const Stats s = entropy ? stats_of_row<true>(row, dims, target[t], scale[t])
                              : stats_of_row<false>(row, dims, target[t], scale[t]);
      stats[t] = s.maximum;
      stats[dims.tokens + t] = s.sum;
      stats[2 * dims.tokens + t] = s.weighted;
      stats[3 * dims.tokens + t] = s.target;
    }
  });
}

Tensor token_stats(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, int64_t columns,
                   int64_t first, int64_t ignore, bool entropy) {
  const Logits dims = check_logits(logits, targets, inverse_temperature, columns, first, ignore);
  Tensor stats = torch::stable::new_empty(logits, std::vector<int64_t>{4, dims.tokens}, ScalarType::Float);
  float* out = stats.mutable_data_ptr<float>();
  switch (logits.scalar_type()) {
    case ScalarType::Float: stats_of_rows<float>(logits, targets, inverse_temperature, dims, entropy, out); break;
    case ScalarType::BFloat16: stats_of_rows<BFloat16>(logits, targets, inverse_temperature, dims, entropy, out); break;
    case ScalarType::Half: stats_of_rows<Half>(logits, targets, inverse_temperature, dims, entropy, out); break;
    default: STD_TORCH_CHECK(false, "logits must be fp32, bf16 or fp16");
  }
  return stats;
}

// Gradient of one row. With z = scale * x, log p = scale * (x - maximum) - log_sum, p = exp(log p) and entropy H:
//   d log_prob / dz_v = [v is the target] - p_v,   d log_sum_exp / dz_v = p_v,   d H / dz_v = -p_v (log p_v + H)
template <class In, class Out>
void grad_of_row(const In* x, Out* out, const Logits& dims, int64_t target, float scale, const float* row) {
  alignas(64) float values[kBlock];  // logits, then their gradients
  if (target == dims.ignore) {
    for (int64_t i = 0; i < dims.stored; ++i) out[i] = static_cast<Out>(0.0f);
    return;
  }
  // 1. The token's row of the forward results and upstream gradients.
  const int64_t tokens = dims.tokens;
  const float maximum = row[kMaximum * tokens], log_sum = row[kLogSum * tokens], entropy = row[kEntropy * tokens];
  const float grad_log_prob = row[kGradLogProb * tokens], grad_lse = row[kGradLogSumExp * tokens];
  const float grad_entropy = row[kGradEntropy * tokens], grad_p = grad_lse - grad_log_prob;
  // 2. The gradient at the target, before anything is written: out may be the logits themselves.
  const int64_t column = target - dims.first;
  const bool is_here = 0 <= column && column < dims.columns;
  float at_target = 0.0f;
  if (is_here) {
    float lp = (static_cast<float>(x[column]) - maximum) * scale - log_sum;
    lp = lp < kLowest ? kLowest : lp;
    const float p = std::exp(lp);
    // 1 - p cancels catastrophically near p = 1; use expm1.
    at_target = scale * (-grad_log_prob * std::expm1(lp) + p * (grad_lse - grad_entropy * (lp + entropy)));
  }
  // 3. All columns, block by block, as if none were the target.
  for (int64_t begin = 0; begin < dims.columns; begin += kBlock) {
    const int64_t n = std::min(kBlock, dims.columns - begin);
    widen(x + begin, n, values);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      float lp = (values[i] - maximum) * scale - log_sum;
      lp = lp < kLowest ? kLowest : lp;
      values[i] = scale * exp_of_negative(lp) * (grad_p - grad_entropy * (lp + entropy));
    }
    narrow(values, n, out + begin);
  }
  // 4. The target, then zeros over the padding.
  if (is_here) narrow(&at_target, 1, out + column);
  for (int64_t i = dims.columns; i < dims.stored; ++i) out[i] = static_cast<Out>(0.0f);
}

template <class In, class Out>
void grad_of_rows(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Tensor& rows,
                  const Logits& dims, Tensor& out) {
  const In* x = logits.const_data_ptr<In>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  const float *scale = inverse_temperature.const_data_ptr<float>(), *row = rows.const_data_ptr<float>();
  Out* grad = out.mutable_data_ptr<Out>();
  const int64_t out_stride = out.stride(0);
  torch::stable::parallel_for(0, dims.tokens, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      grad_of_row(x + t * dims.stride, grad + t * out_stride, dims, target[t], scale[t], row + t);
  });
}

void token_grad(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Tensor& rows,
                int64_t columns, int64_t first, int64_t ignore, Tensor out) {
  const Logits dims = check_logits(logits, targets, inverse_temperature, columns, first, ignore);
  check_grad(logits, rows, out);
  const ScalarType in = logits.scalar_type(), to = out.scalar_type();
  const auto run = [&]<class In, class Out>() {
    grad_of_rows<In, Out>(logits, targets, inverse_temperature, rows, dims, out);
  };
  if (in == ScalarType::Float && to == ScalarType::Float) return run.operator()<float, float>();
  if (in == ScalarType::Float && to == ScalarType::BFloat16) return run.operator()<float, BFloat16>();
  if (in == ScalarType::Float && to == ScalarType::Half) return run.operator()<float, Half>();
  if (in == ScalarType::BFloat16 && to == in) return run.operator()<BFloat16, BFloat16>();
  if (in == ScalarType::Half && to == in) return run.operator()<Half, Half>();
  STD_TORCH_CHECK(false, "logits and out must be both fp32, both bf16 or both fp16, or fp32 to one of the others");
}

// Version of the operators' interface. Raise it, and VERSION in ops/kernels.py, whenever arguments or results change.
int64_t version() { return 2; }

}  // namespace
}  // namespace octo

STABLE_TORCH_LIBRARY(octo, m) {
  m.def(
      "token_stats(Tensor logits, Tensor targets, Tensor inverse_temperature, int columns, int first, "
      "int ignore_index, bool entropy) -> Tensor");
  m.def(
      "token_grad(Tensor logits, Tensor targets, Tensor inverse_temperature, Tensor rows, int columns, int first, "
      "int ignore_index, Tensor(a!) out) -> ()");
  m.def("version() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(octo, CompositeExplicitAutograd, m) { m.impl("version", TORCH_BOX(&octo::version)); }

STABLE_TORCH_LIBRARY_IMPL(octo, CPU, m) {
  m.impl("token_stats", TORCH_BOX(&octo::token_stats));
  m.impl("token_grad", TORCH_BOX(&octo::token_grad));
}
