//! How much shared memory the launch has.

use psa_codegen_macros::gpu_only;

/// Bytes of dynamic shared memory of this launch. PTX `%dynamic_smem_size`, ISA 4.1.
#[gpu_only]
#[inline(always)]
pub fn dynamic_smem_size() -> u32 {
    let bytes: u32;
    // SAFETY: reads a register that is constant in a launch.
    unsafe {
        core::arch::asm!("mov.u32 {}, %dynamic_smem_size;", out(reg32) bytes, options(pure, nomem, nostack, preserves_flags));
    }
    bytes
}

/// Bytes of shared memory of this launch, static and dynamic. PTX `%total_smem_size`, ISA 4.1.
#[gpu_only]
#[inline(always)]
pub fn total_smem_size() -> u32 {
    let bytes: u32;
    // SAFETY: reads a register that is constant in a launch.
    unsafe {
        core::arch::asm!("mov.u32 {}, %total_smem_size;", out(reg32) bytes, options(pure, nomem, nostack, preserves_flags));
    }
    bytes
}
