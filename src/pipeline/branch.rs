//! The branch as all attempts, sweeps and scans see it: a listing whose head is not older than one that was
//! accepted or pushed before.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::db::{Db, DbError};
use crate::domain::failure::{Code, Failure};
use crate::domain::head::{AWAITED_FOR, Heads};
use crate::domain::ids::GitSha;
use crate::services::github::{Github, Listing};

/// The maximum age of a listing that is shared by several videos.
const LISTING_AGE_MAX: Duration = Duration::from_secs(5);

/// The interval at which the head is requested again while GitHub's API serves an older one. All waiting
/// videos share the response, so GitHub is called once per interval.
const LAG_WAIT: Duration = Duration::from_secs(2);

/// The maximum number of times that a head is compared if other replicas accept heads at the same time.
const ACCEPT_TRIES_MAX: usize = 3;

/// The longest time between two reads of one [`Lag`].
const LAG_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Listings of the branch. Share it behind an `Arc`.
pub struct Branch {
    db: Db,
    github: Arc<Github>,
    clock: Clock,
    seen: Mutex<Seen>,
    /// GitHub is not asked again before this, in milliseconds since the Unix epoch.
    asked_again_at_ms: AtomicI64,
}

#[derive(Default)]
struct Seen {
    /// The last accepted listing.
    accepted: Option<Arc<Listing>>,
    /// The period without an accepted listing.
    lag: Option<Lag>,
    /// When a listing was last found to be too old. The next one must be newer.
    rejected_at: Option<Instant>,
}

/// A period in which GitHub's API served only older heads, in milliseconds since the Unix epoch.
#[derive(Clone, Copy)]
struct Lag {
    since_ms: i64,
    /// When an older head was last served.
    seen_ms: i64,
}

impl Lag {
    /// Whether a read at this time belongs to the period. After a longer pause, or if the clock was set back,
    /// it does not.
    fn continues_at(self, now_ms: i64) -> bool {
        (0..=LAG_PAUSE_MAX.as_millis() as i64).contains(&(now_ms - self.seen_ms))
    }
}

impl Branch {
    /// Creates a view of the branch that `github` reads.
    pub fn new(db: Db, github: Arc<Github>, clock: Clock) -> Self {
        Self {
            db,
            github,
            clock,
            seen: Mutex::default(),
            asked_again_at_ms: AtomicI64::new(0),
        }
    }

    /// The time until GitHub is called again, because its API served an older head than the branch has. An
    /// attempt before then would fail.
    pub fn lag(&self) -> Option<Duration> {
        let left_ms = self.asked_again_at_ms.load(Ordering::Relaxed) - self.clock.now_ms();
        let left = Duration::from_millis(u64::try_from(left_ms).ok()?);
        // A longer time means that the clock was set back.
        (left > Duration::ZERO && left <= LAG_WAIT).then_some(left)
    }

    /// A listing that began at or after `not_before`, which is the time of the request that it serves.
    ///
    /// # Errors
    /// GitHub is unavailable, limits the rate or denies access; or its API serves an older head than the
    /// branch has, see [`crate::domain::head`]. The database is unavailable.
    pub async fn listing(&self, not_before: Instant) -> Result<Arc<Listing>, ListingError> {
        let mut seen = self.seen.lock().await;
        if let Some(lag) = self.lag() {
            return Err(not_served(lag).into());
        }
        let oldest = Instant::now().checked_sub(LISTING_AGE_MAX);
        let bounds = [oldest, seen.rejected_at].into_iter().flatten();
        let listing = self
            .github
            .listing(bounds.fold(not_before, Instant::max))
            .await?;
        let now_ms = self.clock.now_ms();
        let lag = seen.lag.filter(|lag| lag.continues_at(now_ms));
        let since_ms = lag.map_or(now_ms, |lag| lag.since_ms);
        let is_late = now_ms - since_ms >= AWAITED_FOR.as_millis() as i64;
        if self.is_current(&listing, is_late).await? {
            seen.accepted = Some(Arc::clone(&listing));
            seen.lag = None;
            if is_late {
                // The branch may contain a commit that is not awaited any longer.
                self.db.request_scan(AWAITED_FOR).await?;
            }
            return Ok(listing);
        }
        seen.lag = Some(Lag {
            since_ms,
            seen_ms: now_ms,
        });
        seen.rejected_at = Some(Instant::now());
        let again_at_ms = self.clock.now_ms() + LAG_WAIT.as_millis() as i64;
        self.asked_again_at_ms.store(again_at_ms, Ordering::Relaxed);
        Err(not_served(LAG_WAIT).into())
    }

    /// [`Self::listing`] as of now; while GitHub's API serves an older head, the last accepted listing of
    /// this process instead. For sweeps, whose requests lead to listings of their own.
    ///
    /// Also returns whether the listing is current. If not, the branch may contain more.
    ///
    /// # Errors
    /// As for [`Self::listing`].
    pub async fn latest(&self) -> Result<(Arc<Listing>, bool), ListingError> {
        let failure = match self.listing(Instant::now()).await {
            Ok(listing) => return Ok((listing, true)),
            Err(failure) => failure,
        };
        let accepted = self.seen.lock().await.accepted.clone();
        let accepted = accepted.filter(|_| self.lag().is_some());
        accepted.map(|listing| (listing, false)).ok_or(failure)
    }

    /// Whether the head of a listing is the branch's. If it is, it is recorded, so that no older one is
    /// accepted after it.
    async fn is_current(&self, listing: &Listing, is_late: bool) -> Result<bool, DbError> {
        let served = listing.head;
        for _ in 0..ACCEPT_TRIES_MAX {
            let heads = self.db.heads(served).await?;
            // An empty repository has no commit to compare.
            if served.is_zero() && heads.accepted.is_none() {
                return Ok(heads.awaited.is_empty());
            }
            if heads.is_replaced && !is_late {
                return self.is_not_current(served, &heads).await;
            }
            // If the head is not newer than one of the commits, the others need no call.
            for commit in heads.to_compare(served) {
                let relation = self.github.relation(commit, served).await;
                if !heads.is_newer(relation, is_late) {
                    return self.is_not_current(served, &heads).await;
                }
            }
            // Otherwise, another replica has accepted a head since, usually the same one.
            if heads.is_known(served) || self.db.accept_head(served, &heads).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Records that the served head is not the branch's.
    async fn is_not_current(&self, served: GitSha, heads: &Heads) -> Result<bool, DbError> {
        if heads.accepted != Some(served) {
            self.db.doubt_head(served).await?;
        }
        Ok(false)
    }
}

/// Why there is no listing.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The database is unavailable.
    #[error(transparent)]
    Db(#[from] DbError),
    /// GitHub is unavailable, limits the rate, denies access or serves an older head.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<ListingError> for Failure {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::Db(error) => error.into(),
            ListingError::Failure(failure) => failure,
        }
    }
}

/// The failure while GitHub's API serves an older head than the branch has. It does not count as an attempt.
fn not_served(wait: Duration) -> Failure {
    let message = "GitHub's API does not return the pushed commit yet; the video will be retried automatically.";
    Failure::new(Code::GithubUnavailable, message).after(wait)
}
