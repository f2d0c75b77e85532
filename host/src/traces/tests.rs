//! What the loader promises: files round-trip, and every kind of damage is named.

use super::*;

/// A case of pseudo-random rows, with its dense answer computed here in f64.
pub(crate) fn synthetic(name: &str, group: usize, queries: usize, context: usize, seed: u64) -> Case {
    let (head_dim, scale) = (64, 0.125);
    let mut state = seed;
    let mut draw = |n: usize, size: f64| -> Vec<f16> {
        (0..n)
            .map(|_| {
                // splitmix64; the sum of four uniforms is bell-shaped enough.
                let mut sum = 0.0;
                for _ in 0..4 {
                    state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let mut z = state;
                    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                    sum += (z ^ (z >> 31)) as f64 / u64::MAX as f64 - 0.5;
                }
                f16::from_f64(sum * size)
            })
            .collect()
    };
    let q = draw(group * queries * head_dim, 6.0);
    let k = draw(context * head_dim, 2.0);
    let v = draw(context * head_dim, 2.0);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for row in 0..group * queries {
        let visible = context - queries + row % queries + 1;
        let query = &q[row * head_dim..][..head_dim];
        let logits: Vec<f64> = (0..visible)
            .map(|t| {
                let key = &k[t * head_dim..][..head_dim];
                scale * query.iter().zip(key).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>()
            })
            .collect();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = logits.iter().map(|s| (s - top).exp()).sum();
        lse.push((top + total.ln()) as f32);
        for c in 0..head_dim {
            let sum: f64 =
                logits.iter().enumerate().map(|(t, s)| (s - top).exp() * v[t * head_dim + c].to_f64()).sum();
            out.push((sum / total) as f32);
        }
    }
    Case {
        name: name.to_owned(),
        label: "synthetic".to_owned(),
        group,
        queries,
        context,
        head_dim,
        q: Elements::F16(q),
        k: Elements::F16(k),
        v: Elements::F16(v),
        out,
        lse,
    }
}

/// A small file of two cases.
pub(crate) fn small() -> Traces {
    let cases = vec![synthetic("case0", 2, 3, 40, 1), synthetic("case1", 1, 2, 70, 2)];
    Traces { origin: "pseudo-random".to_owned(), scale: 0.125, cases }
}

fn to_bf16(elements: &Elements) -> Elements {
    match elements {
        Elements::F16(x) => Elements::Bf16(x.iter().map(|x| bf16::from_f32(x.to_f32())).collect()),
        same => same.clone(),
    }
}

/// A file as header and data, for damage that the writer would not do.
struct Raw {
    header: serde_json::Map<String, serde_json::Value>,
    data: Vec<u8>,
    json: serde_json::Value,
}

impl Raw {
    fn new() -> Raw {
        let mut traces = small();
        traces.cases.truncate(1);
        let bytes = write::to_bytes(&traces).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Raw {
            header: serde_json::from_slice(&bytes[8..8 + length]).unwrap(),
            data: bytes[8 + length..].to_vec(),
            json: serde_json::from_str(&write::json(&traces)).unwrap(),
        }
    }

    fn file(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat()
    }

    fn parse(&self) -> Result<Traces, TraceError> {
        Traces::parse("x.safetensors", &self.file(), &serde_json::to_vec(&self.json).unwrap())
    }

    /// Replaces a tensor by `bytes` of the given type and shape; the data is packed anew.
    fn replace(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) {
        let old = std::mem::take(&mut self.header);
        let data = std::mem::take(&mut self.data);
        let mut names: Vec<_> = old.keys().cloned().collect();
        if !old.contains_key(name) {
            names.push(name.to_owned());
        }
        for key in names {
            let (mut info, part) = if key == name {
                (serde_json::json!({"dtype": dtype, "shape": shape}), bytes.clone())
            } else {
                let range: [usize; 2] = serde_json::from_value(old[&key]["data_offsets"].clone()).unwrap();
                (old[&key].clone(), data[range[0]..range[1]].to_vec())
            };
            info["data_offsets"] = serde_json::json!([self.data.len(), self.data.len() + part.len()]);
            self.data.extend(part);
            self.header.insert(key, info);
        }
    }

    fn remove(&mut self, name: &str) {
        self.replace(name, "F32", &[0], Vec::new());
        self.header.remove(name);
    }

    fn start_of(&self, name: &str) -> usize {
        self.header[name]["data_offsets"][0].as_u64().unwrap() as usize
    }
}

#[test]
fn written_files_read_back_unchanged() {
    let folder = std::env::temp_dir().join(format!("psa-traces-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("round.safetensors");
    let mut traces = small();
    write(&traces, &file).unwrap();
    assert_eq!(Traces::load(&file).unwrap(), traces);

    let case = &mut traces.cases[0];
    (case.q, case.k, case.v) = (to_bf16(&case.q), to_bf16(&case.k), to_bf16(&case.v));
    write(&traces, &file).unwrap();
    assert_eq!(Traces::load(&file).unwrap(), traces);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn bundled_traces_load_in_order_with_their_labels() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/traces.safetensors");
    let traces = Traces::load(&file).unwrap();
    assert_eq!(traces.scale, 0.125);
    let names: Vec<_> = traces.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["case0", "case1", "case2", "case3", "case4", "case5", "case6", "case7"]);
    assert_eq!(traces.cases[0].label, "prose_A, layer 3, head 0");
    for case in &traces.cases {
        assert_eq!((case.group, case.queries, case.context, case.head_dim), (3, 64, 4096, 64));
        assert_eq!((case.visible(0), case.visible(63)), (4033, 4096));
    }
}

#[test]
fn cases_are_ordered_by_number_not_by_text() {
    let mut traces = small();
    traces.cases[0].name = "case10".to_owned();
    traces.cases[1].name = "case9".to_owned();
    let bytes = write::to_bytes(&traces).unwrap();
    let read = Traces::parse("x", &bytes, write::json(&traces).as_bytes()).unwrap();
    assert_eq!(read.cases.iter().map(|case| &case.name).collect::<Vec<_>>(), ["case9", "case10"]);
}

#[test]
fn selecting_an_unknown_case_lists_the_known_ones() {
    let traces = small();
    assert_eq!(traces.select(None).unwrap().len(), 2);
    assert_eq!(traces.select(Some("case1")).unwrap()[0].name, "case1");
    let error = traces.select(Some("case7")).unwrap_err().to_string();
    assert!(error.contains("\"case7\"") && error.contains("case0, case1"), "{error}");
}

#[test]
fn missing_files_are_named() {
    let file = std::env::temp_dir().join(format!("psa-alone-{}.safetensors", std::process::id()));
    let error = Traces::load(&file).unwrap_err().to_string();
    assert!(error.contains("psa-alone") && error.contains("--traces"), "{error}");
    std::fs::write(&file, Raw::new().file()).unwrap();
    let error = Traces::load(&file).unwrap_err().to_string();
    std::fs::remove_file(&file).unwrap();
    assert!(error.contains(".json") && error.contains("beside"), "{error}");
}

#[test]
fn every_kind_of_damage_is_an_error_that_names_it() {
    type Damage = fn(&mut Raw);
    let table: &[(&str, Damage, &[&str])] = &[
        ("cut off", |r| r.data.truncate(100), &["x.safetensors", "not a valid safetensors", "copy it again"]),
        (
            "bytes after the end",
            |r| r.data.extend([0; 8]),
            &["x.safetensors", "not a valid safetensors file"],
        ),
        (
            "overlapping tensors",
            |r| r.header["case0.v"]["data_offsets"] = r.header["case0.k"]["data_offsets"].clone(),
            &["not a valid safetensors file", "case0"],
        ),
        (
            "offsets beyond the end",
            |r| r.header["case0.v"]["data_offsets"] = serde_json::json!([0, u64::MAX]),
            &["not a valid safetensors file"],
        ),
        (
            "a shape that overflows",
            |r| r.header["case0.v"]["shape"] = serde_json::json!([u64::MAX, 64]),
            &["not a valid safetensors file"],
        ),
        ("no tensor", |r| (r.header.clear(), r.data.clear()).1, &["x.safetensors", "no case"]),
        ("a missing part", |r| r.remove("case0.lse"), &["x.safetensors", "case0.lse is missing"]),
        (
            "a misspelt part",
            |r| r.replace("case0.keys", "F16", &[1], vec![0; 2]),
            &["\"case0.keys\"", "caseI.q"],
        ),
        (
            "two names for one case",
            |r| r.replace("case00.q", "F16", &[1], vec![0; 2]),
            &["unknown tensor \"case00.q\""],
        ),
        (
            "keys in f32",
            |r| r.replace("case0.k", "F32", &[40, 64], vec![0; 40 * 64 * 4]),
            &["case0.k", "F32", "F16 or BF16"],
        ),
        (
            "keys of another type than queries",
            |r| r.replace("case0.k", "BF16", &[40, 64], vec![0; 40 * 64 * 2]),
            &["case0.k", "BF16", "F16, as q"],
        ),
        (
            "output in f16",
            |r| r.replace("case0.out", "F16", &[2, 3, 64], vec![0; 2 * 3 * 64 * 2]),
            &["case0.out", "F16", "F32"],
        ),
        (
            "queries without heads",
            |r| r.header["case0.q"]["shape"] = serde_json::json!([6, 64]),
            &["case0.q", "[6, 64]", "[query heads, queries, head_dim]"],
        ),
        (
            "keys and values of different length",
            |r| r.replace("case0.v", "F16", &[39, 64], vec![0; 39 * 64 * 2]),
            &["case0.v", "[39, 64]", "[40, 64] (as k)"],
        ),
        (
            "keys of another width",
            |r| r.header["case0.k"]["shape"] = serde_json::json!([80, 32]),
            &["case0.k", "[80, 32]", "head_dim as in q"],
        ),
        (
            "lse of another shape",
            |r| r.header["case0.lse"]["shape"] = serde_json::json!([3, 2]),
            &["case0.lse", "[3, 2]", "[2, 3]"],
        ),
        (
            "no query",
            |r| r.replace("case0.q", "F16", &[2, 0, 64], Vec::new()),
            &["case0", "queries 0", "at least one"],
        ),
        (
            "more queries than keys",
            |r| r.replace("case0.q", "F16", &[2, 41, 64], vec![0; 2 * 41 * 64 * 2]),
            &["case0", "41 queries", "40 keys"],
        ),
        (
            "a head_dim without kernels",
            |r| r.header["case0.q"]["shape"] = serde_json::json!([2, 6, 32]),
            &["head_dim 32", "supported: 64, 128"],
        ),
        (
            "a group without kernels",
            |r| r.replace("case0.q", "F16", &[9, 3, 64], vec![0; 9 * 3 * 64 * 2]),
            &["query heads of a KV head 9", "1 to 8"],
        ),
        (
            "a context beyond the limit",
            |r| r.replace("case0.k", "F16", &[(1 << 21) + 1, 64], vec![0; ((1 << 21) + 1) * 64 * 2]),
            &["context 2097153", "up to 2097152 tokens"],
        ),
        (
            "NaN in the keys",
            |r| {
                let at = r.start_of("case0.k") + (7 * 64 + 5) * 2;
                r.data[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
            },
            &["case0.k holds NaN at [7, 5]"],
        ),
        (
            "infinity in the output",
            |r| {
                let at = r.start_of("case0.out") + ((3 + 2) * 64 + 63) * 4;
                r.data[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
            },
            &["case0.out holds inf at [1, 2, 63]"],
        ),
        ("another format", |r| r.json["format"] = "psa-traces-v2".into(), &["x.json", "\"psa-traces-v2\""]),
        ("no scale", |r| drop(r.json.as_object_mut().unwrap().remove("scale")), &["x.json", "\"scale\""]),
        ("a scale in words", |r| r.json["scale"] = "1/8".into(), &["x.json", "line 1"]),
        ("a negative scale", |r| r.json["scale"] = (-0.125).into(), &["x.json", "-0.125", "1/sqrt"]),
        ("a scale beyond sense", |r| r.json["scale"] = 1e30.into(), &["x.json", "outside 1e-4 to 16"]),
        (
            "JSON of another kind",
            |r| r.json = serde_json::json!([1]),
            &["x.json", "not the JSON of a psa-tr"],
        ),
    ];
    Raw::new().parse().unwrap();
    for (what, damage, words) in table {
        let mut raw = Raw::new();
        damage(&mut raw);
        let error = match raw.parse() {
            Ok(_) => panic!("{what}: accepted"),
            Err(error) => error.to_string(),
        };
        for word in *words {
            assert!(error.contains(word), "{what}: {word:?} not in: {error}");
        }
    }
}

#[test]
fn damage_to_the_header_itself_is_an_error() {
    let good = Raw::new().file();
    let json = serde_json::to_vec(&Raw::new().json).unwrap();
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = good.clone();
    garbled[8] = b'[';
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8987664\n".to_vec();
    for (what, bytes) in [("empty", Vec::new()), ("huge", huge), ("garbled", garbled), ("LFS", pointer)] {
        let error = Traces::parse("x.safetensors", &bytes, &json).unwrap_err().to_string();
        assert!(error.contains("x.safetensors is not a valid safetensors file"), "{what}: {error}");
    }
    for length in 0..good.len().min(600) {
        assert!(Traces::parse("x", &good[..length], &json).is_err(), "{length} bytes accepted");
    }
    let error = Traces::parse("x.safetensors", &good, b"{").unwrap_err().to_string();
    assert!(error.contains("x.json") && error.contains("column"), "{error}");
}
