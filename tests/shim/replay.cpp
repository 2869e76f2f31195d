// replay.cpp - runs one recorded launch in a process of its own, for the sanitizers.
//
//   replay <record> <results>
//
// The record holds, in this machine's integers: the name of the entry, blocks, threads x and y, the order, the number
// of arguments, and for each argument a kind and bytes: 0, by value, or 1, the contents of the memory that a pointer
// shows; or 2 and the argument that shows the same memory.
// Such memory is allocated to the byte, so that a step beyond it is seen. The results are that memory, one after
// another.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <vector>

extern "C" const char* shim_launch(void (*kernel)(void**), const unsigned* grid, const unsigned* block, void** args,
                                   unsigned order, long only);

static FILE* record;

static uint64_t number() {
  uint64_t value;
  if (fread(&value, sizeof value, 1, record) != 1) exit(2);
  return value;
}

static char* bytes(uint64_t size) {
  char* memory = (char*)malloc(size);
  if (size && fread(memory, size, 1, record) != 1) exit(2);
  return memory;
}

int main(int, char** argv) {
  record = fopen(argv[1], "rb");
  const uint64_t length = number();
  char* const text = bytes(length);
  const std::string name(text, length);
  free(text);
  const unsigned grid[3] = {(unsigned)number(), 1, 1};
  unsigned block[3] = {(unsigned)number(), 1, 1};
  block[1] = (unsigned)number();
  const unsigned order = (unsigned)number();

  struct Argument {
    char* memory;
    uint64_t size;
    bool pointer, own;
  };
  std::vector<Argument> given(number());
  std::vector<void*> args;
  for (Argument& argument : given) {
    const uint64_t kind = number();
    argument.pointer = kind > 0;
    argument.own = kind < 2;
    const uint64_t size = number();
    argument.size = argument.own ? size : 0;
    argument.memory = argument.own ? bytes(size) : given[size].memory;
  }
  for (Argument& argument : given) args.push_back(argument.pointer ? (void*)&argument.memory : argument.memory);

  void (*kernel)(void**) = (void (*)(void**))dlsym(RTLD_DEFAULT, name.c_str());
  if (!kernel) return 2;
  const char* error = shim_launch(kernel, grid, block, args.data(), order, -1);
  if (error) fprintf(stderr, "SHIM: %s\n", error);

  FILE* const results = fopen(argv[2], "wb");
  for (const Argument& argument : given)
    if (argument.pointer && argument.size) fwrite(argument.memory, argument.size, 1, results);
  fclose(results);
  for (const Argument& argument : given)
    if (argument.own) free(argument.memory);
  return error ? 3 : 0;
}
