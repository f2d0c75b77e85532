//! Nothing silent, on any device: bad input is an error that names the values and the remedy, and the cache
//! is afterwards as it was.
//!
//! "As it was" is what `twins` compares: bits, selections, lengths and pools of a cache that has seen the bad
//! call and of one that has not. Hostile files are the business of the program's own tests.

mod twins;

use half::{bf16, f16};
use psa::{Budget, CacheConfig, Capacity, DecodePlan, Device, Error, KvCache, Mirror, Policy, Rows, Shape};
use twins::{Life, POLICY, QUERY, SHAPE, TOKEN, Twins, devices, everywhere, random};

/// `n` elements that are fine but for one.
fn with(n: usize, index: usize, bad: f16) -> Vec<f16> {
    let mut values = vec![f16::ONE; n];
    values[index] = bad;
    values
}

const BAD_VALUES: [f16; 3] = [f16::NAN, f16::INFINITY, f16::NEG_INFINITY];

#[test]
fn shapes_and_configurations_are_refused_with_what_is_supported() {
    for device in devices() {
        let new = |shape: Shape, config: CacheConfig| {
            KvCache::new(&device, shape, config).map(|_| ()).unwrap_err().to_string()
        };
        let plain = CacheConfig::default();
        for (shape, expected) in [
            (Shape { head_dim: 96, ..SHAPE }, ["head_dim = 96", "supported: 64 and 128"]),
            (Shape { head_dim: 0, ..SHAPE }, ["head_dim = 0", "supported: 64 and 128"]),
            (Shape { q_heads: 18, ..SHAPE }, ["18 / 2 = 9", "supported: groups of 1 to 8"]),
            (
                Shape { q_heads: 7, ..SHAPE },
                ["q_heads = 7 is no multiple of kv_heads = 2", "the same number"],
            ),
            (
                Shape { q_heads: 1, ..SHAPE },
                ["q_heads = 1 is no multiple of kv_heads = 2", "the same number"],
            ),
            (Shape { q_heads: 0, ..SHAPE }, ["q_heads = 0", "at least one"]),
            (Shape { kv_heads: 0, ..SHAPE }, ["kv_heads = 0", "at least one"]),
            (Shape { layers: 0, ..SHAPE }, ["layers = 0", "at least one"]),
            (Shape { layers: usize::MAX, ..SHAPE }, ["layers = 18446744073709551615", "at most 4096"]),
        ] {
            let text = new(shape, plain);
            for part in expected {
                assert!(text.contains(part), "{}: {part:?} is missing in: {text}", device.name());
            }
        }
        let longest = device.max_blocks() * 16;
        let (limit, beyond) = (format!("use 1 to {longest}"), format!("max_tokens = {}", longest + 1));
        for (config, expected) in [
            (
                CacheConfig { capacity: Capacity::Tokens(0), ..plain },
                ["Tokens(0) holds 0 slots", "more capacity"],
            ),
            (
                CacheConfig { capacity: Capacity::Bytes(999), ..plain },
                ["Bytes(999) holds 0 slots", "more capacity"],
            ),
            (
                CacheConfig { capacity: Capacity::Tokens(usize::MAX), ..plain },
                ["Tokens(18446744073709551615) is 4611686018427387904 slots", "at most 2^31"],
            ),
            (CacheConfig { max_sequences: 0, ..plain }, ["max_sequences = 0", "use 1 to 65536"]),
            (CacheConfig { max_sequences: 65_537, ..plain }, ["max_sequences = 65537", "use 1 to 65536"]),
            (CacheConfig { max_tokens: Some(0), ..plain }, ["max_tokens = 0", limit.as_str()]),
            (CacheConfig { max_tokens: Some(longest + 1), ..plain }, [beyond.as_str(), limit.as_str()]),
            (
                CacheConfig { max_tokens: Some(131_072), max_sequences: 65_536, ..plain },
                ["block table of 2147483648 entries", "at most 2^30"],
            ),
        ] {
            let text = new(SHAPE, config);
            for part in expected {
                assert!(text.contains(part), "{}: {part:?} is missing in: {text}", device.name());
            }
        }
    }
}

#[test]
fn a_cache_beyond_the_memory_is_refused_instead_of_aborting() {
    // 7.5 TiB.
    let config = CacheConfig { capacity: Capacity::Tokens(7 << 30), ..CacheConfig::default() };
    for device in devices() {
        let text = KvCache::new(&device, SHAPE, config).map(|_| ()).unwrap_err().to_string();
        let remedy = if device.name() == "emulator" { "use a smaller cache" } else { "with less capacity" };
        assert!(text.contains("bytes for") && text.contains(remedy), "{}: {text}", device.name());
    }
}

#[test]
fn wrong_types_and_lengths_of_keys_and_values_change_nothing() {
    everywhere(|twins| {
        // 20 tokens take a new block of either sequence: a slot reserved too early would be missed.
        let good = vec![f16::ONE; 20 * TOKEN];
        let other = vec![bf16::ONE; 20 * TOKEN];
        let remedy = "convert it or create the cache with bf16";
        twins.refuses("k of another type", &["k is bf16, but the cache holds f16", remedy], |life| {
            life.cache.append(life.sequences[0], 0, &other, &good)
        });
        twins.refuses("v of another type", &["v is bf16, but the cache holds f16", remedy], |life| {
            life.cache.append(life.sequences[0], 0, &good, &other)
        });
        let layout = "[tokens = 19, kv_heads = 2, head_dim = 64]";
        twins.refuses("k with a part of a token", &["k has 2559 elements, expected 2432", layout], |life| {
            life.cache.append(life.sequences[1], 0, &good[1..], &good)
        });
        twins.refuses(
            "v shorter than k",
            &["v has 2432 elements, expected 2560", "[tokens = 20, "],
            |life| life.cache.append(life.sequences[1], 1, &good, &good[..19 * TOKEN]),
        );
        twins.refuses("v longer than k", &["v has 2560 elements, expected 2432", layout], |life| {
            life.cache.append(life.sequences[1], 1, &good[..19 * TOKEN], &good)
        });
        let layout = "[tokens = 2, kv_heads = 2, head_dim = 64]";
        twins.refuses("a batch with a row too many", &["k has 384 elements, expected 256", layout], |life| {
            life.cache.append_batch(0, &life.sequences, &good[..3 * TOKEN], &good[..2 * TOKEN])
        });
        twins.refuses("a batch with a row too few", &["v has 128 elements, expected 256", layout], |life| {
            life.cache.append_batch(0, &life.sequences, &good[..2 * TOKEN], &good[..TOKEN])
        });
    });
}

#[test]
fn keys_and_values_that_are_not_finite_are_named_and_change_nothing() {
    everywhere(|twins| {
        let n = 70 * TOKEN;
        let good = vec![f16::ONE; n];
        let remedy = "set CacheConfig::check_finite to false";
        for (bad, index) in BAD_VALUES.into_iter().zip([0, 4097, n - 1]) {
            let odd = with(n, index, bad);
            let k = format!("k[{index}] is not finite");
            twins.refuses(&k, &[&k, remedy], |life| life.cache.append(life.sequences[1], 0, &odd, &good));
            let v = format!("v[{index}] is not finite");
            twins.refuses(&v, &[&v, remedy], |life| life.cache.append(life.sequences[1], 1, &good, &odd));
        }
        // The last row of a batch: the first must not have got its token.
        let odd = with(2 * TOKEN, TOKEN + 7, f16::NAN);
        twins.refuses("a batch", &["v[135] is not finite", remedy], |life| {
            life.cache.append_batch(1, &life.sequences, &good[..2 * TOKEN], &odd)
        });
    });
}

#[test]
fn what_does_not_fit_changes_nothing() {
    everywhere(|twins| {
        let long = vec![f16::ONE; 150 * TOKEN];
        // 40 + 100 tokens: 9 blocks of 2 KV heads where 3 are there. The other sequence holds 9 blocks in 2
        // layers of 2 KV heads.
        let exhausted = ["12 slots needed, 8 free", "up to 36", "more capacity"];
        twins.refuses("the pool is too small", &exhausted, |life| {
            life.cache.append(life.sequences[1], 0, &long[..100 * TOKEN], &long[..100 * TOKEN])
        });
        let limit = ["the limit is 160", "max_tokens"];
        twins.refuses("one long append", &[limit[0], limit[1], "190 tokens"], |life| {
            life.cache.append(life.sequences[1], 1, &long, &long)
        });
        let tokens = format!("{} tokens", 161);
        twins.refuses("one token too many", &[limit[0], limit[1], &tokens], |life| {
            let have = life.cache.layer_len(life.sequences[0], 0)?;
            let n = (161 - have) * TOKEN;
            life.cache.append(life.sequences[0], 0, &long[..n], &long[..n])
        });
        twins.refuses(
            "a sequence too many",
            &["already holds 2 sequences", "max_sequences", "remove one"],
            |life| life.cache.add_sequence(),
        );
    });
}

#[test]
fn an_exhausted_pool_works_again_once_a_sequence_is_removed() {
    for device in devices() {
        let mut life = Life::new(&device);
        let [a, b] = life.sequences;
        let more = random(100 * TOKEN, 77);
        let error = life.cache.append(b, 0, &more, &more).unwrap_err();
        assert!(matches!(error, Error::PoolExhausted { needed: 12, free: 8, evictable: 36 }), "{error}");
        life.cache.remove_sequence(a).unwrap();
        assert_eq!(life.cache.pool_use().free_slots, 8 + 36);
        life.cache.append(b, 0, &more, &more).unwrap();

        // The bits of a cache that never was full.
        let mut fresh = KvCache::new(&device, SHAPE, CacheConfig::default()).unwrap();
        let c = fresh.add_sequence().unwrap();
        fresh.append(c, 0, &random(40 * TOKEN, 400), &random(40 * TOKEN, 405)).unwrap();
        fresh.append(c, 0, &more, &more).unwrap();
        let step = |cache: &mut KvCache, id| {
            let mut out = vec![0.0; QUERY];
            let mut plan = DecodePlan::new(cache, &[id], POLICY).unwrap();
            plan.attend(cache, 0, &random(QUERY, 3), &mut out).unwrap();
            out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(step(&mut life.cache, b), step(&mut fresh, c), "{}", device.name());
    }
}

#[test]
fn unknown_sequences_and_layers_change_nothing() {
    everywhere(|twins| {
        let token = vec![f16::ONE; 2 * TOKEN];
        let one = &token[..TOKEN];
        let gone = ["is not in this cache", "was removed"];
        twins.refuses("append to a removed sequence", &gone, |life| {
            life.cache.append(life.removed, 0, one, one)
        });
        twins.refuses("a removed sequence in a batch", &gone, |life| {
            life.cache.append_batch(0, &[life.sequences[0], life.removed], &token, &token)
        });
        twins.refuses("remove twice", &gone, |life| life.cache.remove_sequence(life.removed));
        twins.refuses("length of a removed sequence", &gone, |life| life.cache.len(life.removed));
        twins.refuses("a plan for a removed sequence", &gone, |life| {
            DecodePlan::new(&life.cache, &[life.sequences[0], life.removed], POLICY)
        });
        let stranger =
            KvCache::new(&Device::cpu(), SHAPE, CacheConfig::default()).unwrap().add_sequence().unwrap();
        twins.refuses("a sequence of another cache", &["belongs to another cache"], |life| {
            life.cache.append(stranger, 0, one, one)
        });
        let twice = ["occurs more than once in the batch", "one row"];
        twins.refuses("a sequence twice in a batch", &twice, |life| {
            life.cache.append_batch(0, &[life.sequences[1], life.sequences[1]], &token, &token)
        });
        twins.refuses("a sequence twice in a plan", &twice, |life| {
            DecodePlan::new(&life.cache, &[life.sequences[1], life.sequences[1]], POLICY)
        });
        let layer = ["layer 2 does not exist", "has 2 (0 to 1)"];
        twins.refuses("append to a layer", &layer, |life| life.cache.append(life.sequences[0], 2, one, one));
        twins.refuses("length of a layer", &layer, |life| life.cache.layer_len(life.sequences[0], 2));
        twins.refuses("attend in a layer", &layer, |life| {
            life.plan.attend(&mut life.cache, 2, &vec![f16::ONE; 2 * QUERY], &mut vec![0.0; 2 * QUERY])
        });
    });
}

/// A bad attention: besides the cache, the results and the report stay as they were.
fn refuses_attention(twins: &mut Twins, what: &str, expected: &[&str], q: Rows<'_>, out: usize, lse: usize) {
    twins.refuses(what, expected, |life| {
        let report = life.plan.report();
        let (mut out, mut lse) = (vec![7.0; out], vec![7.0; lse]);
        let result = life.plan.attend_with_lse(&mut life.cache, 0, q, &mut out, &mut lse);
        assert!(out.iter().chain(&lse).all(|&x| x == 7.0), "{what}: results were written");
        assert_eq!(life.plan.report(), report, "{what}: the report");
        result
    });
}

#[test]
fn wrong_queries_and_results_change_nothing() {
    everywhere(|twins| {
        let (n, heads) = (2 * QUERY, 2 * SHAPE.q_heads);
        let good = vec![f16::ONE; n];
        let layout = "[batch = 2, q_heads = 6, head_dim = 64]";
        let wrong_type = ["q is bf16, but the cache holds f16", "convert it"];
        refuses_attention(twins, "q of another type", &wrong_type, (&vec![bf16::ONE; n]).into(), n, heads);
        let text = format!("q has {} elements, expected {n}", n - 1);
        refuses_attention(twins, "q too short", &[&text, layout], good[1..].into(), n, heads);
        let text = format!("q has {QUERY} elements, expected {n}");
        refuses_attention(twins, "q of one sequence", &[&text, layout], good[..QUERY].into(), n, heads);
        let text = format!("out has {} elements, expected {n}", n + 1);
        refuses_attention(twins, "out too long", &[&text, layout], (&good).into(), n + 1, heads);
        let text = format!("out has 0 elements, expected {n}");
        refuses_attention(twins, "no out", &[&text, layout], (&good).into(), 0, heads);
        let text = format!("lse has {} elements, expected {heads}", heads - 1);
        let layout = "[batch = 2, q_heads = 6]";
        refuses_attention(twins, "lse too short", &[&text, layout], (&good).into(), n, heads - 1);
        for (bad, index) in BAD_VALUES.into_iter().zip([0, QUERY + 3, n - 1]) {
            let text = format!("q[{index}] is not finite");
            let remedy = "check_finite";
            refuses_attention(twins, &text, &[&text, remedy], (&with(n, index, bad)).into(), n, heads);
        }
    });
}

#[test]
fn plans_that_cannot_run_change_nothing() {
    everywhere(|twins| {
        let mut other = Life::new(&twins.device);
        let q = vec![f16::ONE; 2 * QUERY];
        twins.refuses("a foreign plan", &["made for another cache", "DecodePlan::new(&cache"], |life| {
            let mut out = vec![7.0; 2 * QUERY];
            let result = other.plan.attend(&mut life.cache, 0, &q, &mut out);
            assert!(out.iter().all(|&x| x == 7.0));
            result
        });
        let mut policies = vec![
            (Policy::Quest(Budget::Fraction(0.5)), ["quest:0.5", "create the cache with the box mirror"]),
            (Policy::TopK(Budget::Fraction(0.0)), ["top-k:0.0", "above 0 and at most 1"]),
            (Policy::TopK(Budget::Fraction(f64::NAN)), ["top-k:NaN", "above 0 and at most 1"]),
            (Policy::TopK(Budget::Blocks(0)), ["top-k:0", "at least 1"]),
            (Policy::TopP { mass: 1.5 }, ["top-p:1.5", "above 0 and at most 1"]),
            (Policy::Progressive { mass: f32::NAN }, ["progressive:NaN", "above 0 and at most 1"]),
            (Policy::Progressive { mass: -0.5 }, ["progressive:-0.5", "above 0 and at most 1"]),
            (Policy::Oracle { mass: 0.0 }, ["oracle:0", "above 0 and at most 1"]),
        ];
        if twins.device.name() == "emulator" {
            policies.push((
                Policy::Oracle { mass: 0.9 },
                ["does not run on emulator", "use the cpu or reference"],
            ));
        }
        for (policy, expected) in policies {
            let what = format!("{policy}");
            twins.refuses(&what, &expected, |life| DecodePlan::new(&life.cache, &life.sequences, policy));
        }
        for scale in [f32::NAN, f32::INFINITY] {
            let text = format!("scale = {scale}");
            twins.refuses(&text, &[&text, "use a finite number"], |life| {
                DecodePlan::new(&life.cache, &life.sequences, POLICY)?.with_scale(scale)
            });
        }
    });
}

#[test]
fn a_plan_outlives_its_sequence_without_harm() {
    for device in devices() {
        let (mut tried, mut untouched) = (Life::new(&device), Life::new(&device));
        for life in [&mut tried, &mut untouched] {
            life.step();
            life.cache.remove_sequence(life.sequences[1]).unwrap();
        }
        let before = tried.state();
        let (q, mut out) = (vec![f16::ONE; 2 * QUERY], vec![7.0; 2 * QUERY]);
        let error = tried.plan.attend(&mut tried.cache, 0, &q, &mut out).unwrap_err().to_string();
        assert!(error.contains("was removed"), "{error}");
        assert!(out.iter().all(|&x| x == 7.0));
        assert_eq!(tried.state().split(' ').next(), before.split(' ').next());
        // Both get a new second sequence; the old id stays unknown, and the bits are the same.
        for life in [&mut tried, &mut untouched] {
            let id = life.cache.add_sequence().unwrap();
            life.sequences[1] = id;
            life.plan = DecodePlan::new(&life.cache, &life.sequences, POLICY).unwrap().with_record();
        }
        for _ in 0..3 {
            assert_eq!(tried.step(), untouched.step(), "{}", device.name());
        }
    }
}

#[test]
fn policy_and_mirror_texts_are_refused_with_the_text_and_what_would_do() {
    let grammar =
        "use dense, top-k:F, top-p:M, progressive:M, certified:E, quest:F, mean:F, cuboid:F or oracle:M";
    for (text, expected) in [
        ("", grammar),
        ("DENSE", grammar),
        (" dense", grammar),
        ("progressiv:0.95", grammar),
        ("top_k:0.1", grammar),
        (":0.5", grammar),
        ("dense:", "dense takes no parameter"),
        ("dense:0.5", "dense takes no parameter"),
        ("top-k", "as in top-k:0.1 or top-k:64"),
        ("top-k:", "as in top-k:0.1 or top-k:64"),
        ("top-k:ten", "write for example top-k:0.1 or top-k:64"),
        ("top-k:0.1:2", "write for example top-k:0.1 or top-k:64"),
        ("top-k:0", "at least 1"),
        ("top-k:0.0", "above 0 and at most 1"),
        ("top-k:1.0001", "above 0 and at most 1"),
        ("top-k:-1", "above 0 and at most 1"),
        ("top-k:4294967296", "neither a fraction nor a number"),
        ("top-p", "as in top-p:0.95"),
        ("top-p:95%", "write for example top-p:0.95"),
        ("top-p:2", "above 0 and at most 1"),
        ("progressive", "as in progressive:0.95"),
        ("progressive:0,95", "write for example progressive:0.95"),
        ("progressive:0", "above 0 and at most 1"),
        ("progressive:nan", "above 0 and at most 1"),
        ("progressive:inf", "above 0 and at most 1"),
        ("progressive:1e-60", "above 0 and at most 1"),
        ("quest:", "as in quest:0.4 or quest:64"),
        ("quest:1.5", "above 0 and at most 1"),
        ("oracle:-1", "above 0 and at most 1"),
        ("certified:1", "at least 0 and below 1"),
        ("certified:", "as in certified:0.05"),
        ("mean:0", "at least 1"),
        ("cuboid:1.5", "at most 1"),
    ] {
        let error = text.parse::<Policy>().unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(&format!("policy {text:?}")), "{text:?}: {error}");
    }
    for text in ["", "0", "3", "16", "3+3", "Box", "2 "] {
        let error = text.parse::<Mirror>().unwrap_err().to_string();
        assert!(
            error.contains(&format!("mirror {text:?}"))
                && error.contains("use 1, 2, 4, 8 (bits), 2+2 or 4+4 (nested)"),
            "{error}"
        );
    }
}

#[test]
fn the_twins_tell_a_changed_cache_apart() {
    // The twin of all tests above: a call that is accepted where it should not be is noticed.
    for device in devices() {
        let (mut tried, mut untouched) = (Life::new(&device), Life::new(&device));
        assert_eq!(tried.step(), untouched.step());
        let before = tried.state();
        let one = vec![f16::from_f32(0.25); TOKEN];
        tried.cache.append(tried.sequences[0], 1, &one, &one).unwrap();
        assert_ne!(tried.state(), before);
        assert_ne!(tried.step().bits, untouched.step().bits, "{}", device.name());
    }
}
