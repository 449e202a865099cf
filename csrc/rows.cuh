// Reads and writes rows 16 bytes at a time, at any alignment.
//
// Vector v of a row is always its values [v * width, (v + 1) * width). The mapping of values to threads must not depend
// on the row's address, or the sums would too. A row of 128,257 bf16 can begin at any even address, so a vector may lie
// across two aligned 16-byte words. To load it, a thread reads both words and shifts the wanted bytes out. To store it,
// neighbouring threads exchange values so that each writes one aligned word. A thread writes only its own bytes and its
// neighbour's. Loads stay within the aligned words that hold a wanted byte, and no allocation ends inside such a word.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace octo {

constexpr int kWarp = 32;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }

template <class To, class From>
__device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Values in a vector: as many as fit 16 bytes of the logits' type. A gradient vector of a narrower type has as many
// values, and so fewer bytes.
template <class T> constexpr int width_of = 16 / sizeof(T);

// The bytes of a vector. They stay packed while they are moved, as unpacked 16-bit values would take a register each.
template <int kWords>
struct alignas(4 * kWords) Words {
  uint32_t words[kWords];
};
template <class T, int kWidth> using Packed = Words<sizeof(T) * kWidth / 4>;

template <class T> struct Pair;  // two 16-bit values in a 32-bit word, the first in the lower half
template <> struct Pair<__nv_bfloat16> {
  static __device__ __forceinline__ float2 unpack(uint32_t word) {  // one instruction each
    return {bit_cast<float>(word << 16), bit_cast<float>(word & 0xffff0000u)};
  }
  static __device__ __forceinline__ uint32_t pack(float a, float b) { return bit_cast<uint32_t>(__floats2bfloat162_rn(a, b)); }
};
template <> struct Pair<__half> {
  static __device__ __forceinline__ float2 unpack(uint32_t word) { return __half22float2(bit_cast<__half2>(word)); }
  static __device__ __forceinline__ uint32_t pack(float a, float b) { return bit_cast<uint32_t>(__floats2half2_rn(a, b)); }
};

template <class T, int kWidth>
__device__ __forceinline__ void unpack(const Packed<T, kWidth>& packed, float (&values)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if constexpr (sizeof(T) == 4) values[i] = bit_cast<float>(packed.words[i]);
    else values[i] = i % 2 == 0 ? Pair<T>::unpack(packed.words[i / 2]).x : Pair<T>::unpack(packed.words[i / 2]).y;
  }
}

template <class T, int kWidth>
__device__ __forceinline__ Packed<T, kWidth> pack(const float (&values)[kWidth]) {
  Packed<T, kWidth> packed;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(packed) / 4); ++i) {
    if constexpr (sizeof(T) == 4) packed.words[i] = bit_cast<uint32_t>(values[i]);
    else packed.words[i] = Pair<T>::pack(values[2 * i], values[2 * i + 1]);
  }
  return packed;
}

// Bytes [begin, begin + 4 * kWords) of `low` followed by `high`; 0 <= begin < 4 * kWords. Selects instead of indexing,
// because registers have no addresses.
template <int kWords>
__device__ __forceinline__ Words<kWords> bytes_from(const Words<kWords>& low, const Words<kWords>& high,
                                                    unsigned begin) {
  uint32_t both[2 * kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) both[i] = low.words[i], both[kWords + i] = high.words[i];
#pragma unroll
  for (int step = kWords / 2; step > 0; step /= 2) {
    const bool shifts = begin & (4 * step);
#pragma unroll
    for (int i = 0; i + step < 2 * kWords; ++i) both[i] = shifts ? both[i + step] : both[i];
  }
  Words<kWords> wanted;
#pragma unroll
  for (int i = 0; i < kWords; ++i) wanted.words[i] = __funnelshift_r(both[i], both[i + 1], 8 * (begin % 4));
  return wanted;
}

// The vectors of a row. `kAligned`: the row is known to begin at a multiple of the vector's size.
template <class T, int kWidth, bool kAligned>
class Row {
  using Bytes = Packed<T, kWidth>;
  static constexpr unsigned kBytes = sizeof(Bytes);
  static constexpr int kWords = kBytes / 4;

 public:
  __device__ __forceinline__ explicit Row(const T* begin)
      : offset_(kAligned ? 0 : reinterpret_cast<uintptr_t>(begin) % kBytes),
        base_(reinterpret_cast<const char*>(begin) - offset_) {}

  __device__ __forceinline__ Bytes load(int vector) const {
    const Bytes* place = reinterpret_cast<const Bytes*>(base_) + vector;
    const Bytes low = place[0];
    if constexpr (kAligned) return low;
    const Bytes high = place[offset_ == 0 ? 0 : 1];
    return bytes_from(low, high, offset_);
  }

  // Called by all lanes of a warp, lane i with vector `first + i`. Lanes at or beyond `vectors` write nothing.
  __device__ __forceinline__ void store(int vector, int vectors, const Bytes& mine) const {
    Bytes* place = reinterpret_cast<Bytes*>(const_cast<char*>(base_)) + vector;
    if constexpr (kAligned) {
      if (vector < vectors) place[0] = mine;
    } else {
      Bytes before;
#pragma unroll
      for (int i = 0; i < kWords; ++i) before.words[i] = __shfl_up_sync(~0u, mine.words[i], 1);
      if (vector >= vectors) return;
      const unsigned lane = threadIdx.x % kWarp;
      const bool is_first = lane == 0, is_last = lane == kWarp - 1 || vector + 1 == vectors;
      if (!is_first) place[0] = offset_ == 0 ? mine : bytes_from(before, mine, kBytes - offset_);
      if (!is_first && !is_last) return;
      // The first and the last word of the warp's run are shared with other warps, so they are written value by value.
      struct Values {
        T values[kWidth];
      } const v = bit_cast<Values>(mine);
      T* values = reinterpret_cast<T*>(const_cast<char*>(base_) + offset_) + static_cast<int64_t>(vector) * kWidth;
      const int until_next = static_cast<int>((kBytes - offset_) / sizeof(T));
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        if (i < until_next ? is_first : is_last) values[i] = v.values[i];
    }
  }

 private:
  unsigned offset_;   // bytes from the aligned address below the row to the row
  const char* base_;  // that address; a pointer, because for an integer the compiler cannot infer global memory
};

template <class T, int kWidth>
__device__ __forceinline__ bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * kWidth) == 0;
}

// Writes zeros over [first, last), with all threads of a block.
template <class T>
__device__ __forceinline__ void clear(T* first, T* last, int threads) {
  constexpr int kWidth = width_of<T>;
  T* from = first + (16 - reinterpret_cast<uintptr_t>(first) % 16) % 16 / sizeof(T);  // the first aligned address
  if (from > last) from = last;
  const int64_t vectors = (last - from) / kWidth;
  // the unaligned ends are at most 15 bytes each
  if (first + threadIdx.x < from) first[threadIdx.x] = from_float<T>(0.0f);
#pragma unroll 1
  for (int64_t v = threadIdx.x; v < vectors; v += threads) reinterpret_cast<Words<4>*>(from)[v] = Words<4>{};
  T* behind = from + vectors * kWidth + threadIdx.x;
  if (behind < last) *behind = from_float<T>(0.0f);
}

}  // namespace octo
