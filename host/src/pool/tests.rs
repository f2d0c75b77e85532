//! Conservation of slots and pages, and the errors of the pool.

use super::*;
use crate::Dtype;
use proptest::prelude::*;

const SHAPE: Shape = Shape { layers: 2, q_heads: 6, kv_heads: 3, head_dim: 64, dtype: Dtype::F16 };

/// Every block, slot and page is free or held as often as it says; the tables say what the lengths say; what is promised
/// is there.
fn check_conservation(pool: &Pool) {
    let mut refs = vec![0; pool.blocks()];
    let mut page_refs = vec![0; pool.pages];
    let extents = pool.tables.extents;
    for (index, layer) in (0..pool.sequences.len()).flat_map(|s| (0..SHAPE.layers).map(move |l| (s, l))) {
        let tokens = pool.tokens(index, layer);
        for row in pool.rows(index, layer) {
            for block in 0..blocks(tokens) {
                let id = pool.ids[pool.entry(row, block)];
                refs[id as usize] += 1;
                assert_eq!(pool.tables.slots(row)[block], pool.device_slot(id), "a table is stale");
                assert!(pool.blocks.block[id as usize].fill as usize >= (tokens - block * BLOCK).min(BLOCK));
            }
            pool.tables.pages(row)[..extents.full_groups(tokens)]
                .iter()
                .for_each(|&page| page_refs[page as usize] += 1);
        }
    }
    let mut slots = pool.blocks.free_slots.clone();
    for (id, block) in pool.blocks.block.iter().enumerate() {
        assert_eq!(block.refs, refs[id], "block {id}");
        slots.extend((block.slot != NONE).then_some(block.slot));
        assert!(block.refs > 0 || block.slot == NONE, "a free block keeps a slot");
        assert!(
            block.slot != NONE || block.refs == 0 || block.state == blocks::State::Saved,
            "bytes are nowhere"
        );
    }
    slots.sort_unstable();
    assert!(slots.into_iter().eq(0..pool.slots as u32), "slots are lost or held twice");
    assert_eq!(pool.blocks.page_refs, page_refs);
    let free =
        |refs: &[u32]| refs.iter().enumerate().filter(|r| *r.1 == 0).map(|r| r.0 as u32).collect::<Vec<_>>();
    let sorted = |list: &[u32]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list
    };
    assert_eq!(sorted(&pool.blocks.free), free(&refs), "blocks are lost or free twice");
    assert_eq!(sorted(&pool.blocks.free_pages), free(&page_refs), "pages are lost or free twice");
    assert_eq!(pool.blocks.shared, refs.iter().filter(|&&r| r > 1).count());
    let promised = |s: &Sequence| s.live.iter().flat_map(|l| &l.promised).sum::<usize>();
    assert_eq!(pool.promised, pool.sequences.iter().map(promised).sum::<usize>());
    assert!(pool.promised <= pool.blocks.free.len(), "more is promised than there is");
}

type Free = (Vec<u32>, Vec<u32>, Vec<u32>);

fn free_lists(pool: &Pool) -> Free {
    (pool.blocks.free.clone(), pool.blocks.free_slots.clone(), pool.blocks.free_pages.clone())
}

#[derive(Clone, Debug)]
enum Step {
    Add,
    Remove(usize),
    Append { which: usize, layer: usize, new: usize, commit: bool },
    AppendBatch { layer: usize, new: usize },
    Fork { which: usize, tokens: usize },
    Truncate { which: usize, tokens: usize },
    Reserve { which: usize, tokens: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append = (0..8usize, 0..2usize, 0..150usize, prop::bool::weighted(0.8))
        .prop_map(|(which, layer, new, commit)| Step::Append { which, layer, new, commit });
    let batch = (0..2usize, 1..3usize).prop_map(|(layer, new)| Step::AppendBatch { layer, new });
    let remove = (0..8usize).prop_map(Step::Remove);
    let some = || (0..8usize, 0..200usize);
    let fork = some().prop_map(|(which, tokens)| Step::Fork { which, tokens });
    let truncate = some().prop_map(|(which, tokens)| Step::Truncate { which, tokens });
    let reserve = some().prop_map(|(which, tokens)| Step::Reserve { which, tokens });
    let step = prop_oneof![
        2 => Just(Step::Add), 1 => remove, 8 => append, 4 => batch, 2 => fork, 2 => truncate, 1 => reserve
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn slots_and_pages_are_conserved_whatever_happens(steps in steps()) {
        let mut pool = Pool::new(&SHAPE, 101, 4, 400);
        let mut live: Vec<SequenceId> = vec![];
        for step in steps {
            let free = free_lists(&pool);
            match step {
                Step::Add => match pool.add_sequence() {
                    Ok(id) => live.push(id),
                    Err(e) => prop_assert_eq!((e, live.len()), (Error::TooManySequences { limit: 4 }, 4)),
                },
                Step::Remove(which) if !live.is_empty() => {
                    let id = live.swap_remove(which % live.len());
                    pool.remove_sequence(id).unwrap();
                    prop_assert!(pool.remove_sequence(id).is_err(), "a removed id stays invalid");
                }
                Step::Append { which, layer, new, commit } if !live.is_empty() => {
                    let index = pool.index(live[which % live.len()]).unwrap();
                    let before = pool.tokens(index, layer);
                    match pool.reserve(layer, &[(index, new)]) {
                        Ok(r) if commit => {
                            pool.commit(r);
                            prop_assert_eq!(pool.tokens(index, layer), before + new);
                        }
                        Ok(r) => {
                            pool.roll_back(r);
                            prop_assert_eq!(&free, &free_lists(&pool));
                        }
                        Err(_) => {
                            prop_assert_eq!(&free, &free_lists(&pool));
                            prop_assert_eq!(pool.tokens(index, layer), before);
                        }
                    }
                }
                Step::AppendBatch { layer, new } => {
                    let growth: Vec<_> =
                        live.iter().map(|&id| (pool.index(id).unwrap(), new)).collect();
                    match pool.reserve(layer, &growth) {
                        Ok(r) => pool.commit(r),
                        Err(_) => prop_assert_eq!(&free, &free_lists(&pool)),
                    }
                }
                Step::Fork { which, tokens } if !live.is_empty() => {
                    match pool.fork(live[which % live.len()], tokens) {
                        Ok(id) => {
                            prop_assert_eq!(pool.complete_tokens(pool.index(id).unwrap()), tokens);
                            live.push(id);
                        }
                        Err(_) => prop_assert_eq!(&free, &free_lists(&pool)),
                    }
                }
                Step::Truncate { which, tokens } if !live.is_empty() => {
                    let id = live[which % live.len()];
                    let index = pool.index(id).unwrap();
                    let before = [0, 1].map(|layer| pool.tokens(index, layer));
                    match pool.truncate(id, tokens) {
                        Ok(()) => {
                            let after = [0, 1].map(|layer| pool.tokens(index, layer));
                            prop_assert_eq!(after, before.map(|n| n.min(tokens)));
                        }
                        Err(_) => prop_assert_eq!(&free, &free_lists(&pool)),
                    }
                }
                Step::Reserve { which, tokens } if !live.is_empty() => {
                    let _ = pool.reserve_for(live[which % live.len()], tokens);
                    prop_assert_eq!(&free, &free_lists(&pool));
                }
                _ => {}
            }
            check_conservation(&pool);
        }
        for id in live {
            pool.remove_sequence(id).unwrap();
        }
        prop_assert_eq!((pool.free_slots(), pool.free_pages()), (101, 25));
    }
}

#[test]
fn exhaustion_says_what_is_needed_free_and_evictable() {
    let mut pool = Pool::new(&SHAPE, 12, 2, 400);
    let (a, b) = (pool.add_sequence().unwrap(), pool.add_sequence().unwrap());
    let (a, b) = (pool.index(a).unwrap(), pool.index(b).unwrap());
    let r = pool.reserve(0, &[(a, 17)]).unwrap(); // 2 blocks of 3 heads
    pool.commit(r);
    let r = pool.reserve(1, &[(b, 1)]).unwrap();
    pool.commit(r);
    let error = pool.reserve(0, &[(b, 32)]).unwrap_err();
    assert_eq!(error, Error::PoolExhausted { needed: 6, free: 3, evictable: 6 });
    assert!(error.to_string().contains("6 slots needed, 3 free"));
    let r = pool.reserve(0, &[(b, 16)]).unwrap();
    pool.commit(r);
    assert_eq!(pool.free_slots(), 0);
}

#[test]
fn ids_of_other_caches_and_duplicates_are_refused() {
    let mut pool = Pool::new(&SHAPE, 12, 2, 400);
    let mut other = Pool::new(&SHAPE, 12, 2, 400);
    let (a, b) = (pool.add_sequence().unwrap(), other.add_sequence().unwrap());
    assert!(matches!(pool.index(b), Err(Error::UnknownSequence { .. })));
    assert!(matches!(pool.indices(&[a, a]), Err(Error::DuplicateSequence { .. })));
    assert_eq!(pool.indices(&[a]).unwrap(), [0]);
}

#[test]
fn the_id_of_a_removed_sequence_does_not_name_its_successor() {
    let mut pool = Pool::new(&SHAPE, 12, 1, 400);
    let old = pool.add_sequence().unwrap();
    pool.remove_sequence(old).unwrap();
    let new = pool.add_sequence().unwrap();
    assert!(matches!(pool.index(old), Err(Error::UnknownSequence { .. })));
    assert_eq!(pool.index(new), Ok(0));
}

#[test]
fn contexts_beyond_the_limit_are_refused() {
    let mut pool = Pool::new(&SHAPE, 1000, 1, 100);
    let a = pool.add_sequence().unwrap();
    let a = pool.index(a).unwrap();
    let error = pool.reserve(0, &[(a, 101)]).unwrap_err();
    assert_eq!(error, Error::ContextTooLong { tokens: 101, limit: 100 });
    let r = pool.reserve(0, &[(a, 100)]).unwrap();
    pool.commit(r);
    assert!(pool.reserve(0, &[(a, usize::MAX)]).is_err());
}

#[test]
fn what_is_reserved_is_there_whatever_others_ask_for() {
    let mut pool = Pool::new(&SHAPE, 30, 3, 400); // 5 blocks in every layer and head
    let (a, b) = (pool.add_sequence().unwrap(), pool.add_sequence().unwrap());
    let [ia, ib] = [a, b].map(|id| pool.index(id).unwrap());
    pool.reserve_for(a, 48).unwrap();
    assert_eq!((pool.reserved_blocks(), pool.free_blocks()), (18, 30));
    let error = pool.reserve(0, &[(ib, 65)]).unwrap_err();
    assert_eq!(error, Error::PoolExhausted { needed: 15, free: 12, evictable: 0 });
    for layer in 0..2 {
        let r = pool.reserve(layer, &[(ib, 32)]).unwrap();
        pool.commit(r);
    }
    assert!(pool.reserve(0, &[(ib, 1)]).is_err(), "the rest is reserved");
    let error = pool.reserve_for(b, 33).unwrap_err();
    assert_eq!(error, Error::PoolExhausted { needed: 6, free: 0, evictable: 0 });
    for layer in 0..2 {
        let r = pool.reserve(layer, &[(ia, 48)]).unwrap();
        pool.commit(r);
    }
    assert_eq!((pool.reserved_blocks(), pool.free_blocks()), (0, 0));
    check_conservation(&pool);
}

#[test]
fn a_fork_that_would_break_a_reservation_is_refused() {
    let mut pool = Pool::new(&SHAPE, 12, 3, 400); // 2 blocks in every layer and head
    let a = pool.add_sequence().unwrap();
    let ia = pool.index(a).unwrap();
    for layer in 0..2 {
        let r = pool.reserve(layer, &[(ia, 8)]).unwrap();
        pool.commit(r);
    }
    pool.reserve_for(a, 32).unwrap();
    // a must copy its open blocks before it grows, and those 6 blocks are not there.
    let error = pool.fork(a, 8).unwrap_err();
    assert_eq!(error, Error::PoolExhausted { needed: 12, free: 6, evictable: 0 });
    check_conservation(&pool);
    pool.reserve_for(a, 0).unwrap();
    pool.fork(a, 8).unwrap();
    assert!(matches!(pool.fork(a, 9), Err(Error::BeyondEnd { tokens: 9, length: 8, .. })));
    check_conservation(&pool);
}

#[test]
fn a_published_prefix_is_found_as_long_as_somebody_begins_with_it() {
    let mut pool = Pool::new(&SHAPE, 600, 4, 400);
    let a = pool.add_sequence().unwrap();
    let ia = pool.index(a).unwrap();
    for layer in 0..2 {
        let r = pool.reserve(layer, &[(ia, 200)]).unwrap();
        pool.commit(r);
    }
    let tokens: Vec<u32> = (0..200).collect();
    assert!(pool.publish_prefix(a, &[0; 201]).is_err());
    pool.publish_prefix(a, &tokens).unwrap();
    assert_eq!(pool.find_prefix(&tokens), Some((a, 192)), "full groups only");
    assert_eq!(pool.find_prefix(&tokens[..100]), Some((a, 64)));
    let mut other = tokens.clone();
    other[70] = 999;
    assert_eq!(pool.find_prefix(&other), Some((a, 64)));
    assert_eq!(pool.find_prefix(&other[1..]), None);
    let b = pool.fork(a, 128).unwrap();
    pool.truncate(a, 100).unwrap();
    assert_eq!(pool.find_prefix(&tokens), Some((b, 128)));
    pool.remove_sequence(a).unwrap();
    assert_eq!(pool.find_prefix(&tokens), Some((b, 128)));
    pool.remove_sequence(b).unwrap();
    assert_eq!(pool.find_prefix(&tokens), None);
    check_conservation(&pool);
}
