// nvcc -arch=sm_80 -ptx wmma.cu -o wmma.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Tensor-core products by nvcuda::wmma: f16 in shared memory with f16 and f32 sums, bf16 from global
// memory, other shapes and a column-major result.
#include <mma.h>
#include <cuda_bf16.h>
using namespace nvcuda;

extern "C" __global__ void wmma_f16(const half *a, const half *b, float *c, half *ch, int k) {
    __shared__ __align__(32) half ta[16 * 16], tb[16 * 16];
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc;
    wmma::fragment<wmma::accumulator, 16, 16, 16, half> acch;
    wmma::fill_fragment(acc, 0.f);
    wmma::fill_fragment(acch, __float2half(0.f));
    for (int k0 = 0; k0 < k; k0 += 16) {
        for (int i = threadIdx.x; i < 256; i += 32) {
            ta[i] = a[i / 16 * k + k0 + i % 16];
            tb[i] = b[i / 16 * k + k0 + i % 16];
        }
        __syncwarp();
        wmma::load_matrix_sync(fa, ta, 16);
        wmma::load_matrix_sync(fb, tb, 16);
        wmma::mma_sync(acc, fa, fb, acc);
        wmma::mma_sync(acch, fa, fb, acch);
        __syncwarp();
    }
    for (int i = 0; i < acc.num_elements; i++) acc.x[i] *= 2.f;
    wmma::store_matrix_sync(c, acc, 16, wmma::mem_row_major);
    wmma::store_matrix_sync(ch, acch, 16, wmma::mem_col_major);
}

// b is row-major here; c is read as the first sum.
extern "C" __global__ void wmma_bf16(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int k, int ldb) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc;
    wmma::load_matrix_sync(acc, c, 16, wmma::mem_row_major);
    for (int k0 = 0; k0 < k; k0 += 16) {
        wmma::load_matrix_sync(fa, a + k0, k);
        wmma::load_matrix_sync(fb, b + k0 * ldb, ldb);
        wmma::mma_sync(acc, fa, fb, acc);
    }
    wmma::store_matrix_sync(c, acc, 16, wmma::mem_row_major);
}

// m32n8k16 with a column-major, m8n32k16 with both as usual.
extern "C" __global__ void wmma_shapes(const half *a, const half *b, float *c, float *d) {
    wmma::fragment<wmma::matrix_a, 32, 8, 16, half, wmma::col_major> fa;
    wmma::fragment<wmma::matrix_b, 32, 8, 16, half, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, 32, 8, 16, float> acc;
    wmma::fill_fragment(acc, 1.f);
    wmma::load_matrix_sync(fa, a, 32);
    wmma::load_matrix_sync(fb, b, 16);
    wmma::mma_sync(acc, fa, fb, acc);
    wmma::store_matrix_sync(c, acc, 8, wmma::mem_row_major);
    wmma::fragment<wmma::matrix_a, 8, 32, 16, half, wmma::row_major> ga;
    wmma::fragment<wmma::matrix_b, 8, 32, 16, half, wmma::row_major> gb;
    wmma::fragment<wmma::accumulator, 8, 32, 16, float> gacc;
    wmma::fill_fragment(gacc, 0.f);
    wmma::load_matrix_sync(ga, b, 16);
    wmma::load_matrix_sync(gb, a, 32);
    wmma::mma_sync(gacc, ga, gb, gacc);
    wmma::store_matrix_sync(d, gacc, 8, wmma::mem_col_major);
}
