//! Limits the number of open connections. When there are too many, the slowest client is disconnected, so that
//! clients that send slowly, read slowly or do nothing keep no delivery out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::telemetry::refused::{Reason, refused};

/// The maximum number of open connections.
const CONNECTIONS_MAX: usize = 1024;

/// The maximum number of requests on one connection.
const REQUESTS_MAX: u64 = 1000;

/// The age after which a connection is closed with its next response.
const AGE_MAX: Duration = Duration::from_secs(300);

/// Bytes that count as received at the beginning, so that a new client is not the slowest one.
const CREDIT_BYTES: u64 = 16 << 10;

/// The minimum time before a connection can be closed, so that clients that reconnect constantly leave others
/// enough time for a request.
const UNDISTURBED: Duration = Duration::from_millis(500);

/// The maximum number of connections that are being closed and still occupy memory.
const CLOSING_MAX: usize = 256;

/// How long to wait for a connection that may be closed.
const WAIT: Duration = Duration::from_millis(20);

/// All open connections.
#[derive(Debug)]
pub struct Connections {
    permits: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    clients: HashMap<u64, Client>,
    last_id: u64,
}

#[derive(Debug)]
struct Client {
    /// When the server began to read from this connection, or when the first request after a trusted one began.
    /// `None`: not yet.
    since: Option<Instant>,
    /// The bytes received since then.
    bytes: Arc<AtomicU64>,
    /// Whether the current request has a valid signature or comes from an operator.
    is_trusted: bool,
    /// Whether the server does not read on purpose.
    is_paused: bool,
    /// Cancelled to disconnect the client.
    closing: CancellationToken,
}

impl Client {
    /// Received bytes per second; `None` if the client must not be disconnected.
    fn rate(&self, now: Instant) -> Option<f64> {
        let lasted = now.duration_since(self.since?);
        if self.is_trusted || self.is_paused || lasted < UNDISTURBED {
            return None;
        }
        let bytes = CREDIT_BYTES + self.bytes.load(Ordering::Relaxed);
        Some(bytes as f64 / lasted.as_secs_f64())
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX + CLOSING_MAX)),
            open: Mutex::default(),
        }
    }
}

impl Connections {
    /// Registers a new connection. If there are too many, disconnects the slowest client, or waits while all
    /// of them are trusted.
    pub async fn register(self: &Arc<Self>) -> Connection {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.expect("never closed");
        while !self.open().accepts_another() {
            tokio::time::sleep(WAIT).await;
        }
        let client = Client {
            since: None,
            bytes: Arc::default(),
            is_trusted: false,
            is_paused: false,
            closing: CancellationToken::new(),
        };
        let (bytes, closing) = (client.bytes.clone(), client.closing.clone());
        let id = self.open().insert(client);
        Connection {
            all: self.clone(),
            id,
            opened: Instant::now(),
            requests: AtomicU64::new(0),
            bytes,
            closing,
            _permit: permit,
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("no panic while held")
    }
}

impl Open {
    fn insert(&mut self, client: Client) -> u64 {
        self.last_id += 1;
        self.clients.insert(self.last_id, client);
        self.last_id
    }

    /// Disconnects the client with the lowest receive rate if there are too many connections. Returns whether
    /// another one can be accepted.
    fn accepts_another(&mut self) -> bool {
        if self.clients.len() < CONNECTIONS_MAX {
            return true;
        }
        let now = Instant::now();
        let rates = self.clients.iter();
        let rates = rates.filter_map(|(id, client)| Some((*id, client.rate(now)?)));
        let slowest = rates.min_by(|(_, a), (_, b)| a.total_cmp(b));
        let slowest = slowest.and_then(|(id, _)| self.clients.remove(&id));
        if let Some(client) = &slowest {
            client.closing.cancel();
            refused(Reason::ConnectionsFull);
        }
        slowest.is_some()
    }
}

/// One open connection, until it is dropped; an extension of each of its requests.
#[derive(Debug)]
pub struct Connection {
    all: Arc<Connections>,
    id: u64,
    opened: Instant,
    requests: AtomicU64,
    bytes: Arc<AtomicU64>,
    closing: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Counts received bytes.
    pub fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Waits until this client must be disconnected.
    pub async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Begins to read. Any delay before this call is caused by the server, not by the client.
    pub fn begin(&self) {
        self.update(|client| client.since = Some(Instant::now()));
    }

    /// Begins a request. Returns its number on this connection.
    pub fn begin_request(&self) -> u64 {
        self.update(|client| {
            client.is_paused = false;
            if std::mem::take(&mut client.is_trusted) {
                client.since = Some(Instant::now());
                client.bytes.store(0, Ordering::Relaxed);
            }
        });
        1 + self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the connection ends with its request of this number.
    pub fn ends_with(&self, request: u64) -> bool {
        request >= REQUESTS_MAX || self.opened.elapsed() >= AGE_MAX
    }

    /// Waits for `future`. Until it completes, the client is not disconnected, and the time does not count.
    pub async fn pause<T>(&self, future: impl Future<Output = T>) -> T {
        let began = Instant::now();
        self.update(|client| client.is_paused = true);
        let output = future.await;
        self.update(|client| {
            client.is_paused = false;
            client.since = client.since.map(|since| since + began.elapsed());
        });
        output
    }

    /// Keeps the connection until the next request begins, no matter how slow the client is. Called once a
    /// request has a valid signature or turns out to come from an operator.
    pub fn trust(&self) {
        self.update(|client| client.is_trusted = true);
    }

    /// Changes this client, unless it is being disconnected.
    fn update(&self, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.all.open().clients.get_mut(&self.id) {
            change(client);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.open().clients.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// So much that its client is faster than all that sent nothing.
    const MUCH: usize = 1 << 30;

    async fn full() -> (Arc<Connections>, Vec<Connection>) {
        let all = Arc::new(Connections::default());
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            connections.push(all.register().await);
        }
        for connection in &connections {
            connection.begin();
            connection.received(MUCH);
        }
        (all, connections)
    }

    /// Waits until a connection that must be closed is dropped.
    async fn drop_closed(connections: &mut Vec<Connection>) {
        while !connections.iter().any(|c| c.closing.is_cancelled()) {
            tokio::task::yield_now().await;
        }
        connections.retain(|c| !c.closing.is_cancelled());
    }

    #[tokio::test]
    async fn the_slowest_connection_gives_way() {
        let (all, mut connections) = full().await;
        connections[7].bytes.store(0, Ordering::Relaxed);
        let slowest = connections[7].id;
        let (new, ()) = tokio::join!(all.register(), drop_closed(&mut connections));
        assert_eq!(connections.len(), CONNECTIONS_MAX - 1);
        assert!(connections.iter().all(|c| c.id != slowest));
        assert!(!new.closing.is_cancelled());
    }

    #[tokio::test]
    async fn a_trusted_request_is_not_interrupted() {
        let (all, mut connections) = full().await;
        connections.iter().for_each(Connection::trust);
        let new = timeout(UNDISTURBED * 2, all.register()).await;
        assert!(new.is_err(), "a trusted connection gave way");
        // With its next request, a client must prove again who it is.
        connections[7].begin_request();
        tokio::join!(all.register(), drop_closed(&mut connections));
        assert_eq!(connections.len(), CONNECTIONS_MAX - 1);
    }

    #[tokio::test]
    async fn a_connection_ends_after_many_requests() {
        let all = Arc::new(Connections::default());
        let connection = all.register().await;
        for number in 1..REQUESTS_MAX {
            assert_eq!(connection.begin_request(), number);
            assert!(!connection.ends_with(number));
        }
        assert!(connection.ends_with(connection.begin_request()));
        drop(connection);
        assert!(all.open().clients.is_empty());
        let permits = all.permits.available_permits();
        assert_eq!(permits, CONNECTIONS_MAX + CLOSING_MAX);
    }
}
