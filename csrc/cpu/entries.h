// The distances that triplets ask for, sorted by the tile of the distance matrix in which they lie.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/triplets.h"

namespace bgs::cpu::BGS_ISA {

// Rows and columns of a tile, and the memory from one row to the next: an odd number of cache lines.
constexpr std::int32_t kTileSide = 256;
constexpr std::int32_t kTileStride = kTileSide + 16;

// Pair p of triplet t is entry 3 * kChunk * (t / kChunk) + kChunk * p + t % kChunk. A tile holds its entries in this
// order, whatever the number of threads. There are fewer than 2^31 entries.
class Entries {
 public:
  // `tiles` tiles a side.
  Entries(const Triplets& triplets, std::int64_t tiles, int threads)
      : tiles_(tiles),
        starts_(tiles * tiles + 1),
        entries_(3 * kChunk * triplets.chunks()),
        places_(3 * kChunk * triplets.chunks()) {
    const std::int64_t chunks = triplets.chunks(), cells = tiles * tiles;
    // every part sorts its own chunks: counts of one part, then where its first entry in each tile goes
    const std::int64_t parts = threads < chunks ? threads : (chunks > 0 ? chunks : 1);
    Array<std::int64_t> next(parts * cells);
    Array<std::int64_t> wrong(parts);
    const auto each_entry = [&](std::int64_t part, const auto& found) {
      for (std::int64_t chunk = chunks * part / parts; chunk < chunks * (part + 1) / parts; ++chunk) {
        const bool sound = triplets.read_pairs(
            chunk, [&](std::int64_t each, int pair, std::int32_t row, std::int32_t column) {
              found(row / kTileSide * tiles + column / kTileSide, (3 * chunk + pair) * kChunk + each,
                    row % kTileSide * kTileStride + column % kTileSide);
            });
        if (!sound) {
          wrong[part] = 1;
          return;
        }
      }
    };
    parallel_for(parts, threads, [&](std::int64_t part, int) {
      std::int64_t* counts = next.get() + part * cells;
      for (std::int64_t cell = 0; cell < cells; ++cell) counts[cell] = 0;
      wrong[part] = 0;
      each_entry(part, [&](std::int64_t cell, std::int64_t, std::int32_t) { ++counts[cell]; });
    });
    for (std::int64_t part = 0; part < parts; ++part) {
      if (wrong[part]) throw std::out_of_range("triplets: an index is out of range, or an item named twice");
    }
    std::int64_t total = 0;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      starts_[cell] = total;
      for (std::int64_t part = 0; part < parts; ++part) {
        const std::int64_t count = next[part * cells + cell];
        next[part * cells + cell] = total;
        total += count;
      }
    }
    starts_[cells] = total;
    parallel_for(parts, threads, [&](std::int64_t part, int) {
      std::int64_t* free_places = next.get() + part * cells;
      each_entry(part, [&](std::int64_t cell, std::int64_t entry, std::int32_t place) {
        const std::int64_t at = free_places[cell]++;
        entries_[at] = static_cast<std::int32_t>(entry);
        places_[at] = place;
      });
    });
  }

  bool has_any(std::int64_t row, std::int64_t column) const {
    return starts_[row * tiles_ + column + 1] > starts_[row * tiles_ + column];
  }

  // Copy the distances that the triplets ask for out of a tile.
  void gather(std::int64_t row, std::int64_t column, const float* tile, float* by_entry) const {
    const std::int64_t cell = row * tiles_ + column;
    for (std::int64_t at = starts_[cell]; at < starts_[cell + 1]; ++at) by_entry[entries_[at]] = tile[places_[at]];
  }

  // Add the triplets' derivatives to a tile.
  void scatter(std::int64_t row, std::int64_t column, const float* by_entry, float factor, float* tile) const {
    const std::int64_t cell = row * tiles_ + column;
    for (std::int64_t at = starts_[cell]; at < starts_[cell + 1]; ++at) {
      tile[places_[at]] += factor * by_entry[entries_[at]];
    }
  }

 private:
  std::int64_t tiles_;
  Array<std::int64_t> starts_;
  Array<std::int32_t> entries_, places_;
};

}  // namespace bgs::cpu::BGS_ISA
