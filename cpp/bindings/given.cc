#include "bindings/given.h"

#include <algorithm>

namespace mosaic::bindings {

std::string text_of(const pybind11::handle& given) {
  std::string text = pybind11::repr(given).cast<std::string>();
  std::replace(text.begin(), text.end(), '\n', ' ');
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

}  // namespace mosaic::bindings
