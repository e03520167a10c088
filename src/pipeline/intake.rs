//! Deliveries that come at once share one statement and one commit.
//!
//! One task takes whatever waits, has it committed and answered, and takes what came meanwhile. A
//! delivery that comes alone waits for nobody, and nobody is answered before its own commit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::db::{Db, DbError, Delivery};

/// Deliveries that may wait for the writer; more of them wait to get in, within [`ANSWER_TIMEOUT`].
const WAITING_MAX: usize = 1024;

/// Deliveries in one commit.
const BATCH_DELIVERIES_MAX: usize = 256;

/// A commit takes no further delivery once it has this many videos, so that its statement stays small.
const BATCH_VIDEOS_MAX: usize = 2048;

/// While a commit is under way, the next one gathers deliveries for so long at most. To a database
/// nearby it is over sooner; to one far away a second commit goes out, or everybody would wait for two.
const GATHER: Duration = Duration::from_millis(5);

/// The database has this long for a batch, its second chance included.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(1500);

/// A delivery is told within this time whether it was recorded: 503 must be said within two seconds, on a
/// machine that is too busy, too.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1600);

/// The way to the writer. It ends once all clones of this are dropped and all who wait were answered.
#[derive(Clone, Debug)]
pub struct Intake {
    queue: mpsc::Sender<Waiting>,
}

/// As far as we know nothing was recorded. Why is in the log.
#[derive(Debug, thiserror::Error)]
#[error("the delivery was not recorded in time")]
pub struct NotRecorded;

struct Waiting {
    delivery: Delivery,
    /// Told after the commit; dropped if there was none.
    committed: oneshot::Sender<()>,
}

impl Intake {
    /// Starts the writer, which wakes the workers after every commit.
    pub fn start(db: Db, wake: Arc<Notify>) -> (Self, JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        (Self { queue }, tokio::spawn(write(waiting, db, wake)))
    }

    /// Returns once the delivery is committed, with the work that follows from it.
    ///
    /// # Errors
    /// It was refused, or the database did not answer in time.
    pub async fn record(&self, delivery: Delivery) -> Result<(), NotRecorded> {
        let recorded = async {
            let (committed, answer) = oneshot::channel();
            let waiting = Waiting {
                delivery,
                committed,
            };
            self.queue.send(waiting).await.ok()?;
            answer.await.ok()
        };
        let recorded = timeout(ANSWER_TIMEOUT, recorded).await;
        recorded.ok().flatten().ok_or(NotRecorded)
    }
}

async fn write(mut queue: mpsc::Receiver<Waiting>, db: Db, wake: Arc<Notify>) {
    let mut commits = JoinSet::new();
    while let Some(first) = queue.recv().await {
        while commits.try_join_next().is_some() {}
        if commits.len() < db.commits_max() {
            let _ = timeout(GATHER, commits.join_next()).await;
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
    answers: Vec<oneshot::Sender<()>>,
    videos: usize,
}

impl Batch {
    fn has_room(&self) -> bool {
        self.deliveries.len() < BATCH_DELIVERIES_MAX && self.videos < BATCH_VIDEOS_MAX
    }

    /// Whoever no longer waits was told that nothing was recorded, or is gone.
    fn push(&mut self, waiting: Waiting) {
        if !waiting.committed.is_closed() {
            self.videos += waiting.delivery.videos.len();
            self.deliveries.push(waiting.delivery);
            self.answers.push(waiting.committed);
        }
    }

    async fn commit(self, db: Db, wake: Arc<Notify>) {
        let deliveries = self.deliveries.len();
        let committed = timeout(COMMIT_TIMEOUT, self.try_commit(&db, &wake)).await;
        if committed.is_err() {
            tracing::error!(deliveries, "not recorded: the database did not answer");
        }
    }

    /// All in one commit; if the database refuses that, each in its own, so that none is refused for
    /// what another one holds.
    async fn try_commit(self, db: &Db, wake: &Notify) {
        let Err(error) = db.record(&self.deliveries).await else {
            wake.notify_waiters();
            for committed in self.answers {
                // Whoever went away meanwhile does not want to know.
                let _ = committed.send(());
            }
            return;
        };
        if let [alone] = &self.deliveries[..] {
            return not_recorded(alone, &error);
        }
        for (delivery, committed) in self.deliveries.iter().zip(self.answers) {
            match db.record(std::slice::from_ref(delivery)).await {
                Ok(()) => {
                    wake.notify_waiters();
                    let _ = committed.send(());
                }
                Err(error) => not_recorded(delivery, &error),
            }
        }
    }
}

fn not_recorded(delivery: &Delivery, error: &DbError) {
    let error = error as &dyn std::error::Error;
    tracing::error!(delivery.id = delivery.guid, error, "not recorded");
}
