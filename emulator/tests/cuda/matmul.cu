// nvcc -arch=sm_80 -ptx matmul.cu -o matmul.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Tiled single-precision matrix product, 16 x 16 tiles, edges guarded; and a transpose in padded tiles.
extern "C" __global__ void matmul(const float *a, const float *b, float *c, int m, int n, int k) {
    __shared__ float ta[16][16], tb[16][17];
    int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float acc = 0.f;
    for (int t = 0; t < (k + 15) / 16; t++) {
        int ac = t * 16 + threadIdx.x, br = t * 16 + threadIdx.y;
        ta[threadIdx.y][threadIdx.x] = row < m && ac < k ? a[row * k + ac] : 0.f;
        tb[threadIdx.y][threadIdx.x] = br < k && col < n ? b[br * n + col] : 0.f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++) acc = fmaf(ta[threadIdx.y][i], tb[i][threadIdx.x], acc);
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = acc;
}

extern "C" __global__ void transpose(const double *x, double *y, int rows, int cols) {
    __shared__ double tile[32][33];
    for (int j = threadIdx.y; j < 32; j += 8) {
        int r = blockIdx.y * 32 + j, c = blockIdx.x * 32 + threadIdx.x;
        if (r < rows && c < cols) tile[j][threadIdx.x] = x[(size_t)r * cols + c];
    }
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += 8) {
        int r = blockIdx.x * 32 + j, c = blockIdx.y * 32 + threadIdx.x;
        if (r < cols && c < rows) y[(size_t)r * rows + c] = tile[threadIdx.x][j];
    }
}
