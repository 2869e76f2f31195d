// scheduler.cpp - runs a kernel on the CPU: the threads of a block are fibers that switch at barriers.
//
// A kernel library holds this file and one kernel text. Python calls shim_launch with the arguments of
// cuLaunchKernel. Compiled without instrumentation also in the sanitizer builds, where it tells the sanitizers of
// every switch.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <vector>

struct dim3 {
  unsigned x, y, z;
};

#ifdef SHIM_ASAN
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* saved, const void** bottom, size_t* size);
#endif
#ifdef SHIM_TSAN
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_destroy_fiber(void* fiber);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* token);
extern "C" void __tsan_release(void* token);
#endif

// The section of shared memory exists only if a kernel has some.
extern "C" char __start_shim_shared[] __attribute__((weak));
extern "C" char __stop_shim_shared[] __attribute__((weak));

extern "C" dim3 shim_thread, shim_block, shim_block_size, shim_grid;
dim3 shim_thread, shim_block, shim_block_size, shim_grid;

namespace {

enum State { READY, WAITING, DONE };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;  // not filled: pages that no thread touches take no memory
  dim3 index;
  State state;
  int line;  // of the barrier it waits at
#ifdef SHIM_ASAN
  void* fake_stack;
#endif
#ifdef SHIM_TSAN
  void* tsan;
  int barriers;  // passed so far
#endif
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
int current;
void (*entry)(void**);
void** arguments;
char message[256];
#ifdef SHIM_ASAN
void* scheduler_fake_stack;
const void* scheduler_bottom;
size_t scheduler_size;
#endif
#ifdef SHIM_TSAN
void* scheduler_tsan;
// Two for barriers, in turn: a thread that is already at the next one must not seem ordered before those that are not.
char start_token, end_token, barrier_token[2];
#endif

const size_t STACK = 256 << 10;

void to_scheduler() {
  Fiber& self = fibers[current];
#ifdef SHIM_ASAN
  __sanitizer_start_switch_fiber(self.state == DONE ? nullptr : &self.fake_stack, scheduler_bottom, scheduler_size);
#endif
#ifdef SHIM_TSAN
  __tsan_switch_to_fiber(scheduler_tsan, 1);  // 1: a switch orders nothing, only barriers do
#endif
  swapcontext(&self.context, &scheduler);
#ifdef SHIM_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

void run_thread() {
#ifdef SHIM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
#ifdef SHIM_TSAN
  __tsan_acquire(&start_token);
#endif
  entry(arguments);
#ifdef SHIM_TSAN
  __tsan_release(&end_token);
#endif
  fibers[current].state = DONE;
  to_scheduler();
}

void resume(int i) {
  Fiber& fiber = fibers[i];
  current = i;
  shim_thread = fiber.index;
#ifdef SHIM_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), STACK);
#endif
#ifdef SHIM_TSAN
  __tsan_switch_to_fiber(fiber.tsan, 1);
#endif
  swapcontext(&scheduler, &fiber.context);
#ifdef SHIM_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void start_fibers(int threads) {
  if ((int)fibers.size() < threads) fibers.resize(threads);
#ifdef SHIM_TSAN
  scheduler_tsan = __tsan_get_current_fiber();
  __tsan_release(&start_token);
#endif
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    fiber.index = {i % shim_block_size.x, i / shim_block_size.x % shim_block_size.y,
                   i / (shim_block_size.x * shim_block_size.y)};
    fiber.state = READY;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_thread, 0);
#ifdef SHIM_TSAN
    fiber.tsan = __tsan_create_fiber(0);
    fiber.barriers = 0;
#endif
  }
}

void end_fibers(int threads) {
#ifdef SHIM_TSAN
  __tsan_acquire(&end_token);
  for (int i = 0; i < threads; ++i) __tsan_destroy_fiber(fibers[i].tsan);
#endif
  (void)threads;
}

// Order 0 is ascending, 1 descending, others shuffle with that seed.
std::vector<int> make_order(int count, unsigned order) {
  std::vector<int> turn(count);
  for (int i = 0; i < count; ++i) turn[i] = order == 1 ? count - 1 - i : i;
  for (int i = count - 1; order > 1 && i > 0; --i) {
    order = order * 1664525u + 1013904223u;
    const int j = (order >> 8) % (i + 1), other = turn[i];
    turn[i] = turn[j];
    turn[j] = other;
  }
  return turn;
}

// Whether all waiting threads may go on. A barrier needs every thread of the block, at the same place.
bool open_barrier(int threads) {
  int done = 0, line = 0;
  for (int i = 0; i < threads; ++i) {
    done += fibers[i].state == DONE;
    if (fibers[i].state == WAITING) line = fibers[i].line;
  }
  for (int i = 0; i < threads; ++i)
    if (done || fibers[i].line != line) {
      snprintf(message, sizeof message, "block (%u, %u, %u): not all threads reach the barrier at line %d",
               shim_block.x, shim_block.y, shim_block.z, line);
      return false;
    }
  for (int i = 0; i < threads; ++i) fibers[i].state = READY;
  return true;
}

bool run_block(int threads, unsigned order) {
  start_fibers(threads);
  const std::vector<int> turn = make_order(threads, order);
  for (;;) {
    int done = 0;
    for (int i : turn) {
      if (fibers[i].state == READY) resume(i);
      done += fibers[i].state == DONE;
    }
    if (done == threads || !open_barrier(threads)) break;
  }
  end_fibers(threads);
  return !message[0];
}

}  // namespace

extern "C" void shim_barrier(int line) {
  Fiber& self = fibers[current];
  self.state = WAITING;
  self.line = line;
#ifdef SHIM_TSAN
  void* const token = &barrier_token[self.barriers++ % 2];
  __tsan_release(token);
#endif
  to_scheduler();
#ifdef SHIM_TSAN
  __tsan_acquire(token);
#endif
}

// Run `kernel` on a grid of blocks; `arguments` are pointers to the arguments, as cuLaunchKernel takes them. only: the
// number of the one block to run, or -1 for all. Returns null or what went wrong.
extern "C" const char* shim_launch(void (*kernel)(void**), const unsigned* grid, const unsigned* block, void** args,
                                   unsigned order, long only) {
  shim_grid = {grid[0], grid[1], grid[2]};
  shim_block_size = {block[0], block[1], block[2]};
  const int threads = block[0] * block[1] * block[2];
  const long blocks = (long)grid[0] * grid[1] * grid[2];
  message[0] = 0;
  entry = kernel;
  arguments = args;
  if (threads < 1 || threads > 1024 || block[2] > 64 || blocks < 1 || grid[0] > 2147483647u || grid[1] > 65535 ||
      grid[2] > 65535)
    return "the device would refuse this geometry";
  if (__start_shim_shared && __stop_shim_shared - __start_shim_shared > 48 << 10)
    return "more than 48 KiB of shared memory, for which a device must be asked";
  for (int i : only < 0 ? make_order((int)blocks, order) : std::vector<int>{(int)only}) {
    shim_block = {i % grid[0], i / grid[0] % grid[1], (unsigned)(i / ((long)grid[0] * grid[1]))};
    if (__start_shim_shared) memset(__start_shim_shared, 0xff, __stop_shim_shared - __start_shim_shared);
    if (!run_block(threads, order)) return message;
  }
  return nullptr;
}
