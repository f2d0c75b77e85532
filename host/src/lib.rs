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
//!
//! # Threads
//! A cache moves between threads, but one thread at a time uses it: every call takes `&mut`, and a shared reference stays
//! on its thread, as a device's context may.
//!
//! ```compile_fail,E0277
//! fn shared_between_threads<T: Sync>(_: &T) {}
//! fn refused(cache: &psa::KvCache) {
//!     shared_between_threads(cache); // `KvCache` cannot be shared between threads
//! }
//! ```
//!
//! ```compile_fail,E0499
//! fn two_at_a_time(cache: &mut psa::KvCache, a: psa::SequenceId, b: psa::SequenceId) {
//!     std::thread::scope(|scope| {
//!         scope.spawn(|| cache.truncate(a, 0));
//!         scope.spawn(|| cache.truncate(b, 0)); // one thread at a time
//!     });
//! }
//! ```
//!
//! A plan is data: threads may read its report at the same time, but not while one attends.
//!
//! ```compile_fail,E0502
//! fn read_while_attending(cache: &mut psa::KvCache, plan: &mut psa::DecodePlan, q: &[half::f16], out: &mut [f32]) {
//!     let report = plan.heads(0);
//!     plan.attend(cache, 0, q, out).unwrap(); // `report` still reads the plan
//!     drop(report);
//! }
//! ```

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
pub mod short;
pub mod store;
pub mod tail;
pub mod telemetry;
pub mod tier;
pub mod timeline;
pub mod traces;

mod budget;
mod cache;
mod decode;
mod element;
mod error;
mod mirror;
mod policy;
mod ranges;
mod shape;

pub use backend::Device;
pub use budget::SharedBudget;
pub use cache::{CacheConfig, Capacity, Eviction, KvCache, PoolUse, Rebuilt, Shortened, Traffic};
pub use decode::{BlockLimits, DecodePlan, HeadRead, HeadReport, Path, Report};
pub use element::{Rows, widen};
pub use error::Error;
pub use mirror::{Mirror, MirrorFormat, QUANT_GROUPS};
pub use policy::{Budget, Forced, Policy};
pub use pool::SequenceId;
pub use shape::{Dtype, Shape};
