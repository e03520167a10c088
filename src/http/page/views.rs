//! View models of the pages, and the two charts.

use std::fmt;
use std::time::Duration;

use askama::filters::HtmlSafe;
use jiff::Timestamp;

use crate::db::{Day, EventView, VideoView};
use crate::domain::advice::repeats;
use crate::domain::failure::{Class, Code};
use crate::domain::ids::VideoKey;
use crate::domain::state::VideoState;
use crate::domain::timeline::Step;
use crate::format::{age, capitalized, elapsed, length, size};

/// The width of both charts in SVG units. The style sheet scales them.
const WIDTH: f64 = 480.0;

/// The height of the chart of the last 24 hours, in SVG units.
const DAY_HEIGHT: f64 = 64.0;

/// The minimum width of a step, so that short steps stay visible.
const SEGMENT_WIDTH_MIN: f64 = 3.0;

/// A point in time. Displayed as an HTML element that shows its age, or the time until it, and the absolute time.
pub(super) struct Moment {
    at: Timestamp,
    now: Timestamp,
    /// Whether the absolute time has seconds.
    seconds: bool,
}

impl Moment {
    pub(super) fn at(ms: i64, now_ms: i64) -> Self {
        let timestamp = |ms| Timestamp::from_millisecond(ms).unwrap_or_default();
        Self {
            at: timestamp(ms),
            now: timestamp(now_ms),
            seconds: ms > now_ms,
        }
    }

    /// For lists of events that follow each other closely.
    pub(super) fn with_seconds(self) -> Self {
        Self {
            seconds: true,
            ..self
        }
    }

    /// Parses a timestamp of the API. An invalid one becomes the current time.
    pub(super) fn parse(text: &str, now_ms: i64) -> Self {
        Self::at(millis(text).unwrap_or(now_ms), now_ms)
    }

    /// `3 min ago`, `in 4 min`
    fn relative(&self) -> String {
        let ms = self.now.as_millisecond() - self.at.as_millisecond();
        let distance = age(Duration::from_millis(ms.unsigned_abs()));
        match ms {
            -999..=0 => "now".to_owned(),
            ..=-1000 => format!("in {distance}"),
            1.. => format!("{distance} ago"),
        }
    }

    /// `21:12 UTC`, with the date if it is not today's.
    fn clock(&self) -> String {
        let is_same =
            |unit| self.at.strftime(unit).to_string() == self.now.strftime(unit).to_string();
        let date = match (is_same("%F"), is_same("%Y")) {
            (true, _) => "",
            (false, true) => "%b %-d, ",
            (false, false) => "%F, ",
        };
        let time = if self.seconds { "%T" } else { "%R" };
        self.at.strftime(&format!("{date}{time} UTC")).to_string()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.at.strftime("%F %T UTC");
        write!(
            f,
            "<time datetime=\"{}\" title=\"{full}\">{} <small><span class=\"dot\">· </span>{}</small></time>",
            self.at,
            self.relative(),
            self.clock()
        )
    }
}

/// It consists of digits and fixed words.
impl HtmlSafe for Moment {}

pub(super) fn millis(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(|t| t.as_millisecond())
}

/// A video in the list and on its own page.
pub(super) struct VideoRow {
    pub video: VideoView,
    pub size: String,
    pub length: String,
    pub changed: Moment,
    pub created: Moment,
    /// When the server tries it again by itself.
    pub next: Option<Moment>,
}

impl VideoRow {
    pub(super) fn new(video: VideoView, now_ms: i64) -> Self {
        let text = |value: Option<i64>, format: fn(u64) -> String| {
            value.map_or_else(String::new, |value| format(value.unsigned_abs()))
        };
        let next = video.next_attempt_at.as_deref().and_then(millis);
        Self {
            size: text(video.size_bytes, size),
            length: text(video.duration_ms, length),
            changed: Moment::parse(&video.updated_at, now_ms),
            created: Moment::parse(&video.created_at, now_ms),
            next: next
                .filter(|ms| *ms > now_ms)
                .map(|ms| Moment::at(ms, now_ms)),
            video,
        }
    }

    /// The page of the video. Two lessons can have a video with the same id.
    pub(super) fn href(&self) -> String {
        self.action("")
    }

    /// The address to which a form of the video is sent.
    pub(super) fn action(&self, name: &str) -> String {
        video_href(&self.video.key(), name)
    }

    /// The state, or what an operator needs to know about it.
    pub(super) fn label(&self) -> &'static str {
        match self.video.state {
            VideoState::Queued if self.next.is_some() => "backing off",
            VideoState::Generating if self.is_blocked() => "blocked",
            state => state.as_str(),
        }
    }

    /// The classes of the state's badge.
    pub(super) fn class(&self) -> String {
        format!("{} {}", self.video.state, self.label().replace(' ', "-"))
    }

    /// What happens at the time of the next attempt.
    pub(super) fn next_label(&self) -> &'static str {
        match (self.video.state, self.video.code) {
            (VideoState::Waiting, Some(Code::MetadataMissing)) => "Ingested without JSON",
            (VideoState::Waiting, _) => "Deadline",
            _ => "Next attempt",
        }
    }

    /// Whether the agent needs a person.
    pub(super) fn is_blocked(&self) -> bool {
        let generation = self.video.generation.as_ref();
        generation.is_some_and(|generation| generation.status == "blocked")
    }

    /// The reason for the state, if there is one.
    pub(super) fn reason(&self) -> Option<String> {
        if self.video.state == VideoState::Generating {
            return self.video.generation.as_ref().map(|g| g.detail.clone());
        }
        self.code()?;
        self.video.message.as_deref().map(capitalized)
    }

    /// The code of the failure. While a worker tries again, the last failure says nothing.
    pub(super) fn code(&self) -> Option<Code> {
        self.video
            .code
            .filter(|_| self.video.state != VideoState::Running)
    }

    /// What to do about the failure.
    pub(super) fn advice(&self) -> Option<&'static str> {
        let message = self.video.message.as_deref().unwrap_or_default();
        let advice = self.code().and(self.video.advice);
        advice.filter(|advice| !repeats(message, advice))
    }

    /// Whether the agent's conversation is where to look next.
    pub(super) fn needs_conversation(&self) -> bool {
        self.video.state == VideoState::Generating
            || matches!(
                self.video.code,
                Some(Code::GenerationFailed | Code::GenerationTimeout | Code::FinishedWithoutVideo)
            )
    }

    /// Whether no attempt failed, so that another one only looks for changes.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.video.state, VideoState::Ready | VideoState::Waiting)
    }

    /// Whether an attempt can succeed although nothing was pushed.
    pub(super) fn is_retry_promising(&self) -> bool {
        self.code().is_some_and(is_retry_promising)
    }
}

/// Whether an attempt can succeed although nothing was pushed: the cause is outside of the files.
pub(super) fn is_retry_promising(code: Code) -> bool {
    matches!(code.class(), Class::Configuration | Class::Transient) || code == Code::GaveUp
}

/// The address of a video's page, or of the form `name` on it.
pub(super) fn video_href(key: &VideoKey, name: &str) -> String {
    let slash = if name.is_empty() { "" } else { "/" };
    format!(
        "/videos/{}{slash}{name}?lesson_id={}",
        key.video_id, key.lesson_id
    )
}

/// One hour of the chart, in SVG units.
pub(super) struct Bar {
    pub x: f64,
    pub width: f64,
    pub ready_y: f64,
    pub ready_height: f64,
    pub failed_y: f64,
    pub failed_height: f64,
    pub title: String,
}

/// The chart and the figures of the last 24 hours.
pub(super) struct DayChart {
    pub bars: Vec<Bar>,
    pub ready: i64,
    pub failed: i64,
    pub median: Option<String>,
    pub p95: Option<String>,
}

impl DayChart {
    pub(super) fn new(day: &Day) -> Self {
        let most = day.hours.iter().map(|h| h.ready + h.failed).max();
        let unit = DAY_HEIGHT / most.unwrap_or(0).max(1) as f64;
        let step = WIDTH / day.hours.len().max(1) as f64;
        let bars = day.hours.iter().enumerate().map(|(n, hour)| {
            let (ready_height, failed_height) =
                (hour.ready as f64 * unit, hour.failed as f64 * unit);
            Bar {
                x: n as f64 * step + 1.0,
                width: step - 2.0,
                ready_y: DAY_HEIGHT - ready_height,
                ready_height,
                failed_y: DAY_HEIGHT - ready_height - failed_height,
                failed_height,
                title: format!(
                    "{} UTC: {} ready, {} failed",
                    Timestamp::from_millisecond(hour.start_ms)
                        .map(|t| t.strftime("%H:00").to_string())
                        .unwrap_or_default(),
                    hour.ready,
                    hour.failed
                ),
            }
        });
        Self {
            bars: bars.collect(),
            ready: day.hours.iter().map(|h| h.ready).sum(),
            failed: day.hours.iter().map(|h| h.failed).sum(),
            median: day.median.map(elapsed),
            p95: day.p95.map(elapsed),
        }
    }
}

/// One step of the last attempt.
pub(super) struct Segment {
    pub x: f64,
    pub width: f64,
    /// The timeline entry that ended it.
    pub step: String,
    pub took: String,
}

/// The last attempt, from its request to its end.
pub(super) struct LastAttempt {
    /// The width of each is proportional to its duration.
    pub segments: Vec<Segment>,
    pub took: String,
}

/// `None` before the first attempt.
pub(super) fn last_attempt(timeline: &[EventView]) -> Option<LastAttempt> {
    let begins = |event: &EventView| event.step.begins_attempt();
    // A request that arrived during or after the last attempt has no attempt of its own yet.
    let start = timeline
        .windows(2)
        .rposition(|pair| begins(&pair[0]) && !begins(&pair[1]))?;
    let mut at = millis(&timeline[start].at).unwrap_or_default();
    let mut steps: Vec<(&str, i64)> = Vec::new();
    let mut is_queued = true;
    for event in timeline[start + 1..].iter().take_while(|e| !begins(e)) {
        let ends = millis(&event.at).unwrap_or(at).max(at);
        let ms = ends - at;
        at = ends;
        // The time before the first step, and before the one after a failure, was spent in the queue.
        let queued = ms - event.ms.unwrap_or(ms);
        if std::mem::replace(&mut is_queued, event.step == Step::Retry) && queued > 0 {
            steps.push(("queued", queued));
            steps.push((event.step.as_str(), ms - queued));
        } else {
            steps.push((event.step.as_str(), ms));
        }
    }
    let total: i64 = steps.iter().map(|(_, ms)| ms).sum();
    let room = (WIDTH - SEGMENT_WIDTH_MIN * steps.len() as f64).max(0.0);
    let mut x = 0.0;
    let segments = steps
        .into_iter()
        .map(|(step, ms)| {
            let width = SEGMENT_WIDTH_MIN + room * ms as f64 / total.max(1) as f64;
            let segment = Segment {
                x,
                width: (width - 1.0).max(1.0),
                step: step.to_owned(),
                took: elapsed(Duration::from_millis(ms as u64)),
            };
            x += width;
            segment
        })
        .collect();
    Some(LastAttempt {
        segments,
        took: elapsed(Duration::from_millis(total as u64)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_attempt_fills_the_width() {
        let event = |second: u32, step: Step| EventView {
            at: format!("2026-01-28T21:12:{second:02}Z"),
            step,
            detail: String::new(),
            ms: None,
        };
        let timeline = [
            event(0, Step::Received),
            event(1, Step::Retry),
            event(10, Step::Requested),
            EventView {
                ms: Some(400),
                ..event(11, Step::Listed)
            },
            event(14, Step::Ready),
            event(20, Step::Requested),
        ];
        let LastAttempt { segments, took } = last_attempt(&timeline).unwrap();
        assert_eq!(took, "4.0 s");
        let steps: Vec<_> = segments
            .iter()
            .map(|s| (s.step.as_str(), s.took.as_str()))
            .collect();
        assert_eq!(
            steps,
            [
                ("queued", "600 ms"),
                ("listed", "400 ms"),
                ("ready", "3.0 s")
            ]
        );
        assert!((segments[2].x + segments[2].width + 1.0 - WIDTH).abs() < 0.01);
        assert!(last_attempt(&timeline[..1]).is_none());
    }
}
