//! `cuda_std::thread`, `mem` and `misc`: positions, barriers, sizes, clocks.

use cuda_std::prelude::*;
use cuda_std::{mem, misc};

/// Everything a thread can know of its place.
#[kernel(block = (4, 3, 2))]
pub unsafe fn positions(
    /// [threads of the grid, 20]: thread, block, block size, grid size (x, y, z each), `index`, `index_3d`, `index_2d`'s x
    /// and y, `first`, `index_1d`.
    out: *mut u32,
) {
    unsafe {
        let index = thread::index();
        let row = out.add(index as usize * 20);
        let [t, b, n, g] =
            [thread::thread_idx(), thread::block_idx(), thread::block_dim(), thread::grid_dim()];
        let p = thread::index_3d();
        let q = thread::index_2d();
        let all = [
            t[0],
            t[1],
            t[2],
            b[0],
            b[1],
            b[2],
            n[0],
            n[1],
            n[2],
            g[0],
            g[1],
            g[2],
            index,
            p[0],
            p[1],
            p[2],
            q[0],
            q[1],
            thread::first() as u32,
            thread::index_1d(),
        ];
        unroll!(i < 20, max 24, { *row.add(i) = all[i] });
    }
}

/// The reducing barriers, and a named barrier between producers and consumers.
#[kernel(block = 128, dynamic_shared = 4 * 64)]
pub unsafe fn barriers(
    /// [128]: the predicate of each thread.
    predicate: *const u32,
    /// [128, 4]: count, and, or; then what the partner in the other half of the block wrote.
    out: *mut u32,
) {
    unsafe {
        let t = thread::thread_idx_x();
        let p = *predicate.add(t as usize);
        let out = out.add(t as usize * 4);
        *out = thread::sync_threads_count(p);
        *out.add(1) = thread::sync_threads_and(p);
        *out.add(2) = thread::sync_threads_or(p);
        let slot = shared::dynamic_shared::<u32>().add(t % 64);
        let mut seen = 0;
        if t < 64 {
            slot.write(1000 + t);
            thread::block_fence();
            thread::arrive_named(1, 128);
        } else {
            thread::sync_named(1, 128);
            seen = slot.read();
        }
        *out.add(3) = seen;
    }
}

/// Sizes of shared memory, and that clocks go forward over a sleep.
#[kernel(block = 32, dynamic_shared = 512)]
pub unsafe fn clocks(
    /// [4]: dynamic and total shared bytes, 1 if the cycle counter went forward, 1 if the timer did not go back.
    out: *mut u32,
) {
    unsafe {
        let room = shared_array![u64; 16];
        let (ticks, nanos) = (misc::clock(), misc::global_timer());
        thread::nanosleep(10);
        room.add(warp::lane_id() % 16).write(ticks);
        thread::grid_fence();
        thread::system_fence();
        let (ticks_after, nanos_after) = (misc::clock(), misc::global_timer());
        if thread::first() {
            *out = mem::dynamic_smem_size();
            *out.add(1) = mem::total_smem_size();
            *out.add(2) = (ticks_after > ticks) as u32;
            *out.add(3) = (nanos_after >= nanos) as u32;
        }
    }
}
