//! Telemetry as JSON lines and in Prometheus' text format.
//!
//! JSON: one object a line with a `kind`: `read` (a [`Record`](super::Record)), `audit` (an [`AuditRecord`]), `totals` (counters of a layer
//! and KV head, which also have the records that were dropped), and `end` with the number of lines before it.
//! Prometheus: exposition format 0.0.4. Every metric has its HELP and TYPE once, before its samples, whatever the number
//! of sources; counters end in `_total`.

use super::{AuditCounters, AuditRecord, Counters, Record, Telemetry};
use crate::{Error, Path};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io;

/// Fields and labels that records have of their own.
const OWN: [&str; 12] = [
    "kind",
    "step",
    "sequence",
    "entry",
    "layer",
    "kv_head",
    "path",
    "tokens",
    "mass",
    "records",
    "audits",
    "certified",
];

/// Names and values that tell one source of telemetry from another, such as `policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<(String, String)>);

impl Labels {
    /// Of names and values.
    ///
    /// # Errors
    /// [`Error::Config`] where a name is no label of Prometheus (`[a-zA-Z_][a-zA-Z0-9_]*`, not beginning with two
    /// underscores), occurs twice, or is one of a record's own.
    pub fn new<'a>(labels: impl IntoIterator<Item = (&'a str, String)>) -> Result<Labels, Error> {
        let mut known: Vec<(String, String)> = Vec::new();
        for (name, value) in labels {
            let shape = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !name.starts_with("__");
            if !shape || OWN.contains(&name) || known.iter().any(|(other, _)| other == name) {
                return Err(Error::Config {
                    what: format!("label {name:?}"),
                    remedy: format!(
                        "use letters, digits and underscores, each name once, none of {}",
                        OWN.join(", ")
                    ),
                });
            }
            known.push((name.to_owned(), value));
        }
        Ok(Labels(known))
    }
}

/// Writes everything that is kept, one JSON object a line.
///
/// # Errors
/// The writer's.
pub fn write_json_lines(out: &mut dyn io::Write, labels: &Labels, telemetry: &Telemetry) -> io::Result<()> {
    let mut line = |kind: &str, fields: Value| {
        let mut object = Map::new();
        object.insert("kind".into(), kind.into());
        object.extend(labels.0.iter().map(|(name, value)| (name.clone(), value.as_str().into())));
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        writeln!(out, "{}", Value::Object(object))
    };
    let (mut records, mut audits) = (0u64, 0u64);
    for record in telemetry.records() {
        line("read", read_fields(&record))?;
        records += 1;
    }
    for audit in telemetry.audits() {
        line("audit", audit_fields(audit))?;
        audits += 1;
    }
    for (layer, kv_head, reads, sums) in telemetry.active() {
        line("totals", totals_fields(layer, kv_head, reads, sums))?;
    }
    line(
        "end",
        json!({
            "records": records,
            "records_dropped": telemetry.dropped(),
            "audits": audits,
            "audits_dropped": telemetry.dropped_audits(),
        }),
    )
}

fn sequence_name(sequence: crate::SequenceId) -> String {
    let (index, generation) = sequence.key();
    format!("{index}.{generation}")
}

fn read_fields(record: &Record<'_>) -> Value {
    json!({
        "step": record.step,
        "sequence": sequence_name(record.sequence),
        "entry": record.entry,
        "layer": record.layer,
        "kv_head": record.kv_head,
        "tokens": record.tokens,
        "blocks_read": record.blocks_read,
        "blocks_total": record.blocks_total,
        "topups": record.topups,
        "kv_bytes": record.kv_bytes,
        "metadata_bytes": record.metadata_bytes,
        "path": record.path.name(),
        "mass": record.mass,
        "certified": record.certified,
    })
}

fn audit_fields(audit: &AuditRecord) -> Value {
    json!({
        "step": audit.step,
        "sequence": sequence_name(audit.sequence),
        "entry": audit.entry,
        "layer": audit.layer,
        "kv_head": audit.kv_head,
        "blocks_read": audit.blocks_read,
        "blocks_total": audit.blocks_total,
        "path": audit.path.name(),
        "certified": audit.certified,
        "believed_missed": audit.believed_missed,
        "true_missed": audit.true_missed,
        "output_error": audit.output_error,
        "lse_error": audit.lse_error,
    })
}

fn totals_fields(layer: usize, kv_head: usize, reads: &Counters, audits: &AuditCounters) -> Value {
    let paths: Map<String, Value> =
        Path::ALL.iter().zip(reads.paths).map(|(path, n)| (path.name().to_owned(), n.into())).collect();
    #[derive(Serialize)]
    struct Totals<'a> {
        layer: usize,
        kv_head: usize,
        #[serde(flatten)]
        reads: &'a Counters,
        audit: Option<&'a AuditCounters>,
    }
    let audit = (audits.audits > 0).then_some(audits);
    // Numbers, arrays and names: nothing that JSON could refuse.
    let mut value = serde_json::to_value(Totals { layer, kv_head, reads, audit }).unwrap_or_default();
    value["paths"] = Value::Object(paths);
    value
}

/// How Prometheus is to read a metric.
#[derive(Clone, Copy)]
enum Type {
    Counter,
    Gauge,
    Summary,
}

/// Samples of one metric for one layer and KV head: suffix of the name, further label, value.
type Samples = Vec<(&'static str, Option<(&'static str, &'static str)>, String)>;

struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Type,
    samples: fn(&Counters, &AuditCounters) -> Samples,
}

fn one(value: u64) -> Samples {
    vec![("", None, value.to_string())]
}

/// A summary without quantiles: those of a sum over time cannot be kept.
fn sum_and_count(sum: f64, count: u64) -> Samples {
    vec![("_sum", None, number(sum)), ("_count", None, count.to_string())]
}

/// Nothing where nothing was audited: a gauge of 0 would be a claim.
fn audited(audits: &AuditCounters, samples: Samples) -> Samples {
    if audits.audits > 0 { samples } else { Vec::new() }
}

const METRICS: [Metric; 13] = [
    Metric {
        name: "psa_steps_total",
        help: "Decode steps, one for each sequence.",
        kind: Type::Counter,
        samples: |reads, _| one(reads.steps),
    },
    Metric {
        name: "psa_blocks_read_total",
        help: "KV blocks of 16 tokens that attention read.",
        kind: Type::Counter,
        samples: |reads, _| one(reads.blocks_read),
    },
    Metric {
        name: "psa_blocks_seen_total",
        help: "KV blocks that dense attention would have read.",
        kind: Type::Counter,
        samples: |reads, _| one(reads.blocks_total),
    },
    Metric {
        name: "psa_topups_total",
        help: "Chunks of up to 8 blocks read after the plan.",
        kind: Type::Counter,
        samples: |reads, _| one(reads.topups),
    },
    Metric {
        name: "psa_kv_read_bytes_total",
        help: "Bytes of K and V read, whole blocks.",
        kind: Type::Counter,
        samples: |reads, _| one(reads.kv_bytes),
    },
    Metric {
        name: "psa_metadata_read_bytes_total",
        help: "Bytes of the key mirror read to decide.",
        kind: Type::Counter,
        samples: |reads, _| one(reads.metadata_bytes),
    },
    Metric {
        name: "psa_path_steps_total",
        help: "Decode steps by what became of their plan.",
        kind: Type::Counter,
        samples: |reads, _| {
            let paths = Path::ALL.iter().zip(reads.paths);
            paths.map(|(path, n)| ("", Some(("path", path.name())), n.to_string())).collect()
        },
    },
    Metric {
        name: "psa_believed_missed_mass",
        help: "Share of the softmax mass believed missed, over steps and query heads; under certified its bound.",
        kind: Type::Summary,
        samples: |reads, _| sum_and_count(reads.believed_missed, reads.heads),
    },
    Metric {
        name: "psa_audits_total",
        help: "Decode steps recomputed densely, one for each sequence.",
        kind: Type::Counter,
        samples: |_, audits| one(audits.audits),
    },
    Metric {
        name: "psa_audit_missed_mass",
        help: "Share of the softmax mass truly missed, over audited query heads.",
        kind: Type::Summary,
        samples: |_, audits| audited(audits, sum_and_count(audits.true_missed, audits.heads)),
    },
    Metric {
        name: "psa_audit_missed_mass_max",
        help: "Largest share of the softmax mass truly missed by an audited query head.",
        kind: Type::Gauge,
        samples: |_, audits| audited(audits, vec![("", None, number(audits.true_missed_max))]),
    },
    Metric {
        name: "psa_audit_output_error",
        help: "Relative error of the output against dense attention, over audited query heads.",
        kind: Type::Summary,
        samples: |_, audits| audited(audits, sum_and_count(audits.output_error, audits.heads)),
    },
    Metric {
        name: "psa_audit_underestimated_total",
        help: "Audited query heads that missed more than was believed.",
        kind: Type::Counter,
        samples: |_, audits| one(audits.underestimated),
    },
];

/// All counters as Prometheus reads them; no two sources may have the same labels, or their samples are duplicates.
pub fn prometheus(sources: &[(&Labels, &Telemetry)]) -> String {
    let mut text = String::new();
    for Metric { name, help, kind, samples } in &METRICS {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Summary => "summary",
        };
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, telemetry) in sources {
            for (layer, kv_head, reads, audits) in telemetry.active() {
                for (suffix, more, value) in samples(reads, audits) {
                    let _ = write!(text, "{name}{suffix}{{");
                    for (label, value) in &labels.0 {
                        let _ = write!(text, "{label}=\"{}\",", escape(value));
                    }
                    let _ = write!(text, "layer=\"{layer}\",kv_head=\"{kv_head}\"");
                    if let Some((label, value)) = more {
                        let _ = write!(text, ",{label}=\"{value}\"");
                    }
                    let _ = writeln!(text, "}} {value}");
                }
            }
        }
    }
    text.push_str(
        "# HELP psa_records_dropped_total Records that made room for later ones; the counters have them.\n\
         # TYPE psa_records_dropped_total counter\n",
    );
    for (labels, telemetry) in sources {
        let labels: Vec<String> =
            labels.0.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let _ = writeln!(text, "psa_records_dropped_total{{{}}} {}", labels.join(","), telemetry.dropped());
    }
    text
}

/// A label's value: backslash, quote and line feed are escaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A float as Prometheus writes it: Go's names of what is no number.
fn number(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".into(),
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        x => format!("{x}"),
    }
}
