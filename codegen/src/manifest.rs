//! `manifest.json`: what a PTX file was made from, and what is in it.
//!
//! A reader can check that sources and text belong together without a device compiler, and another
//! language can launch the kernels without the descriptors' Rust. Keys keep their order, kernels are in the
//! order of the descriptors, so equal inputs give equal bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::expression::render;
use crate::family::LineText;
use crate::{KernelDescriptor, Leaf, ParamType, Relation};

/// The manifest's own format.
pub const SCHEMA: u32 = 2;

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
    /// The kernel families, each a function with its instances.
    pub families: Vec<Family>,
    /// The kernels: every entry of the PTX.
    pub kernels: Vec<Kernel>,
}

/// What a request to a family looks like, and which of its feasible instances is preferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    /// Name of the kernel function.
    pub name: String,
    /// The type generics, which a request names.
    pub types: Vec<String>,
    /// The sizes of a request.
    pub sizes: Vec<String>,
    /// Which of several feasible kernels to take: by their `cost`. Without it, the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prefer: Option<Prefer>,
}

/// A preference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefer {
    /// `least` or `most`.
    pub order: String,
    /// Of what, as the source has it.
    pub of: String,
    /// Why.
    pub reason: String,
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
    /// Blocks along x, y and z.
    pub grid: [GridRule; 3],
    /// What must hold between the arguments of a launch.
    pub requires: Vec<Requirement>,
    /// Pairs of buffers that may share memory although one of them is written. No other written buffer (`out`, `inout`)
    /// may share memory with another buffer.
    pub may_overlap: Vec<[String; 2]>,
    /// What must hold of a request for this kernel to serve it.
    pub feasible: Vec<FeasibleLine>,
    /// What the family's preference compares; absent without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cost: Option<String>,
}

/// How many blocks a grid has along an axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridRule {
    /// The rule as the source has it: an expression, a name that `requires` uses for the number, or `_` for any.
    pub text: String,
    /// The number, in the grammar of docs/manifest.md; absent where any number is allowed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expression: Option<String>,
}

/// A relation of a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// As the source has it.
    pub text: String,
    /// With this kernel's constants as numbers, in the grammar of docs/manifest.md.
    pub expression: String,
}

/// A line of a feasibility function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeasibleLine {
    /// In the grammar of docs/manifest.md.
    pub expression: String,
    /// Why.
    pub reason: String,
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
    /// `value` for a scalar; `in`, `out` (need not be initialised) or `inout` for a buffer.
    pub access: String,
    /// Of a buffer: its element type, as `bf16`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub element: Option<String>,
    /// Of a buffer: bytes of an element.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub element_bytes: Option<u32>,
    /// Of a buffer: the alignment that its address must have, in bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub align: Option<u32>,
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
        families: &[&crate::Family],
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
            families: families.iter().map(|family| Family::from(*family)).collect(),
            kernels: families
                .iter()
                .flat_map(|family| family.instances.iter().map(|kernel| Kernel::new(family, kernel)))
                .collect(),
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

impl From<&crate::Family> for Family {
    fn from(family: &crate::Family) -> Self {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let prefer = |prefer: crate::Prefer| Prefer {
            order: if prefer.most { "most" } else { "least" }.to_owned(),
            of: prefer.text.to_owned(),
            reason: prefer.reason.to_owned(),
        };
        Self {
            name: family.name.to_owned(),
            types: owned(family.types),
            sizes: owned(family.sizes),
            prefer: family.prefer.map(prefer),
        }
    }
}

impl Kernel {
    fn new(family: &crate::Family, kernel: &KernelDescriptor) -> Self {
        let specialisation = |(generic, value): &(&str, &str)| Specialisation {
            generic: (*generic).to_owned(),
            value: (*value).to_owned(),
        };
        let name_of = |index: usize| kernel.params.get(index).map_or("?", |param| param.name);
        let name = |leaf: Leaf| match leaf {
            Leaf::Arg(index) => name_of(index).to_owned(),
            Leaf::Len(index) => format!("{}.len", name_of(index)),
            Leaf::Largest(index) => format!("{}.max", name_of(index)),
            Leaf::Grid(axis) => format!("grid.{}", ["x", "y", "z"].get(axis).unwrap_or(&"?")),
            other => format!("{other:?}"),
        };
        let grid = |rule: crate::GridRule| match rule {
            crate::GridRule::Any(name) => GridRule { text: name.unwrap_or("_").to_owned(), expression: None },
            crate::GridRule::Exactly { text, ops } => {
                GridRule { text: text.to_owned(), expression: Some(render(ops, name)) }
            }
        };
        let requirement = |relation: &Relation| Requirement {
            text: relation.text.to_owned(),
            expression: relation.render(name),
        };
        let line = |line: LineText| FeasibleLine { expression: line.expression, reason: line.reason };
        Self {
            name: kernel.name.to_owned(),
            family: kernel.family.to_owned(),
            specialisation: kernel.specialisation.iter().map(specialisation).collect(),
            params: kernel.params.iter().map(KernelParam::from).collect(),
            block: kernel.block,
            min_blocks_per_sm: kernel.min_blocks_per_sm,
            max_registers: kernel.max_registers,
            shared_bytes: kernel.shared_bytes,
            min_sm: kernel.min_sm,
            grid: kernel.contract.grid.map(grid),
            requires: kernel.contract.requires.iter().map(requirement).collect(),
            may_overlap: kernel
                .contract
                .may_overlap
                .iter()
                .map(|&(a, b)| [name_of(a).to_owned(), name_of(b).to_owned()])
                .collect(),
            feasible: family.lines(kernel).into_iter().map(line).collect(),
            cost: family.prefer.map(|_| family.cost_text(kernel)),
        }
    }
}

impl From<&crate::Param> for KernelParam {
    fn from(param: &crate::Param) -> Self {
        let element = match param.ty {
            ParamType::ConstPtr(element) | ParamType::MutPtr(element) => Some(element.to_owned()),
            _ => None,
        };
        let of_buffer = |value: u32| element.is_some().then_some(value);
        Self {
            name: param.name.to_owned(),
            ty: param.ty.to_string(),
            bytes: param.ty.size(),
            access: param.access.name().to_owned(),
            element_bytes: of_buffer(param.element_bytes),
            align: of_buffer(param.align),
            element,
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
    use crate::{Access, Binary, Compare, Contract, Line, Op, Param};

    static FAMILY: crate::Family = crate::Family {
        name: "k",
        instances: &INSTANCES,
        types: &["T"],
        sizes: &["head_dim"],
        prefer: Some(crate::Prefer { most: false, text: "D", reason: "less work" }),
    };

    static INSTANCES: [KernelDescriptor; 1] = [KernelDescriptor {
        name: "k_bf16_d64",
        family: "k",
        specialisation: &[("T", "bf16"), ("D", "64")],
        params: &[
            Param { align: 16, ..Param::buffer("x", ParamType::ConstPtr("bf16"), Access::In, 2) },
            Param::scalar("scale", ParamType::F32),
            Param::scalar("heads", ParamType::U32),
            Param::buffer("out", ParamType::MutPtr("f32"), Access::Out, 4),
        ],
        block: [32, 4, 1],
        min_blocks_per_sm: Some(3),
        shared_bytes: 4096,
        contract: Contract {
            grid: [
                crate::GridRule::Exactly { text: "heads", ops: &[Op::Leaf(Leaf::Arg(2))] },
                crate::GridRule::Any(Some("batch")),
                crate::GridRule::Any(None),
            ],
            requires: &[Relation {
                text: "x.len() >= batch * heads * D",
                left: &[Op::Leaf(Leaf::Len(0))],
                compare: Compare::Ge,
                right: &[
                    Op::Leaf(Leaf::Grid(1)),
                    Op::Leaf(Leaf::Arg(2)),
                    Op::Binary(Binary::Mul),
                    Op::Const(64, "D"),
                    Op::Binary(Binary::Mul),
                ],
            }],
            may_overlap: &[(0, 3)],
        },
        feasible: &[Line {
            relation: Relation {
                text: "head_dim == D",
                left: &[Op::Leaf(Leaf::Size(0))],
                compare: Compare::Eq,
                right: &[Op::Const(64, "D")],
            },
            reason: "unrolled",
        }],
        cost: &[Op::Const(64, "D")],
        ..KernelDescriptor::PLAIN
    }];

    const PTX: &str = ".version 7.8\n.target sm_80\n.address_size 64\n";

    fn manifest() -> Manifest {
        let sources = BTreeMap::from([
            ("kernels/b.rs".to_owned(), sha256(b"b")),
            ("kernels/a.rs".to_owned(), sha256(b"a")),
        ]);
        Manifest::new(PTX, &[&FAMILY], "0.1.0", "rustc 1.96.0", sources).expect("complete")
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
        assert_eq!((k.params[0].element.as_deref(), k.params[0].element_bytes), (Some("bf16"), Some(2)));
        assert_eq!((k.params[0].access.as_str(), k.params[0].align), ("in", Some(16)));
        assert_eq!((k.params[1].ty.as_str(), k.params[1].bytes), ("f32", 4));
        assert_eq!((k.params[1].access.as_str(), k.params[1].align), ("value", None));
        assert_eq!(k.grid[0].expression.as_deref(), Some("heads"));
        assert_eq!((k.grid[1].text.as_str(), &k.grid[1].expression), ("batch", &None));
        assert_eq!(k.grid[2].text, "_");
        assert_eq!(k.requires[0].text, "x.len() >= batch * heads * D");
        assert_eq!(k.requires[0].expression, "x.len >= grid.y * heads * 64");
        assert_eq!(k.may_overlap, [["x".to_owned(), "out".to_owned()]]);
        let lines: Vec<_> = k.feasible.iter().map(|line| line.expression.as_str()).collect();
        assert_eq!(lines[..3], ["T == \"bf16\"", "head_dim == 64", "80 <= device.sm"]);
        assert!(lines.contains(&"4096 <= device.shared_per_block"), "{lines:?}");
        assert!(lines.contains(&"3 * 128 * 32 <= device.registers_per_sm"), "{lines:?}");
        assert_eq!(k.cost.as_deref(), Some("64"));
        assert_eq!(
            (m.families[0].sizes.as_slice(), m.families[0].prefer.is_some()),
            (&["head_dim".to_owned()][..], true)
        );
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
        let text = manifest().to_json().expect("serialises").replace("\"schema\": 2", "\"schema\": 3");
        let error = Manifest::from_json(&text).unwrap_err().to_string();
        assert!(error.contains("schema 3") && error.contains("reads 2"), "{error}");
    }

    #[test]
    fn a_text_without_header_is_refused() {
        let error = Manifest::new("", &[], "0", "c", BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains(".target"), "{error}");
    }
}
