// The fixed sizes of the kernel of small sets, which its launch and its workspace follow.
#pragma once

namespace bgs::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

// A block is 16 x 16 threads, each with scale x scale entries of a tile of 16 * scale rows and columns.
constexpr int kSide = 16;
constexpr int kMostScale = 4;

// What a tile of pairs leaves: how many are observed, the sum of their weights, the weighted sums of distances d and
// targets h, the weighted sums of (d - m)^2, (h - m)^2 and (d - m)(h - m) about the tile's own weighted means m, and
// whether a value that counts is not finite.
enum Moment { kCount, kWeight, kSumD, kSumH, kSecondDD, kSecondHH, kSecondDH, kBad, kMoments };

}  // namespace bgs::cuda
