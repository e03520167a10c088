//! A stateful fake of Supabase Storage: its gateway and the REST routes that the service calls, with the
//! statuses and bodies measured on supabase/storage 4fa61fba (2026-08-21). It reproduces these quirks:
//!
//! - the real status of a refusal is inside the body of a 400;
//! - a refusal after the body has begun leaves the connection hanging for 62 seconds ("poisoned");
//! - the gateway translates `sb_` keys to JWTs, and older ones do not;
//! - the size limit is exact but does not see chunked bodies; types match exactly, but for `video/*`;
//! - object information takes an invalid JWT for a visitor of a public bucket, but for the authenticated route;
//! - only `x-upsert: true`, in exactly this spelling, or `PUT` replaces an object;
//! - an upload may be committed long after the client has given up waiting for its answer;
//! - a DELETE with a JSON content type needs a body; a list does not tell a missing bucket from an empty one;
//! - the ETag is an MD5, except for large objects on an S3 back end.
//!
//! Resumable uploads (TUS), S3 and form uploads are not implemented.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use md5::{Digest, Md5};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

/// A secret API key (`sb_secret_…`), which only the gateway knows.
pub const SECRET_KEY: &str = "sb_secret_of_the_fake";
/// The service role's JWT.
pub const SERVICE_JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmVk";
/// An anonymous visitor's JWT; no policy lets it write.
pub const ANON_JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2lnbmVk";
/// An expired JWT of the service role.
pub const EXPIRED_JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.c2lnbmVk";
/// A JWT of another project.
const OTHER_JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJyZWYiOiJvdGhlciJ9.b3RoZXI";

/// S3 back ends store in parts of this size, which shows in the ETag of what is larger.
const PART_BYTES: usize = 16 * 1024 * 1024;

/// How long the real server leaves a connection hanging whose body it refused to read.
const POISONED: Duration = Duration::from_secs(62);

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Upload,
    Info,
    Read,
    List,
    Sign,
    Delete,
    Bucket,
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The body is read, nothing is done, and this is returned.
    Answer(Answer),
    /// This is returned before the body is read, on a connection that then hangs.
    Poison(Answer),
    /// It is done, but this is returned.
    DoneBut(Answer),
    /// It is done, and the connection breaks before the answer.
    LoseAnswer,
    /// It is done, but nothing is returned.
    NoAnswer,
    /// The connection breaks after so many bytes of the body.
    CutAfter(usize),
    /// Not a byte of the body is read.
    Stall,
    /// The upload is read and the connection breaks. It is committed by [`FakeStorage::commit_held`].
    Hold,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    /// From a proxy or gateway in front of the server.
    pub fn new(status: u16, content_type: &str, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("content-type", content_type.to_owned())],
            body: body.into(),
        }
    }

    /// A refusal of the server: HTTP status and, in the body, the real one.
    pub fn refusal(http: u16, status: &str, error: &str, message: &str, code: &str) -> Self {
        #[derive(Serialize)]
        struct Inner<'a> {
            #[serde(rename = "statusCode")]
            status: &'a str,
            error: &'a str,
            message: &'a str,
            code: &'a str,
        }
        let body = serde_json::to_string(&Inner {
            status,
            error,
            message,
            code,
        });
        Self::new(http, "application/json; charset=utf-8", body.unwrap())
    }

    /// Adds a header.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(Body::from(self.body)).unwrap()
    }
}

/// One version of an object, as it was uploaded.
#[derive(Clone, Debug)]
pub struct Upload {
    pub bytes: Bytes,
    pub headers: HeaderMap,
}

/// The running fake; it stops when dropped.
pub struct FakeStorage {
    shared: Arc<Shared>,
    address: SocketAddr,
    connections: watch::Receiver<usize>,
    _running: DropGuard,
}

#[derive(Default)]
struct Shared {
    model: Mutex<Model>,
}

struct Model {
    buckets: BTreeMap<String, Bucket>,
    objects: BTreeMap<String, Object>,
    history: HashMap<String, Vec<Upload>>,
    faults: Vec<(Op, String, Fault)>,
    pauses: VecDeque<Arc<Notifies>>,
    calls: Vec<String>,
    signed: HashMap<String, String>,
    held: Vec<(String, Object, Upload)>,
    lost: BTreeSet<String>,
    is_down: bool,
    /// What every request gets instead of its answer, and how many got it.
    refuses: Option<Answer>,
    refused: u64,
    rejects_key: bool,
    translates_keys: bool,
    multipart_etags: bool,
    poisoned: Duration,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            objects: BTreeMap::new(),
            history: HashMap::new(),
            faults: Vec::new(),
            pauses: VecDeque::new(),
            calls: Vec::new(),
            signed: HashMap::new(),
            held: Vec::new(),
            lost: BTreeSet::new(),
            is_down: false,
            refuses: None,
            refused: 0,
            rejects_key: false,
            translates_keys: true,
            multipart_etags: false,
            poisoned: POISONED,
        }
    }
}

struct Bucket {
    limit: Option<u64>,
    mimes: Option<Vec<String>>,
}

#[derive(Clone)]
struct Object {
    id: Uuid,
    version: Uuid,
    bytes: Bytes,
    mime: String,
    cache_control: String,
    metadata: Value,
}

#[derive(Default)]
struct Notifies {
    reached: Notify,
    resume: Notify,
}

/// An upload that waits before its last byte.
pub struct Pause(Arc<Notifies>);

impl Pause {
    /// Returns once an upload has reached the pause.
    pub async fn reached(&self) {
        self.0.reached.notified().await;
    }

    /// Lets it continue.
    pub fn resume(self) {
        self.0.resume.notify_one();
    }
}

impl FakeStorage {
    /// Serves a project without buckets on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let running = CancellationToken::new();
        let (count, connections) = watch::channel(0);
        tokio::spawn(running.clone().run_until_cancelled_owned(serve(
            listener,
            shared.clone(),
            running.clone(),
            count,
        )));
        Self {
            shared,
            address,
            connections,
            _running: running.drop_guard(),
        }
    }

    /// The value for `SUPABASE_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates a private bucket, or changes it.
    pub fn create_bucket(&self, name: &str, limit: Option<u64>, mimes: Option<&[&str]>) {
        let mimes = mimes.map(|list| list.iter().map(|&mime| mime.to_owned()).collect());
        let bucket = Bucket { limit, mimes };
        self.model().buckets.insert(name.to_owned(), bucket);
    }

    /// Removes a bucket. Its objects come back with it.
    pub fn remove_bucket(&self, name: &str) {
        self.model().buckets.remove(name);
    }

    /// Every object as `bucket/path  size  mime`, sorted.
    pub fn objects(&self) -> Vec<String> {
        let model = self.model();
        let line = |(path, object): (&String, &Object)| {
            format!("{path}  {}  {}", object.bytes.len(), object.mime)
        };
        model.objects.iter().map(line).collect()
    }

    /// What is stored under `bucket/path`.
    pub fn bytes(&self, path: &str) -> Option<Bytes> {
        let model = self.model();
        model.objects.get(path).map(|object| object.bytes.clone())
    }

    /// Replaces the bytes of an object without an upload.
    pub fn overwrite(&self, path: &str, bytes: &[u8]) {
        let mut model = self.model();
        model.objects.get_mut(path).unwrap().bytes = Bytes::copy_from_slice(bytes);
    }

    /// Stores an object as another program would, without metadata.
    pub fn insert(&self, path: &str, bytes: &[u8]) {
        let object = Object {
            id: Uuid::new_v4(),
            version: Uuid::new_v4(),
            bytes: Bytes::copy_from_slice(bytes),
            mime: "video/mp4".to_owned(),
            cache_control: "max-age=3600".to_owned(),
            metadata: json!({}),
        };
        self.model().objects.insert(path.to_owned(), object);
    }

    /// Loses the bytes of an object until it is uploaded again: its information stays.
    pub fn lose_bytes(&self, path: &str) {
        self.model().lost.insert(path.to_owned());
    }

    /// Deletes an object without a call.
    pub fn delete(&self, path: &str) {
        self.model().objects.remove(path).unwrap();
    }

    /// Copies an object, as the app does before it changes a row's bucket.
    pub fn copy(&self, from: &str, to: &str) {
        let mut model = self.model();
        if let Some(object) = model.objects.get(from).cloned() {
            model.objects.insert(to.to_owned(), object);
        }
    }

    /// How often `bucket/path` was stored.
    pub fn uploads(&self, path: &str) -> usize {
        self.history(path).len()
    }

    /// Every version of `bucket/path`, oldest first.
    pub fn history(&self, path: &str) -> Vec<Upload> {
        self.model().history.get(path).cloned().unwrap_or_default()
    }

    /// Every request so far as `METHOD /path`, including the gateway's prefix.
    pub fn calls(&self) -> Vec<String> {
        self.model().calls.clone()
    }

    /// While this is set, the gateway returns 503: no upstream.
    pub fn set_down(&self, is_down: bool) {
        self.model().is_down = is_down;
    }

    /// While this is set, every request gets this answer: 402 (quota), 540 (project paused).
    pub fn refuse(&self, answer: Option<Answer>) {
        self.model().refuses = answer;
    }

    /// How many requests were refused, or had an invalid key.
    pub fn refused(&self) -> u64 {
        self.model().refused
    }

    /// Whether the service's key is invalid from now on.
    pub fn reject_key(&self, on: bool) {
        self.model().rejects_key = on;
    }

    /// Injects a fault into the next request of that kind; several are used one after another.
    pub fn fault(&self, op: Op, fault: Fault) {
        self.fault_at(op, "", fault);
    }

    /// Injects a fault into the next request of that kind whose `bucket/path` contains the text.
    pub fn fault_at(&self, op: Op, path: &str, fault: Fault) {
        self.model().faults.push((op, path.to_owned(), fault));
    }

    /// Removes the faults that no request has met.
    pub fn clear_faults(&self) {
        self.model().faults.clear();
    }

    /// Commits the uploads of [`Fault::Hold`], after everything else that was stored until now. Returns
    /// how many.
    pub fn commit_held(&self) -> usize {
        let mut model = self.model();
        let held = std::mem::take(&mut model.held);
        let count = held.len();
        for (path, object, upload) in held {
            model.commit(&path, object, upload);
        }
        count
    }

    /// Pauses the next upload before its last byte.
    pub fn pause_before_last_byte(&self) -> Pause {
        let notifies = Arc::<Notifies>::default();
        self.model().pauses.push_back(notifies.clone());
        Pause(notifies)
    }

    /// Whether the gateway knows `sb_` keys (older self-hosted ones do not).
    pub fn translate_keys(&self, on: bool) {
        self.model().translates_keys = on;
    }

    /// Whether large objects get the ETag of an S3 back end, which is no MD5.
    pub fn multipart_etags(&self, on: bool) {
        self.model().multipart_etags = on;
    }

    /// How long a poisoned connection hangs.
    pub fn poisoned_for(&self, time: Duration) {
        self.model().poisoned = time;
    }

    /// Expires every signed URL.
    pub fn expire_signed_urls(&self) {
        self.model().signed.clear();
    }

    /// Returns once no client is connected any more.
    pub async fn disconnected(&self) {
        let mut connections = self.connections.clone();
        connections.wait_for(|&count| count == 0).await.unwrap();
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.shared.model.lock().unwrap()
    }
}

/// Breaks the connection that a request came on.
#[derive(Clone)]
struct Connection(CancellationToken);

impl Connection {
    async fn cut(&self) -> Response {
        self.0.cancel();
        std::future::pending().await
    }
}

async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    running: CancellationToken,
    count: watch::Sender<usize>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let token = running.child_token();
        let connection = Connection(token.clone());
        let shared = shared.clone();
        let router = Router::new()
            .fallback(move |request| handle(shared.clone(), request))
            .layer(Extension(connection));
        let count = count.clone();
        tokio::spawn(async move {
            count.send_modify(|count| *count += 1);
            let service = TowerToHyperService::new(router);
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            token.run_until_cancelled(serving).await;
            count.send_modify(|count| *count -= 1);
        });
    }
}

/// The gateway: strips its prefix and translates keys.
async fn handle(shared: Arc<Shared>, request: Request<Body>) -> Response {
    let connection = request.extensions().get::<Connection>().unwrap().clone();
    let (head, body) = request.into_parts();
    let authorization = {
        let mut model = shared.model.lock().unwrap();
        model
            .calls
            .push(format!("{} {}", head.method, head.uri.path()));
        if model.is_down {
            return (StatusCode::SERVICE_UNAVAILABLE, "no upstream").into_response();
        }
        if let Some(answer) = model.refuses.clone() {
            model.refused += 1;
            drain(body);
            return answer.into_response();
        }
        if model.rejects_key {
            model.refused += 1;
            Some(format!("Bearer {OTHER_JWT}"))
        } else {
            translate(&head.headers, model.translates_keys)
        }
    };
    let Some(path) = head.uri.path().strip_prefix("/storage/v1/") else {
        return no_route(&head.method, head.uri.path());
    };
    let Some(path) = percent_decoded(path) else {
        drain(body);
        return (
            StatusCode::BAD_REQUEST,
            Json(json!({"error": "Bad Request", "code": "FST_ERR_BAD_URL", "message": format!("'{}' is not a valid url component", head.uri.path()), "statusCode": 400})),
        )
            .into_response();
    };

    let is_get = head.method == Method::GET || head.method == Method::HEAD;
    let (op, path) = match (&head.method, path.split_once('/').unwrap_or((&path, ""))) {
        (_, ("object", rest)) => match rest.split_once('/').unwrap_or((rest, "")) {
            ("info", rest) if is_get => match rest.strip_prefix("authenticated/") {
                Some(rest) => (Op::Info, rest),
                // The real route takes a visitor without a valid JWT for one of a public bucket.
                None if is_unknown_jwt(authorization.as_deref()) => {
                    return no_bucket().into_response();
                }
                None => (Op::Info, rest),
            },
            ("sign", rest) if is_get => {
                return shared.read_signed(rest, &head.uri, &head.headers);
            }
            ("sign", rest) => (Op::Sign, rest),
            ("list", rest) => (Op::List, rest),
            ("authenticated", rest) if is_get => (Op::Read, rest),
            _ if is_get => (Op::Read, rest),
            _ if head.method == Method::DELETE => (Op::Delete, rest),
            _ => (Op::Upload, rest),
        },
        (&Method::GET, ("bucket", rest)) => (Op::Bucket, rest),
        _ => return no_route(&head.method, &format!("/{path}")),
    };

    let fault = shared.take_fault(op, path);
    let call = Call {
        op,
        path: path.to_owned(),
        method: head.method,
        headers: head.headers,
        is_held: matches!(fault, Some(Fault::Hold)),
    };
    match fault {
        Some(Fault::Answer(answer)) => {
            read_to_end(body).await.ok();
            return answer.into_response();
        }
        Some(Fault::Poison(answer)) => return shared.poison(answer, body, connection),
        Some(Fault::Stall) => {
            let _unread = body;
            return std::future::pending().await;
        }
        Some(Fault::CutAfter(bytes)) => {
            let mut stream = body.into_data_stream();
            let mut read = 0;
            while read < bytes
                && let Some(Ok(piece)) = stream.next().await
            {
                read += piece.len();
            }
            return connection.cut().await;
        }
        Some(Fault::DoneBut(_) | Fault::LoseAnswer | Fault::NoAnswer | Fault::Hold) | None => {}
    }
    let response = match authorize(authorization.as_deref()) {
        Ok(role) => shared.answer(call, role, body, &connection).await,
        Err(answer) => {
            drain(body);
            answer.into_response()
        }
    };
    match fault {
        Some(Fault::DoneBut(answer)) => answer.into_response(),
        Some(Fault::LoseAnswer | Fault::Hold) => connection.cut().await,
        Some(Fault::NoAnswer) => std::future::pending().await,
        _ => response,
    }
}

struct Call {
    op: Op,
    path: String,
    method: Method,
    headers: HeaderMap,
    is_held: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Service,
    Anon,
}

/// What the server gets as `Authorization`. The rule is that of Supabase's own `kong.yml`.
fn translate(headers: &HeaderMap, translates_keys: bool) -> Option<String> {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let given = value("authorization").map(str::to_owned);
    if !translates_keys {
        return given;
    }
    match (given, value("apikey")) {
        (Some(given), _) if !given.starts_with("Bearer sb_") => Some(given),
        (_, Some(SECRET_KEY)) => Some(format!("Bearer {SERVICE_JWT}")),
        (_, apikey) => apikey.map(str::to_owned),
    }
}

fn authorize(authorization: Option<&str>) -> Result<Role, Answer> {
    let denied = |message| {
        Err(Answer::refusal(
            400,
            "403",
            "Unauthorized",
            message,
            "AccessDenied",
        ))
    };
    let Some(given) = authorization else {
        let message = "headers must have required property 'authorization'";
        return Err(Answer::refusal(
            400,
            "400",
            "Error",
            message,
            "InvalidRequest",
        ));
    };
    let token = given
        .strip_prefix("Bearer ")
        .or(given.strip_prefix("bearer "));
    match token.unwrap_or(given) {
        SERVICE_JWT => Ok(Role::Service),
        ANON_JWT => Ok(Role::Anon),
        EXPIRED_JWT => denied("\"exp\" claim timestamp check failed"),
        jwt if jwt.starts_with("eyJ") && jwt.split('.').count() == 3 => {
            denied("signature verification failed")
        }
        _ => denied("Invalid Compact JWS"),
    }
}

fn is_unknown_jwt(authorization: Option<&str>) -> bool {
    authorization.is_some() && authorize(authorization).is_err()
}

impl Shared {
    fn take_fault(&self, op: Op, path: &str) -> Option<Fault> {
        let mut model = self.model.lock().unwrap();
        let applies = |(on, part, _): &(Op, String, Fault)| *on == op && path.contains(part);
        let at = model.faults.iter().position(applies)?;
        Some(model.faults.remove(at).2)
    }

    /// Answers without reading the body; the connection then hangs until it is closed.
    fn poison(&self, answer: Answer, body: Body, connection: Connection) -> Response {
        let time = self.model.lock().unwrap().poisoned;
        tokio::spawn(async move {
            let held = tokio::time::timeout(time, connection.0.cancelled()).await;
            drop(body);
            if held.is_err() {
                connection.0.cancel();
            }
        });
        answer.into_response()
    }

    async fn answer(
        &self,
        call: Call,
        role: Role,
        body: Body,
        connection: &Connection,
    ) -> Response {
        if call.op == Op::Upload {
            return self.upload(call, role, body, connection).await;
        }
        let empty_json = call.op == Op::Delete && call.headers.contains_key(header::CONTENT_TYPE);
        let body = read_to_end(body).await.unwrap_or_default();
        if empty_json && body.is_empty() {
            let message = "Body cannot be empty when content-type is set to 'application/json'";
            return (
                StatusCode::BAD_REQUEST,
                [(header::CONNECTION, "close")],
                Json(json!({"statusCode": "400", "error": "Error", "message": message, "code": "InvalidRequest"})),
            )
                .into_response();
        }
        let request: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut model = self.model.lock().unwrap();
        match call.op {
            Op::Bucket => model.bucket(&call.path),
            Op::List => model.list(&call.path, &request),
            // Row-level security hides objects from anonymous visitors.
            _ if role == Role::Anon => no_object(&call.method),
            Op::Info => model.info(&call.path),
            Op::Read => model.read(&call.path, &call.method, &call.headers),
            Op::Sign => model.sign(&call.path),
            Op::Delete => match model.objects.remove(&call.path) {
                Some(_) => Json(json!({"message": "Successfully deleted"})).into_response(),
                None => no_object(&call.method),
            },
            Op::Upload => unreachable!(),
        }
    }

    async fn upload(
        &self,
        call: Call,
        role: Role,
        body: Body,
        connection: &Connection,
    ) -> Response {
        let header = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok());
        let mime = header("content-type").unwrap_or("application/octet-stream");
        let size = header("content-length").and_then(|size| size.parse().ok());
        let (bucket, key) = call.path.split_once('/').unwrap_or((&call.path, ""));

        let refused = self.model.lock().unwrap().refusal(bucket, mime, size);
        if let Some(answer) = refused {
            drain(body);
            return answer.into_response();
        }
        let upsert = call.method == Method::PUT || header("x-upsert") == Some("true");
        let exists = self.model.lock().unwrap().objects.contains_key(&call.path);
        // From here on the real server has begun to forward the body, and does not read the rest.
        let refused = if !is_key(key) {
            let message = format!("Invalid key: {key}");
            Some(Answer::refusal(
                400,
                "400",
                "InvalidKey",
                &message,
                "InvalidKey",
            ))
        } else if role != Role::Service {
            let message = "new row violates row-level security policy";
            Some(Answer::refusal(
                400,
                "403",
                "Unauthorized",
                message,
                "AccessDenied",
            ))
        } else if exists && !upsert {
            let message = "The resource already exists";
            Some(Answer::refusal(
                400,
                "409",
                "Duplicate",
                message,
                "KeyAlreadyExists",
            ))
        } else {
            None
        };
        if let Some(answer) = refused {
            return self.poison(answer, body, connection.clone());
        }

        let Ok(bytes) = read_to_end(body).await else {
            return (
                StatusCode::BAD_REQUEST,
                Json(json!({"error": "Bad Request", "message": "Client Error", "statusCode": 400})),
            )
                .into_response();
        };
        let pause = self.model.lock().unwrap().pauses.pop_front();
        if let Some(pause) = pause {
            pause.reached.notify_one();
            pause.resume.notified().await;
        }
        let metadata = header("x-metadata").and_then(|text| BASE64_STANDARD.decode(text).ok());
        let object = Object {
            id: Uuid::new_v4(),
            version: Uuid::new_v4(),
            bytes: bytes.clone(),
            mime: mime.to_owned(),
            cache_control: header("cache-control").unwrap_or("no-cache").to_owned(),
            metadata: serde_json::from_slice(&metadata.unwrap_or_default()).unwrap_or(json!({})),
        };
        let headers = call.headers.clone();
        let upload = Upload { bytes, headers };
        let mut model = self.model.lock().unwrap();
        if call.is_held {
            model.held.push((call.path, object, upload));
            return StatusCode::OK.into_response();
        }
        let id = model.commit(&call.path, object, upload);
        Json(json!({"Key": call.path, "Id": id})).into_response()
    }

    fn read_signed(&self, path: &str, uri: &axum::http::Uri, headers: &HeaderMap) -> Response {
        let token = uri.query().and_then(|query| query.strip_prefix("token="));
        let model = self.model.lock().unwrap();
        if token
            .and_then(|token| model.signed.get(token))
            .map(String::as_str)
            != Some(path)
        {
            let message = "\"exp\" claim timestamp check failed";
            return Answer::refusal(400, "400", "InvalidJWT", message, "InvalidJWT")
                .into_response();
        }
        model.read(path, &Method::GET, headers)
    }
}

impl Model {
    /// The refusals before the server reads the body.
    fn refusal(&self, bucket: &str, mime: &str, size: Option<u64>) -> Option<Answer> {
        let Some(bucket) = self.buckets.get(bucket) else {
            return Some(no_bucket());
        };
        if let Some(mimes) = &bucket.mimes
            && !mimes.is_empty()
            && !mimes.iter().any(|allowed| mime_matches(allowed, mime))
        {
            let message = format!("mime type {mime} is not supported");
            return Some(Answer::refusal(
                400,
                "415",
                "invalid_mime_type",
                &message,
                "InvalidMimeType",
            ));
        }
        // A chunked body has no size, and passes.
        if size > bucket.limit && bucket.limit.is_some() {
            let message = "The object exceeded the maximum allowed size";
            return Some(Answer::refusal(
                400,
                "413",
                "Payload too large",
                message,
                "EntityTooLarge",
            ));
        }
        None
    }

    fn commit(&mut self, path: &str, mut object: Object, upload: Upload) -> Uuid {
        if let Some(old) = self.objects.get(path) {
            object.id = old.id;
        }
        let id = object.id;
        self.lost.remove(path);
        self.objects.insert(path.to_owned(), object);
        self.history
            .entry(path.to_owned())
            .or_default()
            .push(upload);
        id
    }

    fn info(&self, path: &str) -> Response {
        let Some(object) = self.objects.get(path) else {
            return no_object(&Method::GET);
        };
        let (bucket, name) = path.split_once('/').unwrap();
        Json(json!({
            "id": object.id, "name": name, "version": object.version, "bucket_id": bucket,
            "size": object.bytes.len(), "content_type": object.mime,
            "cache_control": object.cache_control, "etag": self.etag(&object.bytes),
            "metadata": object.metadata,
            "last_modified": "2026-11-20T12:00:00.000Z", "created_at": "2026-11-20T12:00:00.000Z",
        }))
        .into_response()
    }

    fn etag(&self, bytes: &[u8]) -> String {
        if !self.multipart_etags || bytes.len() <= PART_BYTES {
            return format!("\"{}\"", hex::encode(Md5::digest(bytes)));
        }
        let parts: Vec<_> = bytes.chunks(PART_BYTES).map(Md5::digest).collect();
        format!(
            "\"{}-{}\"",
            hex::encode(Md5::digest(parts.concat())),
            parts.len()
        )
    }

    fn read(&self, path: &str, method: &Method, headers: &HeaderMap) -> Response {
        let Some(object) = self.objects.get(path) else {
            return no_object(method);
        };
        if self.lost.contains(path) {
            let message = "Internal Server Error";
            return Answer::refusal(500, "500", "Internal", message, "InternalError")
                .into_response();
        }
        let all = [
            (header::CONTENT_TYPE, object.mime.clone()),
            (header::ETAG, self.etag(&object.bytes)),
            (header::CACHE_CONTROL, object.cache_control.clone()),
        ];
        let size = object.bytes.len();
        let Some(range) = headers
            .get(header::RANGE)
            .and_then(|range| range.to_str().ok())
        else {
            return (all, object.bytes.clone()).into_response();
        };
        let (from, to) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let (from, to) = match (from.parse::<usize>(), to.parse::<usize>()) {
            (Ok(from), to) => (from, to.map_or(size, |to| size.min(to + 1))),
            (Err(_), tail) => (size.saturating_sub(tail.unwrap()), size),
        };
        if from >= size {
            let message = "The requested range is not satisfiable";
            return Answer::refusal(416, "416", "InvalidRange", message, "InvalidRange")
                .into_response();
        }
        let range = [(
            header::CONTENT_RANGE,
            format!("bytes {from}-{}/{size}", to - 1),
        )];
        let part = object.bytes.slice(from..to);
        (StatusCode::PARTIAL_CONTENT, all, range, part).into_response()
    }

    fn sign(&mut self, path: &str) -> Response {
        if !self.objects.contains_key(path) {
            return no_object(&Method::POST);
        }
        let token = Uuid::new_v4().to_string();
        let url = format!("/object/sign/{path}?token={token}");
        self.signed.insert(token, path.to_owned());
        Json(json!({"signedURL": url})).into_response()
    }

    fn bucket(&self, name: &str) -> Response {
        let Some(bucket) = self.buckets.get(name) else {
            return no_bucket().into_response();
        };
        Json(json!({
            "id": name, "name": name, "owner": "", "public": false,
            "file_size_limit": bucket.limit, "allowed_mime_types": bucket.mimes,
            "created_at": "2026-11-20T12:00:00.000Z", "updated_at": "2026-11-20T12:00:00.000Z",
        }))
        .into_response()
    }

    /// One level below a prefix. A missing bucket looks like an empty one.
    fn list(&self, bucket: &str, request: &Value) -> Response {
        let prefix = format!(
            "{bucket}/{}",
            request["prefix"].as_str().unwrap_or_default()
        );
        let search = request["search"].as_str().unwrap_or_default();
        let below = self
            .objects
            .iter()
            .filter_map(|(path, object)| Some((path.strip_prefix(&prefix)?, object)));
        let mut folders = BTreeSet::new();
        let mut entries = Vec::new();
        for (name, object) in below.filter(|(name, _)| name.contains(search)) {
            match name.split_once('/') {
                Some((folder, _)) => {
                    folders.insert(folder);
                }
                None => entries.push(json!({
                    "name": name, "id": object.id,
                    "metadata": {
                        "size": object.bytes.len(), "mimetype": object.mime,
                        "eTag": self.etag(&object.bytes), "cacheControl": object.cache_control,
                    },
                })),
            }
        }
        let folders = folders
            .into_iter()
            .map(|name| json!({"name": name, "id": null, "metadata": null}));
        Json(folders.chain(entries).collect::<Vec<_>>()).into_response()
    }
}

/// Exact and case-sensitive, except for wildcards of a subtype in the list: `video/*`, but not `*/*`.
fn mime_matches(allowed: &str, mime: &str) -> bool {
    let kind = |mime: &str| mime.split('/').next().map(str::to_owned);
    allowed == mime || (allowed.ends_with("/*") && kind(allowed) == kind(mime))
}

fn is_key(key: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_/!.*'() &$@=;:+,?-".contains(&b);
    !key.is_empty() && key.bytes().all(allowed)
}

fn no_bucket() -> Answer {
    Answer::refusal(
        400,
        "404",
        "Bucket not found",
        "Bucket not found",
        "NoSuchBucket",
    )
}

fn no_object(method: &Method) -> Response {
    if method == Method::HEAD {
        return StatusCode::BAD_REQUEST.into_response();
    }
    Answer::refusal(400, "404", "not_found", "Object not found", "NoSuchKey").into_response()
}

fn no_route(method: &Method, path: &str) -> Response {
    let message = format!("Route {method}:{path} not found");
    let body = json!({"message": message, "error": "Not Found", "statusCode": 404});
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}

/// Reads on in the background, so that the connection stays usable after an early answer.
fn drain(body: Body) {
    tokio::spawn(read_to_end(body));
}

async fn read_to_end(body: Body) -> io::Result<Bytes> {
    let all = axum::body::to_bytes(body, usize::MAX).await;
    all.map_err(io::Error::other)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}
