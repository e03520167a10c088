//! Each malformed or incomplete push fails with its code and publishes nothing, and the queue continues.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;
use video_ingest::config::{Config, MissingRow};
use video_ingest::domain::ids::VideoKey;
use video_ingest::domain::lfs::{Pointer, Sha256};

use crate::scenario;
use crate::support::fake_github::{Call, Fault};
use crate::support::scenario::{Backend, GOOD, SECOND, Scenario, TRUNCATED, Video, metadata};

const AUDIO_ONLY: &[u8] = include_bytes!("../../fixtures/videos/audio_only.mp4");
const MOOV_LAST: &[u8] = include_bytes!("../../fixtures/videos/moov_last.mp4");
const HTML: &[u8] = include_bytes!("../../fixtures/videos/not_a_video.mp4");

const HOUR: Duration = Duration::from_secs(3600);

fn is_blob(call: &Call) -> bool {
    call.path.contains("/git/blobs/")
}

scenario! {
    each_bad_file_fails_with_its_code(t) {
        let pointer = Pointer { oid: Sha256::from_bytes([7; 32]), size: 5 };
        let key = Video::good().key;
        let other = Video::good().key;
        let json_of = |fields| metadata(key, fields);
        let mut cases = vec![
            ("half a file", Video::with(&GOOD[..GOOD.len() / 2]), "truncated"),
            ("a cut index", Video::with(TRUNCATED), "truncated"),
            ("an empty file", Video::with(b""), "not_an_mp4"),
            ("seven bytes", Video::with(b"ftypmp4"), "not_an_mp4"),
            ("an error page", Video::with(HTML), "not_an_mp4"),
            ("sound only", Video::with(AUDIO_ONLY), "no_video_track"),
            ("a pointer to nothing", Video::with(pointer.to_string().as_bytes()), "lfs_object_missing"),
        ];
        let jsons: [(&str, Bytes, &str); 7] = [
            ("broken JSON", "{".into(), "bad_metadata"),
            ("an array", "[]".into(), "bad_metadata"),
            ("an empty JSON", "".into(), "bad_metadata"),
            ("a JSON without ids", "{}".into(), "bad_metadata"),
            ("65 KiB of JSON", json_of(json!({"note": "x".repeat(65 << 10)})).into(), "bad_metadata"),
            ("another video's JSON", metadata(other, json!({})).into(), "metadata_mismatch"),
            ("another lesson's JSON", json_of(json!({"lesson_id": other.lesson_id})).into(), "metadata_mismatch"),
        ];
        for (name, json, code) in jsons {
            cases.push((name, Video { key: VideoKey { video_id: Uuid::new_v4(), ..key }, mp4: GOOD.into(), json }, code));
        }
        for (name, video, code) in &cases {
            t.row(video).await;
            t.push(video).await;
            t.work().await;
            println!("{name}: {code}");
            t.expect_reported(video, code).await;
        }
        assert_eq!(t.objects(), Vec::<String>::new());
        let good = Video::good();
        t.row(&good).await;
        t.push(&good).await;
        t.work().await;
        t.expect_ready(&good).await;
    }

    a_video_with_large_cover_art_becomes_ready(t) {
        let art = vec![0; 5 << 20];
        let video = Video::with(&with_cover_art(&art));
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        t.expect_ready(&video).await;
        assert_eq!(t.asset(&video).await.duration_ms, Some(1500));
    }

    a_repository_with_all_videos_in_lfs_is_ingested(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| {
            let c = c.write_lfs(video.mp4_path(), video.mp4.clone());
            c.write_lfs(video.json_path(), video.json.clone())
        });
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.expect_ready(&video).await;

        let large = Video::good();
        t.row(&large).await;
        let before = t.github.head();
        t.github.commit(|c| {
            let c = c.write(large.mp4_path(), large.mp4.clone());
            c.write_lfs(large.json_path(), vec![b' '; 65 << 10])
        });
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.github.take_calls();
        t.work().await;
        t.expect_reported(&large, "bad_metadata").await;
        let batches = t.github.take_calls().into_iter().filter(|call| call.path.ends_with("/objects/batch"));
        assert_eq!(batches.count(), 0, "not downloaded");
    }

    an_unusable_optional_field_is_a_warning(t) {
        let video = Video::good();
        let json = String::from_utf8(metadata(video.key, json!({"duration_sec": "?", "file_size": "?"}))).unwrap();
        let json = json.replacen("\"?\"", "NaN", 1).replacen("\"?\"", "1e999", 1);
        let json = json.replace(&video.id(), &video.id().to_uppercase());
        let video = video.with_json(json);
        t.row(&video).await;
        t.push(&video).await;
        t.work().await;
        t.expect_ready(&video).await;
        let warnings = t.video(&video).await["warnings"].clone();
        let ignored = |field| format!("The {field} field in the JSON file is invalid and was ignored.");
        assert_eq!(warnings, json!([ignored("duration_sec"), ignored("file_size")]));
    }

    a_corrupted_download_is_never_published(t) {
        let video = Video::good();
        t.row(&video).await;
        t.github.fault(|call| is_blob(call) && call.path.ends_with(&blob_of(GOOD)), Fault::CorruptByte { at: 5000 });
        t.push(&video).await;
        for wait in [0, 6, 17, 67, 331] {
            t.later(Duration::from_secs(wait));
            t.work().await;
            t.expect_state(&video, "queued", "corrupt_download").await;
            assert_eq!(t.stored(&video), None);
        }
        t.github.clear_faults();
        t.later(Duration::from_secs(991));
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_transient_failure_is_given_up_after_a_day(t) {
        let video = Video::good();
        t.row(&video).await;
        t.github.fault(is_blob, Fault::Status { code: 502, headers: vec![], body: "<html>".into() });
        t.push(&video).await;
        for _ in 0..40 {
            t.work().await;
            t.later(HOUR + HOUR / 8);
        }
        t.expect_reported(&video, "gave_up").await;
        t.github.clear_faults();
        assert_eq!(t.ask(&format!("/api/videos/{}/retry", video.id())).await.status, 202);
        t.work().await;
        t.expect_ready(&video).await;
    }

    a_json_alone_waits_for_its_video_until_the_deadline(t) {
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        t.github.commit(|c| c.write(video.json_path(), video.json.clone()));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.expect_state(&video, "waiting", "video_missing").await;
        t.later(6 * HOUR + HOUR / 8);
        t.work().await;
        t.expect_reported(&video, "video_missing").await;
        t.push(&video).await;
        t.work().await;
        t.expect_ready(&video).await;
    }

    removing_the_files_fails_a_pending_video_but_not_a_ready_one(t) {
        let (gone, ready) = (Video::good(), Video::good());
        for video in [&gone, &ready] {
            t.row(video).await;
        }
        t.push(&ready).await;
        t.work().await;
        t.push(&gone).await;
        let before = t.github.head();
        t.github.commit(|c| ready.remove(gone.remove(c)));
        t.deliver(&t.github.push(before, t.github.head())).await.expect_accepted();
        t.work().await;
        t.expect_reported(&gone, "video_missing").await;
        t.expect_ready(&ready).await;
    }

    a_row_of_another_lesson_cannot_be_changed(t) {
        let theirs = Video::good();
        t.row(&theirs).await;
        let mut mine = Video::with(SECOND);
        mine.key.video_id = theirs.key.video_id;
        mine.json = metadata(mine.key, json!({})).into();
        t.push(&mine).await;
        t.work().await;
        t.expect_failed(&mine, "row_mismatch").await;
        assert_eq!(t.asset(&theirs).await.mime_type, "video/mp4", "the other row is unchanged");
        t.push(&theirs).await;
        t.work().await;
        t.expect_ready(&theirs).await;
    }

    no_row_within_a_day_is_a_failure_until_the_row_exists(t) {
        let video = Video::good();
        t.push(&video).await;
        t.work().await;
        t.later(25 * HOUR);
        t.work().await;
        t.expect_failed(&video, "no_row").await;
        t.row(&video).await;
        assert_eq!(t.ask("/reconcile?wait=0").await.json["queued"], 1);
        t.work().await;
        t.expect_ready(&video).await;
    }

    nul_characters_cause_no_error(t) {
        let video = Video::good();
        let video = video.clone().with_json(metadata(video.key, json!({"format": "mp\u{0}4", "resolution": "\u{0}"})));
        t.row(&video).await;
        t.commit(&video);
        let mut delivery = t.github.push(t.github.head(), t.github.head());
        let touched = json!([{"id": t.github.head(), "added": [video.mp4_path(), "videos/a\u{0}b"], "modified": [], "removed": []}]);
        delivery.payload["commits"] = touched;
        delivery.payload["before"] = "95d09f2b10159347eece71399a7e2e907ea3df4f".into();
        t.deliver(&delivery).await.expect_accepted();
        t.work().await;
        t.expect_ready(&video).await;
        for question in ["videos?q=%00", "videos?state=%00", "videos?cursor=1.%00", "deliveries?cursor=1.%00", "videos?q=a%00_b"] {
            assert_eq!(t.get(&format!("/api/{question}")).await.status, 200, "{question}");
        }
    }

    deleting_the_row_during_processing_deletes_the_object(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        let reached = std::sync::Arc::new(tokio::sync::Notify::new());
        t.fail.arm("stored", video_ingest::failpoint::Fault::Pause(reached.clone()));
        let delete = async {
            while t.objects().is_empty() {
                tokio::task::yield_now().await;
            }
            t.sql(&format!("delete from lesson_assets where id = '{}'", video.id())).await;
            t.fail.disarm("stored");
            reached.notify_one();
        };
        tokio::join!(t.work(), delete);
        t.expect_state(&video, "waiting", "no_row").await;
        assert_eq!(t.objects(), Vec::<String>::new());
    }
}

/// On Supabase, the service cannot read rows of another kind; the code there is `no_row`.
#[tokio::test]
async fn a_row_of_another_kind_is_rejected() {
    let t = Scenario::begin(Backend::Embedded).await;
    let video = Video::good();
    t.row_of(video.key, "pdf").await;
    t.push(&video).await;
    t.work().await;
    t.expect_failed(&video, "row_mismatch").await;
    t.finish().await;
}

/// With `MISSING_ROW=create`, the lesson may be inserted after the push.
#[tokio::test]
async fn a_row_is_inserted_once_its_lesson_exists() {
    let create = |config: &mut Config| config.missing_row = MissingRow::Create;
    let t = Scenario::begin_with(Backend::Supabase, create).await;
    let database = t.database.as_ref().unwrap();
    database.run_script("missing_row_create.sql");
    let (video, notes) = (Video::good(), Video::good());
    t.row_of(notes.key, "notes").await;
    t.push(&video).await;
    t.push(&notes).await;
    t.work().await;
    t.expect_state(&video, "waiting", "no_row").await;
    t.expect_state(&notes, "failed", "row_mismatch").await;
    database.insert_lesson(video.key.lesson_id, t.user).await;
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}

/// A good video whose index (the last box) ends with the metadata of a media library.
fn with_cover_art(art: &[u8]) -> Vec<u8> {
    let boxed = |kind: &[u8; 4], content: &[u8]| {
        let size = u32::try_from(8 + content.len()).unwrap();
        [&size.to_be_bytes(), kind.as_slice(), content].concat()
    };
    let covr = boxed(b"covr", &boxed(b"data", art));
    let meta = boxed(
        b"meta",
        &[[0; 4].as_slice(), &boxed(b"ilst", &covr)].concat(),
    );
    let udta = boxed(b"udta", &meta);
    let at = MOOV_LAST
        .windows(4)
        .position(|kind| kind == b"moov")
        .unwrap()
        - 4;
    let (before, moov) = MOOV_LAST.split_at(at);
    [before, &boxed(b"moov", &[&moov[8..], &udta].concat())].concat()
}

fn blob_of(bytes: &[u8]) -> String {
    use sha1::Digest as _;
    hex::encode(
        sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()))
            .chain_update(bytes)
            .finalize(),
    )
}
