//! The committed PTX and the list of its kernels, for hosts.

use psa_codegen::{Family, KernelDescriptor};

/// The PTX of every kernel, sm_80, ISA 7.8, as `cargo xtask build-ptx` wrote it.
pub const PTX: &str = include_str!("../ptx/psa_kernels.ptx");

/// The manifest beside it: parameters, block sizes, shared memory, hashes.
pub const MANIFEST: &str = include_str!("../ptx/manifest.json");

/// Every kernel family.
pub fn families() -> Vec<&'static Family> {
    vec![
        &crate::append::append::FAMILY,
        &crate::append::append_box::FAMILY,
        &crate::score::score::FAMILY,
        &crate::score::score_box::FAMILY,
        &crate::plan::plan::FAMILY,
        &crate::plan::plan_identity::FAMILY,
        &crate::plan_long::plan_peaks::FAMILY,
        &crate::plan_long::plan_totals::FAMILY,
        &crate::plan_long::plan_runs::FAMILY,
        &crate::plan_long::plan_places::FAMILY,
        &crate::plan_long::plan_sums::FAMILY,
        &crate::plan_long::plan_count::FAMILY,
        &crate::attend::attend::FAMILY,
        &crate::merge::merge::FAMILY,
        &crate::gather::gather::FAMILY,
        &crate::histogram::histogram::FAMILY,
    ]
}

/// The descriptors of every entry in [`PTX`].
pub fn kernels() -> Vec<&'static KernelDescriptor> {
    families().into_iter().flat_map(|family| family.instances).collect()
}
