//! Instructions that rust-cuda's API does not reach: what a tensor-core decode kernel is made of.
//!
//! Each helper's documentation names its PTX and where it needs more than sm_80 and ISA 7.8. Collectives
//! (`ldmatrix`, `movmatrix`, `mma`) are unsafe: all 32 lanes must execute them together. They are
//! not `pure` where they are asm (no pass may sink them into a branch) and pinned (none may copy them into two):
//! text with them must pass `psa_codegen::finish`, which removes the pins.

mod async_copy;
mod global;
mod math;
mod matrix;
mod pack;
mod unroll;

pub use async_copy::{cp_async_16, cp_async_16_zfill, cp_async_commit, cp_async_wait, cp_async_wait_all};
pub use global::{V2, V4, ld_nc_v4, prefetch_l2, st_v4};
pub use math::{
    dp2a_hi_s32_u32, dp2a_hi_u32_u32, dp2a_lo_s32_u32, dp2a_lo_u32_u32, dp4a_s32_s32, dp4a_s32_u32,
    dp4a_u32_u32, ex2_approx, fma, lg2_approx, max, min, prmt, rcp_approx, rsqrt_approx,
};
pub use matrix::{
    MmaElement, ldmatrix_x1, ldmatrix_x1_trans, ldmatrix_x2, ldmatrix_x2_trans, ldmatrix_x4,
    ldmatrix_x4_trans, mma_m16n8k16_bf16, mma_m16n8k16_f16, movmatrix_trans,
};
pub use pack::{pack_bf16x2, pack_f16x2, unpack_bf16x2, unpack_f16x2};

pub use crate::unroll;
