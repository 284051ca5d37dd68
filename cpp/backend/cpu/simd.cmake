# One object of simd_ops.cc per instruction set; cpu_ops.cc picks one at run time. The first is the architecture's
# baseline and needs no flags; MOSAIC_SIMD_SETS leaves others out of a build that is for one machine. Contraction (a * b + c as one instruction) is what makes the kernels fast: keep it on.
set(simd_source ${PROJECT_SOURCE_DIR}/cpp/backend/cpu/simd_ops.cc)
list(REMOVE_ITEM MOSAIC_CORE_SOURCES ${simd_source})

set(simd_flags_sse2)
set(simd_flags_neon)
set(simd_flags_avx2 -mavx2 -mfma -mf16c)
set(simd_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
set(simd_flags_avx512bf16 ${simd_flags_avx512} -mavx512bf16)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(simd_sets sse2 avx2 avx512 avx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(simd_sets neon)
else()
  message(FATAL_ERROR "mosaic_edge has CPU kernels for x86-64 and aarch64, not for ${CMAKE_SYSTEM_PROCESSOR}.")
endif()

foreach(name IN LISTS simd_sets)
  if(MOSAIC_SIMD_SETS AND NOT name IN_LIST MOSAIC_SIMD_SETS)
    string(TOUPPER "MOSAIC_WITHOUT_${name}" without)
    set_property(SOURCE ${PROJECT_SOURCE_DIR}/cpp/backend/cpu/cpu_ops.cc APPEND PROPERTY COMPILE_DEFINITIONS ${without})
    continue()
  endif()
  add_library(mosaic_simd_${name} OBJECT ${simd_source})
  target_link_libraries(mosaic_simd_${name} PRIVATE mosaic_options)
  target_compile_definitions(mosaic_simd_${name} PRIVATE MOSAIC_SIMD=${name})
  # GCC 12 warns inside its own AVX-512 header (_mm512_undefined), and that vectors have no ABI without the flags.
  target_compile_options(mosaic_simd_${name} PRIVATE ${simd_flags_${name}} -ffp-contract=fast -fno-math-errno
                         -Wno-maybe-uninitialized -Wno-psabi)
  if(MOSAIC_SANITIZE) # ends of scopes are looked at in all other files: in unrolled loops they are most of the time to compile
    target_compile_options(mosaic_simd_${name} PRIVATE -fno-sanitize-address-use-after-scope)
  endif()
  list(APPEND MOSAIC_CORE_SOURCES $<TARGET_OBJECTS:mosaic_simd_${name}>)
endforeach()
