//! Smoke.
#![cfg_attr(target_arch = "nvptx64", no_std, feature(abi_ptx, asm_experimental_arch))]
#![cfg_attr(not(target_arch = "nvptx64"), allow(dead_code, unused_imports))]

use cuda_std::prelude::*;

/// Bytes.
pub const fn smem<T>(d: usize) -> usize {
    d * 4 * size_of::<T>()
}

/// Scales.
#[kernel(block = 128, min_blocks_per_sm = 3, dynamic_shared = smem::<T>(D), instances(T in [bf16, f16], D in [64, 128]))]
pub unsafe fn scale<T: Element, const D: usize>(
    /// x: [n]
    x: *const T,
    out: *mut f32,
    n: u32,
    s: f32,
) {
    unsafe {
        let t = thread::index_1d();
        let a = shared_array![f32; 128];
        let dynamic = shared::dynamic_shared::<f32>();
        let v = if t < n { (*x.add(t as usize)).to_f32() * s } else { 0.0 };
        let sum = warp::group_sum_f32::<32>(v);
        a.add(thread::thread_idx_x()).write(sum);
        dynamic.add(thread::thread_idx_x()).write(v.exp());
        thread::sync_threads();
        let mut acc = [0.0; 4];
        unroll!(i < { D / 32 }, max 4, { acc[i] = a.add(i as u32 * 32).read() });
        if t < n {
            *out.add(t as usize) =
                acc[0] + acc[1] + acc[2] + acc[3] + dynamic.add(127 - thread::thread_idx_x()).read();
        }
    }
}

/// Plain.
#[kernel(block = (32, 4, 1))]
pub unsafe fn plain(out: *mut u32) {
    unsafe {
        let v = atomic::global::add_u32(out, 1, atomic::Ordering::AcqRel, atomic::Scope::Device);
        if v == 5 {
            *out.add(1) = warp::lane_id()
        }
    }
}
