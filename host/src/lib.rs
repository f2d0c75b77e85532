//! Decode attention that reads only as much of the KV cache as it needs, and says how much that was.
//!
//! ```
//! use psa::{CacheConfig, DecodePlan, Device, Dtype, KvCache, Policy, Shape};
//! # use half::bf16;
//! let shape = Shape { layers: 2, q_heads: 8, kv_heads: 2, head_dim: 64, dtype: Dtype::Bf16 };
//! let mut cache = KvCache::new(&Device::cpu(), shape, CacheConfig::default())?;
//! let seq = cache.add_sequence()?;
//! let mut plan = DecodePlan::new(&cache, &[seq], Policy::Progressive { mass: 0.95 })?;
//! let mut out = vec![0.0; 8 * 64];
//! for layer in 0..2 {
//!     let (k, v) = (vec![bf16::ONE; 100 * 2 * 64], vec![bf16::ONE; 100 * 2 * 64]); // [tokens, kv_heads, head_dim]
//!     cache.append(seq, layer, &k, &v)?;
//!     plan.attend(&mut cache, layer, &vec![bf16::ONE; 8 * 64], &mut out)?; // [batch, q_heads, head_dim]
//! }
//! println!("{} of {} blocks", plan.report().blocks_read(), plan.report().blocks_total());
//! # Ok::<(), psa::Error>(())
//! ```
//!
//! [`Device`] makes a place to compute, [`KvCache`] holds sequences there, [`DecodePlan`] attends by a
//! [`Policy`]. The stages and their arithmetic are in docs/kernels.md; [`mod@reference`] is that text as
//! plain code, [`cpu`] the same fast. [`traces`] are recorded queries, keys and values of real models,
//! [`eval`] replays them by any policy and says what was read and missed; [`telemetry`] counts what a running
//! program reads, and audits a sample of it.

pub mod backend;
pub mod certificate;
pub mod cpu;
pub mod device;
pub mod driver;
pub mod estimator;
pub mod eval;
pub mod pipeline;
pub mod plot;
pub mod pool;
pub mod reference;
pub mod residency;
pub mod store;
pub mod telemetry;
pub mod timeline;
pub mod traces;

mod budget;
mod cache;
mod decode;
mod element;
mod error;
mod mirror;
mod policy;
mod shape;

pub use backend::Device;
pub use budget::SharedBudget;
pub use cache::{CacheConfig, Capacity, KvCache, PoolUse};
pub use decode::{BlockLimits, DecodePlan, HeadRead, HeadReport, Path, Report};
pub use element::{Rows, widen};
pub use error::Error;
pub use mirror::{Mirror, MirrorFormat, QUANT_GROUPS};
pub use policy::{Budget, Forced, Policy};
pub use pool::SequenceId;
pub use shape::{Dtype, Shape};
