//! Every policy at the quality of progressive attention.
//!
//! Progressive attention at .95 on the nested mirror sets the mark: the 99th percentile of its missed
//! mass, and apart from that its mean output error. Each static policy gets the smallest parameter that
//! is at least as good ([`tune`]), on the same cases: `psa match` tunes and compares on different ones.

use psa::eval::{Contender, Entrant, EvalError, Family, Field, Goal, Quality, Record, Tuned, tune};
use psa::{Mirror, Policy};

use crate::cli::Progress;
use crate::cli::figure::Curve;

/// The policies that are tuned: Quest, and top-k and one-shot top-p by the nested mirror.
pub const CONTENDERS: [Contender; 3] = [
    Contender::new(Family::Quest, Mirror::Box),
    Contender::new(Family::TopK, Mirror::Nested),
    Contender::new(Family::TopP, Mirror::Nested),
];

fn name(contender: Contender) -> String {
    match contender.family {
        Family::TopK => format!("top-k, {} bits", contender.mirror),
        Family::TopP => format!("top-p, {} bits", contender.mirror),
        _ => contender.to_string(),
    }
}

/// One policy's run over all cases.
pub struct Row {
    /// The tuned policy it belongs to; none for those that are what they are.
    pub tuned: Option<Contender>,
    /// Summary.
    pub record: Record,
}

/// The outcome.
pub struct Contest {
    /// The progressive run that sets the mark.
    pub mark: Record,
    /// The table: dense, tuned policies, progressive on 2+2 and 2 bits, oracle.
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
    let dense = Entrant::new(Policy::Dense, Mirror::Nested);
    let fixed = [
        ("progressive, 2+2 bits", Policy::Progressive { mass }, Mirror::Nested),
        ("progressive, 2 bits", Policy::Progressive { mass }, Mirror::Bits2),
        ("oracle (true masses)", Policy::Oracle { mass }, Mirror::Nested),
    ]
    .map(|(name, policy, mirror)| (name, Entrant::new(policy, mirror)));
    let mut entrants = vec![dense];
    entrants.extend(fixed.iter().map(|(_, entrant)| *entrant));
    let replays = field.replay(&entrants)?;
    let mut records: Vec<Record> = entrants
        .iter()
        .zip(&replays)
        .map(|(&entrant, replays)| Record::of_all(entrant, field.options.device.name(), replays))
        .collect();
    let mark = records[1].clone();
    let kv = |entrant: usize, case: usize| {
        Record::of_case(entrants[entrant], "", &replays[entrant][case]).kv_fraction
    };
    let by_case = (0..field.cases.len()).map(|c| (replays[1][c].case.clone(), kv(1, c), kv(3, c))).collect();

    let mut curves = sweep(field, &fixed)?;
    progress.say("static policies tuned to the same p99 of missed mass and to the same mean output error");
    let goals =
        [Quality::MissedP99, Quality::ErrorMean].map(|quality| Goal { quality, value: quality.of(&mark) });
    // The last step reads everything and so reaches every goal that a run of the same device set, up to
    // rounding of the output error; a policy that does not is left out.
    let row = |tuned: Tuned| Row { tuned: Some(tuned.contender), record: tuned.record };
    let mut rows = tune(field, &CONTENDERS, &goals, &|_| ())?
        .into_iter()
        .map(|tuned| tuned.into_iter().flatten().map(row).collect::<Vec<Row>>());
    let (by_missed, by_output) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());

    let fixed_rows = records.split_off(1);
    for (i, curve) in curves.iter_mut().enumerate() {
        let run = match CONTENDERS.get(i) {
            Some(contender) => {
                by_missed.iter().find(|row| row.tuned == Some(*contender)).map(|row| &row.record)
            }
            None => fixed_rows.get(i - CONTENDERS.len()),
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
    for contender in CONTENDERS {
        names.push(name(contender));
        entrants.push(contender.sweep().iter().map(|&step| contender.at(step)).collect::<Vec<_>>());
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
