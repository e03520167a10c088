//! The Prometheus metrics. All counters are initialized to 0 at startup, because `increase()` ignores the
//! first sample of a series: an alert on a series that appears with its first event would miss that event.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::refused::Reason;
use crate::db::{Claim, Overview};
use crate::domain::failure::Code;
use crate::domain::plan::End;
use crate::domain::report::{Outcome, SweepReport};
use crate::domain::state::VideoState;
use crate::domain::timeline::Step;
use crate::services::github::Github;

const DELIVERIES: &str = "video_ingest_deliveries_total";
pub(super) const REFUSED: &str = "video_ingest_refused_requests_total";
const WRONG_TOKENS: &str = "video_ingest_wrong_tokens_total";
const ACCEPT: &str = "video_ingest_accept_seconds";
const VIDEOS: &str = "video_ingest_videos";
const OLDEST: &str = "video_ingest_queue_oldest_seconds";
const STEP: &str = "video_ingest_step_seconds";
const BYTES: &str = "video_ingest_stored_bytes_total";
const ATTEMPTS: &str = "video_ingest_attempts_total";
const READY: &str = "video_ingest_push_to_ready_seconds";
const SWEEPS: &str = "video_ingest_sweeps_total";
const SWEPT: &str = "video_ingest_swept_videos";
const SWEPT_AT: &str = "video_ingest_last_sweep_timestamp_seconds";
const RATE_LIMIT: &str = "video_ingest_github_rate_limit";
const RATE_REMAINING: &str = "video_ingest_github_rate_limit_remaining";
const RATE_RESET: &str = "video_ingest_github_rate_limit_reset_timestamp_seconds";
const CALLS: &str = "video_ingest_github_calls_total";
const BUILD: &str = "video_ingest_build_info";

/// Bucket bounds of short durations, in seconds.
const FAST: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0,
];

/// Bucket bounds of durations from seconds to hours, in seconds.
const SLOW: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0,
];

/// The values of the label `result` of deliveries.
const RESULTS: [&str; 5] = [
    "accepted",
    "ignored",
    "bad_signature",
    "malformed",
    "unavailable",
];

/// How often recorded samples must be merged into their histograms, so that memory stays bounded even
/// if nothing scrapes the metrics.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The recorder of this process. The first call installs it.
pub fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = [(ACCEPT, FAST), (STEP, SLOW), (READY, SLOW)]
            .into_iter()
            .try_fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
                let name = metrics_exporter_prometheus::Matcher::Full(name.to_owned());
                builder.set_buckets_for_metric(name, bounds)
            })
            .unwrap_or_default()
            .build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another metrics recorder is already installed, /metrics will be empty");
        }
        describe_all();
        handle
    })
}

fn describe_all() {
    describe_counter!(DELIVERIES, "Webhook deliveries by result");
    describe_counter!(REFUSED, "Refused requests and connections by reason");
    describe_counter!(
        WRONG_TOKENS,
        "Incorrect admin tokens by path: `bearer` or `form`"
    );
    describe_histogram!(ACCEPT, Unit::Seconds, "Time to respond to a delivery");
    describe_gauge!(VIDEOS, "Videos by state");
    describe_gauge!(
        OLDEST,
        Unit::Seconds,
        "Age of the oldest queued or running video, or 0"
    );
    describe_histogram!(STEP, Unit::Seconds, "Duration of each step of an attempt");
    describe_counter!(BYTES, Unit::Bytes, "Size of the videos that became ready");
    describe_counter!(ATTEMPTS, "Completed attempts by outcome and code");
    describe_histogram!(READY, Unit::Seconds, "Time from request to ready");
    describe_counter!(SWEEPS, "Sweeps by result");
    describe_gauge!(SWEPT, "Videos in the last sweep by outcome");
    describe_gauge!(SWEPT_AT, Unit::Seconds, "Time when the last sweep ended");
    describe_gauge!(RATE_LIMIT, "GitHub API requests per window");
    describe_gauge!(RATE_REMAINING, "Remaining GitHub API requests");
    describe_gauge!(RATE_RESET, Unit::Seconds, "Time when the window ends");
    describe_counter!(
        CALLS,
        "Calls to GitHub that count towards its rate limit, by purpose"
    );
    describe_gauge!(BUILD, "Always 1, with the version as a label");
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    for result in RESULTS {
        counter!(DELIVERIES, "result" => result).increment(0);
    }
    for reason in Reason::ALL {
        counter!(REFUSED, "reason" => reason.as_str()).increment(0);
    }
    for path in [TokenPath::Bearer, TokenPath::Form] {
        counter!(WRONG_TOKENS, "path" => path.as_str()).increment(0);
    }
    for code in Code::ALL {
        for outcome in [Step::Retry, Step::Failed] {
            counter!(ATTEMPTS, "outcome" => outcome.as_str(), "code" => code.as_str()).increment(0);
        }
    }
    for outcome in [Step::Ready, Step::Unchanged] {
        counter!(ATTEMPTS, "outcome" => outcome.as_str(), "code" => "").increment(0);
    }
    for result in ["done", "failed"] {
        counter!(SWEEPS, "result" => result).increment(0);
    }
    counter!(BYTES).increment(0);
}

/// How a client sent an admin token.
#[derive(Clone, Copy, Debug)]
pub enum TokenPath {
    /// In the header `Authorization`.
    Bearer,
    /// In the sign-in form.
    Form,
}

impl TokenPath {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Form => "form",
        }
    }
}

/// Records a wrong admin token.
pub fn wrong_token(path: TokenPath) {
    counter!(WRONG_TOKENS, "path" => path.as_str()).increment(1);
}

/// Records a delivery and the status of its response.
pub fn delivery(status: u16, took: Duration) {
    let result = match status {
        202 => "accepted",
        200 => "ignored",
        401 => "bad_signature",
        503 => "unavailable",
        _ => "malformed",
    };
    counter!(DELIVERIES, "result" => result).increment(1);
    histogram!(ACCEPT).record(took);
}

/// Records a completed step of an attempt.
pub fn step(step: Step, took: Duration) {
    histogram!(STEP, "step" => step.as_str()).record(took);
}

/// Records a completed attempt.
pub fn ended(claim: &Claim, end: &End) {
    if let End::Ready { published, .. } = end {
        counter!(BYTES).increment(published.size_bytes);
        histogram!(READY).record(claim.requested_at.elapsed());
    }
    let code = end.reason().map_or("", |(code, _)| code.as_str());
    counter!(ATTEMPTS, "outcome" => end.step().as_str(), "code" => code).increment(1);
}

/// Records a completed sweep, `None` if it failed.
pub fn swept(report: Option<&SweepReport>) {
    let Some(report) = report else {
        return counter!(SWEEPS, "result" => "failed").increment(1);
    };
    counter!(SWEEPS, "result" => "done").increment(1);
    for outcome in Outcome::ALL {
        gauge!(SWEPT, "outcome" => outcome.as_str()).set(report.count(*outcome) as f64);
    }
}

/// Renders all metrics in Prometheus's text format, with the current counts and GitHub's rate limit.
pub fn render(overview: Option<&Overview>, github: &Github) -> String {
    let recorder = recorder();
    if let Some(overview) = overview {
        for state in [
            VideoState::Queued,
            VideoState::Running,
            VideoState::Waiting,
            VideoState::Failed,
        ] {
            gauge!(VIDEOS, "state" => state.as_str()).set(overview.count(state) as f64);
        }
        gauge!(OLDEST).set(overview.oldest.unwrap_or_default().as_secs_f64());
        if let Some((at_ms, _)) = overview.last_sweep {
            gauge!(SWEPT_AT).set(at_ms as f64 / 1000.0);
        }
    }
    for (purpose, calls) in github.calls() {
        counter!(CALLS, "purpose" => purpose.as_str()).absolute(calls);
    }
    if let Some(rate) = github.rate_limit() {
        gauge!(RATE_LIMIT).set(rate.limit as f64);
        gauge!(RATE_REMAINING).set(rate.remaining as f64);
        gauge!(RATE_RESET).set(rate.reset as f64);
    }
    recorder.render()
}
