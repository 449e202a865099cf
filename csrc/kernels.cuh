// The row kernels: one block a row, persistent over rows, each row read once forward and once backward.
//
// Which thread takes which column depends on the vocabulary's size alone, never on the batch, the row's number or its
// alignment, and partial results are joined in a fixed order: a row's result is the same bits in any batch.
//
// At 4.8 TB/s of bf16 a multiprocessor has ten values a cycle, and 128 lanes for them: about twelve instructions a value
// are all there is. So differences are taken between logits as they are read, and temperature and the change from e to
// 2 are one factor.
#pragma once
#include "common.h"
#include "rows.cuh"

namespace octo {

// Vectors of which a thread has the loads in flight: 64 bytes, where unaligned ones take two loads each.
template <bool kAligned> constexpr int kInFlight = kAligned ? 4 : 2;
constexpr int kResident = 1024;  // threads of a multiprocessor, which leaves each 64 registers
constexpr float kLog2OfE = 1.4426950408889634f;

// 2^x to 2 units in the last place, 0 where that is below 2^-126.
__device__ __forceinline__ float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Of a row's logits x: the maximum, sum of e^(scale d), and for the entropy sum of d e^(scale d), with d = x - maximum.
// Multiplications and additions are fused where it is said, or aligned rows and others could round differently.
struct Stats {
  float maximum, sum, weighted;
};

// How a row's differences become exponents.
struct Scale {
  float of_2, lowest;
  __device__ __forceinline__ explicit Scale(float scale) : of_2(scale * kLog2OfE), lowest(kLowest / scale) {}
  // Held from below where e^(scale d) is 0: 0 times what is held is not NaN, as 0 times -inf is. NaN passes.
  __device__ __forceinline__ float clamped(float d) const { return d < lowest ? lowest : d; }
  __device__ __forceinline__ float exp(float d) const { return exp2_of(d * of_2); }
};

template <bool kWithEntropy>
__device__ __forceinline__ Stats moved_to(Stats s, float maximum, Scale scale) {
  if (s.maximum == -INFINITY) return {maximum, s.sum, 0.0f};  // nothing yet: its sum is 0, or NaN, which must pass
  const float shift = scale.clamped(s.maximum - maximum), factor = scale.exp(shift);
  return {maximum, s.sum * factor, kWithEntropy ? factor * fmaf(shift, s.sum, s.weighted) : 0.0f};
}

template <bool kWithEntropy>
__device__ __forceinline__ Stats join(Stats a, Stats b, Scale scale) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  a = moved_to<kWithEntropy>(a, maximum, scale);
  b = moved_to<kWithEntropy>(b, maximum, scale);
  return {maximum, a.sum + b.sum, a.weighted + b.weighted};
}

template <bool kWithEntropy, int kCount>
__device__ __forceinline__ void absorb(Stats& s, const float (&x)[kCount], Scale scale) {
  float top = x[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) top = fmaxf(top, x[i]);
  if (top > s.maximum) s = moved_to<kWithEntropy>(s, top, scale);
  const float base = s.maximum == -INFINITY ? 0.0f : s.maximum;
  float sum, weighted;  // of these few first: long runs of equal terms round alike
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float d = x[i] - base;
    if constexpr (kWithEntropy) d = scale.clamped(d);
    const float e = scale.exp(d);
    sum = i == 0 ? e : sum + e;
    if constexpr (kWithEntropy) weighted = i == 0 ? d * e : fmaf(d, e, weighted);
  }
  s.sum += sum;
  if constexpr (kWithEntropy) s.weighted += weighted;
}

template <bool kWithEntropy>
__device__ __forceinline__ Stats join_warp(Stats s, Scale scale) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Stats other{__shfl_xor_sync(~0u, s.maximum, offset), __shfl_xor_sync(~0u, s.sum, offset), 0.0f};
    if constexpr (kWithEntropy) other.weighted = __shfl_xor_sync(~0u, s.weighted, offset);
    s = join<kWithEntropy>(s, other, scale);
  }
  return s;
}

// Of all the block's threads, in its first warp.
template <int kThreads, bool kWithEntropy>
__device__ __forceinline__ Stats join_block(Stats s, Scale scale) {
  __shared__ Stats of_warp[kThreads / kWarp];
  s = join_warp<kWithEntropy>(s, scale);
  __syncthreads();  // the last row's values have been read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = s;
  __syncthreads();
  if (threadIdx.x >= kWarp) return s;
  s = threadIdx.x < kThreads / kWarp ? of_warp[threadIdx.x] : Stats{-INFINITY, 0.0f, 0.0f};
  return join_warp<kWithEntropy>(s, scale);
}

// A thread's part of a row's statistics.
template <class T, int kThreads, bool kWithEntropy, bool kAligned>
__device__ __forceinline__ Stats part_of_row(const T* values, int columns, Scale scale) {
  constexpr int kWidth = width_of<T>, kUnroll = kInFlight<kAligned>;
  const Row<T, kWidth, kAligned> row(values);
  const int vectors = columns / kWidth;
  Stats s{-INFINITY, 0.0f, 0.0f};
  for (int start = threadIdx.x; start < vectors; start += kThreads * kUnroll) {
    Packed<T, kWidth> packed[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (start + u * kThreads < vectors) packed[u] = row.load(start + u * kThreads);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (start + u * kThreads >= vectors) continue;
      float x[kWidth];
      unpack<T, kWidth>(packed[u], x);
      absorb<kWithEntropy, kWidth>(s, x, scale);
    }
  }
  const int rest = vectors * kWidth + threadIdx.x;
  if (rest < columns) {
    const float x[1] = {to_float(values[rest])};
    absorb<kWithEntropy, 1>(s, x, scale);
  }
  return s;
}

template <class T, int kThreads, bool kWithEntropy>
__global__ void __launch_bounds__(kThreads, kResident / kThreads)
    stats_kernel(const T* __restrict__ logits, const int64_t* __restrict__ targets,
                 const float* __restrict__ inverse_temperature, float* __restrict__ stats, Logits at) {
  for (int64_t token = blockIdx.x; token < at.tokens; token += gridDim.x) {
    const int64_t target = targets[token];
    float* out = stats + token;
    if (target == at.ignore) {  // the same for the whole block
      if (threadIdx.x == 0) {
        out[0] = 0.0f, out[at.tokens] = 1.0f, out[2 * at.tokens] = 0.0f, out[3 * at.tokens] = 0.0f;
      }
      continue;
    }
    const T* row = logits + token * at.stride;
    const int columns = static_cast<int>(at.columns);
    const float factor = inverse_temperature[token];
    const Scale scale(factor);
    Stats s = is_aligned<T, width_of<T>>(row) ? part_of_row<T, kThreads, kWithEntropy, true>(row, columns, scale)
                                              : part_of_row<T, kThreads, kWithEntropy, false>(row, columns, scale);
    s = join_block<kThreads, kWithEntropy>(s, scale);
    if (threadIdx.x == 0) {
      const int64_t column = target - at.first;
      const bool is_here = 0 <= column && column < columns;
      out[0] = s.maximum, out[at.tokens] = s.sum, out[2 * at.tokens] = s.weighted * factor;
      out[3 * at.tokens] = is_here ? to_float(row[column]) : -INFINITY;
    }
  }
}

// What the gradient of a token's logits is made of.
struct Gradient {
  float scale, maximum, log_sum, entropy, grad_log_prob, grad_lse, grad_entropy, grad_p;

  __device__ __forceinline__ float log_p(float x) const {
    const float lp = fmaf(x - maximum, scale, -log_sum);
    return lp < kLowest ? kLowest : lp;
  }
  __device__ __forceinline__ float operator()(float x) const {
    const float lp = log_p(x), p = exp2_of(lp * kLog2OfE);
    return scale * (p * fmaf(-grad_entropy, lp + entropy, grad_p));
  }
  // Of the target's 1 - p nothing would be left by subtraction where p is near 1.
  __device__ __forceinline__ float at_target(float x) const {
    const float lp = log_p(x), p = exp2_of(lp * kLog2OfE);
    return scale * fmaf(-grad_log_prob, expm1f(lp), p * fmaf(-grad_entropy, lp + entropy, grad_lse));
  }
};

// Gradients of a row's vectors, over the row itself where `to` is `from`: a value is read by its own thread alone, and
// what else that reads, at the ends of an aligned 16 bytes, is shifted out. `target` is a column, or -1.
template <class In, class Out, int kThreads, bool kAligned>
__device__ __forceinline__ void grad_of_row(const In* from, Out* to, int vectors, const Gradient& gradient, int target) {
  constexpr int kWidth = width_of<In>, kUnroll = kInFlight<kAligned>;
  const Row<In, kWidth, kAligned> row(from);
  const Row<Out, kWidth, kAligned> grad(to);
  for (int first = 0; first < vectors; first += kThreads * kUnroll) {  // the same for the whole block: lanes trade
    const int start = first + threadIdx.x;
    Packed<In, kWidth> packed[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (start + u * kThreads < vectors) packed[u] = row.load(start + u * kThreads);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int vector = start + u * kThreads;
      Packed<Out, kWidth> packed_grad{};
      if (vector < vectors) {
        float x[kWidth], g[kWidth];
        unpack<In, kWidth>(packed[u], x);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) g[i] = gradient(x[i]);
        if (target >= 0 && target / kWidth == vector) {
          const int place = target % kWidth;
          float of_target = x[0];
#pragma unroll
          for (int i = 1; i < kWidth; ++i) of_target = i == place ? x[i] : of_target;
          of_target = gradient.at_target(of_target);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) g[i] = i == place ? of_target : g[i];
        }
        packed_grad = pack<Out, kWidth>(g);
      }
      grad.store(vector, vectors, packed_grad);
    }
  }
}

template <class In, class Out, int kThreads>
__global__ void __launch_bounds__(kThreads, kResident / kThreads)
    grad_kernel(const In* logits, const int64_t* __restrict__ targets, const float* __restrict__ inverse_temperature,
                const float* __restrict__ rows, Out* out, int64_t out_stride, Logits at) {  // out may be logits
  constexpr int kWidth = width_of<In>;
  for (int64_t token = blockIdx.x; token < at.tokens; token += gridDim.x) {
    const In* row = logits + token * at.stride;
    Out* grad = out + token * out_stride;
    if (targets[token] == at.ignore) {
      clear(grad, grad + at.stored, kThreads);
      continue;
    }
    const auto of_token = [&](GradRow which) { return rows[which * at.tokens + token]; };
    const float grad_log_prob = of_token(kGradLogProb), grad_lse = of_token(kGradLogSumExp);
    const Gradient gradient{inverse_temperature[token], of_token(kMaximum), of_token(kLogSum),
                            of_token(kEntropy), grad_log_prob, grad_lse,
                            of_token(kGradEntropy), grad_lse - grad_log_prob};
    const int64_t column = targets[token] - at.first;
    const int columns = static_cast<int>(at.columns), vectors = columns / kWidth;
    const int target = 0 <= column && column < columns ? static_cast<int>(column) : -1;
    if (is_aligned<In, kWidth>(row) && is_aligned<Out, kWidth>(grad))
      grad_of_row<In, Out, kThreads, true>(row, grad, vectors, gradient, target);
    else
      grad_of_row<In, Out, kThreads, false>(row, grad, vectors, gradient, target);
    const int rest = vectors * kWidth + threadIdx.x;
    if (rest < columns) {
      const float x = to_float(row[rest]);
      grad[rest] = from_float<Out>(rest == target ? gradient.at_target(x) : gradient(x));
    }
    clear(grad + at.columns, grad + at.stored, kThreads);
  }
}

}  // namespace octo
