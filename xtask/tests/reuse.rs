//! The distribution folder, used for real: the C, Rust and Python programs of examples/ load it, run a decode step
//! through the driver API and compare with plain attention. The driver is the emulator behind `libcuda.so.1`.
//!
//! Programs run as processes, so that they load that library as they would load NVIDIA's.

#![cfg(target_os = "linux")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use kernels_gpu::layout::{self, MirrorKind};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A fresh folder of one test.
fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("reuse-{test}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn dist(out: &Path, more: &[&str]) -> PathBuf {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["dist", "--out"])
        .arg(out)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// The folder that the programs load, made once.
fn shared() -> &'static Path {
    static DIST: OnceLock<PathBuf> = OnceLock::new();
    DIST.get_or_init(|| dist(&folder("shared"), &["--without-cubins"]))
}

/// A folder with `libcuda.so` and `libcuda.so.1` that are the emulator.
fn driver() -> &'static Path {
    static DRIVER: OnceLock<PathBuf> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let library = std::env::current_exe().unwrap().with_file_name("libemulated_cuda.so");
        assert!(library.is_file(), "{} was not built", library.display());
        let folder = folder("driver");
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::os::unix::fs::symlink(&library, folder.join(name)).unwrap();
        }
        folder
    })
}

/// Runs with the emulated driver.
fn run(command: &mut Command) -> Output {
    let before = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    command.env("LD_LIBRARY_PATH", format!("{}:{before}", driver().display()));
    command.env_remove("PTX_EMULATOR_CUDA").output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn compile(compiler: &str, options: &[&str], sources: &[&Path], program: &Path) {
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-DPSA_DECLARE_DRIVER_API"]).args(options);
    command
        .arg("-I")
        .arg(shared())
        .args(sources)
        .arg("-L")
        .arg(driver())
        .args(["-lcuda", "-lm", "-o"])
        .arg(program);
    let output = command.output().expect("a C compiler is there, since rustc links with it");
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
}

/// The three programs print the same: dense reads everything, progressive less, both as plain attention says.
fn assert_decoded(output: &Output) {
    let said = text(output);
    assert!(output.status.success(), "{}\n{said}", output.status);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    let blocks = |line: &str| -> Vec<u32> {
        line.split_whitespace().filter_map(|word| word.parse().ok()).take(2).collect()
    };
    let (dense, sparse) = (blocks(lines[0]), blocks(lines[1]));
    assert!(lines[0].starts_with("dense: ") && lines[1].starts_with("progressive:0.95: "), "{said}");
    assert_eq!((dense[0], dense[1]), (dense[1], sparse[1]), "{said}");
    // The query looks along one direction in four.
    assert!(sparse[0] > 0 && 2 * sparse[0] < sparse[1], "{said}");
    assert_eq!(lines[2], "as plain attention says");
}

#[test]
fn a_c_program_decodes() {
    let program = folder("c").join("decode_step");
    compile("cc", &["-std=c99"], &[&root().join("examples/c/decode_step.c")], &program);
    assert_decoded(&run(Command::new(program).arg(shared().join("psa_kernels.ptx"))));
}

#[test]
fn a_rust_program_with_cudarc_decodes() {
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(root())
        .args(["run", "--quiet", "--locked", "-p", "psa-example-cudarc", "--"])
        .arg(shared());
    assert_decoded(&run(&mut command));
}

#[test]
fn a_python_program_decodes() {
    let script = root().join("examples/python/decode_step.py");
    assert_decoded(&run(Command::new("python3").arg(script).arg(shared())));
}

#[test]
fn python_packs_arguments_as_the_manifest_says_and_refuses_others() {
    let script = r#"
import json, sys
sys.path.insert(0, sys.argv[1])
import psa_kernels as p
manifest = json.load(open(sys.argv[2]))
gather = p.find(manifest, "gather")
good = dict(source=0x1122334455667788, target=2, pairs=3, count=4, slot_bytes=0x90, not_taken=1)
assert p.pack(gather, good).hex() == "8877665544332211" "0200000000000000" "0300000000000000" "04000000" "90000000"
mixed = {"name": "k", "params": [{"name": "a", "type": "u32", "bytes": 4}, {"name": "b", "type": "*mut f32", "bytes": 8},
                                 {"name": "c", "type": "f32", "bytes": 4}]}
assert p.pack(mixed, dict(a=1, b=2, c=1)).hex() == "0100000000000000" "0200000000000000" "0000803f"
for wrong, word in [(dict(good, count=-1), "count"), (dict(good, count=1.5), "count"), (dict(good, source=None), "source"),
                    (dict(good, slot_bytes=2**32), "slot_bytes"), ({"source": 1}, "target")]:
    try:
        p.pack(gather, wrong)
    except p.Error as error:
        assert word in str(error), error
    else:
        raise SystemExit(f"{wrong} was packed")
try:
    p.find(manifest, "score", T="bf16", D=7)
except p.Error as error:
    assert "D" in str(error)
else:
    raise SystemExit("found")
print("ok")
"#;
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(root().join("examples/python"))
        .arg(shared().join("manifest.json"))
        .output()
        .expect("python3 is needed, as `cargo xtask setup` needs it");
    assert_eq!(text(&output), "ok\n");
}

#[test]
fn the_header_is_c99_and_cplusplus_and_agrees_with_the_layouts_in_rust() {
    let folder = folder("header");
    let mut source = String::from("#include \"psa_kernels.h\"\n#include <stdio.h>\n\nint main(void) {\n");
    let mut expected = String::new();
    let mut same = |c: &str, rust: usize| {
        let _ = writeln!(source, "    printf(\"%s = %zu\\n\", \"{c}\", (size_t)({c}));");
        let _ = writeln!(expected, "{c} = {rust}");
    };
    same("PSA_BLOCK", layout::BLOCK);
    same("PSA_QUANT_GROUP", layout::QUANT_GROUP);
    same("PSA_BLOCKS_PER_GROUP", layout::BLOCKS_PER_GROUP);
    same("PSA_MAX_BLOCKS", layout::MAX_BLOCKS);
    same("PSA_RUN", kernels_gpu::plan::RUN);
    same("PSA_MAX_RUNS", kernels_gpu::plan_long::MAX_RUNS);
    same("PSA_MAX_GROUP", layout::MAX_GROUP);
    same("PSA_MAX_SPLITS", layout::MAX_SPLITS);
    same("PSA_BLOCKS_PER_SPLIT", layout::BLOCKS_PER_SPLIT);
    for tokens in [0usize, 1, 15, 16, 17, 63, 64, 65, 4096, 131_071, 131_072] {
        same(&format!("psa_blocks({tokens}u)"), layout::blocks(tokens));
        same(&format!("psa_full_groups({tokens}u)"), layout::full_groups(tokens));
        same(&format!("psa_score_grid_x({tokens}u)"), kernels_gpu::score::grid_x(tokens));
        for new in [1usize, 63, 64, 200] {
            let rust = kernels_gpu::append::groups_touched(tokens, new);
            same(&format!("psa_groups_touched({tokens}u, {new}u)"), rust);
        }
    }
    for blocks in [0usize, 1, 16, 17, 512, 513, 2048, 2049, 8192] {
        same(&format!("psa_splits({blocks}u)"), layout::splits(blocks));
        same(&format!("psa_plan_capacity({blocks}u)"), kernels_gpu::plan::capacity(blocks));
    }
    for dim in [64, 128] {
        same(&format!("psa_slot_bytes({dim}u)"), 2 * layout::slot_elements(dim));
        for planes in [1, 2] {
            let rust = MirrorKind::Planes(planes).page_bytes(dim);
            same(&format!("psa_planes_page_bytes({dim}u, {planes}u)"), rust);
        }
        same(&format!("psa_box_page_bytes({dim}u)"), MirrorKind::Box.page_bytes(dim));
    }
    for mass in [0.5f32, 0.9, 0.95, 0.999, 1.0] {
        let target = |mass: f32| kernels_gpu::numeric::fixed_target(mass) as usize;
        same(&format!("psa_progressive_target({mass:?}f, 1u)"), target(mass + (1.0 - mass) / 5.0));
        same(&format!("psa_progressive_target({mass:?}f, 2u)"), target(mass));
    }
    // An entry of another family never reaches the driver.
    same("psa_launch_gather(NULL, PSA_PLAN_IDENTITY, 1, 1, 1, NULL, gather)", 1);
    same("psa_launch_gather(NULL, PSA_KERNEL_COUNT, 1, 1, 1, NULL, gather)", 1);
    same("psa_find(\"gather\") == PSA_GATHER", 1);
    same("psa_find(\"no such kernel\") == PSA_KERNEL_COUNT", 1);
    source = source
        .replace("int main(void) {\n", "int main(void) {\n    psa_gather_params gather = {0, 0, 0, 0, 0};\n");
    source = source.replace("\"psa_find(\"gather\")", "\"psa_find(\\\"gather\\\")");
    source = source.replace("\"psa_find(\"no such kernel\")", "\"psa_find(\\\"no such kernel\\\")");
    source.push_str("    return 0;\n}\n");

    let mut compilers = vec![("cc", "-std=c99", "layout.c")];
    match Command::new("c++").arg("--version").output() {
        Ok(_) => compilers.push(("c++", "-std=c++11", "layout.cpp")),
        Err(why) => eprintln!("the header was not compiled as C++: no c++ ({why})"),
    }
    for (compiler, standard, file) in compilers {
        let (file, program) = (folder.join(file), folder.join(compiler));
        fs::write(&file, &source).unwrap();
        compile(compiler, &[standard], &[&file], &program);
        let output = run(&mut Command::new(&program));
        assert_eq!(text(&output), expected, "{compiler}");
    }
}

#[test]
fn two_distributions_of_one_commit_have_the_same_bytes() {
    let files = |folder: &Path| {
        let mut files = Vec::new();
        let mut todo = vec![folder.to_owned()];
        while let Some(at) = todo.pop() {
            for entry in fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => todo.push(path),
                    false => {
                        files.push((path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap()))
                    }
                }
            }
        }
        files.sort();
        files
    };
    // The cubins take two assemblies for six targets: left out of the quick run.
    let more: &[&str] = if std::env::var_os("PSA_QUICK").is_some() { &["--without-cubins"] } else { &[] };
    let first = dist(&folder("first"), more);
    let second = dist(&folder("second"), more);
    let (first_files, second_files) = (files(&first), files(&second));
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first_files), names(&second_files));
    for ((name, one), (_, two)) in first_files.iter().zip(&second_files) {
        assert!(one == two, "{} differs", name.display());
    }
    let sums =
        Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(&first).output();
    let sums = sums.unwrap();
    assert!(sums.status.success(), "{}", text(&sums));
    let listed = fs::read_to_string(first.join("SHA256SUMS")).unwrap().lines().count();
    assert_eq!(listed + 1, first_files.len(), "every file but the list is in the list");
}
