# Targets of this project: one library per folder, an alias in the longspan:: namespace, its own list of dependencies.
#
#   longspan_library(NAME core SOURCES a.cc b.cc DEPENDS longspan::ids absl::status)      -> target longspan_core, longspan::core
#     CUDA a.cu: compiled into it where LONGSPAN_CUDA is on
#   longspan_program(NAME longspan-server SOURCES main.cc DEPENDS ...)                    -> bin/longspan-server
#   longspan_fuzzer(NAME safetensors_fuzzer SOURCES ... DEPENDS ...)                      -> libFuzzer program, preset fuzz
#   longspan_test(NAME core_test SOURCES core_test.cc DEPENDS ... [TIMEOUT s] [LABELS l]) -> one CTest entry per program
#
# TORCH marks a target that includes ATen: it gets LibTorch and shares one precompiled ATen header with its like.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()
# Line tables only: full debug information of LibTorch and gRPC headers makes objects ten times as large.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")
if(LONGSPAN_SANITIZER)
  # Instrumented code takes the optimizer several times as long, and its stacks read better without it.
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")
endif()

find_program(LONGSPAN_CCACHE ccache)
if(LONGSPAN_CCACHE)
  # Precompiled headers need the sloppiness (ccache's manual, "Precompiled headers"); paths relative to the build folder let two
  # clones share one cache.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=/ CCACHE_NOHASHDIR=1 "${LONGSPAN_CCACHE}")
endif()

add_library(longspan_options INTERFACE)
target_include_directories(longspan_options INTERFACE "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/generated")
target_compile_options(longspan_options INTERFACE -Wall -Wextra -Wno-unused-parameter -fno-omit-frame-pointer)
find_program(LONGSPAN_MOLD mold)
if(LONGSPAN_MOLD)
  target_link_options(longspan_options INTERFACE -fuse-ld=mold)
endif()
if(LONGSPAN_SANITIZER STREQUAL "address")
  target_compile_options(longspan_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined)
  target_link_options(longspan_options INTERFACE -fsanitize=address,undefined)
elseif(LONGSPAN_SANITIZER STREQUAL "thread")
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "LONGSPAN_SANITIZER=thread needs clang: g++ cannot leave gRPC's headers out (deploy/ci/tsan.ignore)")
  endif()
  set(LONGSPAN_TSAN_FLAGS -fsanitize=thread "-fsanitize-ignorelist=${CMAKE_SOURCE_DIR}/deploy/ci/tsan.ignore")
  target_compile_options(longspan_options INTERFACE ${LONGSPAN_TSAN_FLAGS} -Werror=thread-safety)
  target_link_options(longspan_options INTERFACE -fsanitize=thread)
elseif(NOT LONGSPAN_SANITIZER STREQUAL "")
  message(FATAL_ERROR "LONGSPAN_SANITIZER is '${LONGSPAN_SANITIZER}'; use address, thread or nothing")
endif()

if(LONGSPAN_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "LONGSPAN_FUZZ needs clang, which has libFuzzer")
  endif()
  target_compile_options(longspan_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(OpenSSL REQUIRED)
if(LONGSPAN_SERVICE)
  include(LongspanGrpc)
endif()
if(LONGSPAN_TRAINER)
  include(LongspanTorch)
endif()
if(LONGSPAN_CUDA)
  include(LongspanCuda)
endif()

function(longspan_configure_target target torch)
  target_link_libraries(${target} PRIVATE longspan_options)
  if(torch)
    target_link_libraries(${target} PUBLIC longspan::torch)
    if(NOT target STREQUAL "longspan_torch_pch")
      target_precompile_headers(${target} REUSE_FROM longspan_torch_pch)
    endif()
  endif()
endfunction()

function(longspan_library)
  cmake_parse_arguments(A "TORCH" "NAME" "SOURCES;DEPENDS;CUDA" ${ARGN})
  set(target longspan_${A_NAME})
  if(A_SOURCES)
    add_library(${target} STATIC ${A_SOURCES})
    target_link_libraries(${target} PUBLIC ${A_DEPENDS})
    longspan_configure_target(${target} "${A_TORCH}")
    if(LONGSPAN_CUDA AND A_CUDA)
      longspan_cuda_sources(${target} ${A_CUDA})
    endif()
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE ${A_DEPENDS} longspan_options)
  endif()
  add_library(longspan::${A_NAME} ALIAS ${target})
endfunction()

function(longspan_program)
  cmake_parse_arguments(A "TORCH" "NAME" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${A_NAME} ${A_SOURCES})
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPENDS})
  longspan_configure_target(${A_NAME} "${A_TORCH}")
endfunction()

# A libFuzzer program. Only with LONGSPAN_FUZZ.
function(longspan_fuzzer)
  cmake_parse_arguments(A "TORCH" "NAME" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${A_NAME} ${A_SOURCES})
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPENDS})
  target_link_options(${A_NAME} PRIVATE -fsanitize=fuzzer)
  longspan_configure_target(${A_NAME} "${A_TORCH}")
endfunction()

# A test program of GoogleTest cases; one CTest entry, on one thread of LibTorch unless it asks for more: two tests run at once. Programs that it starts belong in PROGRAMS, so that building the test
# builds them. Paths reach it through the environment (tests/test_paths.h), so that its objects do not depend on where the
# clone lies.
function(longspan_test)
  cmake_parse_arguments(A "TORCH" "NAME;TIMEOUT" "SOURCES;DEPENDS;LABELS;PROGRAMS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  add_executable(${A_NAME} ${A_SOURCES})
  set_target_properties(${A_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPENDS} GTest::gmock GTest::gtest GTest::gtest_main)
  longspan_configure_target(${A_NAME} "${A_TORCH}")
  if(A_PROGRAMS)
    add_dependencies(${A_NAME} ${A_PROGRAMS})
  endif()
  add_test(NAME ${A_NAME} COMMAND ${A_NAME})
  set_tests_properties(${A_NAME} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}"
                       ENVIRONMENT "OMP_NUM_THREADS=1;LONGSPAN_SOURCE_DIR=${CMAKE_SOURCE_DIR};LONGSPAN_BIN_DIR=${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
endfunction()
