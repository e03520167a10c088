//! `video-ingest videos show`: a video as people read it, the explanation first.

use jiff::Timestamp;
use serde_json::Value;

use super::client::{Detail, Generation, Video};
use super::videos::relative;
use crate::format::{self, Row, length, plain, size};

/// Where values start, in characters.
const INDENT: usize = 14;

/// The video, its facts by their source, and its timeline.
pub(super) fn shown(detail: &Detail, now: Timestamp) -> String {
    let video = &detail.video;
    let mut text = String::new();
    if let Some(explanation) = &detail.explanation {
        text += &format::indented(&[plain(explanation)], 0);
        text.push('\n');
    }
    let at = |at: &str| format!("{} ({})", moment(at), relative(at, now));
    let mut lines = Lines::default();
    lines.add("next attempt", video.next_attempt_at.as_deref().map(at));
    lines.add("what to do", video.advice.clone());
    lines.add("conversation", video.conversation_url.clone());
    text += &lines.section("");
    text += &state(detail, now).section("");
    text += &video
        .generation
        .as_ref()
        .map_or_else(String::new, |agent| generation(agent, now).section("Agent"));
    text += &measured(video).section("Measured");
    text += &claimed(detail).section("Stated by the JSON file");
    let mut links = Lines::default();
    for (name, link) in detail
        .links
        .iter()
        .filter(|(name, _)| *name != "conversation")
    {
        links.add(name, link.clone());
    }
    text += &links.section("Links");
    if !detail.timeline.is_empty() {
        text += &timeline(detail);
    }
    text.trim_end().to_owned() + "\n"
}

/// Names and values.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            let lines = format::indented(&[plain(&value)], INDENT);
            self.0 += &format!("{:<INDENT$}{}", plain(name), lines.trim_start());
        }
    }

    /// Nothing if there is no line.
    fn section(self, title: &str) -> String {
        match (self.0.is_empty(), title) {
            (true, _) => String::new(),
            (false, "") => self.0 + "\n",
            (false, title) => format!("{title}:\n{}\n", self.0),
        }
    }
}

fn state(detail: &Detail, now: Timestamp) -> Lines {
    let video = &detail.video;
    let mut lines = Lines::default();
    lines.add("video", Some(video.video_id.clone()));
    let title = video.lesson_title.as_ref();
    let title = title.map_or_else(String::new, |title| format!(" ({title})"));
    lines.add("lesson", Some(format!("{}{title}", video.lesson_id)));
    let changed = relative(&video.updated_at, now);
    lines.add("state", Some(format!("{}, changed {changed}", video.state)));
    lines.add("code", video.code.clone());
    let explanation = detail.explanation.as_deref().unwrap_or_default();
    let message = video.message.as_ref();
    let message = message.filter(|message| !explanation.contains(message.as_str()));
    lines.add("message", message.cloned());
    lines.add("requested by", video.source.clone());
    lines.add("attempts", Some(video.attempts.to_string()));
    for delivery in &detail.deliveries {
        lines.add("delivery", Some(delivery.clone()));
    }
    lines
}

fn generation(agent: &Generation, now: Timestamp) -> Lines {
    let mut lines = Lines::default();
    let at = |at: &String| format!("{} ({})", moment(at), relative(at, now));
    lines.add("status", Some(agent.status.replace('_', " ")));
    lines.add("detail", Some(agent.detail.clone()));
    lines.add("asked", agent.checked_at.as_ref().map(at));
    lines.add("deadline", agent.deadline_at.as_ref().map(at));
    lines
}

fn measured(video: &Video) -> Lines {
    let mut lines = Lines::default();
    let bytes = video.size_bytes;
    lines.add(
        "size",
        bytes.map(|bytes| format!("{bytes} bytes ({})", size(bytes))),
    );
    let duration = video.duration_ms;
    lines.add(
        "duration",
        duration.map(|ms| format!("{ms} ms ({})", length(ms))),
    );
    lines.add("stored", video.storage_path.clone());
    lines.add("commit", video.commit.clone());
    lines
}

/// What the video's JSON file says. Nobody has checked it, except for the differences in the warnings.
fn claimed(detail: &Detail) -> Lines {
    let mut lines = Lines::default();
    for (name, value) in detail.metadata.iter().flatten() {
        let is_id = ["lesson_id", "video_id"].contains(&name.as_str());
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        lines.add(name, (!is_id).then_some(text));
    }
    for warning in detail.warnings.iter().flatten() {
        lines.add("warning", Some(warning.clone()));
    }
    lines
}

/// Date and time to the millisecond, in UTC.
pub(super) fn moment(at: &str) -> String {
    match at.parse::<Timestamp>() {
        Ok(at) => at.strftime("%F %T%.3f").to_string(),
        Err(_) => plain(at),
    }
}

fn timeline(detail: &Detail) -> String {
    let rows: Vec<Row> = detail
        .timeline
        .iter()
        .map(|event| Row {
            cells: vec![
                moment(&event.at),
                event.ms.map_or_else(String::new, |ms| format!("{ms} ms")),
                plain(&event.step),
                plain(&event.detail),
            ],
            notes: Vec::new(),
        })
        .collect();
    format::table(&["TIME (UTC)", "TOOK", "STEP", "DETAILS"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_explanation_comes_first_and_claims_are_apart_from_measurements() {
        let detail = json!({
            "video_id": "0beee2d2-ace7-4ccf-81a7-41a6c43c1a75", "lesson_id": "34b9a0c7",
            "state": "failed", "code": "truncated", "message": "The file ends early.",
            "updated_at": "2026-01-28T11:55:00Z", "attempts": 1, "size_bytes": 9000,
            "duration_ms": 1500, "advice": "Render it again.",
            "next_attempt_at": "2026-01-28T12:05:00Z",
            "explanation": "The file is incomplete.",
            "metadata": {"duration_sec": 2.5, "video_id": "0beee2d2"},
            "links": {"commit": "https://github.com/acme/videos/commit/4b825dc", "row": null},
            "timeline": [{"at": "2026-01-28T11:54:59.5Z", "step": "listed", "detail": "head 4b825dc", "ms": 12}],
            "deliveries": [], "warnings": []
        });
        let detail: Detail = serde_json::from_value(detail).unwrap();
        let text = shown(&detail, "2026-01-28T12:00:00Z".parse().unwrap());
        let expected = "\
            The file is incomplete.\n\n\
            next attempt  2026-01-28 12:05:00.000 (in 5 min)\n\
            what to do    Render it again.\n\n\
            video         0beee2d2-ace7-4ccf-81a7-41a6c43c1a75\n\
            lesson        34b9a0c7\n\
            state         failed, changed 5 min ago\n\
            code          truncated\n\
            message       The file ends early.\n\
            attempts      1\n\n\
            Measured:\n\
            size          9000 bytes (9.0 kB)\n\
            duration      1500 ms (0:02)\n\n\
            Stated by the JSON file:\n\
            duration_sec  2.5\n\n\
            Links:\n\
            commit        https://github.com/acme/videos/commit/4b825dc\n\n\
            TIME (UTC)               TOOK   STEP    DETAILS\n\
            2026-01-28 11:54:59.500  12 ms  listed  head 4b825dc\n";
        assert_eq!(text, expected);
    }
}
