//! Where things are: the workspace, its target folder, the installed tools, the committed PTX.
//!
//! The tools lie in `<workspace>/target/psa-tools` even when CARGO_TARGET_DIR points elsewhere, because
//! `.cargo/config.toml` names libtorch relative to the workspace.

use std::path::{Path, PathBuf};

/// The paths of this checkout.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout that cargo started us in, or the one that this binary was built from.
    pub fn locate() -> Workspace {
        let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .filter(|dir| dir.ends_with("xtask"))
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let root = manifest_dir.parent().map_or_else(|| manifest_dir.clone(), Path::to_path_buf);
        Workspace { root }
    }

    /// The folder of the workspace's Cargo.toml.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder for host builds.
    pub fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// The device build's own target folder: its flags must not invalidate the host build.
    pub fn device_target(&self) -> PathBuf {
        self.target().join("psa-device")
    }

    /// Where `setup` installs.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target").join("psa-tools")
    }

    /// The pinned requirements file `name`.
    pub fn requirements(&self, name: &str) -> PathBuf {
        self.root.join("xtask").join("requirements").join(name)
    }

    /// The committed PTX.
    pub fn ptx(&self) -> PathBuf {
        self.root.join("kernels-gpu").join("ptx").join("psa_kernels.ptx")
    }

    /// The committed manifest of the PTX.
    pub fn manifest(&self) -> PathBuf {
        self.root.join("kernels-gpu").join("ptx").join("manifest.json")
    }

    /// `path` as shown to the user: relative to the workspace where it lies inside.
    pub fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}
