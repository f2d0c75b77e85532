//! Dumps: q, k and v of one attention call as a framework saves them, in a safetensors file.
//!
//! Tensors are found by the end of their names: `q`, `k`, `v` or `query`, `key`, `value` (plurals too),
//! alone or after `.`, `_`, `/` or `:`. What stands before it names the attention call, so one file may
//! hold many layers: `layers.3.q`, `layers.3.k`, `layers.3.v`. Each KV head becomes a case.
//!
//! Trap: queries and keys must be as attention sees them, after RoPE and norms and before scaling.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as FileDtype, SafeTensors, TensorView};

use super::answer::{Parts, answer};
use super::read::check_geometry;
use super::{SCALES, TraceError, Traces};
use crate::Dtype;

/// Order of the dimensions of a dump; a leading dimension of 1, the batch, may come before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[heads, tokens, head_dim]`.
    HeadsFirst,
    /// `[tokens, heads, head_dim]`.
    TokensFirst,
}

/// How to read a dump.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DumpOptions {
    /// Order of the dimensions.
    pub layout: Layout,
    /// Softmax scale; 1/sqrt(head_dim) where `None`.
    pub scale: Option<f32>,
    /// The last so many queries are kept.
    pub queries: usize,
    /// Element type of the result; where `None` that of the dump, f16 for f32 and f64.
    pub dtype: Option<Dtype>,
}

/// Reads the safetensors `bytes`; `file` is a name for the errors and the origin.
///
/// # Errors
/// [`TraceError`], naming the tensor, what is wrong with it, and what to do.
pub fn from_dump(file: &str, bytes: &[u8], options: DumpOptions) -> Result<Traces, TraceError> {
    let container = SafeTensors::deserialize(bytes)
        .map_err(|source| TraceError::Container { file: file.to_owned(), source })?;
    let mut calls: BTreeMap<String, [Option<String>; 3]> = BTreeMap::new();
    let mut others = Vec::new();
    // In any order in the container: errors name the same tensors each time.
    let mut present = container.names();
    present.sort_unstable();
    for name in present {
        match role(name) {
            Some((prefix, role)) => {
                let slot = &mut calls.entry(prefix.to_owned()).or_default()[role];
                if let Some(first) = slot {
                    return Err(dump(file, format!("{first} and {name} are both {}", ROLES[role][0])));
                }
                *slot = Some(name.to_owned());
            }
            None => others.push(name.to_owned()),
        }
    }
    if calls.is_empty() {
        others.truncate(8);
        let found = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        return Err(dump(file, format!("no tensor is named as q, k or v; it holds {found}")));
    }
    let mut traces = Traces { origin: file.to_owned(), scale: 0.0, cases: Vec::new() };
    for (prefix, names) in &calls {
        let [Some(q), Some(k), Some(v)] = names else {
            let missing: Vec<&str> =
                names.iter().zip(ROLES).filter(|(n, _)| n.is_none()).map(|(_, r)| r[0]).collect();
            let call = if prefix.is_empty() { "the file" } else { prefix };
            return Err(dump(file, format!("{call} lacks {}", missing.join(" and "))));
        };
        add_call(&mut traces, file, &container, prefix, [q, k, v], options)?;
    }
    Ok(traces)
}

/// KV heads of one attention call beyond which a dump is taken for one of the other layout.
const MOST_HEADS: usize = 128;

const ROLES: [[&str; 4]; 3] = [
    ["q", "query", "queries", "query_states"],
    ["k", "key", "keys", "key_states"],
    ["v", "value", "values", "value_states"],
];

/// The attention call and the role (0 q, 1 k, 2 v) of a tensor name.
fn role(name: &str) -> Option<(&str, usize)> {
    let lower = name.to_ascii_lowercase();
    let mut found: Option<(&str, usize)> = None;
    for (role, words) in ROLES.iter().enumerate() {
        for word in words {
            let Some(before) = lower.strip_suffix(word) else { continue };
            let prefix = match before.chars().last() {
                None => "",
                Some(c) if ".:/_".contains(c) => &name[..before.len() - c.len_utf8()],
                Some(_) => continue,
            };
            // The longest word wins: `query_states` is not `states`.
            if found.is_none_or(|(longer, _)| prefix.len() < longer.len()) {
                found = Some((prefix, role));
            }
        }
    }
    found
}

fn dump(file: &str, what: String) -> TraceError {
    TraceError::Dump { file: file.to_owned(), what }
}

/// A tensor as f64 `[heads, tokens, d]`.
struct Tensor {
    heads: usize,
    tokens: usize,
    d: usize,
    values: Vec<f64>,
    dtype: FileDtype,
}

fn add_call(
    traces: &mut Traces,
    file: &str,
    container: &SafeTensors<'_>,
    prefix: &str,
    names: [&String; 3],
    options: DumpOptions,
) -> Result<(), TraceError> {
    let mut tensors = Vec::with_capacity(3);
    for name in names {
        let view = container
            .tensor(name)
            .map_err(|source| TraceError::Container { file: file.to_owned(), source })?;
        tensors.push(read(file, name, &view, options.layout)?);
    }
    let [q, k, v]: [Tensor; 3] =
        tensors.try_into().map_err(|_| dump(file, format!("{prefix}: not three tensors")))?;
    let shape = |t: &Tensor| format!("{} heads, {} tokens, head_dim {}", t.heads, t.tokens, t.d);
    if (k.heads, k.tokens, k.d) != (v.heads, v.tokens, v.d) || q.d != k.d {
        let [q_name, k_name, v_name] = names;
        return Err(dump(
            file,
            format!(
                "{q_name} has {}; {k_name} has {}; {v_name} has {}: k and v must agree, and head_dim in all; \
                 is the layout [tokens, heads, head_dim]? then use --layout nhd",
                shape(&q),
                shape(&k),
                shape(&v)
            ),
        ));
    }
    if k.heads == 0 || q.heads % k.heads != 0 {
        return Err(dump(
            file,
            format!(
                "{} has {} heads and {} has {}: q must have a multiple; is the layout [tokens, heads, head_dim]? then \
                 use --layout nhd",
                names[0], q.heads, names[1], k.heads
            ),
        ));
    }
    // Nothing but its names tells one layout from the other; these sizes are no attention call's.
    if q.tokens > k.tokens || (k.heads > MOST_HEADS && k.heads > k.tokens) {
        let (heads, tokens) = match options.layout {
            Layout::HeadsFirst => ("[tokens, heads, head_dim]", "nhd"),
            Layout::TokensFirst => ("[heads, tokens, head_dim]", "hnd"),
        };
        return Err(dump(
            file,
            format!(
                "{} has {}; {} has {}: there must be a key for every query, and hundreds of KV heads are none; is the \
                 layout {heads}? then use --layout {tokens}",
                names[0],
                shape(&q),
                names[1],
                shape(&k)
            ),
        ));
    }
    let scale = options.scale.unwrap_or((1.0 / (q.d.max(1) as f64).sqrt()) as f32);
    if !SCALES.contains(&scale) {
        return Err(TraceError::Scale { file: file.to_owned(), found: scale as f64 });
    }
    if !traces.cases.is_empty() && traces.scale != scale {
        return Err(dump(
            file,
            format!("{prefix} has head_dim {}, other calls another: give one --scale for all", q.d),
        ));
    }
    traces.scale = scale;

    let dtype = options.dtype.unwrap_or(match k.dtype {
        FileDtype::BF16 => Dtype::Bf16,
        _ => Dtype::F16,
    });
    let group = q.heads / k.heads;
    let queries = options.queries.min(q.tokens);
    let label = if prefix.is_empty() { "dump" } else { prefix };
    check_geometry(file, label, group, queries, k.tokens, k.d)?;
    for head in 0..k.heads {
        let mut kept = Vec::with_capacity(group * queries * q.d);
        for g in head * group..(head + 1) * group {
            let first = (g * q.tokens + q.tokens - queries) * q.d;
            kept.extend_from_slice(&q.values[first..][..queries * q.d]);
        }
        let of_head = |t: &Tensor| t.values[head * t.tokens * t.d..][..t.tokens * t.d].to_vec();
        let stored = |name: &str, values: Vec<f64>| {
            // What overflows becomes infinite, and an infinite key makes every answer NaN.
            let most = if dtype == Dtype::F16 { f16::MAX.to_f64() } else { bf16::MAX.to_f64() };
            match values.iter().find(|x| x.abs() > most) {
                Some(x) => Err(dump(file, format!("{name} holds {x}, beyond {dtype}: use --dtype bf16"))),
                None => Ok(super::synthetic::elements(&values, dtype)),
            }
        };
        let parts = Parts {
            name: format!("case{}", traces.cases.len()),
            label: if k.heads > 1 { format!("{label}, head {head}") } else { label.to_owned() },
            head_dim: q.d,
            group,
            q: stored(names[0], kept)?,
            k: stored(names[1], of_head(&k))?,
            v: stored(names[2], of_head(&v))?,
        };
        let case = answer(parts, scale);
        if let Some(lse) = case.lse.iter().chain(&case.out).find(|x| !x.is_finite()) {
            return Err(dump(
                file,
                format!(
                    "dense attention over {label} at scale {scale} gives {lse}: q, k or v hold values that are none, or \
                     q is scaled already; give --scale"
                ),
            ));
        }
        traces.cases.push(case);
    }
    Ok(())
}

fn read(file: &str, name: &str, view: &TensorView<'_>, layout: Layout) -> Result<Tensor, TraceError> {
    let fail = |expected: &str| TraceError::Shape {
        file: file.to_owned(),
        tensor: name.to_owned(),
        found: view.shape().to_vec(),
        expected: expected.to_owned(),
    };
    let (first, second, d) = match view.shape() {
        [1, a, b, d] | [a, b, d] => (*a, *b, *d),
        [a, d] if layout == Layout::HeadsFirst => (1, *a, *d),
        [a, d] => (*a, 1, *d),
        [_, _, _, _] => return Err(fail("a batch of 1: record one sequence at a time")),
        _ => {
            return Err(fail(
                "[heads, tokens, head_dim], [1, heads, tokens, head_dim] or [tokens, head_dim]",
            ));
        }
    };
    let data = view.data();
    let flat: Vec<f64> = match view.dtype() {
        FileDtype::F16 => pairs(data).map(|x| f16::from_bits(x).to_f64()).collect(),
        FileDtype::BF16 => pairs(data).map(|x| bf16::from_bits(x).to_f64()).collect(),
        FileDtype::F32 => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64).collect()
        }
        FileDtype::F64 => data
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect(),
        other => {
            return Err(TraceError::Dtype {
                file: file.to_owned(),
                tensor: name.to_owned(),
                found: format!("{other:?}"),
                expected: "F16, BF16, F32 or F64",
            });
        }
    };
    if let Some(place) = flat.iter().position(|x| !x.is_finite()) {
        let index = vec![place / (second * d), place / d % second, place % d];
        let value = flat[place] as f32;
        return Err(TraceError::NonFinite { file: file.to_owned(), tensor: name.to_owned(), index, value });
    }
    let (heads, tokens, values) = match layout {
        Layout::HeadsFirst => (first, second, flat),
        Layout::TokensFirst => {
            let mut turned = Vec::with_capacity(flat.len());
            for head in 0..second {
                for token in 0..first {
                    turned.extend_from_slice(&flat[(token * second + head) * d..][..d]);
                }
            }
            (second, first, turned)
        }
    };
    Ok(Tensor { heads, tokens, d, values, dtype: view.dtype() })
}

fn pairs(data: &[u8]) -> impl Iterator<Item = u16> + '_ {
    data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_found_by_the_end_of_their_names() {
        for (name, want) in [
            ("q", Some(("", 0))),
            ("layers.3.k", Some(("layers.3", 1))),
            ("layer_3_value", Some(("layer_3", 2))),
            ("model.layers.0.self_attn.query_states", Some(("model.layers.0.self_attn", 0))),
            ("a/Keys", Some(("a", 1))),
            ("seq", None),
            ("mask", None),
            ("case0.lse", None),
        ] {
            assert_eq!(role(name), want, "{name}");
        }
    }
}
