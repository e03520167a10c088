//! The pages, sign-in, search, pagination and live events work over plain HTTP, without a browser.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use uuid::Uuid;
use video_ingest::domain::generation::GenerationStatus;
use video_ingest::domain::ids::VideoKey;
use video_ingest::domain::state::VideoState::{Failed, Queued, Ready, Running, Waiting};

use crate::scenario;
use crate::support::fake_github::Fault;
use crate::support::scenario::{ADMIN_TOKEN, AppRow, Backend, Scenario, TRUNCATED, Video};

/// A client like a browser without JavaScript: it sends its cookie and `Origin`, and follows no redirects.
struct Browser {
    url: String,
    client: Client,
    cookie: Option<String>,
}

impl Browser {
    fn new(t: &Scenario) -> Self {
        let client = Client::builder().no_proxy().redirect(Policy::none());
        Self {
            url: t.url.clone(),
            client: client.build().unwrap(),
            cookie: None,
        }
    }

    async fn signed_in(t: &Scenario) -> Self {
        let mut browser = Self::new(t);
        let answer = browser.sign_in(ADMIN_TOKEN, &[]).await;
        assert_eq!(answer.status(), 303);
        browser.cookie = Some(cookie(&answer));
        browser
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(cookie) = &self.cookie {
            headers.insert("cookie", HeaderValue::from_str(cookie).unwrap());
        }
        headers
    }

    async fn get(&self, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.url));
        request.headers(self.headers()).send().await.unwrap()
    }

    /// Asks for HTML, as browsers do.
    async fn as_browser(&self, path: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.url));
        let request = request.header("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        request.headers(self.headers()).send().await.unwrap()
    }

    async fn text(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.text().await.unwrap()
    }

    async fn post(&self, path: &str, from: &str) -> Response {
        let request = self.client.post(format!("{}{path}", self.url));
        let request = request.headers(self.headers()).header("origin", from);
        request.send().await.unwrap()
    }

    /// Sends a form.
    async fn submit(&self, path: &str, from: &str, form: &'static str) -> Response {
        let request = self.client.post(format!("{}{path}", self.url));
        let request = request.headers(self.headers()).header("origin", from);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body(form).send().await.unwrap()
    }

    async fn sign_in(&self, token: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.client.post(format!("{}/sign-in", self.url));
        request = request.header("origin", &self.url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let form = [("token", token), ("next", "/deliveries")];
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let form = "application/x-www-form-urlencoded";
        request
            .header("content-type", form)
            .body(body)
            .send()
            .await
            .unwrap()
    }
}

fn cookie(answer: &Response) -> String {
    let set = answer.headers()["set-cookie"].to_str().unwrap();
    set.split(';').next().unwrap().to_owned()
}

scenario! {
    the_page_plays_a_video_that_was_ready_before(t) {
        let video = Video::good();
        let row = AppRow { storage_path: Some(t.path(&video)), ..AppRow::pending(video.key) };
        t.rows(&[row]).await;
        t.commit(&video);
        t.ask("/reconcile?wait=0").await;
        assert_eq!(t.video(&video).await["state"], "ready");
        let page = Browser::signed_in(t).await.text(&format!("/videos/{}", video.id())).await;
        assert!(page.contains("<video controls"), "{page}");
        assert!(!page.contains("No video has been stored"), "{page}");
    }

    the_pages_show_ready_videos_and_advice_for_failed_ones(t) {
        let (good, bad, generating) = (Video::good(), Video::with(TRUNCATED), Video::good());
        for video in [&good, &bad, &generating] {
            t.row(video).await;
        }
        let delivery = t.push(&good).await;
        t.push(&bad).await;
        t.work().await;
        t.ask("/reconcile?wait=0").await;
        let browser = Browser::signed_in(t).await;

        let list = browser.text("/").await;
        assert!(list.contains("Needs attention"), "{list}");
        // Once: the advice is left out if the message says the same.
        assert!(list.contains("render the video again and push it"), "{list}");
        assert!(!list.contains("Render the video again, or copy"), "{list}");
        assert!(list.contains("1 became ready, 1 failed"), "{list}");
        for video in [&good, &bad, &generating] {
            assert!(list.contains(&video.id()), "{list}");
        }
        let pasted = browser.text(&format!("/?q={}", good.mp4_path())).await;
        assert!(pasted.contains(&good.id()) && !pasted.contains(&bad.id()), "{pasted}");
        let filtered = browser.text("/?state=generating").await;
        assert!(filtered.contains(&generating.id()) && !filtered.contains(&good.id()), "{filtered}");

        let page = browser.text(&format!("/videos/{}", good.id())).await;
        for part in ["<video", "fetched", delivery.guid.as_str()] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let deliveries = browser.text("/deliveries").await;
        for part in [&delivery.guid, &good.id(), "badge ready", "badge failed"] {
            assert!(deliveries.contains(part), "{part}: {deliveries}");
        }
    }

    search_accepts_ids_prefixes_and_file_names(t) {
        let (recorded, generating) = (Video::good(), Video::good());
        t.row(&recorded).await;
        t.row(&generating).await;
        t.push(&recorded).await;
        for video in [&recorded, &generating] {
            let (id, lesson) = (video.id(), video.key.lesson_id.to_string());
            for q in [
                &id,
                &id[..9],
                &id[..14].to_uppercase(),
                &lesson,
                &lesson[..11],
                &video.mp4_path(),
                &format!("{lesson}_"),
            ] {
                let found = t.get(&format!("/api/videos?q={q}")).await.json;
                assert_eq!(found["videos"][0]["video_id"], id, "{q}: {found}");
                assert_eq!(found["videos"].as_array().unwrap().len(), 1, "{q}");
            }
        }
        for q in ["nothing", "%25", "zz", "00000000-0000-0000-0000-000000000000"] {
            let found = t.get(&format!("/api/videos?q={q}")).await.json;
            assert_eq!(found["videos"], serde_json::json!([]), "{q}");
        }
    }

    pagination_returns_every_video_once(t) {
        let videos: Vec<_> = (0..7).map(|_| Video::good()).collect();
        for video in &videos {
            t.row(video).await;
        }
        for video in &videos[..3] {
            t.push(video).await;
        }
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = t.get(&format!("/api/videos?limit=2&cursor={cursor}")).await.json;
            let ids = page["videos"].as_array().unwrap();
            seen.extend(ids.iter().map(|video| video["video_id"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        let mut all: Vec<_> = videos.iter().map(Video::id).collect();
        seen.sort();
        all.sort();
        assert_eq!(seen, all);
    }

    counts_stay_correct_and_need_few_rows(t) {
        let (ready, bad) = (Video::good(), Video::with(TRUNCATED));
        for video in [&ready, &bad] {
            t.row(video).await;
            t.push(video).await;
        }
        for _ in 0..20 {
            t.work().await;
            for video in [&ready, &bad] {
                t.ask(&format!("/api/videos/{}/retry", video.id())).await;
            }
        }
        t.work().await;
        for _ in 0..2 {
            let overview = t.db.overview().await.unwrap();
            assert_eq!((overview.count(Ready), overview.count(Failed)), (1, 1));
            assert_eq!([Queued, Running, Waiting].map(|state| overview.count(state)), [0; 3]);
            assert_eq!(overview.oldest, None);
            t.db.compact_counts().await.unwrap();
        }
        let entries = t.text("select cast(count(*) as text) from video_ingest.counts").await;
        assert!(entries.unwrap().parse::<u32>().unwrap() <= 5);
    }

    a_generating_video_shows_the_last_agent_status(t) {
        let video = Video::good();
        let conversation = Uuid::new_v4();
        let row = AppRow { conversation: Some(conversation), ..AppRow::pending(video.key) };
        t.rows(&[row]).await;
        let status = GenerationStatus::blocked("the sandbox was paused");
        let conversation = conversation.to_string();
        t.db.keep_statuses(&[(video.key, &conversation, &status)]).await.unwrap();
        let list = Browser::signed_in(t).await.text("/").await;
        assert!(list.contains("The sandbox was paused; open its conversation in OpenHands to let it continue."), "{list}");
    }

    a_video_is_retried_from_the_page(t) {
        let video = Video::with(TRUNCATED);
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        let browser = Browser::signed_in(t).await;
        let retry = format!("/videos/{}/retry", video.id());
        let answer = browser.post(&retry, "https://evil.example").await;
        assert_eq!(answer.status(), 403);
        t.expect_failed(&video, "truncated").await;
        let answer = browser.post(&retry, &t.url).await;
        assert_eq!(answer.status(), 303);
        assert_eq!(t.video(&video).await["state"], "queued");
    }

    failures_of_one_kind_are_shown_and_retried_together(t) {
        let videos = [TRUNCATED, TRUNCATED, TRUNCATED].map(Video::with);
        for video in &videos {
            t.row(video).await;
            t.push(video).await;
        }
        t.work().await;
        let browser = Browser::signed_in(t).await;
        let list = browser.text("/").await;
        for part in [
            "<b>3 failed</b>",
            "render the video again and push it",
            // A retry alone cannot help.
            "<button class=\"second\">Retry all 3",
            "href=\"/?state=failed&amp;code=truncated\"",
        ] {
            assert!(list.contains(part), "{part}: {list}");
        }
        assert_eq!(list.matches("extends to byte").count(), 4, "once for the group");
        let filtered = browser.text("/?state=failed&code=truncated").await;
        assert!(filtered.contains("href=\"/?state=failed\"") && !filtered.contains("Needs attention"));
        assert_eq!(browser.text("/?code=bad_metadata").await.matches("data-video").count(), 0);
        let code = "code=truncated";
        let answer = browser.submit("/videos/retry", "https://evil.example", code).await;
        assert_eq!(answer.status(), 403);
        assert_eq!(browser.submit("/videos/retry", &t.url, "code=all").await.status(), 404);
        let answer = browser.submit("/videos/retry", &t.url, code).await;
        assert_eq!(answer.headers()["location"], "/");
        assert!(browser.text("/").await.contains("Nothing needs attention"));
        for video in &videos {
            assert_eq!(t.video(video).await["state"], "queued");
        }
    }

    problems_of_the_whole_come_before_those_of_videos(t) {
        let bad = Video::with(TRUNCATED);
        t.row(&bad).await;
        let delivery = t.push(&bad).await;
        t.work().await;
        t.later(Duration::from_secs(1));
        let browser = Browser::signed_in(t).await;
        let calm = browser.text("/deliveries").await;
        assert!(!calm.contains("Refused and ignored"), "{calm}");
        for _ in 0..2 {
            t.post("/webhooks/github", &delivery.unsigned(), delivery.body().to_vec()).await;
        }
        let list = browser.text("/").await;
        let refused = list.find("2 deliveries were refused").expect(&list);
        assert!(refused < list.find("truncated").unwrap(), "{list}");
        assert!(list.contains("<code>video-ingest webhook install --url"), "{list}");
        let deliveries = browser.text("/deliveries").await;
        let refused = deliveries.find("<b>2 refused</b>").expect(&deliveries);
        assert!(refused < deliveries.find(&delivery.guid).unwrap(), "{deliveries}");
        assert!(deliveries.contains("bad_signature"), "{deliveries}");
    }

    a_generating_video_says_what_it_waits_for(t) {
        let (blocked, fresh) = (Video::good(), Video::good());
        let conversation = Uuid::new_v4();
        t.agent.conversation(conversation, "PAUSED", None);
        t.rows(&[AppRow {
            age: Duration::from_secs(3600),
            conversation: Some(conversation),
            ..AppRow::pending(blocked.key)
        }])
        .await;
        t.row(&fresh).await;
        let browser = Browser::signed_in(t).await;
        let address = |video: &Video, form: &str| {
            format!("/videos/{}{form}?lesson_id={}", video.id(), video.key.lesson_id)
        };
        // A sweep of this video only.
        let answer = browser.post(&address(&blocked, "/check"), &t.url).await;
        assert_eq!(answer.headers()["location"], address(&blocked, ""));
        let page = browser.text(&address(&blocked, "")).await;
        for part in [
            ">blocked<",
            "Waiting since",
            "Last check",
            "Deadline",
            "the agent&#39;s sandbox was paused",
            "Open the agent&#39;s conversation",
            &conversation.simple().to_string(),
            "Check again",
        ] {
            assert!(page.contains(part) || page.contains(&part.replace("&#39;", "'")), "{part}: {page}");
        }
        assert!(!page.contains("/retry"), "a retry would fail it: {page}");
        let list = browser.text("/").await;
        assert!(list.contains("1 agent needs a person"), "{list}");
        assert!(list.contains("Generating <span class=\"count\">2</span>"), "{list}");
        let page = browser.text(&address(&fresh, "")).await;
        assert!(page.contains("the row has no conversation_id"), "{page}");

        // Its webhook was lost.
        t.commit(&fresh);
        browser.post(&address(&fresh, "/check"), &t.url).await;
        assert_eq!(t.video(&fresh).await["state"], "queued");
        assert_eq!(t.video(&blocked).await["state"], "generating");
        let foreign = browser.post(&address(&fresh, "/check"), "https://evil.example").await;
        assert_eq!(foreign.status(), 403);
    }

    a_video_that_backs_off_shows_its_next_attempt(t) {
        let video = Video::good();
        t.row(&video).await;
        t.github.fault(
            |call| call.path.contains("/git/blobs/"),
            Fault::Status { code: 502, headers: vec![], body: String::new() },
        );
        t.push(&video).await;
        t.work().await;
        let browser = Browser::signed_in(t).await;
        let path = format!("/videos/{}", video.id());
        for page in ["/", "/?state=queued", &path] {
            let text = browser.text(page).await;
            assert!(text.contains(">backing off<"), "{page}: {text}");
            assert!(text.contains("Next attempt"), "{page}: {text}");
            assert!(!text.contains("WORKERS"), "{page}: {text}");
        }
        let page = browser.text(&path).await;
        assert!(page.contains("<button>Retry now"), "it can help: {page}");
        t.github.clear_faults();
    }

    one_id_under_two_lessons_has_two_pages(t) {
        let ours = Video::good();
        let other = Video::of(VideoKey { lesson_id: Uuid::new_v4(), ..ours.key });
        t.row(&ours).await;
        t.push(&ours).await;
        t.push(&other).await;
        t.work().await;
        let browser = Browser::signed_in(t).await;
        for (video, state) in [(&ours, "ready"), (&other, "failed")] {
            let address = format!("/videos/{}?lesson_id={}", video.id(), video.key.lesson_id);
            let link = format!("href=\"{address}\"");
            assert!(browser.text("/").await.contains(&link), "{link}");
            assert!(browser.text("/deliveries").await.contains(&link), "{link}");
            let page = browser.text(&address).await;
            assert!(page.contains(&format!("badge {state}")), "{page}");
        }
        let unknown = format!("/videos/{}?lesson_id={}", ours.id(), Uuid::new_v4());
        assert_eq!(browser.get(&unknown).await.status(), 404);
    }

    a_delivery_has_its_own_page(t) {
        let videos: Vec<_> = (0..8).map(|_| Video::good()).collect();
        let before = t.github.head();
        t.github.commit(|commit| videos.iter().fold(commit, |commit, video| video.write(commit)));
        let delivery = t.github.push(before, t.github.head());
        t.deliver(&delivery).await.expect_accepted();
        let browser = Browser::signed_in(t).await;
        let list = browser.text("/deliveries").await;
        let page = format!("/deliveries/{}", delivery.guid);
        assert!(list.contains(&format!("<a href=\"{page}\">and 3 more</a>")), "{list}");
        let page = browser.text(&page).await;
        for video in &videos {
            assert!(page.contains(&video.id()), "{page}");
        }
        assert!(page.contains(&format!("href=\"/?commit={}\"", t.github.head())), "{page}");
        assert_eq!(browser.get("/deliveries/no-such").await.status(), 404);
    }

    every_filter_of_the_api_is_kept_by_pagination(t) {
        for _ in 0..51 {
            let video = Video::with(TRUNCATED);
            t.row(&video).await;
            t.push(&video).await;
        }
        t.work().await;
        let browser = Browser::signed_in(t).await;
        let since = "since=2020-01-01T00%3A00%3A00Z";
        let list = browser.text(&format!("/?state=failed&code=truncated&{since}")).await;
        assert_eq!(list.matches("data-video").count(), 50);
        let next = list.split("<p class=\"more\"><a href=\"").nth(1).expect(&list);
        let next = next.split('"').next().unwrap().replace("&#38;", "&").replace("&amp;", "&");
        assert!(next.starts_with(&format!("/?state=failed&code=truncated&{since}&cursor=")), "{next}");
        assert_eq!(browser.text(&next).await.matches("data-video").count(), 1);
        assert_eq!(browser.get("/?since=yesterday").await.status(), 400);
    }

    changes_are_sent_as_live_events(t) {
        let video = Video::good();
        t.row(&video).await;
        let browser = Browser::signed_in(t).await;
        let mut events = browser.get("/api/events").await;
        assert_eq!(events.headers()["content-type"], "text/event-stream");
        t.push(&video).await;
        t.work().await;
        let mut received = String::new();
        while !received.contains("\"ready\"") {
            let chunk = tokio::time::timeout(Duration::from_secs(10), events.chunk()).await;
            let chunk = chunk.expect("an event within ten seconds").unwrap().unwrap();
            received += std::str::from_utf8(&chunk).unwrap();
        }
        let states: Vec<_> = received
            .split("\"state\":\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .collect();
        assert_eq!(states, ["queued", "running", "ready"], "{received}");
        assert!(received.starts_with("event: reload"), "{received}");
    }
}

/// Sign-in is the same on every back end.
#[tokio::test]
async fn nothing_is_shown_without_a_session() {
    let t = Scenario::begin(Backend::Embedded).await;
    let mut browser = Browser::new(&t);
    for page in ["/", "/deliveries", "/videos/x", "/videos/x/file"] {
        let answer = browser.get(page).await;
        assert_eq!(answer.status(), 303, "{page}");
        let to = answer.headers()["location"].to_str().unwrap().to_owned();
        assert!(to.starts_with("/sign-in?next="), "{to}");
    }
    assert_eq!(browser.get("/api/videos").await.status(), 401);
    assert_eq!(browser.sign_in("a wrong token", &[]).await.status(), 401);
    let foreign = browser
        .sign_in(ADMIN_TOKEN, &[("sec-fetch-site", "cross-site")])
        .await;
    assert_eq!(foreign.status(), 403);

    let answer = browser.sign_in(ADMIN_TOKEN, &[]).await;
    assert_eq!(answer.headers()["location"], "/deliveries");
    let set = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(
        set.contains("HttpOnly; SameSite=Strict") && !set.contains("Secure"),
        "{set}"
    );
    assert!(!set.contains(ADMIN_TOKEN), "{set}");

    browser.cookie = Some(cookie(&answer));
    let page = browser.get("/").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(browser.get("/api/videos").await.status(), 200);
    let ended = browser.post("/sign-out", &t.url).await;
    assert_eq!(cookie(&ended), "video_ingest_session=");

    t.later(Duration::from_secs(12 * 3600));
    assert_eq!(browser.get("/").await.status(), 303);
    t.finish().await;
}

#[tokio::test]
async fn wrong_sign_ins_are_slowed_and_the_right_token_always_works() {
    let t = Scenario::begin(Backend::Embedded).await;
    let browser = Browser::new(&t);
    let began = Instant::now();
    let guesses = (0..200).map(|_| async {
        let answer = browser.sign_in("a guess", &[]).await;
        (answer, began.elapsed())
    });
    let right = async {
        // The guesses were sent before.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut fastest = Duration::MAX;
        // A busy machine can delay any of them.
        for _ in 0..5 {
            let sent = Instant::now();
            assert_eq!(browser.sign_in(ADMIN_TOKEN, &[]).await.status(), 303);
            fastest = fastest.min(sent.elapsed());
        }
        fastest
    };
    let (guesses, fastest) = tokio::join!(join_all(guesses), right);
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    let refused = t.expect_slowed_down(guesses, "form").await;
    for answer in refused {
        let text = answer.text().await.unwrap();
        assert!(text.contains("Too many incorrect tokens"));
    }
    t.finish().await;
}

#[tokio::test]
async fn over_https_the_cookie_belongs_to_this_host_only() {
    let t = Scenario::begin(Backend::Embedded).await;
    let mut browser = Browser::new(&t);
    let https = [
        ("x-forwarded-proto", "https"),
        ("sec-fetch-site", "same-origin"),
    ];
    let plain = cookie(&browser.sign_in(ADMIN_TOKEN, &[]).await);
    assert!(plain.starts_with("video_ingest_session="), "{plain}");
    let answer = browser.sign_in(ADMIN_TOKEN, &https).await;
    let set = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(set.starts_with("__Host-video_ingest_session="), "{set}");
    assert!(
        set.contains("; Path=/;") && set.ends_with("; Secure"),
        "{set}"
    );
    assert!(!set.contains("Domain"), "{set}");
    let host = cookie(&answer);
    let secure = async |browser: &Browser, method: &str| {
        let url = format!(
            "{}/{}",
            t.url,
            if method == "POST" { "sign-out" } else { "" }
        );
        let request = browser.client.request(method.parse().unwrap(), url);
        let request = request.headers(browser.headers());
        let request = https.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        request.send().await.unwrap()
    };
    // Without the prefix, another host of the same domain could have set it.
    for (sent, status) in [(&host, 200), (&plain, 303)] {
        browser.cookie = Some(sent.clone());
        assert_eq!(secure(&browser, "GET").await.status(), status, "{sent}");
    }
    browser.cookie = Some(host);
    let ended = secure(&browser, "POST").await;
    let ended = ended.headers()["set-cookie"].to_str().unwrap();
    assert!(
        ended.starts_with("__Host-video_ingest_session=;"),
        "{ended}"
    );
    assert!(
        ended.contains("; Max-Age=0;") && ended.ends_with("; Secure"),
        "{ended}"
    );
    t.finish().await;
}

#[tokio::test]
async fn without_an_admin_token_there_is_no_page() {
    let t = Scenario::begin_with(Backend::Embedded, |config| config.admin_token = None).await;
    let browser = Browser::new(&t);
    for path in [
        "/",
        "/sign-in",
        "/assets/page.js",
        "/videos/x",
        "/api/events",
    ] {
        assert_eq!(browser.get(path).await.status(), 404, "{path}");
    }
    // Not even the page that describes an error.
    for path in ["/", "/no-such", "/api/videos"] {
        let answer = browser.as_browser(path).await;
        assert_eq!(answer.status(), 404, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let text = answer.text().await.unwrap();
        assert!(
            text.contains("The requested resource does not exist"),
            "{text}"
        );
    }
    t.finish().await;
}

#[tokio::test]
async fn browsers_get_a_page_for_an_error_and_programs_a_problem() {
    let t = Scenario::begin(Backend::Embedded).await;
    let browser = Browser::new(&t);
    for (path, status) in [("/no-such", 404), ("/api/videos", 401), ("/sign-out", 405)] {
        let page = browser.as_browser(path).await;
        assert_eq!(page.status(), status, "{path}");
        let headers = page.headers();
        assert_eq!(headers["content-type"], "text/html; charset=utf-8");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        let answer = browser.get(path).await;
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    t.finish().await;
}

/// The folder store only: Supabase Storage itself responds to range requests.
#[tokio::test]
async fn a_stored_video_supports_range_requests() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = Video::good();
    t.row(&video).await;
    t.push(&video).await;
    t.work().await;
    let browser = Browser::signed_in(&t).await;
    let request = browser
        .client
        .get(format!("{}/videos/{}/file", t.url, video.id()));
    let request = request
        .headers(browser.headers())
        .header("range", "bytes=100-199");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 206);
    assert_eq!(answer.headers()["content-type"], "video/mp4");
    assert_eq!(answer.bytes().await.unwrap(), video.mp4[100..200]);
    t.finish().await;
}

/// Supabase only: the folder store has no other origin.
#[tokio::test]
async fn a_video_in_supabase_redirects_to_a_signed_url() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    t.push(&video).await;
    t.work().await;
    let browser = Browser::signed_in(&t).await;
    let answer = browser.get(&format!("/videos/{}/file", video.id())).await;
    assert_eq!(answer.status(), 307);
    let url = answer.headers()["location"].to_str().unwrap();
    let policy = answer.headers()["content-security-policy"]
        .to_str()
        .unwrap();
    assert!(url.starts_with(&t.storage.url()), "{url}");
    assert!(
        policy.contains(&format!("media-src 'self' {};", t.storage.url())),
        "{policy}"
    );
    let played = browser.client.get(url).send().await.unwrap();
    assert_eq!(played.bytes().await.unwrap(), video.mp4);
    t.finish().await;
}

/// Supabase only: the embedded database has no lessons.
#[tokio::test]
async fn titles_stand_beside_ids_if_the_role_may_read_them() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    let database = t.database.as_ref().unwrap();
    database.run_script("lesson_titles.sql");
    let browser = Browser::signed_in(&t).await;
    for page in ["/", &format!("/videos/{}", video.id())] {
        let text = browser.text(page).await;
        let link = format!("href=\"/?q={}_\">", video.key.lesson_id);
        assert!(
            text.contains(&link) && text.contains("Photosynthesis</a>"),
            "{text}"
        );
    }
    t.finish().await;
}
