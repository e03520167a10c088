//! Reads the bodies of deliveries. A sender is unauthenticated until its whole body is read and the signature
//! is verified, so the memory for all bodies is limited, and slow senders give way to others.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use http_body_util::BodyExt as _;
use memmap2::{MmapMut, MmapOptions};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::connections::Connection;
use super::{ErrorCode, Problem};

/// Bodies up to this size, in bytes, are read at once; the number of connections limits them. Most of
/// GitHub's are smaller.
const SMALL_BYTES_MAX: usize = 16 << 10;

/// Bodies up to this size, in bytes, are stored on the heap. Larger ones are mapped, because the allocator does
/// not return all freed memory to the operating system.
const HEAP_BYTES_MAX: usize = 4 << 10;

/// Bodies up to this size, in bytes, share [`MEDIUM_MEMORY_KIB`]. Larger bodies are read one at a time.
const MEDIUM_BYTES_MAX: usize = 3 << 19;

/// The memory of all medium bodies, in KiB.
const MEDIUM_MEMORY_KIB: usize = 32 << 10;

/// One large body that is being read and two that wait; further ones are rejected.
const LARGE_BODIES_MAX: usize = 3;

/// The maximum time to receive a body, and to wait for memory. GitHub waits ten seconds for a response.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A sender is slow while it sends less than [`WINDOW_BYTES_MIN`] within this time, which is longer than a round
/// trip around the world.
const WINDOW: Duration = Duration::from_millis(300);

/// See [`WINDOW`].
const WINDOW_BYTES_MIN: usize = 4 << 10;

/// While others wait for memory, a sender must send this much within [`WINDOW`], in bytes. Otherwise, few senders
/// that are just fast enough could occupy all of it.
const WINDOW_BYTES_MIN_IF_WANTED: usize = 48 << 10;

/// The maximum time in total for which a sender may be slow, even if nobody waits.
const SLOW_MAX: Duration = Duration::from_secs(3);

/// The memory for the bodies of all clients.
#[derive(Debug)]
pub struct BodyMemory {
    /// One permit for each KiB.
    medium: Pool,
    /// One permit for the body that is being read.
    large: Pool,
    large_bodies: Semaphore,
}

#[derive(Debug)]
struct Pool {
    permits: Semaphore,
    waiting: AtomicUsize,
}

impl Pool {
    fn new(permits: usize) -> Self {
        Self {
            permits: Semaphore::new(permits),
            waiting: AtomicUsize::new(0),
        }
    }

    async fn acquire(&self, permits: usize) -> Result<Memory<'_>, Problem> {
        let _waiting = Waiting::begin(&self.waiting);
        let permits = self.permits.acquire_many(permits as u32).await;
        Ok(Memory {
            pool: self,
            _permits: permits.map_err(|_| busy())?,
        })
    }
}

/// Counts a waiting sender until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A share of a pool.
#[derive(Debug)]
struct Memory<'m> {
    pool: &'m Pool,
    _permits: SemaphorePermit<'m>,
}

impl Memory<'_> {
    fn is_wanted(&self) -> bool {
        self.pool.waiting.load(Ordering::Relaxed) > 0
    }
}

/// A body and its share of the memory.
#[derive(Debug, Default)]
pub struct ReceivedBody<'m> {
    /// All bytes of a body up to [`HEAP_BYTES_MAX`].
    heap: Vec<u8>,
    /// All bytes of a larger body. The pages of a mapping use memory once they are written, and are returned when
    /// it is dropped.
    mapped: Option<MmapMut>,
    length: usize,
    medium: Option<Memory<'m>>,
    large: Option<(Memory<'m>, SemaphorePermit<'m>)>,
}

impl ReceivedBody<'_> {
    /// The received bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.mapped {
            Some(mapped) => &mapped[..self.length],
            None => &self.heap,
        }
    }

    /// Appends `part` to a body that has `limit` bytes at most.
    fn append(&mut self, part: &[u8], limit: usize) -> io::Result<()> {
        let end = self.length + part.len();
        if end > HEAP_BYTES_MAX && self.mapped.is_none() {
            let mut mapped = MmapOptions::new().len(limit).no_reserve_swap().map_anon()?;
            mapped[..self.length].copy_from_slice(&self.heap);
            self.heap = Vec::new();
            self.mapped = Some(mapped);
        }
        match &mut self.mapped {
            Some(mapped) => mapped[self.length..end].copy_from_slice(part),
            None => self.heap.extend_from_slice(part),
        }
        self.length = end;
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        let large = self.large.as_ref().map(|(memory, _)| memory);
        self.medium.iter().chain(large).any(Memory::is_wanted)
    }
}

impl Default for BodyMemory {
    fn default() -> Self {
        Self {
            medium: Pool::new(MEDIUM_MEMORY_KIB),
            large: Pool::new(1),
            large_bodies: Semaphore::new(LARGE_BODIES_MAX),
        }
    }
}

impl BodyMemory {
    /// Reads a body of at most `limit` bytes, and calls `inspect` with each part of it. `declared` is the value
    /// of the header `content-length`, in bytes.
    ///
    /// # Errors
    /// Fails if the body is too large, incomplete or slow, or if there is no memory for it.
    pub async fn read(
        &self,
        connection: &Connection,
        body: Body,
        declared: Option<usize>,
        limit: usize,
        inspect: impl FnMut(&[u8]),
    ) -> Result<ReceivedBody<'_>, Problem> {
        if declared.is_some_and(|declared| declared > limit) {
            return Err(too_large(limit));
        }
        let read = self.read_parts(connection, body, declared.unwrap_or(limit), inspect);
        timeout(BODY_TIMEOUT, read).await.map_err(|_| too_slow())?
    }

    async fn read_parts(
        &self,
        connection: &Connection,
        mut body: Body,
        limit: usize,
        mut inspect: impl FnMut(&[u8]),
    ) -> Result<ReceivedBody<'_>, Problem> {
        let mut received = ReceivedBody::default();
        let (mut slow, mut window, mut in_window) = (Duration::ZERO, Instant::now(), 0);
        loop {
            if window.elapsed() >= WINDOW {
                if in_window < WINDOW_BYTES_MIN {
                    slow += window.elapsed();
                }
                if slow > SLOW_MAX {
                    return Err(too_slow());
                }
                if in_window < WINDOW_BYTES_MIN_IF_WANTED && received.is_wanted() {
                    return Err(busy());
                }
                (window, in_window) = (Instant::now(), 0);
            }
            let left = WINDOW.saturating_sub(window.elapsed());
            let Ok(frame) = timeout(left, body.frame()).await else {
                continue;
            };
            let Some(frame) = frame else {
                return Ok(received);
            };
            let frame = frame.map_err(|_| {
                Problem::malformed("The request body is incomplete. Redeliver the webhook.")
            })?;
            let Ok(part) = frame.into_data() else {
                continue;
            };
            in_window += part.len();
            let length = received.length + part.len();
            if length > limit {
                return Err(too_large(limit));
            }
            let began = Instant::now();
            self.reserve(connection, &mut received, length, limit)
                .await?;
            // The sender is not slow while it waits.
            window += began.elapsed();
            inspect(&part);
            received.append(&part, limit).map_err(|_| busy())?;
        }
    }

    /// Reserves memory for `length` bytes of a body that has `limit` bytes at most.
    async fn reserve<'m>(
        &'m self,
        connection: &Connection,
        received: &mut ReceivedBody<'m>,
        length: usize,
        limit: usize,
    ) -> Result<(), Problem> {
        if length > SMALL_BYTES_MAX && received.medium.is_none() {
            let bytes = limit.min(MEDIUM_BYTES_MAX);
            let memory = self.medium.acquire(bytes.div_ceil(1024));
            received.medium = Some(connection.pause(memory).await?);
        }
        if length > MEDIUM_BYTES_MAX && received.large.is_none() {
            let queued = self.large_bodies.try_acquire().map_err(|_| busy())?;
            let memory = connection.pause(self.large.acquire(1)).await?;
            received.large = Some((memory, queued));
        }
        Ok(())
    }
}

fn too_large(limit: usize) -> Problem {
    Problem::new(
        ErrorCode::PayloadTooLarge,
        format!("The request body is larger than {limit} bytes. Send a smaller body."),
    )
}

fn too_slow() -> Problem {
    Problem::malformed("The request body arrived too slowly. Redeliver the webhook.")
}

fn busy() -> Problem {
    Problem::new(
        ErrorCode::Busy,
        "The server is reading too many large request bodies. Redeliver the webhook in a few seconds.",
    )
}
