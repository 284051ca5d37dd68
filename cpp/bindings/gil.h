// The GIL, given up and taken back so that the end of the interpreter is harmless. A thread that asks for the GIL once the
// interpreter is going away does not come back: Python 3.14 lets it wait for ever, older ones unwind it (pthread_exit),
// through destructors that must not throw, which ends the process, or that drop Python objects without the GIL. Here it
// waits for ever with all of them.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <utility>

namespace mosaic::bindings {

// To be the innermost C++ frame above a call that may end the thread.
template <class Call>
auto or_wait_for_the_end(const Call& call) {
  try {
    return call();
  } catch (const abi::__forced_unwind&) {  // never left, or the frames above would be unwound
    for (;;) pause();
  }
}

// Without the GIL while this lives.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    or_wait_for_the_end([this] { PyEval_RestoreThread(state_); });
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// With the GIL while this lives, whether the thread has it already or not.
class WithGil {
 public:
  WithGil() : state_(or_wait_for_the_end([] { return PyGILState_Ensure(); })) {}
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  PyGILState_STATE state_;
};

// function(args...): code in Python, which may lose the GIL and not get it back.
template <class... Args>
pybind11::object call_python(const pybind11::object& function, Args&&... args) {
  const pybind11::tuple given = pybind11::make_tuple(std::forward<Args>(args)...);
  PyObject* const result = or_wait_for_the_end([&] { return PyObject_CallObject(function.ptr(), given.ptr()); });
  if (result == nullptr) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(result);
}

}  // namespace mosaic::bindings
