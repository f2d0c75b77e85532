//! What is read: the same blocks on every backend, and as much as the policy promises.

mod common;

use common::{Batch, step};
use psa::{BlockLimits, Budget, DecodePlan, Device, Dtype, Mirror, Path, Policy, Shape};

const LENGTHS: [usize; 9] = [1, 15, 16, 17, 63, 64, 65, 130, 1000];

fn policies(mirror: Mirror) -> Vec<Policy> {
    match mirror {
        Mirror::Box => vec![Policy::Quest(Budget::Fraction(0.3)), Policy::Quest(Budget::Blocks(5))],
        _ => vec![
            Policy::Dense,
            Policy::TopK(Budget::Fraction(0.2)),
            Policy::TopP { mass: 0.9 },
            Policy::Progressive { mass: 0.5 },
            Policy::Progressive { mass: 0.95 },
            Policy::Oracle { mass: 0.9 },
        ],
    }
}

fn shapes() -> impl Iterator<Item = Shape> {
    [64, 128].into_iter().flat_map(|head_dim| {
        [Dtype::F16, Dtype::Bf16].into_iter().flat_map(move |dtype| {
            [1, 3, 4, 8].into_iter().map(move |group| Shape {
                layers: 1,
                q_heads: 2 * group,
                kv_heads: 2,
                head_dim,
                dtype,
            })
        })
    })
}

/// How far f32 attention over the batch may be from f64: outputs, and natural logarithms.
fn bounds(batch: &Batch) -> (f32, f32) {
    let d = batch.shape.head_dim;
    let values = |x: &common::Tensor| -> Vec<f32> {
        x.rows().bits().iter().map(|&x| psa::widen(batch.shape.dtype, x)).collect()
    };
    let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let longest = |tensors: &[common::Tensor]| {
        tensors.iter().flat_map(|x| values(x).chunks(d).map(norm).collect::<Vec<_>>()).fold(0.0, f32::max)
    };
    let largest = batch.v.iter().flat_map(values).fold(0.0f32, |m, x| m.max(x.abs()));
    // A score is d / 16 fused steps, 4 additions and 2 products of the query, each rounded to
    // 2^-24, of terms whose magnitudes add up to at most |q| |k| / sqrt(d).
    let score =
        (d / 16 + 4 + 2) as f32 * 2f32.powi(-24) * longest(&batch.q) * longest(&batch.k) / (d as f32).sqrt();
    // A weight: that, and two exp2 of 2e-7 (its own, its part's). A sum of at most 16 blocks of 16 tokens
    // a split, rescaled each block, over at most 5 splits, then top-ups.
    let weight = score + 4e-7;
    let sum = (16 * 16 + 16 + 2 * 5 + 2 * 8) as f32 * 2f32.powi(-24);
    (2.0 * (weight + sum) * largest, weight + sum + 1e-6)
}

#[test]
fn cpu_reads_the_blocks_that_the_reference_reads() {
    let all: Vec<usize> = (0..LENGTHS.len()).collect();
    let (mut sparse, mut topped_up) = (0, 0);
    for (seed, shape) in shapes().enumerate() {
        let batch = Batch::random(shape, &LENGTHS, seed as u64);
        let (out_bound, lse_bound) = bounds(&batch);
        for mirror in [Mirror::Bits2, Mirror::Bits4, Mirror::Box] {
            let (mut fast, fast_seqs) = batch.cache(&Device::cpu(), mirror);
            let (mut plain, plain_seqs) = batch.cache(&Device::reference(), mirror);
            for policy in policies(mirror) {
                let what = format!("{shape:?}, mirror {mirror}, {policy}");
                let a = step(&batch, &mut fast, &fast_seqs, &all, policy);
                let b = step(&batch, &mut plain, &plain_seqs, &all, policy);
                for (entry, tokens) in LENGTHS.iter().enumerate() {
                    for head in 0..shape.kv_heads {
                        let (x, y) = (a.plan.selection(0, entry, head), b.plan.selection(0, entry, head));
                        assert_eq!(x.unwrap(), y.unwrap(), "{what}, {tokens} tokens");
                    }
                    for head in 0..shape.q_heads {
                        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        let (x, y) = (a.plan.log_mass(0, entry, head), b.plan.log_mass(0, entry, head));
                        assert_eq!(x.map(bits), y.map(bits), "{what}, {tokens} tokens");
                    }
                }
                for (x, y) in a.report.heads.iter().zip(&b.report.heads) {
                    assert_eq!(
                        (x.blocks_read, x.topups, x.path),
                        (y.blocks_read, y.topups, y.path),
                        "{what}"
                    );
                    assert!(x.mass.iter().zip(&y.mass).all(|(a, b)| (a - b).abs() < 1e-5), "{what}");
                    sparse += (x.path == Path::Planned) as usize;
                    topped_up += (x.path == Path::ToppedUp) as usize;
                }
                for (x, y) in a.out.iter().zip(&b.out) {
                    assert!((x - y).abs() <= out_bound, "{what}: {x} and {y}, bound {out_bound:e}");
                }
                for (x, y) in a.lse.iter().zip(&b.lse) {
                    assert!((x - y).abs() <= lse_bound, "{what}: lse {x} and {y}, bound {lse_bound:e}");
                }
            }
        }
    }
    assert!(
        sparse > 100 && topped_up > 20,
        "{sparse} sparse plans, {topped_up} with top-ups: too few to mean much"
    );
}

/// Selections, masses and metadata of every page format, group and unit, by every policy that it serves.
#[test]
fn every_estimator_group_and_unit_gives_the_same_plan_on_cpu_and_reference() {
    let lengths = [1, 31, 33, 200, 513, 1000];
    let all: Vec<usize> = (0..lengths.len()).collect();
    let shapes = [(64, Dtype::F16, 3), (128, Dtype::Bf16, 1), (64, Dtype::Bf16, 8)];
    let (mut sparse, mut certain) = (0, 0);
    for (seed, (head_dim, dtype, group)) in shapes.into_iter().enumerate() {
        let shape = Shape { layers: 1, q_heads: group, kv_heads: 1, head_dim, dtype };
        let batch = Batch::random(shape, &lengths, 50 + seed as u64);
        for (i, mirror) in Mirror::ALL.into_iter().enumerate() {
            let budget = Budget::Fraction(0.3);
            let policies = match mirror {
                Mirror::Box => vec![Policy::Quest(budget), Policy::Certified { missed: 0.2 }],
                Mirror::Mean => vec![Policy::Mean(budget), Policy::Progressive { mass: 0.9 }],
                Mirror::Cuboid => vec![Policy::Cuboid(budget), Policy::TopP { mass: 0.9 }],
                Mirror::MeanVariance | Mirror::Representatives => vec![Policy::Progressive { mass: 0.9 }],
                _ => vec![
                    Policy::Progressive { mass: 0.9 },
                    Policy::TopK(budget),
                    Policy::Certified { missed: 0.2 },
                ],
            };
            for (j, quant_group) in psa::QUANT_GROUPS.into_iter().enumerate() {
                let unit = [16, 32, 64][(i + j) % 3];
                let config = psa::CacheConfig { quant_group, unit, ..batch.config(mirror) };
                let (mut fast, fast_seqs) = batch.cache_with(&Device::cpu(), config);
                let (mut plain, plain_seqs) = batch.cache_with(&Device::reference(), config);
                for &policy in &policies {
                    let what =
                        format!("{shape:?}, mirror {mirror} in {quant_group}, units of {unit}, {policy}");
                    let a = step(&batch, &mut fast, &fast_seqs, &all, policy);
                    let b = step(&batch, &mut plain, &plain_seqs, &all, policy);
                    for entry in 0..lengths.len() {
                        assert_eq!(a.plan.selection(0, entry, 0), b.plan.selection(0, entry, 0), "{what}");
                        for head in 0..group {
                            let bits = |x: Option<&[f32]>| {
                                x.map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                            };
                            let (x, y) = (a.plan.log_mass(0, entry, head), b.plan.log_mass(0, entry, head));
                            assert_eq!(bits(x), bits(y), "{what}");
                        }
                    }
                    for (x, y) in a.report.heads.iter().zip(&b.report.heads) {
                        assert_eq!(
                            (x.blocks_read, x.topups, x.metadata_bytes, x.path),
                            (y.blocks_read, y.topups, y.metadata_bytes, y.path),
                            "{what}"
                        );
                        // Whole units only.
                        let blocks = a.plan.selection(0, x.entry, 0).unwrap();
                        let per_unit = unit / 16;
                        for &block in blocks {
                            let unit = block as usize / per_unit;
                            let mates =
                                (unit * per_unit..(unit + 1) * per_unit).filter(|&b| b < x.blocks_total);
                            assert!(
                                mates.clone().all(|b| blocks.contains(&(b as u32))) || x.topups > 0,
                                "{what}"
                            );
                        }
                        sparse += usize::from(x.blocks_read < x.blocks_total);
                        certain += usize::from(x.missed_bound.is_some() && x.blocks_read < x.blocks_total);
                    }
                }
            }
        }
    }
    assert!(sparse > 200 && certain > 20, "{sparse} sparse, {certain} certain: too few to mean much");
}

#[test]
fn progressive_believes_its_mass_of_every_head_unless_everything_is_read() {
    let shape = Shape { layers: 1, q_heads: 12, kv_heads: 3, head_dim: 64, dtype: Dtype::F16 };
    let batch = Batch::random(shape, &[500, 1000, 1500], 77);
    for mirror in [Mirror::Bits2, Mirror::Bits4] {
        let (mut cache, sequences) = batch.cache(&Device::cpu(), mirror);
        let mut previous = 0;
        for mass in [0.3, 0.5, 0.8, 0.95, 0.99] {
            let report =
                step(&batch, &mut cache, &sequences, &[0, 1, 2], Policy::Progressive { mass }).report;
            for head in &report.heads {
                assert!(
                    head.blocks_read == head.blocks_total || head.mass.iter().all(|&m| m >= mass - 1e-6),
                    "{head:?}"
                );
                assert!(head.blocks_read >= 3 && head.blocks_read <= head.blocks_total);
            }
            assert!(report.blocks_read() > previous && report.blocks_read() < report.blocks_total());
            previous = report.blocks_read();
        }
    }
}

#[test]
fn floors_and_caps_hold_and_are_checked() {
    let shape = Shape { layers: 2, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    let batch = Batch::random(Shape { layers: 1, ..shape }, &[1000, 700], 31);
    for device in [Device::cpu(), Device::reference()] {
        let (mut cache, sequences) = batch.cache(&device, Mirror::Bits4);
        let mut plan =
            DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: 0.5 }).unwrap().with_record();
        let mut out = vec![0.0; 2 * shape.query_elements()];
        let (floor, cap) = (BlockLimits { min: 40, max: u32::MAX }, BlockLimits { min: 0, max: 6 });
        plan.set_block_limits(&[floor, cap]).unwrap();
        plan.attend(&mut cache, 0, batch.queries(&[0, 1]).rows(), &mut out).unwrap();
        for head in plan.report().heads {
            match head.entry {
                0 => assert!(head.blocks_read >= 40 && head.blocks_read < 63, "{head:?}"),
                // 700 tokens: 44 blocks, 4 of them in the open group, and the sink.
                _ => assert_eq!(head.blocks_read, 6, "{head:?}"),
            }
        }
        let error = plan.set_block_limits(&[cap]).unwrap_err().to_string();
        assert!(error.contains("[batch = 2]"), "{error}");
        let error = plan.set_block_limits(&[cap, BlockLimits { min: 9, max: 6 }]).unwrap_err().to_string();
        assert!(error.contains("at least 9 and at most 6"), "{error}");
    }
    // Caps run on the kernels; floors say that they do not.
    let (mut cache, sequences) = batch.cache(&Device::emulator(), Mirror::Bits4);
    let mut plan = DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: 0.5 }).unwrap();
    let mut out = vec![0.0; 2 * shape.query_elements()];
    plan.set_block_limits(&[BlockLimits { min: 0, max: 6 }; 2]).unwrap();
    plan.attend(&mut cache, 0, batch.queries(&[0, 1]).rows(), &mut out).unwrap();
    assert!(plan.report().heads.iter().all(|head| head.blocks_read <= 6), "{:?}", plan.report());
    plan.set_block_limits(&[BlockLimits { min: 9, max: 60 }; 2]).unwrap();
    let error = plan.attend(&mut cache, 0, batch.queries(&[0, 1]).rows(), &mut out).unwrap_err();
    assert!(error.to_string().contains("without a floor"), "{error}");
    // Dense reads everything: a floor says nothing, and is no reason to refuse.
    let mut plan = DecodePlan::new(&cache, &sequences, Policy::Dense).unwrap();
    plan.set_block_limits(&[BlockLimits { min: 9, max: 60 }; 2]).unwrap();
    plan.attend(&mut cache, 0, batch.queries(&[0, 1]).rows(), &mut out).unwrap();
    assert_eq!(plan.report().blocks_read(), plan.report().blocks_total());
}

#[test]
fn layers_and_heads_may_have_masses_of_their_own() {
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    let batch = Batch::random(shape, &[1000], 32);
    let read = |device: &Device, masses: [f32; 2]| {
        let (mut cache, sequences) = batch.cache(device, Mirror::Bits4);
        let mut plan = DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: 0.5 }).unwrap();
        for (head, mass) in masses.into_iter().enumerate() {
            plan.set_head_policy(0, head, Policy::Progressive { mass }).unwrap();
        }
        let mut out = vec![0.0; shape.query_elements()];
        plan.attend(&mut cache, 0, batch.queries(&[0]).rows(), &mut out)?;
        Ok::<_, psa::Error>(plan.report().heads.iter().map(|h| h.blocks_read).collect::<Vec<_>>())
    };
    let cpu = Device::cpu();
    let (low, high) = (read(&cpu, [0.5, 0.5]).unwrap(), read(&cpu, [0.95, 0.95]).unwrap());
    let mixed = read(&cpu, [0.5, 0.95]).unwrap();
    assert_eq!(mixed, [low[0], high[1]]);
    assert_eq!(read(&Device::reference(), [0.5, 0.95]).unwrap(), mixed);
    assert_eq!(read(&cpu, [1.0, 0.5]).unwrap(), [63, low[1]]);
    let error = read(&Device::emulator(), [0.5, 0.95]).unwrap_err().to_string();
    assert!(error.contains("one mass for all KV heads"), "{error}");

    let (cache, sequences) = batch.cache(&cpu, Mirror::Bits4);
    let mut plan = DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: 0.5 }).unwrap();
    for (layer, policy, expected) in [
        (0, Policy::Dense, "the plan is progressive:0.5"),
        (0, Policy::Progressive { mass: 1.5 }, "at most 1"),
        (3, Policy::Progressive { mass: 0.9 }, "layer 3"),
    ] {
        let error = plan.set_layer_policy(layer, policy).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_oracle_reads_no_more_than_progressive() {
    let shape = Shape { layers: 1, q_heads: 8, kv_heads: 2, head_dim: 64, dtype: Dtype::Bf16 };
    let lengths = [300, 700, 1100];
    for seed in 0..4 {
        let batch = Batch::random(shape, &lengths, 900 + seed);
        let (mut cache, sequences) = batch.cache(&Device::cpu(), Mirror::Bits2);
        for mass in [0.6, 0.8, 0.95] {
            let mut read =
                |policy| step(&batch, &mut cache, &sequences, &[0, 1, 2], policy).report.blocks_read();
            let (oracle, progressive) = (read(Policy::Oracle { mass }), read(Policy::Progressive { mass }));
            assert!(oracle <= progressive, "oracle {oracle}, progressive {progressive} at {mass}");
        }
    }
}

#[test]
fn forced_blocks_are_read_whatever_the_budget() {
    let shape = Shape { layers: 1, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
    let batch = Batch::random(shape, &[1010], 5); // 64 blocks, the last 4 in the open group
    let (mut cache, sequences) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let step = step(&batch, &mut cache, &sequences, &[0], Policy::TopK(Budget::Blocks(1)));
    assert_eq!(step.plan.selection(0, 0, 0).unwrap(), [0, 60, 61, 62, 63]);
    let head = &step.report.heads[0];
    assert_eq!((head.blocks_read, head.blocks_total, head.path), (5, 64, Path::Planned));
    assert_eq!(head.metadata_bytes, 15 * (64 * 4 + 64 * 16));
}

#[test]
fn any_finite_keys_and_queries_give_the_same_plan_everywhere_and_finite_outputs() {
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 1, head_dim: 64, dtype: Dtype::Bf16 };
    // From subnormal to the largest bf16, both signs.
    let wild = |n: usize, seed: u64| {
        let mut random = common::Random(seed);
        let values = (0..n).map(move |_| {
            let magnitude = (random.normal() * 60.0).clamp(-132.0, 127.9);
            (magnitude as f64).exp2() as f32 * if random.normal() > 0.0 { 1.0 } else { -1.0 }
        });
        common::Tensor::new(Dtype::Bf16, values)
    };
    for seed in 0..4 {
        let mut batch = Batch::random(shape, &[700, 200], seed);
        for (i, tokens) in [700, 200].into_iter().enumerate() {
            batch.k[i] = wild(tokens * 64, 10 * seed + i as u64);
            batch.q[i] = if seed < 2 {
                wild(4 * 64, 100 + seed)
            } else {
                Batch::random(shape, &[1], seed).q.remove(0)
            };
        }
        for mirror in [Mirror::Bits2, Mirror::Bits4, Mirror::Box] {
            let policy = match mirror {
                Mirror::Box => Policy::Quest(Budget::Fraction(0.3)),
                _ => Policy::Progressive { mass: 0.9 },
            };
            let [a, b] = [Device::cpu(), Device::reference()].map(|device| {
                let (mut cache, sequences) = batch.cache(&device, mirror);
                step(&batch, &mut cache, &sequences, &[0, 1], policy)
            });
            assert!(a.out.iter().chain(&b.out).all(|x| x.is_finite()));
            for entry in 0..2 {
                for head in 0..4 {
                    let bits =
                        |x: Option<&[f32]>| x.map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
                    assert_eq!(bits(a.plan.log_mass(0, entry, head)), bits(b.plan.log_mass(0, entry, head)));
                }
            }
        }
    }
}
