// Both products go through their long dimension in tiles: while a block multiplies one from shared memory, the next is
// on its way from memory into registers. Tiles are zero outside of the matrices, so that every size goes the same way.
//
//   Project   a block has 64 rows of x and 64 features at a time; a warp 16 of the rows and all ranks
//   Outer     a block has 128 columns and 32 rows at a time; a warp 32 of the columns and all ranks
#include <mma.h>

#include <type_traits>

#include "kernels/common/device.cuh"
#include "kernels/lora_products/lora_products_cuda.h"

namespace longspan::kernels::lora_products {
namespace {

namespace wmma = nvcuda::wmma;
using bf16 = __nv_bfloat16;

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kSide = 16;     // of the matrices that tensor cores multiply
constexpr int kPad = 8;       // elements behind a row of a tile, against bank conflicts
constexpr int kFloatPad = 4;  // likewise, of results
constexpr int kProjectRows = kWarps * kSide, kProjectDepth = 64;
constexpr int kColumnsOfWarp = 2 * kSide, kOuterColumns = kWarps * kColumnsOfWarp, kOuterDepth = 32;

// A tile of a matrix on its way through the registers of a block.
template <int tile_rows, int tile_columns, bool packed>
class Tile {
 public:
  static constexpr int kStride = tile_columns + kPad;  // in shared memory
  static constexpr int kElements = tile_rows * kStride;

  // Values of the first `rows` rows and `columns` columns from `from` on; zero beyond, also where these are negative.
  __device__ void Load(const bf16* from, int64_t stride, int64_t rows, int64_t columns) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = index / kPacksOfRow, column = index % kPacksOfRow * kWide;
#pragma unroll
      for (int j = 0; j < kWide; ++j) packs_[i].values[j] = __ushort_as_bfloat16(0);
      if (index >= kPacksOfTile || row >= rows) continue;
      const bf16* at = from + row * stride + column;
      if constexpr (packed) {
        if (column < columns) packs_[i] = *reinterpret_cast<const Pack<bf16>*>(at);
      } else {
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
          if (column + j < columns) packs_[i].values[j] = at[j];
        }
      }
    }
  }
  __device__ void Store(bf16* shared) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      if (index >= kPacksOfTile) continue;
      const int row = index / kPacksOfRow, column = index % kPacksOfRow * kWide;
      *reinterpret_cast<Pack<bf16>*>(shared + row * kStride + column) = packs_[i];
    }
  }

 private:
  static constexpr int kWide = kPack<bf16>;
  static constexpr int kPacksOfRow = tile_columns / kWide;
  static constexpr int kPacksOfTile = tile_rows * kPacksOfRow;
  static constexpr int kPacks = (kPacksOfTile + kThreads - 1) / kThreads;
  Pack<bf16> packs_[kPacks];
};

using Sums = wmma::fragment<wmma::accumulator, kSide, kSide, kSide, float>;

constexpr int Larger(int a, int b) { return a > b ? a : b; }

// Terms of each part, whole tiles of them.
__host__ __device__ int64_t TermsOfPart(int64_t terms, int64_t parts, int64_t tile) {
  const int64_t of_part = (terms + parts - 1) / parts;
  return (of_part + tile - 1) / tile * tile;
}

// The factor lies by ranks, as A (r, k) does, or by features, as B (k, r).
template <int rank_tiles, bool by_ranks, bool packed>
__global__ void __launch_bounds__(kThreads) ProjectKernel(ProjectArguments arguments) {
  constexpr int kRanks = rank_tiles * kSide, kOutStride = kRanks + kFloatPad;
  using XTile = Tile<kProjectRows, kProjectDepth, packed>;
  using FactorTile = Tile<by_ranks ? kRanks : kProjectDepth, by_ranks ? kProjectDepth : kRanks, packed>;
  using FactorLayout = std::conditional_t<by_ranks, wmma::col_major, wmma::row_major>;
  constexpr int kInputBytes = (XTile::kElements + FactorTile::kElements) * static_cast<int>(sizeof(bf16));
  constexpr int kOutputBytes = kProjectRows * kOutStride * static_cast<int>(sizeof(float));
  __shared__ __align__(32) unsigned char shared[Larger(kInputBytes, kOutputBytes)];
  bf16* const x_tile = reinterpret_cast<bf16*>(shared);
  bf16* const factor_tile = x_tile + XTile::kElements;

  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kProjectRows, rows = arguments.rows - first_row;
  const int64_t of_part = TermsOfPart(arguments.features, arguments.parts, kProjectDepth);
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * of_part, end = min(arguments.features, begin + of_part);
  const bf16* const x = static_cast<const bf16*>(arguments.x) + first_row * arguments.x_stride;
  const bf16* const factor = static_cast<const bf16*>(arguments.factor);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  XTile next_x;
  FactorTile next_factor;
  const auto load = [&](int64_t feature) {
    next_x.Load(x + feature, arguments.x_stride, rows, end - feature);
    if constexpr (by_ranks) {
      next_factor.Load(factor + feature, arguments.factor_rank_stride, arguments.ranks, end - feature);
    } else {
      next_factor.Load(factor + feature * arguments.factor_feature_stride, arguments.factor_feature_stride,
                       end - feature, arguments.ranks);
    }
  };
  Sums sums[rank_tiles];
#pragma unroll
  for (int i = 0; i < rank_tiles; ++i) wmma::fill_fragment(sums[i], 0.0f);
  if (begin < end) load(begin);
  for (int64_t feature = begin; feature < end; feature += kProjectDepth) {
    __syncthreads();  // the tile before has been read
    next_x.Store(x_tile);
    next_factor.Store(factor_tile);
    __syncthreads();
    if (feature + kProjectDepth < end) load(feature + kProjectDepth);
#pragma unroll
    for (int k = 0; k < kProjectDepth; k += kSide) {
      wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, bf16, wmma::row_major> a;
      wmma::load_matrix_sync(a, x_tile + warp * kSide * XTile::kStride + k, XTile::kStride);
#pragma unroll
      for (int i = 0; i < rank_tiles; ++i) {
        wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, bf16, FactorLayout> b;
        wmma::load_matrix_sync(b,
                               by_ranks ? factor_tile + i * kSide * FactorTile::kStride + k
                                        : factor_tile + k * FactorTile::kStride + i * kSide,
                               FactorTile::kStride);
        wmma::mma_sync(sums[i], a, b, sums[i]);
      }
    }
  }
  __syncthreads();
  float* const result = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < rank_tiles; ++i) {
    wmma::store_matrix_sync(result + warp * kSide * kOutStride + i * kSide, sums[i], kOutStride, wmma::mem_row_major);
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < kProjectRows * kRanks; index += kThreads) {
    const int row = index / kRanks, rank = index % kRanks;
    if (row >= rows || rank >= arguments.ranks) continue;
    const float value = result[row * kOutStride + rank];
    const int64_t of_all = first_row + row;
    if (arguments.parts == 1) {
      static_cast<bf16*>(arguments.out)[of_all * arguments.out_stride + rank] = FromFloat<bf16>(value);
    } else {
      arguments.sums[(static_cast<int64_t>(blockIdx.y) * arguments.rows + of_all) * arguments.ranks + rank] = value;
    }
  }
}

__global__ void __launch_bounds__(kThreads) AddProjectionsKernel(ProjectArguments arguments) {
  const int64_t values = arguments.rows * arguments.ranks;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < values; i += step) {
    float sum = 0;
    for (int64_t part = 0; part < arguments.parts; ++part) sum += arguments.sums[part * values + i];
    static_cast<bf16*>(arguments.out)[i / arguments.ranks * arguments.out_stride + i % arguments.ranks] =
        FromFloat<bf16>(sum);
  }
}

template <int rank_tiles, bool packed>
__global__ void __launch_bounds__(kThreads) OuterKernel(OuterArguments arguments) {
  constexpr int kRanks = rank_tiles * kSide, kOutStride = kOuterColumns + kFloatPad;
  constexpr int kColumnTiles = kColumnsOfWarp / kSide;
  using LeftTile = Tile<kOuterDepth, kRanks, packed>;
  using RightTile = Tile<kOuterDepth, kOuterColumns, packed>;
  constexpr int kInputBytes = (LeftTile::kElements + RightTile::kElements) * static_cast<int>(sizeof(bf16));
  constexpr int kOutputBytes = kRanks * kOutStride * static_cast<int>(sizeof(float));
  __shared__ __align__(32) unsigned char shared[Larger(kInputBytes, kOutputBytes)];
  bf16* const right_tile = reinterpret_cast<bf16*>(shared);
  bf16* const left_tile = right_tile + RightTile::kElements;

  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kOuterColumns;
  const int64_t columns = arguments.columns - first_column;
  const int64_t of_part = TermsOfPart(arguments.rows, arguments.parts, kOuterDepth);
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * of_part, end = min(arguments.rows, begin + of_part);
  const bf16* const left = static_cast<const bf16*>(arguments.left);
  const bf16* const right = static_cast<const bf16*>(arguments.right) + first_column;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;

  LeftTile next_left;
  RightTile next_right;
  const auto load = [&](int64_t row) {
    next_left.Load(left + row * arguments.left_stride, arguments.left_stride, end - row, arguments.ranks);
    next_right.Load(right + row * arguments.right_stride, arguments.right_stride, end - row, columns);
  };
  Sums sums[rank_tiles][kColumnTiles];
#pragma unroll
  for (int i = 0; i < rank_tiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) wmma::fill_fragment(sums[i][j], 0.0f);
  }
  if (begin < end) load(begin);
  for (int64_t row = begin; row < end; row += kOuterDepth) {
    __syncthreads();  // the tile before has been read
    next_left.Store(left_tile);
    next_right.Store(right_tile);
    __syncthreads();
    if (row + kOuterDepth < end) load(row + kOuterDepth);
#pragma unroll
    for (int k = 0; k < kOuterDepth; k += kSide) {
      wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, bf16, wmma::row_major> b[kColumnTiles];
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        wmma::load_matrix_sync(b[j], right_tile + k * RightTile::kStride + warp * kColumnsOfWarp + j * kSide,
                               RightTile::kStride);
      }
#pragma unroll
      for (int i = 0; i < rank_tiles; ++i) {
        wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, bf16, wmma::col_major> a;
        wmma::load_matrix_sync(a, left_tile + k * LeftTile::kStride + i * kSide, LeftTile::kStride);
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) wmma::mma_sync(sums[i][j], a, b[j], sums[i][j]);
      }
    }
  }
  __syncthreads();
  float* const result = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < rank_tiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      wmma::store_matrix_sync(result + i * kSide * kOutStride + warp * kColumnsOfWarp + j * kSide, sums[i][j],
                              kOutStride, wmma::mem_row_major);
    }
  }
  __syncthreads();
  for (int index = static_cast<int>(threadIdx.x); index < kRanks * kOuterColumns; index += kThreads) {
    const int rank = index / kOuterColumns, column = index % kOuterColumns;
    if (rank >= arguments.ranks || column >= columns) continue;
    arguments
        .sums[(static_cast<int64_t>(blockIdx.y) * arguments.ranks + rank) * arguments.columns + first_column + column] =
        result[rank * kOutStride + column];
  }
}

__global__ void __launch_bounds__(kThreads) AddOuterKernel(AddOuterArguments arguments) {
  const int64_t values = arguments.gradient_ranks * arguments.columns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const float* const first = arguments.sums + arguments.first_rank * arguments.columns;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < values; i += step) {
    float sum = 0;
    for (int64_t part = 0; part < arguments.parts; ++part) sum += first[part * arguments.ranks * arguments.columns + i];
    const int64_t rank = i / arguments.columns, column = i % arguments.columns;
    arguments.gradient[rank * arguments.gradient_rank_stride + column * arguments.gradient_column_stride] +=
        arguments.scale * sum;
  }
}

bool IsPackedMatrix(const void* data, int64_t stride, int64_t columns) {
  return IsPacked(static_cast<const bf16*>(data), stride, columns);
}

// Calls body with 16, 32 or 64 ranks as tiles of tensor cores.
template <typename Body>
cudaError_t WithRankTiles(int64_t ranks, Body body) {
  if (ranks <= kSide) return body(std::integral_constant<int, 1>{});
  if (ranks <= 2 * kSide) return body(std::integral_constant<int, 2>{});
  return body(std::integral_constant<int, 4>{});
}
static_assert(kRanksMax == 4 * kSide);

bool AreRanks(int64_t ranks) { return ranks >= 1 && ranks <= kRanksMax; }
bool AreParts(int64_t parts) { return parts >= 1 && parts <= kPartsMax; }

}  // namespace

cudaError_t Project(const ProjectArguments& arguments, cudaStream_t stream) {
  const bool by_ranks = arguments.factor_feature_stride == 1;
  // The stride of a single row says nothing.
  const int64_t factor_stride = !by_ranks              ? arguments.factor_feature_stride
                                : arguments.ranks == 1 ? arguments.features
                                                       : arguments.factor_rank_stride;
  if (arguments.rows < 0 || arguments.features < 0 || !AreRanks(arguments.ranks) || !AreParts(arguments.parts) ||
      arguments.x_stride < arguments.features || arguments.out_stride < arguments.ranks ||
      (!by_ranks && arguments.factor_rank_stride != 1) ||
      factor_stride < (by_ranks ? arguments.features : arguments.ranks) ||
      (arguments.parts > 1 && arguments.sums == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  const bool packed = IsPackedMatrix(arguments.x, arguments.x_stride, arguments.features) &&
                      IsPackedMatrix(arguments.factor, factor_stride, by_ranks ? arguments.features : arguments.ranks);
  const dim3 blocks(static_cast<unsigned>((arguments.rows + kProjectRows - 1) / kProjectRows),
                    static_cast<unsigned>(arguments.parts));
  const cudaError_t status = WithRankTiles(arguments.ranks, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    if (by_ranks && packed) {
      ProjectKernel<kTiles, true, true><<<blocks, kThreads, 0, stream>>>(arguments);
    } else if (by_ranks) {
      ProjectKernel<kTiles, true, false><<<blocks, kThreads, 0, stream>>>(arguments);
    } else if (packed) {
      ProjectKernel<kTiles, false, true><<<blocks, kThreads, 0, stream>>>(arguments);
    } else {
      ProjectKernel<kTiles, false, false><<<blocks, kThreads, 0, stream>>>(arguments);
    }
    return cudaGetLastError();
  });
  if (status != cudaSuccess || arguments.parts == 1) return status;
  AddProjectionsKernel<<<BlocksFor(arguments.rows * arguments.ranks, kThreads), kThreads, 0, stream>>>(arguments);
  return cudaGetLastError();
}

cudaError_t Outer(const OuterArguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.columns < 0 || !AreRanks(arguments.ranks) || !AreParts(arguments.parts) ||
      arguments.left_stride < arguments.ranks || arguments.right_stride < arguments.columns ||
      arguments.sums == nullptr) {
    return cudaErrorInvalidValue;
  }
  if (arguments.columns == 0) return cudaSuccess;
  const bool packed = IsPackedMatrix(arguments.left, arguments.left_stride, arguments.ranks) &&
                      IsPackedMatrix(arguments.right, arguments.right_stride, arguments.columns);
  const dim3 blocks(static_cast<unsigned>((arguments.columns + kOuterColumns - 1) / kOuterColumns),
                    static_cast<unsigned>(arguments.parts));
  return WithRankTiles(arguments.ranks, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    if (packed) {
      OuterKernel<kTiles, true><<<blocks, kThreads, 0, stream>>>(arguments);
    } else {
      OuterKernel<kTiles, false><<<blocks, kThreads, 0, stream>>>(arguments);
    }
    return cudaGetLastError();
  });
}

cudaError_t AddOuter(const AddOuterArguments& arguments, cudaStream_t stream) {
  if (arguments.columns < 0 || !AreRanks(arguments.ranks) || !AreParts(arguments.parts) || arguments.first_rank < 0 ||
      arguments.gradient_ranks < 0 || arguments.first_rank + arguments.gradient_ranks > arguments.ranks ||
      arguments.sums == nullptr) {
    return cudaErrorInvalidValue;
  }
  const int64_t values = arguments.gradient_ranks * arguments.columns;
  if (values == 0) return cudaSuccess;
  AddOuterKernel<<<BlocksFor(values, kThreads), kThreads, 0, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace longspan::kernels::lora_products
