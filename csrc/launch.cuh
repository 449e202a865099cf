// Host side of the CUDA token operators: checks, the current stream, and a grid that fills the device.
#pragma once
#include "kernels.cuh"

#include <cuda_runtime.h>

#include <algorithm>

// These symbols exist only in libtorch_cuda. They are weak so that the same library loads in a torch without CUDA,
// where they are null and never called. setup.py links with --no-as-needed -ltorch, so a torch with CUDA resolves them.
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

#ifndef OCTO_LAUNCH  // tests/ops/emulation/cuda.h defines its own, to run the kernels without a GPU
#define OCTO_LAUNCH(kernel, blocks, threads, stream) kernel<<<blocks, threads, 0, stream>>>
#endif

namespace octo {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Enough blocks to fill every multiprocessor; each then loops over rows.
template <class Kernel>
unsigned grid_size(Kernel kernel, int threads, int64_t tokens) {
  int device = 0, processors = 1, blocks = 1;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0));
  return static_cast<unsigned>(std::min<int64_t>(tokens, static_cast<int64_t>(processors) * std::max(blocks, 1)));
}

constexpr int64_t kSmallVocabulary = 4096;  // above it a row has work for many warps

template <class T>
void launch_stats(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Logits& dims,
                  bool entropy, Tensor& stats) {
  const auto run = [&]<int kThreads, bool kWithEntropy>() {
    auto* kernel = stats_kernel<T, kThreads, kWithEntropy>;
    OCTO_LAUNCH(kernel, grid_size(kernel, kThreads, dims.tokens), kThreads, current_stream(logits))(
        static_cast<const T*>(logits.const_data_ptr()), targets.const_data_ptr<int64_t>(),
        inverse_temperature.const_data_ptr<float>(), stats.mutable_data_ptr<float>(), dims);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (dims.columns <= kSmallVocabulary) return entropy ? run.template operator()<128, true>() : run.template operator()<128, false>();
  return entropy ? run.template operator()<512, true>() : run.template operator()<512, false>();
}

Tensor token_stats(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, int64_t columns,
                   int64_t first, int64_t ignore, bool entropy) {
  const Logits dims = check_logits(logits, targets, inverse_temperature, columns, first, ignore);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Tensor stats = torch::stable::new_empty(logits, std::vector<int64_t>{4, dims.tokens}, ScalarType::Float);
  if (dims.tokens == 0) return stats;
  switch (logits.scalar_type()) {
    case ScalarType::Float: launch_stats<float>(logits, targets, inverse_temperature, dims, entropy, stats); break;
    case ScalarType::BFloat16:
      launch_stats<__nv_bfloat16>(logits, targets, inverse_temperature, dims, entropy, stats);
      break;
    case ScalarType::Half: launch_stats<__half>(logits, targets, inverse_temperature, dims, entropy, stats); break;
    default: STD_TORCH_CHECK(false, "logits must be fp32, bf16 or fp16");
  }
  return stats;
}

template <class In, class Out>
void launch_grad(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Tensor& rows,
                 const Logits& dims, Tensor& out) {
  const auto run = [&]<int kThreads>() {
    auto* kernel = grad_kernel<In, Out, kThreads>;
    OCTO_LAUNCH(kernel, grid_size(kernel, kThreads, dims.tokens), kThreads, current_stream(logits))(
        static_cast<const In*>(logits.const_data_ptr()), targets.const_data_ptr<int64_t>(),
        inverse_temperature.const_data_ptr<float>(), rows.const_data_ptr<float>(),
        static_cast<Out*>(out.mutable_data_ptr()), out.stride(0), dims);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  };
  return dims.columns <= kSmallVocabulary ? run.template operator()<128>() : run.template operator()<512>();
}

void token_grad(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature, const Tensor& rows,
                int64_t columns, int64_t first, int64_t ignore, Tensor out) {
  const Logits dims = check_logits(logits, targets, inverse_temperature, columns, first, ignore);
  check_grad(logits, rows, out);
  if (dims.tokens == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const ScalarType in = logits.scalar_type(), to = out.scalar_type();
  const auto run = [&]<class In, class Out>() {
    launch_grad<In, Out>(logits, targets, inverse_temperature, rows, dims, out);
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
