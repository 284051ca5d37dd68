// The end of the interpreter, for threads in C++ of other libraries. A thread that comes back to Python then is unwound (before
// Python 3.14, by pthread_exit) through its library's destructors, pybind11's gil_scoped_release among them, which must not
// throw: that is std::terminate, and the process aborts. Here it waits for ever instead, as gil.h has threads of ours wait.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

namespace py = pybind11;

namespace {

using Handler = void (*)();

Handler g_before = nullptr;

void wait_at_the_end() {
  const bool is_main = syscall(SYS_gettid) == getpid();
  while (!is_main && Py_IsInitialized() == 0) pause();
  if (g_before != nullptr) g_before();
  std::abort();
}

// Of the libstdc++ that other libraries share: this module may have one of its own.
void let_threads_wait() {
  void* const library = dlopen("libstdc++.so.6", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return;
  using SetTerminate = Handler (*)(Handler);
  const auto set = reinterpret_cast<SetTerminate>(dlsym(library, "_ZSt13set_terminatePFvvE"));
  if (set == nullptr) return;
  const Handler before = set(&wait_at_the_end);
  if (before != &wait_at_the_end) g_before = before;
}

}  // namespace

void bind_end(py::module_& m) {
  m.def("let_threads_wait", &let_threads_wait,
        "From here on a thread of any library that the end of the interpreter would abort in waits for that of the "
        "process.");
}
