//! Longer contexts with the statistics of recorded ones: a model of length, not a recording.
//!
//! The recorded tokens stay where they are seen from the queries; older tokens are put between the sink
//! and them, one octave of distance after the other. They are recorded ones of the farthest octave (half
//! the context), drawn in runs of a quantisation group, keys and values together, with 10 % noise. Their
//! logits are shifted as one, so that an octave's share of the mass goes on as the last recorded octaves
//! did: `r` from octave to octave, measured by case.
//!
//! Trap: what really happens at length is not in a short recording. Extending the last 1,024 tokens of
//! the bundled traces to 4,096 gives contexts that need more blocks than the recorded 4,096
//! (docs/algorithm.md): figures from extensions are pessimistic there.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::answer::{Parts, answer, logits};
use super::synthetic::elements;
use super::{Case, Elements, TraceError, Traces};
use crate::Dtype;
use kernels_gpu::layout::{BLOCK, QUANT_GROUP};

/// First tokens that stay first: attention sinks are a kind of their own, which distance says nothing of.
const SINK: usize = QUANT_GROUP;
/// Octaves that the trend is measured over.
const OCTAVES: usize = 3;
/// Shortest context with three octaves of whole quantisation groups after the sink.
pub const SHORTEST: usize = QUANT_GROUP << OCTAVES;
/// Noise on a key's channels, as a share of the channel's deviation: no two keys are equal.
const NOISE: f64 = 0.1;

/// All cases with contexts of `tokens` tokens.
///
/// # Errors
/// [`TraceError::Extend`] for a length that is not longer than the recorded one, or a recording that is
/// too short; [`TraceError::Unsupported`] for more than the kernels take.
pub fn extend(traces: &Traces, tokens: usize, seed: u64) -> Result<Traces, TraceError> {
    let cases = (0..traces.cases.len()).map(|index| extend_case(traces, index, tokens, seed));
    Ok(Traces {
        origin: format!("{}, extended to {tokens} tokens by a model, seed {seed}", traces.origin),
        scale: traces.scale,
        cases: cases.collect::<Result<_, _>>()?,
    })
}

/// One case as [`extend`] makes it: for lengths of which memory does not hold all cases.
///
/// # Errors
/// As [`extend`]; [`TraceError::NoSuchCase`] where there is no case of this index.
pub fn extend_case(traces: &Traces, index: usize, tokens: usize, seed: u64) -> Result<Case, TraceError> {
    let case = of_index(traces, index)?;
    let shortest = SHORTEST.max(4 * case.queries);
    if case.context < shortest || tokens <= case.context {
        let (case, context) = (case.name.clone(), case.context);
        return Err(TraceError::Extend { case, context, tokens, shortest });
    }
    super::read::check_geometry(&traces.origin, &case.name, case.group, case.queries, tokens, case.head_dim)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index as u64);
    Ok(extended(case, traces.scale, tokens, &mut rng))
}

/// All cases with contexts of `tokens` tokens, no more than recorded: the sink and the last tokens. The sink of a
/// context shorter than two of them is its first block; of one shorter than two blocks, none. Queries beyond the
/// tokens are left out.
///
/// # Errors
/// [`TraceError::Extend`] for more tokens than recorded, or none.
pub fn cut(traces: &Traces, tokens: usize) -> Result<Traces, TraceError> {
    let cases = (0..traces.cases.len()).map(|index| cut_case(traces, index, tokens));
    Ok(Traces {
        origin: format!("{}, cut to {tokens} tokens", traces.origin),
        scale: traces.scale,
        cases: cases.collect::<Result<_, _>>()?,
    })
}

/// One case as [`cut`] makes it.
///
/// # Errors
/// As [`cut`]; [`TraceError::NoSuchCase`] where there is no case of this index.
pub fn cut_case(traces: &Traces, index: usize, tokens: usize) -> Result<Case, TraceError> {
    let case = of_index(traces, index)?;
    if tokens == 0 || tokens > case.context {
        let (case, context) = (case.name.clone(), case.context);
        return Err(TraceError::Extend { case, context, tokens, shortest: SHORTEST });
    }
    let case = case.part(case.queries - case.queries.min(tokens)..case.queries);
    let d = case.head_dim;
    let sink = [SINK, BLOCK].into_iter().find(|sink| tokens >= 2 * sink).unwrap_or(0);
    let kept = |x: &Elements| {
        let mut rows = x.to_f64(0..sink * d);
        rows.extend(x.to_f64((case.context - tokens + sink) * d..case.context * d));
        elements(&rows, dtype_of(x))
    };
    let (k, v) = (kept(&case.k), kept(&case.v));
    let Case { name, label, head_dim, group, q, .. } = case;
    Ok(answer(Parts { name, label, head_dim, group, q, k, v }, traces.scale))
}

fn of_index(traces: &Traces, index: usize) -> Result<&Case, TraceError> {
    traces.cases.get(index).ok_or_else(|| TraceError::NoSuchCase {
        name: index.to_string(),
        known: format!("0 to {}", traces.cases.len().saturating_sub(1)),
    })
}

fn dtype_of(elements: &Elements) -> Dtype {
    match elements {
        Elements::F16(_) => Dtype::F16,
        Elements::Bf16(_) => Dtype::Bf16,
    }
}

fn extended(case: &Case, scale: f32, tokens: usize, rng: &mut ChaCha8Rng) -> Case {
    let (d, context) = (case.head_dim, case.context);
    let [q, keys, values] = [&case.q, &case.k, &case.v].map(|x| x.to_f64(0..x.len()));
    let lift = unit_logit(&q, d);
    let ratio = mass_ratio(case, scale, &q, &keys);
    let far = SINK..context / 2;
    let deviation = deviations(&keys[far.start * d..far.end * d], d);

    let (mut k, mut v) = (Vec::with_capacity(tokens * d), Vec::with_capacity(tokens * d));
    k.extend_from_slice(&keys[..SINK * d]);
    v.extend_from_slice(&values[..SINK * d]);
    // From the oldest octave to the youngest; the oldest is as long as the context asks for.
    let added = tokens - context;
    let mut left = added;
    let mut octave = 0;
    while context << octave < tokens {
        octave += 1;
    }
    while octave > 0 {
        // Octaves 1 .. octave - 1 hold context * (2^(octave - 1) - 1) tokens.
        let younger = context * ((1 << (octave - 1)) - 1);
        let mut here = left - younger.min(left);
        left -= here;
        // Twice the tokens at the same logits would have twice the mass.
        let shift = octave as f64 * (ratio / 2.0).ln() / scale as f64;
        while here > 0 {
            let run = here.min(QUANT_GROUP);
            let start = rng.random_range(far.start..far.end - QUANT_GROUP + 1);
            for t in start..start + run {
                for c in 0..d {
                    let noise: f64 = rng.sample(StandardNormal);
                    k.push(keys[t * d + c] + NOISE * deviation[c] * noise + shift * lift[c]);
                }
                v.extend_from_slice(&values[t * d..][..d]);
            }
            here -= run;
        }
        octave -= 1;
    }
    k.extend_from_slice(&keys[SINK * d..]);
    v.extend_from_slice(&values[SINK * d..]);

    let dtype = dtype_of(&case.k);
    // At a million tokens the f64 forms are a GB: gone before the answer makes its own.
    let stored = |x: Vec<f64>| elements(&x, dtype);
    let (k, v) = (stored(k), stored(v));
    let parts = Parts {
        name: case.name.clone(),
        label: format!("{}, extended {context} to {tokens}", case.label),
        head_dim: d,
        group: case.group,
        q: case.q.clone(),
        k,
        v,
    };
    answer(parts, scale)
}

/// The direction u with q.u as near to 1 as can be for all queries: least squares with a small ridge.
fn unit_logit(q: &[f64], d: usize) -> Vec<f64> {
    let mut matrix = vec![0.0; d * (d + 1)]; // Q'Q with Q'1 as the last column
    for row in q.chunks_exact(d) {
        for i in 0..d {
            for j in 0..d {
                matrix[i * (d + 1) + j] += row[i] * row[j];
            }
            matrix[i * (d + 1) + d] += row[i];
        }
    }
    let trace: f64 = (0..d).map(|i| matrix[i * (d + 1) + i]).sum();
    let ridge = (1e-3 * trace / d as f64).max(f64::MIN_POSITIVE);
    (0..d).for_each(|i| matrix[i * (d + 1) + i] += ridge);
    // Gauss without pivoting: the matrix is symmetric and positive definite.
    for i in 0..d {
        for r in i + 1..d {
            let factor = matrix[r * (d + 1) + i] / matrix[i * (d + 1) + i];
            for c in i..=d {
                matrix[r * (d + 1) + c] -= factor * matrix[i * (d + 1) + c];
            }
        }
    }
    let mut u = vec![0.0; d];
    for i in (0..d).rev() {
        let known: f64 = (i + 1..d).map(|j| matrix[i * (d + 1) + j] * u[j]).sum();
        u[i] = (matrix[i * (d + 1) + d] - known) / matrix[i * (d + 1) + i];
    }
    u
}

/// Mean mass of the farthest octave over that of the next nearer one, over the last three; between 1/4
/// and 2, beyond which an octave more or less would be all there is.
fn mass_ratio(case: &Case, scale: f32, q: &[f64], keys: &[f64]) -> f64 {
    let d = case.head_dim;
    let mut mass = [0.0f64; OCTAVES];
    for (row, query) in q.chunks_exact(d).enumerate() {
        let visible = case.visible(row % case.queries);
        let logits = logits(query, &keys[..visible * d], scale);
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = |range: &[f64]| range.iter().map(|x| (x - top).exp()).sum::<f64>();
        let total = sum(&logits);
        for (octave, mass) in mass.iter_mut().enumerate() {
            let from = visible.saturating_sub(case.context >> octave).max(SINK);
            let to = visible.saturating_sub(case.context >> (octave + 1)).max(from);
            *mass += sum(&logits[from..to]) / total;
        }
    }
    let ratio = (mass[0] / mass[OCTAVES - 1]).powf(1.0 / (OCTAVES - 1) as f64);
    if ratio.is_finite() { ratio.clamp(0.25, 2.0) } else { 1.0 }
}

fn deviations(rows: &[f64], d: usize) -> Vec<f64> {
    let n = (rows.len() / d) as f64;
    (0..d)
        .map(|c| {
            let column = || rows.iter().skip(c).step_by(d);
            let mean = column().sum::<f64>() / n;
            (column().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Truth;
    use crate::traces::tests::synthetic;
    use crate::traces::{Geometry, Kind};

    fn bundle() -> Traces {
        let cases = vec![synthetic("case0", 2, 3, 600, 4), synthetic("case1", 2, 3, 600, 5)];
        Traces { origin: "pseudo-random".into(), scale: 0.125, cases }
    }

    #[test]
    fn the_recorded_tokens_stay_where_the_queries_see_them() {
        let short = bundle();
        let long = extend(&short, 2000, 1).unwrap();
        for (short, long) in short.cases.iter().zip(&long.cases) {
            assert_eq!((long.context, long.queries, &long.q), (2000, 3, &short.q));
            let (d, n) = (short.head_dim, short.k.len());
            assert_eq!(long.k.to_f64(0..SINK * d), short.k.to_f64(0..SINK * d));
            assert_eq!(long.k.to_f64(SINK * d + 1400 * d..2000 * d), short.k.to_f64(SINK * d..n));
            assert_eq!(long.v.to_f64(SINK * d + 1400 * d..2000 * d), short.v.to_f64(SINK * d..n));
        }
        assert_eq!(long, extend(&short, 2000, 1).unwrap(), "same seed, same file");
        assert_ne!(long, extend(&short, 2000, 2).unwrap());
    }

    #[test]
    fn the_lift_raises_every_logit_by_one() {
        // Queries with a common part: u exists; the ridge costs less than 1 %.
        let q: Vec<f64> = (0..40 * 8).map(|i| 3.0 + ((i * 37) % 11) as f64 * 0.1).collect();
        let u = unit_logit(&q, 8);
        for row in q.chunks_exact(8) {
            let lift: f64 = row.iter().zip(&u).map(|(q, u)| q * u).sum();
            assert!((lift - 1.0).abs() < 0.05, "{lift}");
        }
    }

    #[test]
    fn new_octaves_go_on_with_the_trend() {
        // Flat keys have no trend but their number: each octave has about twice the mass of the next
        // nearer one (less the sink), so the older half of a doubled context holds about half.
        let geometry =
            Geometry { cases: 1, tokens: 1024, queries: 4, group: 2, head_dim: 64, dtype: Dtype::F16 };
        let short = crate::traces::synthetic(Kind::Flat, geometry, 1).unwrap();
        let long = extend(&short, 2048, 3).unwrap();
        let truth = Truth::of(&long.cases[0], long.scale, None).unwrap();
        let recorded: Vec<u32> = (0..4).chain(68..128).collect();
        let older = truth.missed(3, 0, &recorded);
        assert!((0.42..0.52).contains(&older), "{older}");
    }

    #[test]
    fn cut_contexts_keep_the_sink_and_the_last_tokens() {
        let whole = bundle();
        for (tokens, sink) in [(600, 64), (200, 64), (100, 16), (32, 16), (31, 0), (2, 0)] {
            let short = cut(&whole, tokens).unwrap();
            let (short, whole) = (&short.cases[0], &whole.cases[0]);
            assert_eq!((short.context, short.queries), (tokens, tokens.min(3)));
            assert_eq!(short.k.to_f64(0..sink * 64), whole.k.to_f64(0..sink * 64));
            assert_eq!(
                short.k.to_f64(sink * 64..tokens * 64),
                whole.k.to_f64((600 - tokens + sink) * 64..600 * 64)
            );
            Truth::of(short, 0.125, None).unwrap();
        }
        // Nothing cut off, nothing changed.
        assert_eq!(cut(&whole, 600).unwrap().cases, whole.cases);
        assert!(cut(&whole, 0).is_err() && cut(&whole, 601).is_err());
    }

    #[test]
    fn lengths_that_extend_nothing_are_refused() {
        let error = extend(&bundle(), 600, 1).unwrap_err().to_string();
        assert!(error.contains("600"), "{error}");
        let short = Traces { cases: vec![synthetic("case0", 1, 1, 100, 1)], ..bundle() };
        assert!(extend(&short, 4000, 1).unwrap_err().to_string().contains("512"));
    }
}
