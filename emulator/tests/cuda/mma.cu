// nvcc -arch=sm_80 -ptx mma.cu -o mma.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Tensor-core products by inline PTX: f16 through ldmatrix, int8 with fragments loaded by hand.
#include <cuda_fp16.h>
#include <stdint.h>

// One warp: c[16][8] = a[16][k] * b[8][k]^T, all row-major.
extern "C" __global__ void mma_f16(const half *a, const half *b, float *c, int k) {
    __shared__ __align__(16) half ta[16][24], tb[8][24];
    unsigned lane = threadIdx.x;
    float d[4] = {0, 0, 0, 0};
    for (int k0 = 0; k0 < k; k0 += 16) {
        *(uint4 *)&ta[lane / 2][lane % 2 * 8] = *(const uint4 *)&a[lane / 2 * k + k0 + lane % 2 * 8];
        if (lane < 16) *(uint4 *)&tb[lane / 2][lane % 2 * 8] = *(const uint4 *)&b[lane / 2 * k + k0 + lane % 2 * 8];
        __syncwarp();
        uint32_t fa[4], fb[2];
        unsigned pa = __cvta_generic_to_shared(&ta[lane % 16][lane / 16 * 8]);
        unsigned pb = __cvta_generic_to_shared(&tb[lane % 8][lane / 8 % 2 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3]) : "r"(pa) : "memory");
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(fb[0]), "=r"(fb[1]) : "r"(pb) : "memory");
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
        __syncwarp();
    }
    *(float2 *)&c[lane / 4 * 8 + lane % 4 * 2] = make_float2(d[0], d[1]);
    *(float2 *)&c[(lane / 4 + 8) * 8 + lane % 4 * 2] = make_float2(d[2], d[3]);
}

extern "C" __global__ void mma_s8(const int8_t *a, const int8_t *b, int *c) {
    unsigned lane = threadIdx.x, g = lane / 4, q = lane % 4;
    const int *wa = (const int *)a, *wb = (const int *)b;
    int fa[4] = {wa[g * 8 + q], wa[(g + 8) * 8 + q], wa[g * 8 + q + 4], wa[(g + 8) * 8 + q + 4]};
    int fb[2] = {wb[g * 8 + q], wb[g * 8 + q + 4]};
    int d[4];
    asm volatile("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]), "r"(0));
    c[g * 8 + q * 2] = d[0];
    c[g * 8 + q * 2 + 1] = d[1];
    c[(g + 8) * 8 + q * 2] = d[2];
    c[(g + 8) * 8 + q * 2 + 1] = d[3];
}
