//! `build-ptx`: from the kernels' sources to the committed PTX and its manifest, or the check that both agree.
//!
//! The compiler's text is finished (launch bounds moved into place), linted against the descriptors of the
//! host build, and written to kernels-gpu/ptx with a manifest that names compiler, sources and text by hash.
//!
//! Trap: two compilers print different text for the same sources. The check therefore compares text only
//! when the compiler is the one in the manifest, and the hash of the sources always.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::device::{self, DeviceCompiler};
use crate::error::{Error, Result};
use crate::pipeline;
use crate::ptxas;
use crate::wheels::sha256_hex;
use crate::workspace::Workspace;

/// What the PTX is made from, beside the build's flags and profile: files, and folders with all that is
/// below. The compiler, macros and finishing steps are part of it.
const SOURCES: [&str; 6] = [
    "kernels-gpu/src",
    "kernels-gpu/Cargo.toml",
    "cuda_std/src",
    "cuda_std/Cargo.toml",
    "codegen/src",
    "codegen/macros/src",
];

/// The flags of `build-ptx`.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Compare instead of writing.
    pub check: bool,
    /// Assemble with ptxas.
    pub verify: bool,
}

/// PTX and manifest as text, and what they were made by and from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// The finished PTX.
    pub ptx: String,
    /// The manifest, JSON.
    pub manifest: String,
    /// Identity of the compiler.
    pub compiler: String,
    /// Hash of the sources.
    pub sources: String,
}

/// Runs `build-ptx`.
pub fn build_ptx(workspace: &Workspace, options: Options) -> Result<()> {
    if options.verify {
        // Before the long part.
        ptxas::find(workspace)?;
    }
    let compiler = DeviceCompiler::find().ok_or_else(device::missing)?;
    eprintln!("==> device build with {} ({})", compiler.version.identity, compiler.place);
    let raw = compiler.build(workspace)?;
    let sources = source_hash(workspace.root())?;
    let (ptx, manifest) = pipeline::finish(&raw, &compiler.version.identity, &sources)?;
    let built = Product { ptx, manifest, compiler: compiler.version.identity, sources };

    if options.check {
        let committed_ptx = read(&workspace.ptx())?;
        let committed_manifest = read(&workspace.manifest())?;
        match compare(&committed_ptx, &committed_manifest, &built)? {
            Agreement::SameText => {
                println!("kernels-gpu/ptx is what the sources give ({})", built.compiler);
            }
            Agreement::SameSources { committed } => println!(
                "kernels-gpu/ptx was made from these sources. Text not compared: it was made by {committed}, \
                 this machine has {}",
                built.compiler
            ),
        }
    } else {
        write(&workspace.ptx(), &built.ptx)?;
        write(&workspace.manifest(), &built.manifest)?;
        println!(
            "wrote {} ({} kernels, {} KB) and {}",
            workspace.show(&workspace.ptx()),
            built.ptx.matches(".visible .entry").count(),
            built.ptx.len().div_ceil(1000),
            workspace.show(&workspace.manifest())
        );
    }
    if options.verify {
        ptxas::verify(workspace, &workspace.ptx())?;
    }
    Ok(())
}

/// How the committed files agree with the sources.
#[derive(Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Same compiler, same text.
    SameText,
    /// Another compiler made the committed text, from the same sources.
    SameSources {
        /// That compiler.
        committed: String,
    },
}

/// Compares the committed files with what was just built.
pub fn compare(committed_ptx: &str, committed_manifest: &str, built: &Product) -> Result<Agreement> {
    let stale = |text: String| Err(Error::Stale(text));
    let manifest: serde_json::Value = match serde_json::from_str(committed_manifest) {
        Ok(value) => value,
        Err(error) => return stale(format!("kernels-gpu/ptx/manifest.json is not JSON: {error}")),
    };
    let field =
        |name: &str| manifest.get(name).and_then(serde_json::Value::as_str).unwrap_or("absent").to_owned();
    let same_compiler = field("compiler") == built.compiler;
    if same_compiler && let Some(difference) = first_difference(committed_ptx, &built.ptx) {
        return stale(format!("kernels-gpu/ptx/psa_kernels.ptx is not what the sources give: {difference}"));
    }
    let text_hash = sha256_hex(committed_ptx.as_bytes());
    if field("ptx_sha256") != text_hash {
        return stale(format!(
            "kernels-gpu/ptx/psa_kernels.ptx is not the file its manifest describes: sha256 is {text_hash}, \
             the manifest says {}",
            field("ptx_sha256")
        ));
    }
    if field("sources_sha256") != built.sources {
        return stale(format!(
            "kernels-gpu/ptx was made from other sources: they hash to {}, the manifest says {}",
            built.sources,
            field("sources_sha256")
        ));
    }
    if !same_compiler {
        return Ok(Agreement::SameSources { committed: field("compiler") });
    }
    match first_difference(committed_manifest, &built.manifest) {
        Some(difference) => {
            stale(format!("kernels-gpu/ptx/manifest.json is not what the sources give: {difference}"))
        }
        None => Ok(Agreement::SameText),
    }
}

/// The first line that differs, as `line 12: committed `..`, built `..``.
fn first_difference(committed: &str, built: &str) -> Option<String> {
    if committed == built {
        return None;
    }
    let (mut left, mut right) = (committed.lines(), built.lines());
    let mut number = 0;
    loop {
        number += 1;
        let (a, b) = (left.next(), right.next());
        if a != b {
            let show = |line: Option<&str>| match line {
                Some(line) => format!("`{}`", line.trim().chars().take(120).collect::<String>()),
                None => "the end of the file".to_owned(),
            };
            return Some(format!("line {number}: committed {}, built {}", show(a), show(b)));
        }
        if a.is_none() {
            return Some("only the line ends differ".to_owned());
        }
    }
}

/// One hash over every source file, the flags and the device profile.
pub fn source_hash(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hasher = Sha256::new();
    let mut add = |name: &str, content: &[u8]| {
        // With lengths, so that moving bytes from one file to the next changes the hash.
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(content);
    };
    add("rustflags", device::RUSTFLAGS.as_bytes());
    let manifest = root.join("Cargo.toml");
    add("profile", device_profile(&read(&manifest)?).as_bytes());
    for file in files {
        let content = fs::read(&file).map_err(Error::io("read", &file))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        add(&name, &content);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The settings of `[profile.device]`, without comments.
fn device_profile(manifest: &str) -> String {
    let lines = manifest.lines().skip_while(|line| line.trim() != "[profile.device]").skip(1);
    lines
        .map(str::trim)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        collect(&entry.map_err(Error::io("list", path))?.path(), files)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::Stale(format!("{} does not exist", path.display())))
        }
        other => other.map_err(Error::io("read", path)),
    }
}

/// Written beside and renamed: a reader never sees half a file.
fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, text).map_err(Error::io("write", &partial))?;
    fs::rename(&partial, path).map_err(Error::io("rename", &partial))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = ".version 7.8\n.target sm_80\n.visible .entry a()\n";

    fn product(compiler: &str, ptx: &str, sources: &str) -> Product {
        let manifest = serde_json::json!({
            "compiler": compiler,
            "ptx_sha256": sha256_hex(ptx.as_bytes()),
            "sources_sha256": sources,
        });
        Product {
            ptx: ptx.into(),
            manifest: manifest.to_string(),
            compiler: compiler.into(),
            sources: sources.into(),
        }
    }

    #[test]
    fn the_same_build_agrees() {
        let built = product("rustc 1", PTX, "s1");
        assert_eq!(compare(PTX, &built.manifest, &built).expect("agrees"), Agreement::SameText);
    }

    #[test]
    fn changed_text_is_stale_and_the_first_difference_is_shown() {
        let old = product("rustc 1", PTX, "s1");
        let new = product("rustc 1", &PTX.replace("entry a", "entry b"), "s2");
        let error = compare(&old.ptx, &old.manifest, &new).expect_err("stale");
        let text = error.to_string();
        assert!(
            text.contains("line 3") && text.contains("entry a()") && text.contains("entry b()"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn another_compiler_with_other_text_agrees_if_the_sources_do() {
        let old = product("rustc 1", PTX, "s1");
        let new = product("rustc 2", &PTX.replace('a', "b"), "s1");
        let agreement = compare(&old.ptx, &old.manifest, &new).expect("agrees");
        assert_eq!(agreement, Agreement::SameSources { committed: "rustc 1".into() });
    }

    #[test]
    fn another_compiler_does_not_hide_stale_sources() {
        let old = product("rustc 1", PTX, "s1");
        let new = product("rustc 2", PTX, "s2");
        let error = compare(&old.ptx, &old.manifest, &new).expect_err("stale");
        assert!(error.to_string().contains("other sources"), "{error}");
    }

    #[test]
    fn an_edited_ptx_is_found_with_any_compiler() {
        let old = product("rustc 1", PTX, "s1");
        let edited = PTX.replace("sm_80", "sm_90");
        for compiler in ["rustc 1", "rustc 2"] {
            let built = product(compiler, PTX, "s1");
            assert!(compare(&edited, &old.manifest, &built).is_err(), "{compiler}");
        }
    }

    #[test]
    fn a_manifest_that_differs_elsewhere_is_stale() {
        let built = product("rustc 1", PTX, "s1");
        let mut manifest: serde_json::Value = serde_json::from_str(&built.manifest).expect("json");
        manifest["kernels"] = 3.into();
        assert!(compare(PTX, &manifest.to_string(), &built).is_err());
        assert!(compare(PTX, "{", &built).is_err());
    }

    #[test]
    fn a_missing_final_newline_is_a_difference() {
        assert!(first_difference("a\nb\n", "a\nb").is_some());
        assert!(first_difference("a\n", "a\n").is_none());
        assert!(first_difference("a\n", "a\nb\n").is_some_and(|text| text.contains("end of the file")));
    }

    #[test]
    fn the_source_hash_depends_on_every_source_the_flags_and_the_profile() {
        let root = std::env::temp_dir().join(format!("psa-xtask-sources-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let put = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("written");
        };
        put("Cargo.toml", "[profile.device]\nopt-level = 3\n\n[profile.dev]\nx = 1\n");
        for source in SOURCES {
            put(&if source.ends_with("src") { format!("{source}/lib.rs") } else { source.to_owned() }, "1");
        }
        let hash = || source_hash(&root).expect("a hash");
        let mut seen = vec![hash()];
        assert_eq!(seen[0], hash());
        put("Cargo.toml", "[profile.device]\n# why\nopt-level = 3\n[profile.dev]\nx = 2\n");
        assert_eq!(seen[0], hash(), "other profiles and comments do not matter");
        put("Cargo.toml", "[profile.device]\nopt-level = 2\n");
        seen.push(hash());
        for source in SOURCES {
            put(&if source.ends_with("src") { format!("{source}/lib.rs") } else { source.to_owned() }, "2");
            seen.push(hash());
        }
        put("kernels-gpu/src/new/mod.rs", "");
        seen.push(hash());
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count, "two different source trees have one hash");
        let _ = fs::remove_dir_all(root);
    }
}
