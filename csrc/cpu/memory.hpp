// Working memory that a thread keeps from one call to the next: at these sizes the system takes longer to hand out
// fresh pages than a product takes to fill them (DEVNOTES.md, "CPU schedule").
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace laser::cpu {

// Bytes that a thread keeps at most, and all threads of the process together.
constexpr size_t kKept = size_t{32} << 20;
constexpr size_t kKeptByAll = size_t{256} << 20;

// Blocks of this size and above begin at multiples of it, where Linux can map them as huge pages.
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kCacheLine = 64;

struct Piece {
  void* data = nullptr;
  size_t bytes = 0;
};

// What one thread has given back and not taken again, oldest first.
class Pool {
 public:
  static Pool& of_this_thread() {
    thread_local Pool pool;
    return pool;
  }

  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() { release(); }

  // The smallest piece that is large enough, else a new one.
  Piece take(size_t bytes) {
    size_t best = kept_.size();
    for (size_t i = 0; i < kept_.size(); ++i) {
      if (kept_[i].bytes >= bytes && (best == kept_.size() || kept_[i].bytes < kept_[best].bytes)) {
        best = i;
      }
    }
    if (best < kept_.size()) {
      return remove(best);
    }
    Piece piece = allocate(bytes);
    if (piece.data == nullptr) {
      release();
      piece = allocate(bytes);
    }
    if (piece.data == nullptr) {
      throw std::bad_alloc();
    }
    return piece;
  }

  void give(Piece piece) noexcept {
    while (piece.bytes <= kKept && total_ + piece.bytes > kKept) {
      std::free(remove(0).data);
    }
    if (piece.bytes > kKept || kept_by_all().load() + piece.bytes > kKeptByAll) {
      std::free(piece.data);
      return;
    }
    try {
      kept_.push_back(piece);
    } catch (const std::bad_alloc&) {
      std::free(piece.data);
      return;
    }
    total_ += piece.bytes;
    kept_by_all() += piece.bytes;
  }

 private:
  std::vector<Piece> kept_;
  size_t total_ = 0;

  static std::atomic<size_t>& kept_by_all() {
    static std::atomic<size_t> bytes{0};
    return bytes;
  }

  Piece remove(size_t i) {
    const Piece piece = kept_[i];
    kept_.erase(kept_.begin() + std::ptrdiff_t(i));
    total_ -= piece.bytes;
    kept_by_all() -= piece.bytes;
    return piece;
  }

  void release() {
    while (!kept_.empty()) {
      std::free(remove(kept_.size() - 1).data);
    }
  }

  // data is null where the system has none.
  static Piece allocate(size_t bytes) {
    const size_t unit = bytes >= kHugePage ? kHugePage : kCacheLine;
    const size_t rounded = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    void* data = nullptr;
    if (posix_memalign(&data, unit, rounded) != 0) {
      return {};
    }
#if defined(__linux__)
    if (unit == kHugePage) {
      madvise(data, rounded / kHugePage * kHugePage, MADV_HUGEPAGE);  // a wish: nothing is lost where it is refused
    }
#endif
    return {data, rounded};
  }
};

// Room for n of T, uninitialised, until the end of the scope.
template <typename T>
class Memory {
 public:
  explicit Memory(int64_t n) : piece_(n > 0 ? Pool::of_this_thread().take(size_t(n) * sizeof(T)) : Piece{}) {}
  Memory(Memory&& other) noexcept : piece_(std::exchange(other.piece_, {})) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(piece_, other.piece_);
    return *this;
  }
  ~Memory() {
    if (piece_.data != nullptr) {
      Pool::of_this_thread().give(piece_);
    }
  }
  T* get() const { return static_cast<T*>(piece_.data); }

 private:
  Piece piece_;
};

}  // namespace laser::cpu
