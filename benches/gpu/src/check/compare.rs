//! One step on a device against the same step of the reference.

use psa_tests::{Arithmetic, Outcome, Workload, step_bounds};

/// Compares; gives the largest error over its bound.
pub fn step(workload: &Workload, reference: &Outcome, got: &Outcome) -> Result<f64, String> {
    let shape = &workload.shape;
    let scale = 1.0 / (shape.head_dim as f64).sqrt();
    let mut worst = 0.0f64;
    for (i, s) in workload.sequences.iter().enumerate() {
        let bits =
            |x: &Option<Vec<f32>>| x.as_ref().map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        for (h, (want, have)) in reference.log_mass[i].iter().zip(&got.log_mass[i]).enumerate() {
            let (want, have) = (bits(want), bits(have));
            if want != have {
                let at = want.iter().flatten().zip(have.iter().flatten()).position(|(a, b)| a != b);
                return Err(format!("sequence {i}, query head {h}: estimates differ, first at block {at:?}"));
            }
        }
        if reference.selection[i] != got.selection[i] {
            let h = (0..shape.kv_heads).find(|&h| reference.selection[i][h] != got.selection[i][h]);
            return Err(format!("sequence {i}, KV head {h:?}: the blocks read, by rank, differ"));
        }
        for h in 0..shape.q_heads {
            let topups = got.heads[i][h / shape.group()].topups;
            let (bound, lse_bound) = step_bounds(shape, s, h, scale, Arithmetic::Kernels { topups });
            let row = h * shape.head_dim..(h + 1) * shape.head_dim;
            let pairs = reference.out[i][row.clone()].iter().zip(&got.out[i][row]);
            for (c, (&want, &have)) in pairs.enumerate() {
                worst = worst.max(within(want, have, bound).map_err(|e| {
                    format!("sequence {i}, query head {h}, channel {c}: output {have} for {want}, {e}")
                })?);
            }
            let (want, have) = (reference.lse[i][h], got.lse[i][h]);
            worst = worst.max(
                within(want, have, lse_bound)
                    .map_err(|e| format!("sequence {i}, query head {h}: lse {have} for {want}, {e}"))?,
            );
        }
    }
    Ok(worst)
}

/// Error over bound, where it is at most 1. Equal values need no bound, so that infinities agree.
fn within(want: f32, have: f32, bound: f64) -> Result<f64, String> {
    if want == have {
        return Ok(0.0);
    }
    let error = (f64::from(want) - f64::from(have)).abs();
    // Written so that NaN fails.
    if error <= bound { Ok(error / bound) } else { Err(format!("error {error:e}, bound {bound:e}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psa::{Device, Dtype, Mirror, Policy, Shape};

    const SHAPE: Shape = Shape { layers: 1, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };

    fn both() -> (Workload, Outcome) {
        let workload = Workload::random(SHAPE, &[200], 3);
        let policy = Policy::Progressive { mass: 0.8 };
        let outcome = psa_tests::run(&Device::reference(), &workload, Mirror::Bits2, policy).unwrap();
        (workload, outcome)
    }

    #[test]
    fn a_step_agrees_with_itself() {
        let (workload, outcome) = both();
        assert_eq!(step(&workload, &outcome, &outcome), Ok(0.0));
    }

    #[test]
    fn a_flipped_bit_a_swapped_block_an_output_off_and_a_nan_are_found() {
        let (workload, want) = both();
        let found = |change: &dyn Fn(&mut Outcome)| {
            let mut got = want.clone();
            change(&mut got);
            step(&workload, &want, &got).unwrap_err()
        };
        let text = found(&|o| {
            let x = &mut o.log_mass[0][1].as_mut().unwrap()[2];
            *x = f32::from_bits(x.to_bits() ^ 1);
        });
        assert!(text.contains("query head 1: estimates differ, first at block Some(2)"), "{text}");
        assert!(found(&|o| o.selection[0][0].swap(0, 1)).contains("blocks read"));
        assert!(found(&|o| o.out[0][70] += 1e-2).contains("query head 1, channel 6"));
        assert!(found(&|o| o.out[0][0] = f32::NAN).contains("NaN"));
        assert!(found(&|o| o.lse[0][1] += 1e-2).contains("lse"));
    }
}
