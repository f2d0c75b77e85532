//! `manifest.json`: what a PTX file was made from, and what is in it.
//!
//! A reader can check that sources and text belong together without a device compiler, and another
//! language can launch the kernels without the descriptors' Rust. Keys keep their order, kernels are in the
//! order of the descriptors, so equal inputs give equal bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::KernelDescriptor;

/// The manifest's own format.
pub const SCHEMA: u32 = 1;

/// What a PTX file was made from, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The manifest's own format: [`SCHEMA`].
    pub schema: u32,
    /// Version of the toolkit.
    pub toolkit: String,
    /// `.target` of the PTX: what it needs at least.
    pub target: String,
    /// `.version` of the PTX.
    pub isa: String,
    /// Identity of the device compiler.
    pub compiler: String,
    /// SHA-256 of the PTX file.
    pub ptx_sha256: String,
    /// SHA-256 over `sources`; see [`combined_sha256`].
    pub sources_sha256: String,
    /// SHA-256 of each input of the device build, by its path in the repository.
    pub sources: BTreeMap<String, String>,
    /// The kernels.
    pub kernels: Vec<Kernel>,
}

/// A kernel, as its descriptor has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Name of the entry.
    pub name: String,
    /// Name of the kernel function.
    pub family: String,
    /// The generics' values, in declaration order.
    pub specialisation: Vec<Specialisation>,
    /// The parameters, in order.
    pub params: Vec<KernelParam>,
    /// Threads of a block: x, y, z.
    pub block: [u32; 3],
    /// `.minnctapersm`, if set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub min_blocks_per_sm: Option<u32>,
    /// `.maxnreg`, if set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_registers: Option<u32>,
    /// Dynamic shared memory of a launch, in bytes.
    pub shared_bytes: u32,
    /// Lowest compute capability, as 80 for 8.0.
    pub min_sm: u32,
}

/// The value of one generic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Specialisation {
    /// The generic.
    pub generic: String,
    /// Its value.
    pub value: String,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelParam {
    /// Its name.
    pub name: String,
    /// Its type, as `u32` or `*const bf16`.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its bytes.
    pub bytes: u32,
}

/// A manifest that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The PTX lacks its header.
    #[error("the PTX has no `{directive}` line; is it complete?")]
    NoDirective {
        /// The directive.
        directive: &'static str,
    },
    /// The text is not a manifest.
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// A manifest of another format.
    #[error("the manifest has schema {found}, this toolkit reads {SCHEMA}; build the PTX again")]
    Schema {
        /// The schema found.
        found: u32,
    },
}

impl Manifest {
    /// The manifest of a finished PTX text. `sources`: hash of each input (see [`sha256`]) by its path relative to
    /// the repository, `/`-separated; flags and profiles may be listed under a name.
    ///
    /// # Errors
    /// When the text has no `.version` or `.target`.
    pub fn new(
        ptx: &str,
        kernels: &[&KernelDescriptor],
        toolkit: &str,
        compiler: &str,
        sources: BTreeMap<String, String>,
    ) -> Result<Self, ManifestError> {
        Ok(Self {
            schema: SCHEMA,
            toolkit: toolkit.to_owned(),
            target: directive(ptx, ".target")?,
            isa: directive(ptx, ".version")?,
            compiler: compiler.to_owned(),
            ptx_sha256: sha256(ptx.as_bytes()),
            sources_sha256: combined_sha256(&sources),
            sources,
            kernels: kernels.iter().map(|kernel| Kernel::from(*kernel)).collect(),
        })
    }

    /// The manifest as JSON, indented, with a line end.
    ///
    /// # Errors
    /// None for a manifest of this type; the serialiser's type carries one.
    pub fn to_json(&self) -> Result<String, ManifestError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads [`Manifest::to_json`].
    ///
    /// # Errors
    /// When the text is not JSON of this shape, or of another schema.
    pub fn from_json(text: &str) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let Schema { schema } = serde_json::from_str(text)?;
        if schema != SCHEMA {
            return Err(ManifestError::Schema { found: schema });
        }
        Ok(serde_json::from_str(text)?)
    }
}

impl From<&KernelDescriptor> for Kernel {
    fn from(kernel: &KernelDescriptor) -> Self {
        let specialisation = |(generic, value): &(&str, &str)| Specialisation {
            generic: (*generic).to_owned(),
            value: (*value).to_owned(),
        };
        let param = |param: &crate::Param| KernelParam {
            name: param.name.to_owned(),
            ty: param.ty.to_string(),
            bytes: param.ty.size(),
        };
        Self {
            name: kernel.name.to_owned(),
            family: kernel.family.to_owned(),
            specialisation: kernel.specialisation.iter().map(specialisation).collect(),
            params: kernel.params.iter().map(param).collect(),
            block: kernel.block,
            min_blocks_per_sm: kernel.min_blocks_per_sm,
            max_registers: kernel.max_registers,
            shared_bytes: kernel.shared_bytes,
            min_sm: kernel.min_sm,
        }
    }
}

fn directive(ptx: &str, name: &'static str) -> Result<String, ManifestError> {
    ptx.lines()
        .find_map(|line| Some(line.trim().strip_prefix(name)?.trim().to_owned()))
        .ok_or(ManifestError::NoDirective { directive: name })
}

/// SHA-256 in lower-case hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One hash over all sources: SHA-256 of the lines `HASH  PATH\n`, sorted by path (what `sha256sum` prints).
#[must_use]
pub fn combined_sha256(sources: &BTreeMap<String, String>) -> String {
    let lines: String = sources.iter().map(|(path, hash)| format!("{hash}  {path}\n")).collect();
    sha256(lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Param, ParamType};

    static KERNEL: KernelDescriptor = KernelDescriptor {
        name: "k_bf16_d64",
        family: "k",
        specialisation: &[("T", "bf16"), ("D", "64")],
        params: &[
            Param { name: "x", ty: ParamType::ConstPtr("bf16") },
            Param { name: "scale", ty: ParamType::F32 },
        ],
        block: [32, 4, 1],
        min_blocks_per_sm: Some(3),
        max_registers: None,
        shared_bytes: 4096,
        min_sm: 80,
    };

    const PTX: &str = ".version 7.8\n.target sm_80\n.address_size 64\n";

    fn manifest() -> Manifest {
        let sources = BTreeMap::from([
            ("kernels/b.rs".to_owned(), sha256(b"b")),
            ("kernels/a.rs".to_owned(), sha256(b"a")),
        ]);
        Manifest::new(PTX, &[&KERNEL], "0.1.0", "rustc 1.96.0", sources).expect("complete")
    }

    #[test]
    fn json_round_trips_and_is_stable() {
        let text = manifest().to_json().expect("serialises");
        assert_eq!(Manifest::from_json(&text).expect("reads"), manifest());
        assert_eq!(text, manifest().to_json().expect("serialises"));
        assert!(text.ends_with("}\n"));
        let place = |key: &str| text.find(&format!("\"{key}\"")).expect(key);
        assert!(place("schema") < place("target") && place("target") < place("kernels"), "{text}");
        assert!(place("kernels/a.rs") < place("kernels/b.rs"), "{text}");
    }

    #[test]
    fn it_says_what_the_text_and_the_descriptors_say() {
        let m = manifest();
        assert_eq!((m.target.as_str(), m.isa.as_str()), ("sm_80", "7.8"));
        assert_eq!(m.ptx_sha256, sha256(PTX.as_bytes()));
        let k = &m.kernels[0];
        assert_eq!((k.name.as_str(), k.block, k.shared_bytes), ("k_bf16_d64", [32, 4, 1], 4096));
        assert_eq!((k.params[0].ty.as_str(), k.params[0].bytes), ("*const bf16", 8));
        assert_eq!((k.params[1].ty.as_str(), k.params[1].bytes), ("f32", 4));
        assert_eq!(k.specialisation[1], Specialisation { generic: "D".into(), value: "64".into() });
    }

    #[test]
    fn hashes_are_sha256_and_change_with_any_source() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let mut sources = manifest().sources;
        let before = combined_sha256(&sources);
        sources.insert("kernels/c.rs".to_owned(), sha256(b""));
        assert_ne!(before, combined_sha256(&sources));
    }

    #[test]
    fn another_schema_is_refused_with_both_numbers() {
        let text = manifest().to_json().expect("serialises").replace("\"schema\": 1", "\"schema\": 2");
        let error = Manifest::from_json(&text).unwrap_err().to_string();
        assert!(error.contains("schema 2") && error.contains("reads 1"), "{error}");
    }

    #[test]
    fn a_text_without_header_is_refused() {
        let error = Manifest::new("", &[], "0", "c", BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains(".target"), "{error}");
    }
}
