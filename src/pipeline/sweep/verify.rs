//! `verify=true`: compares the ready rows with the objects in the storage.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, stream};

use super::{Sweep, SweepError, SweepOptions};
use crate::db::ReadyObject;
use crate::domain::failure::{Class, Failure};
use crate::domain::ids::VideoKey;
use crate::domain::lfs::{POINTER_BYTES_MAX, Pointer};
use crate::domain::plan::Entry;
use crate::domain::report::ServiceError;
use crate::services::github::Listing;
use crate::services::storage::{ObjectInfo, ObjectPath};

/// The maximum number of concurrent requests to the storage.
const VERIFY_AT_ONCE: usize = 8;

/// The number of consecutive failures after which the comparison is aborted.
const FAILURES_IN_A_ROW_MAX: usize = 8;

/// The maximum number of bytes that one sweep reads to compute hashes. The objects are in random order, so
/// repeated sweeps reach all of them.
const READ_BYTES_MAX: u64 = 1 << 30;

/// The maximum number of LFS pointers that one sweep reads from GitHub.
const POINTERS_MAX: u64 = 200;

const MISSING: &str = "The object is missing from storage";
const OTHER_SIZE: &str = "The stored object has an unexpected size";
const OTHER_HASH: &str = "The stored object has an unexpected hash";
const LOST: &str = "The storage has lost the object's bytes";

/// What an object should be.
struct Expected {
    size: u64,
    hash: Hash,
}

enum Hash {
    Sha256(String),
    Blob(Entry),
}

/// What a sweep may still read.
struct Budget {
    bytes: AtomicU64,
    pointers: AtomicU64,
}

impl Budget {
    fn take(left: &AtomicU64, amount: u64) -> bool {
        let take = |left: u64| left.checked_sub(amount);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}

enum Found {
    Fine,
    Drifted(&'static str),
    /// The storage returned the object's information but not its bytes. They are lost, or there is an outage.
    Unreadable(ObjectPath, u64, Failure),
}

impl Sweep {
    /// The videos whose object is missing or differs, with the reason. Also returns the errors of the
    /// services, one per code.
    pub(super) async fn verify(
        &self,
        listing: &Listing,
        options: &SweepOptions,
    ) -> Result<(HashMap<VideoKey, &'static str>, Vec<ServiceError>), SweepError> {
        let objects = self.db.ready_objects().await?.into_iter();
        let mut objects: Vec<_> = objects.filter(|o| options.includes(o.key)).collect();
        fastrand::shuffle(&mut objects);
        let budget = Budget {
            bytes: READ_BYTES_MAX.into(),
            pointers: POINTERS_MAX.into(),
        };
        let total = objects.len();
        let mut results = stream::iter(objects)
            .map(async |object| {
                let mp4 = listing.files.get(&object.key).and_then(|pair| pair.mp4);
                (object.key, self.examine(&object, mp4, &budget).await)
            })
            .buffer_unordered(VERIFY_AT_ONCE);
        let (mut drifted, mut errors) = (HashMap::new(), Vec::new());
        let mut note = |failure: &Failure| {
            let error = ServiceError {
                service: "storage",
                code: failure.code.as_str(),
            };
            if !errors.contains(&error) {
                errors.push(error);
            }
        };
        let (mut unreadable, mut is_reading) = (Vec::new(), false);
        let mut failures_in_a_row = 0;
        while failures_in_a_row < FAILURES_IN_A_ROW_MAX
            && let Some((key, result)) = results.next().await
        {
            failures_in_a_row += 1;
            match result {
                Ok(Found::Unreadable(path, size, failure)) => {
                    unreadable.push((key, path, size, failure));
                }
                Ok(found) => {
                    failures_in_a_row = 0;
                    is_reading |= matches!(found, Found::Fine);
                    if let Found::Drifted(reason) = found {
                        drifted.insert(key, reason);
                    }
                }
                Err(failure) => note(&failure),
            }
        }
        // In an outage, no object can be read.
        let is_lost = is_reading || total == 1;
        for (key, path, size, failure) in unreadable {
            if is_lost && !matches!(self.store.is_readable(&path, size).await, Ok(true)) {
                drifted.insert(key, LOST);
            } else if !is_lost {
                note(&failure);
            }
        }
        Ok((drifted, errors))
    }

    async fn examine(
        &self,
        object: &ReadyObject,
        mp4: Option<Entry>,
        budget: &Budget,
    ) -> Result<Found, Failure> {
        let Some(path) = ObjectPath::from_stored(&object.bucket, &object.path) else {
            return Ok(Found::Drifted("The storage path is not recognized"));
        };
        let Some(info) = self.store.info(&path).await? else {
            return Ok(Found::Drifted(MISSING));
        };
        let expected = match (object.size, &object.sha256, mp4) {
            (Some(size), Some(sha256), _) => Some(Expected {
                size,
                hash: Hash::Sha256(sha256.clone()),
            }),
            // Uploaded before this server was installed: the branch decides.
            (_, _, Some(mp4)) => self.pushed(mp4, &info, budget).await,
            _ => None,
        };
        let Some(expected) = expected else {
            return self.last_byte(path, info.size).await;
        };
        if info.size != expected.size {
            return Ok(Found::Drifted(OTHER_SIZE));
        }
        let known = match &expected.hash {
            Hash::Sha256(sha256) => info.sha256.as_ref().map(|stored| stored == sha256),
            Hash::Blob(mp4) => info.blob_sha.map(|stored| stored == mp4.sha),
        };
        match known {
            Some(true) => self.last_byte(path, info.size).await,
            Some(false) => Ok(Found::Drifted(OTHER_HASH)),
            None if !Budget::take(&budget.bytes, info.size) => {
                self.last_byte(path, info.size).await
            }
            None => match self.store.digests(&path, info.size).await {
                Ok(Some(read)) => Ok(match expected.hash {
                    Hash::Sha256(sha256) if sha256 == read.sha256 => Found::Fine,
                    Hash::Blob(mp4) if mp4.sha == read.blob_sha => Found::Fine,
                    _ => Found::Drifted(OTHER_HASH),
                }),
                Ok(None) => Ok(Found::Drifted(OTHER_SIZE)),
                Err(failure) => unreadable(path, info.size, failure),
            },
        }
    }

    /// What the branch says about an object; `None` if that is not known, because the file is an LFS pointer
    /// that was not read.
    async fn pushed(&self, mp4: Entry, info: &ObjectInfo, budget: &Budget) -> Option<Expected> {
        if mp4.size == info.size || mp4.size > POINTER_BYTES_MAX as u64 {
            return Some(Expected {
                size: mp4.size,
                hash: Hash::Blob(mp4),
            });
        }
        if !Budget::take(&budget.pointers, 1) {
            return None;
        }
        let bytes = self.github.small_blob(mp4.sha, mp4.size).await.ok()?;
        Some(match Pointer::parse(&bytes) {
            Some(pointer) => Expected {
                size: pointer.size,
                hash: Hash::Sha256(pointer.oid.to_string()),
            },
            None => Expected {
                size: mp4.size,
                hash: Hash::Blob(mp4),
            },
        })
    }

    async fn last_byte(&self, path: ObjectPath, size: u64) -> Result<Found, Failure> {
        match self.store.is_readable(&path, size).await {
            Ok(true) => Ok(Found::Fine),
            Ok(false) => Ok(Found::Drifted(LOST)),
            Err(failure) => unreadable(path, size, failure),
        }
    }
}

fn unreadable(path: ObjectPath, size: u64, failure: Failure) -> Result<Found, Failure> {
    if failure.code.class() == Class::Transient {
        Ok(Found::Unreadable(path, size, failure))
    } else {
        Err(failure)
    }
}
