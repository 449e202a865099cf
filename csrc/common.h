// Shared by the CPU and CUDA token operators: argument checks and constants. Stable ABI only: no ATen, c10 or Python.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <vector>

namespace octo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows of `rows_6T`, the per-token inputs of the backward pass.
enum GradRow { kMaximum, kLogSum, kEntropy, kGradLogProb, kGradLogSumExp, kGradEntropy, kGradRows };

// Lower clamp of the scaled differences to the maximum. exp(-200) is exactly 0 in fp32, and 0 * -200 is 0, whereas
// 0 * -inf is NaN.
constexpr float kLowest = -200.0f;

constexpr int64_t kMaxColumns = int64_t{1} << 30;  // the CUDA kernels index within a row in 32 bits

// Sizes of the logits (tokens, stored). The first `columns` columns are vocabulary entries `first`, first + 1, ...; the
// rest is padding. Any row stride is allowed, including 0 (one row expanded).
struct Logits {
  int64_t tokens, stored, columns, first, stride, ignore;
};

inline Logits check_logits(const Tensor& logits, const Tensor& targets, const Tensor& inverse_temperature,
                           int64_t columns, int64_t first, int64_t ignore) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits must be (tokens, vocabulary), not ", logits.dim(), "-dimensional");
  const int64_t tokens = logits.size(0), stored = logits.size(1);
  STD_TORCH_CHECK(logits.stride(1) == 1 || stored <= 1, "logits must be contiguous within a row");
  STD_TORCH_CHECK(0 <= columns && columns <= stored, "columns must be in [0, ", stored, "], and is ", columns);
  STD_TORCH_CHECK(columns <= kMaxColumns, "columns must be at most ", kMaxColumns, ", and is ", columns);
  STD_TORCH_CHECK(targets.dim() == 1 && targets.size(0) == tokens && targets.scalar_type() == ScalarType::Long &&
                      targets.is_contiguous(),
                  "targets must be ", tokens, " contiguous int64");
  STD_TORCH_CHECK(inverse_temperature.dim() == 1 && inverse_temperature.size(0) == tokens &&
                      inverse_temperature.scalar_type() == ScalarType::Float && inverse_temperature.is_contiguous(),
                  "inverse_temperature must be ", tokens, " contiguous fp32");
  return {tokens, stored, columns, first, logits.stride(0), ignore};
}

inline void check_grad(const Tensor& logits, const Tensor& rows, const Tensor& out) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) == kGradRows && rows.size(1) == logits.size(0) &&
                      rows.scalar_type() == ScalarType::Float && rows.is_contiguous(),
                  "rows must be (6, tokens) contiguous fp32");
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == logits.size(0) && out.size(1) == logits.size(1) &&
                      (out.stride(1) == 1 || out.size(1) <= 1) && (out.stride(0) >= out.size(1) || out.size(0) <= 1),
                  "out must have the shape of logits, with contiguous rows that do not overlap");
}

}  // namespace octo
