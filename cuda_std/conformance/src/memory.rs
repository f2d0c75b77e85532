//! `cuda_std::shared`, `ptr` and the copies of `ptx`.

use cuda_std::prelude::*;
use cuda_std::ptr::{self, AddressSpace};

/// A value of every type through shared memory, written by one thread and read by its neighbour.
#[kernel(block = 32, dynamic_shared = 32 * 128)]
pub unsafe fn shared_types(
    /// [32, 4]: words to pass.
    bits: *const u32,
    /// [32, 24]: u8, i8, u16, i16, bf16, f16, u32, i32, f32 (a word each), u64, i64, f64 (two each), [u32; 2], [f32; 4], 1 word of
    /// `byte_xor`; then zeros.
    out: *mut u32,
) {
    unsafe {
        let lane = warp::lane_id();
        let row = bits.add(lane as usize * 4);
        let (a, b, c, d) = (*row, *row.add(1), *row.add(2), *row.add(3));
        let wide = a as u64 | (b as u64) << 32;
        let own = shared::dynamic_shared::<u8>().byte_add(lane * 128);
        own.write(a as u8);
        own.byte_add(1).cast::<i8>().write(a as i8);
        own.byte_add(2).cast::<u16>().write(a as u16);
        own.byte_add(4).cast::<i16>().write(a as i16);
        own.byte_add(6).cast::<bf16>().write(bf16::from_bits(a as u16));
        own.byte_add(8).cast::<f16>().write(f16::from_bits(a as u16));
        own.byte_add(12).cast::<u32>().write(a);
        own.byte_add(16).cast::<i32>().write(a as i32);
        own.byte_add(20).cast::<f32>().write(f32::from_bits(a));
        own.byte_add(24).cast::<u64>().write(wide);
        own.byte_add(32).cast::<i64>().write(wide as i64);
        own.byte_add(40).cast::<f64>().write(f64::from_bits(wide));
        own.byte_add(48).cast::<u32>().write_v2([a, b]);
        own.byte_add(64).cast::<f32>().write_v4([a, b, c, d].map(f32::from_bits));
        warp::sync_warp(u32::MAX);
        let other = shared::dynamic_shared::<u8>().byte_add((lane + 1) % 32 * 128);
        let mut out = out.add(lane as usize * 24);
        let mut put = |word: u32| {
            *out = word;
            out = out.add(1);
        };
        put(other.read() as u32);
        put(other.byte_add(1).cast::<i8>().read() as u32);
        put(other.byte_add(2).cast::<u16>().read() as u32);
        put(other.byte_add(4).cast::<i16>().read() as u32);
        put(other.byte_add(6).cast::<bf16>().read().to_bits() as u32);
        put(other.byte_add(8).cast::<f16>().read().to_bits() as u32);
        put(other.byte_add(12).cast::<u32>().read());
        put(other.byte_add(16).cast::<i32>().read() as u32);
        put(other.byte_add(20).cast::<f32>().read().to_bits());
        for word in [
            other.byte_add(24).cast::<u64>().read(),
            other.byte_add(32).cast::<i64>().read() as u64,
            other.byte_add(40).cast::<f64>().read().to_bits(),
        ] {
            put(word as u32);
            put((word >> 32) as u32);
        }
        let v2 = other.byte_add(48).cast::<u32>().read_v2();
        put(v2[0]);
        put(v2[1]);
        let v4 = other.byte_add(64).cast::<f32>().read_v4();
        unroll!(i < 4, max 4, { put(v4[i].to_bits()) });
        // 64 is a multiple of 4, so flipping bit 2 steps to the second word of the vector.
        put(other.byte_add(64).byte_xor(4).cast::<u32>().read());
        unroll!(i < 2, max 2, { put(0) });
    }
}

/// Asynchronous copies with every amount of zero fill, streaming loads and vector accesses.
#[kernel(block = 32, dynamic_shared = 2 * 32 * 16)]
pub unsafe fn copies(
    /// [32, 4]: 16-byte aligned rows; lane `l` copies its row whole, and `l % 17` bytes of it.
    rows: *const ptx::V4,
    /// [32, 12]: the whole copy, the filled copy (both of the next lane), the streaming load (own).
    out: *mut ptx::V4,
) {
    unsafe {
        let lane = warp::lane_id();
        let whole = shared::dynamic_shared::<u32>();
        let filled = whole.byte_add(32 * 16);
        let row = rows.add(lane as usize);
        ptx::cp_async_16(whole.byte_add(lane * 16), row);
        ptx::cp_async_commit();
        ptx::cp_async_16_zfill(filled.byte_add(lane * 16), row, lane % 17);
        ptx::cp_async_commit();
        let other = (lane + 1) % 32;
        ptx::cp_async_wait::<1>();
        warp::sync_warp(u32::MAX);
        let out = out.add(lane as usize * 3);
        *out = ptx::V4(whole.byte_add(other * 16).read_v4());
        ptx::cp_async_wait_all();
        warp::sync_warp(u32::MAX);
        *out.add(1) = ptx::V4(filled.byte_add(other * 16).read_v4());
        ptx::prefetch_l2(row);
        ptx::st_v4(out.add(2), ptx::ld_nc_v4(row));
    }
}

/// rust-cuda's generic pointers: which space they are in, and back and forth.
#[kernel(block = 32, dynamic_shared = 256)]
pub unsafe fn address_spaces(
    /// [12]: is `out` in global, shared, constant, local; the same for dynamic shared memory; what was written through generic pointers
    /// to dynamic and static shared memory; 1 if a global and a shared pointer survive the conversions.
    out: *mut u32,
) {
    unsafe {
        let dynamic = shared::dynamic_shared_mem::<u32>();
        let fixed = shared_array![u32; 4].as_generic();
        if thread::first() {
            let mut to = out;
            let mut put = |word: u32| {
                *to = word;
                to = to.add(1);
            };
            macro_rules! spaces {
                ($($pointer:expr, $space:ident;)*) => {$(
                    put(ptr::is_in_address_space($pointer, AddressSpace::$space) as u32);
                )*};
            }
            spaces! {
                out, Global;
                out, Shared;
                out, Constant;
                out, Local;
                dynamic, Global;
                dynamic, Shared;
                dynamic, Constant;
                dynamic, Local;
            }
            *dynamic.add(3) = 33;
            *fixed.add(2) = 22;
            put(shared::dynamic_shared::<u32>().add(3).read());
            put(*fixed.add(2));
            macro_rules! there_and_back {
                ($pointer:expr, $space:ident) => {
                    let there =
                        ptr::convert_generic_to_specific_address_space($pointer, AddressSpace::$space);
                    let back = ptr::convert_specific_address_space_to_generic(there, AddressSpace::$space);
                    put((back == $pointer) as u32);
                };
            }
            there_and_back!(out.cast_const(), Global);
            there_and_back!(dynamic.cast_const(), Shared);
        }
    }
}
