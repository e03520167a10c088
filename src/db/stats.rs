//! Numbers about everything: bounded reads and an hourly rollup, however many videos there are.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;

use super::{Claim, Db, DbError, Unit};
use crate::domain::failure::Failure;
use crate::domain::plan::End;
use crate::domain::report::SweepCounts;
use crate::domain::state::VideoState;

/// Entries of the counts that are left as they are: five states, and some changes.
const COUNT_ENTRIES_MAX: i64 = 100;

/// Entries of the counts that one statement folds.
const FOLDED_ENTRIES_MAX: i64 = 100_000;

/// Buckets per doubling of a duration: what is read back is within a tenth of what was counted.
const BUCKETS_PER_DOUBLING: f64 = 4.0;

/// The name of the mark that the last sweep leaves.
const LAST_SWEEP: &str = "last_sweep";

const HOUR_MS: i64 = 3_600_000;

/// Hours in the picture of a day.
const DAY_HOURS: i64 = 24;

/// How things stand now.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// How many videos are in each state; nothing for `generating`, of which we have no records.
    pub counts: HashMap<VideoState, i64>,
    /// How long ago the oldest queued or running video was asked for.
    pub oldest: Option<Duration>,
    /// When the last push was accepted, in milliseconds since the Unix epoch.
    pub last_push_ms: Option<i64>,
    /// When the last sweep ended, in milliseconds since the Unix epoch, and what it counted.
    pub last_sweep: Option<(i64, SweepCounts)>,
}

/// One hour of the picture.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hour {
    /// Its beginning, in milliseconds since the Unix epoch.
    pub start_ms: i64,
    /// Videos that became ready.
    pub ready: i64,
    /// Verdicts that were given.
    pub failed: i64,
}

/// The last day, oldest hour first; its last hour is the running one.
#[derive(Clone, Debug, Default)]
pub struct Day {
    /// 24 of them.
    pub hours: Vec<Hour>,
    /// From the push to ready: half were faster.
    pub median: Option<Duration>,
    /// From the push to ready: 95 % were faster.
    pub p95: Option<Duration>,
}

impl Overview {
    /// How many videos are in this state.
    pub fn count(&self, state: VideoState) -> i64 {
        self.counts.get(&state).copied().unwrap_or(0)
    }
}

impl Db {
    /// Counts by state, and when something last came in.
    pub async fn overview(&self) -> Result<Overview, DbError> {
        let mut overview = Overview::default();
        let mut unit = self.unit(&self.read).await?;
        let counted = self
            .query(
                "select state, cast(sum(n) as bigint) as n, count(*) as entries
                from video_ingest.counts group by state",
            )
            .fetch_all(unit.connection())
            .await?;
        let mut entries = 0;
        for row in &counted {
            let n = row.get("n");
            entries += row.get::<i64, _>("entries");
            overview.counts.insert(super::state(row), n);
        }
        let oldest = |state: VideoState| {
            format!(
                "select * from (select {{now}} - requested_at as age from video_ingest.videos
                where state = '{state}' order by requested_at limit 1) as {state}"
            )
        };
        overview.oldest = self
            .query(&format!(
                "{} union all {} order by age desc limit 1",
                oldest(VideoState::Queued),
                oldest(VideoState::Running)
            ))
            .fetch_optional(unit.connection())
            .await?
            .map(|row| Duration::from_millis(row.get::<i64, _>("age").max(0) as u64));
        overview.last_push_ms = self
            .query("select received_at from video_ingest.deliveries order by received_at desc, guid desc limit 1")
            .fetch_optional(unit.connection())
            .await?
            .map(|row| row.get("received_at"));
        overview.last_sweep = self
            .query("select value, at from video_ingest.marks where name = $1")
            .bind(LAST_SWEEP)
            .fetch_optional(unit.connection())
            .await?
            .map(|row| {
                let value: String = row.get("value");
                (
                    row.get("at"),
                    serde_json::from_str(&value).unwrap_or_default(),
                )
            });
        unit.commit().await?;
        if entries > COUNT_ENTRIES_MAX {
            self.fold_counts().await?;
        }
        Ok(overview)
    }

    /// Puts what many changes added to the counts into one entry per state. Replicas may do so at the
    /// same time: each takes entries that no other has taken.
    async fn fold_counts(&self) -> Result<(), DbError> {
        let statement = "with taken as (
                delete from video_ingest.counts where ctid in (
                    select ctid from video_ingest.counts limit $1 {skip_locked})
                returning state, n)
            insert into video_ingest.counts select state, sum(n) from taken group by state";
        let mut unit = self.unit(&self.write).await?;
        self.query(statement)
            .bind(FOLDED_ENTRIES_MAX)
            .execute(unit.connection())
            .await?;
        Ok(unit.commit().await?)
    }

    /// Keeps what a sweep counted.
    pub async fn note_sweep(&self, counts: SweepCounts) -> Result<(), DbError> {
        self.set_mark(LAST_SWEEP, &json!(counts).to_string()).await
    }

    /// The last day, out of the rollup.
    pub async fn day(&self) -> Result<Day, DbError> {
        let now = self.clock.now_ms();
        let first = now - now.rem_euclid(HOUR_MS) - (DAY_HOURS - 1) * HOUR_MS;
        let mut unit = self.unit(&self.read).await?;
        let rows = self
            .query("select hour, what, bucket, n from video_ingest.hours where hour >= $1 order by bucket")
            .bind(first)
            .fetch_all(unit.connection())
            .await?;
        unit.commit().await?;
        let mut hours: Vec<Hour> = (0..DAY_HOURS)
            .map(|n| Hour {
                start_ms: first + n * HOUR_MS,
                ..Hour::default()
            })
            .collect();
        let mut took: Vec<(i64, i64)> = Vec::new();
        for row in &rows {
            let n: i64 = row.get("n");
            let place = (row.get::<i64, _>("hour") - first) / HOUR_MS;
            let hour = usize::try_from(place).ok().and_then(|i| hours.get_mut(i));
            match (row.get::<String, _>("what").as_str(), hour) {
                ("ready", Some(hour)) => hour.ready += n,
                ("failed", Some(hour)) => hour.failed += n,
                ("took", _) => took.push((row.get("bucket"), n)),
                _ => {}
            }
        }
        Ok(Day {
            hours,
            median: quantile(&took, 0.5),
            p95: quantile(&took, 0.95),
        })
    }

    /// Counts an end in the rollup. The last statements of their transaction: their rows are shared.
    pub(super) async fn count_end(
        &self,
        tx: &mut Unit,
        claim: &Claim,
        end: &End,
    ) -> Result<(), sqlx::Error> {
        match end {
            End::Ready { .. } => {
                // In one order in every transaction, so that two of them never wait for each other.
                let took = ("took", bucket(claim.asked_at.elapsed()));
                self.count(tx, &[("ready", 0), took]).await
            }
            End::Failed { failure, .. } if is_news(claim, failure) => self.count_failed(tx).await,
            _ => Ok(()),
        }
    }

    /// Counts a failure that no worker ended in, as [`Db::count_end`] does.
    pub(super) async fn count_failed(&self, tx: &mut Unit) -> Result<(), sqlx::Error> {
        self.count(tx, &[("failed", 0)]).await
    }

    async fn count(
        &self,
        tx: &mut Unit,
        counted: &[(&'static str, i64)],
    ) -> Result<(), sqlx::Error> {
        for (what, bucket) in counted {
            let statement = "insert into video_ingest.hours as hours (hour, what, bucket, n)
                values ({now} - {now} % 3600000, $1, $2, 1)
                on conflict (hour, what, bucket) do update set n = hours.n + 1";
            self.query(statement)
                .bind(*what)
                .bind(*bucket)
                .execute(tx.connection())
                .await?;
        }
        Ok(())
    }
}

/// A setting that is still wrong an hour later is no second failure.
fn is_news(claim: &Claim, failure: &Failure) -> bool {
    claim.history.code != Some(failure.code)
}

fn bucket(took: Duration) -> i64 {
    let ms = (took.as_millis() as f64).max(1.0);
    (ms.log2() * BUCKETS_PER_DOUBLING).round() as i64
}

/// `buckets`: (bucket, how many), the fastest first.
fn quantile(buckets: &[(i64, i64)], q: f64) -> Option<Duration> {
    let total: i64 = buckets.iter().map(|(_, n)| n).sum();
    let rank = (total as f64 * q).ceil() as i64;
    let mut seen = 0;
    let (bucket, _) = buckets.iter().find(|(_, n)| {
        seen += n;
        seen >= rank.max(1)
    })?;
    Some(Duration::from_secs_f64(
        (*bucket as f64 / BUCKETS_PER_DOUBLING).exp2() / 1000.0,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_tenth() {
        for ms in [1_u64, 40, 950, 3_000, 86_400_000] {
            let all = [(bucket(Duration::from_millis(ms)), 7)];
            let read = quantile(&all, 0.5).unwrap().as_secs_f64() * 1000.0;
            assert!((read / ms as f64 - 1.0).abs() < 0.1, "{ms} read as {read}");
        }
    }

    #[test]
    fn half_are_faster_than_the_median() {
        let second = bucket(Duration::from_secs(1));
        let minute = bucket(Duration::from_secs(60));
        let took = [(second, 94), (minute, 6)];
        assert!(quantile(&took, 0.5).unwrap() < Duration::from_secs(2));
        assert!(quantile(&took, 0.95).unwrap() > Duration::from_secs(50));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
