// 3×3 convolution with stride 1 in a quarter of the multiplications: F(4×4, 3×3) (Winograd 1980; Lavin & Gray 2016, section 4).
//
// A tile of 4×4 outputs y depends on a patch of 6×6 inputs x. With U = G w Gᵀ and V = Bᵀ x B it is y = Aᵀ (U ⊙ V) A: 36 products
// in place of 144, which over all channels and tiles are 36 matrix products [tiles, C] · [C, D]. The gradient by the kernel
// is such a sum too: dw = Σ Aᵀ (V ⊙ G g Gᵀ) A over all tiles, with the same Bᵀ and other A and G.
//
// The matrices evaluate and interpolate polynomials at the points 0, ±5/8, ±3/2 and ∞. The usual ±1 and ±2 lose a digit in
// float32; these lose a third of one. Lagrange's denominators are in the transform of the kernel, or of its gradient.

#pragma once

#include "kernel_gradient.h"

namespace {

constexpr int64_t kMostTiles = 56;  // in one pass, a multiple of the rows of the matrix products
constexpr int64_t kTile = 4, kPatch = 6, kPoints = kPatch * kPatch;
constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;
constexpr float kOver0 = 1 / (kA2 * kB2), kOverA = 1 / (2 * kA2 * (kA2 - kB2)), kOverB = 1 / (2 * kB2 * (kB2 - kA2));

// In one direction. `in(i)` gives a value, `out(i, value)` takes one.
struct OfInput {  // Bᵀ: six inputs to six points
  static constexpr int kFrom = 6, kTo = 6;
  template <typename In, typename Out>
  static void Apply(In in, Out out) {
    Vector x0 = in(0), x1 = in(1), x2 = in(2), x3 = in(3), x4 = in(4), x5 = in(5);
    Vector even_a = x4 - kB2 * x2, odd_a = x3 - kB2 * x1, even_b = x4 - kA2 * x2, odd_b = x3 - kA2 * x1;
    out(0, kA2 * kB2 * x0 - (kA2 + kB2) * x2 + x4);
    out(1, even_a + kA * odd_a), out(2, even_a - kA * odd_a);
    out(3, even_b + kB * odd_b), out(4, even_b - kB * odd_b);
    out(5, kA2 * kB2 * x1 - (kA2 + kB2) * x3 + x5);
  }
};
struct ToOutput {  // Aᵀ: six points to four outputs
  static constexpr int kFrom = 6, kTo = 4;
  template <typename In, typename Out>
  static void Apply(In in, Out out) {
    Vector m1 = in(1), m2 = in(2), m3 = in(3), m4 = in(4);
    Vector even_a = m1 + m2, odd_a = kA * (m1 - m2), even_b = m3 + m4, odd_b = kB * (m3 - m4);
    out(0, in(0) + even_a + even_b);
    out(1, odd_a + odd_b);
    out(2, kA2 * even_a + kB2 * even_b);
    out(3, kA2 * odd_a + kB2 * odd_b + in(5));
  }
};
struct OfKernel {  // G: three values of the kernel to six points
  static constexpr int kFrom = 3, kTo = 6;
  template <typename In, typename Out>
  static void Apply(In in, Out out) {
    Vector w0 = in(0), w1 = in(1), w2 = in(2);
    Vector even_a = kOverA * (w0 + kA2 * w2), odd_a = kOverA * kA * w1, even_b = kOverB * (w0 + kB2 * w2), odd_b = kOverB * kB * w1;
    out(0, kOver0 * w0);
    out(1, even_a + odd_a), out(2, even_a - odd_a);
    out(3, even_b + odd_b), out(4, even_b - odd_b);
    out(5, w2);
  }
};
struct OfGradient {  // G of the gradient by the kernel: four gradients of outputs to six points
  static constexpr int kFrom = 4, kTo = 6;
  template <typename In, typename Out>
  static void Apply(In in, Out out) {
    Vector g0 = in(0), g1 = in(1), g2 = in(2), g3 = in(3);
    Vector even_a = g0 + kA2 * g2, odd_a = g1 + kA2 * g3, even_b = g0 + kB2 * g2, odd_b = g1 + kB2 * g3;
    out(0, g0);
    out(1, even_a + kA * odd_a), out(2, even_a - kA * odd_a);
    out(3, even_b + kB * odd_b), out(4, even_b - kB * odd_b);
    out(5, g3);
  }
};
struct ToKernel {  // Aᵀ of the gradient by the kernel: six points to three values
  static constexpr int kFrom = 6, kTo = 3;
  template <typename In, typename Out>
  static void Apply(In in, Out out) {
    Vector m1 = in(1), m2 = in(2), m3 = in(3), m4 = in(4);
    Vector even_a = kOverA * (m1 + m2), odd_a = kOverA * kA * (m1 - m2), even_b = kOverB * (m3 + m4), odd_b = kOverB * kB * (m3 - m4);
    out(0, kOver0 * in(0) + even_a + even_b);
    out(1, odd_a + odd_b);
    out(2, kA2 * even_a + kB2 * even_b + in(5));
  }
};

// A transform in both directions. `in(row, column)` gives a value, `out(row, column, value)` takes one.
template <typename T, typename In, typename Out>
inline void Transform(In in, Out out) {
  Vector half[T::kFrom][T::kTo];
#pragma GCC unroll 6
  for (int i = 0; i < T::kFrom; ++i) T::Apply([&](int j) { return in(i, j); }, [&](int j, Vector value) { half[i][j] = value; });
#pragma GCC unroll 6
  for (int j = 0; j < T::kTo; ++j) T::Apply([&](int i) { return half[i][j]; }, [&](int i, Vector value) { out(i, j, value); });
}

// The tiles of output images, row by row.
struct Tiles {
  int64_t rows, columns, count;
  explicit Tiles(const Images& output)
      : rows((output.h + kTile - 1) / kTile), columns((output.w + kTile - 1) / kTile), count(output.n * rows * columns) {}

  // Calls f(image, row, column) for tiles begin … end − 1; row and column are of the tile's first output.
  template <typename F>
  void Each(int64_t begin, int64_t end, const F& f) const {
    int64_t column = begin % columns, row = begin / columns % rows, image = begin / columns / rows;
    for (int64_t tile = begin; tile < end; ++tile) {
      f(image, row * kTile, column * kTile);
      if (++column < columns) continue;
      column = 0;
      if (++row < rows) continue;
      row = 0, ++image;
    }
  }
};

// A patch of S×S pixels: pixel (i, j) is at data + i · row_step + j · column_step.
template <typename Number>
struct Patch {
  Number* data;
  int64_t row_step, column_step;
};

// The S×S pixels of an image from (row, column) on. A patch that reaches out of the image is copied, with zeros around it.
template <int S, typename Number>
Patch<const Number> PatchOf(const Images& images, const Number* x, int64_t channels, int64_t n, int64_t row, int64_t column, Number* copy) {
  const Number* from = x + ((n * images.h + row) * images.w + column) * images.c;
  if (row >= 0 && column >= 0 && row + S <= images.h && column + S <= images.w) return {from, images.w * images.c, images.c};
  for (int64_t i = 0; i < S; ++i)
    for (int64_t j = 0; j < S; ++j) {
      Number* to = copy + (i * S + j) * channels;
      const Number* pixel = from + (i * images.w + j) * images.c;
      bool inside = row + i >= 0 && row + i < images.h && column + j >= 0 && column + j < images.w;
      for (int64_t c = 0; c < channels; c += kLanes) Store(to + c, inside ? Load(pixel + c) : Vector{});
    }
  return {copy, S * channels, channels};
}

// Fetches what the tile after the next one needs, for reading (0) or writing (1): no processor expects a walk over tiles.
template <int Write, typename Number>
inline void Prefetch(const Number* tile, int64_t row_step, int64_t column_step, int rows) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < kTile; ++j) __builtin_prefetch(tile + i * row_step + (2 * kTile + j) * column_step, Write);
}

// Transforms tiles begin … end − 1, S×S pixels from `top` rows above and `left` columns before the tile's first output on. The
// result is [points, tiles, channels], with `step` floats from one point to the next.
template <typename T, typename Number>
void TransformTiles(const Images& images, const Number* x, int64_t channels, const Tiles& tiles, int64_t begin, int64_t end, int64_t top,
                    int64_t left, std::vector<float>& result, int64_t step) {
  constexpr int S = T::kFrom;
  static thread_local std::vector<Number> copy;
  copy.resize(std::max<size_t>(copy.size(), S * S * channels));
  result.resize(std::max<size_t>(result.size(), kPoints * step));
  float* to = result.data();
  tiles.Each(begin, end, [&](int64_t image, int64_t row, int64_t column) {
    auto [from, row_step, column_step] = PatchOf<S>(images, x, channels, image, row - top, column - left, copy.data());
    for (int64_t c = 0; c < channels; c += kLanes, from += kLanes, to += kLanes) {
      Prefetch<0>(from + (S - kTile) * column_step, row_step, column_step, S);
      Transform<T>([&](int i, int j) { return Load(from + i * row_step + j * column_step); },
                   [&](int i, int j, Vector value) { Store(to + (i * T::kTo + j) * step, value); });
    }
  });
}

// Whether this is faster than the direct sum, by the multiply-adds of each.
bool PrefersWinograd(const Images& input, int64_t kh, int64_t kw, int64_t row_stride, int64_t column_stride, const Images& output) {
  if (kh != 3 || kw != 3 || row_stride != 1 || column_stride != 1 || input.c % kLanes || output.c % kLanes) return false;
  auto taps = [](int64_t size) { return 3 * size - 2; };  // that meet an image of this size, with zeros around it
  int64_t products = input.c * output.c, tiles = Tiles(output).count;
  return tiles * (kPoints * products + 180 * (input.c + output.c)) + 160 * products < output.n * taps(output.h) * taps(output.w) * products;
}

// The transform of the kernel for `lanes` of its output channels from `start` on: [points, input channels, lanes].
template <typename Number>
void TransformKernel(const Number* w, bool transposed, int64_t channels, int64_t filters, int64_t start, int64_t lanes, float* to) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t lane = 0; lane < lanes; lane += kLanes, to += kLanes) {
      auto in = [&](int i, int j) {
        if (!transposed) return Load(w + ((i * 3 + j) * channels + c) * filters + start + lane);
        Vector value;
        for (int k = 0; k < kLanes; ++k) value[k] = Value(w[((8 - i * 3 - j) * filters + start + lane + k) * channels + c]);
        return value;
      };
      Transform<OfKernel>(in, [&](int i, int j, Vector value) { Store(to + (i * kPatch + j) * channels * lanes, value); });
    }
}

// y = x convolved with a kernel, as `Correlate`: `transposed` exchanges its C and D, and turns it around.
template <typename Number>
void WinogradCorrelate(ffi::ThreadPool& pool, const Images& input, const Number* x, const Number* w, bool transposed, int64_t top,
                       int64_t left, const Images& output, Number* y) {
  int64_t channels = input.c, filters = output.c;
  std::vector<int> blocks = Blocks(filters, kSums);
  std::vector<int64_t> starts = Starts(blocks);
  static thread_local std::vector<float> memory;
  memory.resize(std::max<size_t>(memory.size(), kPoints * channels * filters));
  float* kernels = memory.data();
  ParallelFor(pool, blocks.size(), [&](int64_t block) {
    int64_t begin = starts[block];
    TransformKernel(w, transposed, channels, filters, begin, blocks[block] * kLanes, kernels + kPoints * channels * begin);
  });
  Tiles tiles(output);
  int64_t size = std::clamp<int64_t>(kTileFloats / 2 / (kPoints * channels) / 28 * 28, 14, kMostTiles);
  int64_t tasks = (tiles.count + size - 1) / size;
  int64_t shares = std::min<int64_t>(blocks.size(), (16 + tasks - 1) / tasks);
  ParallelFor(pool, tasks * shares, [&](int64_t task) {
    static thread_local std::vector<float> values, products;
    static thread_local std::vector<Number> partial;
    int64_t begin = task / shares * size, end = std::min(begin + size, tiles.count), taken = end - begin;
    int64_t step = taken * channels + kLanes;  // so that the points are not all in the same lines of the cache
    TransformTiles<OfInput>(input, x, channels, tiles, begin, end, top, left, values, step);
    const std::vector<Tap> tap = {{0, 0}};
    int64_t share = task % shares, all = blocks.size();
    for (int64_t block = all * share / shares; block < all * (share + 1) / shares; ++block) {
      int64_t lanes = blocks[block] * kLanes, lanes_step = taken * lanes + kLanes;
      const float* kernel = kernels + kPoints * channels * starts[block];
      products.resize(std::max<size_t>(products.size(), kPoints * lanes_step));
      partial.resize(std::max<size_t>(partial.size(), kTile * kTile * lanes));
      auto run = blocks[block] == 2 ? &MultiplyRow<2, float> : &MultiplyRow<1, float>;
      // Sums of few channels at a time, which are more exact.
      for (int64_t point = 0; point < kPoints; ++point)
        for (int64_t c = 0; c < channels; c += 64)
          run(values.data() + point * step + c, channels, taken, tap, std::min<int64_t>(64, channels - c),
              kernel + (point * channels + c) * lanes, products.data() + point * lanes_step, lanes, c == 0);
      const float* from = products.data();
      tiles.Each(begin, end, [&](int64_t image, int64_t row, int64_t column) {
        bool whole = row + kTile <= output.h && column + kTile <= output.w;
        Number* first = y + ((image * output.h + row) * output.w + column) * filters + starts[block];
        int64_t row_step = whole ? output.w * filters : kTile * lanes, column_step = whole ? filters : lanes;
        Number* to = whole ? first : partial.data();
        for (int64_t lane = 0; lane < lanes; lane += kLanes, from += kLanes, to += kLanes) {
          Prefetch<1>(to, row_step, column_step, kTile);
          Transform<ToOutput>([&](int i, int j) { return Load(from + (i * kPatch + j) * lanes_step); },
                              [&](int i, int j, Vector value) { Store(to + i * row_step + j * column_step, value); });
        }
        if (whole) return;
        for (int64_t i = 0; i < std::min(kTile, output.h - row); ++i)
          for (int64_t j = 0; j < std::min(kTile, output.w - column); ++j)
            std::copy_n(&partial[(i * kTile + j) * lanes], lanes, first + (i * output.w + j) * filters);
      });
    }
  });
}

// dw, as `KernelGradient`.
template <typename Number>
void WinogradKernelGradient(ffi::ThreadPool& pool, const Images& input, const Number* x, const Images& output, const Number* g,
                            int64_t top, int64_t left, Number* dw) {
  int64_t channels = input.c, filters = output.c;
  Tiles tiles(output);
  // Tasks are parts of the tiles, each with its own sums, of so many input and output channels that these stay in the cache.
  int64_t height = std::min<int64_t>(channels, 64), width = std::min<int64_t>(filters, 64);
  int64_t rows = (channels + height - 1) / height, columns = (filters + width - 1) / width, size = kMostTiles;
  int64_t parts = std::clamp<int64_t>(16 / (rows * columns), 1, (tiles.count + size - 1) / size);
  SumOfParts(pool, parts, rows * columns, 9 * channels * filters, dw, [&](int64_t part, int64_t share, float* mine) {
    static thread_local std::vector<float> values, gradients, sums;
    int64_t c = share / columns * height, d = share % columns * width;
    Images of_values{1, 1, 0, std::min(height, channels - c)}, of_gradients{1, 1, 0, std::min(width, filters - d)};
    int64_t products = of_values.c * of_gradients.c;
    sums.assign(kPoints * products, 0.0f);
    for (int64_t begin = tiles.count * part / parts, last = tiles.count * (part + 1) / parts; begin < last; begin += size) {
      int64_t end = std::min(begin + size, last);
      of_values.w = of_gradients.w = end - begin;
      int64_t step = of_values.size() + kLanes, gradient_step = of_gradients.size() + kLanes;
      TransformTiles<OfInput>(input, x + c, of_values.c, tiles, begin, end, top, left, values, step);
      TransformTiles<OfGradient>(output, g + d, of_gradients.c, tiles, begin, end, 0, 0, gradients, gradient_step);
      Loops loops{{1, 1, end - begin}, {0, 0, of_values.c}, {0, 0, of_gradients.c}};
      for (int64_t point = 0; point < kPoints; ++point) {
        const float *x = values.data() + point * step, *g = gradients.data() + point * gradient_step;
        float* to = sums.data() + point * products;
        EachGroup<2, 1>(of_gradients.c / kLanes, [&](auto registers, int64_t block) {
          int64_t start = block * kLanes;
          EachGroup<kTaken<registers>, 4>(of_values.c, [&](auto taken, int64_t first) {
            Accumulate<taken, registers>(loops, x + first, g + start, to + first * of_gradients.c + start, of_gradients.c);
          });
        });
      }
    }
    for (int64_t i = 0; i < of_values.c; ++i)
      for (int64_t j = 0; j < of_gradients.c; j += kLanes)
        Transform<ToKernel>([&](int row, int column) { return Load(&sums[((row * kPatch + column) * of_values.c + i) * of_gradients.c + j]); },
                            [&](int row, int column, Vector value) {
                              Store(mine + ((row * 3 + column) * channels + c + i) * filters + d + j, value);
                            });
  });
}

}  // namespace
