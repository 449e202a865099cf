// Products of bf16 matrices with fp32 results on the CPU. torch has no operator for them: its own rounds the result to
// bf16. They use oneDNN's micro-kernels, which torch exports for compiled code (ATen/native/CPUBlas.h). These are not
// part of the stable ABI, so they are weak symbols; in a torch that lacks them, has_bf16_product() is false.
#include "common.h"

#include <algorithm>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace at::native::cpublas {

using torch::headeronly::BFloat16;

// c (m, n) = a (m, k) @ b, or c += a @ b. b is packed as interleaved pairs of rows: (k / 2, n, 2).
[[gnu::weak]] void brgemm(int64_t m, int64_t n, int64_t k, int64_t stride_a, int64_t stride_b, int64_t stride_c,
                          bool add, const BFloat16* a, const BFloat16* b, float* c, bool b_is_interleaved);
[[gnu::weak]] void brgemm_release(bool b_is_interleaved);

}  // namespace at::native::cpublas

namespace octo {
namespace {

using at::native::cpublas::BFloat16;

// A panel of b is packed once and used by all rows of a. A panel of 2,048 x 64 is 256 KiB and fits the L2 cache.
constexpr int64_t kRows = 64, kColumns = 64, kDepth = 2048;

bool has_bf16_product() {
#if defined(__x86_64__)
  return &at::native::cpublas::brgemm != nullptr && &at::native::cpublas::brgemm_release != nullptr &&
         __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Packs b (k, n): interleaves each pair of rows.
void interleave(const uint16_t* b, int64_t stride, int64_t pairs, int64_t n, uint32_t* packed) {
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const uint16_t *even = b + 2 * pair * stride, *odd = even + stride;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) packed[pair * kColumns + i] = even[i] | static_cast<uint32_t>(odd[i]) << 16;
  }
}

// Packs b (n, k), in which pairs are already adjacent: transposes them, 8 x 8 pairs at a time with AVX2.
void transpose(const uint16_t* b, int64_t stride, int64_t pairs, int64_t n, uint32_t* packed) {
  const auto scalar = [&](int64_t row, int64_t from) {
    for (int64_t pair = from; pair < pairs; ++pair) {
      const uint16_t* at = b + row * stride + 2 * pair;
      packed[pair * kColumns + row] = at[0] | static_cast<uint32_t>(at[1]) << 16;
    }
  };
  int64_t row = 0;
#if defined(__AVX2__)
  for (; row + 8 <= n; row += 8) {
    int64_t pair = 0;
    for (; pair + 8 <= pairs; pair += 8) {
      __m256 r[8], s[8];
      for (int i = 0; i < 8; ++i)
        r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(b + (row + i) * stride + 2 * pair));
      for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
      }
      auto* out = reinterpret_cast<float*>(packed + pair * kColumns + row);
      for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + i * kColumns, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * kColumns, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
      }
    }
    for (int64_t i = 0; i < 8; ++i) scalar(row + i, pair);
  }
#endif
  for (; row < n; ++row) scalar(row, 0);
}

// out (m, n) = a (m, k) @ b, or out += a @ b where `add`. b is (k, n), or (n, k) where b_is_transposed.
void bf16_product(const Tensor& a, const Tensor& b, bool b_is_transposed, bool add, Tensor out) {
  STD_TORCH_CHECK(has_bf16_product(), "this CPU, or this torch, has no bf16 products with fp32 results");
  const int64_t m = a.size(0), k = a.size(1), n = out.size(1);
  STD_TORCH_CHECK(a.scalar_type() == ScalarType::BFloat16 && b.scalar_type() == ScalarType::BFloat16 &&
                      out.scalar_type() == ScalarType::Float,
                  "a and b must be bf16, out fp32");
  STD_TORCH_CHECK(out.size(0) == m && b.size(0) == (b_is_transposed ? n : k) && b.size(1) == (b_is_transposed ? k : n),
                  "the sizes of a, b and out do not match");
  STD_TORCH_CHECK(k > 0 && k % 2 == 0, "k must be even and above 0, and is ", k);
  const auto has_contiguous_rows = [](const Tensor& x) { return x.stride(1) == 1 || x.size(1) == 1; };
  STD_TORCH_CHECK(has_contiguous_rows(a) && has_contiguous_rows(b) && has_contiguous_rows(out),
                  "rows must be contiguous");
  const int64_t stride_a = a.stride(0), stride_b = b.stride(0), stride_out = out.stride(0);
  const BFloat16* left = a.const_data_ptr<BFloat16>();
  const auto* right = reinterpret_cast<const uint16_t*>(b.const_data_ptr<BFloat16>());
  float* result = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, (n + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> packed(std::min(kDepth, k) / 2 * kColumns);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = panel * kColumns, columns = std::min(kColumns, n - column);
      for (int64_t depth = 0; depth < k; depth += kDepth) {
        const int64_t depths = std::min(kDepth, k - depth);
        if (b_is_transposed)
          transpose(right + column * stride_b + depth, stride_b, depths / 2, columns, packed.data());
        else
          interleave(right + depth * stride_b + column, stride_b, depths / 2, columns, packed.data());
        for (int64_t row = 0; row < m; row += kRows)
          at::native::cpublas::brgemm(std::min(kRows, m - row), columns, depths, stride_a, kColumns, stride_out,
                                      add || depth > 0, left + row * stride_a + depth,
                                      reinterpret_cast<const BFloat16*>(packed.data()),
                                      result + row * stride_out + column, true);
      }
    }
    at::native::cpublas::brgemm_release(true);
  });
}

}  // namespace
}  // namespace octo

STABLE_TORCH_LIBRARY_FRAGMENT(octo, m) {
  m.def("has_bf16_product() -> bool");
  m.def("bf16_product(Tensor a, Tensor b, bool b_is_transposed, bool add, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(octo, CompositeExplicitAutograd, m) {
  m.impl("has_bf16_product", TORCH_BOX(&octo::has_bf16_product));
}

STABLE_TORCH_LIBRARY_IMPL(octo, CPU, m) { m.impl("bf16_product", TORCH_BOX(&octo::bf16_product)); }
