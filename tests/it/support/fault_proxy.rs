//! A proxy that injects faults into what passes: the same faults in front of every service.
//!
//! It reproduces what networks, gateways and busy services do: error statuses, `Retry-After`, an HTML page
//! with 200, empty, endless, cut, stalled and corrupted bodies, and answers lost after the work was done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use tokio::task::JoinHandle;

/// Bytes of one piece of an endless answer.
const PIECE: usize = 64 << 10;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status; nothing is done.
    Status(u16),
    /// 429, asking to wait for so many seconds.
    TooMany(u32),
    /// 200 and an HTML page; nothing is done.
    Html,
    /// 200 and an empty body; nothing is done.
    Empty,
    /// 200 and a body that never ends; nothing is done.
    Endless,
    /// The connection breaks in the middle of the real answer.
    Cut,
    /// Half of the real answer, or none to a request with a body, and then nothing more.
    Stalled,
    /// The real answer with one byte changed, at this share of its length in thousandths.
    Corrupted(usize),
    /// Done, and the connection breaks before the answer.
    Lost,
}

type Matcher = Box<dyn FnMut(&str, &str) -> bool + Send>;

/// The running proxy; it stops when dropped.
pub struct FaultProxy {
    pub url: String,
    rule: Arc<Mutex<Option<(Matcher, Fault)>>>,
    hits: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl FaultProxy {
    /// On a free port of the loopback interface, in front of the service at that address.
    pub fn before(upstream: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let rule = Arc::<Mutex<Option<(Matcher, Fault)>>>::default();
        let hits = Arc::<AtomicUsize>::default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        let addresses = (upstream.to_owned(), url.clone());
        let shared = (rule.clone(), hits.clone());
        let router = Router::new().fallback(move |request: Request| {
            let fault = {
                let mut rule = shared.0.lock().unwrap();
                let (method, path) = (request.method().as_str(), request.uri().path());
                rule.as_mut()
                    .and_then(|(matches, fault)| matches(method, path).then_some(*fault))
            };
            shared
                .1
                .fetch_add(usize::from(fault.is_some()), Ordering::Relaxed);
            pass(client.clone(), addresses.clone(), request, fault)
        });
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let server = tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            rule,
            hits,
            server,
        }
    }

    /// Injects a fault into every request whose method and path match.
    pub fn fault(&self, matches: impl FnMut(&str, &str) -> bool + Send + 'static, fault: Fault) {
        *self.rule.lock().unwrap() = Some((Box::new(matches), fault));
    }

    /// Removes the fault and returns how many requests had it.
    pub fn clear_faults(&self) -> usize {
        *self.rule.lock().unwrap() = None;
        self.hits.swap(0, Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn pass(
    client: reqwest::Client,
    (upstream, here): (String, String),
    request: Request,
    fault: Option<Fault>,
) -> Response {
    match fault {
        Some(Fault::Status(status)) => {
            let status = StatusCode::from_u16(status).unwrap();
            return (status, r#"{"message":"injected fault"}"#).into_response();
        }
        Some(Fault::TooMany(seconds)) => {
            let wait = [(header::RETRY_AFTER, seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, wait, "slow down").into_response();
        }
        Some(Fault::Html) => return Html("<!doctype html><p>Sign in</p>").into_response(),
        Some(Fault::Empty) => return StatusCode::OK.into_response(),
        Some(Fault::Endless) => {
            let pieces =
                stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![32; PIECE])));
            let kind = [(header::CONTENT_TYPE, "application/json")];
            return (kind, Body::from_stream(pieces)).into_response();
        }
        _ => {}
    }
    let (head, body) = request.into_parts();
    if fault == Some(Fault::Stalled) && head.headers.contains_key(header::CONTENT_LENGTH) {
        return std::future::pending().await;
    }
    let body = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    let mut headers = head.headers;
    headers.remove(header::HOST);
    let answer = client
        .request(head.method, format!("{upstream}{}", head.uri))
        .headers(headers)
        .body(body)
        .send()
        .await;
    let Ok(answer) = answer else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let kind = headers.get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind == "text/event-stream") {
        return (headers, Body::from_stream(answer.bytes_stream())).into_response();
    }
    let body = answer.bytes().await.unwrap_or_default();
    // GitHub's answers contain its own address.
    let body = match std::str::from_utf8(&body) {
        Ok(text) => Bytes::from(text.replace(&upstream, &here)),
        Err(_) => body,
    };
    let length = body.len();
    let body = match fault {
        Some(Fault::Cut) => ending(body.slice(..length / 2), async {
            // What is not flushed yet would be lost with the connection, headers included.
            tokio::task::yield_now().await;
        }),
        Some(Fault::Lost) => ending(Bytes::new(), async {}),
        Some(Fault::Stalled) => ending(body.slice(..length / 2), std::future::pending()),
        Some(Fault::Corrupted(share)) => {
            let mut bytes = body.to_vec();
            if let Some(byte) = bytes.get_mut(length * share / 1000) {
                *byte ^= 0x81;
            }
            bytes.into()
        }
        _ => body.into(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    response.headers_mut().remove(header::CONNECTION);
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, length.into());
    response
}

/// These bytes, and an error once `wait` is over.
fn ending(bytes: Bytes, wait: impl Future<Output = ()> + Send + 'static) -> Body {
    let first = (!bytes.is_empty()).then_some(Ok(bytes));
    let error = stream::once(async move {
        wait.await;
        Err(std::io::Error::other("injected fault"))
    });
    Body::from_stream(stream::iter(first).chain(error))
}
