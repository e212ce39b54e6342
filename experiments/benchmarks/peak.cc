// What a processor can do at most: multiply-adds and bytes per second. Compiled and called by profile_step.py.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// What is stored here must be computed.
volatile float float_sink;
volatile uint64_t integer_sink;

double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A multiply-add takes about four cycles, and two begin in each. More sums than eight keep a core busy, and 12 fit into 16
// registers with the factor and the term. They differ, so that the compiler does not compute one for all of them.
constexpr int kSums = 12, kRepeats = 100000;

template <int kLanes>
using Vector __attribute__((vector_size(kLanes * sizeof(float)))) = float;

// Floating-point operations per second of one thread. Inlined, so that it is compiled for the processor that the caller names.
template <int kLanes>
__attribute__((always_inline)) inline double Loop(double seconds) {
  Vector<kLanes> factor = Vector<kLanes>{} + 0.5f, term = Vector<kLanes>{} + 1.0f, sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = term * (-1.0f - i);
  double repeats = 0, passed = 0;
  for (auto start = Clock::now(); passed < seconds; passed = Since(start), repeats += kRepeats)
    for (int repeat = 0; repeat < kRepeats; ++repeat)
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
  for (int i = 0; i < kSums; ++i) float_sink = sums[i][0];
  return repeats * kSums * kLanes * 2 / passed;
}

double Loop128(double seconds) { return Loop<4>(seconds); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double Loop256(double seconds) { return Loop<8>(seconds); }
__attribute__((target("avx512f"))) double Loop512(double seconds) { return Loop<16>(seconds); }
#endif

// Calls `work` on threads that wait for each other after `prepare`, and returns the sum of its results.
template <typename Prepare, typename Work>
double OnThreads(int count, const Prepare& prepare, const Work& work) {
  std::atomic<int> waiting{count};
  std::vector<double> results(count);
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      auto prepared = prepare();
      for (--waiting; waiting > 0;) std::this_thread::yield();
      results[i] = work(prepared);
    });
  for (auto& thread : threads) thread.join();
  double sum = 0;
  for (double result : results) sum += result;
  return sum;
}

}  // namespace

// Whether there is a loop over registers of so many bits that this processor can run.
extern "C" int Supports(int bits) {
#if defined(__x86_64__)
  if (bits == 256) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (bits == 512) return __builtin_cpu_supports("avx512f");
#endif
  return bits == 128;
}

// Floating-point operations per second of all threads together; a multiply-add counts as two.
extern "C" double Peak(int bits, int threads, double seconds) {
  double (*loop)(double) = Loop128;
#if defined(__x86_64__)
  loop = bits == 512 ? Loop512 : bits == 256 ? Loop256 : Loop128;
#endif
  return OnThreads(threads, [] { return 0; }, [&](int) { return loop(seconds); });
}

// Bytes per second of all threads together, each of which reads an array of its own, or also writes its double to another one.
extern "C" double Bandwidth(int64_t bytes, int writes, int threads, double seconds) {
  int64_t size = bytes / sizeof(uint32_t);
  auto prepare = [&] {  // by the thread that uses them, so that they are in the memory near its core
    return std::vector<std::vector<uint32_t>>(writes ? 2 : 1, std::vector<uint32_t>(size, 1));
  };
  auto work = [&](std::vector<std::vector<uint32_t>>& arrays) {
    uint32_t *x = arrays.front().data(), *__restrict y = arrays.back().data(), sum = 0;
    double passes = 0, passed = 0;
    for (auto start = Clock::now(); passed < seconds; passed = Since(start), ++passes) {
      if (writes)
        for (int64_t i = 0; i < size; ++i) y[i] = 2 * x[i];
      else
        for (int64_t i = 0; i < size; ++i) sum += x[i];
      asm volatile("" : : "r"(x), "r"(y) : "memory");  // each pass must be made anew
    }
    integer_sink = sum;
    return passes * bytes * (writes ? 2 : 1) / passed;
  };
  return OnThreads(threads, prepare, work);
}
