"""Kernels in C++ for bfloat16 on a CPU with AVX-512 or AMX, compiled where they are first used."""
