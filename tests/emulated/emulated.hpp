// The C interface through which pytest (tests/emulator.py) reaches csrc/cuda as compiled for the emulator.
#pragma once
#include <cstdio>
#include <exception>

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))

// Runs f() and answers 0, or 1 with the reason on stderr.
template <typename F>
int guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
