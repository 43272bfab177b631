// A driver library with two GPUs, of which the second cannot tell its power. FAKE_NVML_FAILS names a call that fails.
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kUnknownError = 999;
int devices[2] = {0, 1};

int Result(const char* call) {
  const char* const failing = std::getenv("FAKE_NVML_FAILS");
  return failing != nullptr && std::strcmp(failing, call) == 0 ? kUnknownError : 0;
}
int IndexOf(void* device) { return *static_cast<int*>(device); }

}  // namespace

extern "C" {

struct MemoryInfo {
  unsigned long long total, free, used;
};
struct UtilizationRates {
  unsigned gpu, memory;
};

int nvmlInit_v2() { return Result("nvmlInit"); }
int nvmlShutdown() { return 0; }
const char* nvmlErrorString(int result) { return result == 0 ? "Success" : "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 2;
  return Result("nvmlDeviceGetCount");
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = &devices[index];
  return Result("nvmlDeviceGetHandleByIndex");
}
int nvmlDeviceGetName(void*, char* name, unsigned length) {
  std::snprintf(name, length, "NVIDIA H200");
  return Result("nvmlDeviceGetName");
}
int nvmlDeviceGetUUID(void* device, char* uuid, unsigned length) {
  std::snprintf(uuid, length, "GPU-%d0000000-1111-2222-3333-444444444444", IndexOf(device));
  return Result("nvmlDeviceGetUUID");
}
int nvmlDeviceGetMemoryInfo(void* device, MemoryInfo* memory) {
  *memory = {150754820096ull, 140000000000ull, 10754820096ull + static_cast<unsigned long long>(IndexOf(device))};
  return Result("nvmlDeviceGetMemoryInfo");
}
int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  *major = 9;
  *minor = 0;
  return Result("nvmlDeviceGetCudaComputeCapability");
}
int nvmlDeviceGetUtilizationRates(void* device, UtilizationRates* rates) {
  *rates = {IndexOf(device) == 0 ? 97u : 3u, 50u};
  return 0;
}
int nvmlDeviceGetTemperature(void*, unsigned, unsigned* degrees) {
  *degrees = 61;
  return 0;
}
int nvmlDeviceGetPowerUsage(void* device, unsigned* milliwatts) {
  *milliwatts = 512300;
  return IndexOf(device) == 0 ? 0 : kUnknownError;
}

}  // extern "C"
