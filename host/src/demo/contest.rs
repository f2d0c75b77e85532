//! Every policy at the quality of progressive attention.
//!
//! Progressive attention at .95 on the 2-bit mirror sets the mark: the 99th percentile of its missed
//! mass, and apart from that its mean output error. Each static policy gets the smallest parameter that
//! is at least as good, by bisection: a larger parameter reads a superset of blocks, so the missed mass
//! of every step can only fall. All guesses of one round share one replay.

use psa::eval::{Entrant, EvalError, Record, Replay, ReplayOptions, Truth, evaluate};
use psa::traces::Case;
use psa::{Budget, Mirror, Policy};

use crate::cli::Progress;

/// The data, and how to replay it.
pub struct Field<'a> {
    /// Cases with their exact masses.
    pub cases: &'a [(&'a Case, &'a Truth)],
    /// Softmax scale.
    pub scale: f32,
    /// Device and forced blocks.
    pub options: ReplayOptions,
}

impl Field<'_> {
    fn replay(&self, entrants: &[Entrant]) -> Result<Vec<Vec<Replay>>, EvalError> {
        evaluate(self.cases, self.scale, entrants, &self.options, &|_| ())
    }

    /// One record over all cases for each entrant.
    pub fn records(&self, entrants: &[Entrant]) -> Result<Vec<Record>, EvalError> {
        let replays = self.replay(entrants)?;
        Ok(entrants.iter().zip(&replays).map(|(&entrant, replays)| self.summary(entrant, replays)).collect())
    }

    fn summary(&self, entrant: Entrant, replays: &[Replay]) -> Record {
        Record::of_all(entrant, self.options.device.name(), replays)
    }
}

/// Steps of a parameter between least and most.
const STEPS: u32 = 256;

/// A policy with one parameter to tune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tunable {
    /// Quest: top-k by boxes.
    Quest,
    /// Top-k by a mirror of so many bits.
    TopK(Mirror),
    /// One shot at an estimated mass.
    TopP(Mirror),
}

impl Tunable {
    /// What competes.
    pub const ALL: [Tunable; 3] =
        [Tunable::Quest, Tunable::TopK(Mirror::Bits2), Tunable::TopP(Mirror::Bits2)];

    /// Name for people.
    pub fn name(self) -> String {
        match self {
            Tunable::Quest => "quest".to_owned(),
            Tunable::TopK(mirror) => format!("top-k, {mirror} bits"),
            Tunable::TopP(mirror) => format!("top-p, {mirror} bits"),
        }
    }

    /// The policy at step `1 ..= STEPS` of its parameter. The last step reads everything. Fractions grow
    /// evenly; masses approach 1 by a factor of 2 in what is left every 24 steps.
    pub fn at(self, step: u32) -> Entrant {
        let fraction = Budget::Fraction(step as f64 / STEPS as f64);
        let left = if step >= STEPS { 0.0 } else { 0.5 * 2f64.powf(-(step as f64) / 24.0) };
        match self {
            Tunable::Quest => Entrant::new(Policy::Quest(fraction), Mirror::Box),
            Tunable::TopK(mirror) => Entrant::new(Policy::TopK(fraction), mirror),
            Tunable::TopP(mirror) => Entrant::new(Policy::TopP { mass: (1.0 - left) as f32 }, mirror),
        }
    }
}

/// What the static policies have to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// 99th percentile of the missed mass.
    MissedP99,
    /// Mean of the output error.
    OutputMean,
}

impl Quality {
    /// Its value in a record; less is better.
    pub fn of(self, record: &Record) -> f64 {
        match self {
            Quality::MissedP99 => record.missed_mass.p99,
            Quality::OutputMean => record.output_error.mean,
        }
    }
}

/// One policy's run over all cases.
pub struct Row {
    /// The tuned policy it belongs to; none for those that are what they are.
    pub tuned: Option<Tunable>,
    /// Summary.
    pub record: Record,
}

/// A curve of the picture.
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Bytes read (dense = 1) and p99 of missed mass, by bytes.
    pub points: Vec<(f64, f64)>,
    /// The run in the table.
    pub marked: Option<(f64, f64)>,
}

/// The outcome.
pub struct Contest {
    /// The progressive run that sets the mark.
    pub mark: Record,
    /// The table: dense, tuned policies, progressive on 2 and 4 bits, oracle.
    pub rows: Vec<Row>,
    /// Policies tuned to the mark's mean output error instead.
    pub by_output: Vec<Row>,
    /// For the picture, in the order of the table.
    pub curves: Vec<Curve>,
    /// For the picture: case, KV read by progressive, by the oracle.
    pub by_case: Vec<(String, f64, f64)>,
}

/// Runs everything on the field's device.
pub fn run(field: &Field<'_>, progress: &Progress) -> Result<Contest, EvalError> {
    progress.say("all policies over all cases");
    let mass = 0.95;
    let dense = Entrant::new(Policy::Dense, Mirror::Bits2);
    let fixed = [
        ("progressive, 2 bits", Policy::Progressive { mass }, Mirror::Bits2),
        ("progressive, 4 bits", Policy::Progressive { mass }, Mirror::Bits4),
        ("oracle (true masses)", Policy::Oracle { mass }, Mirror::Bits2),
    ]
    .map(|(name, policy, mirror)| (name, Entrant::new(policy, mirror)));
    let mut entrants = vec![dense];
    entrants.extend(fixed.iter().map(|(_, entrant)| *entrant));
    let replays = field.replay(&entrants)?;
    let mut records: Vec<Record> =
        entrants.iter().zip(&replays).map(|(&entrant, replays)| field.summary(entrant, replays)).collect();
    let mark = records[1].clone();
    let kv = |entrant: usize, case: usize| {
        Record::of_case(entrants[entrant], "", &replays[entrant][case]).kv_fraction
    };
    let by_case = (0..field.cases.len()).map(|c| (replays[1][c].case.clone(), kv(1, c), kv(3, c))).collect();

    let mut curves = sweep(field, &fixed)?;
    progress.say("static policies tuned to the same p99 of missed mass and to the same mean output error");
    let goals = [Quality::MissedP99, Quality::OutputMean].map(|quality| (quality, quality.of(&mark)));
    let [by_missed, by_output] = tune(field, goals)?;

    let fixed_rows = records.split_off(1);
    for (i, curve) in curves.iter_mut().enumerate() {
        let run = match Tunable::ALL.get(i) {
            Some(tunable) => by_missed.iter().find(|row| row.tuned == Some(*tunable)).map(|row| &row.record),
            None => fixed_rows.get(i - Tunable::ALL.len()),
        };
        curve.marked = run.map(point);
        curve.points.extend(curve.marked);
        curve.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let mut rows: Vec<Row> = records.into_iter().map(|record| Row { tuned: None, record }).collect();
    rows.extend(by_missed);
    rows.extend(fixed_rows.into_iter().map(|record| Row { tuned: None, record }));
    Ok(Contest { mark, rows, by_output, curves, by_case })
}

fn point(record: &Record) -> (f64, f64) {
    (record.bytes_fraction, record.missed_mass.p99)
}

/// The curves of the tunable policies, then of the fixed ones.
fn sweep(field: &Field<'_>, fixed: &[(&str, Entrant)]) -> Result<Vec<Curve>, EvalError> {
    let mut names = Vec::new();
    let mut entrants = Vec::new();
    for tunable in Tunable::ALL {
        names.push(tunable.name());
        let steps: &[u32] = match tunable {
            Tunable::TopP(_) => &[24, 48, 72, 96, 128, 176],
            _ => &[13, 26, 51, 77, 102, 128, 154, 179, 205, 230],
        };
        entrants.push(steps.iter().map(|&step| tunable.at(step)).collect::<Vec<_>>());
    }
    for (name, entrant) in fixed {
        names.push((*name).to_owned());
        // The oracle computes true masses in f64 at every step: one point has to do.
        let masses: &[f32] = match entrant.policy {
            Policy::Progressive { .. } => &[0.8, 0.9, 0.98, 0.99],
            _ => &[],
        };
        let at = |&mass: &f32| Entrant { policy: Policy::Progressive { mass }, ..*entrant };
        entrants.push(masses.iter().map(at).collect());
    }
    let mut records = field.records(&entrants.concat())?.into_iter();
    let curves = names.into_iter().zip(&entrants).map(|(name, entrants)| {
        let points: Vec<_> = records.by_ref().take(entrants.len()).map(|record| point(&record)).collect();
        Curve { name, points, marked: None }
    });
    Ok(curves.collect())
}

/// The smallest parameter of every tunable policy for every goal, one row each.
fn tune<const N: usize>(field: &Field<'_>, goals: [(Quality, f64); N]) -> Result<[Vec<Row>; N], EvalError> {
    struct Search {
        tunable: Tunable,
        quality: Quality,
        goal: f64,
        /// Largest step known to fail, smallest known to do.
        fails: u32,
        does: u32,
        best: Option<Record>,
    }
    let mut searches: Vec<Search> = Vec::new();
    for (quality, goal) in goals {
        for tunable in Tunable::ALL {
            searches.push(Search { tunable, quality, goal, fails: 0, does: STEPS + 1, best: None });
        }
    }
    loop {
        let mut open: Vec<&mut Search> = searches.iter_mut().filter(|s| s.fails + 1 < s.does).collect();
        if open.is_empty() {
            break;
        }
        let middle = |s: &Search| (s.fails + s.does) / 2;
        let entrants: Vec<_> = open.iter().map(|s| s.tunable.at(middle(s))).collect();
        for (search, record) in open.iter_mut().zip(field.records(&entrants)?) {
            if search.quality.of(&record) <= search.goal {
                search.does = middle(search);
                search.best = Some(record);
            } else {
                search.fails = middle(search);
            }
        }
    }
    let mut searches = searches.into_iter();
    Ok(std::array::from_fn(|_| {
        let group = searches.by_ref().take(Tunable::ALL.len());
        // The last step reads everything and so reaches every goal that a run of the same device set,
        // up to rounding of the output error; a policy that does not is left out.
        group.filter_map(|s| Some(Row { tuned: Some(s.tunable), record: s.best? })).collect()
    }))
}
