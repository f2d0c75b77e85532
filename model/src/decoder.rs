//! A model and a cache together: prefill in chunks, decode steps of any batch and policy, snapshots.
//!
//! Every call checks first what can be checked (tokens, context, free slots of *all* layers) and computes then, so
//! that a refusal leaves the sequences as they were. A number that is not finite poisons its own sequence only:
//! rows do not mix, so the step goes on for the others and the poisoned entry gets [`ModelError::Poisoned`].

use std::time::Instant;

use half::f16;
use kernels_gpu::layout::blocks;
use psa::{DecodePlan, KvCache, SequenceId};

use crate::error::ModelError;
use crate::llama::{Model, Projections};
use crate::prefill::{self, Keys};

/// Tokens of a prefill chunk where nobody says otherwise.
pub const CHUNK: usize = 256;

/// Logits of a step: one row a sequence, or why there is none.
pub type StepLogits = Vec<Result<Vec<f32>, ModelError>>;

/// What went into attention in one layer of a step, and what came out.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// Layer.
    pub layer: usize,
    /// `[batch, q_heads, head_dim]`.
    pub q: &'a [f16],
    /// `[batch, q_heads, head_dim]`.
    pub out: &'a [f32],
    /// `[batch, q_heads]`.
    pub lse: &'a [f32],
    /// Seconds that attention took, of all sequences.
    pub seconds: f64,
}

/// Sees every layer of a step after attention.
pub type Watch<'a> = dyn FnMut(Attended<'_>, &DecodePlan, &mut KvCache) -> Result<(), ModelError> + 'a;

/// K and V of a sequence, copied out of a cache: `[layers]` of k and v `[tokens, kv_heads, head_dim]`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    layers: Vec<(Vec<f16>, Vec<f16>)>,
}

/// Runs a model on caches of its shape.
#[derive(Clone, Copy)]
pub struct Decoder<'m> {
    model: &'m dyn Model,
}

impl<'m> Decoder<'m> {
    /// A decoder.
    pub fn new(model: &'m dyn Model) -> Decoder<'m> {
        Decoder { model }
    }

    /// The model.
    pub fn model(&self) -> &'m dyn Model {
        self.model
    }

    /// Free slots that `new` more tokens of a sequence of `tokens` take, over all layers.
    pub(crate) fn slots(&self, tokens: usize, new: usize) -> usize {
        let config = self.model.config();
        (blocks(tokens + new) - blocks(tokens)) * config.layers * config.kv_heads
    }

    fn admit(&self, cache: &KvCache, growth: &[(SequenceId, usize)]) -> Result<Vec<usize>, ModelError> {
        let context = self.model.config().context;
        let (mut starts, mut needed) = (vec![], 0);
        for &(sequence, new) in growth {
            let tokens = cache.len(sequence)?;
            if tokens + new > context {
                return Err(ModelError::TooLong { tokens: tokens + new, context });
            }
            if tokens + new > cache.max_tokens() {
                return Err(
                    psa::Error::ContextTooLong { tokens: tokens + new, limit: cache.max_tokens() }.into()
                );
            }
            needed += self.slots(tokens, new);
            starts.push(tokens);
        }
        let pool = cache.pool_use();
        if needed > pool.free_slots {
            let held: usize = growth.iter().zip(&starts).map(|(_, &tokens)| self.slots(0, tokens)).sum();
            let evictable = (pool.slots - pool.free_slots).saturating_sub(held);
            return Err(psa::Error::PoolExhausted { needed, free: pool.free_slots, evictable }.into());
        }
        Ok(starts)
    }

    /// Appends a prompt, or a part of one, with dense attention, [`CHUNK`] tokens at a time, and returns the logits after
    /// its last token. `go_on` is called after every chunk with the tokens done; false interrupts: the sequence then
    /// holds what was done, and the rest may follow later.
    ///
    /// # Errors
    /// [`ModelError::EmptyPrompt`], [`ModelError::UnknownToken`], [`ModelError::TooLong`],
    /// [`psa::Error::PoolExhausted`], all before anything is written; [`ModelError::Poisoned`] and the device's leave
    /// the sequence half written: remove it.
    pub fn prefill(
        &self,
        cache: &mut KvCache,
        sequence: SequenceId,
        tokens: &[u32],
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<f32>, ModelError> {
        if tokens.is_empty() {
            return Err(ModelError::EmptyPrompt);
        }
        self.admit(cache, &[(sequence, tokens.len())])?;
        let vocabulary = self.model.config().vocabulary;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(ModelError::UnknownToken { token, vocabulary });
        }
        let mut last = vec![];
        let mut done = 0;
        for chunk in tokens.chunks(CHUNK) {
            let hidden = self.prefill_chunk(cache, sequence, chunk)?;
            done += chunk.len();
            last = hidden[hidden.len() - self.model.config().hidden..].to_vec();
            if !go_on(done) {
                return Err(ModelError::Interrupted);
            }
        }
        let logits = self.model.logits(&last);
        match logits.iter().all(|x| x.is_finite()) {
            true => Ok(logits),
            false => Err(ModelError::Poisoned { entry: 0, layer: self.model.config().layers }),
        }
    }

    fn prefill_chunk(
        &self,
        cache: &mut KvCache,
        sequence: SequenceId,
        tokens: &[u32],
    ) -> Result<Vec<f32>, ModelError> {
        let config = self.model.config();
        let group = config.q_heads / config.kv_heads;
        let start = cache.len(sequence)?;
        let positions: Vec<usize> = (start..start + tokens.len()).collect();
        let mut hidden = self.model.embed(tokens)?;
        let mut p = Projections::default();
        let mut attention = vec![0.0; tokens.len() * config.q_heads * config.head_dim];
        for layer in 0..config.layers {
            self.model.project(layer, &hidden, &positions, &mut p);
            let (k, v) = (halves(&p.k), halves(&p.v));
            if !(k.iter().chain(&v).all(|x| x.is_finite()) && p.q.iter().all(|x| x.is_finite())) {
                return Err(ModelError::Poisoned { entry: 0, layer });
            }
            cache.append(sequence, layer, &k, &v)?;
            // As decode steps see them.
            p.q.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
            for kv_head in 0..config.kv_heads {
                let (k, v) = cache.keys_and_values(sequence, layer, kv_head, start + tokens.len())?;
                let keys = Keys::new(&k, &v, config.head_dim);
                prefill::attend(&keys, &p.q, &mut attention, config.q_heads, kv_head * group, group, start);
            }
            self.model.advance(layer, &attention, &mut hidden);
        }
        Ok(hidden)
    }

    /// One token of every sequence of the plan: appends them, attends by the plan's policy, and returns the
    /// logits of each. tokens: `[batch]`.
    ///
    /// # Errors
    /// As [`Decoder::prefill`], for all or none; a poisoned sequence is an entry of the result.
    pub fn step(
        &self,
        cache: &mut KvCache,
        plan: &mut DecodePlan,
        tokens: &[u32],
    ) -> Result<StepLogits, ModelError> {
        self.watched_step(cache, plan, tokens, &mut |_, _, _| Ok(()))
    }

    /// As [`Decoder::step`], showing every layer to `watch`.
    ///
    /// # Errors
    /// As [`Decoder::step`], and those of `watch`.
    pub fn watched_step(
        &self,
        cache: &mut KvCache,
        plan: &mut DecodePlan,
        tokens: &[u32],
        watch: &mut Watch<'_>,
    ) -> Result<StepLogits, ModelError> {
        let config = self.model.config();
        let sequences = plan.sequences().to_vec();
        if tokens.len() != sequences.len() {
            let layout = format!("[batch = {}]", sequences.len());
            let (expected, got) = (sequences.len(), tokens.len());
            return Err(psa::Error::Length { tensor: "tokens", expected, got, layout }.into());
        }
        let growth: Vec<_> = sequences.iter().map(|&sequence| (sequence, 1)).collect();
        let positions = self.admit(cache, &growth)?;
        let mut hidden = self.model.embed(tokens)?;
        let mut p = Projections::default();
        let mut attention = vec![0.0; tokens.len() * config.q_heads * config.head_dim];
        let mut lse = vec![0.0; tokens.len() * config.q_heads];
        let mut poisoned: Vec<Option<usize>> = vec![None; tokens.len()];
        for layer in 0..config.layers {
            self.model.project(layer, &hidden, &positions, &mut p);
            let (mut q, mut k, mut v) = (halves(&p.q), halves(&p.k), halves(&p.v));
            for (entry, poisoned) in poisoned.iter_mut().enumerate() {
                let mut rows = [&mut q, &mut k, &mut v].map(|x| {
                    let width = x.len() / tokens.len();
                    &mut x[entry * width..][..width]
                });
                if rows.iter().any(|row| row.iter().any(|x| !x.is_finite())) {
                    // The others go on; this row computes with zeros from here, and nobody sees what comes out.
                    poisoned.get_or_insert(layer);
                    rows.iter_mut().for_each(|row| row.fill(f16::ZERO));
                    hidden[entry * config.hidden..][..config.hidden].fill(0.0);
                }
            }
            cache.append_batch(layer, &sequences, &k, &v)?;
            let start = Instant::now();
            plan.attend_with_lse(cache, layer, &q, &mut attention, &mut lse)?;
            let seconds = start.elapsed().as_secs_f64();
            watch(Attended { layer, q: &q, out: &attention, lse: &lse, seconds }, plan, cache)?;
            self.model.advance(layer, &attention, &mut hidden);
        }
        let logits = self.model.logits(&hidden);
        let rows = logits.chunks_exact(config.vocabulary).zip(poisoned).enumerate();
        Ok(rows
            .map(|(entry, (row, poisoned))| match poisoned {
                Some(layer) => Err(ModelError::Poisoned { entry, layer }),
                None if row.iter().all(|x| x.is_finite()) => Ok(row.to_vec()),
                None => Err(ModelError::Poisoned { entry, layer: config.layers }),
            })
            .collect())
    }

    /// Copies K and V of a sequence, for caches with another mirror.
    ///
    /// # Errors
    /// psa's.
    pub fn snapshot(&self, cache: &mut KvCache, sequence: SequenceId) -> Result<Snapshot, ModelError> {
        let config = self.model.config();
        let (d, kv_heads, tokens) = (config.head_dim, config.kv_heads, cache.len(sequence)?);
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let (mut k, mut v) =
                (vec![f16::ZERO; tokens * kv_heads * d], vec![f16::ZERO; tokens * kv_heads * d]);
            for kv_head in 0..kv_heads {
                let (keys, values) = cache.keys_and_values(sequence, layer, kv_head, tokens)?;
                for (to, from) in [(&mut k, keys), (&mut v, values)] {
                    let rows = to.chunks_exact_mut(kv_heads * d).zip(from.chunks_exact(d));
                    for (to, from) in rows {
                        let to = &mut to[kv_head * d..][..d];
                        to.iter_mut().zip(from).for_each(|(to, &bits)| *to = f16::from_bits(bits));
                    }
                }
            }
            layers.push((k, v));
        }
        Ok(Snapshot { layers })
    }

    /// A new sequence of `cache` that holds what the snapshot holds.
    ///
    /// # Errors
    /// psa's; no sequence is left then.
    pub fn restore(&self, cache: &mut KvCache, snapshot: &Snapshot) -> Result<SequenceId, ModelError> {
        let sequence = cache.add_sequence()?;
        for (layer, (k, v)) in snapshot.layers.iter().enumerate() {
            if let Err(error) = cache.append(sequence, layer, k, v) {
                cache.remove_sequence(sequence)?;
                return Err(error.into());
            }
        }
        Ok(sequence)
    }
}

fn halves(x: &[f32]) -> Vec<f16> {
    x.iter().map(|&x| f16::from_f32(x)).collect()
}
