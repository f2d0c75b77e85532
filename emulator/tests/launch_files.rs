//! LAUNCH.json as written in the README: every form of an argument, every way to get it wrong, and what
//! is on which stream with which exit status.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Stores its scalar arguments behind each other, and adds 1 to every byte of `b`.
const PTX: &str = ".version 7.8\n.target sm_80\n.address_size 64\n\
.visible .entry all(.param .u64 a, .param .u64 b, .param .u32 c, .param .s32 d, .param .u64 e, .param .s64 f,\n\
.param .f32 g, .param .f64 h, .param .u8 i, .param .s16 j) {\n\
.reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .b16 %h<4>;\n\
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b];\n\
ld.param.u32 %r1, [c]; st.global.u32 [%rd1], %r1;\n\
ld.param.u32 %r1, [d]; st.global.u32 [%rd1+4], %r1;\n\
ld.param.u64 %rd3, [e]; st.global.u64 [%rd1+8], %rd3;\n\
ld.param.u64 %rd3, [f]; st.global.u64 [%rd1+16], %rd3;\n\
ld.param.u32 %r1, [g]; st.global.u32 [%rd1+24], %r1;\n\
ld.param.u8 %r1, [i]; st.global.u8 [%rd1+28], %r1; mov.u32 %r2, 0; st.global.u8 [%rd1+29], %r2;\n\
ld.param.u16 %h1, [j]; st.global.u16 [%rd1+30], %h1;\n\
ld.param.u64 %rd3, [h]; st.global.u64 [%rd1+32], %rd3;\n\
mov.u32 %r3, %tid.x; cvt.u64.u32 %rd4, %r3; add.u64 %rd5, %rd2, %rd4;\n\
ld.global.u8 %r4, [%rd5]; add.u32 %r4, %r4, 1; st.global.u8 [%rd5], %r4;\n\
ret; }\n\
.visible .entry stray(.param .u64 a) {\n.reg .b64 %rd<2>; .reg .b32 %r<2>;\n\
ld.param.u64 %rd1, [a]; mov.u32 %r1, 1; st.global.u32 [%rd1+64], %r1; ret; }\n";

fn dir(name: &str) -> PathBuf {
    let d = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launch-files").join(name);
    let _ = std::fs::remove_dir_all(&d);
    std::fs::create_dir_all(d.join("sub")).unwrap();
    std::fs::write(d.join("k.ptx"), PTX).unwrap();
    std::fs::write(d.join("sub/b.bin"), [10, 20, 255]).unwrap();
    d
}

fn emu(d: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptx-emu")).args(args).current_dir(d).output().unwrap()
}

/// A launch of `all` with one part replaced.
fn all(from: &str, to: &str) -> String {
    let json = r#"{"ptx": "k.ptx", "kernel": "all", "grid": [1, 1, 1], "block": [1, 1, 1], "shared_bytes": 0, "args": [
        {"bytes": 40, "out": "sub/a.bin"}, {"in": "sub/b.bin", "out": "c.bin"}, {"u32": 4294967295}, {"i32": -2},
        {"u64": 18446744073709551615}, {"i64": -9223372036854775808}, {"f32": 0.1}, {"f64": -1e300}, {"u32": 200},
        {"i32": -3}], "check": ["mem", "init", "race", "sync"]}"#;
    assert!(json.contains(from), "{from}");
    json.replace(from, to)
}

fn run(d: &Path, json: &str, args: &[&str]) -> (Option<i32>, String, String) {
    std::fs::write(d.join("l.json"), json).unwrap();
    let o = emu(d, &[&["run", "l.json"], args].concat());
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (o.status.code(), text(o.stdout), text(o.stderr))
}

#[test]
fn every_form_of_an_argument_arrives_as_written() {
    let d = dir("forms");
    // From another directory: the paths are those of the file, not of the caller.
    std::fs::write(d.join("l.json"), all("u32", "u32")).unwrap();
    let o = emu(&d.join("sub"), &["run", "../l.json", "--json"]);
    assert_eq!(o.status.code(), Some(0), "{}", String::from_utf8_lossy(&o.stderr));
    let a = std::fs::read(d.join("sub/a.bin")).unwrap();
    let mut want = Vec::new();
    want.extend(u32::MAX.to_le_bytes());
    want.extend((-2i32).to_le_bytes());
    want.extend(u64::MAX.to_le_bytes());
    want.extend(i64::MIN.to_le_bytes());
    want.extend(0.1f32.to_le_bytes());
    // 8 and 16 bits are narrowed from 32.
    want.extend([200, 0]);
    want.extend((-3i16).to_le_bytes());
    want.extend((-1e300f64).to_le_bytes());
    assert_eq!(a, want);
    assert_eq!(std::fs::read(d.join("c.bin")).unwrap(), [11, 20, 255], "one thread, one byte");
    assert_eq!(std::fs::read(d.join("sub/b.bin")).unwrap(), [10, 20, 255], "the input stays");
}

#[test]
fn a_buffer_may_be_written_back_over_its_own_file() {
    let d = dir("in-place");
    let (code, _, err) = run(&d, &all("\"out\": \"c.bin\"", "\"out\": \"sub/b.bin\""), &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read(d.join("sub/b.bin")).unwrap(), [11, 20, 255]);
}

#[test]
fn what_is_wrong_with_a_file_exits_2_names_the_value_and_leaves_stdout_empty() {
    let d = dir("wrong");
    for (from, to, words) in [
        ("4294967295", "-1", "integer `-1`, expected u32"),
        ("4294967295", "4294967296", "integer `4294967296`, expected u32"),
        ("{\"u32\": 4294967295}", "{\"u32\": 1.5}", "floating point `1.5`, expected u32"),
        ("{\"u32\": 4294967295}", "{\"u32\": null}", "args[2] is nothing; it must be one of"),
        ("{\"u32\": 4294967295}", "{}", "args[2] is nothing"),
        ("{\"u32\": 4294967295}", "{\"u32\": 1, \"i32\": 1}", "args[2] is several things"),
        (
            "{\"u32\": 4294967295}",
            "{\"u32\": 1, \"out\": \"x\"}",
            "args[2] is a number, which has no \"out\"",
        ),
        ("{\"u32\": 4294967295}", "{\"u33\": 1}", "unknown field `u33`"),
        ("{\"f32\": 0.1}", "{\"f32\": 1e39}", "args[6]: 1e39 is beyond the range of f32"),
        ("{\"bytes\": 40, \"out\"", "{\"out\"", "args[0] has \"out\" but neither \"in\" nor \"bytes\""),
        ("{\"bytes\": 40", "{\"bytes\": 40, \"in\": \"sub/b.bin\"", "args[0] has \"in\" and \"bytes\""),
        ("{\"bytes\": 40", "{\"bytes\": -40", "integer `-40`"),
        ("{\"bytes\": 40", "{\"bytes\": 99999999999999", "beyond the limit of 8589934592"),
        ("\"out\": \"c.bin\"", "\"out\": \"sub/./a.bin\"", "args[0] and args[1] both have \"out\""),
        ("\"out\": \"c.bin\"", "\"out\": \"none/c.bin\"", "none/c.bin: no directory none; make it first"),
        ("\"out\": \"c.bin\"", "\"out\": \"sub\"", "sub: is a directory"),
        ("\"in\": \"sub/b.bin\"", "\"in\": \"sub\"", "sub: not a regular file"),
        ("\"in\": \"sub/b.bin\"", "\"in\": \"/dev/zero\"", "/dev/zero: not a regular file"),
        ("\"in\": \"sub/b.bin\"", "\"in\": \"sub/x.bin\"", "sub/x.bin: No such file"),
        ("\"k.ptx\"", "\"none.ptx\"", "none.ptx: No such file"),
        ("\"k.ptx\"", "\"sub/b.bin\"", "not a text file"),
        ("\"all\"", "\"al\"", "k.ptx: no kernel named `al` in the module; it has: all, stray"),
        ("\"grid\": [1, 1, 1]", "\"grid\": []", "\"grid\" has 0 numbers"),
        ("\"grid\": [1, 1, 1]", "\"grid\": [1, 1, 1, 1]", "\"grid\" has 4 numbers"),
        ("\"grid\": [1, 1, 1]", "\"grid\": 1", "expected a sequence"),
        ("\"grid\": [1, 1, 1], ", "", "missing field `grid`"),
        ("\"block\": [1, 1, 1]", "\"block\": [-1, 1, 1]", "integer `-1`"),
        ("\"shared_bytes\": 0", "\"shared_bytes\": -1", "integer `-1`"),
        ("\"shared_bytes\": 0", "\"shared\": 0", "unknown field `shared`"),
        ("\"shared_bytes\": 0", "\"shared_bytes\": 0, \"shared_bytes\": 0", "duplicate field"),
        ("\"sync\"]", "\"sink\"]", "`sink` is no checker; there are mem, init, race, sync"),
        ("\"check\": [\"mem\", \"init\", \"race\", \"sync\"]", "\"check\": \"mem\"", "expected a sequence"),
        ("\"sync\"]}", "\"sync\"]} {}", "trailing characters"),
        ("\"sync\"]}", "\"sync\"]", "EOF"),
    ] {
        let (code, out, err) = run(&d, &all(from, to), &["--json"]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{to}: {err}");
        assert!(err.contains(words), "{to}\n{err}");
        assert!(err.starts_with("ptx-emu: l.json: ") && err.lines().count() == 1, "{to}\n{err}");
        assert!(!d.join("sub/a.bin").exists(), "{to}: nothing ran");
    }
    let o = emu(&d, &["run", "nothing.json"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&o.stderr).contains("nothing.json: No such file"));
    assert_eq!(emu(&d, &["run", "sub"]).status.code(), Some(2));
    assert_eq!(emu(&d, &["run"]).status.code(), Some(2));
}

#[test]
fn a_launch_that_does_not_fit_exits_1_and_writes_nothing() {
    let d = dir("misfit");
    for (from, to, kind) in [
        ("\"block\": [1, 1, 1]", "\"block\": [1, 0, 1]", "empty launch"),
        ("\"block\": [1, 1, 1]", "\"block\": [1025, 1, 1]", "block too large"),
        ("\"grid\": [1, 1, 1]", "\"grid\": [1, 70000, 1]", "grid too large"),
        ("\"shared_bytes\": 0", "\"shared_bytes\": 4294967295", "too much shared memory"),
        ("{\"u32\": 4294967295}", "{\"u64\": 1}", "argument size"),
        ("{\"u32\": 200}", "{\"u32\": 300}", "argument size"),
        ("{\"u32\": 200},\n", "", "argument count"),
    ] {
        let (code, out, err) = run(&d, &all(from, to), &["--json"]);
        assert_eq!(code, Some(1), "{to}: {err}");
        let v: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&v["findings"][0]["class"], &v["findings"][0]["kind"]),
            (&"launch".into(), &kind.into()),
            "{to}"
        );
        assert!(!d.join("c.bin").exists(), "{to}");
    }
}

#[test]
fn stdout_has_one_object_with_json_and_the_findings_are_on_stderr() {
    let d = dir("streams");
    // One byte too many threads: the fourth reads behind the file.
    let faulty = all("\"block\": [1, 1, 1]", "\"block\": [4, 1, 1]");
    let (code, out, err) = run(&d, &faulty, &["--json"]);
    assert_eq!((code, out.lines().count()), (Some(1), 1));
    let v: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(
        v["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["class"] == "mem" && f["allocation"]["name"] == "arg1"),
        "{v}"
    );
    assert!(err.contains("offset 3 of `arg1` (3 bytes)"), "{err}");
    // A run with findings writes its outputs all the same.
    assert_eq!(std::fs::read(d.join("c.bin")).unwrap(), [11, 21, 0]);
    // The profile is part of the one object.
    let html = d.join("p.html");
    let (_, out, _) = run(&d, &faulty, &["--json", "--profile", "--profile-html", html.to_str().unwrap()]);
    let v: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out.lines().count(), 1);
    assert!(v["profile"].as_array().is_some_and(|p| !p.is_empty()) && v["hints"].is_array());
    assert!(std::fs::read_to_string(html).unwrap().contains("<h1>all</h1>"));
    let (code, _, err) = run(&d, &all("u32", "u32"), &["--profile-svg", "none/p.svg"]);
    assert!(code == Some(2) && err.contains("none/p.svg: No such file"), "{err}");
}

#[test]
fn the_check_list_of_the_file_holds_unless_the_command_line_says_otherwise() {
    let d = dir("checks");
    // Reads a byte nobody wrote.
    let uninit = all("{\"in\": \"sub/b.bin\", \"out\": \"c.bin\"}", "{\"bytes\": 3}");
    let all_checks = "\"check\": [\"mem\", \"init\", \"race\", \"sync\"]";
    assert_eq!(run(&d, &uninit, &[]).0, Some(1));
    for list in ["\"check\": [\"mem\", \"sync\"]", "\"check\": []", "\"check\": [\"none\"]"] {
        assert_eq!(run(&d, &uninit.replace(all_checks, list), &[]).0, Some(0), "{list}");
        assert_eq!(run(&d, &uninit.replace(all_checks, list), &["--check", "init"]).0, Some(1), "{list}");
    }
    // Without a list every checker runs.
    assert_eq!(run(&d, &uninit.replace(&format!(", {all_checks}"), ""), &[]).0, Some(1));
    assert_eq!(run(&d, &uninit, &["--check", "none"]).0, Some(0));
}

#[test]
fn a_stray_access_exits_1_whether_it_is_checked_or_not() {
    let d = dir("stray");
    let json = r#"{"ptx": "k.ptx", "kernel": "stray", "grid": [1], "block": [1], "args": [{"bytes": 4, "out": "o.bin"}]}"#;
    for check in ["all", "none"] {
        let (code, out, err) = run(&d, json, &["--json", "--check", check]);
        assert_eq!(code, Some(1), "{check}");
        let v: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(v["completed"], check == "all", "{v}");
        assert!(err.contains("address 0x7f") && err.contains("line 21"), "{err}");
    }
}

#[test]
fn limits_can_be_set_and_a_wrong_one_lists_their_names() {
    let d = dir("limits");
    let json = all("u32", "u32");
    let (code, _, err) = run(&d, &json, &["--limit", "memory_bytes=42"]);
    assert!(code == Some(2) && err.contains("3 bytes is beyond the limit of 42"), "{err}");
    assert_eq!(run(&d, &json, &["--limit", "registers=100", "--limit", "memory_bytes=43"]).0, Some(0));
    for (limit, words) in [
        ("memory=1", "no limit `memory`; there are source_bytes, nesting,"),
        ("memory_bytes", "NAME=N is expected"),
        ("memory_bytes=many", "`many` is no number"),
        ("nesting=99999999999", "more than 4294967295"),
    ] {
        let (code, out, err) = run(&d, &json, &["--limit", limit]);
        assert!(code == Some(2) && out.is_empty() && err.contains(words), "{limit}: {err}");
    }
}
