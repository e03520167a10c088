//! The table `marks`: named values that survive a restart, such as the cursor of a sweep.

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
}
