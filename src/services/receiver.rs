//! Asks a public address whether it reaches a server with our webhook secret.
//!
//! The request is a signed `ping` as GitHub sends it, with a random number in its body. Only a server that has
//! the secret can respond with the [`proof`] for that number.

use std::time::Duration;

use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, LOCATION};
use secrecy::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client;
use crate::domain::signature::{proof, same_secret, sign};
use crate::format::Unreachable;

/// The longest time for the connection and for the whole response: GitHub waits this long for a delivery.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest response that is read, in bytes. A longer one is not from a server of this kind.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// What the address reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// A server with our secret.
    Ours,
    /// A server of this kind that uses another secret.
    OtherSecret,
    /// A server of this kind that does not know proofs, because its version is older.
    Older,
    /// A proxy whose server did not respond, with this status.
    ProxyAlone(u16),
    /// A redirect to this address, if it names one. GitHub does not follow redirects.
    Redirect(Option<String>),
    /// Another program, which responded with this status.
    Other(u16),
    /// No response, for this reason.
    Nothing(Unreachable),
}

/// Sends the ping to `url`, the address for GitHub's deliveries.
///
/// # Errors
/// This system has no TLS certificates.
pub async fn ask(url: &Url, secret: &SecretString) -> anyhow::Result<Reached> {
    let nonce = Uuid::new_v4().simple().to_string();
    let body = json!({ "zen": "Ping from video-ingest doctor.", "nonce": nonce }).to_string();
    let request = client::direct(TIMEOUT)
        .timeout(TIMEOUT)
        .build()?
        .post(url.clone())
        .header(CONTENT_TYPE, "application/json")
        .header("x-github-event", "ping")
        .header("x-github-delivery", Uuid::new_v4().to_string())
        .header("x-hub-signature-256", sign(secret, body.as_bytes()))
        .body(body);
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Ok(Reached::Nothing(unreachable(&error))),
    };
    let body = match client::body(&mut response, RESPONSE_BYTES_MAX).await {
        Ok(body) => body.unwrap_or_default(),
        Err(error) => return Ok(Reached::Nothing(unreachable(&error))),
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let status = response.status();
    Ok(match status.as_u16() {
        200 if body["status"] == "pong" => match body["proof"].as_str() {
            Some(found) if same_secret(found.as_bytes(), proof(secret, &nonce).as_bytes()) => {
                Reached::Ours
            }
            Some(_) => Reached::OtherSecret,
            None => Reached::Older,
        },
        401 if body["code"] == "bad_signature" => Reached::OtherSecret,
        502..=504 => Reached::ProxyAlone(status.as_u16()),
        _ if status.is_redirection() => Reached::Redirect(target(url, &response)),
        other => Reached::Other(other),
    })
}

/// Whether a program listens at the address of the server on this machine.
pub async fn is_listening(address: std::net::SocketAddr) -> bool {
    let connecting = tokio::net::TcpStream::connect(address);
    matches!(tokio::time::timeout(TIMEOUT, connecting).await, Ok(Ok(_)))
}

fn unreachable(error: &reqwest::Error) -> Unreachable {
    if error.is_timeout() {
        Unreachable::TimedOut
    } else {
        Unreachable::of(error)
    }
}

/// Where a redirect points to. Without query, because that may contain a token.
fn target(from: &Url, response: &reqwest::Response) -> Option<String> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let mut target = from.join(location).ok()?;
    target.set_query(None);
    target.set_fragment(None);
    Some(target.into())
}
