"""C++ kernels for CPUs with AVX-512 or AMX, in float32 and bfloat16, compiled on first use."""
