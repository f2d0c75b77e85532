//! Options that several commands share.

use clap::Args;
use kernels_gpu::layout::MAX_BLOCKS;
use psa::{Forced, Mirror};

use super::Backend;

/// How a cache is made and replayed.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Bits of the key mirror that blocks are ranked by: 2 or 4. Quest always uses its boxes
    #[arg(long, value_name = "BITS", default_value = "2")]
    pub mirror: Mirror,
    /// Tokens of a block, the unit of selection: 16 in this version
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = parse_unit)]
    pub unit: usize,
    /// Tokens that share a quantisation step: 64 in this version
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = parse_quant_group)]
    pub quant_group: usize,
    /// First blocks of a sequence that are always read
    #[arg(long, value_name = "BLOCKS", default_value_t = Forced::default().sink, value_parser = parse_forced)]
    pub sink: u32,
    /// Last blocks of a sequence that are always read, besides the open quantisation group
    #[arg(long, value_name = "BLOCKS", default_value_t = Forced::default().recent, value_parser = parse_forced)]
    pub recent: u32,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub backend: Backend,
    /// Which GPU the cuda backend uses, by its number in `psa info`; other backends ignore it
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub gpu: usize,
    /// Order in which the emulator schedules; results do not depend on it, and other backends ignore it
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
}

fn parse_unit(text: &str) -> Result<usize, String> {
    match text {
        "16" => Ok(16),
        "32" | "64" => Err("planned but not in this version; blocks have 16 tokens".into()),
        _ => Err("blocks have 16 tokens".into()),
    }
}

fn parse_quant_group(text: &str) -> Result<usize, String> {
    match text {
        "64" => Ok(64),
        _ => Err("not in this version; 64 tokens share a quantisation step".into()),
    }
}

fn parse_forced(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n) if n <= MAX_BLOCKS as u32 => Ok(n),
        _ => Err(format!("use 0 to {MAX_BLOCKS}, the blocks of the longest context")),
    }
}

fn parse_queries(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least one query is needed".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a number of queries".into()),
    }
}
