//! What the estimators promise: the masses of their definitions, and bounds that hold.

use super::*;
use crate::reference::score::{exact_score, score};
use crate::reference::tests::{Filled, Random, Tensor, random_q};
use kernels_gpu::numeric::LOG2_E;

const SHAPE: Shape = Shape { layers: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };

fn filled(mirror: Mirror, group: usize, tokens: usize, seed: u64) -> Filled {
    let k = Tensor::random(Dtype::F16, tokens * 64, 1.0, seed);
    Filled::with_keys(64, MirrorFormat::new(mirror, group).unwrap(), &k, seed + 1)
}

/// True log2 masses of all blocks.
fn true_masses(filled: &Filled, q: &[f32]) -> Vec<f64> {
    let view = filled.view();
    let qs: Vec<f64> = q.iter().map(|&x| x as f64 * 0.125 * std::f64::consts::LOG2_E).collect();
    let score = |t: usize| view.key_values(t).zip(&qs).map(|(k, q)| k as f64 * q).sum::<f64>();
    (0..view.blocks())
        .map(|b| {
            (b * BLOCK..b * BLOCK + view.tokens_of_block(b)).map(|t| score(t).exp2()).sum::<f64>().log2()
        })
        .collect()
}

#[test]
fn more_bits_and_smaller_groups_are_nearer_the_truth() {
    let q = random_q(64, 3);
    let error = |mirror: Mirror, group: usize| {
        let filled = filled(mirror, group, 1024, 17);
        let got = score(&filled.view(), &*filled.estimator, &q, 0.125, false).log_mass.remove(0);
        let truth = true_masses(&filled, &q);
        got.iter().zip(&truth).map(|(a, b)| (*a as f64 - b).abs()).sum::<f64>() / truth.len() as f64
    };
    let errors = [Mirror::Bits1, Mirror::Bits2, Mirror::Bits4, Mirror::Bits8].map(|m| error(m, 64));
    assert!(errors.windows(2).all(|w| w[1] < 0.7 * w[0]), "{errors:?}");
    assert!(errors[3] < 0.01, "{errors:?}");
    assert!(error(Mirror::Bits4, 32) < error(Mirror::Bits4, 256));
    // Summaries are of the right size, no more.
    for mirror in [Mirror::Mean, Mirror::Cuboid, Mirror::MeanVariance, Mirror::Representatives] {
        assert!(error(mirror, 64) < 3.0, "{mirror}: {}", error(mirror, 64));
    }
    assert!(error(Mirror::MeanVariance, 64) < error(Mirror::Mean, 64));
}

#[test]
fn the_second_look_of_a_nested_page_has_the_bits_of_four_bits() {
    let q = random_q(64, 5);
    let qs: Vec<f32> = q.iter().map(|x| x * 0.125 * LOG2_E).collect();
    let (nested, four) = (filled(Mirror::Nested, 64, 256, 9), filled(Mirror::Bits4, 64, 256, 9));
    for group in 0..4 {
        let (a, b) = (nested.view(), four.view());
        assert_eq!(a.page(group), b.page(group));
        let mut want = [0.0; 4];
        four.estimator.masses(b.page(group), &qs, &mut want);
        for (block, want) in want.iter().enumerate() {
            let fine = nested.estimator.fine_mass(a.page(group), &qs, block).unwrap();
            assert_eq!(fine.to_bits(), want.to_bits());
        }
    }
}

#[test]
fn a_coarse_score_is_the_score_of_the_middle_of_its_codes() {
    let q = random_q(64, 5);
    let qs: Vec<f32> = q.iter().map(|x| x * 0.125 * LOG2_E).collect();
    let nested = filled(Mirror::Nested, 64, 64, 9);
    let (view, mut got) = (nested.view(), [0.0; 4]);
    nested.estimator.masses(view.page(0), &qs, &mut got);
    let page = view.page(0);
    let (zeros, steps) = (planes::halves(page, 64), planes::halves(&page[128..], 64));
    for (block, got) in got.iter().enumerate() {
        let key = |t: usize, c: usize| {
            let word = 256 + t * 16 + c / 16 * 4;
            let bits = u32::from_le_bytes(page[word..][..4].try_into().unwrap());
            let coarse = bits >> kernels_gpu::layout::code_shift(c) & 3;
            zeros[c] as f64 + steps[c] as f64 * (4.0 * coarse as f64 + 1.5)
        };
        let score = |t: usize| (0..64).map(|c| qs[c] as f64 * key(t, c)).sum::<f64>();
        let want = (block * 16..block * 16 + 16).map(|t| score(t).exp2()).sum::<f64>().log2();
        // Weights of 15 bits: half a unit for each of 64 codes up to 15, and f32.
        assert!((*got as f64 - want).abs() < 0.02, "{got} {want}");
    }
}

#[test]
fn only_blocks_that_may_matter_are_looked_at_twice() {
    // One group of keys along the query, the others against it.
    let q: Vec<f32> = vec![1.0; 64];
    let mut random = Random(3);
    let keys = (0..512 * 64).map(|i| (if i / 64 / 64 == 2 { 1.0 } else { -1.0 }) + 0.1 * random.normal());
    let format = MirrorFormat::new(Mirror::Nested, 64).unwrap();
    let filled = Filled::with_keys(64, format, &Tensor::new(Dtype::F16, keys), 1);
    let view = filled.view();
    let scored = score(&view, &*filled.estimator, &q, 0.125, false);
    assert_eq!(scored.metadata, 8 * format.first_bytes(64) + 4 * format.fine_bytes(64));
    let bounded = score(&view, &*filled.estimator, &q, 0.125, true);
    assert!(bounded.metadata >= scored.metadata && bounded.metadata <= 8 * format.page_bytes(64));
}

#[test]
fn representatives_are_keys_of_the_block_and_stand_for_all_of_it() {
    let filled = filled(Mirror::Representatives, 32, 64, 4);
    let view = filled.view();
    for block in 0..4 {
        let bytes = &view.page(block / 2)[block % 2 * (8 * 64 + 4)..][..8 * 64 + 4];
        assert_eq!(bytes[8 * 64..].iter().map(|&n| n as u32).sum::<u32>(), 16);
        for chosen in bytes[..8 * 64].chunks(128) {
            let is = |t: usize| {
                view.key(block * 16 + t).iter().flat_map(|x| x.to_le_bytes()).eq(chosen.iter().copied())
            };
            assert!((0..16).any(is), "block {block}");
        }
    }
}

/// Keys to break a bound with: extreme scales, subnormals, equal keys, one huge key, few values, large offsets.
fn adversarial(random: &mut Random, dtype: Dtype, tokens: usize, d: usize) -> Tensor {
    let top = match dtype {
        Dtype::F16 => 65504.0f32,
        Dtype::Bf16 => 3.3e38,
    };
    let kind = random.bits() % 10;
    let scale = match random.bits() % 6 {
        0 => 1e-7,
        1 => 1e-3,
        2 | 3 => 1.0,
        4 => 30.0,
        _ => 1000.0,
    };
    let offsets: Vec<f32> = (0..d).map(|_| 20.0 * scale * random.normal()).collect();
    let channels: Vec<f32> = (0..d).map(|_| (4.0 * random.normal()).exp2()).collect();
    let first: Vec<f32> = (0..d).map(|_| scale * random.normal()).collect();
    let huge = random.bits() as usize % tokens;
    let mut values = Vec::with_capacity(tokens * d);
    for t in 0..tokens {
        for c in 0..d {
            let x = scale * random.normal();
            values.push(match kind {
                0 => x,
                1 => first[c],
                2 => x + offsets[c],
                3 => x * channels[c],
                // Ends and middle of the range only: every code at a rounding boundary.
                4 => scale * [-1.0, 0.0, 1.0, 0.5][random.bits() as usize % 4],
                5 if t == huge => 0.9 * top * (random.unit() - 0.5).signum(),
                5 => x,
                6 => first[c] * (1.0 + (random.bits() % 2) as f32 / 1024.0),
                7 => f32::from_bits((random.bits() as u32) & 0xbfff_ffff) % top,
                8 => (random.bits() % 16) as f32 * scale,
                _ => x * if t == huge { 50.0 } else { 1.0 },
            });
        }
    }
    Tensor::new(dtype, values.into_iter().map(|x| if x.is_finite() { x.clamp(-top, top) } else { 0.0 }))
}

/// `PSA_BOUND_CASES` contexts instead of 1,500; each is some thousand (block, head) bounds.
fn cases() -> u64 {
    std::env::var("PSA_BOUND_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1500)
}

#[test]
fn no_block_has_more_mass_than_its_bound_whatever_the_keys() {
    let mut random = Random(2026);
    let mut finite = 0u64;
    for case in 0..cases() {
        let dtype = [Dtype::F16, Dtype::Bf16][random.bits() as usize % 2];
        let bounding = [
            Mirror::Bits1,
            Mirror::Bits2,
            Mirror::Bits4,
            Mirror::Bits8,
            Mirror::Nested,
            Mirror::Nested8,
            Mirror::Box,
        ];
        let mirror = bounding[random.bits() as usize % bounding.len()];
        let group = crate::QUANT_GROUPS[random.bits() as usize % 2];
        let d = [64, 128][random.bits() as usize % 2];
        let tokens = 1 + random.bits() as usize % 160;
        let keys = adversarial(&mut random, dtype, tokens, d);
        let filled = Filled::with_keys(d, MirrorFormat::new(mirror, group).unwrap(), &keys, case);
        let view = filled.view();
        let spread = [1e-4, 1.0, 1.0, 8.0, 300.0][random.bits() as usize % 5];
        let q: Vec<f32> = match random.bits() % 4 {
            // Aligned with a key, so that the score is as large as it can be.
            0 => view.key_values(random.bits() as usize % tokens).collect(),
            1 => (0..d).map(|_| if random.bits().is_multiple_of(8) { spread } else { 0.0 }).collect(),
            _ => (0..d).map(|_| spread * random.normal()).collect(),
        };
        let q: Vec<f32> =
            q.iter().map(|&x| half::bf16::from_f32(x).to_f32()).filter(|x| x.is_finite()).collect();
        if q.len() < d {
            continue;
        }
        let scale = 1.0 / (d as f32).sqrt();
        let scored = score(&view, &*filled.estimator, &q, scale, true);
        let qs: Vec<f64> = q.iter().map(|&x| x as f64 * scale as f64 * std::f64::consts::LOG2_E).collect();
        let exact = |t: usize| view.key_values(t).zip(&qs).map(|(k, q)| k as f64 * q).sum::<f64>();
        let scaled: Vec<f32> = q.iter().map(|&x| x * scale * LOG2_E).collect();
        for block in 0..view.blocks() {
            let scores: Vec<f64> =
                (block * BLOCK..block * BLOCK + view.tokens_of_block(block)).map(exact).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mass = top + scores.iter().map(|s| (s - top).exp2()).sum::<f64>().log2();
            let bound = scored.bound[0][block] as f64;
            // 1e30 stands for no bound.
            assert!(
                mass <= bound || bound >= 1e30,
                "case {case}: {mirror} in {group}, {dtype}, {d} dims, block {block}: {mass} above {bound}"
            );
            finite += u64::from(bound < 1e30);
            if scored.rounding[0].is_finite() {
                for (i, score) in scores.iter().enumerate() {
                    let f32_score = exact_score(&view, &scaled, block * BLOCK + i) as f64;
                    assert!((f32_score - score).abs() <= scored.rounding[0] as f64 + 1e-30, "case {case}");
                }
            }
        }
    }
    assert!(finite > 2 * cases(), "{finite} bounds that say something");
}

#[test]
fn mirrors_say_nothing_of_keys_beyond_their_range() {
    // A step of 15 levels up to 2e6 is beyond f16, as is a zero of -1e30.
    for value in [2e6f32, -1e30] {
        let keys = (0..64 * 64).map(|i| if i == 1234 { value } else { 1.0 });
        let format = MirrorFormat::new(Mirror::Bits4, 64).unwrap();
        let filled = Filled::with_keys(64, format, &Tensor::new(Dtype::Bf16, keys), 1);
        let estimator = estimator(format, &SHAPE);
        assert_eq!(estimator.bound(filled.view().page(0), &[0.1; 64]), Bound::NONE);
    }
}
