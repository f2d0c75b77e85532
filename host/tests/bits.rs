//! The same bits, whatever surrounds a sequence: batch, threads, vector width, appends in pieces.

mod common;

use common::{Batch, step};
use psa::cpu::{Cpu, Isa};
use psa::{BlockLimits, Budget, DecodePlan, Device, Dtype, KvCache, Mirror, Path, Policy, Shape};

const SHAPE: Shape = Shape { layers: 1, q_heads: 6, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
const LENGTHS: [usize; 5] = [70, 1, 640, 333, 1025];
const ALL: [usize; 5] = [0, 1, 2, 3, 4];
const PROGRESSIVE: Policy = Policy::Progressive { mass: 0.9 };

#[test]
fn plans_of_everything_have_the_bits_of_dense_attention() {
    let batch = Batch::random(SHAPE, &LENGTHS, 1);
    for device in [Device::cpu(), Device::reference()] {
        for mirror in [Mirror::Bits2, Mirror::Box] {
            let (mut cache, sequences) = batch.cache(&device, mirror);
            let dense = step(&batch, &mut cache, &sequences, &ALL, Policy::Dense);
            assert!(dense.report.heads.iter().all(|h| h.path == Path::Dense && h.metadata_bytes == 0));
            let mut policies = vec![Policy::Oracle { mass: 1.0 }, Policy::Progressive { mass: 1.0 }];
            match mirror {
                Mirror::Box => policies.push(Policy::Quest(Budget::Fraction(1.0))),
                _ => policies.extend([
                    Policy::TopP { mass: 1.0 },
                    Policy::TopK(Budget::Fraction(1.0)),
                    Policy::TopK(Budget::Blocks(65)),
                    Policy::TopK(Budget::Blocks(u32::MAX)),
                ]),
            }
            for policy in policies {
                let other = step(&batch, &mut cache, &sequences, &ALL, policy);
                assert_eq!(other.bits(), dense.bits(), "{policy} on {}", device.name());
                assert_eq!(other.report.blocks_read(), other.report.blocks_total());
            }
        }
    }
}

#[test]
fn short_contexts_read_no_metadata_and_longer_ones_do() {
    for mirror in [Mirror::Bits2, Mirror::Bits4, Mirror::Nested, Mirror::Box] {
        let policies = match mirror {
            Mirror::Box => vec![Policy::Quest(Budget::Fraction(0.1))],
            _ => vec![
                Policy::Progressive { mass: 0.1 },
                Policy::TopP { mass: 0.1 },
                Policy::Certified { missed: 0.5 },
                Policy::TopK(Budget::Blocks(1)),
            ],
        };
        for device in [Device::cpu(), Device::reference()] {
            for policy in &policies {
                // Where nothing is left to choose a budget does not matter; elsewhere it is kept.
                let budget = matches!(policy, Policy::Quest(_) | Policy::TopK(_));
                for tokens in [1, 16, 17, 48, 63, 64, 80, 127, 128, 300] {
                    let batch = Batch::random(SHAPE, &[tokens], tokens as u64);
                    let (mut cache, sequences) = batch.cache(&device, mirror);
                    let dense = step(&batch, &mut cache, &sequences, &[0], Policy::Dense);
                    let sparse = step(&batch, &mut cache, &sequences, &[0], *policy);
                    let whole = tokens < if budget { 64 } else { 128 };
                    let what = format!("{policy} on {mirror}, {tokens} tokens, {}", device.name());
                    for head in &sparse.report.heads {
                        assert_eq!(head.metadata_bytes == 0, whole, "{what}");
                        assert!(!whole || head.path == Path::Identity, "{what}: {:?}", head.path);
                        assert!(
                            !whole || head.mass.iter().all(|&mass| mass == 1.0),
                            "{what}: {:?}",
                            head.mass
                        );
                    }
                    assert_eq!(sparse.plan.log_mass(0, 0, 0).is_none(), whole, "{what}");
                    if whole {
                        assert_eq!(sparse.bits(), dense.bits(), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_cap_is_kept_however_short_the_context() {
    let batch = Batch::random(SHAPE, &[127], 7);
    let (mut cache, sequences) = batch.cache(&Device::cpu(), Mirror::Bits2);
    let mut plan = DecodePlan::new(&cache, &sequences, Policy::Progressive { mass: 0.99 }).unwrap();
    plan.set_block_limits(&[BlockLimits { min: 0, max: 6 }]).unwrap();
    let mut out = vec![0.0; SHAPE.query_elements()];
    plan.attend(&mut cache, 0, batch.q[0].rows(), &mut out).unwrap();
    assert!(plan.report().heads.iter().all(|head| head.blocks_read == 6 && head.metadata_bytes > 0));
}

/// Kernels take one kind of plan a launch; a batch of both kinds is two steps there, and nobody can tell.
#[test]
fn short_and_long_sequences_of_a_batch_get_what_they_get_alone_on_kernels_too() {
    let batch = Batch::random(SHAPE, &[70, 1, 333, 127, 128], 11);
    let policy = Policy::Progressive { mass: 0.6 };
    for device in [Device::cpu(), Device::emulator()] {
        let (mut cache, sequences) = batch.cache(&device, Mirror::Bits2);
        let together = step(&batch, &mut cache, &sequences, &ALL, policy);
        let row = SHAPE.query_elements();
        for entry in ALL {
            let alone = step(&batch, &mut cache, &sequences, &[entry], policy);
            assert_eq!(together.out[entry * row..][..row], alone.out, "{} {entry}", device.name());
            assert_eq!(together.lse[entry * 6..][..6], alone.lse, "{} {entry}", device.name());
            for kv_head in 0..2 {
                let (a, b) = (&together.report.heads[2 * entry + kv_head], &alone.report.heads[kv_head]);
                assert_eq!(
                    (a.blocks_read, a.topups, a.metadata_bytes, a.path, &a.mass),
                    (b.blocks_read, b.topups, b.metadata_bytes, b.path, &b.mass),
                    "{} {entry}",
                    device.name()
                );
                assert_eq!(together.plan.selection(0, entry, kv_head), alone.plan.selection(0, 0, kv_head));
            }
            for q_head in 0..6 {
                assert_eq!(together.plan.log_mass(0, entry, q_head), alone.plan.log_mass(0, 0, q_head));
            }
        }
        let whole = |entry: usize| together.report.heads[2 * entry].metadata_bytes == 0;
        assert_eq!(ALL.map(whole), [true, true, false, true, false], "{}", device.name());
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_any_batch() {
    let batch = Batch::random(SHAPE, &LENGTHS, 2);
    let row = SHAPE.query_elements();
    for device in [Device::cpu(), Device::reference()] {
        let (mut cache, sequences) = batch.cache(&device, Mirror::Bits2);
        for policy in [Policy::Dense, PROGRESSIVE, Policy::TopK(Budget::Fraction(0.3))] {
            let alone: Vec<Vec<f32>> =
                ALL.map(|i| step(&batch, &mut cache, &sequences, &[i], policy).out).to_vec();
            for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 1, 0, 3]] {
                let together = step(&batch, &mut cache, &sequences, &order, policy);
                for (place, &i) in order.iter().enumerate() {
                    assert_eq!(
                        together.out[place * row..][..row],
                        alone[i],
                        "{policy}, sequence {i} at {place}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let batch = Batch::random(SHAPE, &LENGTHS, 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (mut cache, sequences) = batch.cache(&Device::cpu(), Mirror::Bits4);
            [Policy::Dense, PROGRESSIVE].map(|policy| {
                // Alone, the splits spread over the threads; together, the tasks do.
                let alone = step(&batch, &mut cache, &sequences, &[4], policy).bits();
                (alone, step(&batch, &mut cache, &sequences, &ALL, policy).bits())
            })
        })
    };
    let one = run(1);
    for threads in [2, 3, 16] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

/// Every level of instructions gives the bits of the first, the portable one.
fn all_widths_agree(batch: &Batch, mirror: Mirror, policy: Policy) {
    let run = |isa: Isa| {
        let device = Device::from_factory("cpu", move |spec| Ok(Box::new(Cpu::with_isa(spec, isa)?)));
        let (mut cache, sequences) = batch.cache(&device, mirror);
        step(batch, &mut cache, &sequences, &ALL, policy).bits()
    };
    let portable = run(Isa::available()[0]);
    for &isa in &Isa::available()[1..] {
        assert!(run(isa) == portable, "{isa}, {:?}, mirror {mirror}", batch.shape);
    }
}

#[test]
fn vector_width_changes_no_bit() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let batch = Batch::random(Shape { dtype, head_dim: 128, ..SHAPE }, &LENGTHS, 4);
        for mirror in [Mirror::Bits2, Mirror::Bits4, Mirror::Box] {
            let policy =
                if mirror == Mirror::Box { Policy::Quest(Budget::Fraction(0.4)) } else { PROGRESSIVE };
            all_widths_agree(&batch, mirror, policy);
        }
    }
}

#[test]
fn vector_width_changes_no_bit_for_any_group() {
    // Tiles are of 4, 2 and 1 query heads.
    for group in 1..=8 {
        for (head_dim, dtype) in [(64, Dtype::Bf16), (128, Dtype::F16), (128, Dtype::Bf16)] {
            let shape = Shape { q_heads: 2 * group, head_dim, dtype, ..SHAPE };
            all_widths_agree(&Batch::random(shape, &LENGTHS, 6), Mirror::Bits2, PROGRESSIVE);
        }
    }
}

#[test]
fn appending_in_pieces_gives_the_bits_of_one_append() {
    let batch = Batch::random(SHAPE, &[333], 5);
    let token = SHAPE.token_elements();
    for device in [Device::cpu(), Device::reference()] {
        let (mut whole, sequences) = batch.cache(&device, Mirror::Bits2);
        let expected = step(&batch, &mut whole, &sequences, &[0], PROGRESSIVE).bits();
        for piece in [1, 16, 17, 100] {
            let mut cache = KvCache::new(&device, SHAPE, batch.config(Mirror::Bits2)).unwrap();
            let sequence = cache.add_sequence().unwrap();
            for from in (0..333).step_by(piece) {
                let to = (from + piece).min(333);
                let (k, v) =
                    (batch.k[0].part(from * token, to * token), batch.v[0].part(from * token, to * token));
                if piece == 1 {
                    cache.append_batch(0, &[sequence], k, v).unwrap();
                } else {
                    cache.append(sequence, 0, k, v).unwrap();
                }
            }
            assert_eq!(cache.len(sequence), Ok(333));
            let got = step(&batch, &mut cache, &[sequence], &[0], PROGRESSIVE).bits();
            assert!(got == expected, "pieces of {piece} on {}", device.name());
        }
    }
}
