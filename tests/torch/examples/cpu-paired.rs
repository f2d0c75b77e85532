//! The CPU backend beside torch's `scaled_dot_product_attention`, paired: arguments and records as of the bench of
//! the same name without torch (`psa_benches::paired`).
//!
//! Torch gets contiguous `[batch, kv_heads, tokens, head_dim]` and the group's query heads as query rows, so that it
//! too streams the KV once a group and not once a head; as many threads as we have; f32 and bf16.

use psa_benches::paired::{Options, Subject, run};
use psa_tests::Workload;
use std::process::ExitCode;
use tch::{Kind, Tensor};

fn subjects(workload: &Workload) -> Vec<Subject> {
    let shape = workload.shape;
    let [heads, group, d] = [shape.kv_heads, shape.group(), shape.head_dim].map(|n| n as i64);
    let batch = workload.sequences.len() as i64;
    let tensor = |of: fn(&psa_tests::Sequence) -> &psa_tests::Tensor| {
        let values: Vec<f32> =
            workload.sequences.iter().flat_map(|s| of(s).to_f64()).map(|x| x as f32).collect();
        Tensor::from_slice(&values)
    };
    let q = tensor(|s| &s.q).view([batch, heads, group, d]);
    let cache = |x: Tensor| x.view([batch, -1, heads, d]).transpose(1, 2).contiguous();
    let (k, v) = (cache(tensor(|s| &s.k)), cache(tensor(|s| &s.v)));
    let subject = |(name, kind): (&str, Kind)| {
        let (q, k, v) = (q.to_kind(kind), k.to_kind(kind), v.to_kind(kind));
        let bytes = 2 * k.numel() as u64 * if kind == Kind::Float { 4 } else { 2 };
        let step = move || {
            let none = None::<&Tensor>;
            let scale = Some(1.0 / (d as f64).sqrt());
            std::hint::black_box(Tensor::scaled_dot_product_attention(
                &q, &k, &v, none, 0.0, false, scale, false,
            ));
        };
        Subject { name: name.into(), policy: "dense".into(), bytes, step: Box::new(step) }
    };
    [("torch-f32", Kind::Float), ("torch-bf16", Kind::BFloat16)].into_iter().map(subject).collect()
}

fn main() -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    tch::set_num_threads(threads as i32);
    let _guard = tch::no_grad_guard();
    match Options::parse(std::env::args().skip(1)) {
        Ok(options) => run(&options, subjects),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
