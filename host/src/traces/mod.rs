//! psa-traces-v1: recorded queries, keys and values of a real model, with the dense answer.
//!
//! A safetensors file with a JSON file of the same name beside it. Case `I` is one KV head of one
//! layer with its group of query heads: `caseI.q` f16 or bf16 `[group, queries, head_dim]`, `caseI.k`
//! and `caseI.v` `[context, head_dim]` in the same type, `caseI.out` f32 `[group, queries, head_dim]`
//! and `caseI.lse` f32 `[group, queries]`. The JSON has the softmax scale and the origin.
//!
//! Trap: query `i` is not the last token of the file; it stands at position `context - queries + i`
//! and sees keys `0..=` that position ([`Case::visible`]).

mod answer;
mod dump;
mod error;
mod extend;
mod read;
mod synthetic;
mod write;

use std::path::{Path, PathBuf};

use half::{bf16, f16};

use crate::Rows;

pub(crate) use answer::logits;
pub use dump::{DumpOptions, Layout, from_dump};
pub use error::TraceError;
pub use extend::{SHORTEST, cut, cut_case, extend, extend_case};
pub use synthetic::{Geometry, Kind, synthetic};
pub use write::write;

/// Name of the format, as it stands in the JSON.
pub const FORMAT: &str = "psa-traces-v1";

/// Smallest and largest softmax scale that is taken for real. 1/sqrt(head_dim) lies between 0.088 and
/// 0.125; models without scaling use 1; beyond this the JSON is wrong.
pub const SCALES: std::ops::RangeInclusive<f32> = 1e-4..=16.0;

/// Elements as they lie in the cache.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl Elements {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Elements::F16(x) => x.len(),
            Elements::Bf16(x) => x.len(),
        }
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements `range`, exactly, as f64.
    pub fn to_f64(&self, range: std::ops::Range<usize>) -> Vec<f64> {
        match self {
            Elements::F16(x) => x[range].iter().map(|x| x.to_f64()).collect(),
            Elements::Bf16(x) => x[range].iter().map(|x| x.to_f64()).collect(),
        }
    }

    /// The elements `range`, as a cache takes them.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Rows<'_> {
        match self {
            Elements::F16(x) => Rows::F16(&x[range]),
            Elements::Bf16(x) => Rows::Bf16(&x[range]),
        }
    }
}

/// One KV head of one layer, with the queries of its group.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// `case0`, `case1`, ..
    pub name: String,
    /// Where it comes from, for people: text, layer and head, as far as the JSON says.
    pub label: String,
    /// Query heads that share this KV head.
    pub group: usize,
    /// Queries of each head; each is one decode step.
    pub queries: usize,
    /// Tokens in `k` and `v`.
    pub context: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// `[group, queries, head_dim]`, after RoPE, not scaled.
    pub q: Elements,
    /// `[context, head_dim]`, after RoPE.
    pub k: Elements,
    /// `[context, head_dim]`.
    pub v: Elements,
    /// Dense attention, `[group, queries, head_dim]`.
    pub out: Vec<f32>,
    /// Natural log of the sum of exp(scale q.k) over the visible keys, `[group, queries]`.
    pub lse: Vec<f32>,
}

impl Case {
    /// Tokens that query `i` sees, its own included.
    pub fn visible(&self, i: usize) -> usize {
        self.context - self.queries + i + 1
    }

    /// The case with the queries `range` alone, which see what they saw.
    pub fn part(&self, range: std::ops::Range<usize>) -> Case {
        fn of_heads<T: Copy>(x: &[T], case: &Case, range: &std::ops::Range<usize>, width: usize) -> Vec<T> {
            x.chunks_exact(case.queries * width)
                .flat_map(|head| &head[range.start * width..range.end * width])
                .copied()
                .collect()
        }
        let d = self.head_dim;
        let context = self.visible(range.start) + range.len() - 1;
        let first = |x: &Elements| match x {
            Elements::F16(x) => Elements::F16(x[..context * d].to_vec()),
            Elements::Bf16(x) => Elements::Bf16(x[..context * d].to_vec()),
        };
        Case {
            queries: range.len(),
            context,
            q: match &self.q {
                Elements::F16(q) => Elements::F16(of_heads(q, self, &range, d)),
                Elements::Bf16(q) => Elements::Bf16(of_heads(q, self, &range, d)),
            },
            k: first(&self.k),
            v: first(&self.v),
            out: of_heads(&self.out, self, &range, d),
            lse: of_heads(&self.lse, self, &range, 1),
            name: self.name.clone(),
            label: self.label.clone(),
            ..*self
        }
    }

    /// Query `i` of every head: `[group, head_dim]`.
    pub fn query(&self, i: usize) -> Elements {
        fn gather<T: Copy>(case: &Case, i: usize, q: &[T]) -> Vec<T> {
            let row = |g| (g * case.queries + i) * case.head_dim;
            (0..case.group).flat_map(|g| &q[row(g)..row(g) + case.head_dim]).copied().collect()
        }
        match &self.q {
            Elements::F16(q) => Elements::F16(gather(self, i, q)),
            Elements::Bf16(q) => Elements::Bf16(gather(self, i, q)),
        }
    }
}

/// A file of cases.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// The model or generator that the cases come from.
    pub origin: String,
    /// Softmax scale of all cases.
    pub scale: f32,
    /// At least one.
    pub cases: Vec<Case>,
}

impl Traces {
    /// Reads `file` and the JSON beside it ([`json_beside`]).
    ///
    /// # Errors
    /// [`TraceError`], which names the file, the tensor, the value and what to do.
    pub fn load(file: &Path) -> Result<Traces, TraceError> {
        let bytes = std::fs::read(file)
            .map_err(|source| TraceError::Read { file: file.display().to_string(), source })?;
        let json_file = json_beside(file);
        let json = std::fs::read(&json_file).map_err(|source| TraceError::Description {
            file: json_file.display().to_string(),
            traces: file.display().to_string(),
            source,
        })?;
        read::parse(&file.display().to_string(), &bytes, &json_file.display().to_string(), &json)
    }

    /// Reads a file that is already in memory; `name` stands in the errors.
    ///
    /// # Errors
    /// As [`Traces::load`].
    pub fn parse(name: &str, tensors: &[u8], json: &[u8]) -> Result<Traces, TraceError> {
        read::parse(name, tensors, &json_beside(Path::new(name)).display().to_string(), json)
    }

    /// The cases called `name`, or all of them.
    ///
    /// # Errors
    /// [`TraceError::NoSuchCase`].
    pub fn select(&self, name: Option<&str>) -> Result<Vec<&Case>, TraceError> {
        let Some(name) = name else { return Ok(self.cases.iter().collect()) };
        match self.cases.iter().find(|case| case.name == name) {
            Some(case) => Ok(vec![case]),
            None => Err(TraceError::NoSuchCase {
                name: name.to_owned(),
                known: self.cases.iter().map(|case| case.name.as_str()).collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

/// The JSON that belongs to a traces file: same folder, same name, `.json`.
pub fn json_beside(file: &Path) -> PathBuf {
    file.with_extension("json")
}

#[cfg(test)]
pub(crate) mod tests;
