//! `dist`: the folder that other projects load the kernels from, without this workspace.
//!
//! PTX and manifest are the committed ones; the header is written from them; cubins are what the pinned ptxas
//! makes of the PTX. The same commit and the same ptxas give the same bytes. docs/reuse.md is its manual.

mod header;

use std::fs;
use std::path::{Path, PathBuf};

use psa_codegen::Manifest;
use psa_codegen::manifest::sha256;

use crate::error::{Error, Result};
use crate::ptxas::{self, TARGETS};
use crate::setup::CUDA_TOOLS;
use crate::workspace::Workspace;

/// The file that marks a folder as ours, and checks the others.
const SUMS: &str = "SHA256SUMS";

/// The flags of `dist`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the versioned folder goes.
    pub out: Option<PathBuf>,
    /// Leave the cubins out even where ptxas is.
    pub without_cubins: bool,
}

/// Runs `dist`; prints the folder on stdout.
pub fn dist(workspace: &Workspace, options: &Options) -> Result<()> {
    let root = workspace.root();
    let text = read(&workspace.manifest())?;
    let manifest = Manifest::from_json(&text).map_err(|error| Error::Stale(error.to_string()))?;
    let ptx = read(&workspace.ptx())?;
    if sha256(ptx.as_bytes()) != manifest.ptx_sha256 {
        return Err(Error::Stale("the committed PTX is not the one that its manifest describes".into()));
    }
    let out = options.out.clone().unwrap_or_else(|| workspace.target().join("dist"));
    let folder = out.join(format!("psa-kernels-{}", manifest.toolkit));
    clear(&folder)?;

    let layout = read(&root.join("kernels-gpu/c/psa_layout.h"))?;
    let mut files = vec![
        ("psa_kernels.ptx".to_owned(), ptx.into_bytes()),
        ("manifest.json".to_owned(), text.into_bytes()),
        ("psa_kernels.h".to_owned(), header::header(&manifest, &layout)?.into_bytes()),
    ];
    for name in ["LICENSE-MIT", "LICENSE-APACHE", "docs/reuse.md", "docs/kernels.md", "docs/manifest.md"] {
        files.push((name.to_owned(), read(&root.join(name))?.into_bytes()));
    }
    let cubins = if options.without_cubins {
        "left out (--without-cubins)".to_owned()
    } else if CUDA_TOOLS.installed(workspace) {
        files.extend(cubins(workspace, &folder)?);
        format!(
            "cubin/sm_NN.cubin for {}, by ptxas {}",
            list(&TARGETS),
            ptxas::version(&ptxas::find(workspace)?)?
        )
    } else {
        eprintln!("dist: no cubins, ptxas is not installed (`cargo xtask setup --for build-ptx`)");
        "left out: there was no ptxas where this folder was made".to_owned()
    };
    files.push(("README.md".to_owned(), readme(&manifest, &cubins).into_bytes()));
    files.sort();
    let sums: String = files.iter().map(|(name, content)| format!("{}  {name}\n", sha256(content))).collect();
    for (name, content) in &files {
        write(&folder.join(name), content)?;
    }
    write(&folder.join(SUMS), sums.as_bytes())?;
    let bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
    eprintln!("dist: {} files, {:.1} MB; cubins {cubins}", files.len() + 1, bytes as f64 / 1e6);
    println!("{}", folder.display());
    Ok(())
}

fn cubins(workspace: &Workspace, folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let ptxas = ptxas::find(workspace)?;
    let scratch = folder.join("cubin");
    fs::create_dir_all(&scratch).map_err(Error::io("create", &scratch))?;
    let made = ptxas::each_target(|sm| {
        let path = scratch.join(format!("sm_{sm}.cubin"));
        ptxas::assemble(&ptxas, &workspace.ptx(), sm, &path, false)?;
        fs::read(&path).map_err(Error::io("read", &path))
    })?;
    Ok(made.into_iter().map(|(sm, cubin)| (format!("cubin/sm_{sm}.cubin"), cubin)).collect())
}

/// Removes an earlier distribution; refuses a folder that is not one.
fn clear(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.join(SUMS).is_file() {
        return Err(Error::Input {
            what: format!(
                "{} exists and has no {SUMS}: it was not made by `cargo xtask dist`",
                folder.display()
            ),
            remedy: "remove it, or name another place with --out".into(),
        });
    }
    fs::remove_dir_all(folder).map_err(Error::io("remove", folder))
}

fn list(targets: &[u32]) -> String {
    targets.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn readme(manifest: &Manifest, cubins: &str) -> String {
    format!(
        "# PSA kernels {}\n\nAppend, score, plan, attend, merge and gather for decode attention over a paged KV cache: {} entries.\n\n\
         | file | what |\n|---|---|\n\
         | `psa_kernels.ptx` | every entry, {}, PTX ISA {}; any NVIDIA GPU from compute capability 8.0 on |\n\
         | `cubin/` | {cubins} |\n\
         | `manifest.json` | entries, parameters, launch contracts, hashes: `docs/manifest.md` |\n\
         | `psa_kernels.h` | C99 and C++: constants, sizes, parameter structures, launches over cuLaunchKernel |\n\
         | `docs/` | `reuse.md`: how to launch them; `kernels.md`: what they compute; `manifest.md` |\n\
         | `SHA256SUMS` | `sha256sum -c SHA256SUMS` |\n\n\
         Compiled by {}. MIT or Apache-2.0, at your choice.\n",
        manifest.toolkit,
        manifest.kernels.len(),
        manifest.target,
        manifest.isa,
        manifest.compiler,
    )
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(path, content).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_earlier_distribution_is_replaced() {
        let folder = std::env::temp_dir().join(format!("psa-xtask-dist-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        assert!(clear(&folder).is_ok(), "nothing there");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("thesis.tex"), "years of work").expect("written");
        assert_eq!(clear(&folder).expect_err("not ours").exit_code(), 2);
        assert!(folder.join("thesis.tex").is_file());
        fs::write(folder.join(SUMS), "").expect("written");
        clear(&folder).expect("ours");
        assert!(!folder.exists());
    }
}
