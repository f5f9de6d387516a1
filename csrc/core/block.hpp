// The one view the core works on: a batch of equal-shaped matrices in memory that somebody else
// owns.
#pragma once
#include <cstdint>
#include <type_traits>

#include "core/portable.hpp"

namespace laser {

// Element (i, j) of matrix b is data[b * stride + i * row_stride + j * col_stride].
template <typename T>
struct Block {
  T* data;
  int64_t count, rows, cols;
  int64_t stride, row_stride, col_stride;

  // Dense row-major batch.
  LASER_HOST_DEVICE static Block dense(T* data, int64_t count, int64_t rows, int64_t cols) {
    return {data, count, rows, cols, rows * cols, cols, 1};
  }
  LASER_HOST_DEVICE Block transposed() const { return {data, count, cols, rows, stride, col_stride, row_stride}; }
  LASER_HOST_DEVICE Block matrix(int64_t b) const {
    return {data + b * stride, 1, rows, cols, stride, row_stride, col_stride};
  }
  LASER_HOST_DEVICE Block batch(int64_t first, int64_t n) const {
    return {data + first * stride, n, rows, cols, stride, row_stride, col_stride};
  }
  LASER_HOST_DEVICE Block columns(int64_t first, int64_t n) const { return corner(0, first, rows, n); }
  LASER_HOST_DEVICE Block first_columns(int64_t n) const { return columns(0, n); }
  // The m x n part that begins at (i, j).
  LASER_HOST_DEVICE Block corner(int64_t i, int64_t j, int64_t m, int64_t n) const {
    return {data + i * row_stride + j * col_stride, count, m, n, stride, row_stride, col_stride};
  }
  LASER_HOST_DEVICE T& at(int64_t b, int64_t i, int64_t j) const {
    return data[b * stride + i * row_stride + j * col_stride];
  }
  // A view to read from. (A template so that Block<const T> does not convert to itself.)
  template <typename U, typename = std::enable_if_t<std::is_same_v<U, const T> && !std::is_const_v<T>>>
  LASER_HOST_DEVICE operator Block<U>() const {
    return {data, count, rows, cols, stride, row_stride, col_stride};
  }
};

}  // namespace laser
