# The CUDA backend of mosaic_core. SASS for every GPU named in the README, PTX for what comes after it in each family;
# CMAKE_CUDA_ARCHITECTURES=87 (or native) makes a build for one board short.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 86-real 87-real 89-real 90)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE nvcc_codes ERROR_QUIET)
  if(nvcc_codes MATCHES "sm_110")  # Thor: CUDA 13 and later
    list(APPEND CMAKE_CUDA_ARCHITECTURES 110)
  endif()
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # one module imports with and without a GPU
if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know that nvcc 12 speaks C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
find_package(CUDAToolkit REQUIRED)

target_compile_options(mosaic_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra>"
  "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${MOSAIC_WERROR}>>:-Werror=all-warnings>")
# The bytes of a page are those of the CPU backend: no a * b + c in one rounding where codes are made.
foreach(source pages stage)
  set_source_files_properties(${PROJECT_SOURCE_DIR}/cpp/backend/cuda/${source}.cu PROPERTIES COMPILE_OPTIONS -fmad=false)
endforeach()
# What `doctor` compares with the GPU that is there, without touching it.
string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
set_source_files_properties(${PROJECT_SOURCE_DIR}/cpp/backend/cuda/cuda_device.cu PROPERTIES
  COMPILE_DEFINITIONS "MOSAIC_CUDA_ARCHITECTURES=\"${architectures}\"")
list(FILTER MOSAIC_CORE_SOURCES EXCLUDE REGEX "/backend/cuda/(absent|simt_cpu)\\.cc$")
list(APPEND MOSAIC_CORE_SOURCES ${MOSAIC_CUDA_SOURCES})
set_source_files_properties(${MOSAIC_CUDA_SOURCES} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)  # MOSAIC_ONE_SHOT is for C++
