//! The fake GitHub of the product, with what only tests need: a log of the calls, faults, held requests,
//! and setters for its quirks. The fake reproduces these:
//!
//! - a private repository is 404 without a token and 401 with a wrong one;
//! - an unchanged answer is 304 and does not count against the quota; no calls left is 403 with
//!   `x-ratelimit-reset`;
//! - a renamed repository redirects with 301 to `/repositories/<id>`;
//! - trees are truncated after 100,000 entries, contents over 1 MiB come without their content, and blobs
//!   over 100 MB are refused;
//! - the API lags behind git: it shows an older head and denies newer commits; or some of its replicas do,
//!   so that reads of the head are stale at random while comparisons know every commit;
//! - LFS objects are on another host, whose links need the header that came with them and no token;
//! - a push payload lists at most 2,048 commits, and the API hides the secrets of hooks.
//!
//! Unlike GitHub, a delivery is over before the call that asked for it returns.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future, stream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use video_ingest::domain::ids::GitSha;
use video_ingest::fake_github::{Delivery, FakeGithub};

/// How many calls the log keeps; older ones are dropped.
const CALLS_KEPT: usize = 100_000;
/// Bytes of one piece of [`Fault::Endless`].
const ENDLESS_PIECE: usize = 64 << 10;

/// A running fake. It stops when dropped.
pub struct TestGithub {
    fake: FakeGithub,
    shared: Arc<Shared>,
    servers: JoinSet<()>,
}

impl TestGithub {
    /// Serves an empty repository of this name (`owner/name`) on a free port of 127.0.0.1.
    pub async fn start(full_name: &str) -> Self {
        let (listener, url) = bind("127.0.0.1:0").await;
        let mut github = Self {
            fake: FakeGithub::new(full_name, url),
            shared: Arc::default(),
            servers: JoinSet::new(),
        };
        github.listen(listener);
        github
    }

    fn listen(&mut self, listener: TcpListener) {
        let observe = from_fn_with_state(self.shared.clone(), observe);
        // Around a router of its own, because a layer of the fake's comes after its routing.
        let router = Router::new().fallback_service(self.fake.router());
        let router = router.layer(observe);
        let stopping = self.shared.stopping.clone().cancelled_owned();
        let server = axum::serve(listener, router).with_graceful_shutdown(stopping);
        self.servers.spawn(async { server.await.unwrap() });
    }

    /// Stops listening and waits until the answers under way are sent.
    pub async fn stop(mut self) {
        self.shared.stopping.cancel();
        while self.servers.join_next().await.is_some() {}
    }

    // The repository and how it is served.

    /// Moves the default branch, as `git push --force` does.
    pub fn force_to(&self, commit: GitSha) {
        let repository = &mut self.state().repository;
        let name = repository.default_branch.clone();
        repository.branches.insert(name, commit);
    }

    /// Renames the repository: the old name redirects from now on.
    pub fn rename(&self, full_name: &str) {
        let repository = &mut self.state().repository;
        let old = std::mem::replace(&mut repository.full_name, full_name.to_owned());
        repository.former_names.retain(|name| name != full_name);
        repository.former_names.push(old);
    }

    /// Lets the API lag: it shows the default branch at this commit and denies newer ones. None: no lag.
    pub fn serve_head(&self, commit: Option<GitSha>) {
        self.state().repository.served_head = commit;
    }

    /// Lets some of the next reads of the default branch's head be stale, those with `true`: they see this
    /// commit. Everything else is up to date. Replaces the stale reads that are left.
    pub fn serve_stale_head(&self, commit: GitSha, reads: impl IntoIterator<Item = bool>) {
        let mut traffic = self.shared.traffic();
        traffic.stale = reads
            .into_iter()
            .map(|stale| stale.then_some(commit))
            .collect();
    }

    /// How many stale reads were served.
    pub fn stale_reads(&self) -> u64 {
        self.shared.traffic().stale_reads
    }

    /// Makes the repository private: only this token may read it.
    pub fn require_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Limits the API to so many more calls until `resets_at` (Unix seconds). It does not reset by itself.
    pub fn quota(&self, remaining: u32, resets_at: u64) {
        self.state().quota = Some((remaining, resets_at));
    }

    /// Removes the limit.
    pub fn no_quota(&self) {
        self.state().quota = None;
    }

    /// Truncates trees after so many entries instead of GitHub's 100,000.
    pub fn truncate_trees_at(&self, entries: usize) {
        self.state().tree_entries_max = entries;
    }

    /// Serves LFS objects from another host, 127.0.0.2, as GitHub does.
    pub async fn lfs_on_another_host(&mut self) {
        let (listener, url) = bind("127.0.0.2:0").await;
        self.state().storage_url = url;
        self.listen(listener);
    }

    // Webhooks.

    /// The webhook of a push to another ref, such as `refs/heads/draft` or `refs/tags/v1`.
    pub fn push_to(&self, git_ref: &str, before: GitSha, after: GitSha) -> Delivery {
        self.state().push(git_ref, before, after)
    }

    /// The webhook that GitHub sends when a hook is created.
    pub fn ping(&self) -> Delivery {
        self.state().ping()
    }

    /// Changes a webhook as a call of the API would.
    pub fn change_hook(&self, hook: u64, body: &serde_json::Value) {
        self.state().change_hook(hook, body);
    }

    /// Records an attempt at a delivery that was not made: `timed out`, 0.
    pub fn record(&self, hook: u64, delivery: &Delivery, status: &str, code: u16) {
        self.state().record(hook, delivery, status, code);
    }

    // The wire.

    /// Every call so far, in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.traffic().calls()
    }

    /// The same, and forgets them.
    pub fn take_calls(&self) -> Vec<Call> {
        let mut traffic = self.shared.traffic();
        let calls = traffic.calls();
        traffic.calls.clear();
        calls
    }

    /// Injects a fault into every matching answer. The first fault that matches counts.
    pub fn fault(&self, matches: impl Fn(&Call) -> bool + Send + Sync + 'static, fault: Fault) {
        self.shared.add_fault(Box::new(matches), fault, false);
    }

    /// Injects a fault into the next matching answer only.
    pub fn fault_once(
        &self,
        matches: impl Fn(&Call) -> bool + Send + Sync + 'static,
        fault: Fault,
    ) {
        self.shared.add_fault(Box::new(matches), fault, true);
    }

    /// Removes every fault.
    pub fn clear_faults(&self) {
        self.shared.traffic().rules.clear();
    }

    /// Holds every matching request until the guard is dropped.
    pub fn pause(&self, matches: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Pause {
        let hold = Arc::<Hold>::default();
        let rule = (Box::new(matches) as Matcher, hold.clone());
        self.shared.traffic().holds.push(rule);
        Pause(hold)
    }
}

impl Deref for TestGithub {
    type Target = FakeGithub;

    fn deref(&self) -> &FakeGithub {
        &self.fake
    }
}

impl Drop for TestGithub {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        self.servers.detach_all();
    }
}

async fn bind(address: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind(address).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// One request to the fake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `POST`, …
    pub method: String,
    /// Percent-encoded, as it was sent.
    pub path: String,
    /// Without the question mark; empty if there was none.
    pub query: String,
    pub authorization: Option<String>,
    pub accept: Option<String>,
    pub if_none_match: Option<String>,
    /// `None`: no answer yet, or the client has disconnected.
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

/// A fault in an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer instead of the real one.
    Status {
        /// HTTP status.
        code: u16,
        /// Names in lower case.
        headers: Vec<(&'static str, String)>,
        /// The whole body.
        body: String,
    },
    /// 200 with an HTML page, as proxies send it during outages.
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
    /// No answer, not even a status.
    Hang,
    /// 200 and a body that never ends.
    Endless,
    /// One byte of the real body is changed.
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

/// Holds matching requests until it is dropped.
#[must_use = "dropping it releases what it holds"]
pub struct Pause(Arc<Hold>);

impl Pause {
    /// Returns once this many requests have been held.
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

/// What the handle and the server's tasks share.
#[derive(Default)]
struct Shared {
    traffic: Mutex<Traffic>,
    stopping: CancellationToken,
}

impl Shared {
    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap()
    }

    fn add_fault(&self, matches: Matcher, fault: Fault, once: bool) {
        let rule = Rule {
            matches,
            fault,
            once,
        };
        self.traffic().rules.push(rule);
    }
}

/// The log and the rules.
#[derive(Default)]
struct Traffic {
    calls: VecDeque<(u64, Call)>,
    next_call: u64,
    rules: Vec<Rule>,
    holds: Vec<(Matcher, Arc<Hold>)>,
    /// What the next reads of the head see; `None`: the head.
    stale: VecDeque<Option<GitSha>>,
    stale_reads: u64,
}

impl Traffic {
    fn calls(&self) -> Vec<Call> {
        self.calls.iter().map(|(_, call)| call.clone()).collect()
    }

    fn log(&mut self, call: Call) -> u64 {
        if self.calls.len() == CALLS_KEPT {
            self.calls.pop_front();
        }
        self.next_call += 1;
        self.calls.push_back((self.next_call, call));
        self.next_call
    }

    fn set_status(&mut self, id: u64, status: StatusCode) {
        if let Ok(at) = self.calls.binary_search_by_key(&id, |(id, _)| *id) {
            self.calls[at].1.status = Some(status.as_u16());
        }
    }

    fn hold_for(&mut self, call: &Call) -> Option<Arc<Hold>> {
        self.holds.retain(|(_, hold)| !hold.released.is_cancelled());
        let (_, hold) = self.holds.iter().find(|(matches, _)| matches(call))?;
        Some(Arc::clone(hold))
    }

    /// The address that a read of the head is answered from, if it is a stale one.
    fn stale_address(&mut self, call: &Call) -> Option<Uri> {
        let (repository, name) = call.path.split_once("/commits/")?;
        if name != "HEAD" && !name.starts_with("heads/") {
            return None;
        }
        let commit = self.stale.pop_front()??;
        self.stale_reads += 1;
        let query = &call.query;
        format!("{repository}/commits/{commit}?{query}")
            .parse()
            .ok()
    }

    fn fault_for(&mut self, call: &Call) -> Option<Fault> {
        let at = self.rules.iter().position(|rule| (rule.matches)(call))?;
        Some(if self.rules[at].once {
            self.rules.remove(at).fault
        } else {
            self.rules[at].fault.clone()
        })
    }
}

/// The middleware: logs the call, holds it, then answers it, with a fault if a rule matches.
async fn observe(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
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
        None => {
            if let Some(address) = shared.traffic().stale_address(&call) {
                *request.uri_mut() = address;
            }
            next.run(request).await
        }
        Some(fault) => answer_with(fault, request, next, shared.stopping.clone()).await,
    };
    shared.traffic().set_status(id, response.status());
    response
}

async fn answer_with(
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
        Fault::Html => Html(
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
