//! Conservation of slots and pages, and the errors of the pool.

use super::*;
use crate::Dtype;
use proptest::prelude::*;

const SHAPE: Shape = Shape { layers: 2, q_heads: 6, kv_heads: 3, head_dim: 64, dtype: Dtype::F16 };

/// Every slot and page is free or in exactly one row, and the tables say what the lengths say.
fn check_conservation(pool: &Pool) {
    let mut slots: Vec<u32> = pool.free_slots.clone();
    let mut pages: Vec<u32> = pool.free_pages.clone();
    for index in 0..pool.sequences.len() {
        for layer in 0..SHAPE.layers {
            let tokens = pool.tokens(index, layer);
            for head in 0..SHAPE.kv_heads {
                let row = pool.tables.extents.row(index, layer, head);
                slots.extend(&pool.tables.slots(row)[..blocks(tokens)]);
                pages.extend(&pool.tables.pages(row)[..pool.tables.extents.full_groups(tokens)]);
            }
        }
    }
    slots.sort_unstable();
    pages.sort_unstable();
    assert!(slots.into_iter().eq(0..pool.slots as u32), "slots are lost or held twice");
    assert!(pages.into_iter().eq(0..pool.pages as u32), "pages are lost or held twice");
}

#[derive(Clone, Debug)]
enum Step {
    Add,
    Remove(usize),
    Append { which: usize, layer: usize, new: usize, commit: bool },
    AppendBatch { layer: usize, new: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append = (0..8usize, 0..2usize, 0..150usize, prop::bool::weighted(0.8))
        .prop_map(|(which, layer, new, commit)| Step::Append { which, layer, new, commit });
    let batch = (0..2usize, 1..3usize).prop_map(|(layer, new)| Step::AppendBatch { layer, new });
    let remove = (0..8usize).prop_map(Step::Remove);
    prop::collection::vec(prop_oneof![2 => Just(Step::Add), 1 => remove, 8 => append, 4 => batch], 0..200)
}

proptest! {
    #[test]
    fn slots_and_pages_are_conserved_whatever_happens(steps in steps()) {
        let mut pool = Pool::new(&SHAPE, 101, 4, 400);
        let mut live: Vec<SequenceId> = vec![];
        for step in steps {
            let free = (pool.free_slots.clone(), pool.free_pages.clone());
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
                            prop_assert_eq!(&free, &(pool.free_slots.clone(), pool.free_pages.clone()));
                        }
                        Err(_) => {
                            prop_assert_eq!(&free, &(pool.free_slots.clone(), pool.free_pages.clone()));
                            prop_assert_eq!(pool.tokens(index, layer), before);
                        }
                    }
                }
                Step::AppendBatch { layer, new } => {
                    let growth: Vec<_> =
                        live.iter().map(|&id| (pool.index(id).unwrap(), new)).collect();
                    match pool.reserve(layer, &growth) {
                        Ok(r) => pool.commit(r),
                        Err(_) => prop_assert_eq!(&free, &(pool.free_slots.clone(), pool.free_pages.clone())),
                    }
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
