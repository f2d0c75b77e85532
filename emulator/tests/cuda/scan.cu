// nvcc -arch=sm_80 -ptx scan.cu -o scan.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Inclusive scan in one pass: each block publishes its sum and prefix behind flags, and looks back.
struct State { int aggregate, prefix; unsigned flag; };

extern "C" __global__ void scan_lookback(const int *x, int *y, volatile int *aggregate, volatile int *prefix,
                                         volatile unsigned *flags, unsigned *ticket, int n) {
    __shared__ int buf[2][128];
    __shared__ int before;
    __shared__ unsigned tile;
    unsigned t = threadIdx.x;
    if (t == 0) tile = atomicAdd(ticket, 1u);
    __syncthreads();
    int i = tile * blockDim.x + t;
    int cur = 0;
    buf[0][t] = i < n ? x[i] : 0;
    __syncthreads();
    for (int d = 1; d < blockDim.x; d *= 2) {
        buf[cur ^ 1][t] = t >= d ? buf[cur][t] + buf[cur][t - d] : buf[cur][t];
        cur ^= 1;
        __syncthreads();
    }
    int total = buf[cur][blockDim.x - 1];
    if (t == 0) {
        int sum = 0;
        if (tile == 0) {
            prefix[0] = total;
            __threadfence();
            flags[0] = 2;
        } else {
            aggregate[tile] = total;
            __threadfence();
            flags[tile] = 1;
            for (int p = (int)tile - 1; p >= 0; ) {
                unsigned f = flags[p];
                if (f == 0) continue;
                __threadfence();
                if (f == 2) { sum += prefix[p]; break; }
                sum += aggregate[p];
                p--;
            }
            prefix[tile] = sum + total;
            __threadfence();
            flags[tile] = 2;
        }
        before = sum;
    }
    __syncthreads();
    if (i < n) y[i] = before + buf[cur][t];
}

// The same hand-over with plain data behind release and acquire.
extern "C" __global__ void chain(int *data, unsigned *flag, int rounds) {
    if (threadIdx.x == 0) {
        unsigned f = 0;
        while (f != blockIdx.x)
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(f) : "l"(flag) : "memory");
    }
    __syncthreads();
    for (int r = 0; r < rounds; r++) data[threadIdx.x] = data[threadIdx.x] * 3 + blockIdx.x;
    __syncthreads();
    if (threadIdx.x == 0)
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(blockIdx.x + 1) : "memory");
}
