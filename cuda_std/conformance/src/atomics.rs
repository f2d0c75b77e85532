//! `cuda_std::atomic`: every operation once, and counters under contention in every ordering and scope.

use cuda_std::atomic::{
    AtomicF32, AtomicF64, BlockAtomicF32, Ordering, Scope, SystemAtomicF32, fence, global,
};
use cuda_std::prelude::*;

/// One thread does each operation once; all threads of the grid count in each ordering and scope.
#[kernel(block = 64)]
pub unsafe fn counters(
    /// [blocks, 15]: one counter per (ordering, scope): relaxed, acquire, release, acq_rel, seq_cst by block, device, system. The
    /// blocks count together in row 0, with block scope each in its own row.
    counts: *mut u32,
    /// [16]: the u32 cells that one thread changes, as they were set up.
    words: *mut u32,
    /// [10]: the u64 cells.
    wides: *mut u64,
    /// [16 + 2 * 10]: the values before.
    before: *mut u32,
) {
    unsafe {
        let mut cell = counts;
        let own = thread::block_idx_x() as usize * 15;
        macro_rules! count {
            ($($ordering:ident)*) => {$(
                global::add_u32(cell.add(own), 1, Ordering::$ordering, Scope::Block);
                global::add_u32(cell.add(1), 1, Ordering::$ordering, Scope::Device);
                global::add_u32(cell.add(2), 1, Ordering::$ordering, Scope::System);
                cell = cell.add(3);
            )*};
        }
        count!(Relaxed Acquire Release AcqRel SeqCst);
        let _ = cell;
        fence(Ordering::SeqCst, Scope::Block);
        fence(Ordering::AcqRel, Scope::System);
        if !thread::first() {
            return;
        }
        let (order, scope) = (Ordering::AcqRel, Scope::Device);
        let mut out = before;
        let mut put = |value: u32| {
            *out = value;
            out = out.add(1);
        };
        put(global::add_u32(words, 5, order, scope));
        put(global::add_i32(words.add(1).cast(), -5, order, scope) as u32);
        put(global::min_u32(words.add(2), 5, order, scope));
        put(global::min_i32(words.add(3).cast(), -5, order, scope) as u32);
        put(global::max_u32(words.add(4), u32::MAX - 1, order, scope));
        put(global::max_i32(words.add(5).cast(), 5, order, scope) as u32);
        put(global::and_u32(words.add(6), 0xff00, order, scope));
        put(global::or_u32(words.add(7), 0xff00, order, scope));
        put(global::xor_u32(words.add(8), 0xff00, order, scope));
        put(global::exchange_u32(words.add(9), 77, order, scope));
        put(global::inc_u32(words.add(10), 10, order, scope));
        put(global::dec_u32(words.add(11), 10, order, scope));
        put(global::compare_exchange_u32(words.add(12), 12, 99, order, scope));
        put(global::compare_exchange_u32(words.add(13), 12, 99, order, scope));
        put(global::add_f32(words.add(14).cast(), 0.5, order, scope).to_bits());
        let loaded = global::load_u32(words.add(15), Ordering::Acquire, scope);
        global::store_u32(words.add(15), loaded + 1, Ordering::Release, scope);
        put(loaded);
        let mut put = |value: u64| {
            *out = value as u32;
            *out.add(1) = (value >> 32) as u32;
            out = out.add(2);
        };
        put(global::add_u64(wides, 5, order, scope));
        put(global::min_u64(wides.add(1), 5, order, scope));
        put(global::max_u64(wides.add(2), u64::MAX - 1, order, scope));
        put(global::and_u64(wides.add(3), 0xff00, order, scope));
        put(global::or_u64(wides.add(4), 0xff00, order, scope));
        put(global::xor_u64(wides.add(5), 0xff00, order, scope));
        put(global::exchange_u64(wides.add(6), 77, order, scope));
        put(global::compare_exchange_u64(wides.add(7), 7, 99, order, scope));
        put(global::add_f64(wides.add(8).cast(), 0.5, order, scope).to_bits());
        let loaded = global::load_u64(wides.add(9), Ordering::SeqCst, Scope::System);
        global::store_u64(wides.add(9), loaded + 1, Ordering::SeqCst, Scope::System);
        put(loaded);
    }
}

/// rust-cuda's atomic floats, in global memory: sums of small integers, which no order rounds.
#[kernel(block = 64)]
pub unsafe fn floats(
    /// [3]: sums of 1 a thread: device, block, system scope.
    singles: *mut f32,
    /// [1]: sum of 1 a thread.
    double: *mut f64,
    /// [4]: cells for and, or, xor and load-store by one thread.
    cells: *mut f32,
    /// [4]: the values before.
    before: *mut f32,
) {
    unsafe {
        let order = Ordering::AcqRel;
        let device = &*singles.cast::<AtomicF32>();
        let block = &*singles.add(1).cast::<BlockAtomicF32>();
        let system = &*singles.add(2).cast::<SystemAtomicF32>();
        device.fetch_add(1.0, order);
        block.fetch_add(1.0, Ordering::Relaxed);
        system.fetch_sub(-1.0, Ordering::SeqCst);
        (*double.cast::<AtomicF64>()).fetch_add(1.0, order);
        if thread::first() {
            let cell = |i: usize| &*cells.add(i).cast::<AtomicF32>();
            // 0x8000_0000 is -0.0, the sign alone; 0x7fff_ffff everything else.
            *before = cell(0).fetch_and(f32::from_bits(0x7fff_ffff), order);
            *before.add(1) = cell(1).fetch_or(-0.0, order);
            *before.add(2) = cell(2).fetch_xor(-0.0, order);
            let value = cell(3).load(Ordering::Acquire);
            cell(3).store(value * 2.0, Ordering::Release);
            *before.add(3) = value;
        }
    }
}

/// Atomics on shared memory: every thread takes part.
#[kernel(block = 64)]
pub unsafe fn shared_atomics(
    /// [11]: u32 add, min, max, and, or, xor, exchange; i32 add, min, max; f32 add, all over the threads' indices.
    out: *mut u32,
) {
    unsafe {
        let t = thread::thread_idx_x();
        let cells = shared_array![u32; 11];
        if t == 0 {
            let initial = [0, 1000, 0, u32::MAX, 0, 0, 1000, 0, 0, 0, 0];
            unroll!(i < 11, max 12, { cells.add(i as u32).write(initial[i]) });
        }
        thread::sync_threads();
        let cell = |i: u32| cells.add(i);
        cell(0).atomic_add(t);
        cell(1).atomic_min(t + 10);
        cell(2).atomic_max(t);
        cell(3).atomic_and(!(1 << (t % 8)));
        cell(4).atomic_or(1 << (t % 8));
        cell(5).atomic_xor(t);
        let old = cell(6).atomic_exchange(t);
        cell(7).cast::<i32>().atomic_add(-(t as i32));
        cell(8).cast::<i32>().atomic_min(-(t as i32));
        cell(9).cast::<i32>().atomic_max(-(t as i32) + 5);
        cell(10).cast::<f32>().atomic_add(t as f32);
        // What the exchanges handed out, with what is left, is every index and the initial value.
        let sum = shared_array![u32; 1];
        if t == 0 {
            sum.write(0);
        }
        thread::sync_threads();
        sum.atomic_add(old);
        thread::sync_threads();
        if t == 0 {
            unroll!(i < 11, max 12, { *out.add(i) = cell(i as u32).read() });
            *out.add(6) += sum.read();
        }
    }
}
