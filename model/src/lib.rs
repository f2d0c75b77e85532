//! A real model on a sparse cache: Llama-shaped GGUF files, decoded with [`psa`].
//!
//! ```no_run
//! use psa::{CacheConfig, DecodePlan, Device, KvCache, Policy};
//! use psa_model::{Decoder, Gguf, Llama, Model, Sampler, Tokens};
//! let mut file = Gguf::open("model.gguf".as_ref())?;
//! let (tokens, model) = (Tokens::read(&file)?, Llama::read(&mut file)?);
//! let decoder = Decoder::new(&model);
//! let mut cache = KvCache::new(&Device::cpu(), model.config().shape(), CacheConfig::default())?;
//! let sequence = cache.add_sequence()?;
//! let mut logits = decoder.prefill(&mut cache, sequence, &tokens.encode("Once upon a time")?, &mut |_| true)?;
//! let mut plan = DecodePlan::new(&cache, &[sequence], Policy::Progressive { mass: 0.95 })?;
//! for position in 0..64 {
//!     let token = Sampler::GREEDY.draw(&logits, 0, position);
//!     print!("{}", tokens.decode(&[token])?);
//!     logits = decoder.step(&mut cache, &mut plan, &[token])?.remove(0)?;
//! }
//! # Ok::<(), psa_model::ModelError>(())
//! ```
//!
//! [`Model`] is a decoder without its attention; [`Llama`] is one, any other fits that can give q, k, v and take
//! what attention made of them. [`Decoder`] puts it on a cache: prefill in chunks, steps of any batch and policy.
//! [`Server`] is a small continuous-batching loop over it.

mod config;
mod decoder;
mod error;
mod gguf;
mod llama;
mod matrix;
mod prefill;
mod reading;
mod rope;
mod sample;
mod serve;
mod simd;
mod tokens;

pub use config::{Config, Pairs};
pub use decoder::{Attended, CHUNK, Decoder, Snapshot, StepLogits, Watch};
pub use error::ModelError;
pub use gguf::Gguf;
pub use llama::{Llama, Model, Projections};
pub use matrix::Matrix;
pub use reading::Reading;
pub use sample::{Sampler, log_softmax};
pub use serve::{Load, Outcome, Prompt, Request, Server};
pub use tokens::{Stream, Tokens};
