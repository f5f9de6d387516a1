#include "emu/emu.hpp"

#include <algorithm>
#include <cstdlib>
#include <random>

namespace emu {
namespace {

constexpr size_t kStack = 64 << 10;

enum class State : uint8_t { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  State state;
  void* stack_pointer;
  dim3 index;
  uint64_t given;  // what a shuffle hands to the other lanes
};

struct Machine {
  dim3 grid, block, at;
  std::vector<Fiber> fibers;
  std::vector<char> stacks, shared;
  const std::function<void()>* body = nullptr;
  void* scheduler = nullptr;
  int running = 0;
};

Machine machine;
bool busy = false;

// Pushes what the ABI lets a callee rely on, stores the stack pointer in *save and continues on the stack `to`. noipa:
// the compiler must not conclude from this body which registers survive a call.
__attribute__((naked, noipa)) void switch_stack(void** /* save: rdi */, void* /* to: rsi */) {
  asm volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
      "ret\n");
}

void stop_in(State state) {
  Fiber& self = machine.fibers[machine.running];
  self.state = state;
  switch_stack(&self.stack_pointer, machine.scheduler);
}

void fiber_main() {
  (*machine.body)();
  stop_in(State::kDone);
  std::abort();  // never resumed
}

// A stack on which switch_stack can start fiber_main: six registers, the entry point, an empty return address.
void* fresh_stack(char* end) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(end) & ~uintptr_t(15));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) {
    *--top = nullptr;
  }
  return top;
}

// Until every lane waits at a block barrier or is done.
void run_warp(int first, int last) {
  for (;;) {
    for (int i = first; i < last; ++i) {
      const int thread = policy().order == 1 ? last - 1 - (i - first) : i;
      if (machine.fibers[thread].state == State::kReady) {
        machine.running = thread;
        switch_stack(&machine.scheduler, machine.fibers[thread].stack_pointer);
      }
    }
    int collective = 0, done = 0;
    for (int i = first; i < last; ++i) {
      collective += machine.fibers[i].state == State::kAtWarpBarrier;
      done += machine.fibers[i].state == State::kDone;
    }
    if (collective == 0) {
      return;
    }
    if (collective + done != last - first) {
      throw std::runtime_error("emu: a warp collective that some live lanes do not reach");
    }
    for (int i = first; i < last; ++i) {
      Fiber& f = machine.fibers[i];
      f.state = f.state == State::kAtWarpBarrier ? State::kReady : f.state;
    }
  }
}

void run_block(std::vector<int>& warps, std::mt19937& random) {
  const int threads = int(machine.fibers.size());
  for (;;) {
    if (policy().order > 1) {
      std::shuffle(warps.begin(), warps.end(), random);
    }
    for (int w : warps) {
      run_warp(w * kWarp, std::min(threads, (w + 1) * kWarp));
    }
    bool live = false;
    for (Fiber& f : machine.fibers) {
      live = live || f.state != State::kDone;
      f.state = f.state == State::kAtBlockBarrier ? State::kReady : f.state;
    }
    if (!live) {
      return;
    }
  }
}

}  // namespace

Policy& policy() {
  static Policy p;
  return p;
}

const dim3& thread_index() { return machine.fibers[machine.running].index; }
const dim3& block_index() { return machine.at; }
const dim3& block_size() { return machine.block; }
const dim3& grid_size() { return machine.grid; }
int lane() { return machine.running % kWarp; }
int warp() { return machine.running / kWarp; }

void* dynamic_shared() {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(machine.shared.data()) + 127) & ~uintptr_t(127));
}

void block_barrier() {
  if (!policy().drop_barriers) {
    stop_in(State::kAtBlockBarrier);
  }
}

void warp_barrier() { stop_in(State::kAtWarpBarrier); }

uint64_t exchange(uint64_t value, int source) {
  const int base = machine.running - lane();
  machine.fibers[machine.running].given = value;
  warp_barrier();  // all have given
  const int other = std::min(base + source, int(machine.fibers.size()) - 1);
  const uint64_t taken = machine.fibers[other].given;
  warp_barrier();  // all have taken
  return taken;
}

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  if (busy) {
    throw std::runtime_error("emu: a kernel launched from a kernel");
  }
  const int threads = int(block.x * block.y * block.z);
  if (threads < 1 || threads > kWarp * kMaxWarps || grid.y > 65535 || grid.z > 65535 || grid.x * grid.y * grid.z == 0) {
    throw std::runtime_error("emu: a launch that no device takes");
  }
  struct Busy {
    Busy() { busy = true; }
    ~Busy() { busy = false; }
  } guard;
  ++policy().launches;
  machine.grid = grid;
  machine.block = block;
  machine.body = &body;
  machine.fibers.assign(threads, Fiber{});
  machine.stacks.resize(std::max(machine.stacks.size(), kStack * threads));
  machine.shared.assign(shared_bytes + 128, 0);  // exactly what was asked for, so that ASan sees an overrun
  machine.shared.shrink_to_fit();
  std::vector<int> warps((threads + kWarp - 1) / kWarp);
  for (size_t i = 0; i < warps.size(); ++i) {
    warps[i] = policy().order == 1 ? int(warps.size() - 1 - i) : int(i);
  }
  std::mt19937 random(policy().order);
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = policy().order == 1 ? blocks.size() - 1 - i : i;
  }
  if (policy().order > 1) {
    std::shuffle(blocks.begin(), blocks.end(), random);
  }
  for (uint64_t i : blocks) {
    machine.at = dim3(unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y));
    std::memset(machine.shared.data(), 0xCD, machine.shared.size());  // shared memory starts as rubbish
    for (int t = 0; t < threads; ++t) {
      Fiber& f = machine.fibers[t];
      f = {State::kReady, fresh_stack(machine.stacks.data() + kStack * (t + 1)),
           dim3(t % block.x, t / block.x % block.y, t / (block.x * block.y)), 0};
    }
    run_block(warps, random);
  }
}

}  // namespace emu
