#define SHEARS_OPS ops_avx512
#include "ops_isa.inl"
