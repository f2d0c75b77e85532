//! `psa record`: makes a psa-traces-v1 file from a dump, a generator, or a shorter recording.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use psa::Dtype;
use psa::traces::{
    DumpOptions, Geometry, Kind, Layout, TraceError, Traces, cut, extend, from_dump, synthetic,
};

use super::{CliError, Progress, Table, Verdict};

/// Options of `psa record`.
#[derive(Args)]
#[command(
    group(clap::ArgGroup::new("source").required(true).args(["from", "synthetic", "extend", "cut"])),
    after_help = "Examples:\n  psa record --from dump.safetensors --to traces.safetensors\n  psa record --from dump.safetensors \
    --layout nhd --scale 0.125 --queries 16 --to traces.safetensors\n  psa record --synthetic needle --tokens 16384 --to \
    needle.safetensors\n  psa record --extend tests/data/traces.safetensors --tokens 32768 --to long.safetensors\n\n\
    A dump is a safetensors file with q, k and v of each attention call, after RoPE, before scaling: [heads, tokens,\n\
    head_dim], with or without a batch dimension of 1, in f16, bf16, f32 or f64, named q, k, v or layers.3.q and so on.\n\
    Queries are those of the last tokens. Each KV head becomes a case; its dense answer is computed in f64.\n\n\
    What --synthetic and --extend write is made up, and says so in its JSON."
)]
pub struct RecordArgs {
    /// A safetensors file with q, k and v
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// A generator
    #[arg(long, value_enum, value_name = "KIND")]
    synthetic: Option<KindName>,
    /// A psa-traces-v1 file whose contexts are made longer, with its statistics
    #[arg(long, value_name = "FILE")]
    extend: Option<PathBuf>,
    /// A psa-traces-v1 file whose contexts are cut to their first and last tokens
    #[arg(long, value_name = "FILE")]
    cut: Option<PathBuf>,
    /// The file to write; its JSON comes beside it
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Order of a dump's dimensions: heads, tokens (hnd), or tokens, heads (nhd)
    #[arg(long, value_enum, default_value_t = LayoutName::Hnd)]
    layout: LayoutName,
    /// Softmax scale of a dump [default: 1/sqrt(head_dim)]
    #[arg(long)]
    scale: Option<f32>,
    /// Element type to write [default: that of the dump; f16 for f32 and f64; f16 for generators]
    #[arg(long, value_enum)]
    dtype: Option<DtypeName>,
    /// Queries to keep, the last ones
    #[arg(long, value_name = "N", default_value_t = 64)]
    queries: usize,
    /// Tokens of each case, for --synthetic, --extend and --cut
    #[arg(long, value_name = "N", default_value_t = 4096)]
    tokens: usize,
    /// Cases to generate
    #[arg(long, value_name = "N", default_value_t = 2)]
    cases: usize,
    /// Query heads of each KV head to generate
    #[arg(long, value_name = "N", default_value_t = 4)]
    group: usize,
    /// Elements of a head to generate
    #[arg(long, value_name = "N", default_value_t = 64)]
    head_dim: usize,
    /// Seed of generators and of --extend
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON object a case instead of a table
    #[arg(long)]
    json: bool,
    /// Progress on stderr even where it is no terminal
    #[arg(long)]
    progress: bool,
}

/// Names of the generators.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindName {
    /// One token with half of the mass in a flat context
    Needle,
    /// Mass falls as a power of the token's rank
    Heavy,
    /// No key stands out
    Flat,
    /// What queries look for turns along the context
    Drift,
    /// Keys from an alphabet of 8, whole blocks equal
    Ties,
    /// Every block is a copy of one of four
    Duplicates,
    /// All keys the same
    Equal,
    /// One key a thousand times as long as the rest
    Huge,
}

impl KindName {
    fn kind(self) -> Kind {
        match self {
            KindName::Needle => Kind::Needle,
            KindName::Heavy => Kind::Heavy,
            KindName::Flat => Kind::Flat,
            KindName::Drift => Kind::Drift,
            KindName::Ties => Kind::Ties,
            KindName::Duplicates => Kind::Duplicates,
            KindName::Equal => Kind::Equal,
            KindName::Huge => Kind::Huge,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayoutName {
    Hnd,
    Nhd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeName {
    F16,
    Bf16,
}

/// Runs the command.
pub fn run(args: &RecordArgs) -> Result<Verdict, CliError> {
    let progress = Progress::new(args.progress);
    progress.say("dense answers in f64");
    let traces = make(args)?;
    psa::traces::write(&traces, &args.to)?;
    progress.say(&format!("{} written", args.to.display()));

    let mut out = std::io::stdout().lock();
    if args.json {
        for case in &traces.cases {
            let record = serde_json::json!({
                "case": case.name, "label": case.label, "group": case.group, "queries": case.queries,
                "context": case.context, "head_dim": case.head_dim, "scale": traces.scale,
            });
            writeln!(out, "{record}")?;
        }
    } else {
        let mut table = Table::new(2, &["case", "what", "query heads", "queries", "tokens", "head_dim"]);
        for case in &traces.cases {
            let mut row = vec![case.name.clone(), case.label.clone()];
            row.extend([case.group, case.queries, case.context, case.head_dim].map(|n| n.to_string()));
            table.row(row);
        }
        write!(out, "{}", table.render())?;
        writeln!(out, "\n{} and its JSON hold {} case(s).", args.to.display(), traces.cases.len())?;
    }
    out.flush()?;
    Ok(Verdict::Good)
}

fn make(args: &RecordArgs) -> Result<Traces, TraceError> {
    let dtype = args.dtype.map(|name| match name {
        DtypeName::F16 => Dtype::F16,
        DtypeName::Bf16 => Dtype::Bf16,
    });
    if let Some(kind) = args.synthetic {
        let geometry = Geometry {
            cases: args.cases.max(1),
            tokens: args.tokens,
            queries: args.queries.min(args.tokens),
            group: args.group,
            head_dim: args.head_dim,
            dtype: dtype.unwrap_or(Dtype::F16),
        };
        return synthetic(kind.kind(), geometry, args.seed);
    }
    if let Some(file) = &args.extend {
        return extend(&Traces::load(file)?, args.tokens, args.seed);
    }
    if let Some(file) = &args.cut {
        return cut(&Traces::load(file)?, args.tokens);
    }
    let file = args.from.as_deref().unwrap_or(std::path::Path::new(""));
    let name = file.display().to_string();
    let bytes = std::fs::read(file).map_err(|source| TraceError::ReadDump { file: name.clone(), source })?;
    let layout = match args.layout {
        LayoutName::Hnd => Layout::HeadsFirst,
        LayoutName::Nhd => Layout::TokensFirst,
    };
    from_dump(&name, &bytes, DumpOptions { layout, scale: args.scale, queries: args.queries, dtype })
}
