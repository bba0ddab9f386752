#define SHEARS_OPS ops_neon
#define SHEARS_OPS_NEON
#include "ops_isa.inl"
