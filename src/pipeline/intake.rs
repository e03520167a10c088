//! Records deliveries in batches: concurrent deliveries share a statement and a commit.
//!
//! One task collects all queued deliveries into a batch and commits it. Deliveries that arrive during the
//! commit form the next batch. A single delivery is committed without delay, and each is acknowledged only
//! after its own commit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::db::{Db, Delivery};
use crate::format::causes;
use crate::telemetry::refused::not_recorded;

/// The capacity of the queue. If it is full, [`Intake::record`] waits, at most for [`RESPONSE_TIMEOUT`].
const WAITING_MAX: usize = 1024;

/// The maximum number of deliveries in a commit.
const BATCH_DELIVERIES_MAX: usize = 256;

/// The number of videos from which on no delivery is added to a commit, which limits the size of the
/// statement.
const BATCH_VIDEOS_MAX: usize = 512;

/// The longest time for which a batch collects deliveries while another commit is in progress.
///
/// With a nearby database, that commit ends earlier. With a distant one, the next commit starts
/// concurrently. Otherwise, a delivery would wait for two round trips.
const BATCH_WINDOW: Duration = Duration::from_millis(5);

/// The time limit for the commit of a batch, including the separate commits after a failure.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(1500);

/// The time limit for recording a delivery. A 503 must be sent within two seconds, even by a busy machine.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1600);

/// A handle to the writer task. The task ends when all handles are dropped and the queue is empty.
#[derive(Clone, Debug)]
pub struct Intake {
    queue: mpsc::Sender<Queued>,
}

/// The delivery was not recorded, or its commit was not confirmed in time. The cause is logged.
#[derive(Debug, thiserror::Error)]
#[error("failed to record the delivery in time")]
pub struct NotRecorded;

struct Queued {
    delivery: Delivery,
    /// Notified after the commit; dropped if it failed.
    committed: oneshot::Sender<()>,
}

impl Intake {
    /// Starts the writer task, which notifies `wake` after every commit.
    pub fn start(db: Db, wake: Arc<Notify>) -> (Self, JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        (Self { queue }, tokio::spawn(write(waiting, db, wake)))
    }

    /// Records a delivery and its requests. Returns after the commit.
    ///
    /// # Errors
    /// The database is unavailable or too slow, or rejected the delivery.
    pub async fn record(&self, delivery: Delivery) -> Result<(), NotRecorded> {
        let recorded = async {
            let (committed, confirmation) = oneshot::channel();
            let queued = Queued {
                delivery,
                committed,
            };
            self.queue.send(queued).await.ok()?;
            confirmation.await.ok()
        };
        let recorded = timeout(RESPONSE_TIMEOUT, recorded).await;
        recorded.ok().flatten().ok_or(NotRecorded)
    }
}

async fn write(mut queue: mpsc::Receiver<Queued>, db: Db, wake: Arc<Notify>) {
    let mut commits = JoinSet::new();
    while let Some(first) = queue.recv().await {
        // Reap the completed commits, so that only those in progress count.
        while commits.try_join_next().is_some() {}
        if commits.len() < db.commits_max() {
            let _ = timeout(BATCH_WINDOW, commits.join_next()).await;
        } else {
            commits.join_next().await;
        }
        let mut batch = Batch::default();
        batch.push(first);
        while batch.has_room()
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        if !batch.deliveries.is_empty() {
            commits.spawn(batch.commit(db.clone(), wake.clone()));
        }
    }
    while commits.join_next().await.is_some() {}
}

#[derive(Default)]
struct Batch {
    deliveries: Vec<Delivery>,
    committed: Vec<oneshot::Sender<()>>,
    videos: usize,
}

impl Batch {
    fn has_room(&self) -> bool {
        self.deliveries.len() < BATCH_DELIVERIES_MAX && self.videos < BATCH_VIDEOS_MAX
    }

    /// Adds a delivery unless its request has timed out or was cancelled. GitHub then shows a failed
    /// delivery, which must not be recorded.
    fn push(&mut self, queued: Queued) {
        if !queued.committed.is_closed() {
            self.videos += queued.delivery.videos.len();
            self.deliveries.push(queued.delivery);
            self.committed.push(queued.committed);
        }
    }

    async fn commit(self, db: Db, wake: Arc<Notify>) {
        let deliveries = self.deliveries.len();
        let first = self.deliveries.first().map(|first| first.guid.clone());
        let committed = timeout(COMMIT_TIMEOUT, self.try_commit(&db, &wake)).await;
        if committed.is_err() {
            not_recorded(deliveries, &first.unwrap_or_default(), "database timeout");
        }
    }

    /// Commits all deliveries together. If that fails, each is committed separately, so that a delivery
    /// that is rejected, or whose video is locked, does not affect the others.
    async fn try_commit(self, db: &Db, wake: &Notify) {
        if db.record(&self.deliveries).await.is_ok() {
            wake.notify_waiters();
            for committed in self.committed {
                // Fails if the request was cancelled.
                let _ = committed.send(());
            }
            return;
        }
        // One after another: deliveries can change the same rows, so one that waits would block the next.
        for (delivery, committed) in self.deliveries.iter().zip(self.committed) {
            match db.record(std::slice::from_ref(delivery)).await {
                Ok(()) => {
                    wake.notify_waiters();
                    let _ = committed.send(());
                }
                Err(error) => not_recorded(1, &delivery.guid, causes(&error)),
            }
        }
    }
}
