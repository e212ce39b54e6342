// Registers of floats, and threads.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

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

}  // namespace
