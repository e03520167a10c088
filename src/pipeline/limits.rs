//! What each storage bucket accepts. Read when it is first needed, and again when it may have changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::domain::failure::{Class, Code, Failure};
use crate::pipeline::breaker::Breaker;
use crate::services::storage::{BucketLimits, Store};

/// The size limit if neither the settings nor the bucket contain one, in bytes.
pub const VIDEO_BYTES_MAX_DEFAULT: u64 = 52_428_800;

/// The maximum age of limits that refuse a video. Older ones are read again first.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(5);

/// The maximum number of buckets whose limits are remembered.
const BUCKETS_MAX: usize = 100;

/// The limits of the buckets that rows name. A bucket affects only its own videos.
#[derive(Debug)]
pub struct Limits {
    store: Arc<Store>,
    clock: Clock,
    /// `MAX_VIDEO_BYTES`, an upper limit for all buckets.
    setting: Option<u64>,
    known: Mutex<HashMap<String, Known>>,
    /// Held during a read, so that concurrent workers do not all read the same bucket.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    limits: BucketLimits,
    read_at_ms: i64,
}

impl Limits {
    /// Makes no call. `setting`: the limit for all buckets, in bytes.
    pub fn new(store: Arc<Store>, clock: Clock, setting: Option<u64>) -> Self {
        Self {
            store,
            clock,
            setting,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// Checks whether the bucket accepts a video of this size, in bytes.
    ///
    /// Cached limits are sufficient to accept a video, because the storage checks the upload again. They
    /// reject a video only if they were read recently and after the video was requested (`requested_ago`).
    ///
    /// # Errors
    /// `too_large`, `mime_not_allowed`, or the failure of reading the limits. While they are unknown because
    /// of a transient failure, a video within the default limit is accepted.
    pub async fn check(
        &self,
        breaker: &Breaker,
        bucket: &str,
        size: u64,
        requested_ago: Duration,
    ) -> Result<(), Failure> {
        if let Some(max) = self.setting
            && size > max
        {
            return Err(too_large(size, max, "raise MAX_VIDEO_BYTES"));
        }
        let age_max = requested_ago.min(REFUSAL_AGE_MAX);
        if let Some(verdict) = self.remembered(bucket, size, age_max) {
            return verdict;
        }
        let is_usual = size <= VIDEO_BYTES_MAX_DEFAULT;
        let _reading = match self.reading.try_lock() {
            Ok(guard) => guard,
            // The storage may be slow to respond, and most videos do not depend on the limit.
            Err(_) if is_usual => return Ok(()),
            Err(_) => self.reading.lock().await,
        };
        if let Some(verdict) = self.remembered(bucket, size, age_max) {
            return verdict;
        }
        match breaker.call(self.store.limits(bucket)).await {
            Ok(limits) => {
                self.remember(bucket, limits);
                self.accepts(&limits, size)
            }
            Err(failure) if is_usual && failure.code.class() == Class::Transient => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Forgets the limits of a bucket if this failure of a request to it can mean that they have changed.
    pub fn note(&self, bucket: &str, failure: &Failure) {
        if failure.code.class() == Class::Configuration {
            self.lock().remove(bucket);
        }
    }

    /// Forgets the limits of all buckets.
    pub fn forget(&self) {
        self.lock().clear();
    }

    /// The free space below which no download starts, in bytes.
    pub fn usual_bytes(&self) -> u64 {
        let setting = self.setting.unwrap_or(VIDEO_BYTES_MAX_DEFAULT);
        setting.min(VIDEO_BYTES_MAX_DEFAULT)
    }

    /// The verdict of the remembered limits; `None` if there are none, or if they refuse the video and are
    /// too old for that.
    fn remembered(
        &self,
        bucket: &str,
        size: u64,
        age_max: Duration,
    ) -> Option<Result<(), Failure>> {
        let known = *self.lock().get(bucket)?;
        let verdict = self.accepts(&known.limits, size);
        let age_ms = self.clock.now_ms() - known.read_at_ms;
        let is_recent = (0..=age_max.as_millis() as i64).contains(&age_ms);
        (verdict.is_ok() || is_recent).then_some(verdict)
    }

    fn accepts(&self, limits: &BucketLimits, size: u64) -> Result<(), Failure> {
        if !limits.mp4_allowed {
            return Err(Failure::new(
                Code::MimeNotAllowed,
                "The bucket does not allow video/mp4; add it to the bucket's allowed MIME types.",
            ));
        }
        let (max, remedy) = match (limits.max_bytes, self.setting) {
            (Some(max), _) => (max, "raise the bucket's limit"),
            // The setting has been checked.
            (None, Some(_)) => return Ok(()),
            (None, None) => (VIDEO_BYTES_MAX_DEFAULT, "set MAX_VIDEO_BYTES"),
        };
        if size > max {
            return Err(too_large(size, max, remedy));
        }
        Ok(())
    }

    fn remember(&self, bucket: &str, limits: BucketLimits) {
        let mut known = self.lock();
        if known.len() >= BUCKETS_MAX {
            known.clear();
        }
        let read_at_ms = self.clock.now_ms();
        known.insert(bucket.to_owned(), Known { limits, read_at_ms });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_large(size: u64, max: u64, remedy: &str) -> Failure {
    Failure::new(
        Code::TooLarge,
        format!(
            "The video is {size} bytes, but the limit is {max}; {remedy}, or render a smaller video."
        ),
    )
}
