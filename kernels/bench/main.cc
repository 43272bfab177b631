#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

#include "kernels/bench/bench.h"
#include "kernels/common/bfloat16.h"

namespace longspan::kernels::bench {
namespace {

constexpr int kWarmUps = 5, kRuns = 30;

void Check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw std::runtime_error(what + ": " + cudaGetErrorString(status));
}

// The fastest of several runs, each timed by events on the stream.
double SecondsOf(const Case& one, cudaStream_t stream) {
  cudaEvent_t begin = nullptr, end = nullptr;
  Check(cudaEventCreate(&begin), "an event");
  Check(cudaEventCreate(&end), "an event");
  for (int i = 0; i < kWarmUps; ++i) Check(one.run(stream), one.name);
  double fastest = 1e30;
  for (int i = 0; i < kRuns; ++i) {
    Check(cudaEventRecord(begin, stream), "an event");
    Check(one.run(stream), one.name);
    Check(cudaEventRecord(end, stream), "an event");
    Check(cudaEventSynchronize(end), one.name);
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, begin, end), "an event");
    fastest = std::min(fastest, milliseconds * 1e-3);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return fastest;
}

Case CopyCase(Bench& bench) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  void* from = bench.Allocate(kBytes);
  void* to = bench.Allocate(kBytes);
  return {"copy of memory", 2.0 * kBytes, 0,
          [=](cudaStream_t stream) { return cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, stream); }};
}

int Run(bool as_json) {
  int count = 0;
  Check(cudaGetDeviceCount(&count), "no CUDA device");
  cudaDeviceProp device{};
  Check(cudaGetDeviceProperties(&device, 0), "the device's properties");
  Bench bench;
  for (const auto add : {AddAdamw, AddCrossEntropy, AddDropout, AddEmbeddingGradient, AddFp8Rows, AddLoraProducts,
                         AddNf4, AddNorm, AddNormal, AddRope, AddSwiglu, AddTensorSums}) {
    add(bench);
  }
  cudaStream_t stream = nullptr;
  Check(cudaStreamCreate(&stream), "a stream");
  const Case copy = CopyCase(bench);
  const double copy_rate = copy.bytes / SecondsOf(copy, stream);
  nlohmann::json rows = nlohmann::json::array();
  if (!as_json) {
    std::printf("%s: %.0f GB/s\n%-44s %10s %9s %9s %9s\n", device.name, copy_rate * 1e-9, "kernel", "us", "GB/s",
                "of a copy", "TFLOP/s");
  }
  for (const Case& one : bench.cases()) {
    const double seconds = SecondsOf(one, stream);
    const double rate = one.bytes / seconds;
    rows.push_back({{"name", one.name},
                    {"seconds", seconds},
                    {"bytes_per_second", rate},
                    {"share_of_copy", rate / copy_rate},
                    {"flops_per_second", one.flops / seconds}});
    if (as_json) continue;
    std::printf("%-44s %10.1f %9.0f %8.0f%% %9.1f\n", one.name.c_str(), seconds * 1e6, rate * 1e-9,
                100 * rate / copy_rate, one.flops / seconds * 1e-12);
  }
  if (as_json) {
    const nlohmann::json document = {{"device", device.name}, {"copy_bytes_per_second", copy_rate}, {"kernels", rows}};
    std::printf("%s\n", document.dump(1).c_str());
  }
  cudaStreamDestroy(stream);
  return 0;
}

}  // namespace

Bench::~Bench() {
  for (void* memory : memory_) cudaFree(memory);
}

void* Bench::Allocate(int64_t bytes) {
  void* memory = nullptr;
  Check(cudaMalloc(&memory, static_cast<size_t>(bytes)), "device memory");
  memory_.push_back(memory);
  return memory;
}

void* Bench::Upload(const void* from, int64_t bytes) {
  void* memory = Allocate(bytes);
  Check(cudaMemcpy(memory, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice), "a copy to the device");
  return memory;
}

void* Bench::Random(ElementType type, int64_t elements) {
  // A million values over and over: enough for no kernel to profit from them.
  constexpr int64_t kValues = int64_t{1} << 20;
  std::mt19937 generator(7);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<char> values(static_cast<size_t>(kValues * BytesOf(type)));
  for (int64_t i = 0; i < kValues; ++i) {
    const float value = uniform(generator);
    WithHostType(type, [&](auto tag) {
      const auto element = static_cast<decltype(tag)>(value);
      std::memcpy(values.data() + i * BytesOf(type), &element, sizeof(element));
    });
  }
  auto* memory = static_cast<char*>(Allocate(elements * BytesOf(type)));
  for (int64_t begin = 0; begin < elements; begin += kValues) {
    const int64_t bytes = std::min(kValues, elements - begin) * BytesOf(type);
    Check(cudaMemcpy(memory + begin * BytesOf(type), values.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
          "a copy to the device");
  }
  return memory;
}

}  // namespace longspan::kernels::bench

int main(int argc, char** argv) {
  const bool as_json = argc == 2 && std::string(argv[1]) == "--json";
  if (argc > 1 && !as_json) {
    std::fprintf(stderr, "usage: longspan-kernel-bench [--json]\n");
    return 2;
  }
  try {
    return longspan::kernels::bench::Run(as_json);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "longspan-kernel-bench: %s\n", error.what());
    return 1;
  }
}
