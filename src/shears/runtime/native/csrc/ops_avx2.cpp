#define SHEARS_OPS ops_avx2
#include "ops_isa.inl"
