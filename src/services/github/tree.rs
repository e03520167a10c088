//! Trees: the entries of a folder, read as a stream, because a large folder's response exceeds what is read
//! into memory.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{ApiBody, bad_body, not_as_documented, unavailable};
use crate::domain::failure::Failure;
use crate::domain::ids::GitSha;

/// The most chunks of a response that wait to be parsed.
const CHUNKS_MAX: usize = 4;

/// An entry of a folder.
#[derive(Deserialize)]
pub(super) struct TreeEntry {
    pub(super) path: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) sha: GitSha,
    /// In bytes; absent for folders.
    pub(super) size: Option<u64>,
}

/// Folds the entries of a tree, one at a time. The value: whether GitHub truncated the tree.
pub(super) struct TreeSeed<'a, T> {
    pub(super) folded: &'a mut T,
    pub(super) fold: fn(&mut T, TreeEntry),
}

/// Folds the entries of a response of at most `bytes_max` bytes into `init`. Returns the result, and
/// whether it is complete. A longer response is handled like one that GitHub truncated. `stall_max`: the
/// longest wait for the next byte.
pub(super) async fn read<T: Send + 'static>(
    mut body: ApiBody,
    bytes_max: usize,
    stall_max: Duration,
    init: T,
    fold: fn(&mut T, TreeEntry),
) -> Result<(T, bool), Failure> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    // If this future is dropped, the sender is too, which ends the parser.
    let parser = tokio::task::spawn_blocking(move || {
        let mut folded = init;
        let chunks = Chunks {
            receiver,
            rest: Bytes::new(),
        };
        let mut json = serde_json::Deserializer::from_reader(BufReader::new(chunks));
        let seed = TreeSeed {
            folded: &mut folded,
            fold,
        };
        let truncated = seed.deserialize(&mut json);
        let truncated = truncated.and_then(|truncated| json.end().map(|()| truncated));
        (folded, truncated)
    });
    let mut left = bytes_max;
    let mut is_too_long = false;
    while let Some(frame) = timeout(stall_max, body.frame())
        .await
        .map_err(|_| unavailable("GitHub's response stalled."))?
    {
        let frame = frame.map_err(|error| {
            tracing::debug!(%error, "incomplete response from GitHub");
            bad_body()
        })?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        let Some(rest) = left.checked_sub(chunk.len()) else {
            is_too_long = true;
            break;
        };
        left = rest;
        if sender.send(chunk).await.is_err() {
            // The parser has found an error.
            break;
        }
    }
    drop(sender);
    let (folded, truncated) = parser.await.map_err(|_| bad_body())?;
    match truncated {
        Ok(truncated) => Ok((folded, !truncated)),
        // Cut off by us, within a tree of valid entries.
        Err(error) if is_too_long && error.is_eof() => Ok((folded, false)),
        Err(error) => Err(not_as_documented(&error)),
    }
}

/// The chunks of a response as a blocking reader.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let length = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl<'de, T> DeserializeSeed<'de> for TreeSeed<'_, T> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T> Visitor<'de> for TreeSeed<'_, T> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tree")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<bool, A::Error> {
        let (mut has_entries, mut truncated) = (false, None);
        while let Some(name) = map.next_key::<String>()? {
            match &*name {
                "tree" => {
                    has_entries = true;
                    map.next_value_seed(Entries(&mut self))?;
                }
                "truncated" => truncated = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match truncated {
            Some(truncated) if has_entries => Ok(truncated),
            _ => Err(A::Error::custom("`tree` or `truncated` is missing")),
        }
    }
}

/// The array of entries.
struct Entries<'a, 'b, T>(&'a mut TreeSeed<'b, T>);

impl<'de, T> DeserializeSeed<'de> for Entries<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T> Visitor<'de> for Entries<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element()? {
            (self.0.fold)(self.0.folded, entry);
        }
        Ok(())
    }
}
