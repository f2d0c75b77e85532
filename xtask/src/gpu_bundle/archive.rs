//! A `.tar.gz` with the same bytes for the same files: names sorted by the caller, no owner, no times.

use std::io::Read;
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::executable;
use crate::error::{Error, Result};

/// A file of the archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path in the archive, with slashes, below its folder.
    pub name: String,
    /// Contents.
    pub contents: Vec<u8>,
}

impl Entry {
    /// A file on disk.
    pub fn of_file(name: String, path: &Path) -> Result<Entry> {
        Ok(Entry { name, contents: std::fs::read(path).map_err(Error::io("read", path))? })
    }

    /// A text.
    pub fn text(name: &str, text: &str) -> Entry {
        Entry { name: name.into(), contents: text.as_bytes().to_vec() }
    }
}

/// The archive, with everything below `folder`.
pub fn pack(folder: &str, entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(entry.contents.len() as u64);
        header.set_mode(if executable(&entry.name) { 0o755 } else { 0o644 });
        header.set_mtime(0);
        let path = format!("{folder}/{}", entry.name);
        tar.append_data(&mut header, &path, entry.contents.as_slice()).map_err(Error::io("pack", &path))?;
    }
    let packed = tar.into_inner().and_then(GzEncoder::finish);
    packed.map_err(Error::io("pack", folder))
}

/// Unpacks into `folder`, which is made.
pub fn unpack(packed: &[u8], folder: &Path) -> Result<()> {
    let mut tar = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut tar).map_err(Error::io("unpack", folder))?;
    tar::Archive::new(tar.as_slice()).unpack(folder).map_err(Error::io("unpack", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn entries() -> Vec<Entry> {
        vec![Entry::text("bin/psa", "program"), Entry::text("data/x.json", "{}"), Entry::text("run.sh", "#!")]
    }

    #[test]
    fn what_is_packed_comes_out_with_its_mode() {
        let folder = std::env::temp_dir().join(format!("psa-xtask-archive-{}", std::process::id()));
        unpack(&pack("top", &entries()).unwrap(), &folder).unwrap();
        for entry in entries() {
            let path = folder.join("top").join(&entry.name);
            assert_eq!(std::fs::read(&path).unwrap(), entry.contents);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if executable(&entry.name) { 0o755 } else { 0o644 }, "{}", entry.name);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        assert_eq!(pack("top", &entries()).unwrap(), pack("top", &entries()).unwrap());
        assert_ne!(pack("top", &entries()).unwrap(), pack("top", &entries()[1..]).unwrap());
    }
}
