#pragma once
#include <nanobind/nanobind.h>

namespace shears {

void bind_decoder(nanobind::module_& m);

}  // namespace shears
