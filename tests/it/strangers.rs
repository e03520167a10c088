//! Thousands of clients without a secret, slow in every way, keep no delivery out and take little memory.
//!
//! The long form, with a release build and 20 deliveries of each size:
//!
//! ```text
//! STRANGERS_DELIVERIES=20 cargo test --release --test it -- --nocapture strangers
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use video_ingest::fake_github::Delivery;

use crate::load::{GITHUB_WAITS, PEAK_KIB_MAX, serving};
use crate::support::child::Serve;

/// The most memory some time after the attack, in KiB. The code and the tasks of a debug build are larger.
const AFTERWARDS_KIB_MAX: u64 = if cfg!(debug_assertions) { 96 } else { 64 } << 10;

/// See [`AFTERWARDS_KIB_MAX`].
const AFTERWARDS: Duration = Duration::from_secs(30);

/// How long the clients attack before the first delivery.
const PREPARED: Duration = Duration::from_secs(5);

/// How long a client waits before it connects again.
const RECONNECT: Duration = Duration::from_secs(1);

/// The sizes of the genuine deliveries, in bytes.
const SIZES: [usize; 3] = [2_000, 30_000, 1_500_000];

/// What a hostile client does until it is disconnected; then it connects again.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Sends a few bytes of the headers every second.
    SlowHeaders,
    /// Announces a large body and sends a few bytes of it every second.
    SlowBody,
    /// Announces a large body and sends it just fast enough not to be slow.
    SteadyBody,
    /// Announces a body, sends half of it and then nothing.
    HalfBody { bytes: usize },
    /// Requests the health every few seconds and keeps the connection.
    KeepAlive,
    /// Requests many responses and reads none.
    UnreadResponses,
    /// Sends large headers and half of a medium body.
    LargeHeaders,
    /// Sends a whole body with a wrong signature.
    Body { bytes: usize },
}

impl Kind {
    async fn attack(self, stream: &mut TcpStream) -> std::io::Result<()> {
        match self {
            Self::SlowHeaders => {
                stream
                    .write_all(b"POST /webhooks/github HTTP/1.1\r\n")
                    .await?;
                loop {
                    stream.write_all(b"x-github-event: push\r\n").await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Self::SlowBody => {
                stream.write_all(&head(20 << 20, 0)).await?;
                loop {
                    stream.write_all(&[b' '; 100]).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
            Self::SteadyBody => {
                stream.write_all(&head(25 << 20, 0)).await?;
                stream.write_all(&[b' '; 20_000]).await?;
                loop {
                    stream.write_all(&[b' '; 2_200]).await?;
                    sleep(Duration::from_millis(100)).await;
                }
            }
            Self::HalfBody { bytes } => {
                stream.write_all(&head(bytes, 0)).await?;
                stream.write_all(&vec![b' '; bytes / 2]).await?;
            }
            Self::KeepAlive => loop {
                stream
                    .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                    .await?;
                if stream.read(&mut [0; 4096]).await? == 0 {
                    return Ok(());
                }
                sleep(Duration::from_secs(8)).await;
            },
            Self::UnreadResponses => loop {
                stream
                    .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
                    .await?;
            },
            Self::LargeHeaders => {
                stream.write_all(&head(32 << 10, 30 << 10)).await?;
                stream.write_all(&vec![b' '; 16 << 10]).await?;
            }
            Self::Body { bytes } => {
                stream.write_all(&head(bytes, 0)).await?;
                stream.write_all(&vec![b' '; bytes]).await?;
            }
        }
        // Until the server closes the connection.
        while stream.read(&mut [0; 4096]).await? > 0 {}
        Ok(())
    }
}

/// The headers of an unsigned delivery with a body of so many bytes.
fn head(body: usize, padding: usize) -> Vec<u8> {
    let padding = "x".repeat(padding);
    format!(
        "POST /webhooks/github HTTP/1.1\r\nhost: x\r\nx-github-event: push\r\nx-padding: {padding}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {body}\r\n\r\n"
    )
    .into_bytes()
}

/// Two attacks at once would measure the machine.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Delivers pushes of every size while so many clients of each kind attack; three fifths of them in the short
/// form, which are still more than the server has connections. Returns the longest time of a delivery.
async fn attacked_by(kinds: &[Kind], clients: usize) -> Duration {
    let _alone = ALONE.lock().await;
    #[expect(clippy::disallowed_methods, reason = "more of them in the long form")]
    let long = std::env::var("STRANGERS_DELIVERIES").ok();
    let rounds = long.as_ref().map_or(4, |count| count.parse().unwrap());
    let clients = if long.is_some() {
        clients
    } else {
        (clients * 3).div_ceil(5)
    };
    let (_dir, _github, server, push) = serving().await;
    let disconnected = Arc::new(AtomicU64::new(0));
    let mut attack = JoinSet::new();
    for kind in kinds {
        for _ in 0..clients {
            let (kind, address) = (*kind, server.address().to_owned());
            let disconnected = disconnected.clone();
            attack.spawn(async move {
                loop {
                    if let Ok(mut stream) = TcpStream::connect(&address).await {
                        let _ = kind.attack(&mut stream).await;
                    }
                    disconnected.fetch_add(1, Ordering::Relaxed);
                    sleep(RECONNECT).await;
                }
            });
        }
    }
    sleep(PREPARED).await;
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        for bytes in SIZES {
            let began = Instant::now();
            let status = deliver(&server, &push, bytes, round).await;
            assert_eq!(
                status,
                Some(202),
                "{bytes} bytes, round {round}, after {:?}",
                began.elapsed()
            );
            slowest = slowest.max(began.elapsed());
        }
    }
    let peak_kib = server.peak_kib();
    attack.shutdown().await;
    let ended = Instant::now();
    while server.resident_kib() > AFTERWARDS_KIB_MAX && ended.elapsed() < AFTERWARDS {
        sleep(Duration::from_millis(200)).await;
    }
    let afterwards_kib = server.resident_kib();
    println!(
        "{clients} clients each of {kinds:?}: {rounds} of {rounds} deliveries of each size accepted, slowest {slowest:?}; \
         clients disconnected {} times; peak {peak_kib} KiB, {afterwards_kib} KiB after {:?}",
        disconnected.load(Ordering::Relaxed),
        ended.elapsed()
    );
    assert!(peak_kib <= PEAK_KIB_MAX, "{peak_kib} KiB");
    assert!(afterwards_kib <= AFTERWARDS_KIB_MAX, "{afterwards_kib} KiB");
    slowest
}

/// Delivers a push once, on a connection of its own as GitHub does.
async fn deliver(server: &Serve, push: &Delivery, bytes: usize, round: usize) -> Option<u16> {
    let mut push = push.clone();
    push.guid = format!("genuine-{bytes}-{round}");
    push.payload["padding"] = "".into();
    let missing = bytes.saturating_sub(push.body().len());
    push.payload["padding"] = "x".repeat(missing).into();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let delivered = timeout(GITHUB_WAITS, server.deliver(&client, &push));
    delivered.await.ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_only_announced_keep_no_delivery_out() {
    attacked_by(&[Kind::SlowBody, Kind::HalfBody { bytes: 30_000 }], 50).await;
    // Otherwise, the deliveries would wait until these senders are disconnected after ten seconds.
    let slowest = attacked_by(&[Kind::SteadyBody], 100).await;
    assert!(slowest < GITHUB_WAITS * 2 / 5, "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_no_delivery_out() {
    attacked_by(&[Kind::KeepAlive], 2_400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_responses_keep_no_delivery_out() {
    attacked_by(&[Kind::UnreadResponses], 2_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_headers_and_bodies_take_little_memory() {
    let half_form = Kind::HalfBody { bytes: 40 << 20 };
    attacked_by(&[half_form, Kind::Body { bytes: 40 << 20 }], 3).await;
    attacked_by(&[Kind::LargeHeaders], 2_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_hostile_clients_keep_no_delivery_out() {
    let kinds = [
        Kind::SlowHeaders,
        Kind::SlowBody,
        Kind::HalfBody { bytes: 1_000_000 },
        Kind::KeepAlive,
        Kind::UnreadResponses,
    ];
    attacked_by(&kinds, 400).await;
}
