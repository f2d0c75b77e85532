//! Decode steps: every specialisation, every length that is special, long rows, top-ups, ties, nothing forced,
//! recorded queries, and random shapes; each compared with the reference, then replayed, then in another batch.

use psa::traces::{Case as Trace, Elements, Traces};
use psa::{Budget, CacheConfig, Capacity, DecodePlan, Device, Dtype, Forced, KvCache, Mirror, Policy, Shape};
use psa_tests::{Rng, Sequence, Tensor, Workload, run_forced};

use super::{Extent, Options, Verdict, compare};

/// One decode step.
pub struct Case {
    /// For people: seeds and shapes included, so that a failure can be run again.
    pub name: String,
    workload: Workload,
    mirror: Mirror,
    policy: Policy,
    forced: Forced,
    /// Replay it, and run it in another batch.
    stable: bool,
}

impl Case {
    fn new(what: &str, workload: Workload, mirror: Mirror, policy: Policy) -> Case {
        let lengths: Vec<usize> = workload.sequences.iter().map(|s| s.tokens).collect();
        let shape = workload.shape;
        let dtype = if shape.dtype == Dtype::Bf16 { "bf16" } else { "f16" };
        let mirror_name = if mirror == Mirror::Box { "box".to_owned() } else { format!("{mirror} bits") };
        let name = format!(
            "{what}: {dtype}, {} KV heads of {} query heads, {} dims, {mirror_name}, {policy}, lengths {lengths:?}",
            shape.kv_heads,
            shape.group(),
            shape.head_dim
        );
        Case { name, workload, mirror, policy, forced: Forced::default(), stable: false }
    }

    fn stable(mut self) -> Case {
        self.stable = true;
        self
    }

    /// Runs the case on `device`.
    pub fn run(&self, device: &Device, replays: usize) -> Verdict {
        let failed = |e: psa::Error| e.to_string();
        let one = |device: &Device, workload: &Workload| {
            run_forced(device, workload, self.mirror, self.policy, self.forced).map_err(failed)
        };
        let reference = one(&Device::reference(), &self.workload)?;
        let got = one(device, &self.workload)?;
        let worst = compare::step(&self.workload, &reference, &got)?;
        if !self.stable {
            return Ok(worst);
        }
        self.replay(device, replays)?;
        let n = self.workload.sequences.len();
        let turned: Vec<usize> = (0..n).map(|i| (i + 1) % n).rev().collect();
        let alone: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
        for order in std::iter::once(&turned).chain(&alone) {
            let other = one(device, &self.workload.pick(order))?;
            for (place, &i) in order.iter().enumerate() {
                if got.bits(i) != other.bits(place) || got.selection[i] != other.selection[place] {
                    return Err(format!("sequence {i} has other bits in the batch {order:?}"));
                }
            }
        }
        Ok(worst)
    }

    /// The same step of the same cache, again and again.
    fn replay(&self, device: &Device, replays: usize) -> Result<(), String> {
        let failed = |e: psa::Error| e.to_string();
        let shape = self.workload.shape;
        let tokens: usize = self.workload.sequences.iter().map(|s| s.tokens.next_multiple_of(16)).sum();
        let config = CacheConfig {
            capacity: Capacity::Tokens(tokens.max(16)),
            max_sequences: self.workload.sequences.len(),
            mirror: self.mirror,
            forced: self.forced,
            ..CacheConfig::default()
        };
        let mut cache = KvCache::new(device, shape, config).map_err(failed)?;
        let mut ids = Vec::new();
        for s in &self.workload.sequences {
            let id = cache.add_sequence().map_err(failed)?;
            cache.append(id, 0, s.k.all(), s.v.all()).map_err(failed)?;
            ids.push(id);
        }
        let q: Vec<f32> =
            self.workload.sequences.iter().flat_map(|s| s.q.to_f64()).map(|x| x as f32).collect();
        let q = Tensor::new(shape.dtype, &q);
        let mut plan = DecodePlan::new(&cache, &ids, self.policy).map_err(failed)?;
        let mut first = None;
        for replay in 0..=replays {
            let mut out = vec![f32::NAN; ids.len() * shape.query_elements()];
            let mut lse = vec![f32::NAN; ids.len() * shape.q_heads];
            plan.attend_with_lse(&mut cache, 0, q.all(), &mut out, &mut lse).map_err(failed)?;
            let bits: Vec<u32> = out.iter().chain(&lse).map(|x| x.to_bits()).collect();
            if *first.get_or_insert_with(|| bits.clone()) != bits {
                return Err(format!("replay {replay} has other bits than the first run"));
            }
        }
        Ok(())
    }
}

fn shape(kv_heads: usize, group: usize, head_dim: usize, dtype: Dtype) -> Shape {
    Shape { layers: 1, q_heads: kv_heads * group, kv_heads, head_dim, dtype }
}

/// The cases of an extent.
pub fn all(options: &Options<'_>) -> Vec<Case> {
    let mut cases = specialisations(options.extent);
    if options.extent == Extent::Smoke {
        return cases;
    }
    lengths(options.extent, &mut cases);
    long_rows(options.extent, &mut cases);
    odd_ones(&mut cases);
    for seed in options.seed..options.seed + 10 {
        cases.push(random(seed, options.extent));
    }
    if let Some(traces) = options.traces {
        recorded(traces, options.extent, &mut cases);
    }
    cases
}

/// Every instance of append, score, refine, attend and merge; `plan_n512` and `plan_identity` on the way.
fn specialisations(extent: Extent) -> Vec<Case> {
    let groups: &[usize] = match extent {
        Extent::Smoke | Extent::Quick => &[1, 2, 4, 8],
        Extent::Full => &[1, 2, 3, 4, 5, 6, 7, 8],
    };
    let lengths: &[usize] = if extent == Extent::Smoke { &[150, 1] } else { &[200, 1, 65, 391] };
    let mut cases = Vec::new();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for head_dim in [64, 128] {
            for &group in groups {
                let kv_heads = if extent == Extent::Full { 2 } else { 1 };
                let workload =
                    Workload::random(shape(kv_heads, group, head_dim, dtype), lengths, group as u64);
                let mut runs = vec![
                    (Mirror::Nested, Policy::Progressive { mass: 0.9 }),
                    (Mirror::Bits2, Policy::Progressive { mass: 0.9 }),
                    (Mirror::Bits4, Policy::TopP { mass: 0.9 }),
                    (Mirror::Box, Policy::Quest(Budget::Blocks(9))),
                    (Mirror::Nested, Policy::Dense),
                ];
                if extent == Extent::Smoke && group != 1 {
                    runs.truncate(1);
                }
                for (mirror, policy) in runs {
                    let case = Case::new("specialisation", workload.clone(), mirror, policy);
                    let stable = mirror == Mirror::Nested && (extent == Extent::Full || group == 4);
                    cases.push(if stable { case.stable() } else { case });
                }
            }
        }
    }
    cases
}

fn lengths(extent: Extent, cases: &mut Vec<Case>) {
    let lengths: &[usize] = match extent {
        Extent::Full => &[1, 15, 16, 17, 63, 64, 65, 128, 255, 256, 257, 1000, 1024, 1025],
        _ => &[1, 15, 16, 17, 63, 64, 65, 257],
    };
    for (i, &n) in lengths.iter().enumerate() {
        let workload = Workload::random(shape(1, 3, 64, Dtype::F16), &[n], 10 + i as u64);
        for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }, Policy::TopK(Budget::Fraction(0.3))]
        {
            cases.push(Case::new("length", workload.clone(), Mirror::Nested, policy));
        }
    }
}

/// Rows that need the larger instances of plan, and all 64 splits.
fn long_rows(extent: Extent, cases: &mut Vec<Case>) {
    let progressive = Policy::Progressive { mass: 0.95 };
    let top_k = Policy::TopK(Budget::Fraction(0.1));
    let mut push = |tokens: usize, group, seed, mirror, policy| {
        let workload = Workload::random(shape(1, group, 64, Dtype::Bf16), &[tokens], seed);
        cases.push(Case::new("long row", workload, mirror, policy));
    };
    push(8_200, 1, 20, Mirror::Nested, progressive);
    push(33_000, 1, 21, Mirror::Nested, top_k);
    if extent == Extent::Full {
        push(8_200, 8, 22, Mirror::Bits4, top_k);
        push(32_768, 4, 23, Mirror::Bits4, progressive);
        push(65_537, 2, 24, Mirror::Nested, progressive);
        push(131_072, 1, 25, Mirror::Nested, Policy::Dense);
        push(131_072, 1, 25, Mirror::Nested, progressive);
        push(20_000, 4, 26, Mirror::Box, Policy::Quest(Budget::Fraction(0.1)));
    }
}

/// Top-ups, ties, nothing forced, sequences without tokens, large scores.
fn odd_ones(cases: &mut Vec<Case>) {
    let sharp = Workload::random(shape(2, 4, 64, Dtype::F16), &[700, 1200], 30).sharpened(2.5);
    for mass in [0.8, 0.97] {
        let policy = Policy::Progressive { mass };
        cases.push(Case::new("top-ups", sharp.clone(), Mirror::Nested, policy).stable());
    }
    let mut tied = Workload::random(shape(1, 2, 64, Dtype::F16), &[512], 60);
    if let Tensor::F16(k) = &mut tied.sequences[0].k {
        let first = k[..64].to_vec();
        k.chunks_mut(64).for_each(|row| row.copy_from_slice(&first));
    }
    cases.push(Case::new("ties", tied, Mirror::Nested, Policy::TopK(Budget::Blocks(10))));
    let free = Workload::random(shape(1, 2, 64, Dtype::F16), &[128, 640], 40);
    for policy in [Policy::TopK(Budget::Blocks(1)), Policy::Progressive { mass: 0.5 }] {
        let mut case = Case::new("nothing forced", free.clone(), Mirror::Nested, policy);
        case.forced = Forced { sink: 0, recent: 0 };
        cases.push(case);
    }
    let empty = Workload::random(shape(2, 2, 64, Dtype::Bf16), &[0, 33], 50);
    cases.push(Case::new("no tokens", empty, Mirror::Nested, Policy::Progressive { mass: 0.95 }));
    let large = Workload::random(shape(1, 2, 128, Dtype::Bf16), &[300], 70).sharpened(30.0);
    cases.push(Case::new("large scores", large, Mirror::Bits4, Policy::Progressive { mass: 0.95 }));
}

/// A random shape, mirror, policy and batch.
pub fn random(seed: u64, extent: Extent) -> Case {
    let mut rng = Rng(seed.wrapping_mul(0x1_0001) + 0x5eed);
    let dtype = if rng.below(2) == 0 { Dtype::F16 } else { Dtype::Bf16 };
    let head_dim = [64, 128][rng.below(2)];
    let (kv_heads, group) = (1 + rng.below(3), 1 + rng.below(8));
    let mirror = [Mirror::Nested, Mirror::Bits2, Mirror::Bits4, Mirror::Box][rng.below(4)];
    let budget =
        if rng.below(2) == 0 { Budget::Fraction(0.4) } else { Budget::Blocks(1 + rng.below(20) as u32) };
    let mass = 0.5 + 0.49 * rng.below(1000) as f32 / 1000.0;
    let policy = match (mirror, rng.below(4)) {
        (_, 0) => Policy::Dense,
        (Mirror::Box, _) => Policy::Quest(budget),
        (_, 1) => Policy::TopK(budget),
        (_, 2) => Policy::TopP { mass },
        _ => Policy::Progressive { mass },
    };
    let longest = if extent == Extent::Full { 3000 } else { 500 };
    let lengths: Vec<usize> = (0..1 + rng.below(4)).map(|_| rng.below(longest)).collect();
    let sharpness = [0.3, 1.0, 2.0][rng.below(3)];
    let workload =
        Workload::random(shape(kv_heads, group, head_dim, dtype), &lengths, seed).sharpened(sharpness);
    Case::new(&format!("seed {seed}"), workload, mirror, policy).stable()
}

/// The last query of recorded cases.
fn recorded(traces: &Traces, extent: Extent, cases: &mut Vec<Case>) {
    let take = if extent == Extent::Full { traces.cases.len() } else { 2 };
    for trace in traces.cases.iter().take(take) {
        let shape = Shape {
            layers: 1,
            q_heads: trace.group,
            kv_heads: 1,
            head_dim: trace.head_dim,
            dtype: if matches!(trace.q, Elements::F16(_)) { Dtype::F16 } else { Dtype::Bf16 },
        };
        if shape.validate().is_err() {
            continue;
        }
        let workload = Workload { shape, sequences: vec![last_step(trace)] };
        for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }] {
            cases.push(Case::new(&format!("trace {}", trace.name), workload.clone(), Mirror::Nested, policy));
        }
    }
}

fn last_step(trace: &Trace) -> Sequence {
    let tensor = |x: &Elements| match x {
        Elements::F16(x) => Tensor::F16(x.clone()),
        Elements::Bf16(x) => Tensor::Bf16(x.clone()),
    };
    Sequence {
        tokens: trace.context,
        k: tensor(&trace.k),
        v: tensor(&trace.v),
        q: tensor(&trace.query(trace.queries - 1)),
    }
}
