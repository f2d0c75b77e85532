//! The crates whose PTX is committed: what each is made from, and what it must contain.

use psa_codegen::{Family, LintOptions};

/// A crate of kernels with its PTX and manifest in `FOLDER/ptx`.
#[derive(Debug, Clone, Copy)]
pub struct DeviceCrate {
    /// Cargo's name of the package.
    pub package: &'static str,
    /// Name of its library, and so of the compiler's output.
    pub library: &'static str,
    /// Folder from the workspace's root.
    pub folder: &'static str,
    /// Name of the PTX file.
    pub ptx: &'static str,
    /// What the PTX is made from, beside the build's flags and profile: files, and folders with all that is
    /// below. The macros and the finishing steps are part of it.
    pub sources: &'static [&'static str],
    /// The kernels it must contain.
    pub families: fn() -> Vec<&'static Family>,
    /// What the lint lets pass.
    pub lint_options: fn() -> LintOptions,
}

impl DeviceCrate {
    /// The PTX, from the workspace's root.
    pub fn ptx_path(&self) -> String {
        format!("{}/ptx/{}", self.folder, self.ptx)
    }

    /// The manifest, from the workspace's root.
    pub fn manifest_path(&self) -> String {
        format!("{}/ptx/manifest.json", self.folder)
    }
}

/// The kernels of the toolkit.
pub const KERNELS: DeviceCrate = DeviceCrate {
    package: "psa-kernels-gpu",
    library: "kernels_gpu",
    folder: "kernels-gpu",
    ptx: "psa_kernels.ptx",
    sources: &[
        "kernels-gpu/src",
        "kernels-gpu/Cargo.toml",
        "cuda_std/src",
        "cuda_std/Cargo.toml",
        "codegen/src",
        "codegen/macros/src",
    ],
    families: kernels_gpu::families,
    lint_options: LintOptions::default,
};

/// The kernels that exercise the device library.
pub const CONFORMANCE: DeviceCrate = DeviceCrate {
    package: "psa-cuda-std-conformance",
    library: "psa_cuda_std_conformance",
    folder: "cuda_std/conformance",
    ptx: "conformance.ptx",
    sources: &[
        "cuda_std/conformance/src",
        "cuda_std/conformance/Cargo.toml",
        "cuda_std/src",
        "cuda_std/Cargo.toml",
        "codegen/src",
        "codegen/macros/src",
    ],
    families: psa_cuda_std_conformance::families,
    lint_options: psa_cuda_std_conformance::lint_options,
};
