# LibTorch from the Python wheel, as plain imported targets: find_package(Torch) of the wheel wants a whole CUDA toolkit.
if(NOT LONGSPAN_TORCH_ROOT)
  file(GLOB candidates "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
  if(NOT candidates)
    message(FATAL_ERROR "no LibTorch in ${CMAKE_SOURCE_DIR}/.venv: run deploy/setup.sh, give -DLONGSPAN_TORCH_ROOT=<site-packages>/torch, "
                        "or build without the trainer (-DLONGSPAN_TRAINER=OFF)")
  endif()
  list(GET candidates 0 root)
  set(LONGSPAN_TORCH_ROOT "${root}" CACHE PATH "" FORCE)
endif()
set(torch_lib "${LONGSPAN_TORCH_ROOT}/lib")
get_filename_component(site_packages "${LONGSPAN_TORCH_ROOT}" DIRECTORY)
set(cuda_lib "${site_packages}/nvidia/cu13/lib")

# The wheel's include folder also carries fmt, nlohmann and more of other versions than the distribution's, which we link: only
# LibTorch's own headers are taken from it.
set(torch_include "${CMAKE_BINARY_DIR}/torch_include")
file(MAKE_DIRECTORY "${torch_include}")
foreach(folder ATen c10 caffe2 torch)
  file(CREATE_LINK "${LONGSPAN_TORCH_ROOT}/include/${folder}" "${torch_include}/${folder}" SYMBOLIC)
endforeach()

add_library(longspan_torch INTERFACE)
add_library(longspan::torch ALIAS longspan_torch)
target_include_directories(longspan_torch SYSTEM INTERFACE "${torch_include}"
                           "${LONGSPAN_TORCH_ROOT}/include/torch/csrc/api/include")
target_link_libraries(longspan_torch INTERFACE "${torch_lib}/libtorch_cpu.so" "${torch_lib}/libc10.so" Threads::Threads)
target_link_options(longspan_torch INTERFACE -Wl,--disable-new-dtags -Wl,--allow-shlib-undefined
                    "-Wl,-rpath,${torch_lib}:${cuda_lib}")
# The backends of torch.distributed; the headers of gloo come from libgloo-dev, its code is inside libtorch_cpu.
target_compile_definitions(longspan_torch INTERFACE USE_C10D_GLOO)

# One precompiled ATen for every target that uses it.
file(WRITE "${CMAKE_BINARY_DIR}/generated/longspan_torch_pch.cc" "")
add_library(longspan_torch_pch STATIC "${CMAKE_BINARY_DIR}/generated/longspan_torch_pch.cc")
target_link_libraries(longspan_torch_pch PRIVATE longspan_options)
target_link_libraries(longspan_torch_pch PUBLIC longspan_torch)
target_precompile_headers(longspan_torch_pch PRIVATE <ATen/ATen.h> <string> <vector> <map> <memory> <nlohmann/json.hpp>)

# LibTorch's part for GPUs. Nobody calls it by name, so the linker must not leave it out.
if(LONGSPAN_CUDA)
  add_library(longspan_torch_cuda INTERFACE)
  add_library(longspan::torch_cuda ALIAS longspan_torch_cuda)
  target_link_options(longspan_torch_cuda INTERFACE -Wl,--no-as-needed)
  target_link_libraries(longspan_torch_cuda INTERFACE "${torch_lib}/libtorch_cuda.so" "${torch_lib}/libc10_cuda.so")
endif()
