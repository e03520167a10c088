//! Deliveries that come at once share one statement and one commit.
//!
//! One writer takes whatever waits, commits it, answers, and takes what came meanwhile. A delivery
//! that comes alone waits for nobody, and nobody is answered before its own commit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::db::{Db, DbError, Delivery};

/// Deliveries that may wait for the writer; more of them wait to get in, within [`ANSWER_TIMEOUT`].
const WAITING_MAX: usize = 1024;

/// Deliveries in one commit.
const BATCH_DELIVERIES_MAX: usize = 256;

/// A commit takes no further delivery once it has this many videos, so that its statement stays small.
const BATCH_VIDEOS_MAX: usize = 2048;

/// The database has this long for a batch, its second chance included.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(1600);

/// A delivery is told within this time whether it was recorded: 503 must be said within two seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1800);

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
    while let Some(first) = queue.recv().await {
        let mut batch = Batch::default();
        batch.push(first);
        while batch.has_room()
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let deliveries = batch.deliveries.len();
        if deliveries == 0 {
            continue;
        }
        if timeout(COMMIT_TIMEOUT, batch.commit(&db, &wake))
            .await
            .is_err()
        {
            tracing::error!(deliveries, "not recorded: the database did not answer");
        }
    }
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

    /// All in one commit; if the database refuses that, each in its own, so that none is refused for
    /// what another one holds.
    async fn commit(self, db: &Db, wake: &Notify) {
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
