"""C++ kernels for CPUs with AVX2, AVX-512, AMX or NEON, in float32 and bfloat16, compiled on first use."""
