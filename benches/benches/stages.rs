//! The stages of a decode step on the CPU, as far as they can be told apart from outside: through
//! [`Backend`], with steps that make one of them do all the work.
//!
//! | bench | what runs |
//! |---|---|
//! | `append prompt` | all tokens of the workload into their slots, and all mirror pages |
//! | `append token` | one token a sequence, which fills a group: a slot's row and a mirror page |
//! | `score + plan` | a budget of one block: scores and ranks all, attends to one |
//! | `attend` | the identity plan: attends to all blocks, merges the splits, scores nothing |
//! | `merge top-ups` | plans one block, and merge reads on in chunks to 95 % of the mass; contains `score + plan` |
//!
//! Throughput of `score + plan` is in bytes of the mirror, of the others in bytes of K and V.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels_gpu::layout::{BLOCKS_PER_GROUP, QUANT_GROUP, blocks, full_groups};
use psa::backend::{AppendStep, Backend, BackendSpec, DecodeResult, DecodeStep, Ranking};
use psa::cpu::Cpu;
use psa::pool::Pool;
use psa::{Mirror, MirrorFormat, Rows};
use psa_benches::{kv_bytes, layer_8b, queries, traces};
use psa_tests::{Tensor, Workload};
use std::time::Duration;

/// A CPU backend with the workload in it, and room for results.
struct Stages {
    workload: Workload,
    mirror: Mirror,
    cpu: Cpu,
    pool: Pool,
    seqs: Vec<u32>,
    lens: Vec<u32>,
    /// All tokens, and the last one of each sequence: k, v.
    all: [Tensor; 2],
    last: [Tensor; 2],
    q: Tensor,
    out: Vec<f32>,
    lse: Vec<f32>,
    mass: Vec<f32>,
    read: Vec<u32>,
    metadata: Vec<u32>,
}

/// Rows of all sequences from token `from(sequence)` on, one after the other.
fn rows(workload: &Workload, of: fn(&psa_tests::Sequence) -> &Tensor, last_only: bool) -> Tensor {
    let row = workload.shape.token_elements();
    let values = workload.sequences.iter().flat_map(|s| {
        let first = if last_only { (s.tokens - 1) * row } else { 0 };
        of(s).to_f64()[first..].to_vec()
    });
    Tensor::new(workload.shape.dtype, &values.map(|x| x as f32).collect::<Vec<_>>())
}

/// Pages of 64 tokens.
fn format(mirror: Mirror) -> MirrorFormat {
    MirrorFormat::new(mirror, QUANT_GROUP).expect("64 is a group")
}

impl Stages {
    fn new(workload: Workload, mirror: Mirror) -> Stages {
        let shape = workload.shape;
        let tokens = workload.sequences.iter().map(|s| s.tokens);
        let slots = tokens.clone().map(blocks).sum::<usize>() * shape.kv_heads;
        let longest = tokens.clone().max().unwrap_or(0);
        let batch = workload.sequences.len();
        let mut pool = Pool::new(&shape, slots.next_multiple_of(BLOCKS_PER_GROUP), batch, longest);
        let growth: Vec<(usize, usize)> = tokens
            .clone()
            .map(|n| {
                let id = pool.add_sequence().expect("as many as the pool has");
                (pool.index(id).expect("just added"), n)
            })
            .collect();
        let reservation = pool.reserve(0, &growth).expect("as many as the pool has");
        pool.commit(reservation);
        let spec = BackendSpec {
            shape,
            format: format(mirror),
            slots: pool.slots(),
            pages: pool.pages(),
            hole: None,
            extents: pool.tables().extents,
        };
        let mut stages = Stages {
            cpu: Cpu::new(&spec).expect("memory for the workload"),
            seqs: growth.iter().map(|g| g.0 as u32).collect(),
            lens: growth.iter().map(|g| g.1 as u32).collect(),
            all: [rows(&workload, |s| &s.k, false), rows(&workload, |s| &s.v, false)],
            last: [rows(&workload, |s| &s.k, true), rows(&workload, |s| &s.v, true)],
            q: queries(&workload),
            out: vec![0.0; batch * shape.query_elements()],
            lse: vec![0.0; batch * shape.q_heads],
            mass: vec![0.0; batch * shape.q_heads],
            metadata: vec![0; batch * shape.kv_heads],
            read: vec![0; batch * shape.kv_heads * 2],
            workload,
            mirror,
            pool,
        };
        stages.append_prompt();
        stages
    }

    fn append(&mut self, offsets: &[u32], last_only: bool) {
        let [k, v] = if last_only { &self.last } else { &self.all };
        let step =
            AppendStep { layer: 0, seqs: &self.seqs, lens: &self.lens, offsets, k: k.all(), v: v.all() };
        self.cpu.append(self.pool.tables(), &step).expect("the cpu has no errors of its own");
    }

    fn append_prompt(&mut self) {
        let mut offsets = vec![0];
        offsets.extend(self.lens.iter().scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        }));
        self.append(&offsets, false);
    }

    fn append_token(&mut self) {
        let offsets: Vec<u32> = (0..=self.lens.len() as u32).collect();
        self.append(&offsets, true);
    }

    fn decode(&mut self, ranking: Ranking, budget: u32, target: u32, mass: f32) {
        let q: Rows<'_> = self.q.all();
        let step = DecodeStep {
            layer: 0,
            seqs: &self.seqs,
            lens: &self.lens,
            q,
            scale: 1.0 / (self.workload.shape.head_dim as f32).sqrt(),
            ranking,
            budget: &vec![budget; self.lens.len()],
            floor: &vec![0; self.lens.len()],
            unit: 1,
            target: &vec![target; self.workload.shape.kv_heads],
            mass: &vec![mass; self.workload.shape.kv_heads],
            sink: 0,
            recent: 0,
        };
        let mut result = DecodeResult {
            out: &mut self.out,
            lse: &mut self.lse,
            read: &mut self.read,
            mass: &mut self.mass,
            metadata: &mut self.metadata,
            record: None,
        };
        self.cpu.decode(self.pool.tables(), &step, &mut result).expect("the cpu has no errors of its own");
    }

    fn blocks_read(&self) -> u32 {
        self.read.iter().step_by(2).sum()
    }

    fn topups(&self) -> u32 {
        self.read.iter().skip(1).step_by(2).sum()
    }

    fn mirror_bytes(&self) -> u64 {
        let groups: usize = self.lens.iter().map(|&n| full_groups(n as usize)).sum();
        let shape = self.workload.shape;
        (groups * shape.kv_heads * format(self.mirror).page_bytes(shape.head_dim)) as u64
    }
}

fn bench_workload(c: &mut Criterion, name: &str, workload: &Workload) {
    let mut group: BenchmarkGroup<'_, WallTime> = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    let rows = workload.sequences.len() * workload.shape.kv_heads;
    let kv = kv_bytes(workload);
    for mirror in [Mirror::Bits2, Mirror::Bits4, Mirror::Box] {
        let mut stages = Stages::new(workload.clone(), mirror);
        let label = match mirror {
            Mirror::Box => "box".to_string(),
            _ => format!("{mirror} bits"),
        };
        group.throughput(Throughput::Bytes(kv));
        group
            .bench_function(BenchmarkId::new("append prompt", &label), |b| b.iter(|| stages.append_prompt()));
        let tokens: usize = workload.sequences.iter().map(|s| s.tokens).sum();
        group.throughput(Throughput::Bytes(kv / tokens as u64 * workload.sequences.len() as u64));
        group.bench_function(BenchmarkId::new("append token", &label), |b| b.iter(|| stages.append_token()));

        // One step of each kind beforehand, to see that it does what its name says.
        group.throughput(Throughput::Bytes(stages.mirror_bytes()));
        stages.decode(Ranking::Mirror, 1, 0, 0.0);
        assert_eq!(stages.blocks_read() as usize, rows);
        group.bench_function(BenchmarkId::new("score + plan", &label), |b| {
            b.iter(|| stages.decode(Ranking::Mirror, 1, 0, 0.0));
        });

        group.throughput(Throughput::Bytes(kv));
        if mirror == Mirror::Bits2 {
            stages.decode(Ranking::Identity, u32::MAX, 0, 0.0);
            let all: usize = workload.sequences.iter().map(|s| blocks(s.tokens)).sum();
            assert_eq!(stages.blocks_read() as usize, all * workload.shape.kv_heads);
            group.bench_function("attend", |b| b.iter(|| stages.decode(Ranking::Identity, u32::MAX, 0, 0.0)));
        }
        if mirror != Mirror::Box {
            stages.decode(Ranking::Mirror, u32::MAX, 1, 0.95);
            assert!(stages.topups() as usize > rows);
            group.bench_function(BenchmarkId::new("merge top-ups", &label), |b| {
                b.iter(|| stages.decode(Ranking::Mirror, u32::MAX, 1, 0.95));
            });
        }
    }
    group.finish();
}

fn stages(c: &mut Criterion) {
    bench_workload(c, "4K tokens, 8 KV heads x 4, 128 dims, bf16", &layer_8b(4096));
    bench_workload(c, "8 x 4K tokens, 1 KV head x 3, 64 dims, f16", &traces());
}

criterion_group!(benches, stages);
criterion_main!(benches);
