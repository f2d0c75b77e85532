// nvcc -arch=sm_80 -ptx reduce.cu -o reduce.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// nvcc -arch=sm_80 -lineinfo -ptx reduce.cu -o reduce_lines.ptx    (directories taken out of the .file lines)
// Sums: warp shuffles, shared memory, atomics, and the last-block pattern.
extern "C" __global__ void sum_atomic(const float *x, float *out, int n) {
    __shared__ float part[32];
    float s = 0.f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
    for (int d = 16; d; d >>= 1) s += __shfl_down_sync(0xffffffffu, s, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
        for (int d = 16; d; d >>= 1) s += __shfl_down_sync(0xffffffffu, s, d);
        if (threadIdx.x == 0) atomicAdd(out, s);
    }
}

__device__ unsigned done_blocks = 0;

// The block that finishes last adds the partial sums of all blocks (threadFenceReduction).
extern "C" __global__ void sum_last_block(const float *x, float *partial, float *out, int n) {
    __shared__ float buf[128];
    __shared__ bool last;
    unsigned t = threadIdx.x;
    float s = 0.f;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) s += x[i];
    buf[t] = s;
    __syncthreads();
    for (int d = blockDim.x / 2; d; d >>= 1) {
        if (t < d) buf[t] += buf[t + d];
        __syncthreads();
    }
    if (t == 0) {
        partial[blockIdx.x] = buf[0];
        __threadfence();
        unsigned ticket = atomicInc(&done_blocks, gridDim.x - 1);
        last = ticket == gridDim.x - 1;
    }
    __syncthreads();
    if (last) {
        __threadfence();
        s = 0.f;
        for (unsigned i = t; i < gridDim.x; i += blockDim.x) s += partial[i];
        buf[t] = s;
        __syncthreads();
        for (int d = blockDim.x / 2; d; d >>= 1) {
            if (t < d) buf[t] += buf[t + d];
            __syncthreads();
        }
        if (t == 0) *out = buf[0];
    }
}

// Maximum with its index, packed for one 64-bit atomic.
extern "C" __global__ void argmax(const float *x, unsigned long long *best, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned b = __float_as_uint(x[i]);
    b = b & 0x80000000u ? ~b : b | 0x80000000u;
    atomicMax(best, (unsigned long long)b << 32 | (unsigned)i);
}
