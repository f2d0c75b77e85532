//! The writer: what [`super::Traces::load`] reads back unchanged.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use super::{Case, Elements, FORMAT, TraceError, Traces, json_beside};

/// Writes `traces` to `file`, and the JSON beside it.
///
/// # Errors
/// [`TraceError::Write`].
pub fn write(traces: &Traces, file: &Path) -> Result<(), TraceError> {
    let failed = |file: &Path, reason: String| TraceError::Write { file: file.display().to_string(), reason };
    let tensors = to_bytes(traces).map_err(|error| failed(file, error.to_string()))?;
    std::fs::write(file, tensors).map_err(|error| failed(file, error.to_string()))?;
    let json_file = json_beside(file);
    std::fs::write(&json_file, json(traces)).map_err(|error| failed(&json_file, error.to_string()))
}

/// The JSON. Labels are for people and are written as `text`.
pub(super) fn json(traces: &Traces) -> String {
    let cases: Vec<_> = traces
        .cases
        .iter()
        .map(|case| {
            serde_json::json!({
                "case": case.name, "text": case.label, "context": case.context, "queries": case.queries,
            })
        })
        .collect();
    let whole = serde_json::json!({
        "format": FORMAT, "origin": traces.origin, "scale": traces.scale, "cases": cases,
    });
    format!("{whole:#}\n")
}

/// The safetensors container.
pub(super) fn to_bytes(traces: &Traces) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let parts: Vec<_> = traces.cases.iter().flat_map(parts).collect();
    let views = parts
        .iter()
        .map(|(name, dtype, shape, data)| Ok((name.clone(), TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize(views, None)
}

type Part = (String, Dtype, Vec<usize>, Vec<u8>);

fn parts(case: &Case) -> [Part; 5] {
    let name = |part: &str| format!("{}.{part}", case.name);
    let rows = vec![case.context, case.head_dim];
    let heads = vec![case.group, case.queries, case.head_dim];
    let [(q_type, q), (k_type, k), (v_type, v)] = [&case.q, &case.k, &case.v].map(element_bytes);
    [
        (name("q"), q_type, heads.clone(), q),
        (name("k"), k_type, rows.clone(), k),
        (name("v"), v_type, rows, v),
        (name("out"), Dtype::F32, heads, float_bytes(&case.out)),
        (name("lse"), Dtype::F32, vec![case.group, case.queries], float_bytes(&case.lse)),
    ]
}

fn element_bytes(elements: &Elements) -> (Dtype, Vec<u8>) {
    match elements {
        Elements::F16(x) => (Dtype::F16, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Elements::Bf16(x) => (Dtype::BF16, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
    }
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
