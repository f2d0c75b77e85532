//! `psa perplexity`: what a policy does to the model's predictions of a text it is given.
//!
//! All but the last positions of the window are prefilled densely, once, and copied into a cache for each policy; the
//! last ones are decode steps with the text's own tokens (teacher forced), so errors add up in the cache as they
//! do in generation. Dense decoding of the same positions is what the others are compared with.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use psa::telemetry::{Audit, AuditRecord};
use psa::{DecodePlan, Policy};
use psa_model::{Decoder, Model, ModelError, Reading, Snapshot, log_softmax};
use serde_json::{Value, json};

use super::options::{Loaded, Progress, ms, read_text};
use super::report::{self, Report};
use super::results::Results;
use super::{CliError, ModelArgs, Verdict, interrupt};

/// Options of `perplexity`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa perplexity --text README.md --context 2048 --policy progressive:0.95 --policy quest:0.4\n  \
    psa perplexity --text a.txt --text b.txt --context 8192 --policy top-k:0.2 --results run.jsonl --json\n\n\
    With --results a run that was interrupted or killed goes on where it was. KL is in nats, dense is the reference."
)]
pub struct PerplexityArgs {
    /// Texts
    #[arg(long, value_name = "FILE", required = true)]
    text: Vec<PathBuf>,
    /// Tokens of the window, from the beginning of the text
    #[arg(long, value_name = "N", default_value_t = 2048)]
    context: usize,
    /// Last positions of the window, which are decoded and compared
    #[arg(long, value_name = "N", default_value_t = 256)]
    queries: usize,
    /// Tokens of the text to leave out before the window
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// What is read; dense is always computed
    #[arg(long, required = true)]
    policy: Vec<Policy>,
    /// Share of the (step, layer, KV head) whose missed mass is recomputed in f64
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    audit: f64,
    /// Keep records here, and compute none twice
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Write one self-contained HTML page with pictures
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "psa-perplexity.html")]
    report: Option<PathBuf>,
    /// Draw KL against bytes read, as SVG
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// One text's window, its prefill, and dense's log probabilities where they are known.
struct Window<'a> {
    name: String,
    /// Tokens `0..context` and the one after: the last target.
    tokens: &'a [u32],
    snapshot: Option<Snapshot>,
    dense: Option<Vec<Vec<f64>>>,
}

/// What one run gave.
struct Run {
    log_probabilities: Vec<Vec<f64>>,
    reading: Reading,
    audits: Vec<AuditRecord>,
    wall_ms: f64,
}

/// Runs it.
pub fn run(args: &PerplexityArgs) -> Result<Verdict, CliError> {
    if args.queries == 0 || args.queries >= args.context {
        let text =
            format!("--queries {} must be at least 1 and below --context {}", args.queries, args.context);
        return Err(CliError::Options(text));
    }
    for file in args.report.iter().chain(&args.picture) {
        report::probe(file)?;
    }
    let audit = Audit::new(args.audit, args.model.seed)?;
    let loaded = args.model.load()?;
    let limit = loaded.model.config().context;
    if args.context > limit {
        return Err(ModelError::TooLong { tokens: args.context, context: limit }.into());
    }
    let mut results = Results::open(args.results.as_deref())?;
    let mut policies = vec![Policy::Dense];
    policies.extend(args.policy.iter().copied().filter(|policy| *policy != Policy::Dense));
    interrupt::catch()?;
    let mut progress = Progress::new(args.model.json);
    let mut page = Report::new(&format!("Perplexity of {} tokens with {}", args.context, loaded.name));
    let mut table = vec![];
    for file in &args.text {
        let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let tokens = loaded.tokens.encode(&read_text(file)?)?;
        let needed = args.skip + args.context + 1;
        if tokens.len() < needed {
            let file = file.display().to_string();
            return Err(CliError::TooShort {
                file,
                tokens: tokens.len(),
                needed,
                option: "--context or --skip",
            });
        }
        let tokens = &tokens[args.skip..needed];
        let mut window = Window { name, tokens, snapshot: None, dense: None };
        for &policy in &policies {
            let key = args.key(&loaded, &window, policy);
            if results.get(&key).is_none() {
                let run = match args.compute(&loaded, &mut window, policy, audit, &mut progress) {
                    Err(CliError::Model(ModelError::Interrupted)) => return Ok(Verdict::Interrupted),
                    other => other?,
                };
                let record = args.record(&loaded, &window, policy, key.clone(), &run);
                if args.report.is_some() {
                    page.heading(&format!("{}: {policy}", window.name));
                    page.reading(&run.reading, loaded.model.config().shape(), args.context - args.queries);
                    page.audits(&run.audits, loaded.model.config().shape());
                }
                results.push(record)?;
            }
            let Some(record) = results.get(&key) else { continue };
            if args.model.json {
                writeln!(std::io::stdout().lock(), "{record}")?;
            }
            table.push(record.clone());
        }
    }
    if !args.model.json {
        write!(std::io::stdout().lock(), "{}", table_of(&table))?;
    }
    if let Some(file) = &args.picture {
        report::write_picture(file, report::comparison(&table))?;
        eprintln!("picture: {}", file.display());
    }
    if let Some(file) = &args.report {
        page.comparison(&table);
        page.table(&table, COLUMNS);
        page.write(file)?;
        eprintln!("report: {}", file.display());
    }
    Ok(Verdict::Good)
}

impl PerplexityArgs {
    /// Names everything that a record depends on.
    fn key(&self, loaded: &Loaded, window: &Window<'_>, policy: Policy) -> String {
        let hash = window.tokens.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &token| {
            (hash ^ token as u64).wrapping_mul(0x0100_0000_01b3)
        });
        let m = &self.model;
        format!(
            "perplexity {} {hash:016x} {} {} {policy} mirror {} unit {} group {} forced {} {} {} audit {} seed {}",
            loaded.name,
            self.context,
            self.queries,
            m.mirror_of(policy),
            m.unit,
            m.quant_group,
            m.sink,
            m.recent,
            m.backend_name(),
            self.audit,
            m.seed,
        )
    }

    fn compute(
        &self,
        loaded: &Loaded,
        window: &mut Window<'_>,
        policy: Policy,
        audit: Audit,
        progress: &mut Progress,
    ) -> Result<Run, CliError> {
        let decoder = Decoder::new(&loaded.model);
        let prompt = &window.tokens[..self.context - self.queries];
        if window.snapshot.is_none() {
            // On the CPU whatever the backend: dense attention is the same everywhere, and a prompt is long.
            let args = ModelArgs { backend: super::options::Backend::Cpu, ..self.model.clone() };
            let mut cache = args.cache(&loaded.model, Policy::Dense, 1, prompt.len())?;
            let sequence = cache.add_sequence()?;
            decoder.prefill(&mut cache, sequence, prompt, &mut |done| {
                progress.say(|| format!("{}: prefill, {done} of {} tokens", window.name, prompt.len()));
                !interrupt::asked()
            })?;
            window.snapshot = Some(decoder.snapshot(&mut cache, sequence)?);
        }
        let Some(snapshot) = &window.snapshot else { return Err(ModelError::EmptyPrompt.into()) };
        if window.dense.is_none() && policy != Policy::Dense {
            let run = self.decode(loaded, window, snapshot, Policy::Dense, Audit::new(0.0, 0)?, progress)?;
            window.dense = Some(run.log_probabilities);
        }
        let run = self.decode(loaded, window, snapshot, policy, audit, progress)?;
        if policy == Policy::Dense {
            window.dense = Some(run.log_probabilities.clone());
        }
        Ok(run)
    }

    fn decode(
        &self,
        loaded: &Loaded,
        window: &Window<'_>,
        snapshot: &Snapshot,
        policy: Policy,
        audit: Audit,
        progress: &mut Progress,
    ) -> Result<Run, CliError> {
        let decoder = Decoder::new(&loaded.model);
        let mut cache = self.model.cache(&loaded.model, policy, 1, self.context)?;
        let sequence = decoder.restore(&mut cache, snapshot)?;
        let mut plan = DecodePlan::new(&cache, &[sequence], policy)?.with_record();
        let mut reading = Reading::new(loaded.model.config().shape());
        let (mut log_probabilities, mut audits) = (vec![], vec![]);
        let start = Instant::now();
        for i in 0..self.queries {
            if interrupt::asked() {
                return Err(ModelError::Interrupted.into());
            }
            progress.say(|| format!("{}: {policy}, {i} of {} positions", window.name, self.queries));
            let token = window.tokens[self.context - self.queries + i];
            let mut rows =
                decoder.watched_step(&mut cache, &mut plan, &[token], &mut |seen, plan, cache| {
                    audits
                        .extend(audit.check(i as u64, plan, cache, seen.layer, seen.q, seen.out, seen.lse)?);
                    Ok(())
                })?;
            reading.add(&plan, |_| true);
            log_probabilities.push(log_softmax(&rows.remove(0)?));
        }
        Ok(Run { log_probabilities, reading, audits, wall_ms: ms(start) })
    }

    fn record(&self, loaded: &Loaded, window: &Window<'_>, policy: Policy, key: String, run: &Run) -> Value {
        let targets = &window.tokens[self.context - self.queries + 1..];
        let n = self.queries as f64;
        let nll =
            -run.log_probabilities.iter().zip(targets).map(|(row, &t)| row[t as usize]).sum::<f64>() / n;
        let dense = window.dense.as_deref().unwrap_or(&run.log_probabilities);
        let mut kl: Vec<f64> =
            dense.iter().zip(&run.log_probabilities).map(|(p, q)| divergence(p, q)).collect();
        let agree = dense.iter().zip(&run.log_probabilities).filter(|(p, q)| best(p) == best(q)).count();
        let kl_mean = kl.iter().sum::<f64>() / n;
        kl.sort_by(f64::total_cmp);
        json!({
            "key": key, "model": loaded.name, "text": window.name, "context": self.context, "queries": self.queries,
            "policy": policy.to_string(), "mirror": self.model.mirror_of(policy).to_string(),
            "backend": self.model.backend_name(),
            "perplexity": nll.exp(), "nll": nll,
            "kl": { "mean": kl_mean, "p99": kl[(n * 0.99) as usize], "max": kl[kl.len() - 1] },
            "top1_agreement": agree as f64 / n,
            "kv_fraction": run.reading.kv_fraction(), "metadata_fraction": run.reading.metadata_fraction(),
            "bytes_fraction": run.reading.kv_fraction() + run.reading.metadata_fraction(),
            "topup_fraction": run.reading.topup_fraction(),
            "missed_mass": report::missed(&run.audits),
            "wall_ms": run.wall_ms,
        })
    }
}

/// KL(p || q) in nats, of log probabilities.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn best(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}

const COLUMNS: &[(&str, &str)] = &[
    ("text", "text"),
    ("policy", "policy"),
    ("mirror", "mirror"),
    ("KV %", "%kv_fraction"),
    ("with metadata %", "%bytes_fraction"),
    ("perplexity", "perplexity"),
    ("KL", "kl.mean"),
    ("KL p99", "kl.p99"),
    ("top-1 as dense %", "%top1_agreement"),
    ("missed p99", "missed_mass.p99"),
];

fn table_of(records: &[Value]) -> String {
    report::plain_table(records, COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_for_the_same_and_as_computed_by_hand() {
        let p = log_softmax(&[0.0, 1.0]);
        assert_eq!(divergence(&p, &p), 0.0);
        let (a, b) = ([0.5f64.ln(), 0.5f64.ln()], [0.25f64.ln(), 0.75f64.ln()]);
        // .5 ln 2 + .5 ln (2 / 3)
        assert!((divergence(&a, &b) - 0.143841).abs() < 1e-6);
    }
}
