"""Kernels in C++ for a CPU with AVX-512 or AMX, in float32 and bfloat16, compiled where they are first used."""
