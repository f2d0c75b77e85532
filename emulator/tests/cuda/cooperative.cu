// nvcc -std=c++17 -arch=sm_80 -diag-suppress 20054 -ptx cooperative.cu -o cooperative.ptx    (PyPI: nvidia-cuda-nvcc, -crt, -runtime, -cccl 13.5)
// Cooperative groups and libcu++: tiles, coalesced groups, atomic_ref, barrier with memcpy_async.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda/atomic>
#include <cuda/barrier>
namespace cg = cooperative_groups;

// Sum of each tile of 8 lanes, and its running sums.
extern "C" __global__ void tiles(const int *x, int *total, int *running) {
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int sum = cg::reduce(tile, x[i], cg::plus<int>());
    running[i] = cg::inclusive_scan(tile, x[i], cg::plus<int>());
    if (tile.thread_rank() == 0) total[i / 8] = sum;
}

// Keeps the odd numbers: one atomic for the lanes that are here together.
extern "C" __global__ void compact(const int *x, int *out, int *count, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        if (x[i] & 1) {
            auto active = cg::coalesced_threads();
            int base;
            if (active.thread_rank() == 0) base = atomicAdd(count, (int)active.num_threads());
            out[active.shfl(base, 0) + active.thread_rank()] = x[i];
        }
    }
}

// Lanes of one value count together; the histogram is by atomic_ref of device scope.
extern "C" __global__ void labels(const int *x, int *bins, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    auto same = cg::labeled_partition(cg::coalesced_threads(), x[i]);
    if (same.thread_rank() == 0) {
        cuda::atomic_ref<int, cuda::thread_scope_device> bin(bins[x[i]]);
        bin.fetch_add(same.num_threads(), cuda::memory_order_relaxed);
    }
}

// The rows of x in reverse, 64 at a time, by asynchronous copies that arrive at a barrier.
extern "C" __global__ void reverse(const int *x, int *y, int rows) {
    __shared__ alignas(16) int buf[2][64];
    __shared__ cuda::barrier<cuda::thread_scope_block> bar[2];
    auto block = cg::this_thread_block();
    if (block.thread_rank() == 0)
        for (auto &b : bar) init(&b, block.size());
    block.sync();
    cuda::memcpy_async(block, buf[0], x, cuda::aligned_size_t<16>(256), bar[0]);
    for (int r = 0; r < rows; r++) {
        if (r + 1 < rows) cuda::memcpy_async(block, buf[(r + 1) & 1], x + (r + 1) * 64, cuda::aligned_size_t<16>(256), bar[(r + 1) & 1]);
        bar[r & 1].arrive_and_wait();
        y[r * 64 + threadIdx.x] = buf[r & 1][63 - threadIdx.x];
        block.sync();
    }
}

// Two blocks pass a message by release and acquire.
extern "C" __global__ void message(int *data, int *flag, int *out) {
    cuda::atomic_ref<int, cuda::thread_scope_device> f(*flag);
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) {
            *data = 42;
            f.store(1, cuda::memory_order_release);
        }
    } else {
        if (threadIdx.x == 0) {
            while (f.load(cuda::memory_order_acquire) == 0) {}
            *out = *data;
        }
    }
}
