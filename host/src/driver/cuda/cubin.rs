//! The kernels' machine code: compiled by the driver from the shipped PTX, or taken from the cache on disk.
//!
//! An entry is named by the sha256 of the PTX, the GPU's name and capability, and the driver's version; it
//! holds a header, the sha256 of the code, and the code. It is written beside its place and renamed. An entry
//! that is damaged, or that the driver does not take, is ignored and written anew; a cache that cannot be
//! written costs time and is no error.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use cust::module::Module;
use sha2::{Digest, Sha256};

use super::open::words;
use super::raw::{self, of_cust};
use crate::driver::{DriverError, Gpu};

const HEADER: &[u8] = b"psa-cubin-1\n";

/// Where compiled kernels are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CubinCache {
    /// `PSA_CUBIN_CACHE`, which may be empty for no cache; else `psa/cubin` in `XDG_CACHE_HOME` or `~/.cache`.
    #[default]
    Usual,
    /// This folder.
    Folder(PathBuf),
    /// Nowhere: every start compiles.
    Off,
}

impl CubinCache {
    fn folder(&self) -> Option<PathBuf> {
        match self {
            CubinCache::Off => None,
            CubinCache::Folder(folder) => Some(folder.clone()),
            CubinCache::Usual => usual(|name| std::env::var_os(name)),
        }
    }
}

fn usual(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(folder) = variable("PSA_CUBIN_CACHE") {
        return (!folder.is_empty()).then(|| PathBuf::from(folder));
    }
    // The XDG specification: a relative path is to be ignored.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("psa").join("cubin"))
}

/// Where the kernels' code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The driver compiled the PTX.
    Compiled,
    /// An earlier start did.
    Cache,
}

/// Loads the kernels of `ptx` into the current context.
pub(super) fn load(gpu: &Gpu, cache: &CubinCache, ptx: &str) -> Result<(Module, Origin), DriverError> {
    let error = |detail| DriverError::Module { device: format!("cuda:{} ({})", gpu.index, gpu.name), detail };
    let driver = [gpu.driver.to_string(), driver_release().unwrap_or_default()].join(" ");
    let file = cache.folder().map(|folder| folder.join(key(ptx, gpu, &driver) + ".cubin"));
    if let Some(cubin) = file.as_deref().and_then(read)
        && let Ok(module) = Module::from_cubin(&cubin, &[])
    {
        return Ok((module, Origin::Cache));
    }
    let cubin = raw::compile(ptx, "psa_kernels.ptx").map_err(|rejected| {
        let words = words(rejected.failure);
        error(if rejected.log.is_empty() { words } else { format!("{words}\n{}", rejected.log) })
    })?;
    let module = of_cust(Module::from_cubin(&cubin, &[])).map_err(|failure| error(words(failure)))?;
    if let Some(file) = file {
        // Without it the next start compiles again.
        let _ = write(&file, &cubin);
    }
    Ok((module, Origin::Compiled))
}

/// The release of the kernel module, which the CUDA version does not tell.
fn driver_release() -> Option<String> {
    fs::read_to_string("/sys/module/nvidia/version").ok().map(|text| text.trim().to_owned())
}

fn key(ptx: &str, gpu: &Gpu, driver: &str) -> String {
    let mut hash = Sha256::new();
    for part in [ptx, &gpu.name, &gpu.sm.to_string(), driver] {
        // Lengths, so that parts cannot run into each other.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(file).ok()?;
    let (sum, cubin) = bytes.strip_prefix(HEADER)?.split_at_checked(32)?;
    (Sha256::digest(cubin).as_slice() == sum).then(|| cubin.to_vec())
}

fn write(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let draft = folder.join(format!(".{}-{:?}.draft", std::process::id(), std::thread::current().id()));
    let contents = [HEADER, Sha256::digest(cubin).as_slice(), cubin].concat();
    let written = fs::write(&draft, contents).and_then(|()| fs::rename(&draft, file));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Gpu {
        Gpu { index: 0, name: "GPU".into(), sm: 80, multiprocessors: 1, memory: 1, driver: 12_040 }
    }

    #[test]
    fn every_part_of_the_key_changes_it() {
        let base = key("ptx", &gpu(), "12040");
        assert_eq!(base, key("ptx", &Gpu { index: 3, ..gpu() }, "12040"), "equal GPUs share an entry");
        assert_ne!(base, key("ptx ", &gpu(), "12040"));
        assert_ne!(base, key("ptx", &gpu(), "12050"));
        assert_ne!(base, key("ptx", &Gpu { sm: 86, ..gpu() }, "12040"));
        assert_ne!(base, key("ptx", &Gpu { name: "GPU 2".into(), ..gpu() }, "12040"));
        assert_ne!(
            key("a", &Gpu { name: "bc".into(), ..gpu() }, ""),
            key("ab", &Gpu { name: "c".into(), ..gpu() }, "")
        );
    }

    #[test]
    fn the_usual_folder_follows_the_environment() {
        let with = |set: &'static [(&str, &str)]| {
            usual(move |name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
        };
        assert_eq!(with(&[("HOME", "/h")]), Some("/h/.cache/psa/cubin".into()));
        assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/psa/cubin".into()));
        assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")]), Some("/h/.cache/psa/cubin".into()));
        assert_eq!(with(&[("HOME", "/h"), ("PSA_CUBIN_CACHE", "/c")]), Some("/c".into()));
        assert_eq!(with(&[("HOME", "/h"), ("PSA_CUBIN_CACHE", "")]), None);
        assert_eq!(with(&[]), None);
    }
}
