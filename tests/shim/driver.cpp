// driver.cpp - as much of CUDA's driver as CuPy asks for a kernel, without a device: modules and functions are counted,
// a launch goes to a hook. Built as a library that stands in for libcuda.so.1 (see real_cupy.py).
#include <stdio.h>
#include <string.h>

extern "C" {

typedef int (*Hook)(const char* name, unsigned blocks, unsigned threads_x, unsigned threads_y, void* stream,
                    void** arguments);

struct Function {
  char name[128];
};

struct Counts {
  long modules, functions, launches;
};

static Hook hook;
static Counts counts;

void stub_set_hook(Hook given) { hook = given; }
Counts* stub_counts() { return &counts; }

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) {
  *version = 13020;
  return 0;
}
int cuCtxGetCurrent(void** context) {
  *context = &counts;
  return 0;
}

// CUDA_ERROR_INVALID_IMAGE unless it is machine code.
int cuModuleLoadData(void** module, const void* image) {
  ++counts.modules;
  *module = &counts;
  return memcmp(image, "\177ELF", 4) ? 200 : 0;
}
int cuModuleUnload(void*) { return 0; }

int cuModuleGetFunction(void** function, void*, const char* name) {
  ++counts.functions;
  Function* made = new Function;  // kept for good, as CuPy keeps its handle
  snprintf(made->name, sizeof made->name, "%s", name);
  *function = made;
  return 0;
}
int cuFuncGetAttribute(int* value, int, void*) {
  *value = 0;
  return 0;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream, void** arguments, void**) {
  ++counts.launches;
  if (grid_y != 1 || grid_z != 1 || block_z != 1 || shared != 0) return 1;  // CUDA_ERROR_INVALID_VALUE
  return hook(static_cast<Function*>(function)->name, grid_x, block_x, block_y, stream, arguments);
}

int cuGetErrorName(int, const char** text) {
  *text = "STUB_ERROR";
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "the stub driver refused";
  return 0;
}
}
