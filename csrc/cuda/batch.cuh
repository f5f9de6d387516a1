// What kernels over the selected matrices of a batch share.
#pragma once
#include "core/block.hpp"
#include "cuda/portable.cuh"
#include "cuda/selection.hpp"
