// nvcc -arch=sm_80 -ptx radix.cu -o radix.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// One stable pass of a 4-bit radix sort: histogram, scan of the counts, scatter with match.any ranks.
extern "C" __global__ void histogram(const unsigned *keys, unsigned *counts, int shift, int n) {
    __shared__ unsigned bins[16];
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&bins[keys[i] >> shift & 15], 1u);
    __syncthreads();
    // Digit-major, so that one scan gives the places.
    if (threadIdx.x < 16) counts[threadIdx.x * gridDim.x + blockIdx.x] = bins[threadIdx.x];
}

extern "C" __global__ void scan_counts(unsigned *counts, int n) {
    unsigned carry = 0;
    for (int base = 0; base < n; base += 32) {
        int i = base + threadIdx.x;
        unsigned v = i < n ? counts[i] : 0, s = v;
        for (int d = 1; d < 32; d *= 2) {
            unsigned o = __shfl_up_sync(0xffffffffu, s, d);
            if (threadIdx.x >= d) s += o;
        }
        if (i < n) counts[i] = carry + s - v;
        carry += __shfl_sync(0xffffffffu, s, 31);
    }
}

extern "C" __global__ void scatter(const unsigned *keys, unsigned *out, const unsigned *places, int shift, int n) {
    __shared__ unsigned warp_count[4][16], warp_base[4][16];
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (threadIdx.x < 64) ((unsigned *)warp_count)[threadIdx.x] = 0;
    __syncthreads();
    bool live = i < n;
    unsigned key = live ? keys[i] : 0, digit = live ? key >> shift & 15 : 16 + lane;
    unsigned same = __match_any_sync(0xffffffffu, digit);
    unsigned rank = __popc(same & ((1u << lane) - 1));
    if (live && rank == 0) warp_count[warp][digit] = __popc(same);
    __syncthreads();
    if (threadIdx.x < 16) {
        unsigned s = 0;
        for (int w = 0; w < 4; w++) { warp_base[w][threadIdx.x] = s; s += warp_count[w][threadIdx.x]; }
    }
    __syncthreads();
    if (live) out[places[digit * gridDim.x + blockIdx.x] + warp_base[warp][digit] + rank] = key;
}
