//! The pages work in a real browser: live updates, playback, retry, sign-in and accessibility. On one back
//! end only, because `page` compares the contents on all of them.

use std::time::Duration;

use uuid::Uuid;
use video_ingest::domain::ids::VideoKey;

use crate::support::browser::{Browser, Settings};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::scenario::{ADMIN_TOKEN, Backend, Scenario, TRUNCATED, Video};
use crate::support::states;

#[tokio::test]
async fn an_operator_watches_a_push_become_a_playing_video() {
    let t = Scenario::begin(Backend::Embedded).await;
    let (video, bad) = (Video::good(), Video::with(TRUNCATED));
    t.row(&video).await;
    t.row(&bad).await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    browser.run("window.loadedOnce = true").await;
    let badge =
        |video: &Video, state: &str| format!("[data-video='{}'] .badge.{state}", video.id());

    browser.sees(&badge(&video, "generating")).await;
    t.push(&video).await;
    browser.sees(&badge(&video, "queued")).await;
    t.work().await;
    browser.sees(&badge(&video, "ready")).await;
    t.push(&bad).await;
    t.work().await;
    browser.sees(&badge(&bad, "failed")).await;
    browser.sees(".attention").await;
    assert_eq!(browser.run("return window.loadedOnce").await, true);

    browser
        .press(&format!("[data-video='{}'] a", video.id()))
        .await;
    browser.sees("video").await;
    let played = browser
        .ask(
            "const [done] = arguments, video = document.querySelector('video');
            video.ontimeupdate = () => { if (video.currentTime > 0.2) done(video.currentTime); };
            video.onerror = () => done(video.error.message);
            video.muted = true; video.play().catch(error => done(String(error)));",
        )
        .await;
    assert!(played.as_f64().is_some_and(|s| s > 0.2), "{played}");

    browser.go(&format!("/videos/{}", bad.id())).await;
    browser.press("#head form button").await;
    browser.sees("#head .badge.queued").await;
    t.work().await;
    browser.sees("#head .badge.failed").await;
    browser.press(".bar form button").await;
    browser.sees("#token").await;
    browser.go("/").await;
    browser.sees("#token").await;
    browser.close().await;
    t.finish().await;
}

/// A browser caches pages for its back button and opens at most six connections to a server.
#[tokio::test]
async fn cached_pages_keep_no_connection() {
    let t = Scenario::begin(Backend::Embedded).await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    let visits = async {
        for n in 0..12 {
            browser.go(&format!("/?q={n}")).await;
            let live = "const [done] = arguments;
                const look = () => document.querySelector('#live').textContent === 'live' ? done() : setTimeout(look, 10);
                look();";
            browser.ask(live).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), visits)
        .await
        .expect("no page waits for a connection");
    browser.close().await;
    t.finish().await;
}

#[tokio::test]
async fn a_wrong_token_is_reported_and_the_right_one_signs_in() {
    let t = Scenario::begin(Backend::Embedded).await;
    let browser = Browser::open(&t.url, Settings::default()).await;
    browser.go("/deliveries").await;
    browser.fill("#token", "not the token").await;
    browser.press("main button").await;
    assert!(browser.text("[role=alert]").await.contains("ADMIN_TOKEN"));
    browser.fill("#token", ADMIN_TOKEN).await;
    browser.press("main button").await;
    assert_eq!(browser.text("h1").await, "Deliveries");
    browser.close().await;
    t.finish().await;
}

#[tokio::test]
async fn everything_works_without_javascript() {
    let t = Scenario::begin(Backend::Embedded).await;
    let bad = Video::with(TRUNCATED);
    t.row(&bad).await;
    t.push(&bad).await;
    t.work().await;
    let settings = Settings {
        script: false,
        ..Settings::default()
    };
    let browser = Browser::signed_in(&t.url, settings).await;
    // With JavaScript, the contents of a `noscript` are not elements.
    browser.sees("#live noscript small").await;
    browser.fill("#q", &bad.mp4_path()).await;
    browser.press(".search button").await;
    browser
        .press(&format!("[data-video='{}'] a", bad.id()))
        .await;
    browser.press("#head form button").await;
    browser.sees("#head .badge.queued").await;
    t.work().await;
    // The counts are cached for two seconds.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    browser.go("/").await;
    browser.press(".attention form button").await;
    browser.sees(".calm").await;
    browser.sees(".badge.queued").await;
    browser.close().await;
    t.finish().await;
}

/// A browser gives up on an event stream that returns another status than 200; the page must not.
#[tokio::test]
async fn the_live_connection_recovers_from_a_proxy_error() {
    let t = Scenario::begin(Backend::Embedded).await;
    let proxy = FaultProxy::before(&t.url);
    let browser = Browser::signed_in(&proxy.url, Settings::default()).await;
    browser.reads("#live", "live").await;
    proxy.fault(|_, path| path == "/api/events", Fault::Status(502));
    browser.go("/").await;
    browser.reads("#live", "connecting…").await;
    assert!(proxy.clear_faults() > 0);
    browser.reads("#live", "live").await;
    let video = Video::good();
    t.row(&video).await;
    t.push(&video).await;
    browser
        .sees(&format!("[data-video='{}'] .badge.queued", video.id()))
        .await;
    browser.close().await;
    drop(proxy);
    t.finish().await;
}

#[tokio::test]
async fn an_ended_session_leads_to_sign_in_and_back() {
    let t = Scenario::begin(Backend::Embedded).await;
    let bad = Video::with(TRUNCATED);
    t.row(&bad).await;
    t.push(&bad).await;
    t.work().await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    let page = format!("/videos/{}?lesson_id={}", bad.id(), bad.key.lesson_id);
    browser.go(&page).await;
    browser.reads("#live", "live").await;
    t.later(Duration::from_secs(12 * 3600));
    // A form on a page whose session has ended.
    browser.press("#head form button").await;
    browser.fill("#token", ADMIN_TOKEN).await;
    browser.press("main button").await;
    browser.sees("#head .badge.failed").await;

    t.later(Duration::from_secs(12 * 3600));
    browser
        .run("document.dispatchEvent(new Event('visibilitychange'))")
        .await;
    browser.sees("#live a").await;
    assert_eq!(browser.text("#live").await, "Signed out. Sign in");
    assert_eq!(violations(&browser).await, [""; 0]);
    browser.press("#live a").await;
    browser.fill("#token", ADMIN_TOKEN).await;
    browser.press("main button").await;
    browser.sees("#head .badge.failed").await;
    browser.reads("#live", "live").await;
    browser.close().await;
    t.finish().await;
}

#[tokio::test]
async fn updates_keep_selection_focus_and_open_details() {
    let t = Scenario::begin(Backend::Embedded).await;
    let (video, bad, other) = (Video::good(), Video::with(TRUNCATED), Video::good());
    for video in [&video, &bad, &other] {
        t.row(video).await;
    }
    t.push(&bad).await;
    t.work().await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    let row = |video: &Video| format!("[data-video='{}']", video.id());
    let select = |css: &str| {
        format!(
            "const id = document.querySelector(\"{css}\"); getSelection().selectAllChildren(id); id.closest('a').focus();"
        )
    };
    let kept = "return getSelection().toString() + ' ' + document.activeElement.textContent";
    browser.run(&select(&format!("{} a.id", row(&video)))).await;
    // Each of these changes other rows, and ages.
    t.later(Duration::from_secs(90));
    t.push(&other).await;
    browser.sees(&format!("{} .queued", row(&other))).await;
    t.work().await;
    browser.sees(&format!("{} .ready", row(&other))).await;
    let twice = format!("{0} {0}", video.id());
    assert_eq!(browser.run(kept).await, twice);
    // The row itself changes and moves.
    t.push(&video).await;
    browser.sees(&format!("{} .queued", row(&video))).await;
    let focused = "return document.activeElement.textContent";
    assert_eq!(browser.run(focused).await, video.id());

    browser.go(&format!("/videos/{}", bad.id())).await;
    browser.press("details summary").await;
    browser
        .run("getSelection().selectAllChildren(document.querySelector('h1 .id'))")
        .await;
    browser
        .run("document.querySelector('#head form button').focus()")
        .await;
    t.later(Duration::from_secs(90));
    t.ask(&format!("/api/videos/{}/retry", bad.id())).await;
    browser.sees("#head .badge.queued").await;
    browser.sees("details[open]").await;
    let kept = "return getSelection().toString() + ' ' + document.activeElement.tagName";
    assert_eq!(browser.run(kept).await, format!("{} BUTTON", bad.id()));
    browser.close().await;
    t.finish().await;
}

#[tokio::test]
async fn an_id_is_copied_with_the_keyboard() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = Video::good();
    t.row(&video).await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    browser.go(&format!("/videos/{}", video.id())).await;
    // The label is back before a busy machine has read it.
    browser
        .run(
            "window.copied = []; window.labels = [];
            navigator.clipboard.writeText = async text => { copied.push(text); };
            const label = document.querySelector('h1 [data-copy] span');
            new MutationObserver(() => labels.push(label.textContent)).observe(label, {childList: true});
            document.querySelector('h1 [data-copy]').focus();",
        )
        .await;
    browser.fill("h1 [data-copy]", "\u{e007}").await;
    browser
        .ask(
            "const [done] = arguments;
            const look = () => labels.length === 2 ? done() : setTimeout(look, 10);
            look();",
        )
        .await;
    let labels = serde_json::json!(["Copied", "Copy"]);
    assert_eq!(browser.run("return labels").await, labels);
    assert_eq!(
        browser.run("return copied").await,
        serde_json::json!([video.id()])
    );
    browser.press("details summary").await;
    browser.press("details button").await;
    let curl = browser.run("return copied[1]").await;
    let curl = curl.as_str().unwrap();
    assert!(
        curl.starts_with("curl ") && curl.contains("$ADMIN_TOKEN"),
        "{curl}"
    );
    assert!(
        !curl.contains(ADMIN_TOKEN) && curl.contains(&video.id()),
        "{curl}"
    );
    browser.close().await;
    t.finish().await;
}

#[tokio::test]
async fn the_link_of_a_video_names_its_lesson() {
    let t = Scenario::begin(Backend::Embedded).await;
    let ours = Video::good();
    let other = Video::of(VideoKey {
        lesson_id: Uuid::new_v4(),
        ..ours.key
    });
    t.row(&ours).await;
    t.push(&ours).await;
    t.push(&other).await;
    t.work().await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    for video in [&ours, &other] {
        browser.go("/").await;
        let lesson = video.key.lesson_id.to_string();
        browser.press(&format!("[data-key^='{lesson}'] a.id")).await;
        browser.reads("#facts dd a", &lesson).await;
    }
    browser.close().await;
    t.finish().await;
}

#[tokio::test]
async fn a_slash_moves_the_focus_to_the_search() {
    let t = Scenario::begin(Backend::Embedded).await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    browser.fill("body", "/abc/").await;
    let value = "return document.activeElement.value";
    assert_eq!(browser.run(value).await, "abc/");
    browser.close().await;
    t.finish().await;
}

#[tokio::test]
async fn an_unknown_address_is_a_page() {
    let t = Scenario::begin(Backend::Embedded).await;
    let browser = Browser::open(&t.url, Settings::default()).await;
    for path in ["/no-such", "/videos/a/b/c", "/api/no-such", "/wp-login.php"] {
        browser.go(path).await;
        assert_eq!(browser.text("h1").await, "Not found", "{path}");
        assert_eq!(violations(&browser).await, [""; 0], "{path}");
        browser.sees("link[rel=stylesheet]").await;
    }
    // It has no session.
    browser.go("/api/videos").await;
    browser.press("main a[href^='/sign-in']").await;
    browser.sees("#token").await;
    browser.close().await;
    t.finish().await;
}

const AXE: &str = "tests/axe/node_modules/axe-core/axe.min.js";

/// The violations that axe-core finds on the current page, with those of WCAG 2.2's minimum target size.
async fn violations(browser: &Browser) -> Vec<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(AXE);
    let axe = std::fs::read_to_string(path)
        .expect("axe-core is missing: npm ci --prefix tests/axe --ignore-scripts");
    browser.run(&axe).await;
    let found = browser
        .ask("const [done] = arguments; axe.run({rules: {'target-size': {enabled: true}}}).then(result => done(result.violations));")
        .await;
    let found = found.as_array().unwrap();
    found
        .iter()
        .map(|v| format!("{} {}", v["id"], v["nodes"][0]["html"]))
        .collect()
}

#[tokio::test]
async fn no_page_has_an_accessibility_violation() {
    let mut t = Scenario::begin_with(Backend::Embedded, states::configure).await;
    t.expect_error("upload failed");
    let pages = states::create(&t, Uuid::new_v4).await;
    for (width, dark) in [
        (1280, false),
        (1280, true),
        (390, false),
        (390, true),
        (320, false),
    ] {
        let settings = Settings {
            width,
            dark,
            ..Settings::default()
        };
        let browser = Browser::open(&t.url, settings).await;
        browser.go("/").await;
        assert_eq!(violations(&browser).await, [""; 0], "sign-in, {settings:?}");
        browser.fill("#token", "not the token").await;
        browser.press("main button").await;
        browser.sees("[role=alert]").await;
        assert_eq!(violations(&browser).await, [""; 0], "error, {settings:?}");
        browser.sign_in(ADMIN_TOKEN).await;
        browser.sees("#list").await;
        let is_dark = "return matchMedia('(prefers-color-scheme: dark)').matches";
        assert_eq!(browser.run(is_dark).await, dark);
        for (_, page) in &pages {
            browser.go(page).await;
            // What is folded is shown sooner or later.
            browser
                .run("for (const part of document.querySelectorAll('details')) part.open = true")
                .await;
            // 320 px: only whether it fits, because the layout is that of 390 px.
            if width >= 390 {
                assert_eq!(violations(&browser).await, [""; 0], "{page}, {settings:?}");
            }
            let overflow = "return document.documentElement.scrollWidth - innerWidth";
            let overflow = browser.run(overflow).await.as_i64().unwrap();
            assert!(
                overflow <= 0,
                "{page} is {overflow} px too wide, {settings:?}"
            );
        }
        browser.close().await;
    }
    t.finish().await;
}

/// The check itself must fail for a page that is broken on purpose.
#[tokio::test]
async fn the_accessibility_check_detects_a_broken_page() {
    let t = Scenario::begin(Backend::Embedded).await;
    let browser = Browser::signed_in(&t.url, Settings::default()).await;
    browser
        .run("document.querySelector('#q').removeAttribute('placeholder'); document.querySelector('label[for=q]').remove(); document.body.style.color = '#ccc';")
        .await;
    let found = violations(&browser).await.join("\n");
    assert!(
        found.contains("label") && found.contains("color-contrast"),
        "{found}"
    );
    browser.close().await;
    t.finish().await;
}
