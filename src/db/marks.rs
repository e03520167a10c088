//! The table `marks`: named values that survive a restart, such as the cursor of a sweep or a count of calls.

use std::time::Duration;

use sqlx::Row as _;

use super::{Db, DbError};

impl Db {
    /// The value of a mark; `None` if it was never set.
    pub async fn mark(&self, name: &str) -> Result<Option<String>, DbError> {
        let statement = "select value from video_ingest.marks where name = $1";
        let row = self
            .fetch_optional(self.query(statement).bind(name))
            .await?;
        Ok(row.map(|row| row.get("value")))
    }

    /// Sets a mark.
    pub async fn set_mark(&self, name: &str, value: &str) -> Result<(), DbError> {
        let statement = "insert into video_ingest.marks (name, value, at) values ($1, $2, {now})
            on conflict (name) do update set value = excluded.value, at = excluded.at";
        self.execute(self.query(statement).bind(name).bind(value))
            .await?;
        Ok(())
    }

    /// Removes a mark.
    pub async fn remove_mark(&self, name: &str) -> Result<(), DbError> {
        let statement = "delete from video_ingest.marks where name = $1";
        self.execute(self.query(statement).bind(name)).await?;
        Ok(())
    }

    /// Adds `amount` to a count unless the sum would exceed `max`. The count restarts after `period`, which
    /// begins with the first addition. Returns whether the amount was added. Concurrent additions, including
    /// those of other servers, are counted.
    pub async fn spend(
        &self,
        name: &str,
        amount: usize,
        max: i64,
        period: Duration,
    ) -> Result<bool, DbError> {
        // The clock may have been set back.
        const IS_OVER: &str = "(marks.at <= {now} - $4 or marks.at > {now})";
        let statement = format!(
            "insert into video_ingest.marks as marks (name, value, at) values ($1, $2, {{now}})
            on conflict (name) do update set
                value = case when {IS_OVER} then excluded.value
                    else cast(cast(marks.value as bigint) + cast(excluded.value as bigint) as text) end,
                at = case when {IS_OVER} then excluded.at else marks.at end
            where {IS_OVER} or cast(marks.value as bigint) + cast(excluded.value as bigint) <= $3"
        );
        let query = self.query(&statement).bind(name).bind(amount.to_string());
        let query = query.bind(max).bind(period.as_millis() as i64);
        Ok(self.execute(query).await? > 0)
    }
}
