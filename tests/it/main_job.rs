//! The main job: a signed push becomes a playable video.

use std::time::Duration;

use serde_json::json;

use crate::scenario;
use crate::support::scenario::{GOOD, SECOND, TRUNCATED, Video, metadata};

scenario! {
    a_pushed_video_becomes_ready(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        t.expect_ready(&video).await;
        assert_eq!(t.steps(&video).await, ["received", "listed", "fetched", "checked", "stored", "ready"]);
    }

    either_order_of_json_and_mp4_gives_one_ready_video(t) {
        let (a, b) = (Video::good(), Video::good());
        t.row(&a).await;
        t.row(&b).await;
        for (video, json_first) in [(&a, true), (&b, false)] {
            for json in [json_first, !json_first] {
                let before = t.github.head();
                t.github.commit(|c| if json {
                    c.write(video.json_path(), video.json.clone())
                } else {
                    c.write(video.mp4_path(), video.mp4.clone())
                });
                t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
                t.work().await;
            }
            t.expect_ready(video).await;
        }
    }

    a_video_without_its_json_is_ingested_after_the_grace_period(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| c.write(video.mp4_path(), video.mp4.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.expect_state(&video, "waiting", "metadata_missing").await;
        t.later(Duration::from_secs(601));
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_replayed_push_never_restores_older_bytes(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        let first = t.push(&v1).await;
        t.work().await;
        t.push(&v2).await;
        t.work().await;
        t.deliver(&first).await.expect_accepted();
        t.work().await;
        t.expect_ready(&v2).await;
    }

    two_pushes_in_reverse_order_end_with_the_newest(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        let start = t.github.head();
        let c1 = t.commit(&v1);
        let c2 = t.commit(&v2);
        t.deliver(&t.github.push(c1, c2)).await.expect_accepted();
        t.work().await;
        t.deliver(&t.github.push(start, c1)).await.expect_accepted();
        t.work().await;
        t.expect_ready(&v2).await;
    }

    the_worker_waits_for_a_lagging_github(t) {
        let v1 = Video::good();
        let v2 = v1.rerendered(SECOND);
        t.row(&v1).await;
        let start = t.github.head();
        let c1 = t.commit(&v1);
        let c2 = t.commit(&v2);
        t.github.serve_head(Some(c1));
        // Also in reverse order: the older push must not replace the newer one.
        t.deliver(&t.github.push(c1, c2)).await.expect_accepted();
        t.deliver(&t.github.push(start, c1)).await.expect_accepted();
        t.work().await;
        t.expect_state(&v1, "queued", "github_unavailable").await;
        assert_eq!(t.video(&v1).await["attempts"], 0);
        t.github.serve_head(None);
        t.later(Duration::from_secs(3));
        t.work().await;
        t.expect_ready(&v2).await;
    }

    a_bad_video_fails_with_its_code_and_the_queue_continues(t) {
        let (bad, good) = (Video::with(TRUNCATED), Video::good());
        t.row(&bad).await;
        t.row(&good).await;
        t.push(&bad).await;
        t.push(&good).await;
        t.work().await;
        t.expect_reported(&bad, "truncated").await;
        t.expect_ready(&good).await;
    }

    a_bad_rerender_does_not_change_the_ready_video(t) {
        let v1 = Video::good();
        t.row(&v1).await;
        t.push(&v1).await;
        t.work().await;
        t.push(&v1.rerendered(TRUNCATED)).await;
        t.work().await;
        let asset = t.asset(&v1).await;
        assert_eq!(asset.mime_type, "video/mp4");
        assert_eq!(asset.metadata["ingest"]["last_error"]["code"], "truncated");
        assert_eq!(t.stored(&v1).as_deref(), Some(GOOD));
    }

    metadata_of_the_app_is_kept(t) {
        let video = Video::good();
        t.row(&video).await;
        t.sql(&format!(
            "update lesson_assets set metadata = '{{\"github_path\": \"x\", \"upload_token\": \"s\"}}' where id = '{}'",
            video.id()
        )).await;
        let conversation = "0123456789abcdef0123456789abcdef";
        let json = metadata(video.key, json!({"conversation_id": conversation, "duration_sec": 99}));
        let video = video.with_json(json);
        t.push(&video).await;
        t.work().await;
        t.expect_ready(&video).await;
        let asset = t.asset(&video).await;
        assert_eq!(asset.metadata["upload_token"], "s");
        assert_eq!(asset.conversation_id.as_deref(), Some(conversation));
        assert_eq!(asset.metadata["ingest"]["commit"], t.github.head().to_string());
        assert_eq!(asset.metadata["ingest"]["warnings"].as_array().unwrap().len(), 1);
    }

    a_row_inserted_late_is_noticed(t) {
        let video = Video::good();
        t.push(&video).await;
        t.work().await;
        t.expect_state(&video, "waiting", "no_row").await;
        t.row(&video).await;
        t.work().await;
        t.expect_ready(&video).await;
    }
}
