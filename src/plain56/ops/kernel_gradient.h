// The gradient of a convolution by its kernel, as the sum over images and positions.

#pragma once

#include "direct.h"

namespace {

// Loops over positions, the outermost first: how often, and the steps in x and in g.
struct Loops {
  std::array<int64_t, 3> counts, x, g;
  Loops Times(int64_t x_size, int64_t g_size) const {
    return {counts, {x[0] * x_size, x[1] * x_size, x[2] * x_size}, {g[0] * g_size, g[1] * g_size, g[2] * g_size}};
  }
};

// K input channels × V registers of output channels: the sum over positions, added to dw. The steps are in floats.
template <int K, int V>
void Accumulate(const Loops& loops, const float* x, const float* g, float* dw, int64_t filters) {
  Vector sums[K][V] = {};
  for (int64_t i = 0; i < loops.counts[0]; ++i)
    for (int64_t j = 0; j < loops.counts[1]; ++j) {
      const float *value = x + i * loops.x[0] + j * loops.x[1], *gradient = g + i * loops.g[0] + j * loops.g[1];
      for (int64_t k = 0; k < loops.counts[2]; ++k, value += loops.x[2], gradient += loops.g[2]) {
        Vector values[V];
        for (int v = 0; v < V; ++v) values[v] = Load(gradient + v * kLanes), Keep(values[v]);
#pragma GCC unroll 32
        for (int c = 0; c < K; ++c)
          for (int v = 0; v < V; ++v) sums[c][v] += value[c] * values[v];
      }
    }
  for (int c = 0; c < K; ++c)
    for (int v = 0; v < V; ++v) {
      float* to = dw + c * filters + v * kLanes;
      Store(to, Load(to) + sums[c][v]);
    }
}

// Calls f(size, c) for groups of adjacent channels c … c + size − 1: groups of G while the rest has at least H, then of H, then of 1.
template <int G, int H, typename F>
void EachGroup(int64_t channels, const F& f) {
  int64_t c = 0, end = channels / G * G;
  if (channels - end < H && channels > end) end = std::max<int64_t>(0, end - G);
  for (; c < end; c += G) f(std::integral_constant<int, G>(), c);
  for (end += (channels - end) / H * H; c < end; c += H) f(std::integral_constant<int, H>(), c);
  for (; c < channels; ++c) f(std::integral_constant<int, 1>(), c);
}

// Input channels that are taken at once for a kernel's gradient, with V registers of output channels.
template <int V>
constexpr int kTaken = kSums / V >= 16 ? 16 : kSums / V >= 8 ? 8 : 6;

// The outputs in [from, to) whose input is in 0 … size − 1, again as [from, to).
std::pair<int64_t, int64_t> Meets(int64_t offset, int64_t stride, int64_t size, int64_t from, int64_t to) {
  from = std::max(from, offset < 0 ? (-offset + stride - 1) / stride : 0);
  return {from, std::min(to, offset < size ? (size - 1 - offset) / stride + 1 : 0)};
}

// result [size] = the sum over parts, in their order, of what f(part, share, to) writes; the shares of a part write to the same place.
template <typename Number, typename F>
void SumOfParts(ffi::ThreadPool& pool, int64_t parts, int64_t shares, int64_t size, Number* result, const F& f) {
  static thread_local std::vector<float> memory;
  float* partial = nullptr;
  if constexpr (std::is_same_v<Number, float>) partial = parts == 1 ? result : nullptr;
  if (!partial) {
    memory.resize(std::max<size_t>(memory.size(), parts * size));
    partial = memory.data();
  }
  ParallelFor(pool, parts * shares, [&](int64_t task) { f(task / shares, task % shares, partial + task / shares * size); });
  if (static_cast<void*>(partial) == result) return;
  InSlices(pool, size, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[part * size + i];
    for (int64_t i = begin; i < end; i += kLanes) Store(result + i, Load(partial + i));
  });
}

// Some channels of a tile's images, in groups as of `EachGroup`. A group's positions follow one another, since in the images they
// are in lines of the cache that displace one another. Where rows are short, positions go through all images first.
struct Packed {
  int64_t images, rows, columns;
  bool across;  // all images first: the loops are over rows, columns and images

  int64_t size() const { return images * rows * columns + 4; }  // not a power of two, for the same reason
  // Of images, rows and columns, in the order of the loops.
  std::array<int64_t, 3> Order(int64_t of_images, int64_t of_rows, int64_t of_columns) const {
    return across ? std::array{of_rows, of_columns, of_images} : std::array{of_images, of_rows, of_columns};
  }
  // The positions from one image, row and column to the next, where rows and columns are skipped by a stride.
  std::array<int64_t, 3> Steps(int64_t row_stride, int64_t column_stride) const {
    if (across) return {columns * images * row_stride, images * column_stride, 1};
    return {rows * columns, columns * row_stride, column_stride};
  }
  // Of the first image.
  int64_t Position(int64_t row, int64_t column) const { return (row * columns + column) * (across ? images : 1); }

  // at(n, p, q) has the channels of a position; group c begins at c · size() of the result.
  template <int G, int H, typename At>
  void Fill(int64_t channels, std::vector<float>& result, const At& at) const {
    result.resize(std::max<size_t>(result.size(), channels * size()));
    int64_t group_step = size(), image_step = across ? 1 : rows * columns;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t p = 0; p < rows; ++p)
        for (int64_t q = 0; q < columns; ++q) {
          const auto* values = at(n, p, q);
          float* to = result.data();
          int64_t position = n * image_step + Position(p, q);
          EachGroup<G, H>(channels, [&](auto taken, int64_t c) {
            float group[taken];
            for (int i = 0; i < taken; ++i) group[i] = Value(values[c + i]);
            std::memcpy(to + position * taken, group, sizeof group);
            to += taken * group_step;
          });
        }
  }
};

// How a kernel's gradient is cut. Tasks are parts of the tiles, each with its own sums, and rows × columns parts of channels ×
// filters. Of one tile and one task, all that is read again and again stays in the second-level cache.
struct Cuts {
  int64_t band, bands, images, tiles, parts, height, width, rows, columns;

  Cuts(const Images& input, const Images& output, int64_t taps) {
    constexpr int64_t kPositions = 128, kChannels = 256, kPartialFloats = 1 << 20, kLeastPositions = 128;
    band = std::clamp<int64_t>(kPositions / output.w, 1, output.h), bands = (output.h + band - 1) / band;
    images = bands > 1 ? 1 : std::clamp<int64_t>(kPositions / (output.h * output.w), 1, input.n);
    tiles = (input.n + images - 1) / images * bands;
    int64_t most = std::min(kPartialFloats / (taps * input.c * output.c), output.n * output.h * output.w / kLeastPositions);
    parts = std::clamp<int64_t>(most, 1, std::min<int64_t>(16, tiles));
    height = std::min(input.c, kChannels), rows = (input.c + height - 1) / height;
    width = std::min(output.c, kChannels);
    while (parts * rows * ((output.c + width - 1) / width) < 16 && width > 2 * kLanes) width = (width / 2 + kLanes - 1) / kLanes * kLanes;
    columns = (output.c + width - 1) / width;
  }
};

// What of x a tile packs for which positions, so that it is read without gaps. Rows that a kernel of one row skips are left out. If
// a kernel's row is one tap, or has few channels, its taps are as channels of one: each output has its own, with zeros around x.
struct Gathered {
  Images input;
  Taps taps;
  int64_t run, row_step, channels;  // taps at once, rows from one to the next, and what a position has
  bool by_output;

  Gathered(const Images& input, const Taps& taps) : input(input), taps(taps) {
    int64_t count = taps.rows.size(), width = 1;
    while (width < count && taps.rows[width] == taps.rows[0]) ++width;
    by_output = width == 1 || input.c <= 4;
    run = by_output ? width : 1;
    row_step = count == width ? taps.row_stride : 1;
    channels = input.c * run;
  }
  int64_t column_step() const { return by_output ? 1 : taps.column_stride; }

  // At a column of the packed image, in a row of x that begins at `from`; `border` is room for what is beside x.
  template <typename Number>
  const Number* At(const Number* from, int64_t column, std::vector<Number>& border) const {
    if (by_output) column = column * taps.column_stride + taps.columns[0];
    if (!by_output || (column >= 0 && column + run <= input.w)) return from + column * input.c;
    border.assign(channels, Number{});
    for (int64_t j = std::max<int64_t>(0, -column); j < std::min(run, input.w - column); ++j)
      std::copy_n(from + (column + j) * input.c, input.c, border.data() + j * input.c);
    return border.data();
  }
};

template <typename Number>
void KernelGradient(ffi::ThreadPool& pool, const Images& input, const Number* x, const Images& output, const Number* g, const Taps& taps,
                    Number* dw) {
  Gathered gathered(input, taps);
  int64_t channels = gathered.channels, filters = output.c, count = taps.rows.size(), run = gathered.run;
  Cuts cuts({input.n, input.h, input.w, channels}, output, count / run);
  auto [top_tap, bottom_tap] = std::minmax_element(taps.rows.begin(), taps.rows.end());
  int64_t above = *top_tap, below = *bottom_tap + 1;
  bool across = output.w < std::min<int64_t>(cuts.images, 8);
  SumOfParts(pool, cuts.parts, cuts.rows * cuts.columns, count * input.c * filters, dw, [&](int64_t part, int64_t share, float* mine) {
    static thread_local std::vector<float> values, gradients;
    static thread_local std::vector<Number> border;
    int64_t c = share / cuts.columns * cuts.height, d = share % cuts.columns * cuts.width;
    int64_t own_channels = std::min(cuts.height, channels - c), own_filters = std::min(cuts.width, filters - d);
    for (int64_t tap = 0; tap < count; tap += run)
      for (int64_t k = c; k < c + own_channels; ++k) std::fill_n(mine + (tap * input.c + k) * filters + d, own_filters, 0.0f);
    for (int64_t tile = cuts.tiles * part / cuts.parts; tile < cuts.tiles * (part + 1) / cuts.parts; ++tile) {
      int64_t n = tile / cuts.bands * cuts.images, images = std::min(cuts.images, input.n - n);
      int64_t p = tile % cuts.bands * cuts.band, end = std::min(p + cuts.band, output.h);
      int64_t row = std::clamp<int64_t>(p * taps.row_stride + above, 0, input.h);
      int64_t last_row = std::clamp<int64_t>((end - 1) * taps.row_stride + below, row, input.h);
      if (gathered.row_step > 1) row = std::min(Meets(above, taps.row_stride, input.h, p, end).first * taps.row_stride + above, last_row);
      Packed of_x{images, (last_row - row + gathered.row_step - 1) / gathered.row_step, gathered.by_output ? output.w : input.w, across};
      Packed of_g{images, end - p, output.w, across};
      of_x.Fill<kTaken<2>, 4>(own_channels, values, [&](int64_t image, int64_t line, int64_t column) {
        const Number* from = x + ((n + image) * input.h + row + line * gathered.row_step) * input.w * input.c;
        return gathered.At(from, column, border) + c;
      });
      of_g.Fill<2 * kLanes, kLanes>(own_filters, gradients, [&](int64_t image, int64_t line, int64_t column) {
        return g + (((n + image) * output.h + p + line) * output.w + column) * filters + d;
      });
      for (int64_t tap = 0; tap < count; tap += run) {
        auto [top, bottom] = Meets(taps.rows[tap], taps.row_stride, input.h, p, end);
        auto [left, right] = std::pair<int64_t, int64_t>(0, output.w);
        if (!gathered.by_output) std::tie(left, right) = Meets(taps.columns[tap], taps.column_stride, input.w, 0, output.w);
        if (top >= bottom || left >= right) continue;
        int64_t column = gathered.by_output ? left : left * taps.column_stride + taps.columns[tap];
        int64_t x_first = of_x.Position((top * taps.row_stride + taps.rows[tap] - row) / gathered.row_step, column);
        int64_t g_first = of_g.Position(top - p, left);
        Loops loops{of_g.Order(images, bottom - top, right - left),
                    of_x.Steps(taps.row_stride / gathered.row_step, gathered.column_step()), of_g.Steps(1, 1)};
        float* sums = mine + (taps.index[tap] * input.c + c) * filters + d;
        EachGroup<2, 1>(own_filters / kLanes, [&](auto registers, int64_t block) {
          constexpr int64_t lanes = registers * kLanes;
          int64_t start = block * kLanes;
          const float* gradient = gradients.data() + start * of_g.size() + g_first * lanes;
          EachGroup<kTaken<2>, 4>(own_channels, [&](auto taken, int64_t first) {
            const float* value = values.data() + first * of_x.size() + x_first * taken;
            Accumulate<taken, registers>(loops.Times(taken, lanes), value, gradient, sums + first * filters + start, filters);
          });
        });
      }
    }
  });
}

}  // namespace
