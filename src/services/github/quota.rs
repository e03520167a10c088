//! GitHub's rate limit as a budget: calls are counted by purpose, and sweeps leave a part of it to pushes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Github;
use crate::domain::failure::Failure;
use crate::domain::request::Purpose;

/// Sweeps and scans start no downloads or look-ups while less than this part of the rate limit is left: 1/5.
const RESERVE_DIVISOR: u64 = 5;

/// The longest window of GitHub's rate limit. A later reset is ignored, because our clock may be wrong.
const WINDOW: Duration = Duration::from_secs(3600);

tokio::task_local! {
    /// The purpose of the calls that the current task makes.
    static PURPOSE: Purpose;
}

/// Runs a future whose calls to GitHub have this purpose.
pub async fn for_purpose<F: Future>(purpose: Purpose, future: F) -> F::Output {
    PURPOSE.scope(purpose, future).await
}

fn purpose() -> Purpose {
    PURPOSE
        .try_with(|purpose| *purpose)
        .unwrap_or(Purpose::Other)
}

/// The calls that counted towards the rate limit, by purpose, in the order of [`Purpose::ALL`].
#[derive(Default)]
pub(super) struct Calls([AtomicU64; Purpose::ALL.len()]);

impl Calls {
    pub(super) fn count(&self) {
        let at = Purpose::ALL.iter().position(|p| *p == purpose());
        self.0[at.unwrap_or_default()].fetch_add(1, Ordering::Relaxed);
    }
}

impl Github {
    /// How many calls were made that count towards the rate limit, by purpose.
    pub fn calls(&self) -> impl Iterator<Item = (Purpose, u64)> {
        let counts = self
            .calls
            .0
            .iter()
            .map(|calls| calls.load(Ordering::Relaxed));
        Purpose::ALL.iter().copied().zip(counts)
    }

    /// Fails without a call if the purpose is a sweep or scan and the rest of the rate limit is reserved for
    /// pushes. The listing of the branch is exempt: it is shared, and costs nothing if nothing has changed.
    pub(super) fn keep_reserve(&self) -> Result<(), Failure> {
        if !matches!(purpose(), Purpose::Sweep | Purpose::Scan) {
            return Ok(());
        }
        let Some(rate) = self.rate_limit() else {
            return Ok(());
        };
        let now_s = u64::try_from(self.clock.now_ms() / 1000).unwrap_or(0);
        let left = Duration::from_secs(rate.reset.saturating_sub(now_s));
        if rate.remaining >= rate.limit / RESERVE_DIVISOR || left.is_zero() || left > WINDOW {
            return Ok(());
        }
        Err(self.rate_limited(left))
    }
}
