# Toolchain of tools/wheels: compiled by GCC, for MOSAIC_WHEEL_ARCH; linked by zig against the symbols of glibc 2.28, with
# libstdc++ and libgcc inside (zig has a __cpu_model of its own, which is not GCC's), so that the module loads on any Linux from
# 2018 on (manylinux_2_28). MOSAIC_WHEEL_ZIG and MOSAIC_WHEEL_PARTS, a folder, come from the script too: CMake tries compilers in
# projects of their own, which see the environment.
set(arch $ENV{MOSAIC_WHEEL_ARCH})
set(parts $ENV{MOSAIC_WHEEL_PARTS})
if(NOT CMAKE_HOST_SYSTEM_PROCESSOR STREQUAL arch)
  set(CMAKE_SYSTEM_NAME Linux)
  set(CMAKE_SYSTEM_PROCESSOR ${arch})
  set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
  set(CMAKE_CXX_COMPILER ${arch}-linux-gnu-g++)
else()
  set(CMAKE_CXX_COMPILER c++)  # GCC: its libstdc++.a is linked
endif()
foreach(library libstdc++.a libgcc_eh.a libgcc.a)
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${library} OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE)
  list(APPEND static ${path})
endforeach()
list(JOIN static " " static)
set(CMAKE_CXX_CREATE_SHARED_MODULE
    "$ENV{MOSAIC_WHEEL_ZIG} cc -target ${arch}-linux-gnu.2.28 -shared -s -Wl,--version-script=${parts}/exports -o <TARGET> <OBJECTS> <LINK_LIBRARIES> ${parts}/newer_glibc.o ${static} -lm -lpthread")
