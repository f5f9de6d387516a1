// What nvcc and a plain C++ compiler both need to compile the same function.
#pragma once

#if defined(__CUDACC__)
#define LASER_HOST_DEVICE __host__ __device__
#else
#define LASER_HOST_DEVICE
#endif
