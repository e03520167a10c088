//! The table `heads`: the commits that are or were the branch's head. [`crate::domain::head`] decides which
//! of them is current.

use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;

use super::{Db, DbError, Dialect, duration};
use crate::domain::head::{AWAITED_FOR, Heads};
use crate::domain::ids::GitSha;

/// The maximum number of awaited heads that a served head is compared with, newest first. After consecutive
/// pushes, only the last head is awaited, so exceeding this number takes as many forced pushes within
/// [`AWAITED_FOR`].
const AWAITED_MAX: i64 = 8;

/// The maximum number of pushes that are followed from an awaited head back to the accepted one.
const PUSHES_FOLLOWED_MAX: i64 = 64;

/// The key of the advisory lock that serializes acceptances. The value is arbitrary, but must be the same in
/// all releases.
const ACCEPT_LOCK: i64 = 0x7669_6465_6f68_6561;

/// The head that was accepted last.
const ACCEPTED: &str = "select sha from video_ingest.heads
    where accepted_at is not null order by accepted_at desc limit 1";

/// Finds a push that has replaced the head `$1` within the last `$2` ms, or before the clock was set back. A
/// replayed delivery is not one. The table `heads` contains the head then, because the push named it.
const REPLACED: &str = "select 1 from video_ingest.deliveries as d
    where d.received_at >= {now} - $2
        and d.before_sha = $1 and d.after_sha <> $1
        and not exists (select 1 from video_ingest.deliveries as old
            where old.before_sha = d.before_sha and old.after_sha = d.after_sha
                and old.received_at < {now} - $2)
    limit 1";

/// Inserts the heads that deliveries name. `$1`: an array of deliveries.
///
/// A known head does not become awaited again, so a replayed delivery has no effect. A head that a push has
/// replaced is no longer awaited.
pub(super) const INSERT_HEADS: &str = "insert into video_ingest.heads as heads
        (sha, parent, first_seen_at, settled)
    select named.sha, max(named.parent), {now}, max(named.settled) from (
        select d.value ->> 'after' as sha, d.value ->> 'before' as parent, 0 as settled
        from {each}($1{jsonb}) as d
        union all
        select d.value ->> 'before', null, 1 from {each}($1{jsonb}) as d
        where d.value ->> 'before' <> '0000000000000000000000000000000000000000') as named
    where true
    group by named.sha order by named.sha
    on conflict (sha) do update set settled = 1
        where excluded.settled = 1 and heads.settled = 0";

impl Db {
    /// What is known about the head `served`, and about the heads that should be served instead.
    pub async fn heads(&self, served: GitSha) -> Result<Heads, DbError> {
        // A time in the future means that the clock was set back, see `await_heads_from_now`.
        let is_awaited = "settled = 0 and first_seen_at >= {now} - $2";
        let statement = format!(
            "select sha, parent, settled, {{now}} - served_since as served_for,
                case when {is_awaited} then 1 else 0 end as awaited,
                case when sha = ({ACCEPTED}) then 1 else 0 end as accepted,
                case when sha = $1 and exists ({REPLACED}) then 1 else 0 end as replaced
            from video_ingest.heads
            where sha = $1 or sha = ({ACCEPTED}) or served_since is not null or sha in (
                select sha from video_ingest.heads where {is_awaited}
                order by first_seen_at desc limit $3)"
        );
        let query = self
            .query(&statement)
            .bind(served.to_string())
            .bind(AWAITED_FOR.as_millis() as i64)
            .bind(AWAITED_MAX);
        let mut heads = Heads::default();
        for row in self.fetch_all(query).await? {
            let Ok(sha) = row.get::<String, _>("sha").parse() else {
                continue;
            };
            if row.get::<i64, _>("accepted") == 1 {
                heads.accepted = Some(sha);
            }
            if row.get::<i64, _>("awaited") == 1 {
                heads.awaited.push(sha);
            }
            let is_doubted = row.get::<Option<i64>, _>("served_for").is_some();
            heads.is_any_doubted |= is_doubted;
            if sha == served {
                heads.is_settled = row.get::<i64, _>("settled") == 1;
                heads.is_replaced = row.get::<i64, _>("replaced") == 1;
                if is_doubted {
                    heads.served_for = duration(&row, "served_for");
                }
            }
        }
        if let Some(accepted) = heads.accepted
            && heads.awaited.contains(&served)
        {
            heads.follows_accepted = self.follows(served, accepted).await?;
        }
        Ok(heads)
    }

    /// Restarts [`AWAITED_FOR`] for heads that were first seen before the database's clock was set back by more
    /// than `slack`. Otherwise they would be awaited until the clock has caught up.
    pub(super) async fn await_heads_from_now(&self, slack: Duration) -> Result<(), DbError> {
        let statement = "update video_ingest.heads set first_seen_at = {now}
            where sha in (
                select sha from video_ingest.heads
                where settled = 0 and first_seen_at > {now} + $1
                {skip_locked})";
        let query = self.query(statement).bind(slack.as_millis() as i64);
        self.execute(query).await?;
        Ok(())
    }

    /// Whether pushes led from the head `older` to `newer`, according to the deliveries.
    async fn follows(&self, newer: GitSha, older: GitSha) -> Result<bool, DbError> {
        let statement = "with recursive line (sha, pushes) as (
                select parent, 1 from video_ingest.heads where sha = $1
                union all
                select h.parent, line.pushes + 1 from video_ingest.heads as h
                join line on h.sha = line.sha where line.pushes < $3)
            select sha from line where sha = $2 limit 1";
        let query = self
            .query(statement)
            .bind(newer.to_string())
            .bind(older.to_string())
            .bind(PUSHES_FOLLOWED_MAX);
        Ok(self.fetch_optional(query).await?.is_some())
    }

    /// Accepts `served` as the branch's head. The awaited ones that it was compared with are settled.
    ///
    /// Returns `false`, without an effect, if another head was accepted since `heads` was read.
    pub async fn accept_head(&self, served: GitSha, heads: &Heads) -> Result<bool, DbError> {
        let mut tx = self.transaction().await?;
        if self.dialect == Dialect::Postgres {
            // Replicas accept heads one after the other, so that all agree on the last one.
            self.query("select pg_advisory_xact_lock($1)::text")
                .bind(ACCEPT_LOCK)
                .execute(tx.connection())
                .await?;
        }
        let accepted = self.query(ACCEPTED).fetch_optional(tx.connection()).await?;
        let accepted = accepted.map(|row| row.get::<String, _>("sha"));
        if accepted != heads.accepted.map(|sha| sha.to_string()) {
            return Ok(false);
        }
        // Later than all others even if the clock was set back.
        let accept =
            "insert into video_ingest.heads as heads (sha, first_seen_at, settled, accepted_at)
            select $1, {now}, 1,
                case when max(accepted_at) >= {now} then max(accepted_at) + 1 else {now} end
            from video_ingest.heads where true
            on conflict (sha) do update set settled = 1, accepted_at = excluded.accepted_at";
        self.query(accept)
            .bind(served.to_string())
            .execute(tx.connection())
            .await?;
        let settle = "update video_ingest.heads set settled = 1, served_since = null
            where served_since is not null
                or sha in (select a.value ->> 'sha' from {each}($1{jsonb}) as a)";
        let awaited = heads.awaited.iter();
        let awaited: serde_json::Value = awaited.map(|sha| json!({"sha": sha})).collect();
        self.query(settle)
            .bind(awaited.to_string())
            .execute(tx.connection())
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Records since when GitHub's API has served `served` although it is not newer than the accepted head.
    /// The period restarts when another head is served.
    pub async fn doubt_head(&self, served: GitSha) -> Result<(), DbError> {
        let others = "update video_ingest.heads set served_since = null
            where served_since is not null and sha <> $1";
        let doubt = "insert into video_ingest.heads as heads (sha, first_seen_at, served_since)
            values ($1, {now}, {now})
            on conflict (sha) do update set served_since = case
                when heads.served_since <= excluded.served_since then heads.served_since
                else excluded.served_since end";
        for statement in [others, doubt] {
            self.execute(self.query(statement).bind(served.to_string()))
                .await?;
        }
        Ok(())
    }
}
