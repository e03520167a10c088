//! Accepting connections within limits: how many, how long they may dawdle, and how they end.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::failure::causes;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Open connections; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 2048;

/// A client has this long to send a request's headers, the first as well as every later one.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest set of request headers, in bytes.
const HEADERS_BYTES_MAX: usize = 32 << 10;

/// A client that takes nothing of an answer for so long is cut off. A paused player is one, too: it
/// asks for the rest of its video when it goes on.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections that are still open this long after the end was asked for are cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// After an error of `accept`: most often no file descriptor is free.
const ACCEPT_WAIT: Duration = Duration::from_millis(50);

/// Serves `router` until `stop`, then answers what was asked and closes.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    // Otherwise the first bytes are waited for, without a limit, to tell the version from them.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(HEADERS_BYTES_MAX);
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let slot = slots.clone().acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, slot))
            } => accepted,
        };
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = causes(&error), "no connection accepted");
                tokio::time::sleep(ACCEPT_WAIT).await;
                continue;
            }
        };
        // Answers are small: waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        // hyper has limits for what it reads, and none for what it writes.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
        let service = TowerToHyperService::new(router.clone());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off or says nonsense is its own concern.
            let _ = connection.await;
            drop(slot);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}
