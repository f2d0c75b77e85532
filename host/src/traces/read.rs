//! The loader. The file is hostile until shown otherwise: the container's offsets are checked by the
//! safetensors crate, everything else here, before a value is used as a size.

use std::collections::BTreeSet;

use half::{bf16, f16};
use kernels_gpu::layout;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use super::{Case, Elements, FORMAT, SCALES, TraceError, Traces};
use crate::store::MAX_BLOCKS;

/// Row widths that the kernels have.
const HEAD_DIMS: [usize; 2] = [64, 128];

#[derive(Deserialize)]
struct Description {
    format: String,
    scale: Option<f64>,
    softmax_scale: Option<f64>,
    origin: Option<String>,
    model: Option<String>,
    #[serde(default)]
    cases: Vec<About>,
}

#[derive(Deserialize)]
struct About {
    case: String,
    text: Option<String>,
    layer: Option<u64>,
    kv_head: Option<u64>,
}

/// Reads both parts; `file` and `json_file` are names for the errors.
pub(super) fn parse(file: &str, tensors: &[u8], json_file: &str, json: &[u8]) -> Result<Traces, TraceError> {
    let about: Description = serde_json::from_slice(json)
        .map_err(|source| TraceError::Json { file: json_file.to_owned(), source })?;
    if about.format != FORMAT {
        return Err(TraceError::Format { file: json_file.to_owned(), found: about.format });
    }
    let scale = about
        .scale
        .or(about.softmax_scale)
        .ok_or_else(|| TraceError::NoScale { file: json_file.to_owned() })?;
    if !SCALES.contains(&(scale as f32)) {
        return Err(TraceError::Scale { file: json_file.to_owned(), found: scale });
    }

    let container = SafeTensors::deserialize(tensors)
        .map_err(|source| TraceError::Container { file: file.to_owned(), source })?;
    let mut numbers = BTreeSet::new();
    for name in container.names() {
        let number = case_number(name);
        numbers.insert(
            number.ok_or_else(|| TraceError::UnknownTensor {
                file: file.to_owned(),
                tensor: name.to_owned(),
            })?,
        );
    }
    if numbers.is_empty() {
        return Err(TraceError::NoCases { file: file.to_owned() });
    }
    let reader = Reader { file, container: &container };
    let cases = numbers
        .into_iter()
        .map(|number| {
            let name = format!("case{number}");
            let label = about.cases.iter().find(|about| about.case == name).map(label);
            reader.case(name, label.unwrap_or_default())
        })
        .collect::<Result<_, _>>()?;
    let origin = about.origin.or(about.model).unwrap_or_else(|| "unknown".to_owned());
    Ok(Traces { origin, scale: scale as f32, cases })
}

/// The `I` of `caseI.part`, for the parts there are. Leading zeros would make two names for one case.
fn case_number(tensor: &str) -> Option<u64> {
    let (case, part) = tensor.split_once('.')?;
    let digits = case.strip_prefix("case")?;
    let number: u64 = digits.parse().ok()?;
    (["q", "k", "v", "out", "lse"].contains(&part) && number.to_string() == digits).then_some(number)
}

/// `prose_A, layer 3, head 0`.
fn label(about: &About) -> String {
    let mut parts = Vec::new();
    parts.extend(about.text.clone());
    parts.extend(about.layer.map(|layer| format!("layer {layer}")));
    parts.extend(about.kv_head.map(|head| format!("head {head}")));
    parts.join(", ")
}

/// Checks that a case of these sizes can be replayed; `file` and `case` are for the errors.
pub(super) fn check_geometry(
    file: &str,
    case: &str,
    group: usize,
    queries: usize,
    context: usize,
    head_dim: usize,
) -> Result<(), TraceError> {
    let fail = |what, found, supported: String| {
        let (file, case) = (file.to_owned(), case.to_owned());
        Err(TraceError::Unsupported { file, case, what, found, supported })
    };
    // The host's; a device with a lower limit says so itself.
    let longest = MAX_BLOCKS * layout::BLOCK;
    if queries == 0 {
        return fail("queries", 0, "at least one".to_owned());
    }
    if !HEAD_DIMS.contains(&head_dim) {
        return fail("head_dim", head_dim, "64, 128".to_owned());
    }
    if !(1..=layout::MAX_GROUP).contains(&group) {
        return fail("query heads of a KV head", group, format!("1 to {}", layout::MAX_GROUP));
    }
    if context > longest {
        return fail("context", context, format!("up to {longest} tokens"));
    }
    if context < queries {
        let (file, case) = (file.to_owned(), case.to_owned());
        return Err(TraceError::FewerKeysThanQueries { file, case, queries, context });
    }
    Ok(())
}

struct Reader<'a> {
    file: &'a str,
    container: &'a SafeTensors<'a>,
}

impl Reader<'_> {
    fn case(&self, name: String, label: String) -> Result<Case, TraceError> {
        let [q_name, k_name, v_name, out_name, lse_name] =
            ["q", "k", "v", "out", "lse"].map(|part| format!("{name}.{part}"));
        let (q, k, v) = (self.tensor(&q_name)?, self.tensor(&k_name)?, self.tensor(&v_name)?);
        let (out, lse) = (self.tensor(&out_name)?, self.tensor(&lse_name)?);

        let &[group, queries, head_dim] = q.shape() else {
            return Err(self.shape(&q_name, &q, "[query heads, queries, head_dim]"));
        };
        let &[context, _] = k.shape() else {
            return Err(self.shape(&k_name, &k, "[context, head_dim]"));
        };
        check_geometry(self.file, &name, group, queries, context, head_dim)?;
        self.expect_shape(&k_name, &k, &[context, head_dim], "head_dim as in q")?;
        self.expect_shape(&v_name, &v, &[context, head_dim], "as k")?;
        self.expect_shape(&out_name, &out, &[group, queries, head_dim], "as q")?;
        self.expect_shape(&lse_name, &lse, &[group, queries], "as q without head_dim")?;

        let q_elements = self.elements(&q_name, &q)?;
        let k_elements = self.elements(&k_name, &k)?;
        let v_elements = self.elements(&v_name, &v)?;
        for (tensor, view) in [(&k_name, &k), (&v_name, &v)] {
            if view.dtype() != q.dtype() {
                let expected = if q.dtype() == Dtype::F16 { "F16, as q" } else { "BF16, as q" };
                return Err(self.dtype(tensor, view, expected));
            }
        }
        let out = self.floats(&out_name, &out)?;
        let lse = self.floats(&lse_name, &lse)?;
        Ok(Case {
            name,
            label,
            group,
            queries,
            context,
            head_dim,
            q: q_elements,
            k: k_elements,
            v: v_elements,
            out,
            lse,
        })
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, TraceError> {
        self.container.tensor(name).map_err(|source| match source {
            safetensors::SafeTensorError::TensorNotFound(_) => {
                TraceError::MissingTensor { file: self.file.to_owned(), tensor: name.to_owned() }
            }
            source => TraceError::Container { file: self.file.to_owned(), source },
        })
    }

    fn elements(&self, name: &str, view: &TensorView<'_>) -> Result<Elements, TraceError> {
        let pairs = view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match view.dtype() {
            Dtype::F16 => {
                let values: Vec<f16> = pairs.map(f16::from_bits).collect();
                self.finite(name, view, values.iter().map(|x| x.to_f32()))?;
                Ok(Elements::F16(values))
            }
            Dtype::BF16 => {
                let values: Vec<bf16> = pairs.map(bf16::from_bits).collect();
                self.finite(name, view, values.iter().map(|x| x.to_f32()))?;
                Ok(Elements::Bf16(values))
            }
            _ => Err(self.dtype(name, view, "F16 or BF16")),
        }
    }

    fn floats(&self, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, TraceError> {
        if view.dtype() != Dtype::F32 {
            return Err(self.dtype(name, view, "F32"));
        }
        let words = view.data().chunks_exact(4);
        let values: Vec<f32> = words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        self.finite(name, view, values.iter().copied())?;
        Ok(values)
    }

    fn finite(
        &self,
        name: &str,
        view: &TensorView<'_>,
        mut values: impl Iterator<Item = f32>,
    ) -> Result<(), TraceError> {
        let mut found = 0.0;
        let Some(mut flat) = values.position(|x| {
            found = x;
            !x.is_finite()
        }) else {
            return Ok(());
        };
        let mut index = vec![0; view.shape().len()];
        for (at, &size) in index.iter_mut().zip(view.shape()).rev() {
            *at = flat % size;
            flat /= size;
        }
        Err(TraceError::NonFinite {
            file: self.file.to_owned(),
            tensor: name.to_owned(),
            index,
            value: found,
        })
    }

    fn expect_shape(
        &self,
        name: &str,
        view: &TensorView<'_>,
        want: &[usize],
        why: &str,
    ) -> Result<(), TraceError> {
        if view.shape() == want { Ok(()) } else { Err(self.shape(name, view, &format!("{want:?} ({why})"))) }
    }

    fn shape(&self, name: &str, view: &TensorView<'_>, expected: &str) -> TraceError {
        TraceError::Shape {
            file: self.file.to_owned(),
            tensor: name.to_owned(),
            found: view.shape().to_vec(),
            expected: expected.to_owned(),
        }
    }

    fn dtype(&self, name: &str, view: &TensorView<'_>, expected: &'static str) -> TraceError {
        TraceError::Dtype {
            file: self.file.to_owned(),
            tensor: name.to_owned(),
            found: format!("{:?}", view.dtype()),
            expected,
        }
    }
}
