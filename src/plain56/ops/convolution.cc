// 2-D convolution of float32 and bfloat16 images and its two gradients on a CPU, called by XLA. Compiled by native.py on the user's
// machine.
//
// Images [N, H, W, C], kernel [kh, kw, C, D] and output [N, h, w, D] as in convolution.py. Leading axes of all operands (vmap)
// are independent convolutions. Each result depends only on the operands: tasks depend on shapes and never on the number of
// threads, and sums over tasks have a fixed order. All sums are of floats.
//
// There are three algorithms: direct.h and kernel_gradient.h are the sum as it is written, winograd.h needs a quarter of the
// products for 3×3 kernels, and amx.h is the sum in bfloat16 for processors that multiply matrices.

#include "amx.h"
#include "winograd.h"

namespace {

using Operand = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;
using Pair = ffi::Span<const int64_t>;

// The product of all axes but the last four, and these four.
std::pair<int64_t, Images> Shape(const ffi::AnyBuffer& buffer) {
  auto dims = buffer.dimensions();
  size_t last = dims.size();
  int64_t copies = 1;
  for (size_t i = 0; i + 4 < last; ++i) copies *= dims[i];
  return {copies, {dims[last - 4], dims[last - 3], dims[last - 2], dims[last - 1]}};
}

// Makes images of a 1×1 convolution with stride 1, and its results, one image each, with rows that are long and fit into a cache.
void Flatten(const Images& kernel, Pair strides, Images& a, Images& b) {
  bool same = kernel.n == 1 && kernel.h == 1 && strides[0] == 1 && strides[1] == 1 && a.h == b.h && a.w == b.w;
  int64_t pixels = a.n * a.h * a.w, width = 64;
  while (pixels % width) --width;
  if (same && width >= 16) a = {1, pixels / width, width, a.c}, b = {1, pixels / width, width, b.c};
}

// Calls f(a, b, result) for each of the copies of two operands and a result, as pointers to their numbers.
template <typename Number, typename To, typename F>
void EachCopy(Operand& a, Operand& b, Result& result, const F& f) {
  auto [copies, shape] = Shape(a);
  auto *first = static_cast<Number*>(a.untyped_data()), *second = static_cast<Number*>(b.untyped_data());
  auto* to = static_cast<To*>(result->untyped_data());
  int64_t size = shape.size(), other_size = Shape(b).second.size(), result_size = result->element_count() / std::max<int64_t>(copies, 1);
  for (int64_t i = 0; i < copies; ++i) f(first + i * size, second + i * other_size, to + i * result_size);
}

template <typename Number>
void Convolve(ffi::ThreadPool& pool, Operand& x, Operand& w, Result& y, Pair strides, Pair padding) {
  Images input = Shape(x).second, kernel = Shape(w).second, output = Shape(*y).second;
  Flatten(kernel, strides, input, output);
  Taps taps = ForwardTaps(kernel.n, kernel.h, strides[0], strides[1], padding[0], padding[1]);
  bool winograd = !UsesAmx<Number>() && PrefersWinograd(input, kernel.n, kernel.h, strides[0], strides[1], output);
  EachCopy<const Number, Number>(x, w, y, [&](const Number* x, const Number* w, Number* y) {
    if (winograd) return WinogradCorrelate(pool, input, x, w, false, padding[0], padding[1], output, y);
    WithProducts(pool, input, x, kernel, w, output, y, [&](auto* x, auto* w, auto* y) {
      Correlate(pool, input, x, w, false, taps, output, y, 1, 0, 1, 0);
    });
  });
}

template <typename Number>
void InputGradient(ffi::ThreadPool& pool, Operand& g, Operand& w, Result& dx, Pair strides, Pair padding) {
  Images output = Shape(g).second, kernel = Shape(w).second, input = Shape(*dx).second;
  Flatten(kernel, strides, input, output);
  bool winograd = !UsesAmx<Number>() && PrefersWinograd(output, kernel.n, kernel.h, strides[0], strides[1], input);
  EachCopy<const Number, Number>(g, w, dx, [&](const Number* g, const Number* w, Number* dx) {
    if (winograd) return WinogradCorrelate(pool, output, g, w, true, 2 - padding[0], 2 - padding[1], input, dx);
    WithProducts(pool, output, g, kernel, w, input, dx, [&](auto* g, auto* w, auto* dx) {
      // Input rows with the same remainder by the stride meet the same taps.
      for (int64_t a = 0; a < strides[0]; ++a)
        for (int64_t b = 0; b < strides[1]; ++b) {
          Taps taps{{}, {}, {}, 1, 1};
          for (int64_t i = 0; i < kernel.n; ++i)
            for (int64_t j = kernel.h; j-- > 0;) {  // columns that grow
              int64_t row = a + padding[0] - i, column = b + padding[1] - j;
              if (row % strides[0] == 0 && column % strides[1] == 0) taps.Add(row / strides[0], column / strides[1], i * kernel.h + j);
            }
          if (taps.rows.empty()) taps.Add(-output.h - input.h, 0, 0);  // above the image: only zeros
          Correlate(pool, output, g, w, true, taps, input, dx, strides[0], a, strides[1], b);
        }
    });
  });
}

template <typename Number>
void ComputeKernelGradient(ffi::ThreadPool& pool, Operand& x, Operand& g, Result& dw, Pair strides, Pair padding) {
  Images input = Shape(x).second, output = Shape(g).second, kernel = Shape(*dw).second;
  if (input.size() == 0 || output.size() == 0) {
    std::memset(dw->untyped_data(), 0, dw->size_bytes());
    return;
  }
  Flatten(kernel, strides, input, output);
  Taps taps = ForwardTaps(kernel.n, kernel.h, strides[0], strides[1], padding[0], padding[1]);
  bool winograd = !UsesAmx<Number>() && PrefersWinograd(input, kernel.n, kernel.h, strides[0], strides[1], output);
  EachCopy<const Number, Number>(x, g, dw, [&](const Number* x, const Number* g, Number* dw) {
    if (winograd) return WinogradKernelGradient(pool, input, x, output, g, padding[0], padding[1], dw);
#if defined(HAS_AMX)
    if constexpr (std::is_same_v<Number, Bfloat16>)
      if (MayUseAmx()) return KernelGradient(pool, input, x, output, g, taps, dw);
#endif
    KernelGradient<Number>(pool, input, x, output, g, taps, dw);
  });
}

// Σ a and Σ a·b over all images and positions, for batch norm: floats [2, C]. `passes` says which values of a count, by those of b.
template <typename Number, typename Passes>
void SumChannels(ffi::ThreadPool& pool, Operand& a, Operand& b, Result& result, const Passes& passes) {
  Images shape = Shape(a).second;
  int64_t channels = shape.c, rows = shape.n * shape.h * shape.w;
  int64_t parts = std::clamp<int64_t>(shape.size() >> 13, 1, 64), copy = 0;
  std::vector<float> partial(parts * 2 * channels);
  EachCopy<const Number, float>(a, b, result, [&](const Number* x, const Number* y, float* to) {
    ParallelFor(pool, parts, [&](int64_t part) {
      int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
      for (int64_t c = 0; c < channels; c += kLanes) {
        constexpr int kChains = 4;
        Vector sums[kChains] = {}, products[kChains] = {};
        auto passed = passes(copy * channels * 3 + c, channels);
        int64_t row = begin;
        auto add = [&](int chain) {
          Vector other = Load(y + row * channels + c), value = passed(Load(x + row * channels + c), other);
          sums[chain] += value;
          products[chain] += value * other;
          ++row;
        };
        while (row + kChains <= end)
          for (int chain = 0; chain < kChains; ++chain) add(chain);
        while (row < end) add(0);
        Store(&partial[part * 2 * channels + c], (sums[0] + sums[1]) + (sums[2] + sums[3]));
        Store(&partial[(part * 2 + 1) * channels + c], (products[0] + products[1]) + (products[2] + products[3]));
      }
    });
    for (int64_t i = 0; i < 2 * channels; ++i) {
      double total = 0;
      for (int64_t part = 0; part < parts; ++part) total += partial[part * 2 * channels + i];
      to[i] = static_cast<float>(total);
    }
    ++copy;
  });
}

template <typename Number>
void ComputeChannelSums(ffi::ThreadPool& pool, Operand& a, Operand& b, Result& result) {
  SumChannels<Number>(pool, a, b, result, [](int64_t, int64_t) { return [](Vector value, Vector) { return value; }; });
}

// As ChannelSums of gradients a, where (b − mean) · factor + bias is positive; [3, C] are mean, factor and bias.
template <typename Number>
void ComputePassedChannelSums(ffi::ThreadPool& pool, Operand& a, Operand& b, Operand& vectors, Result& result) {
  const float* from = vectors.typed_data<float>();
  SumChannels<Number>(pool, a, b, result, [from](int64_t start, int64_t step) {
    Vector mean = Load(from + start), factor = Load(from + start + step), bias = Load(from + start + 2 * step);
    return [=](Vector value, Vector x) { return (x - mean) * factor + bias > Vector{} ? value : Vector{}; };
  });
}

auto Binding() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Operand>().Arg<Operand>(); }
auto ConvolutionBinding() { return Binding().Ret<ffi::AnyBuffer>().Attr<Pair>("strides").Attr<Pair>("padding"); }

}  // namespace

// Defines what XLA calls, from the parameters and the arguments after the first two. The compiler is told which NUMBER the library
// is for, float or Bfloat16: few users need both, and each takes its time to compile.
#define DEFINE(Name, Function, Bound, Parameters, ...) \
  ffi::Error Name##OfNumbers Parameters {              \
    Function<NUMBER>(pool, a, b, __VA_ARGS__);         \
    return ffi::Error::Success();                      \
  }                                                    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(Name, Name##OfNumbers, Bound)
#define CONVOLUTION (ffi::ThreadPool pool, Operand a, Operand b, Result result, Pair strides, Pair padding)

extern "C" int Lanes() { return kLanes; }
#if defined(__AVX512BF16__) && !defined(HAS_AMX)
extern "C" const char* Products() { return "avx512_bf16"; }
#else
extern "C" const char* Products() { return MayUseAmx() ? "amx_bf16" : "float32"; }
#endif
DEFINE(Convolution, Convolve, ConvolutionBinding(), CONVOLUTION, result, strides, padding);
DEFINE(ConvolutionInputGradient, InputGradient, ConvolutionBinding(), CONVOLUTION, result, strides, padding);
DEFINE(ConvolutionKernelGradient, ComputeKernelGradient, ConvolutionBinding(), CONVOLUTION, result, strides, padding);
DEFINE(ChannelSums, ComputeChannelSums, Binding().Ret<ffi::AnyBuffer>(), (ffi::ThreadPool pool, Operand a, Operand b, Result result), result);
DEFINE(PassedChannelSums, ComputePassedChannelSums, Binding().Arg<Operand>().Ret<ffi::AnyBuffer>(),
       (ffi::ThreadPool pool, Operand a, Operand b, Operand vectors, Result result), vectors, result);
