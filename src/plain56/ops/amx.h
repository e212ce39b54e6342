// Convolution of bfloat16 images by Intel's AMX, and its kernel's gradient: the sum over taps and channels, by instructions that
// multiply matrices of 16×32 and 32×16 numbers. They do 16 times as many multiply-adds in a cycle as those of registers, so that
// the direct sum is faster than Winograd's.
//
// The numbers of the left matrix lie in rows; of the right one, two rows are one row of pairs. Products are exact; sums are of floats,
// in which those below 2⁻¹²⁶ become zero.

#pragma once

#include "kernel_gradient.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_AMX
#endif

namespace {

#if defined(HAS_AMX)

// Whether this process may use the registers. Linux gives them to who asks, unless a signal's stack is too small for them.
bool MayUseAmx() {
  static const bool may = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) == 0;
  return may;
}

// This thread's registers while the object lives: 0 to 3 are sums of `rows` × 16, 4 and 5 `rows` × `depth`, 6 and 7 `depth` × 16.
struct Registers {
  Registers(int64_t rows, int64_t depth) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.bytes[i] = i == 4 || i == 5 ? depth * 2 : 64;
      config.rows[i] = i < 6 ? rows : depth / 2;
    }
    _tile_loadconfig(&config);
  }
  ~Registers() { _tile_release(); }
};

// Rows of the left matrix, and the first of 16 or 32 columns of the rows of their products.
template <typename To>
struct Block {
  const Bfloat16* x;
  To* y;
};

// For each block: the sum over taps of `rows` × `channels` numbers · `channels` × 16 or 32 of the kernel. It replaces y in bfloat16,
// and is added to y in float32. A tap's place in the kernel is in pairs; `kernel_step` is from one row of pairs to the next.
template <typename To>
void MultiplyBlocks(const std::vector<Block<To>>& blocks, int64_t rows, int64_t step, const std::vector<Tap>& taps, int64_t channels,
                    int64_t depth, const uint32_t* kernel, int64_t kernel_step, int registers, int64_t y_step) {
  constexpr bool kAdd = std::is_same_v<To, float>;
  alignas(64) float sums[16 * 16];
  step *= sizeof(Bfloat16);
  int64_t row = kernel_step * sizeof(uint32_t), to_step = y_step * sizeof(To);
  auto round = [&](To* to) {
    for (int64_t i = 0; i < rows; ++i) Store(to + i * y_step, Load(&sums[i * 16]));
  };
#define BEGIN(sum) if constexpr (kAdd) _tile_loadd(sum, to[sum], to_step); else _tile_zero(sum)
#define END(sum) if constexpr (kAdd) _tile_stored(sum, to[sum], to_step); else { _tile_stored(sum, sums, 64); round(to[sum]); }
  asm volatile("" ::: "memory");  // GCC does not know that the instructions read memory
  // Four sums at a time, since one instruction on a sum takes as long as four on different ones.
  for (size_t block = 0, taken = registers == 2 ? 2 : 4; block < blocks.size(); block += taken) {
    const Block<To>* b = &blocks[block];
    size_t left = std::min(taken, blocks.size() - block), used = left * registers;
    To* to[4];
    for (size_t i = 0; i < used; ++i) to[i] = registers == 2 ? b[i / 2].y + i % 2 * 16 : b[i].y;
    BEGIN(0);
    if (used > 1) BEGIN(1);
    if (used > 2) BEGIN(2);
    if (used > 3) BEGIN(3);
    for (auto [offset, place] : taps) {
      const uint32_t* w = kernel + place;
      for (int64_t c = offset; c < offset + channels; c += depth, w += depth / 2 * kernel_step) {
        _tile_loadd(6, w, row);
        _tile_loadd(4, b[0].x + c, step);
        _tile_dpbf16ps(0, 4, 6);
        if (registers == 2) {
          _tile_loadd(7, w + 16, row);
          _tile_dpbf16ps(1, 4, 7);
          if (used < 4) continue;
          _tile_loadd(5, b[1].x + c, step);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        } else if (used > 1) {
          _tile_loadd(5, b[1].x + c, step);
          _tile_dpbf16ps(1, 5, 6);
          if (used < 3) continue;
          _tile_loadd(4, b[2].x + c, step);
          _tile_dpbf16ps(2, 4, 6);
          if (used < 4) continue;
          _tile_loadd(5, b[3].x + c, step);
          _tile_dpbf16ps(3, 5, 6);
        }
      }
    }
    END(0);
    if (used > 1) END(1);
    if (used > 2) END(2);
    if (used > 3) END(3);
  }
#undef BEGIN
#undef END
}

// The largest even number up to 32 that divides an even one.
int64_t Depth(int64_t channels) {
  int64_t depth = 32;
  while (channels % depth) depth -= 2;
  return depth;
}

// As `Correlate` of direct.h.
void Correlate(ffi::ThreadPool& pool, const Images& input, const Bfloat16* x, const Bfloat16* w, bool transposed, const Taps& taps,
               const Images& output, Bfloat16* y, int64_t row_stride, int64_t row_shift, int64_t column_stride, int64_t column_shift) {
  int64_t height = (output.h - row_shift + row_stride - 1) / row_stride;
  int64_t width = (output.w - column_shift + column_stride - 1) / column_stride;
  if (input.n == 0 || height <= 0 || width <= 0) return;
  Tile<Bfloat16> plan(input, taps, height, width, output.c, /*by_column=*/false);
  int64_t channels = plan.channels, filters = output.c, count = taps.rows.size();
  std::vector<int> blocks = Blocks(filters, kSums);
  std::vector<int64_t> starts = Starts(blocks);
  const uint32_t* packed = Pack(pool, w, transposed, input.c, filters, taps, blocks, [&](int64_t) { return channels; });
  // Few channels of the taps in a row, which are adjacent in memory, are taken as channels of one tap.
  int64_t run = 1;
  if (channels % 32)
    while (run < count && taps.rows[run] == taps.rows[0] && taps.columns[run] == taps.columns[run - 1] + 1) ++run;
  int64_t depth = Depth(run * channels);
  int64_t shares = std::min<int64_t>(blocks.size(), (16 + plan.count() - 1) / plan.count());
  ParallelFor(pool, plan.count() * shares, [&](int64_t task) {
    static thread_local std::vector<Bfloat16> buffer;
    static thread_local std::vector<Tap> inside, runs;
    static thread_local std::vector<Block<Bfloat16>> strips;
    Tile<Bfloat16> tile = plan;
    tile.Take(task / shares, x, buffer);
    // Positions of one row, or one position of many images if a row has few, in strips of one size, of which two may overlap.
    int64_t size = plan.across ? tile.last - tile.first : width, cuts = (size + 15) / 16, rows = (size + cuts - 1) / cuts;
    Registers registers(rows, depth);
    int64_t share = task % shares, all = blocks.size();
    for (int64_t block = all * share / shares; block < all * (share + 1) / shares; ++block) {
      const uint32_t* kernel = packed + count * (channels / 2) * starts[block];
      int64_t lanes = blocks[block] * kLanes;
      for (int64_t p = tile.begin; p < tile.end; ++p) {
        tile.Inside(p, -1, inside);
        runs.clear();
        for (size_t i = 0; i < inside.size(); i += run)
          runs.push_back({inside[i].offset, inside[i].place * (channels / 2) * lanes});
        strips.clear();
        auto add = [&](int64_t n, int64_t q) {
          int64_t pixel = (n * output.h + p * row_stride + row_shift) * output.w + q * column_stride + column_shift;
          strips.push_back({tile.Row(n, p) + q * tile.column_step, y + pixel * filters + starts[block]});
        };
        for (int64_t i = plan.across ? 0 : tile.first; i < (plan.across ? width : tile.last); ++i)
          for (int64_t cut = 0; cut < cuts; ++cut) {
            int64_t start = std::min(cut * rows, size - rows);
            plan.across ? add(tile.first + start, i) : add(i, start);
          }
        MultiplyBlocks(strips, rows, plan.across ? tile.image_step : tile.column_step, runs, run * channels, depth, kernel, lanes, blocks[block],
                       plan.across ? output.h * output.w * filters : column_stride * filters);
      }
    }
  });
}

constexpr int64_t kMostPixels = 384;  // in one sum, so that what all taps multiply stays in the first-level cache

typedef uint32_t Word16 __attribute__((vector_size(64)));

// Two rows of up to 16 numbers as one row of pairs.
inline Word16 Pairs(const Bfloat16* even, const Bfloat16* odd, __mmask16 mask) {
  auto wide = [&](const Bfloat16* from) {
    return reinterpret_cast<Word16>(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)));
  };
  return wide(even) | wide(odd) << 16;
}

// Up to 16 channels of 32 pixels as rows of 32 numbers, `step` apart.
void Transpose(const Bfloat16* const* pixels, int64_t first, int64_t channels, Bfloat16* to, int64_t step) {
  const Word16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
  Word16 rows[16], mixed[16];
  auto mix = [](Word16 a, Word16 b, Word16 from) {
    return reinterpret_cast<Word16>(
        _mm512_permutex2var_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(from), reinterpret_cast<__m512i>(b)));
  };
  for (int i = 0; i < 16; ++i) rows[i] = Pairs(pixels[2 * i] + first, pixels[2 * i + 1] + first, (1u << channels) - 1);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {  // each takes the highest bit of a row's number as the lowest of the column's
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      mixed[2 * i] = mix(rows[i], rows[i + 8], low);
      mixed[2 * i + 1] = mix(rows[i], rows[i + 8], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = mixed[i];
  }
  for (int64_t i = 0; i < channels; ++i) _mm512_storeu_si512(to + i * step, reinterpret_cast<__m512i>(rows[i]));
}

// How the gradient by the kernel is cut, and how pixels lie in its matrices: dw of a tap is the product of x, shifted by the tap and
// transposed, and g, a sum over pixels. For one transposed copy to serve all taps, both have room for x's zero padding, in which g is
// zero, so that a tap is an offset. With strides, each remainder of x's rows and columns by them, a phase, is an image of its own.
struct Pixels {
  Pixels(const Images& input, const Images& output, const Taps& taps) : input(input), output(output), taps(taps) {
    auto floor = [](int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); };
    for (size_t t = 0; t < taps.rows.size(); ++t) {
      rows.push_back(floor(taps.rows[t], taps.row_stride));
      columns.push_back(floor(taps.columns[t], taps.column_stride));
      std::pair<int64_t, int64_t> remainder(taps.rows[t] - rows[t] * taps.row_stride, taps.columns[t] - columns[t] * taps.column_stride);
      auto found = std::find(phases.begin(), phases.end(), remainder);
      of_tap.push_back(found - phases.begin());
      if (found == phases.end()) phases.push_back(remainder);
    }
    auto [top_tap, bottom] = std::minmax_element(rows.begin(), rows.end());
    auto [left_tap, right] = std::minmax_element(columns.begin(), columns.end());
    top = *top_tap, left = *left_tap, reach = *bottom - top;
    pitch = (output.w + *right - left + 1) / 2 * 2;
  }

  // Tiles of images, or of rows of one image, of `numbers` per pixel.
  void Cut(int64_t numbers) {
    int64_t most = kTileFloats / numbers / pitch;  // rows
    band = std::clamp<int64_t>(most - reach, 1, output.n > 1 ? output.h : (output.h + 15) / 16);
    bands = (output.h + band - 1) / band, band = (output.h + bands - 1) / bands;
    image = (band + reach) * pitch;
    images = bands > 1 ? 1 : std::clamp<int64_t>(most / (band + reach), 1, (input.n + 15) / 16);
    tiles = (input.n + images - 1) / images * bands;
    count = (images * image + 31) / 32 * 32;
    step = (count + reach * pitch + pitch + 31) / 32 * 32;
    step += step % 64 ? 0 : 32;  // so that rows are not all in the same lines of the cache
  }

  int64_t Offset(int64_t tap) const { return (rows[tap] - top) * pitch + columns[tap] - left; }

  // Calls f(position, pixels) for each 32 of `size` positions; at(n, row, column) is a pixel of image n, or zeros.
  template <typename At, typename F>
  void Each(int64_t size, const At& at, const F& f) const {
    const Bfloat16* pixels[32];
    int64_t n = 0, row = 0, column = 0;
    for (int64_t position = 0; position < size; position += 32) {
      for (int i = 0; i < 32; ++i) {
        pixels[i] = at(n, row, column);
        if (++column < pitch) continue;
        column = 0;
        if (++row < band + reach) continue;
        row = 0, ++n;
      }
      f(position, pixels);
    }
  }

  Images input, output;
  Taps taps;
  std::vector<std::pair<int64_t, int64_t>> phases;
  std::vector<int64_t> rows, columns, of_tap;  // by tap: offset in its phase, and which
  int64_t top, left, reach, pitch, band, bands, image, images, tiles, count, step;
};

// As `KernelGradient` of direct.h. Where x or g is infinite or not a number, so may be a gradient by a tap that does not meet it.
void KernelGradient(ffi::ThreadPool& pool, const Images& input, const Bfloat16* x, const Images& output, const Bfloat16* g,
                    const Taps& taps, Bfloat16* dw) {
  int64_t channels = input.c, filters = output.c, count = taps.rows.size(), size = count * channels * filters;
  int64_t height = 16;
  while (channels % height) --height;
  // Tasks are parts of the tiles, each with its own sums, and for large kernels also parts of the input channels.
  Pixels pixels(input, output, taps);
  int64_t rows = channels / height, most = std::clamp<int64_t>((int64_t{1} << 20) / size, 1, 16);
  int64_t shares = std::min(rows, (16 + most - 1) / most);
  pixels.Cut(pixels.phases.size() * (rows + shares - 1) / shares * height + filters);
  int64_t parts = std::min(most, pixels.tiles);
  std::vector<int> blocks = Blocks(filters, kSums);
  std::vector<int64_t> starts = Starts(blocks);
  SumOfParts(pool, parts, shares, size, dw, [&](int64_t part, int64_t share, float* mine) {
    static thread_local std::vector<Bfloat16> values, zeros;
    static thread_local std::vector<uint32_t> gradients;
    int64_t first = rows * share / shares * height, last = rows * (share + 1) / shares * height;
    int64_t phase_size = (last - first) * pixels.step;
    values.resize(std::max<size_t>(values.size(), pixels.phases.size() * phase_size));
    gradients.resize(std::max<size_t>(gradients.size(), pixels.count / 2 * filters));
    zeros.resize(std::max<size_t>(zeros.size(), std::max(channels, filters)));
    for (int64_t tap = 0; tap < count; ++tap)
      std::fill(mine + (taps.index[tap] * channels + first) * filters, mine + (taps.index[tap] * channels + last) * filters, 0.0f);
    Registers registers(height, 32);
    std::vector<Block<float>> strips;
    for (int64_t tile = pixels.tiles * part / parts; tile < pixels.tiles * (part + 1) / parts; ++tile) {
      int64_t n0 = tile / pixels.bands * pixels.images, n1 = std::min(n0 + pixels.images, input.n);
      int64_t p0 = tile % pixels.bands * pixels.band, p1 = std::min(p0 + pixels.band, output.h);
      for (size_t phase = 0; phase < pixels.phases.size(); ++phase) {
        auto [row_phase, column_phase] = pixels.phases[phase];
        auto at = [&, row_phase = row_phase, column_phase = column_phase](int64_t n, int64_t row, int64_t column) {
          int64_t i = (p0 + row + pixels.top) * taps.row_stride + row_phase, j = (column + pixels.left) * taps.column_stride + column_phase;
          bool inside = n0 + n < n1 && i >= 0 && i < input.h && j >= 0 && j < input.w;
          return inside ? x + (((n0 + n) * input.h + i) * input.w + j) * channels : zeros.data();
        };
        pixels.Each(pixels.step, at, [&](int64_t position, const Bfloat16* const* from) {
          for (int64_t c = first; c < last; c += 16)
            Transpose(from, c, std::min<int64_t>(16, last - c), &values[phase * phase_size + (c - first) * pixels.step + position],
                      pixels.step);
        });
      }
      auto at = [&](int64_t n, int64_t row, int64_t column) {
        bool inside = n0 + n < n1 && p0 + row < p1 && column < output.w;
        return inside ? g + (((n0 + n) * output.h + p0 + row) * output.w + column) * filters : zeros.data();
      };
      pixels.Each(pixels.count, at, [&](int64_t position, const Bfloat16* const* from) {
        for (size_t block = 0; block < blocks.size(); ++block) {
          uint32_t* to = &gradients[pixels.count / 2 * starts[block] + position / 2 * blocks[block] * kLanes];
          for (int64_t i = 0; i < 32; i += 2)
            for (int64_t d = starts[block]; d < starts[block + 1]; d += kLanes, to += kLanes)
              _mm512_storeu_si512(to, reinterpret_cast<__m512i>(Pairs(from[i] + d, from[i + 1] + d, 0xffff)));
        }
      });
      for (size_t block = 0; block < blocks.size(); ++block) {
        int64_t lanes = blocks[block] * kLanes;
        for (int64_t from = 0; from < pixels.count; from += kMostPixels) {
          strips.clear();
          for (int64_t c = first; c < last; c += height)
            for (int64_t tap = 0; tap < count; ++tap)
              strips.push_back({&values[pixels.of_tap[tap] * phase_size + (c - first) * pixels.step + pixels.Offset(tap) + from],
                                mine + (taps.index[tap] * channels + c) * filters + starts[block]});
          MultiplyBlocks(strips, height, pixels.step, {{0, 0}}, std::min(kMostPixels, pixels.count - from), 32,
                         &gradients[pixels.count / 2 * starts[block] + from / 2 * lanes], lanes, blocks[block], filters);
        }
      }
    }
  });
}

#else
bool MayUseAmx() { return false; }
#endif

template <typename Number>
bool UsesAmx() {
  return std::is_same_v<Number, Bfloat16> && MayUseAmx();
}

// Calls f(x, w, y) for a result y of operands x and w, with floats in their place where the processor has no products of bfloat16.
template <typename F>
void WithProducts(ffi::ThreadPool&, const Images&, const float* x, const Images&, const float* w, const Images&, float* y, const F& f) {
  f(x, w, y);
}
template <typename F>
void WithProducts(ffi::ThreadPool& pool, const Images& input, const Bfloat16* x, const Images& kernel, const Bfloat16* w, const Images& output,
                  Bfloat16* y, const F& f) {
#if defined(__AVX512BF16__)
#if defined(HAS_AMX)
  if (MayUseAmx())
#endif
    return f(x, w, y);
#endif
  static thread_local std::vector<float> images, weights, results;
  results.resize(std::max<size_t>(results.size(), output.size()));
  f(Widened(pool, x, input.size(), images), Widened(pool, w, kernel.size(), weights), results.data());
  float* from = results.data();
  InSlices(pool, output.size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) Store(y + i, Load(from + i));
  });
}

}  // namespace
