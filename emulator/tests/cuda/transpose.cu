// nvcc -arch=sm_80 -lineinfo -ptx transpose.cu -o transpose.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// (directories taken out of the .file lines)
// A transpose of 32 x 32 tiles, right in every version, with the two classic faults of speed and without.
// The profile must name the lines marked FAULT first.

extern "C" __global__ void uncoalesced(const float *x, float *y, int n) {
    int col = blockIdx.x * 32 + threadIdx.x;
    for (int row = blockIdx.y * 32 + threadIdx.y; row < blockIdx.y * 32 + 32; row += 8) {
        float v = x[row * n + col];
        y[col * n + row] = v;  // FAULT: neighbouring lanes are n words apart
    }
}

extern "C" __global__ void conflicted(const float *x, float *y, int n) {
    __shared__ float tile[32][32];
    int tx = threadIdx.x, ty = threadIdx.y;
    for (int i = ty; i < 32; i += 8)
        tile[i][tx] = x[(blockIdx.y * 32 + i) * n + blockIdx.x * 32 + tx];
    __syncthreads();
    for (int i = ty; i < 32; i += 8) {
        float v = tile[tx][i];  // FAULT: a column lies in one bank
        y[(blockIdx.x * 32 + i) * n + blockIdx.y * 32 + tx] = v;
    }
}

extern "C" __global__ void padded(const float *x, float *y, int n) {
    __shared__ float tile[32][33];
    int tx = threadIdx.x, ty = threadIdx.y;
    for (int i = ty; i < 32; i += 8)
        tile[i][tx] = x[(blockIdx.y * 32 + i) * n + blockIdx.x * 32 + tx];
    __syncthreads();
    for (int i = ty; i < 32; i += 8) {
        float v = tile[tx][i];
        y[(blockIdx.x * 32 + i) * n + blockIdx.y * 32 + tx] = v;
    }
}

extern "C" __global__ void histogram(const unsigned char *x, unsigned *bins, int n) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = t; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&bins[x[i] & 7], 1);  // FAULT: eight counters for 32 lanes
}

extern "C" __global__ void divergent(const int *x, int *y, int n) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    int v = x[t];
    for (int i = 0; i < (t & 31) * 8; i++) v = v * 1664525 + 1013904223;  // FAULT: the first lane is done at once
    y[t] = v;
}
