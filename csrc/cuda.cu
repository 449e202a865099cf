// The token operators on CUDA: one block a row, persistent over rows, each row read once forward and once backward.
//
// Which thread takes which column depends on the vocabulary's size alone, never on the batch, the row's number or its
// alignment, and partial results are joined in a fixed order: a row's result is the same bits in any batch.
#include "common.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// These are in libtorch_cuda only. Weak, so that the same library loads in a torch with no CUDA, where they are null and
// never called; linked with --no-as-needed -ltorch, so that a torch with CUDA resolves them.
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

namespace octo {
namespace {

constexpr int kWarp = 32;
constexpr int kUnroll = 4;  // 16-byte loads a thread has in flight

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }

// As many values as 16 bytes of logits hold, of any type: `Vector<Out, width>` of a narrower type is shorter.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};
template <class T> constexpr int width_of = 16 / sizeof(T);

template <class T, int kWidth>
__device__ __forceinline__ Vector<T, kWidth> load(const T* p, bool aligned) {
  if (aligned) return *reinterpret_cast<const Vector<T, kWidth>*>(p);
  Vector<T, kWidth> v;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) v.values[i] = p[i];
  return v;
}

template <class T, int kWidth>
__device__ __forceinline__ void store(T* p, const Vector<T, kWidth>& v, bool aligned) {
  if (aligned) {
    *reinterpret_cast<Vector<T, kWidth>*>(p) = v;
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) p[i] = v.values[i];
}

template <class T, int kWidth>
__device__ __forceinline__ bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * kWidth) == 0;
}

// Maximum, sum of exp(d), sum of d exp(d), with d = z - maximum.
struct Stats {
  float maximum, sum, weighted;
};

__device__ __forceinline__ Stats moved_to(Stats s, float maximum) {
  if (s.maximum == -INFINITY) return {maximum, s.sum, 0.0f};  // nothing yet: its sum is 0, or NaN, which must pass
  const float shift = fmaxf(s.maximum - maximum, kLowest), factor = __expf(shift);
  return {maximum, s.sum * factor, factor * (s.weighted + shift * s.sum)};
}

__device__ __forceinline__ Stats join(Stats a, Stats b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  a = moved_to(a, maximum);
  b = moved_to(b, maximum);
  return {maximum, a.sum + b.sum, a.weighted + b.weighted};
}

template <bool kWithEntropy, int kCount>
__device__ __forceinline__ void absorb(Stats& s, const float (&z)[kCount]) {
  float top = z[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) top = fmaxf(top, z[i]);
  if (top > s.maximum) s = moved_to(s, top);
  const float base = s.maximum == -INFINITY ? 0.0f : s.maximum;
  float sum = 0.0f, weighted = 0.0f;  // of these few first: long runs of equal terms round alike
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float d = z[i] - base;
    d = d < kLowest ? kLowest : d;  // NaN passes; so does a sum that holds it
    const float e = __expf(d);
    sum += e;
    if constexpr (kWithEntropy) weighted += d * e;
  }
  s.sum += sum;
  s.weighted += weighted;
}

template <int kThreads>
__device__ __forceinline__ Stats join_block(Stats s) {
  __shared__ Stats of_warp[kThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    s = join(s, {__shfl_xor_sync(~0u, s.maximum, offset), __shfl_xor_sync(~0u, s.sum, offset),
                 __shfl_xor_sync(~0u, s.weighted, offset)});
  __syncthreads();  // the last row's values have been read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = s;
  __syncthreads();
  if (threadIdx.x >= kWarp) return s;
  s = threadIdx.x < kThreads / kWarp ? of_warp[threadIdx.x] : Stats{-INFINITY, 0.0f, 0.0f};
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    s = join(s, {__shfl_xor_sync(~0u, s.maximum, offset), __shfl_xor_sync(~0u, s.sum, offset),
                 __shfl_xor_sync(~0u, s.weighted, offset)});
  return s;
}

template <class T, int kThreads, bool kWithEntropy>
__global__ void __launch_bounds__(kThreads)
    stats_kernel(const T* __restrict__ logits, const int64_t* __restrict__ targets,
                 const float* __restrict__ inverse_temperature, float* __restrict__ stats, Logits at) {
  constexpr int kWidth = width_of<T>;
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
    const bool aligned = is_aligned<T, kWidth>(row);
    const float scale = inverse_temperature[token];
    const int64_t vectors = at.columns / kWidth;
    Stats s{-INFINITY, 0.0f, 0.0f};
    for (int64_t start = threadIdx.x; start < vectors; start += kThreads * kUnroll) {
      Vector<T, kWidth> v[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (start + u * kThreads < vectors) v[u] = load<T, kWidth>(row + (start + u * kThreads) * kWidth, aligned);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (start + u * kThreads >= vectors) continue;
        float z[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) z[i] = to_float(v[u].values[i]) * scale;
        absorb<kWithEntropy, kWidth>(s, z);
      }
    }
    const int64_t rest = vectors * kWidth + threadIdx.x;
    if (rest < at.columns) {
      const float z[1] = {to_float(row[rest]) * scale};
      absorb<kWithEntropy, 1>(s, z);
    }
    s = join_block<kThreads>(s);
    if (threadIdx.x == 0) {
      const int64_t column = target - at.first;
      const bool is_here = 0 <= column && column < at.columns;
      out[0] = s.maximum, out[at.tokens] = s.sum, out[2 * at.tokens] = s.weighted;
      out[3 * at.tokens] = is_here ? to_float(row[column]) * scale : -INFINITY;
    }
  }
}

template <class In, class Out, int kThreads>
__global__ void __launch_bounds__(kThreads)
    grad_kernel(const In* logits, const int64_t* __restrict__ targets, const float* __restrict__ inverse_temperature,
                const float* __restrict__ rows, Out* out, int64_t out_stride, Logits at) {  // out may be logits
  constexpr int kWidth = width_of<In>;
  for (int64_t token = blockIdx.x; token < at.tokens; token += gridDim.x) {
    const In* row = logits + token * at.stride;
    Out* grad = out + token * out_stride;
    const int64_t target = targets[token];
    if (target == at.ignore) {
      for (int64_t i = threadIdx.x; i < at.stored; i += kThreads) grad[i] = from_float<Out>(0.0f);
      continue;
    }
    const float* of_token = rows + token;
    const float maximum = of_token[kMaximum * at.tokens], log_sum = of_token[kLogSum * at.tokens];
    const float entropy = of_token[kEntropy * at.tokens], grad_log_prob = of_token[kGradLogProb * at.tokens];
    const float grad_lse = of_token[kGradLogSumExp * at.tokens], grad_entropy = of_token[kGradEntropy * at.tokens];
    const float scale = inverse_temperature[token], grad_p = grad_lse - grad_log_prob;
    const int64_t column = target - at.first;
    const auto gradient = [&](In x, int64_t at_column) {
      float lp = (to_float(x) * scale - maximum) - log_sum;
      lp = lp < kLowest ? kLowest : lp;
      const float p = __expf(lp);
      // of the target's 1 - p nothing would be left by subtraction where p is near 1
      const float g = at_column == column
                          ? -grad_log_prob * expm1f(lp) + p * (grad_lse - grad_entropy * (lp + entropy))
                          : p * (grad_p - grad_entropy * (lp + entropy));
      return from_float<Out>(scale * g);
    };
    const bool in_aligned = is_aligned<In, kWidth>(row), out_aligned = is_aligned<Out, kWidth>(grad);
    const int64_t vectors = at.columns / kWidth;
    for (int64_t start = threadIdx.x; start < vectors; start += kThreads * kUnroll) {
      Vector<In, kWidth> v[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (start + u * kThreads < vectors) v[u] = load<In, kWidth>(row + (start + u * kThreads) * kWidth, in_aligned);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t first = (start + u * kThreads) * kWidth;
        if (start + u * kThreads >= vectors) continue;
        Vector<Out, kWidth> g;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) g.values[i] = gradient(v[u].values[i], first + i);
        store<Out, kWidth>(grad + first, g, out_aligned);
      }
    }
    const int64_t rest = vectors * kWidth + threadIdx.x;
    if (rest < at.columns) grad[rest] = gradient(row[rest], rest);
    for (int64_t i = at.columns + threadIdx.x; i < at.stored; i += kThreads) grad[i] = from_float<Out>(0.0f);
  }
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Enough blocks to fill every multiprocessor; each then walks its rows.
template <class Kernel>
unsigned grid_of(Kernel kernel, int threads, int64_t tokens) {
  int device = 0, processors = 1, blocks = 1;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0));
  return static_cast<unsigned>(std::min<int64_t>(tokens, static_cast<int64_t>(processors) * std::max(blocks, 1)));
}

constexpr int64_t kSmallVocabulary = 4096;  // beyond it a row has work for many warps

template <class T>
void launch_stats(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Logits& at,
                  bool entropy, Tensor& stats) {
  const auto run = [&]<int kThreads, bool kWithEntropy>() {
    auto* kernel = stats_kernel<T, kThreads, kWithEntropy>;
    kernel<<<grid_of(kernel, kThreads, at.tokens), kThreads, 0, current_stream(logits)>>>(
        static_cast<const T*>(logits.const_data_ptr()), targets.const_data_ptr<int64_t>(),
        inverse_temperature.const_data_ptr<float>(), stats.mutable_data_ptr<float>(), at);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (at.columns <= kSmallVocabulary) return entropy ? run.template operator()<128, true>() : run.template operator()<128, false>();
  return entropy ? run.template operator()<512, true>() : run.template operator()<512, false>();
}

Tensor token_stats(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, int64_t columns,
                   int64_t first, int64_t ignore, bool entropy) {
  const Logits at = check_logits(logits, targets, inverse_temperature, columns, first, ignore);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor stats = torch::stable::new_empty(logits, std::vector<int64_t>{4, at.tokens}, ScalarType::Float);
  if (at.tokens == 0) return stats;
  switch (logits.scalar_type()) {
    case ScalarType::Float: launch_stats<float>(logits, targets, inverse_temperature, at, entropy, stats); break;
    case ScalarType::BFloat16:
      launch_stats<__nv_bfloat16>(logits, targets, inverse_temperature, at, entropy, stats);
      break;
    case ScalarType::Half: launch_stats<__half>(logits, targets, inverse_temperature, at, entropy, stats); break;
    default: STD_TORCH_CHECK(false, "logits must be fp32, bf16 or fp16");
  }
  return stats;
}

template <class In, class Out>
void launch_grad(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Tensor& rows,
                 const Logits& at, Tensor& out) {
  const auto run = [&]<int kThreads>() {
    auto* kernel = grad_kernel<In, Out, kThreads>;
    kernel<<<grid_of(kernel, kThreads, at.tokens), kThreads, 0, current_stream(logits)>>>(
        static_cast<const In*>(logits.const_data_ptr()), targets.const_data_ptr<int64_t>(),
        inverse_temperature.const_data_ptr<float>(), rows.const_data_ptr<float>(),
        static_cast<Out*>(out.mutable_data_ptr()), out.stride(0), at);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  return at.columns <= kSmallVocabulary ? run.template operator()<128>() : run.template operator()<512>();
}

void token_grad(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Tensor& rows,
                int64_t columns, int64_t first, int64_t ignore, Tensor out) {
  const Logits at = check_logits(logits, targets, inverse_temperature, columns, first, ignore);
  check_grad(logits, rows, out);
  if (at.tokens == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const ScalarType in = logits.scalar_type(), to = out.scalar_type();
  const auto run = [&]<class In, class Out>() {
    launch_grad<In, Out>(logits, targets, inverse_temperature, rows, at, out);
  };
  if (in == ScalarType::Float && to == ScalarType::Float) return run.template operator()<float, float>();
  if (in == ScalarType::Float && to == ScalarType::BFloat16) return run.template operator()<float, __nv_bfloat16>();
  if (in == ScalarType::Float && to == ScalarType::Half) return run.template operator()<float, __half>();
  if (in == ScalarType::BFloat16 && to == in) return run.template operator()<__nv_bfloat16, __nv_bfloat16>();
  if (in == ScalarType::Half && to == in) return run.template operator()<__half, __half>();
  STD_TORCH_CHECK(false, "logits and out must be both fp32, both bf16 or both fp16, or fp32 to one of the others");
}

}  // namespace
}  // namespace octo

STABLE_TORCH_LIBRARY_IMPL(octo, CUDA, m) {
  m.impl("token_stats", TORCH_BOX(&octo::token_stats));
  m.impl("token_grad", TORCH_BOX(&octo::token_grad));
}
