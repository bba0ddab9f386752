#define SHEARS_OPS ops_portable
#include "ops_isa.inl"
