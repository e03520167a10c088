//! Accepts connections, limits their number and idle time, and closes them at shutdown.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::format::causes;

/// The maximum number of open connections; further connections wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 2048;

/// The maximum time for the headers of each request, including the first one of a connection.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of the headers of a request, in bytes.
const HEADERS_BYTES_MAX: usize = 32 << 10;

/// The connection of a client that reads no part of a response for this long is closed. This includes
/// paused video players, which request the rest of the video when they resume.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(20);

/// How long open connections may continue after shutdown was requested.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The delay after a failed `accept`. The usual cause is a lack of file descriptors, which needs time.
const ACCEPT_WAIT: Duration = Duration::from_millis(50);

/// Serves `router` until `stop` is cancelled, then completes open requests and closes the connections.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    // With HTTP/2 enabled, hyper waits for the first bytes of a connection without a time limit to
    // detect the version.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(HEADERS_BYTES_MAX);
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = async {
                let permit = permits.clone().acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, permit))
            } => accepted,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = causes(&error), "failed to accept a connection");
                tokio::time::sleep(ACCEPT_WAIT).await;
                continue;
            }
        };
        // Most responses are small, so waiting to fill a packet would only delay them.
        let _ = stream.set_nodelay(true);
        // hyper limits the time for reads but not for writes.
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
        let service = TowerToHyperService::new(router.clone());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // Errors are caused by clients that disconnect or send invalid HTTP.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}
