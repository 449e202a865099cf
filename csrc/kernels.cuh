// The row kernels. One thread block takes one row at a time and walks over rows; a row is read once forward and once
// backward.
//
// The mapping of columns to threads depends on the vocabulary size alone, not on the batch, the row or its alignment,
// and partial results are merged in a fixed order. A row's result is therefore bit-identical in any batch.
//
// Instruction budget: at 4.8 TB/s of bf16 a multiprocessor receives ten values a cycle and has 128 lanes, which leaves
// about twelve instructions a value. That is why logits are subtracted as they are read, and 1 / temperature and
// log2(e) are one factor.
#pragma once
#include "common.h"
#include "rows.cuh"

namespace octo {

// Vectors that a thread loads before it uses the first: 64 bytes in flight, as an unaligned vector takes two loads.
template <bool kAligned> constexpr int kInFlight = kAligned ? 4 : 2;
constexpr int kResident = 1024;  // resident threads a multiprocessor; leaves 64 registers each
constexpr float kLog2OfE = 1.4426950408889634f;

// 2^x within 2 ulp; flushes results below 2^-126 to 0.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Statistics of a row x: the maximum, sum of e^(scale * d), and for the entropy sum of d * e^(scale * d), with
// d = x - maximum. Every fused multiply-add below is explicit: left to the compiler, aligned and unaligned rows could
// round differently.
struct Stats {
  float maximum, sum, weighted;
};

// Turns a difference d = x - maximum into e^(scale * d).
struct Scale {
  float log2_factor, lowest;
  __device__ __forceinline__ explicit Scale(float scale) : log2_factor(scale * kLog2OfE), lowest(kLowest / scale) {}
  // Clamps d from below where e^(scale * d) is 0, so that d * e^(scale * d) is 0 and not 0 * -inf = NaN. Keeps NaN.
  __device__ __forceinline__ float clamped(float d) const { return d < lowest ? lowest : d; }
  __device__ __forceinline__ float exp(float d) const { return fast_exp2(d * log2_factor); }
};

// The same statistics relative to a larger maximum.
template <bool kWithEntropy>
__device__ __forceinline__ Stats rescaled(Stats s, float maximum, Scale scale) {
  if (s.maximum == -INFINITY) return {maximum, s.sum, 0.0f};  // empty so far; the sum is 0, or NaN, which must be kept
  const float shift = scale.clamped(s.maximum - maximum), factor = scale.exp(shift);
  return {maximum, s.sum * factor, kWithEntropy ? factor * fmaf(shift, s.sum, s.weighted) : 0.0f};
}

// Statistics of two parts of a row together.
template <bool kWithEntropy>
__device__ __forceinline__ Stats merge(Stats a, Stats b, Scale scale) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  a = rescaled<kWithEntropy>(a, maximum, scale);
  b = rescaled<kWithEntropy>(b, maximum, scale);
  return {maximum, a.sum + b.sum, a.weighted + b.weighted};
}

// Adds kCount logits to a thread's statistics.
template <bool kWithEntropy, int kCount>
__device__ __forceinline__ void accumulate(Stats& s, const float (&x)[kCount], Scale scale) {
  // 1. Update the running maximum and rescale the sums to it.
  float top = x[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) top = fmaxf(top, x[i]);
  if (top > s.maximum) s = rescaled<kWithEntropy>(s, top, scale);
  // 2. Add the terms.
  const float base = s.maximum == -INFINITY ? 0.0f : s.maximum;
  float sum, weighted;  // of this vector first: equal terms round alike, and their errors would add up in a long sum
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

// Statistics of a warp's 32 parts together, in every lane.
template <bool kWithEntropy>
__device__ __forceinline__ Stats merge_warp(Stats s, Scale scale) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Stats other{__shfl_xor_sync(~0u, s.maximum, offset), __shfl_xor_sync(~0u, s.sum, offset), 0.0f};
    if constexpr (kWithEntropy) other.weighted = __shfl_xor_sync(~0u, s.weighted, offset);
    s = merge<kWithEntropy>(s, other, scale);
  }
  return s;
}

// Statistics of all threads of the block together; valid in the first warp.
template <int kThreads, bool kWithEntropy>
__device__ __forceinline__ Stats merge_block(Stats s, Scale scale) {
  __shared__ Stats warp_stats[kThreads / kWarp];
  s = merge_warp<kWithEntropy>(s, scale);
  __syncthreads();  // the previous row's values have been read
  if (threadIdx.x % kWarp == 0) warp_stats[threadIdx.x / kWarp] = s;
  __syncthreads();
  if (threadIdx.x >= kWarp) return s;
  s = threadIdx.x < kThreads / kWarp ? warp_stats[threadIdx.x] : Stats{-INFINITY, 0.0f, 0.0f};
  return merge_warp<kWithEntropy>(s, scale);
}

// Statistics of the columns of a row that this thread takes.
template <class T, int kThreads, bool kWithEntropy, bool kAligned>
__device__ __forceinline__ Stats thread_stats(const T* values, int columns, Scale scale) {
  constexpr int kWidth = width_of<T>, kUnroll = kInFlight<kAligned>;
  const Row<T, kWidth, kAligned> row(values);
  const int vectors = columns / kWidth;
  Stats s{-INFINITY, 0.0f, 0.0f};
  // 1. Whole vectors, kUnroll at a time.
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
      accumulate<kWithEntropy, kWidth>(s, x, scale);
    }
  }
  // 2. The last columns, fewer than a vector.
  const int rest = vectors * kWidth + threadIdx.x;
  if (rest < columns) {
    const float x[1] = {to_float(values[rest])};
    accumulate<kWithEntropy, 1>(s, x, scale);
  }
  return s;
}

template <class T, int kThreads, bool kWithEntropy>
__global__ void __launch_bounds__(kThreads, kResident / kThreads)
    stats_kernel(const T* __restrict__ logits, const int64_t* __restrict__ targets,
                 const float* __restrict__ inverse_temperature, float* __restrict__ stats, Logits dims) {
  for (int64_t token = blockIdx.x; token < dims.tokens; token += gridDim.x) {
    const int64_t target = targets[token];
    float* out = stats + token;
    if (target == dims.ignore) {  // uniform over the block
      if (threadIdx.x == 0) {
        out[0] = 0.0f, out[dims.tokens] = 1.0f, out[2 * dims.tokens] = 0.0f, out[3 * dims.tokens] = 0.0f;
      }
      continue;
    }
    // 1. Statistics of the row, over all threads.
    const T* row = logits + token * dims.stride;
    const int columns = static_cast<int>(dims.columns);
    const float factor = inverse_temperature[token];
    const Scale scale(factor);
    Stats s = is_aligned<T, width_of<T>>(row) ? thread_stats<T, kThreads, kWithEntropy, true>(row, columns, scale)
                                              : thread_stats<T, kThreads, kWithEntropy, false>(row, columns, scale);
    s = merge_block<kThreads, kWithEntropy>(s, scale);
    // 2. Written by one thread, with the logit at the target.
    if (threadIdx.x == 0) {
      const int64_t column = target - dims.first;
      const bool is_here = 0 <= column && column < columns;
      out[0] = s.maximum, out[dims.tokens] = s.sum, out[2 * dims.tokens] = s.weighted * factor;
      out[3 * dims.tokens] = is_here ? to_float(row[column]) : -INFINITY;
    }
  }
}

// The gradient of a token's logits, as a function of the logit.
struct Gradient {
  float scale, maximum, log_sum, entropy, grad_log_prob, grad_lse, grad_entropy, grad_p;

  __device__ __forceinline__ float log_p(float x) const {
    const float lp = fmaf(x - maximum, scale, -log_sum);
    return lp < kLowest ? kLowest : lp;
  }
  __device__ __forceinline__ float operator()(float x) const {
    const float lp = log_p(x), p = fast_exp2(lp * kLog2OfE);
    return scale * (p * fmaf(-grad_entropy, lp + entropy, grad_p));
  }
  // 1 - p cancels catastrophically near p = 1; use expm1.
  __device__ __forceinline__ float at_target(float x) const {
    const float lp = log_p(x), p = fast_exp2(lp * kLog2OfE);
    return scale * fmaf(-grad_log_prob, expm1f(lp), p * fmaf(-grad_entropy, lp + entropy, grad_lse));
  }
};

// Gradients of a row's whole vectors. `to` may be `from`: each value is used only by the thread that overwrites it; the
// neighbours' bytes that an unaligned load also reads are shifted out. `target` is a column, or -1 for none.
template <class In, class Out, int kThreads, bool kAligned>
__device__ __forceinline__ void grad_of_row(const In* from, Out* to, int vectors, const Gradient& gradient, int target) {
  constexpr int kWidth = width_of<In>, kUnroll = kInFlight<kAligned>;
  const Row<In, kWidth, kAligned> row(from);
  const Row<Out, kWidth, kAligned> grad(to);
  // The loop is uniform over the block, because lanes exchange values in `store`.
  for (int first = 0; first < vectors; first += kThreads * kUnroll) {
    const int start = first + threadIdx.x;
    // 1. Load kUnroll vectors.
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
          float target_logit = x[0];
#pragma unroll
          for (int i = 1; i < kWidth; ++i) target_logit = i == place ? x[i] : target_logit;
          const float target_grad = gradient.at_target(target_logit);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) g[i] = i == place ? target_grad : g[i];
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
                const float* __restrict__ rows, Out* out, int64_t out_stride, Logits dims) {  // out may be logits
  constexpr int kWidth = width_of<In>;
  for (int64_t token = blockIdx.x; token < dims.tokens; token += gridDim.x) {
    const In* row = logits + token * dims.stride;
    Out* grad = out + token * out_stride;
    if (targets[token] == dims.ignore) {
      clear(grad, grad + dims.stored, kThreads);
      continue;
    }
    // 1. The token's forward results and upstream gradients.
    const auto token_value = [&](GradRow which) { return rows[which * dims.tokens + token]; };
    const float grad_log_prob = token_value(kGradLogProb), grad_lse = token_value(kGradLogSumExp);
    const Gradient gradient{inverse_temperature[token], token_value(kMaximum), token_value(kLogSum),
                            token_value(kEntropy), grad_log_prob, grad_lse,
                            token_value(kGradEntropy), grad_lse - grad_log_prob};
    const int64_t column = targets[token] - dims.first;
    const int columns = static_cast<int>(dims.columns), vectors = columns / kWidth;
    const int target = 0 <= column && column < columns ? static_cast<int>(column) : -1;
    // 2. Whole vectors.
    if (is_aligned<In, kWidth>(row) && is_aligned<Out, kWidth>(grad))
      grad_of_row<In, Out, kThreads, true>(row, grad, vectors, gradient, target);
    else
      grad_of_row<In, Out, kThreads, false>(row, grad, vectors, gradient, target);
    // 3. The last columns, fewer than a vector, and zeros over the padding.
    const int rest = vectors * kWidth + threadIdx.x;
    if (rest < columns) {
      const float x = to_float(row[rest]);
      grad[rest] = from_float<Out>(rest == target ? gradient.at_target(x) : gradient(x));
    }
    clear(grad + dims.columns, grad + dims.stored, kThreads);
  }
}

}  // namespace octo
