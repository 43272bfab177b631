# CUDA without CMake's own language support, which wants a whole toolkit in one place: nvcc comes from the Python wheel or
# from a toolkit, the run-time library is the one that LibTorch brings.
#
#   longspan_cuda_sources(TARGET a.cu b.cu)   compiles them for every architecture into TARGET
#   longspan_use_cuda(TARGET)                 lets its C++ sources call CUDA; they see LONGSPAN_CUDA
file(GLOB candidates "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc")
find_program(LONGSPAN_NVCC nvcc HINTS ${candidates} PATHS /usr/local/cuda/bin)
if(candidates)
  list(GET candidates 0 LONGSPAN_NVCC)
endif()
if(NOT LONGSPAN_NVCC)
  message(FATAL_ERROR "no nvcc: run deploy/setup.sh --cuda, or put that of CUDA 13 on PATH")
endif()
file(GLOB cuda_packages "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13")
if(NOT cuda_packages)
  message(FATAL_ERROR "no CUDA run-time library in ${CMAKE_SOURCE_DIR}/.venv: run deploy/setup.sh --cuda")
endif()
list(GET cuda_packages 0 cuda_root)
set(cuda_include "${cuda_root}/include")
set(cuda_lib "${cuda_root}/lib")
get_filename_component(nvidia_root "${cuda_root}" DIRECTORY)
set(nccl_include "${nvidia_root}/nccl/include")

set(LONGSPAN_CUDA_ARCHITECTURES "80;90;100" CACHE STRING "Compute capabilities to compile for, without the dot")
set(LONGSPAN_NVCC_FLAGS -std=c++20 -O3 -lineinfo --expt-relaxed-constexpr -Werror all-warnings -Xcompiler=-Wall,-fPIC,-O2
    -ccbin "${CMAKE_CXX_COMPILER}" -I "${CMAKE_SOURCE_DIR}")
foreach(architecture IN LISTS LONGSPAN_CUDA_ARCHITECTURES)
  list(APPEND LONGSPAN_NVCC_FLAGS -gencode "arch=compute_${architecture},code=sm_${architecture}")
endforeach()
# What runs on chips that came later.
list(GET LONGSPAN_CUDA_ARCHITECTURES -1 newest)
list(APPEND LONGSPAN_NVCC_FLAGS -gencode "arch=compute_${newest},code=compute_${newest}")

# What a target of host code needs to call CUDA, and LONGSPAN_CUDA. Neither reaches the targets that use it, whose objects are then
# the same as in a build without CUDA.
function(longspan_use_cuda target)
  target_include_directories(${target} SYSTEM PRIVATE "${cuda_include}")
  target_compile_definitions(${target} PRIVATE LONGSPAN_CUDA)
  target_link_libraries(${target} PUBLIC "${cuda_lib}/libcudart.so.13")
  target_link_options(${target} PUBLIC -Wl,--disable-new-dtags "-Wl,-rpath,${cuda_lib}")
endfunction()

function(longspan_cuda_sources target)
  foreach(source IN LISTS ARGN)
    set(path "${CMAKE_CURRENT_SOURCE_DIR}/${source}")
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${source}.o")
    get_filename_component(folder "${object}" DIRECTORY)
    file(MAKE_DIRECTORY "${folder}")
    set(launcher "")
    if(LONGSPAN_CCACHE)
      set(launcher "${LONGSPAN_CCACHE}")
    endif()
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${launcher} "${LONGSPAN_NVCC}" ${LONGSPAN_NVCC_FLAGS} -MD -MF "${object}.d" -c "${path}" -o "${object}"
      DEPENDS "${path}"
      DEPFILE "${object}.d"
      COMMENT "Compiling ${source} for sm_${LONGSPAN_CUDA_ARCHITECTURES}"
      VERBATIM)
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(${target} PRIVATE "${object}")
  endforeach()
  longspan_use_cuda(${target})
endfunction()
