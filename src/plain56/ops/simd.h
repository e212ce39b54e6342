// Registers of floats, and threads.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// The floats in one register, and how many sums fit into the register file beside what a multiply-add needs.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kSums = 28;
#elif defined(__AVX__)
constexpr int kLanes = 8, kSums = 12;
#else
constexpr int kLanes = 4, kSums = 24;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vector Load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void Store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// Keeps a value in its register: otherwise the compiler may load it again for each of its products, which costs half the speed.
inline void Keep(Vector& value) {
#if defined(__AVX__)
  asm("" : "+v"(value));
#endif
}

// The upper half of a float. Sums are in float32 whatever the operands are.
struct Bfloat16 {
  uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));

inline Vector Load(const Bfloat16* from) {
  return reinterpret_cast<Vector>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
}
inline void Store(Bfloat16* to, Vector value) {  // the nearest, and of two the even one
#if defined(__AVX512BF16__)  // here, those below 2⁻¹²⁶ become zero
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
#else
  Words words = reinterpret_cast<Words>(value), nearest = words + 0x7fff + (words >> 16 & 1);
  words = value == value ? nearest : words | 0x400000;  // not a number, which rounding could make infinite
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(words >> 16, Halves);
#endif
}
inline float Value(float value) { return value; }
inline float Value(Bfloat16 value) {
  uint32_t word = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &word, sizeof result);
  return result;
}

// What a multiply-add takes from an image at a time, its unit: a float, or two adjacent bfloat16, whose products are exact and are
// added one after the other, rounded to float32.
inline Vector MultiplyAdd(Vector sum, float value, Vector kernel) { return sum + value * kernel; }
#if defined(__AVX512BF16__)
inline Vector MultiplyAdd(Vector sum, uint32_t pair, Vector kernel) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)), reinterpret_cast<__m512bh>(kernel));
}
#endif
template <typename Number>
using Unit = std::conditional_t<std::is_same_v<Number, float>, float, uint32_t>;
template <typename Number>
constexpr int kUnit = sizeof(Unit<Number>) / sizeof(Number);
template <typename Number>
inline Unit<Number> UnitAt(const Number* from) {
  Unit<Number> unit;
  std::memcpy(&unit, from, sizeof unit);
  return unit;
}
// Of numbers `step` apart. If only one is left, the other is zero.
inline float UnitOf(const float* from, int64_t, int64_t) { return *from; }
inline uint32_t UnitOf(const Bfloat16* from, int64_t step, int64_t left) { return from->bits | (left > 1 ? from[step].bits << 16 : 0u); }

struct Images {
  int64_t n, h, w, c;
  int64_t size() const { return n * h * w * c; }
};

// Calls f(0) … f(tasks − 1) on the threads of XLA's pool and on this one. If there is no memory for a task, the process ends.
template <typename F>
void ParallelFor(ffi::ThreadPool& pool, int64_t tasks, const F& f) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, tasks, &f]() noexcept {
    for (int64_t i; (i = progress->next++) < tasks; progress->done++) f(i);
  };
  for (int64_t i = std::min(pool.num_threads(), tasks); i > 1; --i) pool.Schedule(decltype(work)(work));
  work();
  while (progress->done < tasks) std::this_thread::yield();
}

// Calls f(begin, end) for slices of 0 … size − 1.
template <typename F>
void InSlices(ffi::ThreadPool& pool, int64_t size, const F& f) {
  constexpr int64_t kSlice = 1 << 14;
  ParallelFor(pool, (size + kSlice - 1) / kSlice, [&](int64_t i) { f(i * kSlice, std::min(size, (i + 1) * kSlice)); });
}

// Numbers as floats: the numbers themselves, or a copy.
inline const float* Widened(ffi::ThreadPool&, const float* numbers, int64_t, std::vector<float>&) { return numbers; }
inline const float* Widened(ffi::ThreadPool& pool, const Bfloat16* numbers, int64_t size, std::vector<float>& copy) {
  copy.resize(std::max<size_t>(copy.size(), size));
  InSlices(pool, size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) copy[i] = Value(numbers[i]);
  });
  return copy.data();
}

}  // namespace
