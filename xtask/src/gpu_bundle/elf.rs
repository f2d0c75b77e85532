//! Which versions of its libraries a program needs: the section `.gnu.version_r` of a 64-bit little-endian ELF file.
//!
//! Layout (System V gABI; LSB "Symbol Versioning"): a chain of records, one a library (`Verneed`, 16 bytes), each with
//! a chain of versions (`Vernaux`, 16 bytes); names are offsets into the linked string table.

use std::fmt;

/// A glibc version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A version that some symbol needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Shared library, as `libc.so.6`.
    pub library: String,
    /// Version, as `GLIBC_2.34`.
    pub version: String,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.version, self.library)
    }
}

const SHT_GNU_VERNEED: u32 = 0x6fff_fffe;
const SECTION_BYTES: usize = 64;

/// The versions that `file` needs.
pub fn needed_versions(file: &[u8]) -> Result<Vec<Need>, String> {
    let reader = Reader(file);
    if file.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("it is no 64-bit little-endian ELF file".into());
    }
    let machine = reader.u16(18)?;
    if machine != 62 {
        return Err(format!("it is for machine {machine}, not x86-64 (62)"));
    }
    let (table, count) = (reader.u64(40)?, usize::from(reader.u16(60)?));
    let section = |i: usize| table + SECTION_BYTES * i;
    let mut needs = Vec::new();
    for i in 0..count {
        if reader.u32(section(i) + 4)? != SHT_GNU_VERNEED {
            continue;
        }
        let (start, link) = (reader.u64(section(i) + 24)?, reader.u32(section(i) + 40)? as usize);
        let names = reader.u64(section(link) + 24)?;
        let mut library = start;
        // Chains end with an offset of zero; the count bounds a broken file.
        for _ in 0..reader.u32(section(i) + 44)? {
            let name = reader.text(names + reader.u32(library + 4)? as usize)?;
            let mut version = library + reader.u32(library + 8)? as usize;
            for _ in 0..reader.u16(library + 2)? {
                let text = reader.text(names + reader.u32(version + 8)? as usize)?;
                needs.push(Need { library: name.clone(), version: text });
                version += reader.u32(version + 12)? as usize;
            }
            library += reader.u32(library + 12)? as usize;
        }
    }
    Ok(needs)
}

/// The newest glibc among the needs.
pub fn newest_glibc(needs: &[Need]) -> Option<Version> {
    needs.iter().filter_map(|need| glibc(&need.version)).max()
}

/// `GLIBC_2.34` or `GLIBC_2.2.5`; `GLIBC_PRIVATE` and other libraries' versions are none.
fn glibc(version: &str) -> Option<Version> {
    let mut numbers = version.strip_prefix("GLIBC_")?.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some(Version(major, minor)),
        _ => None,
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| format!("it ends before byte {at}"))
    }

    fn u16(&self, at: usize) -> Result<u16, String> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, String> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<usize, String> {
        let value = self.bytes(at).map(u64::from_le_bytes)?;
        usize::try_from(value).map_err(|_| format!("an offset of {value} at byte {at}"))
    }

    fn text(&self, at: usize) -> Result<String, String> {
        let bytes = self.0.get(at..).ok_or_else(|| format!("it ends before byte {at}"))?;
        let end = bytes.iter().position(|&b| b == 0).ok_or("a name without an end")?;
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers_and_private_ones_are_none() {
        assert_eq!(glibc("GLIBC_2.2.5"), Some(Version(2, 2)));
        assert!(glibc("GLIBC_2.9") < glibc("GLIBC_2.35"));
        assert_eq!(glibc("GLIBC_PRIVATE"), None);
        assert_eq!(glibc("GCC_3.0"), None);
        let need = |version: &str| Need { library: "libc.so.6".into(), version: version.into() };
        assert_eq!(
            newest_glibc(&[need("GLIBC_2.9"), need("GLIBC_2.34"), need("GCC_4.2")]),
            Some(Version(2, 34))
        );
        assert_eq!(newest_glibc(&[need("GCC_4.2")]), None);
    }

    /// A file with one section of needs: libc.so.6 with two versions, libgcc_s.so.1 with one.
    fn file() -> Vec<u8> {
        let names = b"\0libc.so.6\0GLIBC_2.34\0GLIBC_2.2.5\0libgcc_s.so.1\0GCC_3.0\0";
        let name = |text: &str| names.windows(text.len()).position(|w| w == text.as_bytes()).unwrap() as u32;
        let need = |count: u16, file: &str, next: u32| {
            let mut b = vec![1, 0];
            b.extend(count.to_le_bytes());
            [name(file), 16, next].iter().for_each(|x| b.extend(x.to_le_bytes()));
            b
        };
        let aux = |version: &str, next: u32| {
            let mut b = vec![0; 8];
            [name(version), next].iter().for_each(|x| b.extend(x.to_le_bytes()));
            b
        };
        let mut needs = need(2, "libc.so.6", 48);
        needs.extend(aux("GLIBC_2.34", 16));
        needs.extend(aux("GLIBC_2.2.5", 0));
        needs.extend(need(1, "libgcc_s.so.1", 0));
        needs.extend(aux("GCC_3.0", 0));

        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        let names_at = file.len() as u64;
        file.extend(names);
        let needs_at = file.len() as u64;
        file.extend(needs);
        let table = file.len() as u64;
        file[40..48].copy_from_slice(&table.to_le_bytes());
        file[60] = 2;
        for (kind, at, link, info) in [(3u32, names_at, 0u32, 0u32), (SHT_GNU_VERNEED, needs_at, 0, 2)] {
            let mut section = vec![0u8; SECTION_BYTES];
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&at.to_le_bytes());
            section[40..44].copy_from_slice(&link.to_le_bytes());
            section[44..48].copy_from_slice(&info.to_le_bytes());
            file.extend(section);
        }
        file
    }

    #[test]
    fn every_library_and_version_is_found() {
        let needs: Vec<String> = needed_versions(&file()).unwrap().iter().map(Need::to_string).collect();
        assert_eq!(
            needs,
            ["GLIBC_2.34 of libc.so.6", "GLIBC_2.2.5 of libc.so.6", "GCC_3.0 of libgcc_s.so.1"]
        );
    }

    #[test]
    fn a_file_cut_short_or_for_another_machine_is_an_error() {
        let whole = file();
        for end in [0, 5, 30, 63, whole.len() - 21] {
            assert!(needed_versions(&whole[..end]).is_err(), "{end}");
        }
        let mut arm = whole;
        arm[18] = 183;
        assert!(needed_versions(&arm).unwrap_err().contains("183"));
        assert!(needed_versions(b"#!/bin/sh\n").unwrap_err().contains("no 64-bit"));
    }
}
