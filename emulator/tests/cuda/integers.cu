// nvcc -arch=sm_80 -ptx integers.cu -o integers.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Integer arithmetic in 8 to 64 bits: divisions, high products, bit counts, shifts, byte permutes.
typedef long long i64;
typedef unsigned long long u64;

extern "C" __global__ void wide(const i64 *a, const i64 *b, i64 *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    i64 x = a[i], y = b[i];
    u64 ux = x, uy = y;
    i64 *o = out + 12 * i;
    o[0] = x / y;
    o[1] = x % y;
    o[2] = ux / uy;
    o[3] = ux % uy;
    o[4] = __mul64hi(x, y);
    o[5] = __umul64hi(ux, uy);
    o[6] = __clzll(x) * 64 + __popcll(x);
    o[7] = __brevll(ux);
    o[8] = __ffsll(x);
    o[9] = x >> (y & 63);
    o[10] = (ux << (y & 63)) | (ux >> (63 & -y));
    o[11] = (i64)(double)x ^ (i64)(u64)(float)(uy >> 1);
}

extern "C" __global__ void narrow(const int *a, const int *b, int *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int x = a[i], y = b[i];
    int *o = out + 13 * i;
    o[0] = x / y;
    o[1] = x % y;
    o[2] = (unsigned)x / (unsigned)y;
    o[3] = (unsigned)x % 10u + (x / 7) * 3;
    o[4] = __mulhi(x, y);
    o[5] = __funnelshift_l(x, y, y & 31);
    o[6] = __byte_perm(x, y, 0x3715);
    o[7] = __dp4a(x, y, x);
    o[8] = (signed char)x / ((signed char)y | 1) + (short)x % ((short)y | 1);
    o[9] = (unsigned short)(x * y) + (unsigned char)(x - y);
    o[10] = __sad(x, y, 5) + __usad(x, y, 7);
    o[11] = min(x, y) ^ max((unsigned)x, (unsigned)y);
    o[12] = abs(x) + __hadd(x, y) + __rhadd(x, y);
}
