# gRPC and protobuf of the distribution, and code generation for proto/.
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_program(LONGSPAN_GRPC_PLUGIN grpc_cpp_plugin REQUIRED)

# Generates the C++ of .proto files, given relative to ROOT (default: proto/), and makes a library of it. Includes read as
# the import paths do: "longspan/v1/job.pb.h".
function(longspan_proto_library)
  cmake_parse_arguments(A "" "NAME;ROOT" "PROTOS;GRPC_PROTOS;DEPENDS" ${ARGN})
  if(NOT A_ROOT)
    set(A_ROOT "${CMAKE_SOURCE_DIR}/proto")
  endif()
  set(out "${CMAKE_BINARY_DIR}/generated")
  file(MAKE_DIRECTORY "${out}")
  set(all_protos ${A_PROTOS} ${A_GRPC_PROTOS})
  list(TRANSFORM all_protos PREPEND "${A_ROOT}/" OUTPUT_VARIABLE all_paths)
  set(generated "")
  foreach(proto IN LISTS all_protos)
    string(REGEX REPLACE "\\.proto$" "" stem "${proto}")
    set(files "${out}/${stem}.pb.cc" "${out}/${stem}.pb.h")
    set(plugin "")
    if(proto IN_LIST A_GRPC_PROTOS)
      list(APPEND files "${out}/${stem}.grpc.pb.cc" "${out}/${stem}.grpc.pb.h")
      set(plugin --grpc_out=${out} --plugin=protoc-gen-grpc=${LONGSPAN_GRPC_PLUGIN})
    endif()
    add_custom_command(
      OUTPUT ${files}
      COMMAND protobuf::protoc --cpp_out=${out} ${plugin}
              -I ${A_ROOT} -I ${CMAKE_SOURCE_DIR}/proto -I ${CMAKE_SOURCE_DIR}/proto/third_party ${A_ROOT}/${proto}
      DEPENDS ${all_paths}
      VERBATIM)
    list(APPEND generated ${files})
  endforeach()
  add_library(longspan_${A_NAME} STATIC ${generated})
  add_library(longspan::${A_NAME} ALIAS longspan_${A_NAME})
  target_include_directories(longspan_${A_NAME} SYSTEM PUBLIC "${out}")
  target_link_libraries(longspan_${A_NAME} PUBLIC ${A_DEPENDS} gRPC::grpc++ protobuf::libprotobuf)
  # Generated code is not ours to warn about.
  target_compile_options(longspan_${A_NAME} PRIVATE -w)
  if(LONGSPAN_SANITIZER STREQUAL "address")
    target_compile_options(longspan_${A_NAME} PRIVATE -fsanitize=address,undefined)
  elseif(LONGSPAN_SANITIZER STREQUAL "thread")
    target_compile_options(longspan_${A_NAME} PRIVATE ${LONGSPAN_TSAN_FLAGS})
  endif()
endfunction()
