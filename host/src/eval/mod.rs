//! Replays recorded queries through a cache and compares with what dense attention saw.
//!
//! [`evaluate`] runs every case with every [`Entrant`] (a policy and the mirror it ranks by) on one
//! device: each query is one decode step. [`Truth`] holds the exact masses, [`Step`] what one step read
//! and how far off it was, [`Record`] the summary that the command line prints.
//!
//! Entrants with the same mirror share one cache, so keys are appended once for all of them.

mod matched;
mod record;
mod replay;
mod stats;
mod truth;

pub use matched::{Contender, Family, Field, Goal, MatchError, Quality, STEPS, Tuned, halves, tune};
pub use record::{AuditSummary, LseError, Record};
pub use replay::{Entrant, EvalError, Progress, Replay, ReplayOptions, Step, evaluate, evaluate_audited};
pub use stats::{Stats, quantile};
pub use truth::Truth;
