//! Policies at equal quality: what each has to read to be as good.
//!
//! Every policy has one parameter: a budget, a mass. [`tune`] finds the smallest that reaches a [`Goal`] on
//! one set of cases, by bisection over [`STEPS`] steps: a larger parameter reads a superset of blocks, so
//! errors fall (for progressive up to its chunks, which only makes the step found a little large).
//! All guesses of a round share one replay.
//!
//! Trap: a parameter that was tuned on the cases it is compared on knows the answer. [`halves`] splits.

use std::fmt;
use std::str::FromStr;

use kernels_gpu::layout;

use super::{Entrant, EvalError, Record, Replay, ReplayOptions, Truth, evaluate};
use crate::traces::Case;
use crate::{Budget, Mirror, Policy};

/// Steps of a parameter between least and most.
pub const STEPS: u32 = 256;

/// Cases, and how to replay them.
#[derive(Clone)]
pub struct Field<'a> {
    /// Cases with their exact masses.
    pub cases: Vec<(&'a Case, &'a Truth)>,
    /// Softmax scale.
    pub scale: f32,
    /// Device and forced blocks.
    pub options: ReplayOptions,
}

impl Field<'_> {
    /// All cases with every entrant.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn replay(&self, entrants: &[Entrant]) -> Result<Vec<Vec<Replay>>, EvalError> {
        evaluate(&self.cases, self.scale, entrants, &self.options, &|_| ())
    }

    /// One record over all cases for each entrant.
    ///
    /// # Errors
    /// As [`evaluate`].
    pub fn records(&self, entrants: &[Entrant]) -> Result<Vec<Record>, EvalError> {
        let replays = self.replay(entrants)?;
        let name = self.options.device.name();
        let all = entrants.iter().zip(&replays);
        Ok(all.map(|(&entrant, replays)| Record::of_all(entrant, name, replays)).collect())
    }
}

/// The figure that policies are made equal in; less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Mean, 99th percentile, maximum of the missed mass and of the output error.
pub enum Quality {
    MissedMean,
    MissedP99,
    MissedMax,
    ErrorMean,
    ErrorP99,
    ErrorMax,
}

impl Quality {
    const NAMES: [(&'static str, Quality); 6] = [
        ("missed_mean", Quality::MissedMean),
        ("missed_p99", Quality::MissedP99),
        ("missed_max", Quality::MissedMax),
        ("error_mean", Quality::ErrorMean),
        ("error_p99", Quality::ErrorP99),
        ("error_max", Quality::ErrorMax),
    ];

    /// Its value in a record.
    pub fn of(self, record: &Record) -> f64 {
        match self {
            Quality::MissedMean => record.missed_mass.mean,
            Quality::MissedP99 => record.missed_mass.p99,
            Quality::MissedMax => record.missed_mass.max,
            Quality::ErrorMean => record.output_error.mean,
            Quality::ErrorP99 => record.output_error.p99,
            Quality::ErrorMax => record.output_error.max,
        }
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Quality::NAMES.iter().find(|(_, quality)| quality == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// A quality to reach, as `missed_p99=0.05`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// Which figure.
    pub quality: Quality,
    /// Its largest value.
    pub value: f64,
}

impl Goal {
    /// Whether a run of this record is good enough; NaN is not.
    pub fn reached(&self, record: &Record) -> bool {
        self.quality.of(record) <= self.value
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.quality, self.value)
    }
}

/// A goal, or a contender, that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {reason}")]
pub struct MatchError {
    text: String,
    reason: String,
}

impl FromStr for Goal {
    type Err = MatchError;

    fn from_str(text: &str) -> Result<Goal, MatchError> {
        let fail = |reason: String| MatchError { text: text.to_owned(), reason };
        let names = Quality::NAMES.map(|(name, _)| name).join(", ");
        let (name, value) =
            text.split_once('=').ok_or_else(|| fail("write FIGURE=VALUE, as missed_p99=0.05".to_owned()))?;
        let quality = Quality::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, quality)| *quality)
            .ok_or_else(|| fail(format!("{name:?} is none of {names}")))?;
        match value.parse::<f64>() {
            Ok(value) if value > 0.0 && value < 1.0 => Ok(Goal { quality, value }),
            _ => Err(fail(format!("{value:?} is no share between 0 and 1"))),
        }
    }
}

/// The policies that have a parameter to tune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names of the policy grammar.
pub enum Family {
    Quest,
    TopK,
    TopP,
    Progressive,
    Certified,
    Mean,
    Cuboid,
    Oracle,
}

impl Family {
    const NAMES: [(&'static str, Family); 8] = [
        ("quest", Family::Quest),
        ("top-k", Family::TopK),
        ("top-p", Family::TopP),
        ("progressive", Family::Progressive),
        ("certified", Family::Certified),
        ("mean", Family::Mean),
        ("cuboid", Family::Cuboid),
        ("oracle", Family::Oracle),
    ];
}

/// A policy whose parameter is open, and the mirror it ranks by: `top-k@2`, `quest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    /// The policy.
    pub family: Family,
    /// The mirror; that of the policy for Quest, mean and cuboid.
    pub mirror: Mirror,
    /// Tokens of a quantisation group.
    pub quant_group: usize,
    /// Tokens that are selected together.
    pub unit: usize,
}

impl Contender {
    /// With groups of 64 and units of 16 tokens.
    pub const fn new(family: Family, mirror: Mirror) -> Contender {
        Contender { family, mirror, quant_group: layout::QUANT_GROUP, unit: layout::BLOCK }
    }

    /// The policy at step `1 ..= STEPS` of its parameter. The last step reads everything. Fractions grow
    /// evenly; masses approach 1 by a factor of 2 in what is left every 24 steps.
    pub fn at(self, step: u32) -> Entrant {
        let fraction = Budget::Fraction(step as f64 / STEPS as f64);
        let left = if step >= STEPS { 0.0 } else { 0.5 * 2f64.powf(-(step as f64) / 24.0) };
        let mass = (1.0 - left) as f32;
        let policy = match self.family {
            Family::Quest => Policy::Quest(fraction),
            Family::TopK => Policy::TopK(fraction),
            Family::TopP => Policy::TopP { mass },
            Family::Progressive => Policy::Progressive { mass },
            Family::Certified => Policy::Certified { missed: left as f32 },
            Family::Mean => Policy::Mean(fraction),
            Family::Cuboid => Policy::Cuboid(fraction),
            Family::Oracle => Policy::Oracle { mass },
        };
        Entrant { quant_group: self.quant_group, unit: self.unit, ..Entrant::new(policy, self.mirror) }
    }

    /// Steps for a curve.
    pub fn sweep(self) -> &'static [u32] {
        match self.family {
            Family::Quest | Family::TopK | Family::Mean | Family::Cuboid => {
                &[13, 26, 51, 77, 102, 128, 154, 179, 205, 230]
            }
            _ => &[24, 48, 72, 96, 128, 176],
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            Family::NAMES.iter().find(|(_, family)| *family == self.family).map_or("", |(name, _)| name);
        match self.family {
            Family::Quest | Family::Mean | Family::Cuboid | Family::Oracle => f.write_str(name),
            _ => write!(f, "{name}@{}", self.mirror),
        }
    }
}

impl FromStr for Contender {
    type Err = MatchError;

    fn from_str(text: &str) -> Result<Contender, MatchError> {
        let fail = |reason: String| MatchError { text: text.to_owned(), reason };
        let names = Family::NAMES.map(|(name, _)| name).join(", ");
        let (name, mirror) = match text.split_once('@') {
            Some((name, mirror)) => (name, Some(mirror)),
            None => (text, None),
        };
        let family = Family::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, family)| *family)
            .ok_or_else(|| {
                fail(format!("use {names}, with @MIRROR where they rank by one; no parameter: it is tuned"))
            })?;
        let own = match family {
            Family::Quest => Some(Mirror::Box),
            Family::Mean => Some(Mirror::Mean),
            Family::Cuboid => Some(Mirror::Cuboid),
            Family::Oracle => Some(Mirror::Bits2), // never looked at
            _ => None,
        };
        let mirror = match (own, mirror) {
            (Some(own), None) => own,
            (Some(_), Some(_)) => return Err(fail(format!("{name} has no choice of a mirror"))),
            (None, None) => Mirror::Nested,
            (None, Some(mirror)) => mirror.parse().map_err(|error: crate::Error| fail(error.to_string()))?,
        };
        let contender = Contender::new(family, mirror);
        let checked = contender.at(STEPS / 2).policy.check_mirror(mirror);
        checked.map_err(|error| fail(error.to_string()))?;
        Ok(contender)
    }
}

/// A contender with the smallest parameter that reaches a goal.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// What was tuned.
    pub contender: Contender,
    /// With its parameter.
    pub entrant: Entrant,
    /// Over the cases that it was tuned on.
    pub record: Record,
}

/// For every goal and contender the smallest parameter that reaches it: `result[goal][contender]`; `None`
/// where even the last step does not, which reads everything.
///
/// # Errors
/// As [`evaluate`].
pub fn tune(
    field: &Field<'_>,
    contenders: &[Contender],
    goals: &[Goal],
    progress: &dyn Fn(usize),
) -> Result<Vec<Vec<Option<Tuned>>>, EvalError> {
    struct Search {
        contender: Contender,
        goal: Goal,
        /// Largest step known to fail, smallest known to do.
        fails: u32,
        does: u32,
        best: Option<Tuned>,
    }
    let of_goal = |&goal: &Goal| {
        let new =
            move |&contender: &Contender| Search { contender, goal, fails: 0, does: STEPS + 1, best: None };
        contenders.iter().map(new).collect::<Vec<_>>()
    };
    let mut searches: Vec<Search> = goals.iter().flat_map(of_goal).collect();
    let mut round = 0;
    loop {
        let mut open: Vec<&mut Search> = searches.iter_mut().filter(|s| s.fails + 1 < s.does).collect();
        if open.is_empty() {
            break;
        }
        let middle = |s: &Search| (s.fails + s.does) / 2;
        let entrants: Vec<Entrant> = open.iter().map(|s| s.contender.at(middle(s))).collect();
        for ((search, &entrant), record) in open.iter_mut().zip(&entrants).zip(field.records(&entrants)?) {
            if search.goal.reached(&record) {
                search.does = middle(search);
                search.best = Some(Tuned { contender: search.contender, entrant, record });
            } else {
                search.fails = middle(search);
            }
        }
        round += 1;
        progress(round);
    }
    let mut best = searches.into_iter().map(|search| search.best);
    Ok(goals.iter().map(|_| best.by_ref().take(contenders.len()).collect()).collect())
}

/// Two disjoint halves of the cases: every other case; a single case is cut in its earlier and its later
/// queries.
pub fn halves(cases: &[&Case]) -> [Vec<Case>; 2] {
    match cases {
        [case] if case.queries >= 2 => {
            let middle = case.queries / 2;
            [vec![case.part(0..middle)], vec![case.part(middle..case.queries)]]
        }
        _ => [0, 1].map(|half| cases.iter().skip(half).step_by(2).map(|&case| case.clone()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::{Geometry, Kind, synthetic};
    use crate::{Device, Dtype, Forced};

    fn with_field<T>(body: impl FnOnce(&Field<'_>) -> T) -> T {
        let geometry =
            Geometry { cases: 2, tokens: 700, queries: 4, group: 2, head_dim: 64, dtype: Dtype::F16 };
        let traces = synthetic(Kind::Drift, geometry, 3).unwrap();
        let truths: Vec<Truth> =
            traces.cases.iter().map(|case| Truth::of(case, traces.scale, None).unwrap()).collect();
        let options = ReplayOptions {
            device: Device::cpu(),
            forced: Forced::default(),
            limits: Default::default(),
            tail: 0.0,
            queries: None,
            keep: false,
        };
        body(&Field { cases: traces.cases.iter().zip(&truths).collect(), scale: traces.scale, options })
    }

    #[test]
    fn the_parameter_found_reaches_the_goal_and_the_one_below_does_not() {
        with_field(|field| {
            let contenders: Vec<Contender> =
                ["quest", "top-k@2", "progressive@4"].iter().map(|text| text.parse().unwrap()).collect();
            let goals = [Goal { quality: Quality::MissedP99, value: 0.1 }];
            let tuned = tune(field, &contenders, &goals, &|_| ()).unwrap();
            for (contender, tuned) in contenders.iter().zip(&tuned[0]) {
                let tuned = tuned.as_ref().unwrap();
                assert!(tuned.record.missed_mass.p99 <= 0.1);
                let step = (1..=STEPS).find(|&step| contender.at(step) == tuned.entrant).unwrap();
                let below = field.records(&[contender.at(step - 1)]).unwrap();
                assert!(below[0].missed_mass.p99 > 0.1, "{contender}");
            }
        });
    }

    #[test]
    fn the_oracle_needs_least() {
        with_field(|field| {
            let contenders: Vec<Contender> =
                ["oracle", "quest", "top-p@2"].iter().map(|text| text.parse().unwrap()).collect();
            let goals = [Goal { quality: Quality::MissedMax, value: 0.2 }];
            let tuned = tune(field, &contenders, &goals, &|_| ()).unwrap();
            let read: Vec<f64> =
                tuned[0].iter().map(|tuned| tuned.as_ref().unwrap().record.kv_fraction).collect();
            assert!(read[0] <= read[1] && read[0] <= read[2], "{read:?}");
        });
    }

    #[test]
    fn goals_and_contenders_read_back_what_they_print() {
        for text in ["missed_p99=0.05", "error_mean=0.01", "missed_max=0.3"] {
            assert_eq!(text.parse::<Goal>().unwrap().to_string(), text);
        }
        for text in ["quest", "top-k@2", "top-p@4", "progressive@2+2", "certified@8", "mean", "oracle"] {
            assert_eq!(text.parse::<Contender>().unwrap().to_string(), text);
        }
        for (text, remedy) in [
            ("missed_p99", "FIGURE=VALUE"),
            ("p99=0.05", "missed_p99"),
            ("missed_p99=0", "between 0 and 1"),
            ("missed_p99=nan", "between 0 and 1"),
        ] {
            assert!(text.parse::<Goal>().unwrap_err().to_string().contains(remedy), "{text}");
        }
        for (text, remedy) in
            [("topk", "use quest"), ("quest@2", "no choice"), ("top-k@3", "2, 4"), ("top-k@box", "quest")]
        {
            let error = text.parse::<Contender>().unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn halves_are_disjoint_and_complete() {
        let geometry =
            Geometry { cases: 3, tokens: 100, queries: 5, group: 2, head_dim: 64, dtype: Dtype::F16 };
        let traces = synthetic(Kind::Flat, geometry, 3).unwrap();
        let all: Vec<&Case> = traces.cases.iter().collect();
        let [a, b] = halves(&all);
        assert_eq!(a.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["case0", "case2"]);
        assert_eq!(b.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["case1"]);
        let [a, b] = halves(&all[..1]);
        assert_eq!((a[0].queries, b[0].queries), (2, 3));
        for part in [&a[0], &b[0]] {
            // The recorded answer must still be that of the part's queries and keys.
            Truth::of(part, traces.scale, None).unwrap();
        }
        assert_eq!((a[0].visible(0), b[0].visible(0)), (all[0].visible(0), all[0].visible(2)));
    }
}
