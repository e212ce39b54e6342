// 2-D convolution of float32 images and its two gradients on a CPU, called by XLA. Compiled by native.py on the user's machine.
//
// Images [N, H, W, C], kernel [kh, kw, C, D] and output [N, h, w, D] as in convolution.py. Leading axes of all operands (vmap)
// are independent convolutions. Each result depends only on the operands: tasks depend on shapes and never on the number of
// threads, and sums over tasks have a fixed order.

#include "winograd.h"

namespace {

// The product of all axes but the last four, and these four.
template <typename Buffer>
std::pair<int64_t, Images> Shape(Buffer buffer) {
  auto dims = buffer.dimensions();
  size_t last = dims.size();
  int64_t copies = 1;
  for (size_t i = 0; i + 4 < last; ++i) copies *= dims[i];
  return {copies, {dims[last - 4], dims[last - 3], dims[last - 2], dims[last - 1]}};
}

using Floats = ffi::Buffer<ffi::F32>;
using Pair = ffi::Span<const int64_t>;

ffi::Error Convolve(ffi::ThreadPool pool, Floats x, Floats w, ffi::Result<Floats> y, Pair strides, Pair padding) {
  auto [copies, input] = Shape(x);
  Images kernel = Shape(w).second, output = Shape(*y).second;
  Taps taps = ForwardTaps(kernel.n, kernel.h, strides[0], strides[1], padding[0], padding[1]);
  bool winograd = PrefersWinograd(input, kernel.n, kernel.h, strides[0], strides[1], output);
  for (int64_t i = 0; i < copies; ++i) {
    const float *from = x.typed_data() + i * input.size(), *by = w.typed_data() + i * kernel.size();
    float* to = y->typed_data() + i * output.size();
    if (winograd)
      WinogradCorrelate(pool, input, from, by, false, padding[0], padding[1], output, to);
    else
      Correlate(pool, input, from, by, false, taps, output, to, 1, 0, 1, 0);
  }
  return ffi::Error::Success();
}

ffi::Error InputGradient(ffi::ThreadPool pool, Floats g, Floats w, ffi::Result<Floats> dx, Pair strides, Pair padding) {
  auto [copies, output] = Shape(g);
  Images kernel = Shape(w).second, input = Shape(*dx).second;
  bool winograd = PrefersWinograd(output, kernel.n, kernel.h, strides[0], strides[1], input);
  for (int64_t copy = 0; copy < copies; ++copy) {
    const float *from = g.typed_data() + copy * output.size(), *by = w.typed_data() + copy * kernel.size();
    float* to = dx->typed_data() + copy * input.size();
    if (winograd) {
      WinogradCorrelate(pool, output, from, by, true, 2 - padding[0], 2 - padding[1], input, to);
      continue;
    }
    // Input rows with the same remainder by the stride meet the same taps.
    for (int64_t a = 0; a < strides[0]; ++a)
      for (int64_t b = 0; b < strides[1]; ++b) {
        Taps taps{{}, {}, {}, 1, 1};
        for (int64_t i = 0; i < kernel.n; ++i)
          for (int64_t j = 0; j < kernel.h; ++j) {
            int64_t row = a + padding[0] - i, column = b + padding[1] - j;
            if (row % strides[0] == 0 && column % strides[1] == 0) taps.Add(row / strides[0], column / strides[1], i * kernel.h + j);
          }
        if (taps.rows.empty()) taps.Add(-output.h - input.h, 0, 0);  // above the image: only zeros
        Correlate(pool, output, from, by, true, taps, input, to, strides[0], a, strides[1], b);
      }
  }
  return ffi::Error::Success();
}

ffi::Error ComputeKernelGradient(ffi::ThreadPool pool, Floats x, Floats g, ffi::Result<Floats> dw, Pair strides, Pair padding) {
  auto [copies, input] = Shape(x);
  Images output = Shape(g).second, kernel = Shape(*dw).second;
  if (input.size() == 0 || output.size() == 0) {
    std::fill_n(dw->typed_data(), copies * kernel.size(), 0.0f);
    return ffi::Error::Success();
  }
  Taps taps = ForwardTaps(kernel.n, kernel.h, strides[0], strides[1], padding[0], padding[1]);
  bool winograd = PrefersWinograd(input, kernel.n, kernel.h, strides[0], strides[1], output);
  for (int64_t i = 0; i < copies; ++i) {
    const float *from = x.typed_data() + i * input.size(), *by = g.typed_data() + i * output.size();
    float* to = dw->typed_data() + i * kernel.size();
    if (winograd)
      WinogradKernelGradient(pool, input, from, output, by, padding[0], padding[1], to);
    else
      KernelGradient(pool, input, from, output, by, taps, to);
  }
  return ffi::Error::Success();
}

// Σ a and Σ a·b over all images and positions, for batch norm: [2, C].
ffi::Error ComputeChannelSums(ffi::ThreadPool pool, Floats a, Floats b, ffi::Result<Floats> result, Pair, Pair) {
  auto [copies, shape] = Shape(a);
  int64_t channels = shape.c, rows = shape.n * shape.h * shape.w;
  int64_t parts = std::clamp<int64_t>(shape.size() >> 13, 1, 64);
  std::vector<float> partial(parts * 2 * channels);
  for (int64_t copy = 0; copy < copies; ++copy) {
    const float* x = a.typed_data() + copy * shape.size();
    const float* y = b.typed_data() + copy * shape.size();
    ParallelFor(pool, parts, [&](int64_t part) {
      int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
      for (int64_t c = 0; c < channels; c += kLanes) {
        constexpr int kChains = 4;
        Vector sums[kChains] = {}, products[kChains] = {};
        int64_t row = begin;
        auto add = [&](int chain) {
          Vector value = Load(x + row * channels + c);
          sums[chain] += value;
          products[chain] += value * Load(y + row * channels + c);
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
      result->typed_data()[copy * 2 * channels + i] = static_cast<float>(total);
    }
  }
  return ffi::Error::Success();
}

auto Binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Attr<Pair>("strides").Attr<Pair>("padding");
}

}  // namespace

extern "C" int Lanes() { return kLanes; }
XLA_FFI_DEFINE_HANDLER_SYMBOL(Convolution, Convolve, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvolutionInputGradient, InputGradient, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ConvolutionKernelGradient, ComputeKernelGradient, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(ChannelSums, ComputeChannelSums, Binding());
