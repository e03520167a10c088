//! The fake Supabase Storage responds as the real server was observed to respond.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use futures_util::stream;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::fake_storage::{
    ANON_JWT, Answer, EXPIRED_JWT, FakeStorage, Fault, Op, SECRET_KEY, SERVICE_JWT,
};

const OBJECT: &str = "object/lesson-assets/u1/l1/a.mp4";
const STORED: &str = "lesson-assets/u1/l1/a.mp4";

async fn started() -> FakeStorage {
    let storage = FakeStorage::start().await;
    storage.create_bucket("lesson-assets", Some(10), Some(&["video/mp4"]));
    storage
}

fn anonymous(storage: &FakeStorage, method: Method, path: &str) -> RequestBuilder {
    // Built as a string: `Url::join` would normalize some of the paths in these tests.
    let url = format!("{}/storage/v1/{path}", storage.url());
    Client::new().request(method, url)
}

fn request(storage: &FakeStorage, method: Method, path: &str) -> RequestBuilder {
    anonymous(storage, method, path).bearer_auth(SERVICE_JWT)
}

fn upload(storage: &FakeStorage, body: &'static str) -> RequestBuilder {
    request(storage, Method::POST, OBJECT)
        .header("content-type", "video/mp4")
        .body(body)
}

async fn answer(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn json_of(request: RequestBuilder) -> Value {
    request.send().await.unwrap().json().await.unwrap()
}

fn refusal(status: &str, error: &str, message: &str, code: &str) -> (u16, String) {
    let body = format!(
        r#"{{"statusCode":"{status}","error":"{error}","message":"{message}","code":"{code}"}}"#
    );
    (400, body)
}

#[tokio::test]
async fn an_upload_is_stored_with_its_headers_and_keeps_its_id() {
    let storage = started().await;
    let first = json_of(
        upload(&storage, "one")
            .header("x-metadata", "eyJzaGEiOiJhYmMifQ==")
            .header("cache-control", "max-age=3600"),
    )
    .await;
    assert_eq!(first["Key"], STORED);
    let info = request(
        &storage,
        Method::GET,
        "object/info/lesson-assets/u1/l1/a.mp4",
    );
    let info = json_of(info).await;
    assert_eq!(info["name"], "u1/l1/a.mp4");
    assert_eq!(info["size"], 3);
    assert_eq!(info["content_type"], "video/mp4");
    assert_eq!(info["cache_control"], "max-age=3600");
    assert_eq!(info["etag"], "\"f97c5d29941bfb1b2fdab0874906ab82\"");
    assert_eq!(info["metadata"], json!({"sha": "abc"}));

    let second = json_of(upload(&storage, "two").header("x-upsert", "true")).await;
    assert_eq!(second["Id"], first["Id"]);
    let info = request(
        &storage,
        Method::GET,
        "object/info/authenticated/lesson-assets/u1/l1/a.mp4",
    );
    let info = json_of(info).await;
    assert_eq!(
        (&info["cache_control"], &info["metadata"]),
        (&json!("no-cache"), &json!({}))
    );
    assert_eq!(storage.objects(), [format!("{STORED}  3  video/mp4")]);
    assert_eq!(storage.uploads(STORED), 2);
    assert_eq!(storage.history(STORED)[0].bytes, "one");
}

#[tokio::test]
async fn only_the_exact_upsert_or_put_replaces() {
    let storage = started().await;
    let duplicate = refusal(
        "409",
        "Duplicate",
        "The resource already exists",
        "KeyAlreadyExists",
    );
    answer(upload(&storage, "one")).await;
    assert_eq!(answer(upload(&storage, "two")).await, duplicate);
    assert_eq!(
        answer(upload(&storage, "two").header("x-upsert", "TRUE")).await,
        duplicate
    );
    assert_eq!(storage.bytes(STORED).unwrap(), "one");
    let put = request(&storage, Method::PUT, OBJECT)
        .header("content-type", "video/mp4")
        .header("x-upsert", "false");
    assert_eq!(answer(put.body("two")).await.0, 200);
    assert_eq!(storage.bytes(STORED).unwrap(), "two");
}

#[tokio::test]
async fn the_size_limit_is_exact_and_ignores_chunked_bodies() {
    let storage = started().await;
    let too_large = refusal(
        "413",
        "Payload too large",
        "The object exceeded the maximum allowed size",
        "EntityTooLarge",
    );
    assert_eq!(answer(upload(&storage, "0123456789a")).await, too_large);
    assert_eq!(answer(upload(&storage, "0123456789")).await.0, 200);
    let chunks = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"0123456789a"))]);
    let chunked = upload(&storage, "")
        .header("x-upsert", "true")
        .body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(answer(chunked).await.0, 200);
    assert_eq!(storage.bytes(STORED).unwrap().len(), 11);
    let empty = upload(&storage, "").header("x-upsert", "true");
    assert_eq!(answer(empty).await.0, 200);
    assert_eq!(storage.bytes(STORED).unwrap(), "");
}

#[tokio::test]
async fn invalid_types_buckets_and_keys_are_refused() {
    let storage = started().await;
    for mime in ["application/pdf", "Video/MP4", "video/mp4; codecs=avc1"] {
        let typed = request(&storage, Method::POST, OBJECT).header("content-type", mime);
        let message = format!("mime type {mime} is not supported");
        let expected = refusal("415", "invalid_mime_type", &message, "InvalidMimeType");
        assert_eq!(answer(typed.body("x")).await, expected);
    }
    let untyped = request(&storage, Method::POST, OBJECT).body(Bytes::from_static(b"x"));
    assert!(answer(untyped).await.1.contains("application/octet-stream"));

    let no_bucket = refusal(
        "404",
        "Bucket not found",
        "Bucket not found",
        "NoSuchBucket",
    );
    let elsewhere = request(&storage, Method::POST, "object/nowhere/a.mp4").body("x");
    assert_eq!(answer(elsewhere).await, no_bucket);
    let bucket = request(&storage, Method::GET, "bucket/nowhere");
    assert_eq!(answer(bucket).await, no_bucket);
    let list = request(&storage, Method::POST, "object/list/nowhere").json(&json!({"prefix": ""}));
    assert_eq!(answer(list).await, (200, "[]".to_owned()));

    let bad_key = request(
        &storage,
        Method::POST,
        "object/lesson-assets/inv/%C3%BC.mp4",
    );
    let bad_key = bad_key.header("content-type", "video/mp4").body("x");
    let expected = refusal("400", "InvalidKey", "Invalid key: inv/ü.mp4", "InvalidKey");
    assert_eq!(answer(bad_key).await, expected);
    let bad_url =
        answer(request(&storage, Method::POST, "object/lesson-assets/%zz").body("x")).await;
    assert!(
        bad_url.0 == 400 && bad_url.1.contains(r#""statusCode":400"#),
        "{bad_url:?}"
    );
    let no_route = answer(request(&storage, Method::POST, "nothing/here")).await;
    assert!(
        no_route.0 == 404 && no_route.1.contains(r#""statusCode":404"#),
        "{no_route:?}"
    );
    let unprefixed = Client::new().get(format!("{}/bucket/lesson-assets", storage.url()));
    assert_eq!(answer(unprefixed).await.0, 404);
    assert!(storage.objects().is_empty());
}

#[tokio::test]
async fn a_bucket_shows_its_limits_and_matches_wildcards() {
    let storage = started().await;
    storage.create_bucket("any", None, None);
    storage.create_bucket("videos", None, Some(&["video/*"]));
    let any = json_of(request(&storage, Method::GET, "bucket/any")).await;
    assert_eq!(
        (&any["file_size_limit"], &any["allowed_mime_types"]),
        (&Value::Null, &Value::Null)
    );
    let limited = json_of(request(&storage, Method::GET, "bucket/lesson-assets")).await;
    assert_eq!(limited["file_size_limit"], 10);
    assert_eq!(limited["allowed_mime_types"], json!(["video/mp4"]));
    let wild =
        request(&storage, Method::POST, "object/videos/a.mp4").header("content-type", "video/mp4");
    assert_eq!(answer(wild.body("x")).await.0, 200);
    storage.create_bucket("all", None, Some(&["*/*"]));
    let all =
        request(&storage, Method::POST, "object/all/a.mp4").header("content-type", "video/mp4");
    assert_eq!(answer(all.body("x")).await.0, 400);
}

#[tokio::test]
async fn keys_are_checked_by_gateway_and_server() {
    let storage = started().await;
    let denied = |message: &str| refusal("403", "Unauthorized", message, "AccessDenied");
    let missing = refusal(
        "400",
        "Error",
        "headers must have required property 'authorization'",
        "InvalidRequest",
    );
    let get = || anonymous(&storage, Method::GET, "bucket/lesson-assets");
    let sb = |request: RequestBuilder| request.header("apikey", SECRET_KEY);

    assert_eq!(answer(sb(get())).await.0, 200);
    assert_eq!(answer(sb(get()).bearer_auth(SECRET_KEY)).await.0, 200);
    assert_eq!(answer(get().header("apikey", SERVICE_JWT)).await.0, 200);
    assert_eq!(answer(get().bearer_auth(SECRET_KEY)).await, missing);
    assert_eq!(
        answer(get().header("apikey", "sb_secret_x")).await,
        denied("Invalid Compact JWS")
    );
    assert_eq!(
        answer(get().bearer_auth(EXPIRED_JWT)).await,
        denied("\\\"exp\\\" claim timestamp check failed")
    );
    assert_eq!(
        answer(get().bearer_auth("eyJh.eyJi.x")).await,
        denied("signature verification failed")
    );
    let visitor = sb(anonymous(&storage, Method::POST, OBJECT)).bearer_auth(ANON_JWT);
    let visitor = visitor.header("content-type", "video/mp4").body("x");
    assert_eq!(
        answer(visitor).await,
        denied("new row violates row-level security policy")
    );

    storage.translate_keys(false);
    assert_eq!(answer(sb(get())).await, missing);
    assert_eq!(
        answer(sb(get()).bearer_auth(SECRET_KEY)).await,
        denied("Invalid Compact JWS")
    );
    assert_eq!(answer(get().bearer_auth(SERVICE_JWT)).await.0, 200);
}

#[tokio::test]
async fn a_missing_object_is_a_400() {
    let storage = started().await;
    let missing = refusal("404", "not_found", "Object not found", "NoSuchKey");
    for (method, path) in [
        (Method::GET, OBJECT),
        (Method::GET, "object/info/lesson-assets/u1/l1/a.mp4"),
        (Method::GET, "object/info/nowhere/u1/l1/a.mp4"),
        (Method::POST, "object/sign/lesson-assets/u1/l1/a.mp4"),
        (Method::DELETE, OBJECT),
    ] {
        let asked = request(&storage, method, path);
        assert_eq!(answer(asked).await, missing, "{path}");
    }
    assert_eq!(
        answer(request(&storage, Method::HEAD, OBJECT)).await,
        (400, String::new())
    );
}

#[tokio::test]
async fn a_delete_with_a_type_needs_a_body() {
    let storage = started().await;
    answer(upload(&storage, "one")).await;
    let typed =
        request(&storage, Method::DELETE, OBJECT).header("content-type", "application/json");
    let typed = typed.send().await.unwrap();
    assert_eq!(
        (
            typed.status().as_u16(),
            typed.headers()["connection"].to_str().unwrap()
        ),
        (400, "close")
    );
    let plain = answer(request(&storage, Method::DELETE, OBJECT)).await;
    assert_eq!(
        plain,
        (200, r#"{"message":"Successfully deleted"}"#.to_owned())
    );
    assert!(storage.objects().is_empty());
}

#[tokio::test]
async fn a_signed_url_plays_in_ranges_until_it_expires() {
    let storage = started().await;
    answer(upload(&storage, "0123456789")).await;
    let sign = request(
        &storage,
        Method::POST,
        "object/sign/lesson-assets/u1/l1/a.mp4",
    );
    let signed = json_of(sign.json(&json!({"expiresIn": 3600}))).await;
    let path = signed["signedURL"]
        .as_str()
        .unwrap()
        .trim_start_matches('/')
        .to_owned();
    let play = |range: &str| anonymous(&storage, Method::GET, &path).header("range", range);
    assert_eq!(answer(play("bytes=2-4")).await, (206, "234".to_owned()));
    assert_eq!(answer(play("bytes=7-")).await, (206, "789".to_owned()));
    assert_eq!(answer(play("bytes=-2")).await, (206, "89".to_owned()));
    assert_eq!(answer(play("bytes=10-")).await.0, 416);
    storage.expire_signed_urls();
    assert!(answer(play("bytes=0-")).await.1.contains("InvalidJWT"));
}

#[tokio::test]
async fn a_list_shows_one_level() {
    let storage = started().await;
    answer(upload(&storage, "one")).await;
    let list = |prefix| {
        request(&storage, Method::POST, "object/list/lesson-assets")
            .json(&json!({"prefix": prefix}))
    };
    let top = json_of(list("")).await;
    assert_eq!(top, json!([{"name": "u1", "id": null, "metadata": null}]));
    let files = json_of(list("u1/l1/")).await;
    assert_eq!(
        (&files[0]["name"], &files[0]["metadata"]["size"]),
        (&json!("a.mp4"), &json!(3))
    );
}

#[tokio::test]
async fn large_objects_of_an_s3_back_end_have_no_md5() {
    let storage = started().await;
    storage.create_bucket("large", None, None);
    storage.multipart_etags(true);
    let put =
        |size: usize| request(&storage, Method::PUT, "object/large/a.mp4").body(vec![0; size]);
    let etag = async || {
        json_of(request(&storage, Method::GET, "object/info/large/a.mp4")).await["etag"].to_string()
    };
    answer(put(16 << 20)).await;
    assert!(!etag().await.contains('-'));
    answer(put((16 << 20) + 1)).await;
    assert!(etag().await.ends_with("-2\\\"\""));
}

#[tokio::test]
async fn an_early_refusal_poisons_its_connection_and_a_drained_one_does_not() {
    let storage = started().await;
    let client = Client::new();
    let send = |bucket: &str, key: &str| {
        let url = format!("{}/storage/v1/object/{bucket}/{key}", storage.url());
        let post = client
            .post(url)
            .bearer_auth(SERVICE_JWT)
            .header("content-type", "video/mp4");
        // Large enough to be still in transit, small enough to fit into the socket buffers.
        post.body(vec![0; 500_000]).send()
    };
    let next = async || {
        let url = format!("{}/storage/v1/bucket/any", storage.url());
        client.get(url).bearer_auth(SERVICE_JWT).send().await
    };
    let finish = async |response: Response| response.bytes().await.unwrap();
    storage.create_bucket("any", None, None);

    finish(send("lesson-assets", "a.mp4").await.unwrap()).await;
    assert!(next().await.is_ok(), "413 is drained");
    storage.poisoned_for(Duration::from_millis(300));
    let begun = std::time::Instant::now();
    finish(send("any", "%C3%BC.mp4").await.unwrap()).await;
    let after_poison = next().await;
    assert!(
        after_poison.is_err() || begun.elapsed() >= Duration::from_millis(300),
        "the next request must hang on the poisoned connection"
    );
}

#[tokio::test]
async fn a_cut_upload_leaves_the_old_version() {
    let storage = started().await;
    storage.create_bucket("lesson-assets", None, None);
    answer(upload(&storage, "old")).await;
    storage.fault(Op::Upload, Fault::CutAfter(1));
    let cut = upload(&storage, "")
        .header("x-upsert", "true")
        .body(vec![0; 1 << 20]);
    assert!(cut.send().await.is_err());
    assert_eq!(storage.bytes(STORED).unwrap(), "old");

    // And a client that disconnects during the upload.
    let body = stream::iter([
        Ok(Bytes::from_static(b"x")),
        Err(std::io::Error::other("gone")),
    ]);
    let gone = upload(&storage, "").header("x-upsert", "true");
    assert!(
        gone.body(reqwest::Body::wrap_stream(body))
            .send()
            .await
            .is_err()
    );
    storage.disconnected().await;
    assert_eq!(storage.bytes(STORED).unwrap(), "old");
}

#[tokio::test]
async fn each_fault_applies_once() {
    let storage = started().await;
    storage.fault(
        Op::Upload,
        Fault::Answer(Answer::new(502, "text/html", "<html>Bad Gateway</html>")),
    );
    storage.fault(Op::Upload, Fault::LoseAnswer);
    storage.fault_at(Op::Upload, "nobody", Fault::Stall);
    assert_eq!(
        answer(upload(&storage, "one")).await,
        (502, "<html>Bad Gateway</html>".to_owned())
    );
    assert!(storage.objects().is_empty());
    assert!(upload(&storage, "one").send().await.is_err());
    assert_eq!(storage.uploads(STORED), 1);
    assert_eq!(
        answer(upload(&storage, "one").header("x-upsert", "true"))
            .await
            .0,
        200
    );
    assert_eq!(storage.calls().len(), 3);
}

#[tokio::test]
async fn a_paused_upload_ends_after_a_later_one() {
    let storage = started().await;
    let pause = storage.pause_before_last_byte();
    let late = tokio::spawn(upload(&storage, "late").header("x-upsert", "true").send());
    pause.reached().await;
    answer(upload(&storage, "quick").header("x-upsert", "true")).await;
    assert_eq!(storage.bytes(STORED).unwrap(), "quick");
    pause.resume();
    assert_eq!(late.await.unwrap().unwrap().status().as_u16(), 200);
    assert_eq!(storage.bytes(STORED).unwrap(), "late");
}
