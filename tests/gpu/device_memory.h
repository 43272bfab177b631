// Device memory for the tests of kernels, which compare what a kernel writes with what its reference does.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/common/bfloat16.h"

namespace longspan::kernels::testing {

inline void Check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// The same bytes on the host and on the device, with a guard behind that nobody may write to.
class Twin {
 public:
  explicit Twin(int64_t bytes) : host_(static_cast<size_t>(bytes)) {
    Check(cudaMalloc(&device_, host_.size() + kGuard));
    Check(cudaMemset(static_cast<char*>(device_) + host_.size(), kGuardByte, kGuard));
    Upload();
  }
  Twin(Twin&& other) noexcept : host_(std::move(other.host_)), device_(std::exchange(other.device_, nullptr)) {}
  Twin& operator=(Twin&&) = delete;
  ~Twin() { cudaFree(device_); }

  // Values of a type; random ones in [-scale, scale).
  static Twin Of(ElementType type, int64_t elements) { return Twin(elements * BytesOf(type)); }
  static Twin Random(ElementType type, int64_t elements, unsigned seed, float scale = 1) {
    Twin twin(elements * BytesOf(type));
    std::mt19937 generator(seed);
    std::uniform_real_distribution<float> uniform(-scale, scale);
    WithHostType(type, [&](auto tag) {
      using T = decltype(tag);
      for (int64_t i = 0; i < elements; ++i) twin.Host<T>()[i] = static_cast<T>(uniform(generator));
    });
    twin.Upload();
    return twin;
  }

  template <typename T>
  T* Host() {
    return reinterpret_cast<T*>(host_.data());
  }
  void* host() { return host_.data(); }
  void* device() { return device_; }
  void Upload() { Check(cudaMemcpy(device_, host_.data(), host_.size(), cudaMemcpyHostToDevice)); }

  // What the device has, and that it wrote nothing behind the end.
  std::vector<char> Download() {
    Check(cudaDeviceSynchronize());
    std::vector<char> all(host_.size() + kGuard);
    Check(cudaMemcpy(all.data(), device_, all.size(), cudaMemcpyDeviceToHost));
    for (size_t i = host_.size(); i < all.size(); ++i) {
      EXPECT_EQ(static_cast<unsigned char>(all[i]), kGuardByte) << "written behind the end";
    }
    all.resize(host_.size());
    return all;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr int kGuardByte = 0x5a;
  std::vector<char> host_;
  void* device_ = nullptr;
};

// Largest difference of the values on both sides, relative to the largest magnitude on the host's.
inline double RelativeDifference(ElementType type, Twin& twin) {
  const std::vector<char> device = twin.Download();
  double largest = 0, difference = 0;
  WithHostType(type, [&](auto tag) {
    using T = decltype(tag);
    const int64_t elements = static_cast<int64_t>(device.size() / sizeof(T));
    for (int64_t i = 0; i < elements; ++i) {
      T there;
      std::memcpy(&there, device.data() + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
      const double expected = static_cast<float>(twin.Host<T>()[i]), actual = static_cast<float>(there);
      if (std::isnan(expected) || std::isnan(actual)) {
        if (std::isnan(expected) != std::isnan(actual)) difference = 1e30;
        continue;
      }
      largest = std::max(largest, std::abs(expected));
      difference = std::max(difference, std::abs(expected - actual));
    }
  });
  return largest == 0 ? difference : difference / largest;
}

// One rounding apart, of the largest value.
inline double Tolerance(ElementType type) { return type == ElementType::kFloat32 ? 2e-6 : 1.0 / 128; }

inline constexpr ElementType kTypes[] = {ElementType::kFloat32, ElementType::kBfloat16};

}  // namespace longspan::kernels::testing
