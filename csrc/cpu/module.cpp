// The Python module amopo_kernels._C: loading it registers the operations; it says which kernels run.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

#include <ATen/Version.h>

#include <string>

namespace amopo {

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#ifdef AMOPO_HAVE_AVX
    const std::string capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0) {
      return kernels_AVX512();
    }
    if (capability == "AVX2") {
      return kernels_AVX2();
    }
#endif
    return kernels_DEFAULT();
  }();
  return chosen;
}

namespace {

PyObject* capability(PyObject*, PyObject*) {
  return PyUnicode_FromString(kernels().capability);
}

PyMethodDef methods[] = {
    {"capability", capability, METH_NOARGS, "CPU capability of the kernels that run: DEFAULT, AVX2 or AVX512."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "C++ operations of amopo_kernels for the CPU.", -1, methods,
    nullptr, nullptr, nullptr, nullptr};

} // namespace
} // namespace amopo

PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&amopo::definition);
  if (module != nullptr && PyModule_AddStringConstant(module, "torch_version", AMOPO_TORCH_VERSION) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
