//! `psa info`: what this binary has and what this machine offers.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use kernels_gpu::layout;
use psa::driver::{Gpu, cuda};
use serde::{Deserialize, Serialize};

use super::{CliError, Table, Verdict};

/// Options of `psa info`.
#[derive(Args)]
#[command(after_help = "Examples:\n  psa info\n  psa info --json | jq .devices")]
pub struct InfoArgs {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    version: &'static str,
    devices: Vec<DeviceInfo>,
    ptx: PtxInfo,
    kernels: Vec<KernelInfo>,
    limits: Limits,
}

/// From the manifest of the embedded PTX.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct PtxInfo {
    target: String,
    isa: String,
    compiler: String,
    ptx_sha256: String,
    #[serde(skip_deserializing)]
    bytes: usize,
}

#[derive(Serialize)]
struct DeviceInfo {
    name: String,
    available: bool,
    detail: String,
}

#[derive(Serialize)]
struct KernelInfo {
    name: &'static str,
    family: &'static str,
    specialisation: BTreeMap<&'static str, &'static str>,
    threads: u32,
    dynamic_shared_bytes: u32,
    params: Vec<String>,
}

#[derive(Serialize)]
struct Limits {
    head_dim: [usize; 2],
    group: [usize; 2],
    dtypes: [&'static str; 2],
    mirrors: [&'static str; 4],
    block_tokens: usize,
    quant_group_tokens: usize,
    max_context_tokens: usize,
    max_blocks: usize,
}

/// Runs the command.
pub fn run(args: &InfoArgs) -> Result<Verdict, CliError> {
    let info = collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&info)?)?;
    } else {
        write!(out, "{}", text(&info))?;
    }
    out.flush()?;
    Ok(Verdict::Good)
}

fn collect() -> Info {
    let mut ptx: PtxInfo = serde_json::from_str(kernels_gpu::MANIFEST).unwrap_or_default();
    ptx.bytes = kernels_gpu::PTX.len();
    let kernels = kernels_gpu::kernels().into_iter().map(|kernel| KernelInfo {
        name: kernel.name,
        family: kernel.family,
        specialisation: kernel.specialisation.iter().copied().collect(),
        threads: kernel.threads(),
        dynamic_shared_bytes: kernel.shared_bytes,
        params: kernel.params.iter().map(|param| format!("{}: {}", param.name, param.ty)).collect(),
    });
    Info {
        version: env!("CARGO_PKG_VERSION"),
        devices: devices(),
        ptx,
        kernels: kernels.collect(),
        limits: Limits {
            head_dim: [64, 128],
            group: [1, layout::MAX_GROUP],
            dtypes: ["bf16", "f16"],
            mirrors: ["2+2", "2", "4", "box"],
            block_tokens: layout::BLOCK,
            quant_group_tokens: layout::QUANT_GROUP,
            max_context_tokens: layout::MAX_BLOCKS * layout::BLOCK,
            max_blocks: layout::MAX_BLOCKS,
        },
    }
}

fn devices() -> Vec<DeviceInfo> {
    let features = vector_features();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    let threads = rayon::current_num_threads();
    let mut devices = vec![
        DeviceInfo {
            name: "cpu".to_owned(),
            available: true,
            detail: format!("{} with vector features {features}; {threads} threads", std::env::consts::ARCH),
        },
        DeviceInfo {
            name: "reference".to_owned(),
            available: true,
            detail: "the plain definition; slow".to_owned(),
        },
        DeviceInfo {
            name: "emulator".to_owned(),
            available: true,
            detail: "runs the embedded PTX on the CPU, checked; slow".to_owned(),
        },
    ];
    match cuda::devices() {
        Ok(gpus) => devices.extend(gpus.iter().map(gpu)),
        Err(reason) => {
            devices.push(DeviceInfo { name: "cuda".to_owned(), available: false, detail: reason.to_string() })
        }
    }
    devices
}

fn gpu(gpu: &Gpu) -> DeviceInfo {
    DeviceInfo {
        name: format!("cuda:{}", gpu.index),
        available: gpu.sm >= 80,
        detail: format!(
            "{}, compute capability {}.{}{}, {} multiprocessors, {:.1} GiB; driver with CUDA {}.{}",
            gpu.name,
            gpu.sm / 10,
            gpu.sm % 10,
            if gpu.sm >= 80 { "" } else { " (the kernels need 8.0)" },
            gpu.multiprocessors,
            gpu.memory as f64 / (1u64 << 30) as f64,
            gpu.driver / 1000,
            gpu.driver % 1000 / 10,
        ),
    }
}

/// Vector extensions that this CPU has and that matter here.
fn vector_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ];
        found.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec!["neon"]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

fn text(info: &Info) -> String {
    let mut devices = Table::new(3, &["device", "usable", "detail"]);
    for device in &info.devices {
        let usable = if device.available { "yes" } else { "no" };
        devices.row(vec![device.name.to_owned(), usable.to_owned(), device.detail.clone()]);
    }
    // One line a family: the instances differ in their specialisation alone.
    let mut families: Vec<(&str, Vec<&KernelInfo>)> = Vec::new();
    for kernel in &info.kernels {
        match families.iter_mut().find(|(family, _)| *family == kernel.family) {
            Some((_, kernels)) => kernels.push(kernel),
            None => families.push((kernel.family, vec![kernel])),
        }
    }
    let mut kernels =
        Table::new(2, &["kernel", "specialised for", "instances", "threads", "dynamic shared B"]);
    for (family, instances) in &families {
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for kernel in instances {
            for (generic, value) in &kernel.specialisation {
                let list = values.entry(generic).or_default();
                if !list.contains(value) {
                    list.push(value);
                }
            }
        }
        let values: Vec<_> =
            values.iter().map(|(name, list)| format!("{name} = {}", list.join(" "))).collect();
        let range = |value: fn(&KernelInfo) -> u32| {
            let (low, high) = instances
                .iter()
                .fold((u32::MAX, 0), |(low, high), kernel| (low.min(value(kernel)), high.max(value(kernel))));
            if low == high { low.to_string() } else { format!("{low} to {high}") }
        };
        kernels.row(vec![
            (*family).to_owned(),
            if values.is_empty() { "-".to_owned() } else { values.join(", ") },
            instances.len().to_string(),
            range(|kernel| kernel.threads),
            range(|kernel| kernel.dynamic_shared_bytes),
        ]);
    }
    let Limits { head_dim, group, block_tokens, quant_group_tokens, max_context_tokens, max_blocks, .. } =
        info.limits;
    format!(
        "psa {}\n\n{}\nPTX: {}, ISA {}, {} KiB, {}\n{}\nLimits: head_dim {} and {}; {} to {} query heads a KV \
         head; bf16 and f16; mirrors of 2+2, 2 and 4 bits and boxes; blocks of {block_tokens} tokens, quantisation groups of {quant_group_tokens};\n\
         {max_context_tokens} tokens ({max_blocks} blocks) a sequence\n",
        info.version,
        devices.render(),
        info.ptx.target,
        info.ptx.isa,
        info.ptx.bytes / 1024,
        info.ptx.compiler,
        kernels.render(),
        head_dim[0],
        head_dim[1],
        group[0],
        group[1],
    )
}
