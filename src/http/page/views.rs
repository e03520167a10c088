//! What the pages show: videos as table rows, the chart of the last 24 hours and the bar of the last
//! attempt, with times, sizes and durations as text.

use std::time::Duration;

use jiff::Timestamp;

use crate::db::{Day, EventView, VideoView};
use crate::domain::advice::advice;
use crate::domain::state::VideoState;

/// The width of both charts in SVG units. The style sheet scales them.
const WIDTH: f64 = 480.0;

/// The height of the chart of the last 24 hours, in SVG units.
const DAY_HEIGHT: f64 = 64.0;

/// The minimum width of a step, so that short steps stay visible.
const SEGMENT_WIDTH_MIN: f64 = 3.0;

/// A moment, for people and for machines.
pub(super) struct Moment {
    /// RFC 3339.
    pub iso: String,
    /// `3 min`
    pub ago: String,
    /// `2026-01-28 21:12:12 UTC`
    pub said: String,
}

impl Moment {
    pub(super) fn at(ms: i64, now_ms: i64) -> Self {
        let moment = Timestamp::from_millisecond(ms).unwrap_or_default();
        Self {
            iso: moment.to_string(),
            said: moment.strftime("%F %T UTC").to_string(),
            ago: match now_ms.saturating_sub(ms).max(0) / 1000 {
                s @ ..10 => format!("{s} s"),
                s => took(Duration::from_secs(s as u64)),
            },
        }
    }

    /// From a timestamp as the API spells it.
    pub(super) fn parse(text: &str, now_ms: i64) -> Self {
        Self::at(millis(text).unwrap_or(now_ms), now_ms)
    }
}

fn millis(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(|t| t.as_millisecond())
}

/// `850 ms`, `3.2 s`, `12 min`, `3 h`, `2 d`
pub(super) fn took(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0 => format!("{} ms", time.as_millis()),
        1..=9 => format!("{:.1} s", time.as_secs_f64()),
        10..=99 => format!("{s} s"),
        100..=5_999 => format!("{} min", s / 60),
        6_000..=172_799 => format!("{} h", s / 3600),
        _ => format!("{} d", s / 86_400),
    }
}

/// `42.1 MB`
pub(super) fn size(bytes: i64) -> String {
    match bytes {
        ..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// `1:05`, as players show it.
pub(super) fn length(ms: i64) -> String {
    let s = (ms + 500) / 1000;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

/// A video as pages show it.
pub(super) struct VideoRow {
    pub video: VideoView,
    pub size: String,
    pub length: String,
    pub changed: Moment,
    pub created: Moment,
    /// What to do about the failure.
    pub advice: Option<&'static str>,
}

impl VideoRow {
    pub(super) fn new(video: VideoView, now_ms: i64) -> Self {
        Self {
            size: video.size_bytes.map(size).unwrap_or_default(),
            length: video.duration_ms.map(length).unwrap_or_default(),
            changed: Moment::parse(&video.updated_at, now_ms),
            created: Moment::parse(&video.created_at, now_ms),
            advice: video.code.map(advice),
            video,
        }
    }

    /// The reason for the state, if there is one.
    pub(super) fn reason(&self) -> Option<String> {
        let message = self.video.message.as_deref();
        if self.video.state == VideoState::Generating {
            return Some(message.unwrap_or("No file has been pushed yet.").to_owned());
        }
        message.map(capitalized)
    }
}

pub(super) fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    rest.next()
        .map(|first| first.to_uppercase().chain(rest).collect())
        .unwrap_or_default()
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
            median: day.median.map(took),
            p95: day.p95.map(took),
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
    for event in timeline[start + 1..].iter().take_while(|e| !begins(e)) {
        let ends = millis(&event.at).unwrap_or(at).max(at);
        let ms = ends - at;
        at = ends;
        // The time before the first step began was spent in the queue.
        let queued = ms - event.ms.unwrap_or(ms);
        if steps.is_empty() && queued > 0 {
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
                took: took(Duration::from_millis(ms as u64)),
            };
            x += width;
            segment
        })
        .collect();
    Some(LastAttempt {
        segments,
        took: took(Duration::from_millis(total as u64)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::timeline::Step;

    #[test]
    fn numbers_are_said_shortly() {
        let said = |ms| took(Duration::from_millis(ms));
        assert_eq!(
            [850, 3_210, 42_000, 750_000, 10_900_000, 260_000_000].map(said),
            ["850 ms", "3.2 s", "42 s", "12 min", "3 h", "3 d"]
        );
        assert_eq!(
            [999, 12_345, 42_100_000].map(size),
            ["999 B", "12 kB", "42.1 MB"]
        );
        assert_eq!(
            [30_033, 65_500, 3_723_000].map(length),
            ["0:30", "1:06", "1:02:03"]
        );
    }

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
