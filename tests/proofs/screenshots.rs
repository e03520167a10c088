//! Screenshots of the pages with the data of one day, for the README and for manual review.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::support::browser::{Browser, Settings};
use crate::support::scenario::{Backend, GOOD, Scenario, Video};
use crate::support::states;

const FOLDER: &str = "target/screenshots";

/// Videos that became ready in each hour of the day.
const DAY: [u32; 24] = [
    2, 1, 0, 0, 0, 1, 2, 4, 6, 7, 5, 6, 8, 6, 4, 5, 7, 9, 6, 4, 3, 5, 3, 2,
];

/// Widths, and heights that show whole pages, in pixels.
const HEIGHTS: [(u32, u32); 2] = [(1280, 1250), (390, 2300)];

pub async fn take() {
    std::fs::create_dir_all(FOLDER).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let t = Scenario::begin_with(Backend::Embedded, states::configure).await;
    take_screenshots(
        &t,
        &[
            ("empty", "/".into()),
            ("no-deliveries", "/deliveries".into()),
        ],
    )
    .await;
    for ready in DAY {
        for _ in 0..ready {
            let video = video_from(&mut rng, GOOD);
            t.row(&video).await;
            t.push(&video).await;
            t.later(Duration::from_millis(rng.u64(900..6_000)));
            t.work().await;
            // The first look at GitHub may be too early for the push.
            t.later(Duration::from_secs(3));
            t.work().await;
        }
        t.later(Duration::from_secs(3_600 - u64::from(ready) * 7));
    }
    let mut pages = states::create(&t, || id(&mut rng)).await;
    pages.push(("sign-in", String::new()));
    t.sql(
        "update videos set size_bytes = 9000000 + abs(random()) % 30000000,
            duration_ms = 31000 + abs(random()) % 120000 where state = 'ready'",
    )
    .await;
    take_screenshots(&t, &pages).await;
    println!("screenshots are in {FOLDER}");
}

/// A video with ids that are the same in every run.
fn video_from(rng: &mut fastrand::Rng, mp4: &'static [u8]) -> Video {
    let key = video_ingest::domain::ids::VideoKey {
        lesson_id: id(rng),
        video_id: id(rng),
    };
    Video {
        mp4: Bytes::from_static(mp4),
        ..Video::of(key)
    }
}

fn id(rng: &mut fastrand::Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid()
}

async fn take_screenshots(t: &Scenario, pages: &[(&str, String)]) {
    for (width, height) in HEIGHTS {
        for dark in [false, true] {
            let settings = Settings {
                width,
                height,
                dark,
                ..Settings::default()
            };
            let browser = Browser::signed_in(&t.url, settings).await;
            for (name, path) in pages {
                if path.is_empty() {
                    browser.go("/").await;
                    browser.press(".bar form button").await;
                    browser.sees("#token").await;
                } else {
                    browser.go(path).await;
                }
                // Wait for a frame of the video.
                browser
                    .ask(
                        "const [done] = arguments, video = document.querySelector('video');
                        if (!video) done();
                        else { video.onseeked = video.onerror = () => done(); video.currentTime = 0.5; }",
                    )
                    .await;
                let shade = if dark { "dark" } else { "light" };
                let file = Path::new(FOLDER).join(format!("{name}-{width}-{shade}.png"));
                std::fs::write(file, browser.page.screenshot().await.unwrap()).unwrap();
            }
            browser.close().await;
        }
    }
}
