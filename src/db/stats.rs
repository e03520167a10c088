//! The tables `counts`, `failures` and `hours`: statistics whose cost does not depend on the number of videos.
//!
//! `counts` holds the number of videos per state and is maintained by triggers. On Postgres, the triggers
//! only insert, so that concurrent transactions do not wait for each other. The server compacts the entries
//! regularly. `hours` holds counts per hour, and histograms of durations.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use tokio::time::timeout;

use super::{Claim, Db, DbError, Dialect, Unit, duration};
use crate::domain::failure::{Class, Code, Failure};
use crate::domain::ids::VideoKey;
use crate::domain::plan::{End, Published, Waited};
use crate::domain::report::SweepCounts;
use crate::domain::state::VideoState;

/// The number of entries in `counts` above which they are compacted.
const COUNT_ENTRIES_MAX: i64 = 100;

/// The number of entries that one statement compacts.
const COMPACTED_ENTRIES_MAX: i64 = 100_000;

/// Histogram buckets per doubling of the duration. Quantiles have an error of at most 10 %.
const BUCKETS_PER_DOUBLING: f64 = 4.0;

/// The mark that holds the counts of the last sweep.
const LAST_SWEEP: &str = "last_sweep";

/// The mark that holds a [`FailedSweep`], or nothing.
const FAILED_SWEEP: &str = "failed_sweep";

/// The mark that holds the number of videos that a sweep found and no delivery had named.
const UNANNOUNCED: &str = "unannounced";

/// How long an overview waits for the app's table.
const GENERATING_TIMEOUT: Duration = Duration::from_secs(1);

/// The highest number of videos that are counted one by one: those that are generated, and those whose next
/// attempt is later. The cost of an overview must not depend on the number of videos.
pub const COUNTED_MAX: i64 = 1_000;

const HOUR_MS: i64 = 3_600_000;

/// The number of hours in a [`Day`].
const DAY_HOURS: i64 = 24;

/// The current state of all videos.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// The number of videos per state. Of those that are generated, at most [`COUNTED_MAX`] are counted.
    pub counts: HashMap<VideoState, i64>,
    /// The number of videos whose agent needs a person.
    pub blocked: i64,
    /// The time since the oldest queued or running video was requested.
    pub oldest: Option<Duration>,
    /// When the longest overdue video was due, in milliseconds since the Unix epoch.
    pub oldest_due_ms: Option<i64>,
    /// The queued videos whose next attempt is later, by the code of their failure.
    pub retried: Vec<Retried>,
    /// The failed videos by the code of their failure.
    pub failures: Vec<Failures>,
    /// The time of the last accepted push, in milliseconds since the Unix epoch.
    pub last_push_ms: Option<i64>,
    /// The end of the last sweep, in milliseconds since the Unix epoch, and its counts.
    pub last_sweep: Option<(i64, SweepCounts)>,
    /// The sweep that failed after [`Self::last_sweep`].
    pub failed_sweep: Option<FailedSweep>,
    /// The end of the last sweep that found videos which no delivery had named, in milliseconds since the
    /// Unix epoch, and their number.
    pub unannounced: Option<(i64, i64)>,
}

/// Queued videos that failed with the same code and are tried again later.
#[derive(Clone, Debug)]
pub struct Retried {
    /// The code of the failure.
    pub code: Code,
    /// The number of videos.
    pub count: i64,
    /// When the first of them failed, in milliseconds since the Unix epoch.
    pub since_ms: i64,
}

/// The failed videos with the same code.
#[derive(Clone, Debug)]
pub struct Failures {
    /// The code of the failure.
    pub code: Code,
    /// The number of videos.
    pub count: i64,
    /// When the first of them failed, in milliseconds since the Unix epoch.
    pub oldest_ms: i64,
    /// The last one that failed.
    pub newest: VideoKey,
    /// Its message.
    pub message: String,
}

/// A series of failed sweeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailedSweep {
    /// When the first one failed, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// When the last one failed, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub at_ms: i64,
    /// Why the last one failed, as a sentence for people.
    pub message: String,
}

/// The counts of one hour.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hour {
    /// The beginning of the hour, in milliseconds since the Unix epoch.
    pub start_ms: i64,
    /// The number of videos that became ready.
    pub ready: i64,
    /// The number of videos that failed.
    pub failed: i64,
}

/// The last 24 hours, including the current one.
#[derive(Clone, Debug, Default)]
pub struct Day {
    /// The hours, oldest first.
    pub hours: Vec<Hour>,
    /// The median time from the request to the ready row.
    pub median: Option<Duration>,
    /// The 95th percentile of the time from the request to the ready row.
    pub p95: Option<Duration>,
}

impl Overview {
    /// The number of videos in this state.
    pub fn count(&self, state: VideoState) -> i64 {
        self.counts.get(&state).copied().unwrap_or(0)
    }
}

impl Db {
    /// The counts per state and the times of the last events.
    pub async fn overview(&self) -> Result<Overview, DbError> {
        let mut overview = Overview::default();
        let mut unit = self.unit(&self.read).await?;
        let counted = self
            .query(
                "select state, cast(sum(n) as bigint) as n
                from video_ingest.counts group by state",
            )
            .fetch_all(unit.connection())
            .await?;
        for row in &counted {
            overview.counts.insert(super::state(row), row.get("n"));
        }
        // One subquery per state, because the index begins with the state.
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
            .map(|row| duration(&row, "age"));
        overview.last_push_ms = self
            .query("select received_at from video_ingest.deliveries order by received_at desc, guid desc limit 1")
            .fetch_optional(unit.connection())
            .await?
            .map(|row| row.get("received_at"));
        let marks = self
            .query("select name, value, at from video_ingest.marks where name in ($1, $2, $3)")
            .bind(LAST_SWEEP)
            .bind(FAILED_SWEEP)
            .bind(UNANNOUNCED)
            .fetch_all(unit.connection())
            .await?;
        for row in &marks {
            let (at, value): (i64, String) = (row.get("at"), row.get("value"));
            match row.get::<String, _>("name").as_str() {
                LAST_SWEEP => {
                    overview.last_sweep =
                        Some((at, serde_json::from_str(&value).unwrap_or_default()));
                }
                FAILED_SWEEP => overview.failed_sweep = serde_json::from_str(&value).ok(),
                _ => overview.unannounced = value.parse().ok().map(|count| (at, count)),
            }
        }
        self.read_problems(&mut unit, &mut overview).await?;
        unit.commit().await?;
        self.count_generating(&mut overview).await;
        Ok(overview)
    }

    /// Counts the videos that are being generated, unless the app's table cannot be read or is locked: the rest of
    /// an overview does not depend on the app.
    async fn count_generating(&self, overview: &mut Overview) {
        let generating =
            "select count(*) as n, cast(coalesce(sum(blocked), 0) as bigint) as blocked from (
                select case when s.status = 'blocked' then 1 else 0 end as blocked
                from lesson_assets as a left join video_ingest.statuses as s
                    on s.video_id = a.id{text} and s.conversation_id = a.conversation_id
                where a.kind = 'video' and a.storage_path is null and a.mime_type not like 'error:%'
                    and not exists (select 1 from video_ingest.videos as v
                        where v.video_id = a.id{text} and v.lesson_id = a.lesson_id{text})
                limit $1) as generating";
        let query = self.query(generating).bind(COUNTED_MAX);
        let counted = timeout(GENERATING_TIMEOUT, self.fetch_optional(query)).await;
        if let Ok(Ok(Some(row))) = counted {
            overview.counts.insert(VideoState::Generating, row.get("n"));
            overview.blocked = row.get("blocked");
        }
    }

    /// Reads what of an overview may require an operator.
    async fn read_problems(
        &self,
        unit: &mut Unit,
        overview: &mut Overview,
    ) -> Result<(), sqlx::Error> {
        let due =
            "select due_at from video_ingest.videos where due_at <= {now} order by due_at limit 1";
        let due = self.query(due).fetch_optional(unit.connection()).await?;
        overview.oldest_due_ms = due.map(|row| row.get("due_at"));
        let retried =
            "select code, count(*) as n, min(coalesce(failing_since, updated_at)) as since
            from (select code, failing_since, updated_at from video_ingest.videos
                where state = 'queued' and due_at > {now} and code is not null limit $1) as retried
            group by code order by n desc";
        let retried = self
            .query(retried)
            .bind(COUNTED_MAX)
            .fetch_all(unit.connection())
            .await?;
        overview.retried = retried
            .iter()
            .filter_map(|row| {
                Some(Retried {
                    code: Code::parse(row.get("code"))?,
                    count: row.get("n"),
                    since_ms: row.get("since"),
                })
            })
            .collect();
        let newest = |column: &str| {
            format!(
                "(select {column} from video_ingest.videos as v where v.state = 'failed' and v.code = g.code
                order by v.updated_at desc, v.video_id desc, v.lesson_id desc limit 1) as {column}"
            )
        };
        let failures = format!(
            // A server of an older version does not write `failed_at`.
            "select g.code, g.n, coalesce((select min(v.failed_at) from video_ingest.videos as v
                where v.state = 'failed' and v.code = g.code), {{now}}) as oldest, {}, {}, {}
            from (select code, cast(sum(n) as bigint) as n from video_ingest.failures
                group by code having sum(n) > 0) as g",
            newest("video_id"),
            newest("lesson_id"),
            newest("message")
        );
        let failures = self.query(&failures).fetch_all(unit.connection()).await?;
        overview.failures = failures.iter().filter_map(failures_of).collect();
        overview.failures.sort_by_key(|group| {
            let class = match group.code.class() {
                // One cause, usually of many failures.
                Class::Configuration => 0,
                Class::Transient => 1,
                Class::Expired => 2,
                Class::Invalid => 3,
            };
            (class, std::cmp::Reverse(group.count), group.code.as_str())
        });
        Ok(())
    }

    /// Replaces the entries of `counts` and `failures` with one entry per state and code if there are more
    /// than 100. Replicas may do this concurrently: each locks other entries. Does nothing on SQLite, whose
    /// triggers update the counts in place.
    pub async fn compact_counts(&self) -> Result<(), DbError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(());
        }
        for (table, column) in [("counts", "state"), ("failures", "code")] {
            let statement = format!(
                "select count(*) as entries from (select 1 from video_ingest.{table} limit $1) as entries"
            );
            let query = self.query(&statement).bind(COUNT_ENTRIES_MAX + 1);
            let entries: i64 = self.fetch_all(query).await?[0].get("entries");
            if entries <= COUNT_ENTRIES_MAX {
                continue;
            }
            let statement = format!(
                "with taken as (
                    delete from video_ingest.{table} where ctid in (
                        select ctid from video_ingest.{table} limit $1 {{skip_locked}})
                    returning {column}, n)
                insert into video_ingest.{table} select {column}, sum(n) from taken group by {column}"
            );
            self.execute(self.query(&statement).bind(COMPACTED_ENTRIES_MAX))
                .await?;
        }
        Ok(())
    }

    /// Stores the counts of a sweep. `unannounced`: the number of videos that it found and no delivery had
    /// named.
    pub async fn note_sweep(&self, counts: SweepCounts, unannounced: usize) -> Result<(), DbError> {
        if unannounced > 0 {
            self.set_mark(UNANNOUNCED, &unannounced.to_string()).await?;
        }
        self.set_mark(LAST_SWEEP, &json!(counts).to_string())
            .await?;
        if self.mark(FAILED_SWEEP).await?.is_some() {
            self.remove_mark(FAILED_SWEEP).await?;
        }
        Ok(())
    }

    /// Stores why a sweep failed.
    pub async fn note_failed_sweep(&self, message: &str) -> Result<(), DbError> {
        let known = self.mark(FAILED_SWEEP).await?;
        let known: Option<FailedSweep> = known.and_then(|value| serde_json::from_str(&value).ok());
        let failed = FailedSweep {
            since_ms: known.map_or_else(|| self.clock.now_ms(), |known| known.since_ms),
            at_ms: self.clock.now_ms(),
            message: message.to_owned(),
        };
        self.set_mark(FAILED_SWEEP, &json!(failed).to_string())
            .await
    }

    /// The counts of the last 24 hours.
    pub async fn day(&self) -> Result<Day, DbError> {
        let now = self.clock.now_ms();
        let first = now - now.rem_euclid(HOUR_MS) - (DAY_HOURS - 1) * HOUR_MS;
        let statement =
            "select hour, what, bucket, n from video_ingest.hours where hour >= $1 order by bucket";
        let rows = self.fetch_all(self.query(statement).bind(first)).await?;
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

    /// Counts the end of an attempt. Must be the last statements of the transaction, because all
    /// transactions of an hour update the same rows.
    pub(super) async fn count_end(
        &self,
        tx: &mut Unit,
        claim: &Claim,
        end: &End,
    ) -> Result<(), sqlx::Error> {
        match end {
            // A video that is stored again without a change is not counted again.
            End::Ready { published, .. } if is_new(claim, published) => {
                // All transactions lock these rows in the same order, which prevents deadlocks.
                let took = ("took", bucket(claim.requested_at.elapsed()));
                self.count(tx, &[("ready", 0), took]).await
            }
            End::Failed { failure, .. } if is_new_failure(claim, failure) => {
                self.count_failed(tx).await
            }
            _ => Ok(()),
        }
    }

    /// Counts a failed video. The same rule as for [`Db::count_end`] applies.
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

/// Whether other content than before was published, or the video was not ready.
fn is_new(claim: &Claim, published: &Published) -> bool {
    let stored = claim.history.stored.as_ref();
    claim.history.code.is_some() || stored.is_none_or(|old| old.blob_sha != published.blob_sha)
}

/// `None` if the last of these videos has just been requested again.
fn failures_of(row: &AnyRow) -> Option<Failures> {
    let id = |column| row.get::<Option<String>, _>(column)?.parse().ok();
    Some(Failures {
        code: Code::parse(row.get("code"))?,
        count: row.get("n"),
        oldest_ms: row.get::<Option<i64>, _>("oldest")?,
        newest: VideoKey {
            lesson_id: id("lesson_id")?,
            video_id: id("video_id")?,
        },
        message: row.get::<Option<String>, _>("message").unwrap_or_default(),
    })
}

/// Whether the video failed for another reason than before. A retry of a configuration failure is not
/// counted again.
fn is_new_failure(claim: &Claim, failure: &Failure) -> bool {
    let history = &claim.history;
    // A video that waits has the code of what is missing, and fails with the same one.
    let has_waited = history.waited != Waited::default();
    has_waited || history.code != Some(failure.code)
}

/// The histogram bucket of a duration.
fn bucket(took: Duration) -> i64 {
    let ms = (took.as_millis() as f64).max(1.0);
    (ms.log2() * BUCKETS_PER_DOUBLING).round() as i64
}

/// The `q`-quantile of a histogram. `buckets`: (bucket, count), the shortest duration first.
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
