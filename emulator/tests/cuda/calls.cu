// nvcc -arch=sm_80 -ptx calls.cu -o calls.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Functions that are really called: structs by value and back, pointers to locals, nested calls with
// divergence, early returns.
struct Complex { double re, im; };
struct Pair { int quotient, remainder; };

__device__ __noinline__ Complex mul(Complex a, Complex b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ __noinline__ void divide(int a, int b, Pair *out) {
    out->quotient = a / b;
    out->remainder = a % b;
}
__device__ __noinline__ int gcd(int a, int b) {
    while (b) {
        Pair p;
        divide(a, b, &p);
        a = b;
        b = p.remainder;
    }
    return a;
}
__device__ __noinline__ int escape(Complex c, int most) {
    Complex z = {0, 0};
    for (int i = 0; i < most; i++) {
        z = mul(z, z);
        z.re += c.re;
        z.im += c.im;
        if (z.re * z.re + z.im * z.im > 4.0) return i;
    }
    return most;
}
__device__ __noinline__ float polynomial(const float *coefficients, int n, float x) {
    float y = 0.f;
    for (int i = 0; i < n; i++) y = fmaf(y, x, coefficients[i]);
    return y;
}

__constant__ float coefficients[5] = {0.5f, -1.25f, 3.f, 0.f, 2.f};

extern "C" __global__ void mandelbrot(int *out, int width, int height) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x >= width) return;
    Complex c = {-2.0 + 3.0 * x / width, -1.0 + 2.0 * y / height};
    out[y * width + x] = escape(c, 50);
}
extern "C" __global__ void gcds(const int *a, const int *b, int *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] % 3 == 0 ? gcd(a[i], b[i]) : -gcd(b[i], a[i]);
}
extern "C" __global__ void polynomials(const float *x, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float own[3] = {x[i], 1.f, -x[i]};
    out[i] = i % 2 ? polynomial(coefficients, 5, x[i]) : polynomial(own, 3, x[i]);
}
