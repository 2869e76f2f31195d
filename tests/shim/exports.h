// exports.h - put after the kernel text: SHIM_EXPORT(name) gives a kernel an entry that takes pointers to arguments.
#pragma once
#include <stddef.h>

namespace shim {
template <class T>
struct Plain {
  typedef T type;
};
template <class T>
struct Plain<const T> {
  typedef T type;
};

template <size_t... I>
struct Indices {};
template <size_t N, size_t... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I>
struct Count<0, I...> {
  typedef Indices<I...> type;
};

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, Indices<I...>) {
  kernel(*(typename Plain<A>::type*)args[I]...);
}
template <class... A>
void call(void (*kernel)(A...), void** args) {
  call(kernel, args, typename Count<sizeof...(A)>::type());
}
}  // namespace shim

#define SHIM_EXPORT(name) \
  extern "C" void shim_##name(void** args) { shim::call(name, args); }
