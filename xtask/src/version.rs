//! Version numbers as compilers and packages print them: `1.96.0+dfsg1-1~deb12u2`, `1.97.0-nightly`.
//!
//! Only major, minor and patch are compared; a nightly of 1.96 counts as 1.96.

use std::fmt;

/// The oldest compiler whose NVPTX back end builds the kernels.
pub const OLDEST_DEVICE_COMPILER: Version = Version { major: 1, minor: 96, patch: 0 };

/// Major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number; 0 where absent.
    pub patch: u32,
}

impl Version {
    /// Reads the number at the start of `text`, after an optional Debian epoch (`1:`).
    pub fn parse(text: &str) -> Option<Version> {
        let text = text.trim();
        let text = match text.split_once(':') {
            Some((epoch, rest)) if epoch.bytes().all(|b| b.is_ascii_digit()) => rest,
            _ => text,
        };
        let mut parts = text.splitn(3, '.');
        let number = |part: &str| -> Option<u32> {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse().ok()
        };
        let major = number(parts.next()?)?;
        let minor = number(parts.next()?)?;
        let patch = parts.next().and_then(number).unwrap_or(0);
        Some(Version { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Who compiles: the lines of `rustc -vV` that decide what text comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompilerVersion {
    /// The release number.
    pub release: Version,
    /// Release, commit and LLVM as one line: two compilers print the same PTX only if this is equal.
    pub identity: String,
}

impl CompilerVersion {
    /// Reads the answer of `rustc -vV`.
    pub fn parse(verbose: &str) -> Option<CompilerVersion> {
        let field = |name: &str| {
            verbose.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
        };
        let release = field("release")?;
        let commit = field("commit-hash").unwrap_or("unknown");
        let commit = commit.get(..9).unwrap_or(commit);
        let llvm = field("LLVM version").unwrap_or("unknown");
        Some(CompilerVersion {
            release: Version::parse(release)?,
            identity: format!("rustc {release} ({commit}), LLVM {llvm}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_not_by_text() {
        let parse = |text| Version::parse(text).expect("a version");
        assert!(parse("1.85.0+dfsg3-1~deb12u3") < OLDEST_DEVICE_COMPILER);
        assert!(parse("1.96.0+dfsg1-1~deb12u2") >= OLDEST_DEVICE_COMPILER);
        assert!(parse("1.97.0-nightly") > OLDEST_DEVICE_COMPILER);
        assert!(parse("1.100.0") > parse("1.96.0"));
        assert!(parse("1:1.9.0") < parse("1.10"));
        assert_eq!(parse("13.5").patch, 0);
        assert_eq!(Version::parse("(none)"), None);
        assert_eq!(Version::parse(""), None);
    }

    #[test]
    fn compilers_of_one_release_and_another_llvm_differ() {
        let debian = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\ncommit-hash: ac68faa20c58\nrelease: 1.96.0\nLLVM version: 22.1.8";
        let upstream = debian.replace("22.1.8", "22.1.2");
        let debian = CompilerVersion::parse(debian).expect("rustc -vV");
        let upstream = CompilerVersion::parse(&upstream).expect("rustc -vV");
        assert_eq!(debian.identity, "rustc 1.96.0 (ac68faa20), LLVM 22.1.8");
        assert_eq!(debian.release, upstream.release);
        assert_ne!(debian.identity, upstream.identity);
        assert_eq!(CompilerVersion::parse("gcc 12"), None);
    }
}
