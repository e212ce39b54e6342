// Convolution as the sum over taps and channels.

#pragma once

#include "simd.h"

namespace {

constexpr int64_t kTileFloats = 1 << 17;    // of images in one task: 512 KiB, so that they stay in the second-level cache
constexpr int64_t kKernelFloats = 5 << 10;  // of the kernel in one pass over a tile: 20 KiB, for the first-level cache

// Where a kernel's taps read: output position u reads input position u · stride + offset, in each direction.
struct Taps {
  std::vector<int64_t> rows, columns, index;  // index: of the tap in the kernel, i · kw + j
  int64_t row_stride, column_stride;
  void Add(int64_t row, int64_t column, int64_t i) {
    rows.push_back(row), columns.push_back(column), index.push_back(i);
  }
};

Taps ForwardTaps(int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t top, int64_t left) {
  Taps taps{{}, {}, {}, sh, sw};
  for (int64_t i = 0; i < kh; ++i)
    for (int64_t j = 0; j < kw; ++j) taps.Add(i - top, j - left, i * kw + j);
  return taps;
}

// A tap in a loop: what it adds to the address of the input, and its place in the packed kernel.
struct Tap {
  int64_t offset, place;
};

// The inputs of some output positions with zeros around them, so that no tap has to check where the image ends. Where units are
// pairs, an odd number of channels has a zero after it.
template <typename Number>
class Tile {
 public:
  // For `height` × `width` output positions of each image. Small images are taken several at a time, large ones in bands of rows.
  // Who asks for `by_column` leaves out, at each column, the taps that are not inside: then small images are not copied.
  Tile(const Images& input, const Taps& taps, int64_t height, int64_t width, int64_t filters, bool by_column)
      : channels((input.c + kUnit<Number> - 1) / kUnit<Number> * kUnit<Number>), input_(input), taps_(taps), height_(height) {
    auto [top, bottom] = std::minmax_element(taps.rows.begin(), taps.rows.end());
    auto [left, right] = std::minmax_element(taps.columns.begin(), taps.columns.end());
    top_ = *top, left_ = *left;
    reach_ = *bottom - *top + 1;
    columns_ = (width - 1) * taps.column_stride + *right - *left + 1;
    bool inside = top_ >= 0 && left_ >= 0 && (height - 1) * taps_.row_stride + *bottom < input.h && left_ + columns_ <= input.w;
    whole_ = channels == input.c && (inside || (by_column && width <= 8 && input.n > width));
    Cut(width, filters);
    across = width <= 8 && images > width;
    if (whole_ && !inside && !across) whole_ = false, Cut(width, filters);
    for (size_t t = 0; t < taps.rows.size(); ++t)
      offsets_.push_back((taps.rows[t] - (whole_ ? 0 : top_)) * row_size_ + (taps.columns[t] - (whole_ ? 0 : left_)) * channels);
    column_step = taps.column_stride * channels;
    row_step = taps_.row_stride * row_size_;
  }

  int64_t count() const { return groups_ * bands_; }

  // Prepares tile `number`: images first … last − 1, output rows begin … end − 1 of each.
  void Take(int64_t number, const Number* x, std::vector<Number>& buffer) {
    first = number / bands_ * images, last = std::min(first + images, input_.n);
    begin = number % bands_ * band_, end = std::min(begin + band_, height_);
    if (whole_) {
      data_ = x + first * image_step + begin * row_step;
      return;
    }
    buffer.resize(std::max<size_t>(buffer.size(), images * image_step));
    data_ = buffer.data();
    int64_t rows = Rows(end - begin), lead = std::clamp<int64_t>(-left_, 0, columns_) * channels;
    int64_t from = std::max<int64_t>(left_, 0), pixels = std::max<int64_t>(0, std::min(left_ + columns_, input_.w) - from);
    for (int64_t n = first; n < last; ++n) {
      Number* to = buffer.data() + (n - first) * image_step;
      for (int64_t r = 0; r < rows; ++r, to += row_size_) {
        int64_t row = begin * taps_.row_stride + top_ + r;
        bool inside = row >= 0 && row < input_.h;
        int64_t copied = inside ? pixels : 0, before = inside ? lead : 0;
        std::memset(to, 0, before * sizeof(Number));
        const Number* pixel = x + ((n * input_.h + row) * input_.w + from) * input_.c;
        if (channels == input_.c)
          std::memcpy(to + before, pixel, copied * channels * sizeof(Number));
        else
          for (int64_t i = 0; i < copied; ++i, pixel += input_.c) {
            Number* copy = std::copy_n(pixel, input_.c, to + before + i * channels);
            *copy = Number{};
          }
        std::memset(to + before + copied * channels, 0, (row_size_ - before - copied * channels) * sizeof(Number));
      }
    }
  }

  // The taps that reach the image, not the zeros around it, from output position (row, column), or from the whole row if column < 0.
  void Inside(int64_t row, int64_t column, std::vector<Tap>& inside) const {
    inside.clear();
    for (size_t t = 0; t < taps_.rows.size(); ++t) {
      int64_t y = row * taps_.row_stride + taps_.rows[t], x = column * taps_.column_stride + taps_.columns[t];
      if (y >= 0 && y < input_.h && (column < 0 || (x >= 0 && x < input_.w))) inside.push_back({offsets_[t], int64_t(t)});
    }
  }

  // The input of output row `row` of an image, to which the taps' offsets are added.
  const Number* Row(int64_t image, int64_t row) const { return data_ + (image - first) * image_step + (row - begin) * row_step; }

  int64_t channels, images, image_step, row_step, column_step, first, last, begin, end;
  bool across;  // rows are short: a position of all images comes before the next position

 private:
  // Chooses images and bands of rows.
  void Cut(int64_t width, int64_t filters) {
    row_size_ = (whole_ ? input_.w : columns_) * channels;
    auto floats = [&](int64_t rows) { return std::max(Rows(rows) * row_size_, rows * width * filters); };
    bands_ = 1;
    while (bands_ < height_ && floats((height_ + bands_ - 1) / bands_) > kTileFloats) ++bands_;
    band_ = (height_ + bands_ - 1) / bands_;
    bands_ = (height_ + band_ - 1) / band_;
    image_step = whole_ ? input_.h * row_size_ : Rows(band_) * row_size_;
    images = bands_ > 1 ? 1 : std::clamp<int64_t>(kTileFloats / floats(band_), 1, input_.n);
    // Groups of about the same size; if there are many, their number is a multiple of most numbers of threads.
    groups_ = (input_.n + images - 1) / images;
    if (groups_ > 8) groups_ = (groups_ + 15) / 16 * 16;
    images = (input_.n + groups_ - 1) / groups_;
    if (images > 8) images = images / 8 * 8;
    groups_ = (input_.n + images - 1) / images;
  }

  int64_t Rows(int64_t outputs) const { return (outputs - 1) * taps_.row_stride + reach_; }

  Images input_;
  Taps taps_;
  std::vector<int64_t> offsets_;
  bool whole_;  // no tap reaches over an edge, so nothing is copied
  int64_t height_, top_, left_, reach_, columns_, row_size_, bands_, band_, groups_;
  const Number* data_;
};

// Q output positions × V registers of output channels: the sum over all taps and some input channels, added to y unless `fresh`.
template <int Q, int V, typename Number>
void Multiply(const Number* x, const std::vector<Tap>& taps, int64_t channels, int64_t step, const Unit<Number>* packed, Number* y,
              int64_t y_step, bool fresh) {
  Vector sums[Q][V] = {};
  for (auto [offset, place] : taps) {
    const Unit<Number>* w = packed + place * (channels / kUnit<Number>) * V * kLanes;
    constexpr int kPointers = (Q + 3) / 4;
    const Number* pointers[kPointers];
    for (int i = 0; i < kPointers; ++i) pointers[i] = x + offset + 4 * i * step;
    for (int64_t c = 0; c < channels; c += kUnit<Number>, w += V * kLanes) {
      Vector kernel[V];
      for (int v = 0; v < V; ++v) kernel[v] = Load(reinterpret_cast<const float*>(w + v * kLanes)), Keep(kernel[v]);
#pragma GCC unroll 32
      for (int q = 0; q < Q; ++q) {
        Unit<Number> value = UnitAt(pointers[q / 4] + c + q % 4 * step);
        for (int v = 0; v < V; ++v) sums[q][v] = MultiplyAdd(sums[q][v], value, kernel[v]);
      }
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) {
      Number* to = y + q * y_step + v * kLanes;
      Store(to, fresh ? sums[q][v] : Load(to) + sums[q][v]);
    }
}

// Output positions that are taken at once with V registers of output channels; four of these also need registers of their own.
template <int V>
constexpr int kPositions = V == 4 ? std::min(4, (kSums - 2) / 4) : std::min(16, kSums / V);

// How many of so many positions are taken at once. Each number is a function to compile, and one register is rare.
template <int V>
constexpr int Taken(int q) {
  while (V == 1 && q != kPositions<V> && q % 7 && q & (q - 1)) --q;
  return q;
}
template <int V, typename Number, int... Q>
auto MultiplyTable(std::integer_sequence<int, Q...>) {
  using Entry = std::pair<decltype(&Multiply<1, V, Number>), int>;
  return std::array<Entry, sizeof...(Q)>{Entry(&Multiply<Taken<V>(Q + 1), V, Number>, Taken<V>(Q + 1))...};
}
template <int V, typename Number>
const auto kMultiply = MultiplyTable<V, Number>(std::make_integer_sequence<int, kPositions<V>>());

template <int V, typename Number>
void MultiplyRow(const Number* x, int64_t step, int64_t width, const std::vector<Tap>& taps, int64_t channels, const Unit<Number>* w,
                 Number* y, int64_t y_step, bool fresh) {
  for (int64_t q = 0; q < width;) {
    int64_t left = width - q, runs = (left + kPositions<V> - 1) / kPositions<V>;  // of about the same size: none should be short
    auto [run, taken] = kMultiply<V, Number>[(left + runs - 1) / runs - 1];
    run(x + q * step, taps, channels, step, w, y + q * y_step, y_step, fresh);
    q += taken;
  }
}

// Output channels in blocks of 4, 2 or 1 registers: few positions need many registers to fill the register file.
std::vector<int> Blocks(int64_t channels, int64_t positions) {
  std::vector<int> blocks;
  for (int64_t left = channels / kLanes; left > 0; left -= blocks.back()) blocks.push_back(left >= 4 && positions <= kPositions<4> ? 4 : left >= 2 ? 2 : 1);
  return blocks;
}

// The first output channel of each block, and the end of the last.
std::vector<int64_t> Starts(const std::vector<int>& blocks) {
  std::vector<int64_t> starts{0};
  for (int v : blocks) starts.push_back(starts.back() + v * kLanes);
  return starts;
}

// A kernel in the order in which it is read: for each block of output channels, for `chunk(block)` input channels at a time, for each
// tap, for each unit of input channels, for each lane. `transposed`: the kernel's C and D are exchanged.
template <typename Number, typename F>
const Unit<Number>* Pack(ffi::ThreadPool& pool, const Number* w, bool transposed, int64_t channels, int64_t filters, const Taps& taps,
                         const std::vector<int>& blocks, const F& chunk) {
  static thread_local std::vector<Unit<Number>> memory;  // kept, since the system would clear new pages
  int64_t row = taps.index.size() * ((channels + kUnit<Number> - 1) / kUnit<Number>);
  memory.resize(std::max<size_t>(memory.size(), row * filters));
  Unit<Number>* packed = memory.data();
  std::vector<int64_t> starts = Starts(blocks);
  auto pack = [&](int64_t block) {
    Unit<Number>* to = packed + row * starts[block];
    int64_t lanes = blocks[block] * kLanes;
    for (int64_t from = 0, size = chunk(block); from < channels; from += size)
      for (int64_t tap : taps.index)
        for (int64_t c = from; c < std::min(from + size, channels); c += kUnit<Number>, to += lanes) {
          // Two loops, of which the compiler can make one of registers.
          const Number* column = w + (tap * filters + starts[block]) * channels + c;
          const Number* line = w + (tap * channels + c) * filters + starts[block];
          if (transposed)
            for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = UnitOf(column + lane * channels, 1, channels - c);
          else
            for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = UnitOf(line + lane, filters, channels - c);
        }
  };
  if (row * filters > 1 << 14)
    ParallelFor(pool, blocks.size(), pack);
  else
    for (size_t block = 0; block < blocks.size(); ++block) pack(block);
  return packed;
}

// Writes output positions (u · stride + shift) of y from the taps' inputs. `transposed`: the kernel's C and D are exchanged.
template <typename Number>
void Correlate(ffi::ThreadPool& pool, const Images& input, const Number* x, const Number* w, bool transposed, const Taps& taps,
               const Images& output, Number* y, int64_t row_stride, int64_t row_shift, int64_t column_stride, int64_t column_shift) {
  int64_t height = (output.h - row_shift + row_stride - 1) / row_stride;
  int64_t width = (output.w - column_shift + column_stride - 1) / column_stride;
  if (input.n == 0 || height <= 0 || width <= 0) return;
  Tile<Number> plan(input, taps, height, width, output.c, /*by_column=*/true);
  int64_t channels = plan.channels, filters = output.c, count = taps.rows.size();
  std::vector<int> blocks = Blocks(filters, plan.across ? plan.images : width);
  std::vector<int64_t> starts = Starts(blocks);
  // As many input channels at a time as keep the kernel in the first-level cache. In bfloat16 all, since sums are rounded once.
  auto chunk = [&](int64_t block) {
    return std::is_same_v<Number, float> ? std::max<int64_t>(1, kKernelFloats / (count * blocks[block] * kLanes)) : channels;
  };
  const Unit<Number>* packed = Pack(pool, w, transposed, input.c, filters, taps, blocks, chunk);
  int64_t shares = std::min<int64_t>(blocks.size(), (16 + plan.count() - 1) / plan.count());
  ParallelFor(pool, plan.count() * shares, [&](int64_t task) {
    static thread_local std::vector<Number> buffer;
    static thread_local std::vector<Tap> inside;
    Tile<Number> tile = plan;
    tile.Take(task / shares, x, buffer);
    int64_t share = task % shares, all = blocks.size();
    for (int64_t block = all * share / shares; block < all * (share + 1) / shares; ++block) {
      const Unit<Number>* kernel = packed + count * (channels / kUnit<Number>) * starts[block];
      auto run = blocks[block] == 4   ? &MultiplyRow<4, Number>
                 : blocks[block] == 2 ? &MultiplyRow<2, Number>
                                      : &MultiplyRow<1, Number>;
      for (int64_t from = 0, size = chunk(block); from < channels; from += size) {
        int64_t taken = std::min(size, channels - from);
        auto at = [&](int64_t n, int64_t p, int64_t q) {
          return y + ((n * output.h + p * row_stride + row_shift) * output.w + q * column_stride + column_shift) * filters + starts[block];
        };
        // Positions of one row, or one position of many images if a row has few.
        for (int64_t p = tile.begin; p < tile.end; ++p) {
          if (plan.across) {
            for (int64_t q = 0; q < width; ++q) {
              tile.Inside(p, q, inside);
              run(tile.Row(tile.first, p) + q * tile.column_step + from, tile.image_step, tile.last - tile.first, inside, taken, kernel,
                  at(tile.first, p, q), output.h * output.w * filters, from == 0);
            }
          } else {
            tile.Inside(p, -1, inside);
            for (int64_t n = tile.first; n < tile.last; ++n)
              run(tile.Row(n, p) + from, tile.column_step, width, inside, taken, kernel, at(n, p, 0), column_stride * filters, from == 0);
          }
        }
        kernel += count * (taken / kUnit<Number>) * blocks[block] * kLanes;
      }
    }
  });
}

}  // namespace
