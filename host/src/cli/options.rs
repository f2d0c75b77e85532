//! Options that several commands share.

use clap::Args;
use psa::eval::Entrant;
use psa::store::MAX_BLOCKS;
use psa::{BlockLimits, Forced, Mirror, Policy};

use super::Backend;

/// How a cache is made and replayed.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// What blocks are ranked by: 2+2 (keys of 2 bits, and 2 more of blocks that may
    /// matter), 1, 2, 4, 8, 4+4, or box, mean, cuboid, mean-variance,
    /// representatives. Quest, mean and cuboid always use their own
    #[arg(long, value_name = "MIRROR", default_value = "2+2")]
    pub mirror: Mirror,
    /// Tokens that are selected together: 16, 32 or 64
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = parse_unit)]
    pub unit: usize,
    /// Tokens that share a quantisation step: 32, 64, 128 or 256
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = parse_quant_group)]
    pub quant_group: usize,
    /// First blocks of a sequence that are always read
    #[arg(long, value_name = "BLOCKS", default_value_t = Forced::default().sink, value_parser = parse_forced)]
    pub sink: u32,
    /// Last blocks of a sequence that are always read, besides the open quantisation group
    #[arg(long, value_name = "BLOCKS", default_value_t = Forced::default().recent, value_parser = parse_forced)]
    pub recent: u32,
    /// Fewest blocks that a step reads, where there are as many
    #[arg(long, value_name = "BLOCKS", default_value_t = 0, value_parser = parse_forced)]
    pub min_blocks: u32,
    /// Most blocks that a step reads, besides those that are always read; dense has no limit
    #[arg(long, value_name = "BLOCKS", value_parser = parse_cap)]
    pub max_blocks: Option<u32>,
    /// Adds what is not read as its believed mass times this weight, 0 to 1, at the mean of
    /// V: tail compensation, of top-k, top-p and progressive; .5 was measured to help
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, value_parser = parse_weight)]
    pub tail: f32,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub backend: Backend,
    /// Which GPU the cuda backend uses, by its number in `psa info`; other backends ignore it
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub gpu: usize,
    /// Order in which the emulator schedules, which changes no result, and the sample of --audit
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Only the case of this name, for example case3
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Only the last N queries of each case
    #[arg(long, value_name = "N", value_parser = parse_queries)]
    pub queries: Option<usize>,
}

impl ReplayArgs {
    /// Blocks that are always read.
    pub fn forced(&self) -> Forced {
        Forced { sink: self.sink, recent: self.recent }
    }

    /// Fewest and most blocks of a step.
    pub fn limits(&self) -> BlockLimits {
        BlockLimits { min: self.min_blocks, max: self.max_blocks.unwrap_or(u32::MAX) }
    }

    /// A policy with these options.
    pub fn entrant(&self, policy: Policy) -> Entrant {
        Entrant { quant_group: self.quant_group, unit: self.unit, ..Entrant::new(policy, self.mirror) }
    }
}

fn parse_unit(text: &str) -> Result<usize, String> {
    match text {
        "16" => Ok(16),
        "32" => Ok(32),
        "64" => Ok(64),
        _ => Err("use 16, 32 or 64".into()),
    }
}

fn parse_quant_group(text: &str) -> Result<usize, String> {
    match text {
        "32" => Ok(32),
        "64" => Ok(64),
        "128" => Ok(128),
        "256" => Ok(256),
        _ => Err("use 32, 64, 128 or 256".into()),
    }
}

fn parse_forced(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n) if n <= MAX_BLOCKS as u32 => Ok(n),
        _ => Err(format!("use 0 to {MAX_BLOCKS}, the blocks of the longest context")),
    }
}

fn parse_cap(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Err("at least one block".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a number of blocks".into()),
    }
}

fn parse_weight(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(weight) if (0.0..=1.0).contains(&weight) => Ok(weight),
        _ => Err("use 0 to 1".into()),
    }
}

fn parse_queries(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one query is needed".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a number of queries".into()),
    }
}
