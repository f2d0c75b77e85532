//! Every LLVM intrinsic this crate uses, and why each unstable feature is on.
//!
//! | feature | for |
//! |---|---|
//! | `link_llvm_intrinsics` | the declarations below |
//! | `abi_unadjusted` | intrinsics that return a struct |
//! | `asm_experimental_arch` | `asm!` on NVPTX, in the modules whose helper it is |
//! | `core_float_math` | `f32::mul_add` and rounding without std, in `float` |
//!
//! Everything convergent (barriers, shuffles, votes, matches, reductions, mma) is here and not in asm:
//! LLVM knows these calls as convergent and neither sinks them into a branch nor duplicates them. To `mma`,
//! which LLVM 22 does not declare convergent, and to collectives that exist in asm only, [`pin`] lends it.
//! A misspelt name builds without an error and leaves an external call in the PTX; the lint of
//! `psa-codegen` looks for `llvm.` in it.

/// The four accumulators that an `mma` returns.
#[repr(C)]
pub struct F32x4(pub f32, pub f32, pub f32, pub f32);

#[allow(improper_ctypes)]
unsafe extern "C" {
    // Special registers.
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.x"]
    pub safe fn tid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.y"]
    pub safe fn tid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.z"]
    pub safe fn tid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.x"]
    pub safe fn ctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.y"]
    pub safe fn ctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.z"]
    pub safe fn ctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.x"]
    pub safe fn ntid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.y"]
    pub safe fn ntid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.z"]
    pub safe fn ntid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.x"]
    pub safe fn nctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.y"]
    pub safe fn nctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.z"]
    pub safe fn nctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.laneid"]
    pub safe fn laneid() -> u32;
    #[link_name = "llvm.nvvm.activemask"]
    pub safe fn activemask() -> u32;

    // Barriers and fences.
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    pub fn barrier_sync(id: u32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    pub fn barrier_sync_count(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    pub fn barrier_arrive_count(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.red.popc.aligned.all"]
    pub fn barrier_red_popc(id: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.barrier.cta.red.and.aligned.all"]
    pub fn barrier_red_and(id: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    pub fn barrier_red_or(id: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    pub fn bar_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.membar.cta"]
    pub fn membar_cta();
    #[link_name = "llvm.nvvm.membar.gl"]
    pub fn membar_gl();
    #[link_name = "llvm.nvvm.membar.sys"]
    pub fn membar_sys();

    // Warp collectives.
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    pub fn shfl_up(mask: u32, value: u32, b: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.down.i32"]
    pub fn shfl_down(mask: u32, value: u32, b: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    pub fn shfl_idx(mask: u32, value: u32, b: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    pub fn shfl_bfly(mask: u32, value: u32, b: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.f32"]
    pub fn shfl_idx_f32(mask: u32, value: f32, b: u32, clamp: u32) -> f32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.f32"]
    pub fn shfl_bfly_f32(mask: u32, value: f32, b: u32, clamp: u32) -> f32;
    #[link_name = "llvm.nvvm.vote.all.sync"]
    pub fn vote_all(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.any.sync"]
    pub fn vote_any(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    pub fn vote_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    pub fn match_any_32(mask: u32, value: u32) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i64"]
    pub fn match_any_64(mask: u32, value: u64) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.add"]
    pub fn redux_add(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    pub fn redux_umin(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    pub fn redux_umax(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.min"]
    pub fn redux_min(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.max"]
    pub fn redux_max(value: i32, mask: u32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.and"]
    pub fn redux_and(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.or"]
    pub fn redux_or(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.xor"]
    pub fn redux_xor(value: u32, mask: u32) -> u32;

    // Arithmetic.
    #[link_name = "llvm.nvvm.ex2.approx.ftz.f32"]
    pub safe fn ex2_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.ex2.approx.f32"]
    pub safe fn ex2_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.lg2.approx.ftz.f"]
    pub safe fn lg2_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.lg2.approx.f"]
    pub safe fn lg2_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rcp.approx.ftz.f"]
    pub safe fn rcp_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rsqrt.approx.ftz.f"]
    pub safe fn rsqrt_approx_ftz(x: f32) -> f32;
    #[link_name = "llvm.nvvm.fma.rn.f"]
    pub safe fn fma_rn_f32(a: f32, b: f32, c: f32) -> f32;
    #[link_name = "llvm.nvvm.fma.rn.d"]
    pub safe fn fma_rn_f64(a: f64, b: f64, c: f64) -> f64;
    #[link_name = "llvm.nvvm.fmax.f"]
    pub safe fn fmax_f32(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.fmin.f"]
    pub safe fn fmin_f32(a: f32, b: f32) -> f32;
}

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.bf16"]
    #[allow(clippy::too_many_arguments)]
    pub fn mma_m16n8k16_bf16(
        a0: u32,
        a1: u32,
        a2: u32,
        a3: u32,
        b0: u32,
        b1: u32,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> F32x4;
}

/// Keeps the instruction beside it from being copied into two branches.
///
/// Inline asm and `mma` are not convergent for LLVM: between two branches on one condition it copies them into
/// both arms (seen with `movmatrix`), where only some of the warp's lanes execute them. No pass copies a block
/// that holds a convergent call, so each of them has this shuffle in front of it. The shuffle's operands are a
/// pattern that nobody else writes; its result is unused; `psa_codegen::finish` deletes it, and refuses a text
/// in which a collective has lost it. `any` is an operand of the instruction, so that no register is added.
///
/// # Safety
/// All 32 lanes make this call.
#[inline(always)]
pub unsafe fn pin(any: u32) {
    // SAFETY: the caller's contract. Lane and clamp are valid, so an unfinished text runs too.
    let _ = unsafe { shfl_idx(u32::MAX, any, 21, 0x0a15) };
}
