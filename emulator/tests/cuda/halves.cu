// nvcc -arch=sm_80 -ptx halves.cu -o halves.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Half and bfloat16 arithmetic, packed and single, conversions, fp8.
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

extern "C" __global__ void halves(const half *a, const half *b, half *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    half x = a[i], y = b[i];
    half *o = out + 8 * i;
    o[0] = __hadd(x, y);
    o[1] = __hmul(x, y);
    o[2] = __hfma(x, y, x);
    o[3] = __hmax(x, y);
    half2 p = __halves2half2(x, y), q = __hfma2(p, __half2half2(y), __hneg2(p));
    o[4] = __low2half(q);
    o[5] = __high2half(q);
    o[6] = __hlt(x, y) ? __float2half_rn(__half2float(x) * 3.f) : __int2half_rn(__half2int_rd(y));
    o[7] = __hsub_sat(y, x);
}

extern "C" __global__ void brains(const __nv_bfloat16 *a, const __nv_bfloat16 *b, __nv_bfloat16 *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __nv_bfloat16 x = a[i], y = b[i];
    __nv_bfloat16 *o = out + 6 * i;
    o[0] = __hadd(x, y);
    o[1] = __hmul(x, y);
    o[2] = __hfma(x, y, x);
    o[3] = __hmin(x, y);
    __nv_bfloat162 p = __floats2bfloat162_rn(__bfloat162float(x) * 1.7f, __bfloat162float(y) + 0.3f);
    o[4] = p.x;
    o[5] = p.y;
}

// To e4m3 and back, in software below sm_89.
extern "C" __global__ void bytes(const float *x, unsigned char *e4m3, float *back, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __nv_fp8_e4m3 v(x[i]);
    e4m3[i] = v.__x;
    back[i] = (float)v;
}
