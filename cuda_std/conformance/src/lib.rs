//! Kernels that exercise every helper of `cuda_std`, to be run where their PTX can be.
//!
//! One file a part of the library; a kernel reads inputs, calls helpers and writes what they gave, word by
//! word, for a test to compare with values computed independently. `ptx/conformance.ptx` is this crate's
//! device build (`cargo xtask build-ptx`); the tests in `tests/` run it on the emulator, so they need no device
//! compiler.

#![cfg_attr(target_arch = "nvptx64", no_std, feature(abi_ptx, asm_experimental_arch))]
#![cfg_attr(not(target_arch = "nvptx64"), allow(dead_code, unused_imports))]

pub mod arithmetic;
pub mod atomics;
pub mod block;
pub mod convergence;
pub mod matrix;
pub mod memory;
pub mod warp;

/// The PTX of this crate.
#[cfg(not(target_arch = "nvptx64"))]
pub const PTX: &str = include_str!("../ptx/conformance.ptx");

/// Every kernel family of this crate.
#[cfg(not(target_arch = "nvptx64"))]
pub fn families() -> Vec<&'static psa_codegen::Family> {
    vec![
        &arithmetic::approximations::FAMILY,
        &arithmetic::dots::FAMILY,
        &arithmetic::from_halves::FAMILY,
        &arithmetic::to_halves::FAMILY,
        &arithmetic::rounding::FAMILY,
        &atomics::counters::FAMILY,
        &atomics::floats::FAMILY,
        &atomics::shared_atomics::FAMILY,
        &block::barriers::FAMILY,
        &block::clocks::FAMILY,
        &block::positions::FAMILY,
        &convergence::used_by_one_lane::FAMILY,
        &convergence::between_branches::FAMILY,
        &matrix::fragments::FAMILY,
        &matrix::multiply::FAMILY,
        &memory::address_spaces::FAMILY,
        &memory::copies::FAMILY,
        &memory::shared_types::FAMILY,
        &warp::matches::FAMILY,
        &warp::reductions::FAMILY,
        &warp::shuffles::FAMILY,
        &warp::shuffle_types::FAMILY,
        &warp::votes::FAMILY,
    ]
}

/// Every kernel of this crate.
#[cfg(not(target_arch = "nvptx64"))]
pub fn kernels() -> Vec<&'static psa_codegen::KernelDescriptor> {
    families().into_iter().flat_map(|family| family.instances).collect()
}

/// What the lint may find here and nowhere else: the generic accesses of rust-cuda's pointer API.
#[cfg(not(target_arch = "nvptx64"))]
pub fn lint_options() -> psa_codegen::LintOptions {
    let allowed = ["address_spaces", "floats"].map(|family| (family.to_owned(), psa_codegen::Rule::Generic));
    psa_codegen::LintOptions { allowed: allowed.to_vec(), ..psa_codegen::LintOptions::default() }
}
