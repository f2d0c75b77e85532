//! Uploads through pinned memory: the caller's data is free at once, and the copy runs behind the stream.
//!
//! A ring of chunks. An event marks the last copy out of a chunk, and the chunk is not written again before
//! that event has passed.

use super::raw::{Call, Event, Pinned, Stream};

/// Bytes of a chunk. A decode step's queries fit into one; prefill goes through in pieces.
const CHUNK: usize = 1 << 20;
const CHUNKS: usize = 4;
/// Copies start at multiples of this.
const ALIGN: usize = 16;

struct Chunk {
    memory: Pinned,
    copied: Event,
    /// `copied` was recorded, and nobody has waited for it.
    in_flight: bool,
}

pub(super) struct Staging {
    chunks: Vec<Chunk>,
    current: usize,
    used: usize,
}

impl Staging {
    pub(super) fn new() -> Call<Staging> {
        let chunk = |_| {
            Ok(Chunk { memory: Pinned::new(CHUNK, false)?, copied: Event::new(false)?, in_flight: false })
        };
        Ok(Staging { chunks: (0..CHUNKS).map(chunk).collect::<Call<_>>()?, current: 0, used: 0 })
    }

    pub(super) fn upload(&mut self, stream: &Stream, mut address: u64, mut data: &[u8]) -> Call {
        while !data.is_empty() {
            if self.used == CHUNK {
                self.next(stream)?;
            }
            let (now, rest) = data.split_at(data.len().min(CHUNK - self.used));
            // SAFETY: `used + now.len()` is within the chunk, and no copy reads this part: the stream's last
            // one out of this round lies before `used`, and `next` waited for those of earlier rounds.
            let queued = unsafe {
                let place = self.chunks[self.current].memory.as_ptr().add(self.used);
                place.copy_from_nonoverlapping(now.as_ptr(), now.len());
                stream.upload(address, place, now.len())
            };
            queued?;
            self.used = (self.used + now.len()).next_multiple_of(ALIGN);
            address += now.len() as u64;
            data = rest;
        }
        Ok(())
    }

    /// Goes on to the next chunk, once the copies out of it are done.
    fn next(&mut self, stream: &Stream) -> Call {
        let full = &mut self.chunks[self.current];
        full.copied.record(stream)?;
        full.in_flight = true;
        let next = (self.current + 1) % CHUNKS;
        if self.chunks[next].in_flight {
            self.chunks[next].copied.synchronize()?;
            self.chunks[next].in_flight = false;
        }
        (self.current, self.used) = (next, 0);
        Ok(())
    }

    /// The stream is idle: every chunk is free.
    pub(super) fn idle(&mut self) {
        for chunk in &mut self.chunks {
            chunk.in_flight = false;
        }
        (self.current, self.used) = (0, 0);
    }
}
