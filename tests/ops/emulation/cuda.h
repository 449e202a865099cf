// An emulated GPU for tests: runs CUDA kernels on the CPU, thread by thread.
//
// Each CUDA thread is a fibre with its own stack; blocks run one after the other. A fibre runs until it reaches a barrier
// or a shuffle, and continues when all threads it waits for have reached it. Code that skips one, or reaches it in only
// some lanes, hangs on a GPU and is an error here. Threads run in rising or falling order (`backwards`), so a missing
// barrier gives different results. The emulation cannot show speed, the device's own exp2, or memory ordering between
// threads without a barrier.
#pragma once
#include <cuda_runtime.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#undef __shared__
#define __shared__ static  // blocks run one at a time
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 * 1024;

enum class Waits { nothing, shuffle, barrier, done };

struct Thread {
  ucontext_t context;
  uint3 index{};
  Waits waits = Waits::nothing;
  uint64_t given[2];    // values of the last two shuffles: a lane may be at the next one while another still reads
  unsigned shuffles = 0;
};

struct Block {
  std::vector<Thread> threads;
  std::unique_ptr<char[]> stacks;
  uint3 index{};
  unsigned blocks = 0;
  ucontext_t scheduler;
  Thread* running = nullptr;
  std::function<void()> kernel;
};

inline Block* block = nullptr;
inline bool backwards = false;

inline void wait_for(Waits what) {
  block->running->waits = what;
  swapcontext(&block->running->context, &block->scheduler);
}

inline void enter() {
  block->kernel();
  block->running->waits = Waits::done;
  swapcontext(&block->running->context, &block->scheduler);
}

template <class Each>
void in_order(unsigned first, unsigned last, Each each) {
  for (unsigned i = first; i < last; ++i) each(backwards ? first + last - 1 - i : i);
}

// Whether all threads of [first, last) wait for `what`. It is an error if only some do.
inline bool all_wait(Waits what, unsigned first, unsigned last, const char* name) {
  unsigned waiting = 0;
  for (unsigned i = first; i < last; ++i) waiting += block->threads[i].waits == what;
  if (waiting != 0 && waiting != last - first)
    throw std::runtime_error(std::string(name) + " reached by " + std::to_string(waiting) + " of " +
                             std::to_string(last - first) + " threads");
  return waiting != 0;
}

inline void run_block(unsigned threads) {
  while (true) {
    in_order(0, threads / kWarp, [&](unsigned warp) {
      const unsigned first = warp * kWarp, last = first + kWarp;
      while (true) {  // until the warp reaches a barrier or the end
        in_order(first, last, [&](unsigned i) {
          Thread& thread = block->threads[i];
          if (thread.waits != Waits::nothing) return;
          block->running = &thread;
          swapcontext(&block->scheduler, &thread.context);
        });
        if (!all_wait(Waits::shuffle, first, last, "a shuffle of the whole warp")) break;
        for (unsigned i = first; i < last; ++i) block->threads[i].waits = Waits::nothing;
      }
    });
    if (!all_wait(Waits::barrier, 0, threads, "__syncthreads")) return;  // all threads are at the end
    for (Thread& thread : block->threads) thread.waits = Waits::nothing;
  }
}

template <class Kernel>
auto launch(Kernel kernel, unsigned blocks, unsigned threads) {
  return [=](auto... arguments) {
    for (unsigned b = 0; b < blocks; ++b) {
      Block current;
      block = &current;
      current.threads.resize(threads);
      current.stacks = std::make_unique_for_overwrite<char[]>(threads * kStack);
      current.index = {b, 0, 0}, current.blocks = blocks;
      current.kernel = [=] { kernel(arguments...); };
      for (unsigned i = 0; i < threads; ++i) {
        Thread& thread = current.threads[i];
        thread.index = {i, 0, 0};
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = current.stacks.get() + i * kStack;
        thread.context.uc_stack.ss_size = kStack;
        makecontext(&thread.context, enter, 0);
      }
      run_block(threads);
    }
  };
}

// The value that lane `source` passed to this shuffle.
template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  if (mask != ~0u) throw std::runtime_error("shuffles of part of a warp are not emulated");
  Thread& me = *block->running;
  const unsigned turn = me.shuffles++ % 2;
  std::memcpy(&me.given[turn], &value, sizeof(T));
  wait_for(Waits::shuffle);
  T theirs;
  std::memcpy(&theirs, &block->threads[me.index.x / kWarp * kWarp + source].given[turn], sizeof(T));
  return theirs;
}

inline unsigned lane() { return block->running->index.x % kWarp; }

}  // namespace emulation

#define threadIdx (emulation::block->running->index)
#define blockIdx (emulation::block->index)
#define gridDim (uint3{emulation::block->blocks, 1, 1})
#define OCTO_LAUNCH(kernel, blocks, threads, stream) ((void)(stream), emulation::launch(kernel, blocks, threads))

inline void __syncthreads() { emulation::wait_for(emulation::Waits::barrier); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other) {
  return emulation::shuffle(mask, value, emulation::lane() ^ static_cast<unsigned>(other));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  return emulation::shuffle(mask, value, emulation::lane() < delta ? emulation::lane() : emulation::lane() - delta);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
