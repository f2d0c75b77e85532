// nvcc -arch=sm_80 -ptx math.cu -o math.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// The CUDA math library as nvcc inlines it: range reductions, slow paths with local arrays, doubles.
extern "C" __global__ void singles(const float *x, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i], *o = out + 10 * i;
    o[0] = sinf(v);
    o[1] = cosf(v);
    o[2] = expf(v);
    o[3] = logf(fabsf(v));
    o[4] = powf(fabsf(v), 1.3f);
    o[5] = tanhf(v);
    o[6] = erff(v);
    o[7] = sqrtf(fabsf(v));
    o[8] = 1.0f / v;
    o[9] = atan2f(v, 2.0f);
}
extern "C" __global__ void doubles(const double *x, double *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double v = x[i], *o = out + 8 * i;
    o[0] = sin(v);
    o[1] = exp(v);
    o[2] = log(fabs(v));
    o[3] = 1.0 / v;
    o[4] = sqrt(fabs(v));
    o[5] = rint(v) + floor(v) * 2 + trunc(v) * 4;
    o[6] = fmod(v, 0.7);
    o[7] = rsqrt(fabs(v));
}
