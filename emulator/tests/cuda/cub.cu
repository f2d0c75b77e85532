// nvcc -std=c++17 -arch=sm_80 -ptx cub.cu -o cub.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Block-wide algorithms of CUB: a radix sort of pairs, scans and reductions by warps, an exchange of layouts.
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/warp/warp_reduce.cuh>

// 128 threads, 4 keys each, in place; the value is the index the key came from.
extern "C" __global__ void sort_pairs(unsigned *keys, int *from) {
    using Sort = cub::BlockRadixSort<unsigned, 128, 4, int>;
    __shared__ typename Sort::TempStorage temp;
    unsigned k[4];
    int v[4];
    for (int i = 0; i < 4; i++) {
        v[i] = threadIdx.x * 4 + i;
        k[i] = keys[blockIdx.x * 512 + v[i]];
    }
    Sort(temp).Sort(k, v);
    for (int i = 0; i < 4; i++) {
        keys[blockIdx.x * 512 + threadIdx.x * 4 + i] = k[i];
        from[blockIdx.x * 512 + threadIdx.x * 4 + i] = v[i];
    }
}

// Exclusive sums of 256 numbers a block, and the largest of them, by lane shuffles and shared memory.
extern "C" __global__ void scan_and_max(const int *x, int *sums, int *most) {
    using Scan = cub::BlockScan<int, 256, cub::BLOCK_SCAN_WARP_SCANS>;
    using Reduce = cub::BlockReduce<int, 256>;
    __shared__ union {
        typename Scan::TempStorage scan;
        typename Reduce::TempStorage reduce;
    } temp;
    int i = blockIdx.x * 256 + threadIdx.x, v = x[i], sum;
    Scan(temp.scan).ExclusiveSum(v, sum);
    sums[i] = sum;
    __syncthreads();
    int m = Reduce(temp.reduce).Reduce(v, [](int a, int b) { return a > b ? a : b; });
    if (threadIdx.x == 0) most[blockIdx.x] = m;
}

// From blocked to striped order, through shared memory.
extern "C" __global__ void exchange(const double *x, double *y) {
    using Exchange = cub::BlockExchange<double, 64, 5>;
    __shared__ typename Exchange::TempStorage temp;
    double v[5];
    for (int i = 0; i < 5; i++) v[i] = x[threadIdx.x * 5 + i];
    Exchange(temp).BlockedToStriped(v, v);
    for (int i = 0; i < 5; i++) y[threadIdx.x * 5 + i] = v[i];
}

// Sums by key within a warp: segments begin where the head flag is set.
extern "C" __global__ void segments(const int *x, const int *heads, int *sums) {
    using Reduce = cub::WarpReduce<int>;
    __shared__ typename Reduce::TempStorage temp[2];
    int t = threadIdx.x;
    int s = Reduce(temp[t / 32]).HeadSegmentedSum(x[t], heads[t]);
    sums[t] = heads[t] || t % 32 == 0 ? s : 0;
}
