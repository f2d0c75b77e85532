//! The CPU backend against torch's `scaled_dot_product_attention`, its own dense attention and a plain read,
//! paired: `cpu-paired [TOKENS]... [--batch N] [--rounds N]`. Records as JSON, one a line.
//!
//! Torch has as many threads as we have, contiguous `[batch, kv_heads, tokens, head_dim]` and no mask, in f32 and
//! bf16, each in two ways: query heads that share a KV head as rows of one query (`rows`), which reads K and V once,
//! and by torch's own `enable_gqa` (`gqa`). `ratio_to_torch_dense` is to whichever was fastest.

use psa_benches::paired::{Options, Subject, run};
use psa_tests::Workload;
use std::hint::black_box;
use std::process::ExitCode;
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    tch::set_num_threads(rayon::current_num_threads() as i32);
    let _guard = tch::no_grad_guard();
    run(&options, torch);
    ExitCode::SUCCESS
}

fn torch(workload: &Workload) -> Vec<Subject> {
    let shape = workload.shape;
    let [kv_heads, group, d] = [shape.kv_heads, shape.group(), shape.head_dim].map(|n| n as i64);
    let scale = 1.0 / (shape.head_dim as f64).sqrt();
    let stack = |of: fn(&psa_tests::Sequence) -> &psa_tests::Tensor, kind: Kind| {
        let rows = |s| {
            let values: Vec<f32> = of(s).to_f64().into_iter().map(|x| x as f32).collect();
            Tensor::from_slice(&values).to_kind(kind).view([-1, kv_heads, d]).transpose(0, 1).contiguous()
        };
        Tensor::stack(&workload.sequences.iter().map(rows).collect::<Vec<_>>(), 0)
    };
    let mut subjects = vec![];
    for (kind, name, width) in [(Kind::Float, "f32", 4), (Kind::BFloat16, "bf16", 2)] {
        let (k, v) = (stack(|s| &s.k, kind), stack(|s| &s.v, kind));
        // A query is a row of `heads`: [batch, 1 token, q_heads, d] as [batch, kv_heads, group, d].
        let rows = stack_queries(workload, kind).view([-1, kv_heads, group, d]);
        let heads = rows.view([-1, kv_heads * group, 1, d]);
        for (how, q, gqa) in [("rows", rows, false), ("gqa", heads, true)] {
            let (k, v) = (k.shallow_clone(), v.shallow_clone());
            subjects.push(Subject {
                name: format!("torch-{name}-{how}"),
                policy: "dense".into(),
                bytes: 2 * width * k.numel() as u64,
                step: Box::new(move || {
                    drop(black_box(Tensor::scaled_dot_product_attention(
                        &q,
                        &k,
                        &v,
                        None::<Tensor>,
                        0.0,
                        false,
                        Some(scale),
                        gqa,
                    )));
                }),
            });
        }
    }
    subjects
}

fn stack_queries(workload: &Workload, kind: Kind) -> Tensor {
    let rows = workload.sequences.iter().map(|s| {
        let values: Vec<f32> = s.q.to_f64().into_iter().map(|x| x as f32).collect();
        Tensor::from_slice(&values).to_kind(kind)
    });
    Tensor::stack(&rows.collect::<Vec<_>>(), 0)
}
