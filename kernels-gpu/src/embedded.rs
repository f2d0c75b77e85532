//! The committed PTX and the list of its kernels, for hosts.

use psa_codegen::KernelDescriptor;

/// The PTX of every kernel, sm_80, ISA 7.8, as `cargo xtask build-ptx` wrote it.
pub const PTX: &str = include_str!("../ptx/psa_kernels.ptx");

/// The manifest beside it: parameters, block sizes, shared memory, hashes.
pub const MANIFEST: &str = include_str!("../ptx/manifest.json");

/// The descriptors of every entry in [`PTX`].
pub fn kernels() -> Vec<&'static KernelDescriptor> {
    let families: [&'static [KernelDescriptor]; 9] = [
        &crate::append::append::INSTANCES,
        &crate::append::append_box::INSTANCES,
        &crate::score::score::INSTANCES,
        &crate::score::score_box::INSTANCES,
        &crate::plan::plan::INSTANCES,
        &crate::plan::plan_identity::INSTANCES,
        &crate::attend::attend::INSTANCES,
        &crate::merge::merge::INSTANCES,
        &crate::gather::gather::INSTANCES,
    ];
    families.into_iter().flatten().collect()
}
