//! `build-ptx`: from the device crates' sources to the committed PTX and manifests, or the check that both
//! agree.
//!
//! The compiler's text is finished (launch bounds moved into place), linted against the descriptors of the
//! host build, and written to the crate's `ptx/` with a manifest that names compiler, sources and text by hash.
//!
//! Trap: two compilers print different text for the same sources. The check therefore compares text only
//! when the compiler is the one in the manifest, and the hash of the sources always.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use psa_codegen::Manifest;
use psa_codegen::manifest::{combined_sha256, sha256};

use crate::device::{self, DeviceCompiler};
use crate::device_crates::{CONFORMANCE, DeviceCrate, KERNELS};
use crate::error::{Error, Result};
use crate::pipeline;
use crate::ptxas;
use crate::workspace::Workspace;

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
    /// Hash of each source.
    pub sources: BTreeMap<String, String>,
}

/// Runs `build-ptx` for every device crate.
pub fn build_ptx(workspace: &Workspace, options: Options) -> Result<()> {
    if options.verify {
        // Before the long part.
        ptxas::find(workspace)?;
    }
    let compiler = DeviceCompiler::find().ok_or_else(device::missing)?;
    for krate in [&KERNELS, &CONFORMANCE] {
        build_crate(workspace, krate, &compiler, options.check)?;
    }
    if options.verify {
        ptxas::verify(workspace, &workspace.root().join(KERNELS.ptx_path()))?;
    }
    Ok(())
}

fn build_crate(
    workspace: &Workspace,
    krate: &DeviceCrate,
    compiler: &DeviceCompiler,
    check: bool,
) -> Result<()> {
    eprintln!("==> device build of {} with {} ({})", krate.folder, compiler.version.identity, compiler.place);
    // Before the build: a file saved meanwhile is then a difference, not a hash of what was not compiled.
    let sources = source_hashes(workspace.root(), krate)?;
    let raw = compiler.build(workspace, krate)?;
    let finished = pipeline::finish(&raw, krate, &compiler.version.identity, sources.clone())?;
    if let Some(findings) = finished.findings {
        let rejected = workspace.device_target().join("rejected.ptx");
        write(&rejected, &finished.ptx)?;
        return Err(Error::BadPtx(format!(
            "{findings}\n  remedy: the lines are those of {}; {}/ptx is as it was",
            workspace.show(&rejected),
            krate.folder
        )));
    }
    let built = Product {
        ptx: finished.ptx,
        manifest: finished.manifest,
        compiler: compiler.version.identity.clone(),
        sources,
    };
    let (ptx, manifest) = (krate.ptx_path(), krate.manifest_path());
    let in_workspace = |path: &str| workspace.root().join(path);
    if !check {
        write(&in_workspace(&ptx), &built.ptx)?;
        write(&in_workspace(&manifest), &built.manifest)?;
        println!(
            "wrote {ptx} ({} kernels, {} KB) and {manifest}",
            built.ptx.matches(".visible .entry").count(),
            built.ptx.len().div_ceil(1000),
        );
        return Ok(());
    }
    match compare(krate, &read(&in_workspace(&ptx))?, &read(&in_workspace(&manifest))?, &built)? {
        Agreement::SameText => println!("{ptx} is what the sources give ({})", built.compiler),
        Agreement::SameSources { committed } => println!(
            "{ptx} was made from these sources. Text not compared: it was made by {committed}, this machine \
             has {}",
            built.compiler
        ),
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
pub fn compare(
    krate: &DeviceCrate,
    committed_ptx: &str,
    committed_manifest: &str,
    built: &Product,
) -> Result<Agreement> {
    let (ptx_path, manifest_path) = (krate.ptx_path(), krate.manifest_path());
    let stale = |text: String| Err(Error::Stale(text));
    let manifest = match Manifest::from_json(committed_manifest) {
        Ok(manifest) => manifest,
        Err(error) => return stale(format!("{manifest_path}: {error}")),
    };
    let same_compiler = manifest.compiler == built.compiler;
    if same_compiler && let Some(difference) = first_difference(committed_ptx, &built.ptx) {
        return stale(format!("{ptx_path} is not what the sources give: {difference}"));
    }
    let text_hash = sha256(committed_ptx.as_bytes());
    if manifest.ptx_sha256 != text_hash {
        return stale(format!(
            "{ptx_path} is not the file its manifest describes: sha256 is {text_hash}, \
             the manifest says {}",
            manifest.ptx_sha256
        ));
    }
    if manifest.sources_sha256 != combined_sha256(&built.sources) || manifest.sources != built.sources {
        return stale(format!(
            "{ptx_path} was made from other sources; different now: {}",
            changed(&manifest.sources, &built.sources)
        ));
    }
    if !same_compiler {
        return Ok(Agreement::SameSources { committed: manifest.compiler });
    }
    match first_difference(committed_manifest, &built.manifest) {
        Some(difference) => stale(format!("{manifest_path} is not what the sources give: {difference}")),
        None => Ok(Agreement::SameText),
    }
}

/// The names of the sources that were changed, added or removed.
fn changed(committed: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> String {
    let mut names: Vec<&str> = now
        .iter()
        .filter(|(name, hash)| committed.get(*name) != Some(hash))
        .chain(committed.iter().filter(|(name, _)| !now.contains_key(*name)))
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    match names.is_empty() {
        true => "none, but the manifest's combined hash is wrong".to_owned(),
        false => names.join(", "),
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

/// The hash of every source file by its path, and those of the flags and of the device profile.
pub fn source_hashes(root: &Path, krate: &DeviceCrate) -> Result<BTreeMap<String, String>> {
    let mut files = Vec::new();
    for source in krate.sources {
        collect(&root.join(source), &mut files)?;
    }
    let mut hashes = BTreeMap::new();
    for file in files {
        let content = fs::read(&file).map_err(Error::io("read", &file))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        hashes.insert(name, sha256(&content));
    }
    hashes.insert("flags of the device build".to_owned(), sha256(device::RUSTFLAGS.as_bytes()));
    let profile = device_profile(&read(&root.join("Cargo.toml"))?);
    hashes.insert("profile.device in Cargo.toml".to_owned(), sha256(profile.as_bytes()));
    Ok(hashes)
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

/// All files below `path`, without unit tests in files of their own: no build of the device sees those.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return Ok(());
    }
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

    fn product(compiler: &str, ptx: &str, source: &str) -> Product {
        let sources = BTreeMap::from([
            ("kernels-gpu/src/a.rs".to_owned(), sha256(source.as_bytes())),
            ("kernels-gpu/src/b.rs".to_owned(), sha256(b"same")),
        ]);
        let manifest = Manifest::new(ptx, &[], "0.1.0", compiler, sources.clone())
            .and_then(|manifest| manifest.to_json())
            .expect("a manifest");
        Product { ptx: ptx.into(), manifest, compiler: compiler.into(), sources }
    }

    #[test]
    fn the_same_build_agrees() {
        let built = product("rustc 1", PTX, "s1");
        assert_eq!(compare(&KERNELS, PTX, &built.manifest, &built).expect("agrees"), Agreement::SameText);
    }

    #[test]
    fn changed_text_is_stale_and_the_first_difference_is_shown() {
        let old = product("rustc 1", PTX, "s1");
        let new = product("rustc 1", &PTX.replace("entry a", "entry b"), "s2");
        let error = compare(&KERNELS, &old.ptx, &old.manifest, &new).expect_err("stale");
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
        let new = product("rustc 2", &PTX.replace("entry a", "entry b"), "s1");
        let agreement = compare(&KERNELS, &old.ptx, &old.manifest, &new).expect("agrees");
        assert_eq!(agreement, Agreement::SameSources { committed: "rustc 1".into() });
    }

    #[test]
    fn another_compiler_does_not_hide_stale_sources_and_they_are_named() {
        let old = product("rustc 1", PTX, "s1");
        let new = product("rustc 2", PTX, "s2");
        let text = compare(&KERNELS, &old.ptx, &old.manifest, &new).expect_err("stale").to_string();
        assert!(text.contains("a.rs") && !text.contains("b.rs"), "{text}");
    }

    #[test]
    fn sources_that_change_without_changing_the_text_are_stale() {
        let old = product("rustc 1", PTX, "s1");
        let new = product("rustc 1", PTX, "s2");
        assert!(compare(&KERNELS, &old.ptx, &old.manifest, &new).is_err());
    }

    #[test]
    fn added_and_removed_sources_are_named() {
        let map = |names: &[&str]| {
            names.iter().map(|name| ((*name).to_owned(), String::new())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(changed(&map(&["a", "b"]), &map(&["b", "c"])), "a, c");
    }

    #[test]
    fn an_edited_ptx_is_found_with_any_compiler() {
        let old = product("rustc 1", PTX, "s1");
        let edited = PTX.replace("sm_80", "sm_90");
        for compiler in ["rustc 1", "rustc 2"] {
            let built = product(compiler, PTX, "s1");
            assert!(compare(&KERNELS, &edited, &old.manifest, &built).is_err(), "{compiler}");
        }
    }

    #[test]
    fn a_manifest_that_differs_elsewhere_or_cannot_be_read_is_stale() {
        let built = product("rustc 1", PTX, "s1");
        let edited = built.manifest.replace("\"0.1.0\"", "\"0.2.0\"");
        assert_ne!(edited, built.manifest);
        for manifest in [edited.as_str(), "{", ""] {
            let error = compare(&KERNELS, PTX, manifest, &built).expect_err(manifest);
            assert_eq!(error.exit_code(), 1);
        }
    }

    #[test]
    fn a_missing_final_newline_is_a_difference() {
        assert!(first_difference("a\nb\n", "a\nb").is_some());
        assert!(first_difference("a\n", "a\n").is_none());
        assert!(first_difference("a\n", "a\nb\n").is_some_and(|text| text.contains("end of the file")));
    }

    #[test]
    fn the_source_hashes_depend_on_every_source_the_flags_and_the_profile() {
        let root = std::env::temp_dir().join(format!("psa-xtask-sources-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let put = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("written");
        };
        put("Cargo.toml", "[profile.device]\nopt-level = 3\n\n[profile.dev]\nx = 1\n");
        for source in KERNELS.sources {
            put(
                &if source.ends_with("src") { format!("{source}/lib.rs") } else { (*source).to_owned() },
                "1",
            );
        }
        let hash = || source_hashes(&root, &KERNELS).expect("a hash");
        let mut seen = vec![hash()];
        assert_eq!(seen[0], hash());
        put("Cargo.toml", "[profile.device]\n# why\nopt-level = 3\n[profile.dev]\nx = 2\n");
        assert_eq!(seen[0], hash(), "other profiles and comments do not matter");
        put("Cargo.toml", "[profile.device]\nopt-level = 2\n");
        seen.push(hash());
        for source in KERNELS.sources {
            put(
                &if source.ends_with("src") { format!("{source}/lib.rs") } else { (*source).to_owned() },
                "2",
            );
            seen.push(hash());
        }
        put("kernels-gpu/src/new/tests.rs", "");
        assert_eq!(seen.last(), Some(&hash()), "unit tests do not matter");
        put("kernels-gpu/src/new/mod.rs", "");
        seen.push(hash());
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count, "two different source trees have one hash");
        let _ = fs::remove_dir_all(root);
    }
}
