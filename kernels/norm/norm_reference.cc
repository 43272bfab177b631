#include <cmath>

#include "kernels/common/bfloat16.h"
#include "kernels/norm/norm.h"

namespace longspan::kernels::norm {
namespace {

template <typename T>
T* VectorOf(const View& view, int64_t row, int64_t head) {
  return static_cast<T*>(view.data) + row * view.row_stride + head * view.head_stride;
}

struct Statistics {
  float mean = 0, inverse = 0;
};

template <typename T>
Statistics StatisticsOf(Kind kind, const T* x, int64_t size, float epsilon) {
  Statistics statistics;
  if (kind == Kind::kLayer) {
    float sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += static_cast<float>(x[i]);
    statistics.mean = sum / static_cast<float>(size);
  }
  float squares = 0;
  for (int64_t i = 0; i < size; ++i) {
    const float centred = static_cast<float>(x[i]) - statistics.mean;
    squares += centred * centred;
  }
  statistics.inverse = 1.0f / std::sqrt(squares / static_cast<float>(size) + epsilon);
  return statistics;
}

Statistics Stored(const BackwardArguments& arguments, int64_t row, int64_t head) {
  const int64_t index = row * arguments.statistics_stride + head;
  if (arguments.kind == Kind::kRms) return {0, arguments.statistics[index]};
  return {arguments.statistics[2 * index], arguments.statistics[2 * index + 1]};
}

}  // namespace

void ForwardReference(const ForwardArguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.vectors.rows; ++row) {
      for (int64_t head = 0; head < arguments.vectors.heads; ++head) {
        T* x = VectorOf<T>(arguments.x, row, head);
        T* out = VectorOf<T>(arguments.out, row, head);
        const int64_t count = arguments.vectors.size;
        if (arguments.added.data != nullptr) {
          const T* added = VectorOf<T>(arguments.added, row, head);
          for (int64_t i = 0; i < count; ++i)
            x[i] = static_cast<T>(static_cast<float>(x[i]) + static_cast<float>(added[i]));
        }
        const Statistics statistics = StatisticsOf(arguments.kind, x, count, arguments.epsilon);
        if (arguments.statistics != nullptr) {
          const int64_t index = row * arguments.statistics_stride + head;
          if (arguments.kind == Kind::kRms) {
            arguments.statistics[index] = statistics.inverse;
          } else {
            arguments.statistics[2 * index] = statistics.mean;
            arguments.statistics[2 * index + 1] = statistics.inverse;
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          float value = (static_cast<float>(x[i]) - statistics.mean) * statistics.inverse;
          value *= static_cast<float>(static_cast<const T*>(arguments.weight)[i]);
          if (arguments.bias != nullptr) value += static_cast<float>(static_cast<const T*>(arguments.bias)[i]);
          out[i] = static_cast<T>(value);
        }
      }
    }
  });
}

// With n = (x - m)·r and g = w∘dy: dx = r·(g - mean(g) - n·mean(g∘n)), of kRms without mean(g).
void BackwardReference(const BackwardArguments& arguments) {
  const int64_t size = arguments.vectors.size;
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    const T* weight = static_cast<const T*>(arguments.weight);
    for (int64_t row = 0; row < arguments.vectors.rows; ++row) {
      for (int64_t head = 0; head < arguments.vectors.heads; ++head) {
        const T* x = VectorOf<T>(arguments.x, row, head);
        const T* dy = VectorOf<T>(arguments.out_gradient, row, head);
        T* dx = VectorOf<T>(arguments.x_gradient, row, head);
        const Statistics statistics = Stored(arguments, row, head);
        const auto normal = [&](int64_t i) {
          return (static_cast<float>(x[i]) - statistics.mean) * statistics.inverse;
        };
        const auto weighted = [&](int64_t i) { return static_cast<float>(weight[i]) * static_cast<float>(dy[i]); };
        float sum = 0, dot = 0;
        for (int64_t i = 0; i < size; ++i) {
          sum += weighted(i);
          dot += weighted(i) * normal(i);
        }
        const float mean = arguments.kind == Kind::kLayer ? sum / static_cast<float>(size) : 0;
        const float mean_dot = dot / static_cast<float>(size);
        for (int64_t i = 0; i < size; ++i) {
          if (arguments.sums != nullptr) {
            arguments.weight_gradient[i] += static_cast<float>(dy[i]) * normal(i);
            if (arguments.kind == Kind::kLayer) arguments.bias_gradient[i] += static_cast<float>(dy[i]);
          }
          const float gradient = statistics.inverse * (weighted(i) - mean - normal(i) * mean_dot);
          dx[i] = static_cast<T>(arguments.adds ? static_cast<float>(dx[i]) + gradient : gradient);
        }
      }
    }
  });
}

}  // namespace longspan::kernels::norm
