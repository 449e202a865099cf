// csrc's CUDA operators, including their host code, on the emulated GPU: torch.ops.octo_emulated, for CPU tensors.
#include "cuda.h"

#include "launch.cuh"

// Stubs of the CUDA runtime and torch functions that the operators call. There are always two blocks, so each takes
// several rows.
extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 2, cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  return *blocks = 1, cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) { return 0; }
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle*) { return 0; }
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }
AOTITorchError torch_c10_cuda_check_msg(int32_t, const char*, const char*, uint32_t, bool, char** message) {
  return *message = nullptr, 0;
}
void torch_c10_cuda_free_error_msg(char*) {}
}

namespace {

using torch::stable::Tensor;

void backwards(bool yes) { emulation::backwards = yes; }

// A faulty kernel, to test that the emulation detects the faults.
enum Fault { kNoBarrier, kPartOfAWarp, kUnaligned };

__global__ void faulty_kernel(float* x, int64_t fault) {
  __shared__ float shared;
  if (fault == kNoBarrier) {
    if (threadIdx.x == 0) shared = x[0];
    if (threadIdx.x == octo::kWarp) x[1] = shared;
  }
  if (fault == kPartOfAWarp && threadIdx.x < 5) x[1] = __shfl_up_sync(~0u, x[0], 1);
  if (fault == kUnaligned) {
    const octo::Words<4> words = *reinterpret_cast<const octo::Words<4>*>(x + 1);
    x[0] = octo::bit_cast<float>(words.words[0]);
  }
}

void faulty(Tensor x, int64_t fault) {
  OCTO_LAUNCH(faulty_kernel, 1, 64, nullptr)(x.mutable_data_ptr<float>(), fault);
}

}  // namespace

STABLE_TORCH_LIBRARY(octo_emulated, m) {
  m.def("token_stats(Tensor logits, Tensor targets, Tensor inverse_temperature, int columns, int first, "
        "int ignore_index, bool entropy) -> Tensor");
  m.def("token_grad(Tensor logits, Tensor targets, Tensor inverse_temperature, Tensor rows, int columns, int first, "
        "int ignore_index, Tensor(a!) out) -> ()");
  m.def("backwards(bool yes) -> ()");
  m.def("faulty(Tensor(a!) x, int fault) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(octo_emulated, CPU, m) {
  m.impl("token_stats", TORCH_BOX(&octo::token_stats));
  m.impl("token_grad", TORCH_BOX(&octo::token_grad));
  m.impl("faulty", TORCH_BOX(&faulty));
}
STABLE_TORCH_LIBRARY_IMPL(octo_emulated, CompositeExplicitAutograd, m) { m.impl("backwards", TORCH_BOX(&backwards)); }
