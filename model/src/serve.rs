//! Continuous batching: requests arrive, prompts are prefilled in chunks between decode steps, whoever is ready decodes
//! in one batch, and when the pool is full the youngest is swapped out whole and comes back later.
//!
//! A request ends with its tokens or with its own error; whatever happens to one, the others go on. Answers do not
//! depend on the batch: a preempted request gives the tokens it would have given alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use psa::{DecodePlan, KvCache, Policy, SequenceId};

use crate::decoder::{CHUNK, Decoder, Snapshot};
use crate::error::ModelError;
use crate::reading::Reading;
use crate::sample::Sampler;

/// What a request brings.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Tokens, to be prefilled.
    Tokens(Vec<u32>),
    /// K and V of a prompt that was prefilled elsewhere, its length, and the token that follows.
    Prefilled(Arc<Snapshot>, usize, u32),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its number; the sampler's stream.
    pub id: u64,
    /// When it arrives, in seconds.
    pub arrival: f64,
    /// What it begins with.
    pub prompt: Prompt,
    /// Tokens wanted, at least 1.
    pub new_tokens: usize,
}

/// How a request ended.
#[derive(Debug)]
pub struct Outcome {
    /// The request's number.
    pub id: u64,
    /// When it arrived, in seconds.
    pub arrival: f64,
    /// Tokens, up to the error if there is one.
    pub tokens: Vec<u32>,
    /// When each came, in seconds.
    pub times: Vec<f64>,
    /// How often it was swapped out.
    pub preemptions: usize,
    /// Why it ended early.
    pub error: Option<ModelError>,
}

struct Job {
    request: Request,
    sequence: Option<SequenceId>,
    /// Tokens of the prompt that are in the cache.
    prefilled: usize,
    tokens: Vec<u32>,
    times: Vec<f64>,
    swapped: Option<Snapshot>,
    preemptions: usize,
}

impl Job {
    /// Tokens of K and V that it holds, or will hold when it comes back.
    fn length(&self) -> usize {
        match &self.request.prompt {
            // The last token drawn is not in the cache yet.
            Prompt::Tokens(prompt) => prompt.len() + self.tokens.len().saturating_sub(1),
            Prompt::Prefilled(_, length, _) => length + self.tokens.len(),
        }
    }

    /// The token that its next step feeds.
    fn next(&self) -> u32 {
        match (&self.request.prompt, self.tokens.last()) {
            (_, Some(&token)) => token,
            (Prompt::Prefilled(_, _, token), None) => *token,
            (Prompt::Tokens(_), None) => 0,
        }
    }

    fn end(self, error: Option<ModelError>) -> Outcome {
        let Job { request, tokens, times, preemptions, .. } = self;
        Outcome { id: request.id, arrival: request.arrival, tokens, times, preemptions, error }
    }
}

/// What a server did so far.
#[derive(Clone, Debug)]
pub struct Load {
    /// What decode steps read.
    pub reading: Reading,
    /// Decode steps.
    pub steps: usize,
    /// Tokens that they gave.
    pub step_tokens: usize,
    /// Seconds in prefill.
    pub prefill_seconds: f64,
    /// Seconds in decode steps.
    pub decode_seconds: f64,
    /// Of those, seconds in attention.
    pub attention_seconds: f64,
    /// Most slots in use.
    pub peak_slots: usize,
}

/// A model, a cache, and the requests on it.
pub struct Server<'m> {
    decoder: Decoder<'m>,
    cache: KvCache,
    policy: Policy,
    sampler: Sampler,
    max_batch: usize,
    clock: Instant,
    /// Seconds without work that were not waited for.
    skipped: f64,
    waiting: VecDeque<Job>,
    prefilling: Option<Job>,
    running: Vec<Job>,
    plan: Option<DecodePlan>,
    ended: Vec<Outcome>,
    load: Load,
}

impl<'m> Server<'m> {
    /// A server without requests. Batches have up to `max_batch` sequences, or as many as the cache can hold.
    pub fn new(
        decoder: Decoder<'m>,
        cache: KvCache,
        policy: Policy,
        sampler: Sampler,
        max_batch: usize,
    ) -> Server<'m> {
        let load = Load {
            reading: Reading::new(cache.shape()),
            steps: 0,
            step_tokens: 0,
            prefill_seconds: 0.0,
            decode_seconds: 0.0,
            attention_seconds: 0.0,
            peak_slots: 0,
        };
        Server {
            max_batch: max_batch.min(cache.config().max_sequences).max(1),
            decoder,
            cache,
            policy,
            sampler,
            clock: Instant::now(),
            skipped: 0.0,
            waiting: VecDeque::new(),
            prefilling: None,
            running: vec![],
            plan: None,
            ended: vec![],
            load,
        }
    }

    /// Seconds since the beginning, those skipped included.
    pub fn now(&self) -> f64 {
        self.clock.elapsed().as_secs_f64() + self.skipped
    }

    /// Moves the clock forward to `time`, instead of waiting for it.
    pub fn skip_to(&mut self, time: f64) {
        self.skipped += (time - self.now()).max(0.0);
    }

    /// Takes a request. One that can never run ends at once, with the reason.
    pub fn submit(&mut self, request: Request) {
        let job = Job {
            request,
            sequence: None,
            prefilled: 0,
            tokens: vec![],
            times: vec![],
            swapped: None,
            preemptions: 0,
        };
        match self.refusal(&job) {
            Some(error) => self.ended.push(job.end(Some(error))),
            None => self.waiting.push_back(job),
        }
    }

    fn refusal(&self, job: &Job) -> Option<ModelError> {
        let config = self.decoder.model().config();
        if job.length() == 0 {
            return Some(ModelError::EmptyPrompt);
        }
        if let Prompt::Tokens(tokens) = &job.request.prompt
            && let Some(&token) = tokens.iter().find(|&&token| token as usize >= config.vocabulary)
        {
            return Some(ModelError::UnknownToken { token, vocabulary: config.vocabulary });
        }
        let tokens = job.length() + job.request.new_tokens;
        if tokens > config.context {
            return Some(ModelError::TooLong { tokens, context: config.context });
        }
        if tokens > self.cache.max_tokens() {
            return Some(psa::Error::ContextTooLong { tokens, limit: self.cache.max_tokens() }.into());
        }
        let (needed, slots) = (self.decoder.slots(0, tokens), self.cache.pool_use().slots);
        (needed > slots).then(|| psa::Error::PoolExhausted { needed, free: slots, evictable: 0 }.into())
    }

    /// Ends a request early, with the tokens it has. False where there is none of this number.
    ///
    /// # Errors
    /// psa's.
    pub fn cancel(&mut self, id: u64) -> Result<bool, ModelError> {
        let is = |job: &Job| job.request.id == id;
        let job = match self.waiting.iter().position(is) {
            Some(at) => self.waiting.remove(at),
            None => match self.running.iter().position(is) {
                Some(at) => Some(self.running.remove(at)),
                None => self.prefilling.take_if(|job| is(job)),
            },
        };
        let Some(job) = job else { return Ok(false) };
        self.finish(job, Some(ModelError::Interrupted))?;
        Ok(true)
    }

    fn finish(&mut self, mut job: Job, error: Option<ModelError>) -> Result<(), ModelError> {
        self.plan = None;
        if let Some(sequence) = job.sequence.take() {
            self.cache.remove_sequence(sequence)?;
        }
        self.ended.push(job.end(error));
        Ok(())
    }

    /// True while there are requests.
    pub fn busy(&self) -> bool {
        !self.waiting.is_empty() || self.prefilling.is_some() || !self.running.is_empty()
    }

    /// Requests that ended since the last call.
    pub fn ended(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.ended)
    }

    /// What was done so far.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Admits, prefills one chunk, decodes one step.
    ///
    /// # Errors
    /// Errors of the device: no request can go on.
    pub fn iterate(&mut self) -> Result<(), ModelError> {
        self.admit()?;
        self.prefill_chunk()?;
        self.decode_step()?;
        let pool = self.cache.pool_use();
        self.load.peak_slots = self.load.peak_slots.max(pool.slots - pool.free_slots);
        Ok(())
    }

    /// In the order of arrival; who was swapped out comes first. Admitted is who fits with one more token.
    fn admit(&mut self) -> Result<(), ModelError> {
        while self.prefilling.is_none() && self.running.len() < self.max_batch {
            let Some(mut job) = self.waiting.pop_front() else { return Ok(()) };
            let busy = !self.running.is_empty();
            // Room for everybody's next token too, or the newcomer would be preempted at once.
            let reserve = if busy { self.decoder.slots(0, 16) * (self.running.len() + 1) } else { 0 };
            if self.decoder.slots(0, job.length() + 1) + reserve > self.cache.pool_use().free_slots && busy {
                self.waiting.push_front(job);
                return Ok(());
            }
            let restored = match (job.swapped.take(), &job.request.prompt) {
                (Some(snapshot), _) => Some(self.decoder.restore(&mut self.cache, &snapshot)?),
                (None, Prompt::Prefilled(snapshot, _, _)) => {
                    Some(self.decoder.restore(&mut self.cache, snapshot)?)
                }
                (None, Prompt::Tokens(_)) => None,
            };
            match restored {
                Some(sequence) => {
                    job.sequence = Some(sequence);
                    self.running.push(job);
                    self.plan = None;
                }
                None => {
                    job.sequence = Some(self.cache.add_sequence()?);
                    self.prefilling = Some(job);
                }
            }
        }
        Ok(())
    }

    fn prefill_chunk(&mut self) -> Result<(), ModelError> {
        let Some(mut job) = self.prefilling.take() else { return Ok(()) };
        let (Prompt::Tokens(prompt), Some(sequence)) = (&job.request.prompt, job.sequence) else {
            return Ok(());
        };
        let start = Instant::now();
        let until = (job.prefilled + CHUNK).min(prompt.len());
        let chunk = &prompt[job.prefilled..until];
        let last = until == prompt.len();
        let result = self.decoder.prefill(&mut self.cache, sequence, chunk, &mut |_| true);
        self.load.prefill_seconds += start.elapsed().as_secs_f64();
        match result {
            Ok(logits) => {
                job.prefilled = until;
                if !last {
                    self.prefilling = Some(job);
                    return Ok(());
                }
                job.tokens.push(self.sampler.draw(&logits, job.request.id, 0));
                job.times.push(self.now());
                if job.tokens.len() >= job.request.new_tokens {
                    return self.finish(job, None);
                }
                self.running.push(job);
                self.plan = None;
                Ok(())
            }
            Err(ModelError::Psa(psa::Error::PoolExhausted { .. })) if !self.running.is_empty() => {
                // Whoever decodes goes first: the prompt begins again when there is room.
                self.cache.remove_sequence(sequence)?;
                job.sequence = None;
                job.prefilled = 0;
                job.preemptions += 1;
                self.waiting.push_front(job);
                Ok(())
            }
            Err(
                error @ (ModelError::Poisoned { .. } | ModelError::Psa(psa::Error::PoolExhausted { .. })),
            ) => self.finish(job, Some(error)),
            Err(error) => Err(error),
        }
    }

    fn decode_step(&mut self) -> Result<(), ModelError> {
        while !self.running.is_empty() {
            let mut plan = match self.plan.take() {
                Some(plan) => plan,
                None => {
                    let sequences: Vec<SequenceId> =
                        self.running.iter().filter_map(|job| job.sequence).collect();
                    DecodePlan::new(&self.cache, &sequences, self.policy)?
                }
            };
            let tokens: Vec<u32> = self.running.iter().map(Job::next).collect();
            let start = Instant::now();
            let mut attention = 0.0;
            let rows = self.decoder.watched_step(&mut self.cache, &mut plan, &tokens, &mut |seen, _, _| {
                attention += seen.seconds;
                Ok(())
            });
            let rows = match rows {
                Err(ModelError::Psa(psa::Error::PoolExhausted { .. })) => {
                    self.preempt()?;
                    continue;
                }
                other => other?,
            };
            self.load.decode_seconds += start.elapsed().as_secs_f64();
            self.load.attention_seconds += attention;
            self.load.steps += 1;
            self.load.step_tokens += rows.len();
            self.load.reading.add(&plan, |_| true);
            self.plan = Some(plan);
            return self.take(rows);
        }
        Ok(())
    }

    /// Gives the rows of a step to the running requests, in order.
    fn take(&mut self, rows: crate::StepLogits) -> Result<(), ModelError> {
        let now = self.now();
        for (mut job, row) in std::mem::take(&mut self.running).into_iter().zip(rows) {
            match row {
                Err(error) => self.finish(job, Some(error))?,
                Ok(logits) => {
                    job.tokens.push(self.sampler.draw(&logits, job.request.id, job.tokens.len()));
                    job.times.push(now);
                    match job.tokens.len() >= job.request.new_tokens {
                        true => self.finish(job, None)?,
                        false => self.running.push(job),
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes room: the prompt in progress begins again later, or the youngest sequence is swapped out.
    fn preempt(&mut self) -> Result<(), ModelError> {
        self.plan = None;
        let job = match self.prefilling.take() {
            Some(job) => Some(job),
            None if self.running.len() > 1 => self.running.pop(),
            None => None,
        };
        let Some(mut job) = job else {
            // Nobody to make room: refused on arrival, unless somebody else uses the pool.
            let Some(job) = self.running.pop() else { return Ok(()) };
            let free = self.cache.pool_use().free_slots;
            let needed = self.decoder.slots(job.length(), 1);
            return self.finish(job, Some(psa::Error::PoolExhausted { needed, free, evictable: 0 }.into()));
        };
        if let Some(sequence) = job.sequence.take() {
            if job.tokens.is_empty() && matches!(job.request.prompt, Prompt::Tokens(_)) {
                job.prefilled = 0;
            } else {
                job.swapped = Some(self.decoder.snapshot(&mut self.cache, sequence)?);
            }
            self.cache.remove_sequence(sequence)?;
        }
        job.preemptions += 1;
        self.waiting.push_front(job);
        Ok(())
    }
}
