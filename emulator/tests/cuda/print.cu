// nvcc -arch=sm_80 -ptx print.cu -o print.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Device printf, with what it promotes, and an assertion that holds.
#include <cstdio>
#include <cassert>

extern "C" __global__ void hello(const int *x, int n) {
    int i = threadIdx.x;
    assert(n > 0);
    if (i < n) printf("%d: %5d|%-6u|%08x|%c\n", i, x[i], 7u, x[i] * 3, 'a' + i);
    __syncthreads();
    if (i == 0) printf("%s %.3f %e %lld %llu 100%%\n", "text", 2.0f / 3, 1e-10, -5000000000LL, 18446744073709551615ULL);
}
