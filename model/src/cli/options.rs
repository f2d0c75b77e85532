//! Options that the commands share: which model, which cache, where to compute.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use psa::driver::EmulatedOptions;
use psa::{CacheConfig, Capacity, Device, Forced, KvCache, Mirror, Policy};
use psa_model::{Gguf, Llama, Model, Tokens};

use super::CliError;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Vector code on all threads
    Cpu,
    /// The shipped PTX on the CPU, with the emulator's checkers on; very slow
    Emulator,
    /// An NVIDIA GPU, the one that --gpu names
    Cuda,
    /// The plain definition of every stage; slow
    Reference,
}

/// The model, its cache, and the device of its attention.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A GGUF file of a Llama-shaped model [default: PSA_MODEL, then SmolLM2-135M-Instruct of `cargo xtask setup --for
    /// model`]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// What blocks are ranked by: 1, 2, 4, 8, 2+2, .. as in `psa eval`. Quest, mean and cuboid always use their own
    #[arg(long, value_name = "MIRROR", default_value_t = CacheConfig::default().mirror)]
    pub mirror: Mirror,
    /// Tokens that are selected together: 16, 32 or 64
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub unit: usize,
    /// Tokens that share a quantisation step: 32, 64, 128 or 256
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub quant_group: usize,
    /// First blocks of a sequence that are always read
    #[arg(long, value_name = "BLOCKS", default_value_t = Forced::default().sink)]
    pub sink: u32,
    /// Last blocks of a sequence that are always read, besides the open quantisation group
    #[arg(long, value_name = "BLOCKS", default_value_t = Forced::default().recent)]
    pub recent: u32,
    /// Where attention of decode steps computes; the rest of the model always runs on the CPU
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub backend: Backend,
    /// Which GPU the cuda backend uses, by its number in `psa info`
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub gpu: usize,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// One JSON object a line on stdout and nothing else
    #[arg(long)]
    pub json: bool,
}

/// A loaded model.
pub struct Loaded {
    /// The model.
    pub model: Llama,
    /// Its tokenizer.
    pub tokens: Tokens,
    /// Its file's name, without the folder.
    pub name: String,
}

impl ModelArgs {
    /// Loads the model.
    pub fn load(&self) -> Result<Loaded, CliError> {
        let named = self.model.clone().or_else(|| std::env::var_os("PSA_MODEL").map(PathBuf::from));
        let path = named.or_else(installed).ok_or(CliError::NoModel)?;
        let mut gguf = Gguf::open(&path)?;
        let model = Llama::read(&mut gguf)?;
        let tokens = Tokens::read(&gguf)?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Loaded { model, tokens, name })
    }

    /// The mirror that a policy ranks by.
    pub fn mirror_of(&self, policy: Policy) -> Mirror {
        policy.own_mirror().unwrap_or(self.mirror)
    }

    /// A cache for `sequences` sequences of `tokens` tokens.
    pub fn cache(
        &self,
        model: &Llama,
        policy: Policy,
        sequences: usize,
        tokens: usize,
    ) -> Result<KvCache, CliError> {
        let device = self.device()?;
        let config = CacheConfig {
            // A sequence takes whole blocks.
            capacity: Capacity::Tokens(sequences * tokens.next_multiple_of(self.quant_group.max(16))),
            max_sequences: sequences,
            max_tokens: Some(tokens),
            mirror: self.mirror_of(policy),
            quant_group: self.quant_group,
            unit: self.unit,
            forced: Forced { sink: self.sink, recent: self.recent },
            check_finite: true,
            ..CacheConfig::default()
        };
        Ok(KvCache::new(&device, model.config().shape(), config)?)
    }

    /// Where attention of decode steps computes.
    pub fn device(&self) -> Result<Device, CliError> {
        Ok(match self.backend {
            Backend::Cpu => Device::cpu(),
            Backend::Reference => Device::reference(),
            Backend::Emulator => Device::emulator_with(EmulatedOptions { seed: self.seed, checks: true }),
            Backend::Cuda => Device::cuda(self.gpu)?,
        })
    }

    /// Name of the backend.
    pub fn backend_name(&self) -> &'static str {
        match self.backend {
            Backend::Cpu => "cpu",
            Backend::Emulator => "emulator",
            Backend::Cuda => "cuda",
            Backend::Reference => "reference",
        }
    }
}

/// The model that setup installed: in target/psa-tools of this folder, or of one above it, or above the program.
fn installed() -> Option<PathBuf> {
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let above = |path: &Option<PathBuf>| {
        path.clone().into_iter().flat_map(|path| ancestors(&path)).collect::<Vec<_>>()
    };
    let folders = above(&here).into_iter().chain(above(&program));
    folders
        .map(|folder| folder.join("target/psa-tools/model/SmolLM2-135M-Instruct.Q4_1.gguf"))
        .find(|path| path.is_file())
}

fn ancestors(path: &Path) -> Vec<PathBuf> {
    path.ancestors().map(Path::to_owned).collect()
}

/// Reads a text.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    let bytes =
        std::fs::read(path).map_err(|source| CliError::Text { file: path.display().to_string(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Progress on stderr, at most one line every two seconds unless it is a last one.
pub struct Progress {
    start: Instant,
    last: f64,
    quiet: bool,
}

impl Progress {
    /// On stderr; nothing with --json and without a terminal.
    pub fn new(json: bool) -> Progress {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        Progress { start: Instant::now(), last: -9.0, quiet: json && !terminal }
    }

    /// How far it is.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        let now = self.start.elapsed().as_secs_f64();
        if !self.quiet && now - self.last > 2.0 {
            self.last = now;
            eprintln!("[{now:6.1} s] {}", text());
        }
    }
}

/// Milliseconds since `start`.
pub fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
