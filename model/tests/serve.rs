//! The server: every request gets the tokens it would get alone, or its own error; nothing leaks.

mod common;

use std::collections::BTreeMap;

use common::{CONTEXT, Folder, Variant, prompt};
use psa::{CacheConfig, Capacity, Device, KvCache, Policy};
use psa_model::{Decoder, Llama, Model, ModelError, Outcome, Prompt, Request, Sampler, Server};

const SAMPLER: Sampler = Sampler { temperature: 20.0, top_p: 1.0, seed: 3 };
const POLICY: Policy = Policy::Progressive { mass: 0.6 };

fn server(model: &Llama, pool: usize, batch: usize) -> Server<'_> {
    let config = CacheConfig {
        capacity: Capacity::Tokens(pool),
        max_sequences: 4,
        max_tokens: Some(CONTEXT),
        ..CacheConfig::default()
    };
    let cache = KvCache::new(&Device::cpu(), model.config().shape(), config).unwrap();
    Server::new(Decoder::new(model), cache, POLICY, SAMPLER, batch)
}

fn request(id: u64, tokens: usize, new_tokens: usize) -> Request {
    Request { id, arrival: 0.0, prompt: Prompt::Tokens(prompt(tokens, id)), new_tokens }
}

fn serve(server: &mut Server<'_>, requests: &[Request]) -> BTreeMap<u64, Outcome> {
    requests.iter().for_each(|request| server.submit(request.clone()));
    while server.busy() {
        server.iterate().unwrap();
    }
    server.ended().into_iter().map(|outcome| (outcome.id, outcome)).collect()
}

fn alone(model: &Llama, request: &Request) -> Vec<u32> {
    let mut outcomes = serve(&mut server(model, 4 * CONTEXT, 1), std::slice::from_ref(request));
    outcomes.remove(&request.id).unwrap().tokens
}

#[test]
fn requests_get_the_tokens_they_would_get_alone_also_when_swapped_out() {
    let folder = Folder::new("serve");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let requests: Vec<Request> = (0..6).map(|id| request(id, 150 + 40 * id as usize, 40)).collect();
    let expected: Vec<Vec<u32>> = requests.iter().map(|request| alone(&model, request)).collect();
    assert_ne!(expected[0], expected[1]);
    // A pool for everybody, one for about two, and one that holds the longest request only.
    for (pool, swaps) in [(6 * CONTEXT, false), (640, true), (400, false)] {
        let mut server = server(&model, pool, 4);
        let outcomes = serve(&mut server, &requests);
        for (request, tokens) in requests.iter().zip(&expected) {
            let outcome = &outcomes[&request.id];
            assert!(outcome.error.is_none(), "{:?}", outcome.error);
            assert_eq!(&outcome.tokens, tokens, "request {} in a pool of {pool}", request.id);
            assert_eq!(outcome.times.len(), tokens.len());
        }
        if swaps {
            assert!(
                outcomes.values().any(|outcome| outcome.preemptions > 0),
                "the pool is too large for the test"
            );
        }
        assert!(server.load().peak_slots <= pool / 16 * 4);
    }
}

#[test]
fn a_prompt_prefilled_elsewhere_gives_the_same_tokens() {
    let folder = Folder::new("elsewhere");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let decoder = Decoder::new(&model);
    let tokens = prompt(200, 9);
    let mut cache = KvCache::new(&Device::cpu(), model.config().shape(), CacheConfig::default()).unwrap();
    let sequence = cache.add_sequence().unwrap();
    decoder.prefill(&mut cache, sequence, &tokens[..199], &mut |_| true).unwrap();
    let snapshot = std::sync::Arc::new(decoder.snapshot(&mut cache, sequence).unwrap());
    let arrives = Request {
        id: 1,
        arrival: 0.0,
        prompt: Prompt::Prefilled(snapshot, 199, tokens[199]),
        new_tokens: 20,
    };
    let others = [arrives.clone(), request(2, 180, 20)];
    let expected = alone(&model, &arrives);
    assert_eq!(expected.len(), 20);
    assert_eq!(serve(&mut server(&model, 500, 4), &others)[&1].tokens, expected);
}

#[test]
fn requests_that_can_never_run_end_at_once_with_the_reason_and_the_others_run() {
    let folder = Folder::new("refused");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let mut server = server(&model, 320, 4);
    let good = request(0, 100, 10);
    let mut unknown = request(4, 30, 5);
    unknown.prompt = Prompt::Tokens(vec![5, 1_000_000]);
    let requests = [request(1, 0, 5), request(2, CONTEXT, 5), request(3, 320, 5), unknown, good.clone()];
    let outcomes = serve(&mut server, &requests);
    let error = |id: u64| outcomes[&id].error.as_ref().unwrap().to_string();
    for (id, part) in [(1, "empty"), (2, "1029"), (3, "exhausted"), (4, "1000000")] {
        assert!(error(id).contains(part), "{}", error(id));
    }
    assert_eq!(outcomes[&0].tokens, alone(&model, &good));
}

#[test]
fn cancelled_requests_end_with_what_they_have_and_free_their_memory() {
    let folder = Folder::new("cancelled");
    let model = Llama::open(&folder.model(&Variant::default())).unwrap();
    let mut server = server(&model, 4 * CONTEXT, 2);
    let requests = [request(0, 100, 30), request(1, 600, 30), request(2, 50, 30)];
    requests.iter().for_each(|request| server.submit(request.clone()));
    for _ in 0..3 {
        server.iterate().unwrap();
    }
    // One decodes, one is in its prompt, one waits.
    for id in 0..3 {
        assert!(server.cancel(id).unwrap(), "{id}");
        assert!(!server.cancel(id).unwrap());
    }
    assert!(!server.busy());
    let outcomes: BTreeMap<u64, Outcome> =
        server.ended().into_iter().map(|outcome| (outcome.id, outcome)).collect();
    assert!(outcomes.values().all(|outcome| matches!(outcome.error, Some(ModelError::Interrupted))));
    assert_eq!(outcomes[&0].tokens, alone(&model, &requests[0])[..outcomes[&0].tokens.len()]);
    assert!(!outcomes[&0].tokens.is_empty());
    // Everything is free again: the largest request runs.
    let again = request(7, 900, 20);
    assert_eq!(serve(&mut server, std::slice::from_ref(&again))[&7].tokens, alone(&model, &again));
}

#[test]
fn a_poisoned_request_fails_alone() {
    let folder = Folder::new("serve-poison");
    let variant = Variant {
        poison: Some(9),
        embedding: candle_core::quantized::GgmlDType::F32,
        tied: false,
        ..Variant::default()
    };
    let model = Llama::open(&folder.model(&variant)).unwrap();
    let without = |id: u64| {
        let tokens: Vec<u32> = prompt(120, id).into_iter().filter(|&token| token != 9).collect();
        Request { id, arrival: 0.0, prompt: Prompt::Tokens(tokens), new_tokens: 4 }
    };
    let mut bad = without(5);
    if let Prompt::Tokens(tokens) = &mut bad.prompt {
        tokens.push(9);
    }
    let good = [without(1), without(2)];
    let outcomes = serve(&mut server(&model, 4 * CONTEXT, 4), &[good[0].clone(), bad, good[1].clone()]);
    assert!(matches!(outcomes[&5].error, Some(ModelError::Poisoned { .. })), "{:?}", outcomes[&5].error);
    for request in &good {
        let outcome = &outcomes[&request.id];
        // It may draw the poisoned token itself; then it ends like the others of its kind, as it would alone.
        assert_eq!(outcome.tokens, alone(&model, request));
    }
}
