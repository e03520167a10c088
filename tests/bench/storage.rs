//! A fake Supabase Storage that only accepts bytes. The fake of the scenarios checks too much to be fast.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sha2::Digest as _;
use tokio::net::TcpListener;

struct Object {
    pieces: Vec<Bytes>,
    size: usize,
    metadata: Value,
}

type Objects = Arc<Mutex<HashMap<String, Object>>>;

/// Listens until the benchmark ends.
pub struct Storage {
    pub address: SocketAddr,
    objects: Objects,
}

impl Storage {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let objects = Objects::default();
        let bucket = json!({"id": "lesson-assets", "public": false});
        let router = Router::new()
            .route("/storage/v1/object/{*path}", post(upload))
            .route("/storage/v1/object/info/authenticated/{*path}", get(info))
            .route("/storage/v1/bucket/{name}", get(async || Json(bucket)))
            .route("/plain/{*path}", put(upload))
            .with_state(objects.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, objects }
    }

    /// Removes all objects and returns the SHA-256 of each by path.
    pub fn take(&self) -> HashMap<String, String> {
        let objects = std::mem::take(&mut *self.objects.lock().unwrap());
        let hashed = objects.into_iter().map(|(path, object)| {
            let mut sha256 = sha2::Sha256::new();
            object.pieces.iter().for_each(|piece| sha256.update(piece));
            (path, hex::encode(sha256.finalize()))
        });
        hashed.collect()
    }
}

async fn upload(
    State(objects): State<Objects>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let metadata = headers.get("x-metadata").and_then(|value| {
        let json = BASE64_STANDARD.decode(value.as_bytes()).ok()?;
        serde_json::from_slice(&json).ok()
    });
    let (mut pieces, mut size) = (Vec::new(), 0);
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        let Ok(piece) = piece else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        size += piece.len();
        pieces.push(piece);
    }
    let object = Object {
        pieces,
        size,
        metadata: metadata.unwrap_or_default(),
    };
    objects.lock().unwrap().insert(path.clone(), object);
    Json(json!({"Key": path, "Id": uuid::Uuid::nil()})).into_response()
}

async fn info(State(objects): State<Objects>, Path(path): Path<String>) -> Response {
    match objects.lock().unwrap().get(&path) {
        Some(object) => {
            Json(json!({"size": object.size, "metadata": object.metadata})).into_response()
        }
        None => {
            let refusal = json!({
                "statusCode": "404", "error": "not_found", "message": "Object not found", "code": "NoSuchKey",
            });
            (StatusCode::BAD_REQUEST, Json(refusal)).into_response()
        }
    }
}
