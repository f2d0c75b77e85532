//! The rules that decide how much is read, and their text form.
//!
//! The grammar is that of the command line: `dense`, `top-k:0.1`, `top-k:64`, `top-p:0.95`,
//! `progressive:0.95`, `certified:0.05`, `quest:0.4`, `mean:0.4`, `cuboid:0.4`, `oracle:0.95`. Budgets with a
//! decimal point are fractions of the blocks, whole numbers are blocks.

use crate::certificate::round_up;
use crate::{Error, Mirror};
use kernels_gpu::numeric::fixed_target;
use std::fmt;
use std::str::FromStr;

/// How many blocks a static policy reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// A fraction of the sequence's blocks, rounded up; in `(0, 1]`.
    Fraction(f64),
    /// A number of blocks, at least 1.
    Blocks(u32),
}

impl Budget {
    /// The budget of a sequence of `blocks` blocks.
    pub fn of(self, blocks: usize) -> u32 {
        match self {
            // 0.07 * 100 is a little more than 7: do not round that up to 8.
            Budget::Fraction(f) => (f * blocks as f64 - 1e-9).ceil().max(0.0) as u32,
            Budget::Blocks(n) => n,
        }
    }
}

/// The rule that decides which blocks are read, and how many. Whatever the rule, forced blocks (see
/// [`Forced`]) are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Everything.
    Dense,
    /// The best blocks by the mirror's estimate.
    TopK(Budget),
    /// The smallest prefix of the ranking whose *estimated* mass reaches `mass` for every head.
    TopP {
        /// Share of the softmax mass, in `(0, 1]`.
        mass: f32,
    },
    /// As many blocks as it takes for the *exact* mass read to reach `mass` of it and the estimated
    /// rest, for every head.
    Progressive {
        /// Share of the softmax mass, in `(0, 1]`; 1 reads everything and gives the bits of `Dense`.
        mass: f32,
    },
    /// As many blocks as it takes until no head can have missed more than `missed` of its mass, whatever the
    /// keys: the exact mass read against an upper bound of the rest. Reads everything where the bound does not
    /// close. Needs a mirror that bounds scores ([`Mirror::bounds_scores`]).
    Certified {
        /// Share of the softmax mass, in `[0, 1)`; 0 reads everything and gives the bits of `Dense`.
        missed: f32,
    },
    /// The best blocks by Quest's box bound; needs [`Mirror::Box`].
    Quest(Budget),
    /// The best blocks by their mean key; needs [`Mirror::Mean`].
    Mean(Budget),
    /// The best blocks by the centre of their box; needs [`Mirror::Cuboid`].
    Cuboid(Budget),
    /// The smallest prefix by true mass: a yardstick, on the cpu and reference devices only.
    Oracle {
        /// Share of the softmax mass, in `(0, 1]`.
        mass: f32,
    },
}

impl Policy {
    /// Checks the ranges of the parameters.
    ///
    /// # Errors
    /// [`Error::Policy`].
    pub fn validate(self) -> Result<(), Error> {
        let fail = |reason: &str| Err(Error::Policy { text: self.to_string(), reason: reason.into() });
        match self {
            Policy::TopK(Budget::Fraction(f))
            | Policy::Quest(Budget::Fraction(f))
            | Policy::Mean(Budget::Fraction(f))
            | Policy::Cuboid(Budget::Fraction(f))
                if !(f > 0.0 && f <= 1.0) =>
            {
                fail("a fraction of the blocks must be above 0 and at most 1")
            }
            Policy::TopK(Budget::Blocks(0))
            | Policy::Quest(Budget::Blocks(0))
            | Policy::Mean(Budget::Blocks(0))
            | Policy::Cuboid(Budget::Blocks(0)) => fail("a number of blocks must be at least 1"),
            Policy::Certified { missed } if !(0.0..1.0).contains(&missed) => {
                fail("a missed mass must be at least 0 and below 1")
            }
            Policy::TopP { mass } | Policy::Progressive { mass } | Policy::Oracle { mass }
                if !(mass > 0.0 && mass <= 1.0) =>
            {
                fail("a mass must be above 0 and at most 1")
            }
            _ => Ok(()),
        }
    }

    /// True where the rule reads everything by definition, so that nothing is scored and the output has
    /// the bits of [`Policy::Dense`].
    pub fn reads_everything(self) -> bool {
        match self {
            Policy::Dense => true,
            Policy::TopP { mass } | Policy::Progressive { mass } | Policy::Oracle { mass } => mass >= 1.0,
            Policy::Certified { missed } => missed <= 0.0,
            Policy::TopK(_) | Policy::Quest(_) | Policy::Mean(_) | Policy::Cuboid(_) => false,
        }
    }

    /// The mirror that the policy is about, if it is about one.
    pub fn own_mirror(self) -> Option<Mirror> {
        match self {
            Policy::Quest(_) => Some(Mirror::Box),
            Policy::Mean(_) => Some(Mirror::Mean),
            Policy::Cuboid(_) => Some(Mirror::Cuboid),
            _ => None,
        }
    }

    /// True where the policy leaves blocks unread and has an estimate, not a bound, of their mass.
    pub(crate) fn estimates_rest(self) -> bool {
        matches!(self, Policy::TopK(_) | Policy::TopP { .. } | Policy::Progressive { .. })
    }

    /// True where the policy needs what only the cpu and the reference compute.
    pub(crate) fn needs_everything(self) -> bool {
        !self.reads_everything() && matches!(self, Policy::Oracle { .. } | Policy::Certified { .. })
    }

    /// Checks that the mirror can rank for this policy.
    ///
    /// # Errors
    /// [`Error::MirrorMismatch`].
    pub fn check_mirror(self, mirror: Mirror) -> Result<(), Error> {
        let needed = match self {
            Policy::Dense | Policy::Oracle { .. } => return Ok(()),
            _ if self.reads_everything() => return Ok(()),
            Policy::Quest(_) if mirror != Mirror::Box => "the box mirror",
            Policy::Mean(_) if mirror != Mirror::Mean => "the mean mirror",
            Policy::Cuboid(_) if mirror != Mirror::Cuboid => "the cuboid mirror",
            Policy::Certified { .. } if !mirror.bounds_scores() => {
                "a mirror that bounds scores: 1, 2, 4, 8, 2+2, 4+4 or box"
            }
            Policy::TopK(_) | Policy::TopP { .. } | Policy::Progressive { .. } if mirror == Mirror::Box => {
                "a mirror of 2 or 4 bits (quest:F is top-k by the box)"
            }
            _ => return Ok(()),
        };
        Err(Error::MirrorMismatch { policy: self, mirror, needed })
    }

    /// The fixed-point estimated mass up to which `plan` predicts the count; 0 for budgets.
    pub(crate) fn target(self, mirror: Mirror) -> u32 {
        match self {
            Policy::TopP { mass } => fixed_target(mass),
            Policy::Progressive { mass } => fixed_target(mirror.predicted_mass(mass)),
            Policy::Certified { .. } => fixed_target(self.tested_mass()),
            _ => 0,
        }
    }

    /// The exact mass that `merge` tests for; 0 switches the test off.
    pub(crate) fn tested_mass(self) -> f32 {
        match self {
            Policy::Progressive { mass } => mass,
            // The least f32 that leaves no more than `missed`.
            Policy::Certified { missed } => round_up(1.0 - missed as f64),
            _ => 0.0,
        }
    }

    /// The most blocks that a sequence of `blocks` blocks may read.
    pub(crate) fn budget(self, blocks: usize) -> u32 {
        match self {
            Policy::TopK(budget) | Policy::Quest(budget) | Policy::Mean(budget) | Policy::Cuboid(budget) => {
                budget.of(blocks)
            }
            _ => u32::MAX,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // `{:?}` keeps the decimal point that makes it a fraction.
            Budget::Fraction(x) => write!(f, "{x:?}"),
            Budget::Blocks(n) => write!(f, "{n}"),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Dense => f.write_str("dense"),
            Policy::TopK(budget) => write!(f, "top-k:{budget}"),
            Policy::TopP { mass } => write!(f, "top-p:{mass}"),
            Policy::Progressive { mass } => write!(f, "progressive:{mass}"),
            Policy::Certified { missed } => write!(f, "certified:{missed}"),
            Policy::Quest(budget) => write!(f, "quest:{budget}"),
            Policy::Mean(budget) => write!(f, "mean:{budget}"),
            Policy::Cuboid(budget) => write!(f, "cuboid:{budget}"),
            Policy::Oracle { mass } => write!(f, "oracle:{mass}"),
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Policy, Error> {
        let fail = |reason: String| Error::Policy { text: text.into(), reason };
        let (name, parameter) = match text.split_once(':') {
            Some((name, parameter)) => (name, Some(parameter)),
            None => (text, None),
        };
        let parameter = |example: &str| {
            parameter
                .filter(|p| !p.is_empty())
                .ok_or_else(|| fail(format!("it needs a parameter, as in {example}")))
        };
        let mass = |example: &str| {
            let p = parameter(example)?;
            p.parse::<f32>().map_err(|_| fail(format!("{p:?} is no mass, write for example {example}")))
        };
        let budget = |example: &str| {
            let p = parameter(example)?;
            let read = if p.bytes().all(|c| c.is_ascii_digit()) {
                p.parse().ok().map(Budget::Blocks)
            } else {
                p.parse().ok().map(Budget::Fraction)
            };
            read.ok_or_else(|| {
                fail(format!(
                    "{p:?} is neither a fraction nor a number of blocks, write for example {example}"
                ))
            })
        };
        let policy = match name {
            "dense" if text == name => Policy::Dense,
            "dense" => return Err(fail("dense takes no parameter".into())),
            "top-k" => Policy::TopK(budget("top-k:0.1 or top-k:64")?),
            "top-p" => Policy::TopP { mass: mass("top-p:0.95")? },
            "progressive" => Policy::Progressive { mass: mass("progressive:0.95")? },
            "certified" => Policy::Certified { missed: mass("certified:0.05")? },
            "quest" => Policy::Quest(budget("quest:0.4 or quest:64")?),
            "mean" => Policy::Mean(budget("mean:0.4 or mean:64")?),
            "cuboid" => Policy::Cuboid(budget("cuboid:0.4 or cuboid:64")?),
            "oracle" => Policy::Oracle { mass: mass("oracle:0.95")? },
            _ => {
                return Err(fail(
                    "unknown; use dense, top-k:F, top-p:M, progressive:M, certified:E, quest:F, mean:F, \
                     cuboid:F or oracle:M"
                        .into(),
                ));
            }
        };
        policy.validate().map_err(|e| match e {
            Error::Policy { reason, .. } => fail(reason),
            other => other,
        })?;
        Ok(policy)
    }
}

/// Blocks that are read whatever their mass, besides those of the open quantisation group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forced {
    /// First blocks of the sequence.
    pub sink: u32,
    /// Last blocks of the sequence.
    pub recent: u32,
}

impl Default for Forced {
    fn default() -> Self {
        Forced { sink: 1, recent: 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_grammar_reads_every_policy_of_the_command_line() {
        for (text, policy) in [
            ("dense", Policy::Dense),
            ("top-k:0.1", Policy::TopK(Budget::Fraction(0.1))),
            ("top-k:1.0", Policy::TopK(Budget::Fraction(1.0))),
            ("top-k:1", Policy::TopK(Budget::Blocks(1))),
            ("top-k:64", Policy::TopK(Budget::Blocks(64))),
            ("top-p:0.9", Policy::TopP { mass: 0.9 }),
            ("progressive:0.95", Policy::Progressive { mass: 0.95 }),
            ("progressive:1", Policy::Progressive { mass: 1.0 }),
            ("certified:0.05", Policy::Certified { missed: 0.05 }),
            ("certified:0", Policy::Certified { missed: 0.0 }),
            ("quest:0.4", Policy::Quest(Budget::Fraction(0.4))),
            ("mean:0.4", Policy::Mean(Budget::Fraction(0.4))),
            ("cuboid:12", Policy::Cuboid(Budget::Blocks(12))),
            ("oracle:0.95", Policy::Oracle { mass: 0.95 }),
        ] {
            assert_eq!(text.parse::<Policy>().unwrap(), policy);
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
        }
    }

    #[test]
    fn bad_policies_are_refused_with_the_text_and_a_remedy() {
        for (text, expected) in [
            ("", "unknown"),
            ("sparse", "use dense, top-k:F"),
            ("dense:1", "no parameter"),
            ("top-k", "top-k:0.1"),
            ("top-k:", "top-k:0.1"),
            ("top-k:x", "neither"),
            ("top-k:0", "at least 1"),
            ("top-k:1.5", "at most 1"),
            ("top-k:-3", "above 0"),
            ("top-k:NaN", "above 0"),
            ("top-k:99999999999", "neither"),
            ("progressive:0", "above 0"),
            ("progressive:1.01", "at most 1"),
            ("progressive:nan", "above 0"),
            ("oracle:inf", "at most 1"),
            ("certified:1", "below 1"),
            ("certified:-0.1", "at least 0"),
            ("certified:NaN", "below 1"),
            ("certified", "certified:0.05"),
            ("mean:0", "at least 1"),
            ("cuboid:1.5", "at most 1"),
        ] {
            let error = text.parse::<Policy>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn budgets_round_up_but_not_on_rounding_errors() {
        assert_eq!(Budget::Fraction(0.07).of(100), 7);
        assert_eq!(Budget::Fraction(0.1).of(101), 11);
        assert_eq!(Budget::Fraction(1.0).of(8192), 8192);
        assert_eq!(Budget::Fraction(1e-6).of(1), 1);
        assert_eq!(Budget::Blocks(5).of(3), 5);
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(mass in 1e-6f32..=1.0, f in 1e-9f64..=1.0, n in 1u32..) {
            for policy in [
                Policy::TopP { mass },
                Policy::Progressive { mass },
                Policy::Oracle { mass },
                Policy::Certified { missed: mass.min(0.999) },
                Policy::Mean(Budget::Fraction(f)),
                Policy::Cuboid(Budget::Blocks(n)),
                Policy::TopK(Budget::Fraction(f)),
                Policy::Quest(Budget::Blocks(n)),
            ] {
                prop_assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
            }
        }
    }
}
