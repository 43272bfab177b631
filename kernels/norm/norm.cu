// A group of threads holds a vector in registers: it is read once, and with its sums known written once. Small vectors
// (attention heads) take a warp each, large ones a block. The sums over rows stay in registers too, column by column,
// while a group goes through the rows of its part.
#include "kernels/common/device.cuh"
#include "kernels/norm/norm_cuda.h"

namespace longspan::kernels::norm {
namespace {

constexpr int kWarpsOfBlock = 8;  // where a warp takes a vector

// How a vector lies in the registers of a group: chunk j of thread t begins at (j·threads + t)·width.
template <int group_threads, int chunks, int chunk_width>
struct Layout {
  static constexpr int kGroup = group_threads, kChunks = chunks, kWidth = chunk_width;
  static constexpr int kValues = chunks * chunk_width;
  static constexpr int kThreads = group_threads == kWarp ? kWarp * kWarpsOfBlock : group_threads;
  static constexpr int kGroups = kThreads / kGroup;  // of a block
};

template <typename L>
__device__ int64_t ColumnOf(int chunk) {
  return (static_cast<int64_t>(chunk) * L::kGroup + threadIdx.x % L::kGroup) * L::kWidth;
}

template <typename L, typename T>
__device__ void LoadVector(const T* from, int64_t size, float (&values)[L::kValues]) {
#pragma unroll
  for (int chunk = 0; chunk < L::kChunks; ++chunk) {
    const int64_t column = ColumnOf<L>(chunk);
    float part[L::kWidth] = {};
    if (column < size) Load(from + column, part);
#pragma unroll
    for (int i = 0; i < L::kWidth; ++i) values[chunk * L::kWidth + i] = part[i];
  }
}

template <typename L, typename T>
__device__ void StoreVector(const float (&values)[L::kValues], int64_t size, T* to) {
#pragma unroll
  for (int chunk = 0; chunk < L::kChunks; ++chunk) {
    const int64_t column = ColumnOf<L>(chunk);
    if (column >= size) continue;
    float part[L::kWidth];
#pragma unroll
    for (int i = 0; i < L::kWidth; ++i) part[i] = values[chunk * L::kWidth + i];
    Store(part, to + column);
  }
}

template <typename L>
__device__ bool IsInside(int value, int64_t size) {
  return ColumnOf<L>(value / L::kWidth) < size;
}

template <typename L>
__device__ float GroupSum(float value, float* scratch) {
  if constexpr (L::kGroup == kWarp) {
    return WarpSum(value);
  } else {
    return BlockSum(value, scratch);
  }
}

template <typename T>
__device__ T* VectorOf(const View& view, int64_t row, int64_t head) {
  return static_cast<T*>(view.data) + row * view.row_stride + head * view.head_stride;
}

template <typename T, typename L, Kind kind>
__global__ void __launch_bounds__(L::kThreads) ForwardKernel(ForwardArguments arguments) {
  __shared__ float scratch[L::kThreads / kWarp];
  const int64_t size = arguments.vectors.size, heads = arguments.vectors.heads;
  const int64_t vectors = arguments.vectors.rows * heads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * L::kGroups;
  for (int64_t vector = static_cast<int64_t>(blockIdx.x) * L::kGroups + threadIdx.x / L::kGroup; vector < vectors;
       vector += step) {
    const int64_t row = vector / heads, head = vector % heads;
    T* x = VectorOf<T>(arguments.x, row, head);
    float values[L::kValues];
    LoadVector<L>(x, size, values);
    if (arguments.added.data != nullptr) {
      float added[L::kValues];
      LoadVector<L>(VectorOf<const T>(arguments.added, row, head), size, added);
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) values[i] = ToFloat(FromFloat<T>(values[i] + added[i]));
      StoreVector<L>(values, size, x);
    }
    float mean = 0;
    if constexpr (kind == Kind::kLayer) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) sum += values[i];
      mean = GroupSum<L>(sum, scratch) / static_cast<float>(size);
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) {
      values[i] -= mean;
      if (IsInside<L>(i, size)) squares += values[i] * values[i];
    }
    const float inverse = rsqrtf(GroupSum<L>(squares, scratch) / static_cast<float>(size) + arguments.epsilon);
    if (arguments.statistics != nullptr && threadIdx.x % L::kGroup == 0) {
      const int64_t index = row * arguments.statistics_stride + head;
      if constexpr (kind == Kind::kRms) {
        arguments.statistics[index] = inverse;
      } else {
        arguments.statistics[2 * index] = mean;
        arguments.statistics[2 * index + 1] = inverse;
      }
    }
    float weight[L::kValues];
    LoadVector<L>(static_cast<const T*>(arguments.weight), size, weight);
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) values[i] *= inverse * weight[i];
    if constexpr (kind == Kind::kLayer) {
      float bias[L::kValues];
      LoadVector<L>(static_cast<const T*>(arguments.bias), size, bias);
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) values[i] += bias[i];
    }
    StoreVector<L>(values, size, VectorOf<T>(arguments.out, row, head));
  }
}

// A block goes through the rows of one part. Where it has several groups, these take its vectors in turns.
template <typename T, typename L, Kind kind>
__global__ void __launch_bounds__(L::kThreads) BackwardKernel(BackwardArguments arguments, int64_t blocks) {
  __shared__ float scratch[L::kThreads / kWarp];
  const int64_t size = arguments.vectors.size, heads = arguments.vectors.heads;
  const int64_t rows_of_block = (arguments.vectors.rows + blocks - 1) / blocks;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * rows_of_block;
  const int64_t rows = min(rows_of_block, arguments.vectors.rows - first_row);
  const int group = static_cast<int>(threadIdx.x) / L::kGroup;
  float weight[L::kValues], weight_sum[L::kValues] = {}, bias_sum[kind == Kind::kLayer ? L::kValues : 1] = {};
  LoadVector<L>(static_cast<const T*>(arguments.weight), size, weight);
  for (int64_t vector = group; vector < rows * heads; vector += L::kGroups) {
    const int64_t row = first_row + vector / heads, head = vector % heads;
    const int64_t index = row * arguments.statistics_stride + head;
    float mean = 0, inverse;
    if constexpr (kind == Kind::kRms) {
      inverse = arguments.statistics[index];
    } else {
      mean = arguments.statistics[2 * index];
      inverse = arguments.statistics[2 * index + 1];
    }
    float normal[L::kValues], gradient[L::kValues];
    LoadVector<L>(VectorOf<const T>(arguments.x, row, head), size, normal);
    LoadVector<L>(VectorOf<const T>(arguments.out_gradient, row, head), size, gradient);
    float sum = 0, dot = 0;
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) {
      normal[i] = (normal[i] - mean) * inverse;
      weight_sum[i] += gradient[i] * normal[i];  // columns outside have no gradient
      if constexpr (kind == Kind::kLayer) bias_sum[i] += gradient[i];
      gradient[i] *= weight[i];
      sum += gradient[i];
      dot += gradient[i] * normal[i];
    }
    const float mean_dot = GroupSum<L>(dot, scratch) / static_cast<float>(size);
    float mean_gradient = 0;
    if constexpr (kind == Kind::kLayer) mean_gradient = GroupSum<L>(sum, scratch) / static_cast<float>(size);
#pragma unroll
    for (int i = 0; i < L::kValues; ++i) {
      gradient[i] = inverse * (gradient[i] - mean_gradient - normal[i] * mean_dot);
    }
    T* to = VectorOf<T>(arguments.x_gradient, row, head);
    if (arguments.adds) {
      LoadVector<L>(to, size, normal);
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) gradient[i] += normal[i];
    }
    StoreVector<L>(gradient, size, to);
  }
  if (arguments.sums == nullptr) return;
  const int64_t columns = kind == Kind::kLayer ? 2 * size : size;
  float* sums = arguments.sums + static_cast<int64_t>(blockIdx.x) * columns;
  // Groups add theirs one after the other, so that the order is fixed.
  for (int turn = 0; turn < L::kGroups; ++turn) {
    if (turn == group) {
#pragma unroll
      for (int i = 0; i < L::kValues; ++i) {
        const int64_t column = ColumnOf<L>(i / L::kWidth) + i % L::kWidth;
        if (ColumnOf<L>(i / L::kWidth) >= size) continue;
        sums[column] = turn == 0 ? weight_sum[i] : sums[column] + weight_sum[i];
        if constexpr (kind == Kind::kLayer) {
          sums[size + column] = turn == 0 ? bias_sum[i] : sums[size + column] + bias_sum[i];
        }
      }
    }
    if constexpr (L::kGroups > 1) __syncthreads();
  }
}

__global__ void AddPartsKernel(const float* sums, int64_t parts, int64_t columns, int64_t first, int64_t size,
                               float* gradient) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= size) return;
  float sum = 0;
  for (int64_t part = 0; part < parts; ++part) sum += sums[part * columns + first + column];
  gradient[column] += sum;
}

template <typename T>
bool IsPackedView(const View& view) {
  return view.data == nullptr || IsPacked(static_cast<const T*>(view.data), view.row_stride, view.head_stride);
}

// Calls body(Layout{}) with one that holds vectors of this size.
template <typename T, typename Body>
cudaError_t WithLayout(int64_t size, bool packed, Body body) {
  constexpr int kWide = kPack<T>;
  if (packed) {
    if (size <= kWarp * kWide) return body(Layout<kWarp, 1, kWide>{});
    if (size <= 128 * kWide) return body(Layout<128, 1, kWide>{});
    if (size <= 256 * 2 * kWide) return body(Layout<256, 2, kWide>{});
    return body(Layout<512, static_cast<int>(kSizeMax) / (512 * kWide), kWide>{});
  }
  if (size <= kWarp * 8) return body(Layout<kWarp, 8, 1>{});
  if (size <= 256 * 8) return body(Layout<256, 8, 1>{});
  return body(Layout<512, static_cast<int>(kSizeMax) / 512, 1>{});
}

template <typename Arguments>
bool IsShape(const Arguments& arguments) {
  const Vectors& vectors = arguments.vectors;
  return vectors.rows >= 0 && vectors.heads >= 1 && vectors.size >= 1 && vectors.size <= kSizeMax;
}

}  // namespace

cudaError_t Forward(const ForwardArguments& arguments, cudaStream_t stream) {
  if (!IsShape(arguments) || (arguments.kind == Kind::kLayer) != (arguments.bias != nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (arguments.vectors.rows == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    const bool packed = arguments.vectors.size % kPack<T> == 0 && IsPackedView<T>(arguments.x) &&
                        IsPackedView<T>(arguments.added) && IsPackedView<T>(arguments.out) &&
                        IsPacked(static_cast<const T*>(arguments.weight)) &&
                        IsPacked(static_cast<const T*>(arguments.bias));
    return WithLayout<T>(arguments.vectors.size, packed, [&](auto layout) {
      using L = decltype(layout);
      const unsigned blocks = BlocksFor(arguments.vectors.rows * arguments.vectors.heads, L::kGroups);
      if (arguments.kind == Kind::kRms) {
        ForwardKernel<T, L, Kind::kRms><<<blocks, L::kThreads, 0, stream>>>(arguments);
      } else {
        ForwardKernel<T, L, Kind::kLayer><<<blocks, L::kThreads, 0, stream>>>(arguments);
      }
      return cudaGetLastError();
    });
  });
}

cudaError_t Backward(const BackwardArguments& arguments, cudaStream_t stream) {
  const bool trains_bias = arguments.kind == Kind::kLayer && arguments.sums != nullptr;
  if (!IsShape(arguments) || arguments.parts < 1 || arguments.parts > 65535 || arguments.statistics == nullptr ||
      (arguments.sums != nullptr && arguments.weight_gradient == nullptr) ||
      (trains_bias && arguments.bias_gradient == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (arguments.vectors.rows == 0) return cudaSuccess;
  const int64_t size = arguments.vectors.size;
  const cudaError_t status = WithDeviceType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    const bool packed = size % kPack<T> == 0 && IsPackedView<T>(arguments.x) &&
                        IsPackedView<T>(arguments.out_gradient) && IsPackedView<T>(arguments.x_gradient) &&
                        IsPacked(static_cast<const T*>(arguments.weight));
    return WithLayout<T>(size, packed, [&](auto layout) {
      using L = decltype(layout);
      // Without sums there is no order to keep: as many blocks as there is work for.
      const int64_t blocks = arguments.sums != nullptr
                                 ? arguments.parts
                                 : BlocksFor(arguments.vectors.rows * arguments.vectors.heads, L::kGroups, 65535);
      if (arguments.kind == Kind::kRms) {
        BackwardKernel<T, L, Kind::kRms><<<static_cast<unsigned>(blocks), L::kThreads, 0, stream>>>(arguments, blocks);
      } else {
        BackwardKernel<T, L, Kind::kLayer>
            <<<static_cast<unsigned>(blocks), L::kThreads, 0, stream>>>(arguments, blocks);
      }
      return cudaGetLastError();
    });
  });
  if (status != cudaSuccess || arguments.sums == nullptr) return status;
  constexpr int kThreads = 128;
  const int64_t columns = trains_bias ? 2 * size : size;
  AddPartsKernel<<<BlocksFor(size, kThreads), kThreads, 0, stream>>>(arguments.sums, arguments.parts, columns, 0, size,
                                                                     arguments.weight_gradient);
  if (trains_bias) {
    AddPartsKernel<<<BlocksFor(size, kThreads), kThreads, 0, stream>>>(arguments.sums, arguments.parts, columns, size,
                                                                       size, arguments.bias_gradient);
  }
  return cudaGetLastError();
}

}  // namespace longspan::kernels::norm
