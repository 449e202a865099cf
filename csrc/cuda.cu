// CUDA registration of the token operators, and the only CUDA translation unit.
#include "launch.cuh"

STABLE_TORCH_LIBRARY_IMPL(octo, CUDA, m) {
  m.impl("token_stats", TORCH_BOX(&octo::token_stats));
  m.impl("token_grad", TORCH_BOX(&octo::token_grad));
}
