use super::*;

/// A file of test cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    meaning: String,
    now: jiff::Timestamp,
    cases: Vec<Case>,
}

/// Responses of the API and the expected status.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    conversation: Option<Conversation>,
    events: Option<EventPage>,
    start_task: Option<StartTask>,
    v0_conversation: Option<V0Conversation>,
    v0_events: Option<V0EventPage>,
    reading: String,
    reason: String,
}

impl Case {
    /// The status, and whether the events are required for it.
    fn read(&self, now_ms: i64) -> (GenerationStatus, bool) {
        let status = match (&self.conversation, &self.start_task, &self.v0_conversation) {
            (Some(row), None, None) => row.status(now_ms),
            (None, Some(task), None) => match task.outcome(&Redactor::default()) {
                Start::Says(reading) => Status::Says(reading),
                Start::Conversation(id) => {
                    Status::Says(GenerationStatus::unknown(format!("follow {}", id.simple())))
                }
            },
            (None, None, Some(row)) => row.status(),
            _ => panic!("a case has one response"),
        };
        let needs_events = !matches!(status, Status::Says(_));
        let v1 = self.events.as_ref().and_then(EventPage::state);
        let last = v1.or_else(|| self.v0_events.as_ref().and_then(V0EventPage::state));
        (
            status.settle(last.map_or(LastState::Never, LastState::Is)),
            needs_events,
        )
    }
}

#[test]
fn every_fixture_has_its_expected_status() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/openhands");
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let row: Row = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        for (number, case) in row.cases.iter().enumerate() {
            let at = format!("{path:?}, case {number} ({})", row.meaning);
            let (reading, needs_events) = case.read(row.now.as_millisecond());
            let actual = (reading.as_str(), reading.reason());
            assert_eq!(actual, (&*case.reading, &*case.reason), "{at}");
            let has_events = case.events.is_some() || case.v0_events.is_some();
            assert_eq!(
                needs_events, has_events,
                "{at}: events are read only if required"
            );
            cases += 1;
        }
    }
    assert_eq!(cases, FIXTURE_CASES, "a fixture is missing");
}

const FIXTURE_CASES: usize = 74;

#[test]
fn every_status_is_one_sentence_without_a_prefix() {
    let stored = GenerationStatus::from_stored;
    let next = "open its conversation in OpenHands to let it continue.";
    for (kind, reason, expected) in [
        ("generating", "", "The agent is working on it.".to_owned()),
        (
            "failed",
            "the agent got stuck",
            "The agent got stuck.".into(),
        ),
        (
            "failed",
            "OpenHands said: no!",
            "OpenHands said: no!".into(),
        ),
        (
            "blocked",
            "the agent's sandbox was paused",
            format!("The agent's sandbox was paused; {next}"),
        ),
        (
            "unknown",
            "the agent has not reported its state",
            "The agent has not reported its state.".into(),
        ),
        // As stored by earlier releases.
        (
            "unknown",
            "blocked: the agent is waiting for confirmation",
            format!("The agent is waiting for confirmation; {next}"),
        ),
    ] {
        let status = stored(kind, reason.into());
        assert_eq!(status.sentence(), expected);
        assert_eq!(status.needs_person(), expected.ends_with(next));
    }
    let read = stored("unknown", "blocked: x".into());
    assert_eq!((read.as_str(), read.reason()), ("blocked", "x"));
}

#[test]
fn an_error_event_explains_a_failed_run() {
    let redactor = Redactor::new(["a secret"]);
    let explained = |status: &GenerationStatus, event: serde_json::Value| {
        let mut status = status.clone();
        status.explain(&serde_json::from_value(event).unwrap(), &redactor);
        status.failure()
    };
    let failed = execution("error");
    let event = |detail: &str| {
        serde_json::json!({"code": "LLMAuthenticationError", "detail": detail,
            "classification": {"kind": "auth", "retryable": false}})
    };
    let start = "OpenHands reported an error (LLMAuthenticationError, auth)";
    assert_eq!(
        explained(&failed, event("Key a secret\nis wrong.")),
        format!("{start}: Key [redacted] is wrong.")
    );
    assert_eq!(explained(&failed, event("")), format!("{start}."));
    assert_eq!(
        explained(&execution("stuck"), event("Loop")),
        format!("Video generation failed: the agent got stuck; {start}: Loop.")
    );
    let long = explained(&failed, event(&"é".repeat(301)));
    assert_eq!(long, format!("{start}: {}…", "é".repeat(300)));
    for (event, expected) in [
        (
            serde_json::json!({"code": 7, "classification": "auth", "detail": "No."}),
            "OpenHands reported an error: No.",
        ),
        (
            serde_json::json!({"code": "a secret", "detail": null}),
            "Video generation failed: the agent stopped with an error.",
        ),
    ] {
        assert_eq!(explained(&failed, event), expected);
    }
    let gone = GenerationStatus::failed("the agent's sandbox is missing");
    assert_eq!(
        explained(&gone, event("Loop")),
        "Video generation failed: the agent's sandbox is missing."
    );
}

#[test]
fn a_conversation_has_a_web_page() {
    let id = "4F1C2B7E-9d3a-4c5f-8e6b-0a1d2c3b4a59";
    let page = |url: &str| conversation_url(url, id);
    let expected = "https://app.example/conversations/4f1c2b7e9d3a4c5f8e6b0a1d2c3b4a59";
    assert_eq!(page("https://app.example").as_deref(), Some(expected));
    assert_eq!(page("https://app.example/").as_deref(), Some(expected));
    assert!(page("HTTP://127.0.0.1:3000").is_some());
    for other in ["javascript:alert(1)//", "", "ftp://app.example", "é"] {
        assert_eq!(page(other), None, "{other}");
    }
    assert_eq!(conversation_url("https://app.example", "../admin"), None);
}

#[test]
fn a_state_beyond_the_page_limit_is_unknown() {
    for status in [Status::Live, Status::Over(GenerationStatus::failed("gone"))] {
        let reading = status.settle(LastState::OutOfReach);
        assert_eq!(reading.as_str(), "unknown");
    }
}

#[test]
fn fields_of_unexpected_types_are_absent() {
    let text = r#"{"id":7,"sandbox_status":"RUNNING","execution_status":{"a":1},"extra":[]}"#;
    let row: Conversation = serde_json::from_str(text).unwrap();
    assert_eq!(row.id, None);
    assert_eq!(
        row.status(0),
        Conversation {
            sandbox_status: Some("RUNNING".into()),
            ..Default::default()
        }
        .status(0)
    );
}

#[test]
fn only_plain_text_of_the_server_is_shown() {
    let displayable = |text: &str| displayable(text, &Redactor::default());
    let shown = |text: &str| displayable(text).unwrap_or_default();
    assert_eq!(shown("Sandbox quota reached"), "Sandbox quota reached");
    assert_eq!(
        shown("1 validation error\n  input_value='Make a video'"),
        "1 validation error"
    );
    assert_eq!(
        shown("401 for url https://10.0.0.7/x?key=k"),
        "401 for url …"
    );
    assert_eq!(shown(&format!("bad key {}", "k".repeat(31))), "bad key …");
    assert_eq!(
        shown(&"éx ".repeat(200)).chars().count(),
        DETAIL_CHARS_MAX + 1
    );
    for nothing in [
        "",
        " \n ",
        "<html><body>502</body></html>",
        "{\"prompt\":\"x\"}",
    ] {
        assert_eq!(displayable(nothing), None, "{nothing}");
    }
}

#[test]
fn an_id_is_32_digits_or_a_uuid() {
    let id = Uuid::from_u128(0x34b9_a0c7_62d7_4002_a642_0048_8b2c_7f7c);
    for spelling in [
        id.simple().to_string(),
        id.to_string(),
        id.to_string().to_uppercase(),
    ] {
        assert_eq!(conversation_id(&spelling), Some(id), "{spelling}");
    }
    for other in [
        id.braced().to_string(),
        id.urn().to_string(),
        "../../admin".into(),
        "é".repeat(16),
    ] {
        assert_eq!(conversation_id(&other), None, "{other}");
    }
}
