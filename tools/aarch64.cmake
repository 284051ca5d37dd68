# Toolchain of tools/aarch64: the core for the CPUs of Jetson (Orin: Cortex-A78AE, armv8.2-a with fp16 and dot product),
# run on any machine by qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CXX_FLAGS_INIT "-march=armv8.2-a+fp16+dotprod -DMOSAIC_EMULATED")  # see tests/cpp/support/rounds.h
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
