//! `psa needles`: facts hidden in a long text, asked for at its end.
//!
//! One haystack of made-up sentences holds all tasks' needles at seeded depths: `single` (one fact of its kind),
//! `multi-key` (four of a kind, one asked for at a time), `multi-value` (three values of one key) and `variables` (a value
//! through two assignments). It is prefilled densely once; then every question is a sequence of its own in one batch, and
//! the policy reads from the first token of the question on. An answer is found when its digits are in what is
//! generated.

use std::io::Write;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use psa::{DecodePlan, Policy};
use psa_model::{Decoder, Model, ModelError, Reading, Sampler, Snapshot};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::options::{Loaded, Progress, ms};
use super::report::{self, Report};
use super::results::Results;
use super::{CliError, ModelArgs, Verdict, interrupt};

/// Options of `needles`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  psa needles --context 2048 --policy progressive:0.95 --policy quest:0.4\n  \
    psa needles --context 8000 --samples 4 --policy top-k:0.1 --results needles.jsonl --json\n\n\
    Dense is always computed: what it does not find says nothing about a policy."
)]
pub struct NeedlesArgs {
    /// Tokens of the haystack, the question and its answer included
    #[arg(long, value_name = "N", default_value_t = 2048)]
    context: usize,
    /// Haystacks; each asks seven questions
    #[arg(long, value_name = "N", default_value_t = 2)]
    samples: u64,
    /// What is read
    #[arg(long, required = true)]
    policy: Vec<Policy>,
    /// Keep records here, and compute none twice
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Write one self-contained HTML page with pictures: where the needle was, which blocks were read
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "psa-needles.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Blocks of a question's needle.
type Blocks = RangeInclusive<usize>;

/// What is asked.
struct Question {
    task: &'static str,
    text: Vec<u32>,
    answers: Vec<String>,
    /// Tokens to generate.
    length: usize,
    /// Blocks that hold its first needle.
    needle: Blocks,
}

/// A text and its questions.
struct Haystack {
    tokens: Vec<u32>,
    questions: Vec<Question>,
}

const TASKS: [&str; 4] = ["single", "multi-key", "multi-value", "variables"];

impl Haystack {
    /// The haystack number `sample`.
    fn new(loaded: &Loaded, context: usize, seed: u64, sample: u64) -> Result<Haystack, CliError> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(sample);
        let mut number = || random.random_range(10_000..100_000u32).to_string();
        let mut needles: Vec<(usize, String)> = vec![];
        let mut questions = vec![];
        let mut ask = |task, first: usize, question: String, answers: Vec<String>, length| {
            questions.push((task, first, question, answers, length));
        };
        let code = number();
        needles.push((0, format!("The secret code of the tower is {code}.")));
        ask("single", 0, "The secret code of the tower is".into(), vec![code], 8);
        for city in ["Lisbon", "Oslo", "Cairo", "Lima"] {
            let magic = number();
            ask("multi-key", needles.len(), format!("The magic number of {city} is"), vec![magic.clone()], 8);
            needles.push((needles.len(), format!("The magic number of {city} is {magic}.")));
        }
        let lucky: Vec<String> = (0..3).map(|_| number()).collect();
        ask("multi-value", needles.len(), "The three lucky numbers of Alice are".into(), lucky.clone(), 30);
        for lucky in &lucky {
            needles.push((needles.len(), format!("A lucky number of Alice is {lucky}.")));
        }
        let value = number();
        ask("variables", needles.len(), "The value of the variable Y is".into(), vec![value.clone()], 8);
        needles.push((needles.len(), format!("The variable X is set to {value}.")));
        needles.push((needles.len(), "The variable Y is set to the value of X.".into()));

        let questions = questions.into_iter().map(|(task, first, text, answers, length)| {
            let text = loaded.tokens.encode(&format!("\n\n{text}"))?;
            Ok((first, Question { task, text, answers, length, needle: 0..=0 }))
        });
        let mut questions = questions.collect::<Result<Vec<_>, CliError>>()?;
        let reserve = questions.iter().map(|(_, q)| q.text.len() + q.length).max().unwrap_or(0);
        let length = context.saturating_sub(reserve);

        // Needles lie at evenly spread depths, in random order.
        let mut order: Vec<usize> = (0..needles.len()).collect();
        order.shuffle(&mut random);
        let mut tokens = loaded.tokens.encode("Here is a long story. Remember the facts in it.")?;
        let mut places = vec![0..=0; needles.len()];
        for (slot, &needle) in order.iter().enumerate() {
            let until = length * (2 * slot + 1) / (2 * order.len());
            fill(loaded, &mut tokens, until, &mut random)?;
            let begin = tokens.len();
            tokens.extend(loaded.tokens.encode(&format!(" {}", needles[needle].1))?);
            places[needle] = begin / 16..=(tokens.len() - 1) / 16;
        }
        if tokens.len() > length {
            let needed = tokens.len() + reserve;
            let text = format!(
                "--context {context} is too short: needles and questions alone take up to {needed} tokens"
            );
            return Err(CliError::Options(text));
        }
        fill(loaded, &mut tokens, length, &mut random)?;
        tokens.truncate(length);
        for (first, question) in &mut questions {
            question.needle = places[*first].clone();
        }
        let questions = questions.into_iter().map(|(_, question)| question).collect();
        Ok(Haystack { tokens, questions })
    }
}

/// Made-up sentences up to `until` tokens.
pub fn fill(
    loaded: &Loaded,
    tokens: &mut Vec<u32>,
    until: usize,
    random: &mut ChaCha8Rng,
) -> Result<(), CliError> {
    const WHO: [&str; 12] = [
        "miller",
        "teacher",
        "sailor",
        "farmer",
        "painter",
        "doctor",
        "baker",
        "child",
        "old man",
        "neighbour",
        "gardener",
        "clerk",
    ];
    const DID: [&str; 10] =
        ["walked", "looked", "waited", "talked", "sat", "worked", "sang", "slept", "stood", "read"];
    const WHERE: [&str; 12] = [
        "by the river",
        "in the garden",
        "at the market",
        "under the bridge",
        "near the church",
        "on the hill",
        "behind the barn",
        "in the kitchen",
        "along the road",
        "at the station",
        "in the library",
        "by the fire",
    ];
    const WHEN: [&str; 8] = [
        "all morning",
        "until it was dark",
        "for a while",
        "as always",
        "that day",
        "in the rain",
        "before supper",
        "without a word",
    ];
    while tokens.len() < until {
        let mut pick = |words: &[&'static str]| *words.choose(random).unwrap_or(&"");
        let sentence = format!(" The {} {} {} {}.", pick(&WHO), pick(&DID), pick(&WHERE), pick(&WHEN));
        tokens.extend(loaded.tokens.encode(&sentence)?);
    }
    Ok(())
}

/// Runs it.
pub fn run(args: &NeedlesArgs) -> Result<Verdict, CliError> {
    if args.context < 512 || args.samples == 0 {
        return Err(CliError::Options("use --context of at least 512, and at least one of --samples".into()));
    }
    if let Some(file) = &args.report {
        report::probe(file)?;
    }
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
    let mut page = Report::new(&format!("Needles in {} tokens with {}", args.context, loaded.name));
    let mut all = vec![];
    for sample in 0..args.samples {
        let haystack = Haystack::new(&loaded, args.context, args.model.seed, sample)?;
        let mut snapshot = None;
        for &policy in &policies {
            let key = args.key(&loaded, policy, sample);
            if results.get(&key).is_none() {
                let mut picture = args.report.as_ref().filter(|_| sample == 0).map(|_| &mut page);
                let run = args.compute(
                    &loaded,
                    &haystack,
                    &mut snapshot,
                    policy,
                    sample,
                    &mut progress,
                    &mut picture,
                );
                let mut record = match run {
                    Err(CliError::Model(ModelError::Interrupted)) => return Ok(Verdict::Interrupted),
                    other => other?,
                };
                record["key"] = json!(key);
                results.push(record)?;
            }
            all.extend(results.get(&key).cloned());
        }
    }
    let summary = summarise(&all, &policies);
    let mut out = std::io::stdout().lock();
    if args.model.json {
        for record in all.iter().chain(&summary) {
            writeln!(out, "{record}")?;
        }
    } else {
        write!(out, "{}", report::plain_table(&summary, COLUMNS))?;
    }
    if let Some(file) = &args.report {
        page.table(&summary, COLUMNS);
        page.write(file)?;
        eprintln!("report: {}", file.display());
    }
    Ok(Verdict::Good)
}

const COLUMNS: &[(&str, &str)] = &[
    ("policy", "policy"),
    ("single", "found.single"),
    ("multi-key", "found.multi-key"),
    ("multi-value", "found.multi-value"),
    ("variables", "found.variables"),
    ("all", "found.all"),
    ("KV %", "%kv_fraction"),
    ("with metadata %", "%bytes_fraction"),
];

/// One record a policy: answers found of those asked, by task.
fn summarise(records: &[Value], policies: &[Policy]) -> Vec<Value> {
    policies
        .iter()
        .map(|policy| {
            let mine: Vec<&Value> = records.iter().filter(|record| record["policy"] == policy.to_string()).collect();
            let mut found = serde_json::Map::new();
            let mut of = (0, 0);
            for task in TASKS {
                let questions = mine.iter().flat_map(|record| record["questions"].as_array().into_iter().flatten());
                let counts = questions.filter(|q| q["task"] == task).fold((0, 0), |(found, asked), q| {
                    (found + q["found"].as_u64().unwrap_or(0), asked + q["asked"].as_u64().unwrap_or(0))
                });
                of = (of.0 + counts.0, of.1 + counts.1);
                found.insert(task.into(), json!(format!("{} of {}", counts.0, counts.1)));
            }
            found.insert("all".into(), json!(format!("{} of {}", of.0, of.1)));
            let mean = |field: &str| {
                mine.iter().filter_map(|record| record[field].as_f64()).sum::<f64>() / mine.len().max(1) as f64
            };
            let (kv, bytes) = (mean("kv_fraction"), mean("bytes_fraction"));
            json!({
                "case": "all", "policy": policy.to_string(), "found": found, "share": of.0 as f64 / f64::from(of.1.max(1) as u32),
                "kv_fraction": kv, "bytes_fraction": bytes,
            })
        })
        .collect()
}

impl NeedlesArgs {
    /// Names everything that a record depends on.
    fn key(&self, loaded: &Loaded, policy: Policy, sample: u64) -> String {
        let m = &self.model;
        format!(
            "needles {} {} {sample} {policy} mirror {} unit {} group {} forced {} {} {} seed {}",
            loaded.name,
            self.context,
            m.mirror_of(policy),
            m.unit,
            m.quant_group,
            m.sink,
            m.recent,
            m.backend_name(),
            m.seed
        )
    }

    #[allow(clippy::too_many_arguments)] // What is asked, of whom, and where pictures go.
    fn compute(
        &self,
        loaded: &Loaded,
        haystack: &Haystack,
        snapshot: &mut Option<Snapshot>,
        policy: Policy,
        sample: u64,
        progress: &mut Progress,
        picture: &mut Option<&mut Report>,
    ) -> Result<Value, CliError> {
        let decoder = Decoder::new(&loaded.model);
        if snapshot.is_none() {
            let args = ModelArgs { backend: super::options::Backend::Cpu, ..self.model.clone() };
            let mut cache = args.cache(&loaded.model, Policy::Dense, 1, haystack.tokens.len())?;
            let sequence = cache.add_sequence()?;
            decoder.prefill(&mut cache, sequence, &haystack.tokens, &mut |done| {
                progress.say(|| {
                    format!("haystack {sample}: prefill, {done} of {} tokens", haystack.tokens.len())
                });
                !interrupt::asked()
            })?;
            *snapshot = Some(decoder.snapshot(&mut cache, sequence)?);
        }
        let Some(snapshot) = snapshot else { return Err(ModelError::EmptyPrompt.into()) };
        let start = Instant::now();
        let questions = &haystack.questions;
        let steps = |q: &Question| q.text.len() + q.length - 1;
        let longest = questions.iter().map(steps).max().unwrap_or(0);
        let mut cache =
            self.model.cache(&loaded.model, policy, questions.len(), haystack.tokens.len() + longest)?;
        let sequences =
            questions.iter().map(|_| decoder.restore(&mut cache, snapshot)).collect::<Result<Vec<_>, _>>()?;
        let mut plan = DecodePlan::new(&cache, &sequences, policy)?.with_record();
        let mut answers: Vec<Vec<u32>> = vec![vec![]; questions.len()];
        let mut reading = Reading::new(loaded.model.config().shape());
        for step in 0..longest {
            if interrupt::asked() {
                return Err(ModelError::Interrupted.into());
            }
            progress.say(|| format!("haystack {sample}: {policy}, step {step} of {longest}"));
            // Who has answered goes on with its last token until all have; nobody looks.
            let tokens: Vec<u32> = (questions.iter().zip(&answers))
                .map(|(q, answer)| *q.text.get(step).or(answer.last()).unwrap_or(&0))
                .collect();
            let rows = decoder.step(&mut cache, &mut plan, &tokens)?;
            reading.add(&plan, |entry| step < steps(&questions[entry]));
            for ((q, answer), row) in questions.iter().zip(&mut answers).zip(rows) {
                if step + 1 >= q.text.len() && answer.len() < q.length {
                    answer.push(Sampler::GREEDY.draw(&row?, 0, 0));
                }
            }
            // The token after the question is the first digit, or the space before it.
            if let (Some(page), Some(q)) = (picture.as_mut(), questions.first())
                && step + 1 == q.text.len() + 1
            {
                page.heading(&format!("{policy}: the step that answers {:?}", q.task));
                page.blocks_read(&plan, loaded.model.config().shape(), Some(q.needle.clone()));
            }
        }
        let mut asked = vec![];
        for (q, answer) in questions.iter().zip(&answers) {
            let text = loaded.tokens.decode(answer)?;
            let found = q.answers.iter().filter(|answer| text.contains(answer.as_str())).count();
            asked.push(json!({
                "task": q.task, "found": found, "asked": q.answers.len(), "answer": text, "right": q.answers,
                "needle_blocks": [q.needle.start(), q.needle.end()],
            }));
        }
        if let Some(page) = picture.as_mut() {
            page.reading(&reading, loaded.model.config().shape(), haystack.tokens.len());
        }
        Ok(json!({
            "model": loaded.name, "context": self.context, "sample": sample, "policy": policy.to_string(),
            "mirror": self.model.mirror_of(policy).to_string(), "backend": self.model.backend_name(),
            "questions": asked, "kv_fraction": reading.kv_fraction(), "metadata_fraction": reading.metadata_fraction(),
            "bytes_fraction": reading.kv_fraction() + reading.metadata_fraction(), "wall_ms": ms(start),
        }))
    }
}
