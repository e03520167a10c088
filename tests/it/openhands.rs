//! The OpenHands client reads the status of conversations despite the API's quirks, and its errors never
//! become a status.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use uuid::Uuid;
use video_ingest::clock::Clock;
use video_ingest::domain::generation::OpenHandsVersion;
use video_ingest::domain::redact::Redactor;
use video_ingest::services::openhands::{self, Pacing, Probed, Rate};

use crate::logs::Log;
use crate::scenario;
use crate::support::fake_openhands::{
    FakeOpenHands, Fault, KEY, PAGE, PROMPT, SESSION_KEY, Server,
};
use crate::support::scenario::ADMIN_TOKEN;
use crate::sweep::{generating, outcome, sweep};

/// Ids of conversations, in the order in which they are requested.
fn id(n: u128) -> Uuid {
    Uuid::from_u128(0x4f1c_2b7e_9d3a_4c5f_8e6b_0000_0000_0000 + n)
}

fn texts(ids: impl IntoIterator<Item = u128>) -> Vec<String> {
    ids.into_iter().map(|n| id(n).to_string()).collect()
}

/// The limits of production, without its pauses.
fn fast_pacing() -> Pacing {
    let rate = Rate {
        calls: 1000,
        per: Duration::from_secs(1),
    };
    Pacing {
        rates: [rate; 2],
        ..Pacing::default()
    }
}

struct Scenario {
    api: FakeOpenHands,
    agent: openhands::OpenHands,
    clock: Clock,
}

async fn scenario_with(version: OpenHandsVersion, pacing: Pacing) -> Scenario {
    let server = match version {
        OpenHandsVersion::V1 => Server::Cloud,
        OpenHandsVersion::V0 => Server::SelfHosted,
    };
    let api = FakeOpenHands::start(server).await;
    let clock = Clock::default();
    let key = SecretString::from(KEY);
    let agent = openhands::OpenHands::new(
        &api.url,
        key,
        version,
        Redactor::new([KEY]),
        clock.clone(),
        pacing,
    )
    .unwrap();
    Scenario { api, agent, clock }
}

async fn scenario(version: OpenHandsVersion) -> Scenario {
    scenario_with(version, fast_pacing()).await
}

impl Scenario {
    async fn probe(&self, ids: impl IntoIterator<Item = u128>) -> Probed {
        self.agent.probe(&texts(ids)).await
    }
}

/// The status of one id, with its reason.
fn read(probed: &Probed, n: u128) -> String {
    match probed.statuses.get(&id(n).to_string()) {
        None => "no status".into(),
        Some(status) if status.reason().is_empty() => status.as_str().into(),
        Some(status) => format!("{}: {}", status.as_str(), status.reason()),
    }
}

fn codes(probed: &Probed) -> Vec<&str> {
    assert!(probed.errors.iter().all(|e| e.service == "openhands"));
    probed.errors.iter().map(|e| e.code).collect()
}

#[tokio::test]
async fn one_call_covers_many_ids_and_events_are_read_only_when_needed() {
    let s = scenario(OpenHandsVersion::V1).await;
    s.api.conversation(id(1), "RUNNING", Some("running"));
    s.api.conversation(id(2), "RUNNING", Some("finished"));
    s.api.conversation(id(3), "RUNNING", Some("stuck"));
    s.api.conversation(id(4), "PAUSED", None);
    s.api.state(id(4), "running");
    s.api.state(id(4), "finished");
    s.api.conversation(id(5), "MISSING", None);

    let probed = s.probe(1..=5).await;

    assert_eq!(read(&probed, 1), "generating");
    assert_eq!(read(&probed, 2), "finished");
    assert_eq!(read(&probed, 3), "failed: the agent got stuck");
    assert_eq!(read(&probed, 4), "finished");
    assert_eq!(read(&probed, 5), "failed: the agent's sandbox is missing");
    assert_eq!(codes(&probed), [""; 0]);
    let calls = s.api.calls();
    assert_eq!(calls.len(), 4, "{calls:?}");
    let state = "kind__eq=ConversationStateUpdateEvent";
    for (call, n, kind) in [(1, 4, state), (2, 5, state), (3, 3, ERROR_EVENTS)] {
        let path = format!("/{}/events/search?{kind}", id(n).simple());
        assert!(calls[call].contains(&path), "{calls:?}");
    }
}

/// The query for the errors of a conversation.
const ERROR_EVENTS: &str = "kind__eq=ConversationErrorEvent&sort_order=TIMESTAMP_DESC&limit=1";

#[tokio::test]
async fn a_failed_run_has_the_agents_own_error() {
    let s = scenario(OpenHandsVersion::V1).await;
    s.api.conversation(id(1), "RUNNING", Some("error"));
    s.api.error(id(1), "Old", "transient", "an earlier one");
    s.api
        .error(id(1), "LLMAuthenticationError", "auth", "Invalid key");
    s.api.conversation(id(2), "PAUSED", None);
    s.api.state(id(2), "stuck");
    s.api
        .error(id(2), "StuckDetected", "agent", "The same action 4 times.");
    s.api.conversation(id(3), "ERROR", None);
    s.api.error(id(3), "Old", "transient", "not the cause");
    s.api.start_task(id(4), "READY", None, Some(id(40)));
    s.api.conversation(id(40), "RUNNING", Some("error"));
    s.api.error(id(40), "LLMError", "quota", "Out of credits");

    let probed = s.probe(1..=4).await;

    let expected = [
        "failed: OpenHands reported an error (LLMAuthenticationError, auth): Invalid key",
        "failed: the agent got stuck; OpenHands reported an error (StuckDetected, agent): The same action 4 times.",
        "failed: the agent's sandbox failed",
        "failed: OpenHands reported an error (LLMError, quota): Out of credits",
    ];
    assert_eq!([1, 2, 3, 4].map(|n| read(&probed, n)), expected);
    let errors = s.api.calls();
    let errors = errors.iter().filter(|call| call.contains(ERROR_EVENTS));
    assert_eq!(errors.count(), 3, "one for each failed run");
}

#[tokio::test]
async fn an_error_that_cannot_be_read_changes_no_status() {
    for fault in [
        Fault::Status(500),
        Fault::Status(401),
        Fault::TooMany(Some(7)),
        Fault::Html,
        Fault::Json("{}"),
        Fault::Json("{\"items\":[]}"),
        Fault::Json("{\"items\":[{\"code\":{},\"detail\":7}]}"),
    ] {
        let s = scenario(OpenHandsVersion::V1).await;
        for n in 1..=99 {
            s.api.conversation(id(n), "RUNNING", Some("error"));
        }
        s.api.conversation(id(100), "RUNNING", Some("running"));
        s.api.fault("ConversationErrorEvent", fault);
        let probed = s.probe(1..=100).await;
        assert_eq!(read(&probed, 1), "failed: the agent stopped with an error");
        assert_eq!(read(&probed, 100), "generating", "{fault:?}");
        assert_eq!(probed.statuses.len(), 100);
        assert_eq!(codes(&probed), [""; 0], "no status is missing");
        let calls = s.api.calls().len();
        let is_valid = matches!(fault, Fault::Json(text) if text.contains("items"));
        assert_eq!(calls > 2 + 3, is_valid, "{fault:?}: {calls} calls");
    }
}

#[tokio::test]
async fn ids_are_requested_in_batches_of_99() {
    let s = scenario(OpenHandsVersion::V1).await;
    for n in 0..250 {
        s.api.conversation(id(n), "STARTING", None);
    }
    let probed = s.probe(0..250).await;
    assert_eq!(probed.statuses.len(), 250);
    assert_eq!(codes(&probed), [""; 0]);
    let sizes: Vec<_> = s
        .api
        .calls()
        .iter()
        .map(|c| c.matches("ids=").count())
        .collect();
    assert_eq!(sizes, [99, 99, 52]);
}

#[tokio::test]
async fn both_id_spellings_are_accepted_and_nothing_else_reaches_a_url() {
    for version in [OpenHandsVersion::V1, OpenHandsVersion::V0] {
        let s = scenario(version).await;
        s.api.conversation(id(1), "STARTING", None);
        s.api.v0(id(1), "STARTING");
        let spellings = [
            id(1).to_string(),
            id(1).simple().to_string(),
            "../../admin".into(),
        ];

        let probed = s.agent.probe(&spellings).await;

        let said: Vec<_> = spellings
            .iter()
            .map(|t| probed.statuses[t].as_str())
            .collect();
        assert_eq!(said, ["generating", "generating", "unknown"]);
        assert_eq!(s.api.calls().len(), 1);
        s.agent.probe(&spellings[2..]).await;
        assert_eq!(s.api.calls(), [""; 0]);
    }
}

#[tokio::test]
async fn a_start_task_is_resolved_to_its_conversation() {
    let s = scenario(OpenHandsVersion::V1).await;
    s.api.start_task(id(1), "WAITING_FOR_SANDBOX", None, None);
    s.api
        .start_task(id(2), "ERROR", Some("Sandbox quota reached"), None);
    s.api.start_task(id(3), "READY", None, Some(id(30)));
    s.api.conversation(id(30), "RUNNING", Some("finished"));
    s.api.start_task(id(4), "READY", None, Some(id(40)));
    s.api.conversation(id(40), "PAUSED", None);
    s.api.state(id(40), "error");
    s.api.start_task(id(5), "READY", None, Some(id(50)));

    let probed = s.probe(1..=6).await;

    assert_eq!(read(&probed, 1), "generating");
    assert_eq!(
        read(&probed, 2),
        "failed: the agent could not start: Sandbox quota reached"
    );
    assert_eq!(read(&probed, 3), "finished");
    assert_eq!(read(&probed, 4), "failed: the agent stopped with an error");
    let nowhere = "unknown: OpenHands has no conversation with this ID";
    assert_eq!(
        (read(&probed, 5), read(&probed, 6)),
        (nowhere.into(), nowhere.into())
    );
    assert_eq!(
        s.api.calls().len(),
        5,
        "ids, start tasks, their conversations, events and error of one"
    );
}

#[tokio::test]
async fn old_states_are_found_up_to_a_limit() {
    let s = scenario(OpenHandsVersion::V1).await;
    for (n, chatter) in [(1, 250), (2, 350)] {
        s.api.conversation(id(n), "MISSING", None);
        s.api.state(id(n), "error");
        s.api.chatter(id(n), chatter);
    }
    let probed = s.probe(1..=2).await;
    assert_eq!(read(&probed, 1), "failed: the agent stopped with an error");
    assert_eq!(
        read(&probed, 2),
        "unknown: the agent's most recent events do not include its state"
    );
    assert_eq!(s.api.calls().len(), 1 + 3 + 3 + 1);
}

#[tokio::test]
async fn v0_is_queried_per_id_and_events_distinguish_waiting_from_running() {
    let s = scenario(OpenHandsVersion::V0).await;
    s.api.v0(id(1), "STARTING");
    s.api.v0(id(2), "RUNNING");
    s.api.v0_state(id(2), "running");
    s.api.v0_chatter(id(2), 250);
    s.api.v0(id(3), "RUNNING");
    s.api.v0_state(id(3), "running");
    s.api.v0_state(id(3), "awaiting_user_input");
    s.api.v0(id(4), "ERROR");

    let probed = s.probe(1..=5).await;

    assert_eq!(read(&probed, 1), "generating");
    assert_eq!(read(&probed, 2), "generating");
    assert_eq!(read(&probed, 3), "finished");
    assert_eq!(read(&probed, 4), "failed: the agent stopped with an error");
    assert_eq!(
        read(&probed, 5),
        "unknown: OpenHands has no conversation with this ID"
    );
    assert_eq!(s.api.calls().len(), 5 + 3 + 1 + 1);
}

#[tokio::test]
async fn api_errors_give_no_status() {
    let faults = [
        (Fault::Html, "html_answer"),
        (Fault::HtmlAsJson, "html_answer"),
        (Fault::Status(401), "unauthorized"),
        (Fault::Status(403), "forbidden"),
        (Fault::Status(404), "malformed"),
        (Fault::Status(500), "unavailable"),
        (Fault::Status(503), "unavailable"),
        (Fault::TooMany(Some(7)), "rate_limited"),
        (Fault::TooMany(None), "rate_limited"),
        (Fault::Login, "malformed"),
        (Fault::Json("[{\"id\":"), "malformed"),
        (Fault::Json("\"completed\""), "malformed"),
        (Fault::Endless, "malformed"),
    ];
    for version in [OpenHandsVersion::V1, OpenHandsVersion::V0] {
        for (fault, code) in faults {
            let s = scenario(version).await;
            s.api.fault("", fault);
            let probed = s.probe(1..=2).await;
            assert_eq!(codes(&probed), [code], "{version:?} {fault:?}");
            assert!(
                probed.statuses.is_empty(),
                "{version:?} {fault:?}: {probed:?}"
            );
        }
    }
}

#[tokio::test]
async fn unreadable_events_are_not_treated_as_empty() {
    for answer in ["{}", "{\"error\":\"no\"}", "null", "[]"] {
        for version in [OpenHandsVersion::V1, OpenHandsVersion::V0] {
            let s = scenario(version).await;
            s.api.conversation(id(1), "MISSING", None);
            s.api.v0(id(1), "ERROR");
            s.api.fault("/events", Fault::Json(answer));
            let probed = s.probe([1]).await;
            assert_eq!(read(&probed, 1), "no status", "{version:?} {answer}");
            assert_eq!(codes(&probed), ["malformed"]);
        }
    }
}

#[tokio::test]
async fn a_stalled_server_gets_at_most_three_calls() {
    let pacing = Pacing {
        call: Duration::from_millis(50),
        ..fast_pacing()
    };
    let s = scenario_with(OpenHandsVersion::V0, pacing).await;
    s.api.fault("", Fault::Stall);
    let probed = s.probe(1..=20).await;
    assert_eq!(codes(&probed), ["unavailable"]);
    assert_eq!(s.api.calls().len(), 3);

    let Scenario { api, agent, .. } = s;
    drop(api);
    assert_eq!(codes(&agent.probe(&texts([1])).await), ["unavailable"]);
}

#[tokio::test]
async fn failing_conversations_do_not_affect_the_others() {
    let s = scenario(OpenHandsVersion::V1).await;
    for n in 1..=7 {
        s.api.conversation(id(n), "PAUSED", None);
        s.api.state(id(n), "finished");
    }
    for n in [2, 4, 6] {
        let events = format!("/{}/events", id(n).simple());
        s.api.fault(&events, Fault::Status(500));
    }
    let probed = s.probe(1..=7).await;
    for n in [1, 3, 5, 7] {
        assert_eq!(read(&probed, n), "finished");
    }
    assert_eq!(probed.statuses.len(), 4, "{probed:?}");
    assert_eq!(codes(&probed), ["unavailable"]);
}

#[tokio::test]
async fn unreadable_start_tasks_do_not_affect_other_statuses() {
    let s = scenario(OpenHandsVersion::V1).await;
    s.api.conversation(id(1), "RUNNING", Some("running"));
    s.api.fault("/start-tasks", Fault::Status(500));
    let probed = s.probe(1..=2).await;
    assert_eq!(read(&probed, 1), "generating");
    assert_eq!(read(&probed, 2), "no status");
}

#[tokio::test]
async fn retry_after_is_respected_and_the_probe_resumes() {
    let s = scenario(OpenHandsVersion::V1).await;
    for n in 1..=4 {
        s.api.conversation(id(n), "PAUSED", None);
        s.api.state(id(n), "finished");
    }
    let events = format!("/{}/events", id(3).simple());
    s.api.fault(&events, Fault::TooMany(Some(120)));
    let probed = s.probe(1..=4).await;
    assert_eq!(codes(&probed), ["rate_limited"]);
    assert_eq!(probed.statuses.len(), 2);

    s.api.clear_faults();
    s.api.calls();
    s.clock.advance(Duration::from_secs(100));
    assert_eq!(codes(&s.probe(1..=4).await), ["rate_limited"]);
    assert_eq!(
        s.api.calls(),
        [""; 0],
        "no request before the pause has ended"
    );

    s.clock.advance(Duration::from_secs(30));
    let probed = s.probe(1..=4).await;
    assert_eq!((codes(&probed), probed.statuses.len()), (vec![], 4));
    let order: Vec<_> = s
        .api
        .calls()
        .into_iter()
        .filter(|c| c.contains("/events"))
        .collect();
    assert!(order[0].contains(&events), "{order:?}");
}

#[tokio::test]
async fn a_probe_respects_its_rate_and_time_limits() {
    let three_an_hour = Rate {
        calls: 3,
        per: Duration::from_secs(3600),
    };
    let pacing = Pacing {
        rates: [three_an_hour; 2],
        ..Pacing::default()
    };
    let s = scenario_with(OpenHandsVersion::V1, pacing).await;
    for n in 1..=4 {
        s.api.conversation(id(n), "PAUSED", None);
        s.api.state(id(n), "finished");
    }
    let probed = s.probe(1..=4).await;
    assert_eq!(codes(&probed), ["rate_limited"]);
    assert_eq!(probed.statuses.len(), 2, "the statuses so far are kept");
    assert_eq!(s.api.calls().len(), 3);
}

#[tokio::test]
async fn no_secret_or_prompt_is_exposed() {
    for version in [OpenHandsVersion::V1, OpenHandsVersion::V0] {
        let s = scenario(version).await;
        for (n, sandbox, execution) in [(1, "RUNNING", PROMPT), (2, PROMPT, "running")] {
            s.api.conversation(id(n), sandbox, Some(execution));
        }
        let detail = format!("1 error for https://sandbox/?key={SESSION_KEY}\n{PROMPT}");
        s.api.start_task(id(3), "ERROR", Some(&detail), None);
        s.api.v0(id(1), PROMPT);
        s.api.v0(id(2), "RUNNING");
        s.api.v0_state(id(2), PROMPT);
        let probed = s.probe(1..=3).await;
        assert_eq!(probed.statuses.len(), 3);
        let out = format!("{probed:?} {:?}", s.agent);
        for canary in [KEY, SESSION_KEY, PROMPT] {
            assert!(!out.contains(canary), "{canary} in {out}");
        }
    }
}

/// The fake returns the status, content type and body that the API's source code returns.
#[tokio::test]
async fn the_fake_has_the_quirks_of_the_api() {
    let cloud = FakeOpenHands::start(Server::Cloud).await;
    let own = FakeOpenHands::start(Server::SelfHosted).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |url: String, key: &str| {
        let response = client.get(url).bearer_auth(key).send().await.unwrap();
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        (
            response.status().as_u16(),
            kind,
            response.text().await.unwrap(),
        )
    };
    let json = |status: u16, body: &str| (status, "application/json".to_owned(), body.to_owned());
    let html = (200, "text/html; charset=utf-8".to_owned(), PAGE.to_owned());
    let one = id(1).simple().to_string();
    let v1 = format!("{}/api/v1/app-conversations", cloud.url);

    let unknown = format!("{v1}?ids={one}&ids={}", id(1));
    assert_eq!(get(unknown, KEY).await, json(200, "[null,null]"));
    let unknown_task = format!("{v1}/start-tasks?ids={one}");
    assert_eq!(get(unknown_task, KEY).await, json(200, "[null]"));
    let hundred = format!("{v1}?{}", format!("ids={one}&").repeat(100));
    assert_eq!(
        get(hundred, KEY).await,
        json(400, "{\"detail\":\"Too many ids\"}")
    );
    let bad_id = format!("{v1}?ids=7");
    assert_eq!(
        get(bad_id, KEY).await,
        json(400, "{\"detail\":\"Invalid UUID\"}")
    );
    let unauthorized = json(401, "{\"error\":\"Invalid API key\"}");
    assert_eq!(get(v1.clone(), "other").await, unauthorized);
    assert_eq!(
        get(format!("{v1}/{one}"), KEY).await,
        html,
        "no GET by path"
    );
    let v0 = format!("/api/conversations/{one}");
    assert_eq!(
        get(format!("{}{v0}", cloud.url), KEY).await,
        html,
        "V0 is gone"
    );
    assert_eq!(
        get(format!("{}{v0}", own.url), KEY).await,
        json(200, "null")
    );
}

scenario! {
    an_agent_that_needs_a_person_is_blocked(t) {
        let (video, conversation) = generating(t).await;
        t.agent.conversation(conversation, "PAUSED", None);
        for _ in 0..2 {
            let report = sweep(t, "").await;
            let paused = "The agent's sandbox was paused before the agent finished; open its conversation in OpenHands to let it continue.";
            assert_eq!(outcome(&report, &video), format!("unknown: {paused}"));
            assert_eq!(t.video(&video).await["message"], paused);
        }
        let stored = t.text("select status from video_ingest.statuses").await;
        assert_eq!(stored.as_deref(), Some("blocked"));
    }

    the_agents_error_is_shown_without_secrets(t) {
        let (log, _guard) = Log::begin();
        let (video, conversation) = generating(t).await;
        let mut secrets: Vec<String> = t.config.secrets();
        secrets.extend(["url-canary".to_owned(), "token-canary".to_owned()]);
        let encoded: String = STANDARD.encode(format!("user:{KEY}"));
        let lead = format!("The key {KEY} was rejected at https://me:url-canary@llm.example/v1?token=token-canary");
        for detail in [
            format!("{lead}\nBasic {encoded}\u{7}"),
            secrets.join("\n"),
        ] {
            t.agent.conversation(conversation, "RUNNING", Some("error"));
            t.agent.error(conversation, "LLMAuthenticationError", "auth", &detail);
            sweep(t, "dry_run=true").await;
        }
        t.agent.error(conversation, "LLMAuthenticationError", "auth", &format!("{lead} Basic {encoded}"));
        sweep(t, "").await;
        let generating = t.ask(&format!("/api/videos/{}", video.id())).await.json.to_string();
        let report = sweep(t, "").await.to_string();
        t.expect_reported(&video, "generation_failed").await;

        let expected = "OpenHands reported an error (LLMAuthenticationError, auth): \
            The key [redacted] was rejected at https://[redacted]@llm.example/v1?[redacted] Basic dXNlcjp[redacted].";
        assert_eq!(t.video(&video).await["message"], expected);
        let asset = t.asset(&video).await;
        assert_eq!(asset.metadata["ingest"]["message"], expected);
        let page = reqwest::Client::builder().no_proxy().build().unwrap();
        let page = page.get(format!("{}/videos/{}", t.url, video.id())).bearer_auth(ADMIN_TOKEN);
        let page = page.send().await.unwrap().text().await.unwrap();
        assert!(page.contains("The key [redacted] was rejected"), "{page}");
        let api = t.ask(&format!("/api/videos/{}", video.id())).await.json.to_string();
        let row = format!("{} {}", asset.mime_type, asset.metadata);
        let database = t.snapshot().await.into_iter().collect::<String>();
        for (place, text) in [("page", page), ("API", api), ("API before", generating), ("report", report),
            ("row", row), ("log", log.text()), ("database", database)] {
            for secret in secrets.iter().chain([&encoded]) {
                assert!(!text.contains(secret.as_str()), "{secret} in {place}: {text}");
            }
        }
    }

    the_time_of_the_last_status_is_recorded(t) {
        let (_, conversation) = generating(t).await;
        t.agent.conversation(conversation, "RUNNING", Some("running"));
        let times = async || {
            let times = "select cast(first_at as text) || ' ' || cast(at as text) from video_ingest.statuses";
            let times = t.text(times).await.unwrap();
            let (first, last) = times.split_once(' ').unwrap();
            (first.parse::<i64>().unwrap(), last.parse::<i64>().unwrap())
        };
        sweep(t, "").await;
        let (first_at, at) = times().await;
        t.later(Duration::from_secs(30));
        sweep(t, "").await;
        assert_eq!(times().await, (first_at, at), "one write a minute");
        t.later(Duration::from_secs(31));
        sweep(t, "").await;
        let (still_first_at, later) = times().await;
        assert_eq!(still_first_at, first_at);
        assert!((61_000..120_000).contains(&(later - at)), "{at} {later}");
        t.earlier(Duration::from_secs(600));
        sweep(t, "").await;
        assert!(times().await.1 < at, "a time in the future is replaced");
    }
}
