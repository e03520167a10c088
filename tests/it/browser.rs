//! The pages work in a real browser: live updates, playback, retry, sign-in and accessibility. On one back
//! end only, because `page` compares the contents on all of them.

use std::time::Duration;

use serde_json::Value;

use crate::support::browser::{Browser, Settings};
use crate::support::scenario::{ADMIN_TOKEN, Backend, Scenario, TRUNCATED, Video};

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
    browser.press("#head button").await;
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
    browser.press("#head button").await;
    browser.sees("#head .badge.queued").await;
    browser.close().await;
    t.finish().await;
}

const AXE: &str = "tests/axe/node_modules/axe-core/axe.min.js";

/// The serious and critical violations that axe-core finds on the current page.
async fn violations(browser: &Browser) -> Vec<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(AXE);
    let axe = std::fs::read_to_string(path)
        .expect("axe-core is missing: npm ci --prefix tests/axe --ignore-scripts");
    browser.run(&axe).await;
    let found = browser
        .ask("const [done] = arguments; axe.run().then(result => done(result.violations));")
        .await;
    let serious = |violation: &&Value| {
        ["serious", "critical"].contains(&violation["impact"].as_str().unwrap_or_default())
    };
    let found = found.as_array().unwrap();
    found
        .iter()
        .filter(serious)
        .map(|v| format!("{} {}", v["id"], v["nodes"][0]["html"]))
        .collect()
}

#[tokio::test]
async fn no_page_has_a_serious_accessibility_violation() {
    let t = Scenario::begin(Backend::Embedded).await;
    let (good, bad, generating) = (Video::good(), Video::with(TRUNCATED), Video::good());
    for video in [&good, &bad, &generating] {
        t.row(video).await;
    }
    t.push(&good).await;
    t.push(&bad).await;
    t.work().await;
    t.later(Duration::from_secs(90));
    let pages = [
        "/".to_owned(),
        "/?q=nothing".to_owned(),
        format!("/videos/{}", good.id()),
        format!("/videos/{}", bad.id()),
        format!("/videos/{}", generating.id()),
        "/deliveries".to_owned(),
        "/videos/no-such".to_owned(),
    ];
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
        browser.sign_in(ADMIN_TOKEN).await;
        browser.sees("#list").await;
        let is_dark = "return matchMedia('(prefers-color-scheme: dark)').matches";
        assert_eq!(browser.run(is_dark).await, dark);
        for page in &pages {
            browser.go(page).await;
            assert_eq!(violations(&browser).await, [""; 0], "{page}, {settings:?}");
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
