//! `psa serve-bench`: the same arrivals served under several policies, in turns.
//!
//! A clock of its own: work takes the time it takes, waiting for the next arrival takes none. Policies alternate in rounds and
//! a ratio is formed within its round, so that what else runs on the machine falls on all alike; medians over the rounds.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use psa::{CacheConfig, Capacity, Forced, KvCache, Policy};
use psa_model::{Decoder, Load, Model, ModelError, Outcome, Prompt, Request, Sampler, Server};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::needles::fill;
use super::options::{Backend, Loaded, Progress, read_text};
use super::{CliError, ModelArgs, Verdict, interrupt, report};

/// Options of `serve-bench`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa serve-bench --policy dense --policy quest:0.6 --policy progressive:0.95\n  \
    psa serve-bench --policy dense --policy progressive:0.95 --prompt-tokens 8000 --prefill elsewhere --batch 4 --json\n\n\
    The first policy is what the others are compared with."
)]
pub struct ServeBenchArgs {
    /// Policies, which take turns
    #[arg(long, required = true)]
    policy: Vec<Policy>,
    /// Arrivals a second, on average (Poisson)
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = rate)]
    rate: f64,
    /// Requests
    #[arg(long, value_name = "N", default_value_t = 8)]
    requests: u64,
    /// Tokens of the longest prompt; the shortest have half as many
    #[arg(long, value_name = "N", default_value_t = 2000)]
    prompt_tokens: usize,
    /// Tokens that each request wants
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Most sequences that decode together
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,
    /// Tokens of the pool [default: what a full batch of the longest requests takes]
    #[arg(long, value_name = "N")]
    pool_tokens: Option<usize>,
    /// Where prompts are prefilled
    #[arg(long, value_enum, default_value_t = Prefill::Here)]
    prefill: Prefill,
    /// Times that every policy has its turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// A text whose parts are the prompts [default: made-up sentences]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Where prompts are prefilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefill {
    /// In chunks between the decode steps
    Here,
    /// By somebody else: K and V arrive with the request, as where prefill and decode are apart
    Elsewhere,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|r: &f64| *r > 0.0 && r.is_finite()).ok_or_else(|| "use a number above 0".into())
}

/// Runs it.
pub fn run(args: &ServeBenchArgs) -> Result<Verdict, CliError> {
    if args.requests == 0 || args.tokens == 0 || args.batch == 0 || args.rounds == 0 || args.prompt_tokens < 2
    {
        let text =
            "--requests, --tokens, --batch and --rounds must be at least 1, --prompt-tokens at least 2";
        return Err(CliError::Options(text.into()));
    }
    let loaded = args.model.load()?;
    let context = loaded.model.config().context;
    let longest = args.prompt_tokens + args.tokens;
    if longest > context {
        return Err(ModelError::TooLong { tokens: longest, context }.into());
    }
    interrupt::catch()?;
    let mut progress = Progress::new(args.model.json);
    let Some(requests) = args.requests(&loaded, &mut progress)? else { return Ok(Verdict::Interrupted) };
    let mut rounds: Vec<Vec<Value>> = vec![];
    'all: for round in 0..args.rounds {
        let mut records = vec![];
        for &policy in &args.policy {
            progress.say(|| format!("round {round}: {policy}"));
            let Some(record) = args.serve(&loaded, &requests, policy)? else { break 'all };
            records.push(record);
        }
        rounds.push(records);
    }
    let interrupted = interrupt::asked();
    let mut all = vec![];
    for (i, _) in args.policy.iter().enumerate() {
        let mine: Vec<&Value> = rounds.iter().map(|round| &round[i]).collect();
        let Some(first) = mine.first() else { continue };
        let mut record = (*first).clone();
        for field in MEDIANS {
            let values = mine.iter().filter_map(|record| at(record, field).as_f64()).collect();
            set(&mut record, field, median(values));
        }
        for (name, field) in
            [("throughput_ratio", "throughput_tokens_per_s"), ("step_ratio", "decode_steps_per_s")]
        {
            let ratios = rounds
                .iter()
                .filter_map(|round| Some(at(&round[i], field).as_f64()? / at(&round[0], field).as_f64()?));
            record[name] = json!(median(ratios.collect()));
        }
        record["rounds"] = json!(mine.len());
        all.push(record);
    }
    let mut out = std::io::stdout().lock();
    if args.model.json {
        for record in &all {
            writeln!(out, "{record}")?;
        }
    } else {
        write!(out, "{}", report::plain_table(&all, COLUMNS))?;
    }
    Ok(if interrupted { Verdict::Interrupted } else { Verdict::Good })
}

/// Fields that differ from round to round.
const MEDIANS: [&str; 10] = [
    "throughput_tokens_per_s",
    "decode_steps_per_s",
    "ttft_ms.p50",
    "ttft_ms.p99",
    "between_tokens_ms.p50",
    "between_tokens_ms.p99",
    "share_of_time.prefill",
    "share_of_time.attention",
    "share_of_time.rest_of_decode",
    "mean_batch",
];

const COLUMNS: &[(&str, &str)] = &[
    ("policy", "policy"),
    ("tokens/s", "throughput_tokens_per_s"),
    ("ratio", "throughput_ratio"),
    ("first token p50 ms", "ttft_ms.p50"),
    ("p99", "ttft_ms.p99"),
    ("between p50 ms", "between_tokens_ms.p50"),
    ("p99", "between_tokens_ms.p99"),
    ("KV MB/token", "kv_mb_per_token"),
    ("KV %", "%kv_fraction"),
    ("prefill %", "%share_of_time.prefill"),
    ("attention %", "%share_of_time.attention"),
    ("pool peak %", "%pool.peak"),
    ("swaps", "preemptions"),
];

fn at<'a>(record: &'a Value, field: &str) -> &'a Value {
    field.split('.').fold(record, |value, part| &value[part])
}

fn set(record: &mut Value, field: &str, value: f64) {
    *field.split('.').fold(record, |value, part| &mut value[part]) = json!(value);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    if values.is_empty() { 0.0 } else { (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0 }
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    if sorted.is_empty() { 0.0 } else { sorted[((sorted.len() - 1) as f64 * share).round() as usize] }
}

impl ServeBenchArgs {
    /// The arrivals, the same for every policy. None where Ctrl-C came.
    fn requests(&self, loaded: &Loaded, progress: &mut Progress) -> Result<Option<Vec<Request>>, CliError> {
        let mut random = ChaCha8Rng::seed_from_u64(self.model.seed);
        let mut source = vec![];
        let needed = 2 * self.prompt_tokens;
        match &self.text {
            Some(file) => {
                source = loaded.tokens.encode(&read_text(file)?)?;
                if source.len() < needed {
                    let file = file.display().to_string();
                    return Err(CliError::TooShort {
                        file,
                        tokens: source.len(),
                        needed,
                        option: "--prompt-tokens",
                    });
                }
            }
            None => fill(loaded, &mut source, 2 * needed, &mut random)?,
        }
        let decoder = Decoder::new(&loaded.model);
        let (mut arrival, mut requests) = (0.0, vec![]);
        for id in 0..self.requests {
            let length = random.random_range(self.prompt_tokens.div_ceil(2)..=self.prompt_tokens);
            let from = random.random_range(0..=source.len() - length);
            let tokens = source[from..from + length].to_vec();
            let prompt = match self.prefill {
                Prefill::Here => Prompt::Tokens(tokens),
                Prefill::Elsewhere => {
                    let args = ModelArgs { backend: Backend::Cpu, ..self.model.clone() };
                    let mut cache = args.cache(&loaded.model, Policy::Dense, 1, length)?;
                    let sequence = cache.add_sequence()?;
                    let (context, last) = tokens.split_at(length - 1);
                    let done = decoder.prefill(&mut cache, sequence, context, &mut |done| {
                        progress.say(|| format!("request {id}: prefill, {done} of {length} tokens"));
                        !interrupt::asked()
                    });
                    match done {
                        Err(ModelError::Interrupted) => return Ok(None),
                        other => other?,
                    };
                    Prompt::Prefilled(
                        Arc::new(decoder.snapshot(&mut cache, sequence)?),
                        context.len(),
                        last[0],
                    )
                }
            };
            requests.push(Request { id, arrival, prompt, new_tokens: self.tokens });
            // Poisson: the time to the next is exponential.
            arrival -= (1.0 - random.random::<f64>()).ln() / self.rate;
        }
        Ok(Some(requests))
    }

    fn serve(
        &self,
        loaded: &Loaded,
        requests: &[Request],
        policy: Policy,
    ) -> Result<Option<Value>, CliError> {
        let longest = self.prompt_tokens + self.tokens;
        let m = &self.model;
        let config = CacheConfig {
            capacity: Capacity::Tokens(
                self.pool_tokens.unwrap_or(self.batch * longest.next_multiple_of(m.quant_group)),
            ),
            max_sequences: self.batch,
            max_tokens: Some(longest),
            mirror: m.mirror_of(policy),
            quant_group: m.quant_group,
            unit: m.unit,
            forced: Forced { sink: m.sink, recent: m.recent },
            check_finite: true,
            ..CacheConfig::default()
        };
        let cache = KvCache::new(&m.device()?, loaded.model.config().shape(), config)?;
        let slots = cache.pool_use().slots;
        let decoder = Decoder::new(&loaded.model);
        let mut server =
            Server::new(decoder, cache, policy, Sampler { seed: m.seed, ..Sampler::GREEDY }, self.batch);
        let mut next = requests.iter().peekable();
        let mut outcomes = vec![];
        loop {
            if interrupt::asked() {
                return Ok(None);
            }
            while let Some(request) = next.next_if(|request| request.arrival <= server.now()) {
                server.submit(request.clone());
            }
            if server.busy() {
                server.iterate()?;
            } else if let Some(request) = next.peek() {
                server.skip_to(request.arrival);
            }
            outcomes.extend(server.ended());
            if !server.busy() && next.peek().is_none() {
                break;
            }
        }
        let seconds = server.now();
        Ok(Some(self.record(policy, &outcomes, server.load(), slots, seconds)))
    }

    fn record(&self, policy: Policy, outcomes: &[Outcome], load: &Load, slots: usize, seconds: f64) -> Value {
        let mut first: Vec<f64> =
            outcomes.iter().filter_map(|o| Some((o.times.first()? - o.arrival) * 1e3)).collect();
        let mut between: Vec<f64> =
            outcomes.iter().flat_map(|o| o.times.windows(2).map(|pair| (pair[1] - pair[0]) * 1e3)).collect();
        first.sort_by(f64::total_cmp);
        between.sort_by(f64::total_cmp);
        let tokens: usize = outcomes.iter().map(|o| o.tokens.len()).sum();
        let failed: Vec<String> =
            outcomes.iter().filter_map(|o| o.error.as_ref().map(ToString::to_string)).collect();
        let busy = (load.prefill_seconds + load.decode_seconds).max(f64::MIN_POSITIVE);
        let reading = &load.reading;
        json!({
            "policy": policy.to_string(), "mirror": self.model.mirror_of(policy).to_string(),
            "backend": self.model.backend_name(),
            "requests": outcomes.len(), "completed": outcomes.len() - failed.len(), "errors": failed,
            "prefill": if self.prefill == Prefill::Here { "here" } else { "elsewhere" },
            "prompt_tokens": self.prompt_tokens, "new_tokens": self.tokens, "batch": self.batch, "rate": self.rate,
            "seconds": seconds, "throughput_tokens_per_s": tokens as f64 / seconds,
            "decode_steps_per_s": load.steps as f64 / load.decode_seconds.max(f64::MIN_POSITIVE),
            "ttft_ms": { "p50": percentile(&first, 0.5), "p99": percentile(&first, 0.99) },
            "between_tokens_ms": { "p50": percentile(&between, 0.5), "p99": percentile(&between, 0.99) },
            "kv_fraction": reading.kv_fraction(), "metadata_fraction": reading.metadata_fraction(),
            "kv_mb_per_token": reading.bytes_per_step() * load.steps as f64 / load.step_tokens.max(1) as f64 / 1e6,
            "mean_batch": load.step_tokens as f64 / load.steps.max(1) as f64,
            "share_of_time": {
                "prefill": load.prefill_seconds / busy,
                "attention": load.attention_seconds / busy,
                "rest_of_decode": (load.decode_seconds - load.attention_seconds) / busy,
            },
            "pool": { "slots": slots, "peak": load.peak_slots as f64 / slots as f64 },
            "preemptions": outcomes.iter().map(|o| o.preemptions).sum::<usize>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_the_sorted_values() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0]), median(vec![])), (2.0, 2.5, 0.0));
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 0.5), percentile(&values, 0.99), percentile(&[], 0.5)),
            (50.0, 99.0, 0.0)
        );
        let mut record = json!({"a": {"b": 1.0}});
        set(&mut record, "a.b", 2.0);
        assert_eq!(at(&record, "a.b"), 2.0);
    }
}
