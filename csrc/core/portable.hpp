// What nvcc and a plain C++ compiler both need to compile the same function.
#pragma once

#if defined(__CUDACC__)
#define LASER_HOST_DEVICE __host__ __device__
#define LASER_NO_UNROLL _Pragma("unroll 1")
#else
#define LASER_HOST_DEVICE
#define LASER_NO_UNROLL
#endif
