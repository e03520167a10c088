//! One sentence about a video: what it waits for, since when, until when, who was asked last and when next.
//! The API, the status page and the command line show the same sentence.

use jiff::Timestamp;

use super::failure::{Class, Code};
use super::generation::GenerationStatus;
use super::state::VideoState;
use crate::format::capitalized;

/// The facts about a video that explain its state. Times are in milliseconds since the Unix epoch.
#[derive(Clone, Debug, Default)]
pub struct Situation<'a> {
    /// The current time.
    pub now_ms: i64,
    /// The state; `None` means generating.
    pub state: Option<VideoState>,
    /// The reason why the video failed or waits.
    pub code: Option<Code>,
    /// The reason in words.
    pub message: Option<&'a str>,
    /// When the state, the failure or the files changed.
    pub changed_ms: i64,
    /// When the video was last requested.
    pub requested_ms: Option<i64>,
    /// When the server tries it again without a request.
    pub next_attempt_ms: Option<i64>,
    /// When the app inserted the row.
    pub row_created_ms: Option<i64>,
    /// When the video fails unless it was pushed before.
    pub deadline_ms: Option<i64>,
    /// What OpenHands last said, and when it was last asked.
    pub agent: Option<(&'a GenerationStatus, i64)>,
    /// Why OpenHands is not asked; `None` if it is.
    pub not_asked: Option<&'a str>,
    /// When the next sweep asks it.
    pub next_sweep_ms: Option<i64>,
    /// Why the server may not see what is pushed, in sentences; `None` if it does.
    pub unseen_pushes: Option<&'a str>,
    /// Whether no video is being processed.
    pub has_idle_queue: bool,
}

/// If no video is being processed, a worker claims a due video earlier.
const IDLE_MAX_MS: i64 = 60_000;

impl Situation<'_> {
    /// The sentence.
    pub fn explanation(&self) -> String {
        match self.state.unwrap_or(VideoState::Generating) {
            VideoState::Generating => self.generating(),
            VideoState::Queued => self.queued(),
            VideoState::Running => format!(
                "A worker is processing the video, which was requested {}.",
                self.at(self.requested_ms.unwrap_or(self.changed_ms))
            ),
            VideoState::Waiting => self.waiting(),
            VideoState::Ready => format!("Ready since {}.", self.time(self.changed_ms)),
            VideoState::Failed => self.failed(),
        }
    }

    fn generating(&self) -> String {
        let since = self.row_created_ms.unwrap_or(self.changed_ms);
        let since = self.time(since);
        let waits = match self.agent {
            Some((GenerationStatus::Blocked { reason }, asked)) => format!(
                "Waiting since {since} for the agent, which needs a person to continue (as of {}): {reason}",
                self.time(asked)
            ),
            Some((GenerationStatus::Finished, asked)) => format!(
                "Waiting for the agent's push: OpenHands reported {} that the agent has finished",
                self.at(asked)
            ),
            Some((GenerationStatus::Generating, asked)) => format!(
                "Waiting since {since} for the agent to push the video; OpenHands reported {} that it is working",
                self.at(asked)
            ),
            Some((status, asked)) => format!(
                "Waiting since {since} for the agent to push the video; OpenHands was last asked {} ({})",
                self.at(asked),
                status.reason()
            ),
            None => format!("Waiting since {since} for the agent to push the video"),
        };
        let asks = match (self.not_asked, self.next_sweep_ms) {
            (Some(reason), _) => format!("; OpenHands is not asked, because {reason}"),
            (None, Some(next)) => format!("; OpenHands is asked again {}", self.at(next)),
            (None, None) => String::new(),
        };
        let until = match self.deadline_ms {
            None => String::new(),
            Some(deadline) if deadline > self.now_ms => {
                format!("; without a push, the video fails {}", self.at(deadline))
            }
            Some(deadline) => format!(
                "; its deadline was {}, and the next successful sweep marks it as failed",
                self.at(deadline)
            ),
        };
        let unseen = self.unseen_pushes.map_or_else(String::new, |problem| {
            format!("The server may not see what was pushed: {problem} ")
        });
        format!("{unseen}{waits}{asks}{until}.")
    }

    fn queued(&self) -> String {
        let requested = self.requested_ms.unwrap_or(self.changed_ms);
        match (self.next_attempt_ms, self.reason()) {
            (Some(next), Some(reason)) => format!(
                "The last attempt failed, and the next one starts {}: {reason}",
                self.at(next)
            ),
            _ if self.has_idle_queue && self.now_ms - requested > IDLE_MAX_MS => format!(
                "Queued since {}, but no worker has taken it; check that a server with WORKERS greater than 0 is running.",
                self.time(requested)
            ),
            _ => format!(
                "Queued since {}; the next free worker processes it.",
                self.time(requested)
            ),
        }
    }

    fn waiting(&self) -> String {
        let waits = self.reason();
        let waits = waits
            .as_deref()
            .unwrap_or("Its other file or its row is missing.");
        let until = match (self.code, self.next_attempt_ms) {
            (Some(Code::MetadataMissing), Some(next)) => {
                format!(" It is ingested without the JSON {}.", self.at(next))
            }
            (_, Some(next)) => format!(" Without it, the video fails {}.", self.at(next)),
            _ => String::new(),
        };
        format!(
            "Waiting since {}: {waits}{until}",
            self.time(self.changed_ms)
        )
    }

    fn failed(&self) -> String {
        let then = match (self.code.map(Code::class), self.next_attempt_ms) {
            (Some(Class::Configuration), Some(next)) => format!(
                " The video is retried {}, or when a sweep finds that the cause has changed.",
                self.at(next)
            ),
            (_, Some(next)) => format!(" The video is retried {}.", self.at(next)),
            (Some(Class::Invalid), None) => {
                " The video is retried when one of its files is pushed again.".to_owned()
            }
            (Some(Class::Expired), None) => {
                " The video is retried when its files are pushed.".to_owned()
            }
            (_, None) => {
                " The video is retried when a sweep finds that the cause has changed.".to_owned()
            }
        };
        let reason = self.reason();
        let reason = reason.as_deref().unwrap_or("No reason was recorded.");
        format!("Failed {}: {reason}{then}", self.at(self.changed_ms))
    }

    /// The message as a sentence.
    fn reason(&self) -> Option<String> {
        let message = self.message?.trim_end_matches('.');
        (!message.is_empty()).then(|| format!("{}.", capitalized(message)))
    }

    /// A time of day in UTC, with the date unless it is today's.
    fn time(&self, ms: i64) -> String {
        self.formatted(ms, "%H:%M UTC", "%F %H:%M UTC")
    }

    /// [`Self::time`] with its preposition.
    fn at(&self, ms: i64) -> String {
        self.formatted(ms, "at %H:%M UTC", "on %F at %H:%M UTC")
    }

    fn formatted(&self, ms: i64, today: &str, other: &str) -> String {
        let at = Timestamp::from_millisecond(ms).unwrap_or_default();
        let now = Timestamp::from_millisecond(self.now_ms).unwrap_or_default();
        let date = |time: Timestamp| time.strftime("%F").to_string();
        let is_today = date(at) == date(now);
        at.strftime(if is_today { today } else { other })
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn at(text: &str) -> i64 {
        let time: Timestamp = format!("2026-01-28T{text}:00Z").parse().unwrap();
        time.as_millisecond()
    }

    fn generating<'a>() -> Situation<'a> {
        Situation {
            now_ms: at("21:20"),
            row_created_ms: Some(at("21:00")),
            deadline_ms: Some(at("21:00") + 360 * MINUTE),
            next_sweep_ms: Some(at("21:22")),
            ..Situation::default()
        }
    }

    #[test]
    fn a_generating_video_says_what_it_waits_for() {
        let asked = at("21:17");
        let until = "without a push, the video fails on 2026-01-29 at 03:00 UTC.";
        let paused = GenerationStatus::blocked("the agent's sandbox was paused");
        let cases = [
            (
                Some(GenerationStatus::Generating),
                None,
                "Waiting since 21:00 UTC for the agent to push the video; OpenHands reported at 21:17 UTC that it is working; OpenHands is asked again at 21:22 UTC;",
            ),
            (
                Some(GenerationStatus::Finished),
                None,
                "Waiting for the agent's push: OpenHands reported at 21:17 UTC that the agent has finished; OpenHands is asked again at 21:22 UTC;",
            ),
            (
                Some(paused),
                None,
                "Waiting since 21:00 UTC for the agent, which needs a person to continue (as of 21:17 UTC): the agent's sandbox was paused; OpenHands is asked again at 21:22 UTC;",
            ),
            (
                None,
                Some("OPENHANDS_API_KEY is not set"),
                "Waiting since 21:00 UTC for the agent to push the video; OpenHands is not asked, because OPENHANDS_API_KEY is not set;",
            ),
        ];
        for (status, not_asked, expected) in cases {
            let situation = Situation {
                agent: status.as_ref().map(|status| (status, asked)),
                not_asked,
                ..generating()
            };
            assert_eq!(situation.explanation(), format!("{expected} {until}"));
        }
    }

    #[test]
    fn every_other_state_says_what_happens_next() {
        let changed_ms = at("21:00");
        let next = Some(at("21:25"));
        let with = |state, code, next_attempt_ms| {
            Situation {
                now_ms: at("21:20"),
                state: Some(state),
                code,
                message: code.map(|_| "the reason"),
                changed_ms,
                next_attempt_ms,
                ..Situation::default()
            }
            .explanation()
        };
        use VideoState::*;
        for (state, code, next, expected) in [
            (
                Queued,
                None,
                None,
                "Queued since 21:00 UTC; the next free worker processes it.",
            ),
            (
                Queued,
                Some(Code::StorageUnavailable),
                next,
                "The last attempt failed, and the next one starts at 21:25 UTC: The reason.",
            ),
            (
                Running,
                None,
                None,
                "A worker is processing the video, which was requested at 21:00 UTC.",
            ),
            (
                Waiting,
                Some(Code::NoRow),
                next,
                "Waiting since 21:00 UTC: The reason. Without it, the video fails at 21:25 UTC.",
            ),
            (
                Waiting,
                Some(Code::MetadataMissing),
                next,
                "Waiting since 21:00 UTC: The reason. It is ingested without the JSON at 21:25 UTC.",
            ),
            (Ready, None, None, "Ready since 21:00 UTC."),
            (
                Failed,
                Some(Code::Truncated),
                None,
                "Failed at 21:00 UTC: The reason. The video is retried when one of its files is pushed again.",
            ),
            (
                Failed,
                Some(Code::BucketMissing),
                next,
                "Failed at 21:00 UTC: The reason. The video is retried at 21:25 UTC, or when a sweep finds that the cause has changed.",
            ),
            (
                Failed,
                Some(Code::GenerationFailed),
                None,
                "Failed at 21:00 UTC: The reason. The video is retried when its files are pushed.",
            ),
        ] {
            assert_eq!(with(state, code, next), expected);
        }
    }
}
