//! From the compiler's text to the shipped text and its manifest.
//!
//! The rules are psa-codegen's; this joins them with the descriptors, which come from the host build of the
//! same sources that the device build compiled.

use std::collections::BTreeMap;

use psa_codegen::Manifest;

use crate::device_crates::DeviceCrate;
use crate::error::{Error, Result};

/// Findings shown before the rest is only counted.
const SHOWN: usize = 40;

/// What the compiler's text becomes.
#[derive(Debug)]
pub struct Finished {
    /// The shipped text.
    pub ptx: String,
    /// Its manifest as JSON.
    pub manifest: String,
    /// Violations of the lint, as one text; the PTX must not be shipped if there are any.
    pub findings: Option<String>,
}

/// Finishes and lints the compiler's text. `sources`: hash of each input by its path.
pub fn finish(
    raw: &str,
    krate: &DeviceCrate,
    compiler: &str,
    sources: BTreeMap<String, String>,
) -> Result<Finished> {
    let ptx = psa_codegen::finish(raw).map_err(|error| Error::BadPtx(error.to_string()))?;
    let families = (krate.families)();
    let kernels: Vec<_> = families.iter().flat_map(|family| family.instances).collect();
    let findings = psa_codegen::lint(&ptx, &kernels, &(krate.lint_options)());
    let manifest = Manifest::new(&ptx, &families, env!("CARGO_PKG_VERSION"), compiler, sources)
        .and_then(|manifest| manifest.to_json())
        .map_err(|error| Error::BadPtx(error.to_string()))?;
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Ok(Finished { ptx, manifest, findings: list(&lines) })
}

fn list(findings: &[String]) -> Option<String> {
    if findings.is_empty() {
        return None;
    }
    let mut text = format!("the PTX breaks {} rules:", findings.len());
    for finding in findings.iter().take(SHOWN) {
        text.push_str("\n  ");
        text.push_str(finding);
    }
    if findings.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", findings.len() - SHOWN));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_crates::KERNELS;

    #[test]
    fn a_text_without_the_kernels_is_not_shipped() {
        let raw = ".version 7.8\n.target sm_80\n.address_size 64\n";
        let finished = finish(raw, &KERNELS, "rustc 1", BTreeMap::new()).expect("a module, if an empty one");
        let first = kernels_gpu::kernels().first().map(|kernel| kernel.name);
        if let Some(name) = first {
            let findings = finished.findings.expect("kernels are missing");
            assert!(findings.contains(name), "{findings}");
        }
    }

    #[test]
    fn a_text_that_is_no_module_is_refused() {
        let error =
            finish(".visible .entry a()\n{\n", &KERNELS, "rustc 1", BTreeMap::new()).expect_err("cut short");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn many_findings_are_counted() {
        let many: Vec<String> = (0..SHOWN + 2).map(|n| format!("finding {n}.")).collect();
        let text = list(&many).expect("findings");
        assert!(text.contains("42 rules") && text.contains("finding 39.") && !text.contains("finding 40."));
        assert!(text.ends_with("and 2 more"), "{text}");
        assert_eq!(list(&[]), None);
    }
}
