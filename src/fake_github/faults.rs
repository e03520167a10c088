//! What a network and a busy service do to answers, on request; and a log of what was asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Shared;

/// How many calls the log keeps; older ones are forgotten.
const CALLS_KEPT: usize = 100_000;
/// Bytes of one piece of [`Fault::Endless`].
const ENDLESS_PIECE: usize = 64 << 10;

/// One request to the fake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `POST`, …
    pub method: String,
    /// As it came, percent-encoded.
    pub path: String,
    /// Without the question mark; empty if there was none.
    pub query: String,
    /// The header of that name.
    pub authorization: Option<String>,
    /// The header of that name.
    pub accept: Option<String>,
    /// The header of that name.
    pub if_none_match: Option<String>,
    /// What was answered; none while it is being answered, or when the client went away.
    pub status: Option<u16>,
}

impl Call {
    fn of(request: &Request) -> Self {
        let header = |name| {
            let value = request.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            authorization: header(header::AUTHORIZATION),
            accept: header(header::ACCEPT),
            if_none_match: header(header::IF_NONE_MATCH),
            status: None,
        }
    }
}

/// What is wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Another answer in the place of the real one.
    Status {
        /// HTTP status.
        code: u16,
        /// Names in lower case.
        headers: Vec<(&'static str, String)>,
        /// The whole body.
        body: String,
    },
    /// 200 with a page for people, as proxies and outages send it.
    Html,
    /// 200 without a body.
    Empty200,
    /// The connection breaks after so many bytes of the real body.
    Cut {
        /// Bytes that still arrive.
        after_bytes: usize,
    },
    /// The real body stops after so many bytes, and the connection stays open.
    Stall {
        /// Bytes that still arrive.
        after_bytes: usize,
    },
    /// Not even a status ever comes.
    Hang,
    /// 200 and a body that never ends.
    Endless,
    /// One byte of the real body is another one.
    CorruptByte {
        /// Its offset in the body.
        at: usize,
    },
    /// The real answer, so much later.
    Delay(Duration),
}

type Matcher = Box<dyn Fn(&Call) -> bool + Send + Sync>;

struct Rule {
    matches: Matcher,
    fault: Fault,
    once: bool,
}

#[derive(Default)]
struct Hold {
    held: watch::Sender<usize>,
    released: CancellationToken,
}

/// Holds matching requests; dropping it lets them go on.
#[must_use = "dropping it releases what it holds"]
pub struct Pause(Arc<Hold>);

impl Pause {
    /// Comes back once this many requests have been held.
    pub async fn held(&self, requests: usize) {
        let mut held = self.0.held.subscribe();
        // The sender lives in `self`, so this ends only with the condition.
        let _ = held.wait_for(|count| *count >= requests).await;
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.released.cancel();
    }
}

/// The log and the rules.
#[derive(Default)]
pub(super) struct Traffic {
    calls: VecDeque<(u64, Call)>,
    next_call: u64,
    rules: Vec<Rule>,
    holds: Vec<(Matcher, Arc<Hold>)>,
}

impl Traffic {
    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.iter().map(|(_, call)| call.clone()).collect()
    }

    pub(super) fn forget_calls(&mut self) {
        self.calls.clear();
    }

    pub(super) fn add_fault(&mut self, matches: Matcher, fault: Fault, once: bool) {
        self.rules.push(Rule {
            matches,
            fault,
            once,
        });
    }

    pub(super) fn clear_faults(&mut self) {
        self.rules.clear();
    }

    pub(super) fn add_pause(&mut self, matches: Matcher) -> Pause {
        let hold = Arc::<Hold>::default();
        self.holds.push((matches, Arc::clone(&hold)));
        Pause(hold)
    }

    fn log(&mut self, call: Call) -> u64 {
        if self.calls.len() == CALLS_KEPT {
            self.calls.pop_front();
        }
        self.next_call += 1;
        self.calls.push_back((self.next_call, call));
        self.next_call
    }

    fn answered(&mut self, id: u64, status: StatusCode) {
        if let Ok(at) = self.calls.binary_search_by_key(&id, |(id, _)| *id) {
            self.calls[at].1.status = Some(status.as_u16());
        }
    }

    fn hold_for(&mut self, call: &Call) -> Option<Arc<Hold>> {
        self.holds.retain(|(_, hold)| !hold.released.is_cancelled());
        let (_, hold) = self.holds.iter().find(|(matches, _)| matches(call))?;
        Some(Arc::clone(hold))
    }

    fn fault_for(&mut self, call: &Call) -> Option<Fault> {
        let at = self.rules.iter().position(|rule| (rule.matches)(call))?;
        Some(match self.rules[at].once {
            true => self.rules.remove(at).fault,
            false => self.rules[at].fault.clone(),
        })
    }
}

/// The middleware: logs the call, holds it, then answers it or spoils the answer.
pub(super) async fn observe(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let call = Call::of(&request);
    let id = shared.traffic().log(call.clone());
    let hold = shared.traffic().hold_for(&call);
    if let Some(hold) = hold {
        hold.held.send_modify(|count| *count += 1);
        tokio::select! {
            () = hold.released.cancelled() => {}
            () = shared.stopping.cancelled() => {}
        }
    }
    let fault = shared.traffic().fault_for(&call);
    let response = match fault {
        None => next.run(request).await,
        Some(fault) => spoil(fault, request, next, shared.stopping.clone()).await,
    };
    shared.traffic().answered(id, response.status());
    response
}

async fn spoil(
    fault: Fault,
    request: Request,
    next: Next,
    stopping: CancellationToken,
) -> Response {
    match fault {
        Fault::Status {
            code,
            headers,
            body,
        } => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() =
                StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            for (name, value) in headers {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    let name = HeaderName::from_static(name);
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Fault::Html => axum::response::Html(
            "<!DOCTYPE html><html><title>Unicorn! &middot; GitHub</title><p>We're having a really bad day.</html>",
        )
        .into_response(),
        Fault::Empty200 => StatusCode::OK.into_response(),
        Fault::Hang => {
            stopping.cancelled().await;
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Fault::Endless => {
            static PIECE: [u8; ENDLESS_PIECE] = [0; ENDLESS_PIECE];
            let pieces = stream::repeat_with(|| Ok::<_, axum::Error>(Bytes::from_static(&PIECE)));
            let pieces = pieces.take_until(stopping.cancelled_owned());
            Body::from_stream(pieces).into_response()
        }
        Fault::Delay(wait) => {
            tokio::time::sleep(wait).await;
            next.run(request).await
        }
        // Without the yield hyper drops what it has not flushed yet, headers included.
        Fault::Cut { after_bytes } => next
            .run(request)
            .await
            .map(|body| end_early(body, after_bytes, tokio::task::yield_now())),
        Fault::Stall { after_bytes } => next
            .run(request)
            .await
            .map(|body| end_early(body, after_bytes, stopping.cancelled_owned())),
        Fault::CorruptByte { at } => next.run(request).await.map(|body| corrupt(body, at)),
    }
}

/// The first bytes of a body, then an error once `wait` is over. `Content-Length` stays as it was.
fn end_early(body: Body, bytes: usize, wait: impl Future<Output = ()> + Send + 'static) -> Body {
    let error = stream::once(async move {
        wait.await;
        Err(axum::Error::new("cut on purpose"))
    });
    Body::from_stream(first_bytes(body, bytes).chain(error))
}

fn first_bytes(body: Body, bytes: usize) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    body.into_data_stream().scan(bytes, |left, piece| {
        let piece = piece.map(|piece| piece.slice(..piece.len().min(*left)));
        let ended = *left == 0;
        *left -= piece.as_ref().map_or(0, Bytes::len);
        future::ready((!ended).then_some(piece))
    })
}

fn corrupt(body: Body, at: usize) -> Body {
    let pieces = body.into_data_stream().scan(at, |left, piece| {
        let piece = piece.map(|piece| {
            let mut bytes = piece.to_vec();
            if let Some(byte) = bytes.get_mut(*left) {
                *byte ^= 0xff;
            }
            // Past the end of any body once the byte is done.
            *left = left.checked_sub(bytes.len()).unwrap_or(usize::MAX);
            Bytes::from(bytes)
        });
        future::ready(Some(piece))
    });
    Body::from_stream(pieces)
}
