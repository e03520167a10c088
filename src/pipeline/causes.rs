//! What failures depend on apart from the pushed files, such as the GitHub token or the bucket's limits, as
//! text that is compared to detect changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::domain::failure::{Class, Code};
use crate::domain::verdict::{Blocked, Circumstances};
use crate::services::storage::Store;

/// The most buckets that one sweep reads because of failed videos.
const BUCKETS_MAX: usize = 20;

/// Reads the causes of failures.
pub struct Causes {
    store: Arc<Store>,
    /// The first 8 digits of the token's SHA-256.
    github: String,
    /// `MAX_VIDEO_BYTES`.
    video_bytes_max: Option<u64>,
}

impl Causes {
    /// Makes no call. `token`: for GitHub. `video_bytes_max`: the limit of the settings, in bytes.
    pub fn new(
        store: Arc<Store>,
        token: Option<&SecretString>,
        video_bytes_max: Option<u64>,
    ) -> Self {
        let token = token.map_or("", |token| token.expose_secret());
        let mut github = hex::encode(Sha256::digest(token));
        github.truncate(8);
        Self {
            store,
            github,
            video_bytes_max,
        }
    }

    /// What a failure with this code depends on, in the form of [`Circumstances`]. `bucket`: of the row.
    /// `listed`: whether the attempt could list the branch. `last`: the code of the attempt before.
    pub async fn of(
        &self,
        code: Code,
        bucket: Option<&str>,
        listed: bool,
        last: Option<Code>,
    ) -> Option<String> {
        match code {
            Code::GaveUp => Some(last.unwrap_or(code).as_str().to_owned()),
            Code::RowDenied => Some(String::new()),
            code if code.is_of_storage() => {
                let known = match bucket {
                    Some(bucket) => self.of_bucket(bucket).await,
                    None => None,
                };
                Some(known.unwrap_or_default())
            }
            // GitHub denied the listing. A sweep that can list the branch shows that access is restored.
            Code::GithubDenied if !listed => Some(String::new()),
            code if code.class() == Class::Configuration => Some(self.github.clone()),
            _ => None,
        }
    }

    /// What the failures of these videos depend on now. Makes one call per bucket.
    pub async fn now(&self, blocked: &[Blocked]) -> Circumstances {
        let names: BTreeSet<&str> = blocked
            .iter()
            .filter_map(Blocked::depends_on_bucket)
            .collect();
        let mut buckets = HashMap::new();
        for name in names.into_iter().take(BUCKETS_MAX) {
            if let Some(bucket) = self.of_bucket(name).await {
                buckets.insert(name.to_owned(), bucket);
            }
        }
        Circumstances {
            github: self.github.clone(),
            buckets,
        }
    }

    /// What a bucket accepts, or why it cannot be used; `None` if the storage does not respond.
    async fn of_bucket(&self, name: &str) -> Option<String> {
        match self.store.limits(name).await {
            Ok(limits) => {
                let (bucket, setting) = (limits.max_bytes, self.video_bytes_max);
                let bytes =
                    [bucket, setting].map(|max| max.map_or("-".into(), |max| max.to_string()));
                let mp4 = if limits.mp4_allowed { "mp4" } else { "-" };
                Some(format!("{name} {} {mp4}", bytes.join(" ")))
            }
            Err(failure) if failure.code.class() == Class::Configuration => {
                Some(format!("{name} {}", failure.code))
            }
            Err(_) => None,
        }
    }
}
