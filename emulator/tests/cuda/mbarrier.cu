// nvcc -arch=sm_80 -ptx mbarrier.cu -o mbarrier.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// mbarrier objects through the primitives of cuda_awbarrier: a split arrive and wait, and a ring of two
// stages between producing and consuming warps, filled by cp.async that arrives at the barrier.
#include <cuda_awbarrier_primitives.h>
#include <cuda_pipeline_primitives.h>

extern "C" __global__ void split(const int *x, int *y) {
    __shared__ __mbarrier_t bar;
    __shared__ int buf[128];
    unsigned t = threadIdx.x;
    if (t == 0) __mbarrier_init(&bar, blockDim.x);
    __syncthreads();
    for (int round = 0; round < 3; round++) {
        buf[t] = x[t] * (round + 1);
        __mbarrier_token_t token = __mbarrier_arrive(&bar);
        int own = round * 7;
        while (!__mbarrier_test_wait(&bar, token)) {}
        y[round * 128 + t] = buf[127 - t] + own;
        token = __mbarrier_arrive(&bar);
        while (!__mbarrier_test_wait(&bar, token)) {}
    }
    __syncthreads();
    if (t == 0) __mbarrier_inval(&bar);
}

// The primitive for this is there from sm_90 on, the instruction from sm_80 on.
__device__ void wait_parity(__mbarrier_t *bar, unsigned parity) {
    unsigned at = __cvta_generic_to_shared(bar), done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(at), "r"(parity) : "memory");
    } while (!done);
}

extern "C" __global__ void ring(const int4 *x, int *y, int tiles) {
    __shared__ __mbarrier_t full[2], empty[2];
    __shared__ __align__(16) int4 stage[2][32];
    unsigned t = threadIdx.x;
    if (t == 0)
        for (int s = 0; s < 2; s++) {
            __mbarrier_init(&full[s], 32);
            __mbarrier_init(&empty[s], 32);
        }
    __syncthreads();
    if (t < 32) {
        for (int i = 0; i < tiles; i++) {
            int s = i & 1;
            if (i >= 2) wait_parity(&empty[s], (i / 2 - 1) & 1);
            __pipeline_memcpy_async(&stage[s][t], &x[i * 32 + t], 16);
            asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"((unsigned)__cvta_generic_to_shared(&full[s])) : "memory");
        }
    } else {
        unsigned l = t - 32;
        for (int i = 0; i < tiles; i++) {
            int s = i & 1;
            wait_parity(&full[s], (i / 2) & 1);
            int4 v = stage[s][31 - l];
            y[i * 32 + l] = v.x + v.y + v.z + v.w;
            __mbarrier_arrive(&empty[s]);
        }
    }
}
