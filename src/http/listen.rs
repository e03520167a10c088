//! Accepts connections, limits their time and memory, and closes them at shutdown.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::connections::Connections;
use crate::format::causes;

/// The maximum number of clients that wait for a connection, as far as the kernel allows it
/// (`net.core.somaxconn`).
const QUEUE_MAX: u32 = 4096;

/// The maximum time for the headers of each request, including the first one of a connection.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of the headers of a request, in bytes. GitHub sends less than one KiB.
const HEADERS_BYTES_MAX: usize = 8 << 10;

/// The connection of a client that reads no part of a response for this long is closed. This includes
/// paused video players, which request the rest of the video when they resume.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(20);

/// The maximum size of what the kernel buffers for a client that reads slowly, in bytes (Linux doubles it).
/// Otherwise the buffers of all clients could grow to gigabytes.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// How long open connections may continue after shutdown was requested.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The delay after a failed `accept`. The usual cause is a lack of file descriptors, which needs time.
const ACCEPT_WAIT: Duration = Duration::from_millis(50);

/// Binds a listener to an address. Clients beyond the limit of connections wait in its queue.
///
/// # Errors
/// The address is in use, or this process must not bind it.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Otherwise, a restarted server would have to wait for the connections of the previous one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE_MAX)
}

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
    let connections = Arc::new(Connections::default());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = causes(&error), "failed to accept a connection");
                tokio::time::sleep(ACCEPT_WAIT).await;
                continue;
            }
        };
        // Most responses are small, so waiting to fill a packet would only delay them.
        let _ = stream.set_nodelay(true);
        // hyper limits the time for reads but not for writes.
        let socket = SockRef::from(&stream);
        let _ = socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
        let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
        let client = tokio::select! {
            () = stop.cancelled() => break,
            client = connections.register() => Arc::new(client),
        };
        let (receiving, served) = (client.clone(), client.clone());
        let stream = InspectReader::new(stream, move |bytes| receiving.received(bytes.len()));
        let router = router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let number = served.begin_request();
            let is_last = served.ends_with(number);
            request.extensions_mut().insert(served.clone());
            let response = router.clone().oneshot(request.map(Body::new));
            async move {
                if number > 1 {
                    // Requests that were sent without waiting for responses give way to other clients.
                    tokio::task::yield_now().await;
                }
                let mut response = response.await?;
                if is_last {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            client.begin();
            tokio::select! {
                // Errors are caused by clients that disconnect or send invalid HTTP.
                _ = connection => {}
                () = client.closed() => {}
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
}
