//! The log has one line per outcome, with stable field names.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tracing_subscriber::layer::SubscriberExt as _;
use video_ingest::telemetry::json_lines;

use crate::support::scenario::{Backend, Scenario, TRUNCATED, Video};

/// A buffer that several writers append to.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Captures what this thread logs from now on.
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let filter = tracing_subscriber::EnvFilter::new("video_ingest=info");
        let lines = tracing_subscriber::registry()
            .with(filter)
            .with(json_lines(move || writer.clone()));
        (log, tracing::subscriber::set_default(lines))
    }

    /// `LEVEL message code attempt` of each line; every one names a delivery or a video of these.
    fn outcomes(&self, videos: &[&Video]) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let known = |video: &&Video| line["video.id"] == video.id();
            assert!(
                line["delivery.id"].is_string() || videos.iter().any(known),
                "{line}"
            );
            let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            // The text after the colon is not stable.
            let message = text("message");
            let message = message.split(':').next().unwrap();
            format!(
                "{} {message} {} {}",
                text("level"),
                text("code"),
                line["attempt"]
            )
        };
        text.lines().map(line).collect()
    }
}

#[tokio::test]
async fn each_outcome_is_one_log_line() {
    let t = Scenario::begin(Backend::Supabase).await;
    let (good, bad, early) = (Video::good(), Video::with(TRUNCATED), Video::good());
    t.row(&good).await;
    t.row(&bad).await;
    let (log, _guard) = Log::begin();
    for video in [&good, &bad, &early] {
        t.push(video).await;
        t.work().await;
    }
    let outcomes = log.outcomes(&[&good, &bad, &early]);
    assert_eq!(
        outcomes,
        [
            "INFO delivery accepted - null",
            "INFO video ready - 1",
            "INFO delivery accepted - null",
            "WARN video failed truncated 1",
            "INFO delivery accepted - null",
            "INFO video waiting no_row 1",
        ]
    );
    t.finish().await;
}

#[tokio::test]
async fn a_database_error_is_logged_with_its_cause() {
    let t = Scenario::begin(Backend::Supabase).await;
    t.sql("alter table video_ingest.deliveries rename to gone")
        .await;
    let (log, _guard) = Log::begin();
    let answer = t.get("/api/deliveries").await;
    assert_eq!(answer.status, 503);
    let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        said.contains("relation \\\"video_ingest.deliveries\\\" does not exist"),
        "{said}"
    );
    assert!(!said.contains("postgres://"), "{said}");
}
