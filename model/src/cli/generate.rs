//! `psa generate`: text from a prompt, streamed, and what was read of the cache for it.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use psa::telemetry::Audit;
use psa::{DecodePlan, Policy};
use psa_model::{Decoder, Model, ModelError, Reading, Sampler, Stream};
use serde_json::json;

use super::options::{Progress, ms, read_text};
use super::report::{self, Report};
use super::{CliError, ModelArgs, Verdict, interrupt};

/// Options of `generate`.
#[derive(Args)]
#[command(after_help = "Examples:\n  psa generate --prompt \"The capital of France is\" -n 32\n  \
    psa generate --prompt-file README.md -n 64 --policy progressive:0.9 --report out.html\n  \
    psa generate --chat --prompt \"Why is the sky blue?\" --temperature 0.7 --seed 3\n\n\
    Ctrl-C ends after the step in progress; what was generated is kept and reported.")]
pub struct GenerateArgs {
    /// The prompt
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "prompt_file",
        conflicts_with = "prompt_file"
    )]
    prompt: Option<String>,
    /// A file that holds the prompt
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Wrap the prompt as a user's message, as the instruction-tuned model expects
    #[arg(long)]
    chat: bool,
    /// Tokens to generate, at most
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 64)]
    count: usize,
    /// What is read: dense, progressive:M, top-k:F, ..
    #[arg(long, default_value = "progressive:0.95")]
    policy: Policy,
    /// 0 takes the most probable token, more draws
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Share of the probability that is drawn from
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    top_p: f32,
    /// Go on after a token that ends the text
    #[arg(long)]
    ignore_end: bool,
    /// Share of the (step, layer, KV head) whose missed mass is recomputed in f64; costs time [default: 0.02 with --report]
    #[arg(long, value_name = "SHARE")]
    audit: Option<f64>,
    /// Write one self-contained HTML page with pictures
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "psa-generate.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|t: &f32| (0.0..=100.0).contains(t))
        .ok_or_else(|| "use a number from 0 to 100".into())
}

fn share(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|p: &f32| *p > 0.0 && *p <= 1.0)
        .ok_or_else(|| "use a share above 0, at most 1".into())
}

/// Runs it.
pub fn run(args: &GenerateArgs) -> Result<Verdict, CliError> {
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(file)) => read_text(file)?,
        (None, None) => String::new(),
    };
    if let Some(file) = &args.report {
        report::probe(file)?;
    }
    let loaded = args.model.load()?;
    let config = loaded.model.config();
    let text = match args.chat {
        true => loaded.tokens.chat(&text).ok_or_else(|| {
            CliError::Options(format!("{} has no ChatML template; leave out --chat", loaded.name))
        })?,
        false => text,
    };
    let prompt = loaded.tokens.encode(&text)?;
    if prompt.is_empty() {
        return Err(ModelError::EmptyPrompt.into());
    }
    // The last token generated is not appended.
    let needed = prompt.len() + args.count.saturating_sub(1);
    if needed > config.context {
        return Err(ModelError::TooLong { tokens: needed, context: config.context }.into());
    }
    let audit =
        Audit::new(args.audit.unwrap_or(if args.report.is_some() { 0.02 } else { 0.0 }), args.model.seed)?;
    let decoder = Decoder::new(&loaded.model);
    let mut cache = args.model.cache(&loaded.model, args.policy, 1, needed.max(prompt.len()))?;
    let sequence = cache.add_sequence()?;
    let mut plan = DecodePlan::new(&cache, &[sequence], args.policy)?.with_record();
    interrupt::catch()?;

    let start = Instant::now();
    let mut progress = Progress::new(args.model.json);
    let prefilled = decoder.prefill(&mut cache, sequence, &prompt, &mut |done| {
        if prompt.len() > 1024 {
            progress.say(|| format!("prefill: {done} of {} tokens", prompt.len()));
        }
        !interrupt::asked()
    });
    let mut logits = match prefilled {
        Err(ModelError::Interrupted) => return Ok(Verdict::Interrupted),
        other => other?,
    };
    let prefill_ms = ms(start);

    let sampler = Sampler { temperature: args.temperature, top_p: args.top_p, seed: args.model.seed };
    let mut out = std::io::stdout().lock();
    let mut stream = Stream::new(&loaded.tokens);
    let (mut generated, mut answer) = (vec![], String::new());
    let mut reading = Reading::new(config.shape());
    let mut audits = vec![];
    let decode = Instant::now();
    while generated.len() < args.count && !interrupt::asked() {
        let token = sampler.draw(&logits, 0, prompt.len() + generated.len());
        if loaded.tokens.ends(token) && !args.ignore_end {
            break;
        }
        generated.push(token);
        let piece = stream.push(token)?;
        if !args.model.json {
            write!(out, "{piece}")?;
            out.flush()?;
        }
        answer.push_str(&piece);
        if generated.len() == args.count {
            break;
        }
        let step = generated.len() as u64;
        let mut rows = decoder.watched_step(&mut cache, &mut plan, &[token], &mut |seen, plan, cache| {
            audits.extend(audit.check(step, plan, cache, seen.layer, seen.q, seen.out, seen.lse)?);
            Ok(())
        })?;
        reading.add(&plan, |_| true);
        logits = rows.remove(0)?;
    }
    let decode_ms = ms(decode);
    let interrupted = interrupt::asked();
    let steps = reading.by_step().len();
    let per_second = if decode_ms > 0.0 { steps as f64 / decode_ms * 1e3 } else { 0.0 };
    let missed = report::missed(&audits);
    let (believed, believed_max) = reading.believed_missed();
    let record = json!({
        "model": loaded.name, "backend": args.model.backend_name(), "policy": args.policy.to_string(),
        "mirror": args.model.mirror_of(args.policy).to_string(), "seed": args.model.seed,
        "prompt_tokens": prompt.len(), "new_tokens": generated.len(), "text": answer, "tokens": generated,
        "prefill_ms": prefill_ms, "decode_ms": decode_ms, "tokens_per_s": per_second,
        "kv_fraction": reading.kv_fraction(), "metadata_fraction": reading.metadata_fraction(),
        "topup_fraction": reading.topup_fraction(),
        "believed_missed": { "mean": believed, "max": believed_max },
        "missed_mass": missed, "interrupted": interrupted,
    });
    if args.model.json {
        writeln!(out, "{record}")?;
    } else {
        writeln!(out)?;
        eprintln!(
            "\n{} prompt tokens in {:.1} s, {} new at {per_second:.1} tokens/s; {} read {:.1} % of K and V and {:.1} % in metadata",
            prompt.len(),
            prefill_ms / 1e3,
            generated.len(),
            args.policy,
            100.0 * reading.kv_fraction(),
            100.0 * reading.metadata_fraction(),
        );
    }
    if let Some(file) = &args.report {
        let mut page = Report::new(&format!("{} with {}", loaded.name, args.policy));
        page.facts(&record);
        page.reading(&reading, config.shape(), prompt.len());
        page.blocks_read(&plan, config.shape(), None);
        page.audits(&audits, config.shape());
        page.text("Prompt and answer", &format!("{text}{answer}"));
        page.write(file)?;
        eprintln!("report: {}", file.display());
    }
    Ok(if interrupted { Verdict::Interrupted } else { Verdict::Good })
}
