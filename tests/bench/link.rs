//! A proxy that simulates the latency or the bandwidth of a network.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Bytes that are forwarded at once.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces in transit in one direction of one connection.
const PIECES_MAX: usize = 4096;

/// Timers can be up to a millisecond late; the link catches up with at most this delay.
const CATCH_UP: Duration = Duration::from_millis(5);

/// The latency and the bandwidth of the proxy.
#[derive(Clone, Copy, Default)]
pub struct Link {
    /// Each way.
    pub delay: Duration,
    /// Each way, for all connections together.
    pub bytes_per_second: Option<u64>,
}

/// When the link is free again.
type Free = Arc<Mutex<Instant>>;

/// Starts a proxy for this server and returns its address.
pub async fn start(server: SocketAddr, link: Link) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (there, back) = (
        Free::new(Instant::now().into()),
        Free::new(Instant::now().into()),
    );
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(forward(from_client, to_server, link, there.clone()));
            tokio::spawn(forward(from_server, to_client, link, back.clone()));
        }
    });
    address
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    link: Link,
    free: Free,
) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let writing = tokio::spawn(async move {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let mut due = Instant::now() + link.delay;
        if let Some(rate) = link.bytes_per_second {
            let start = {
                let mut free = free.lock().unwrap();
                let start = (*free).max(Instant::now() - CATCH_UP);
                *free = start + Duration::from_secs_f64(read as f64 / rate as f64);
                *free
            };
            sleep_until(start).await;
            due = Instant::now() + link.delay;
        }
        if sender.send((due, piece[..read].to_vec())).await.is_err() {
            break;
        }
    }
    drop(sender);
    let _ = writing.await;
}
