//! `verify=true` finds objects that differ from what was published or pushed.

use serde_json::Value;

use crate::support::fake_storage::{Fault, Op};
use crate::support::scenario::{AppRow, Backend, GOOD, SECOND, Scenario, Video};

/// A row as the function that this service replaces left it, with its object. The branch has the video.
async fn adopted(t: &Scenario, object: &[u8], is_lfs: bool) -> Video {
    let video = Video::good();
    let row = AppRow {
        storage_path: Some(t.path(&video)),
        ..AppRow::pending(video.key)
    };
    t.rows(&[row]).await;
    t.storage
        .insert(&format!("lesson-assets/{}", t.path(&video)), object);
    t.github.commit(|c| {
        if is_lfs {
            c.write_lfs(video.mp4_path(), video.mp4.clone())
                .write(video.json_path(), video.json.clone())
        } else {
            video.write(c)
        }
    });
    t.ask("/reconcile?wait=0").await;
    t.work().await;
    video
}

/// The same video with other bytes of the same size, which no box describes.
fn same_size() -> Vec<u8> {
    let mut bytes = GOOD.to_vec();
    let at = bytes.windows(4).position(|name| name == b"mdat").unwrap();
    bytes[at + 100] ^= 1;
    bytes
}

async fn verify(t: &Scenario) -> Value {
    let answer = t.ask("/reconcile?wait=0&verify=true").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json["errors"], serde_json::json!([]));
    answer.json
}

fn detail(report: &Value, video: &Video) -> Option<String> {
    let videos = report["videos"].as_array().unwrap();
    let found = videos.iter().find(|v| v["video_id"] == video.id())?;
    Some(found["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_older_version_of_the_same_size_is_found() {
    let t = Scenario::begin(Backend::Supabase).await;
    let v1 = Video::good();
    let v2 = v1.rerendered(&same_size());
    t.row(&v1).await;
    t.storage.fault(Op::Upload, Fault::Hold);
    t.push(&v1).await;
    t.work().await;
    t.push(&v2).await;
    t.work().await;
    t.expect_ready(&v2).await;
    t.storage.commit_held();
    let report = verify(&t).await;
    let reason = "The stored object has an unexpected hash";
    assert_eq!(detail(&report, &v2).as_deref(), Some(reason));
    t.work().await;
    t.expect_ready(&v2).await;
    assert_eq!(detail(&verify(&t).await, &v2), None);
    t.finish().await;
}

#[tokio::test]
async fn objects_of_another_program_are_compared_with_the_branch() {
    let t = Scenario::begin(Backend::Supabase).await;
    for is_lfs in [false, true] {
        let (size, hash) = (
            "The stored object has an unexpected size",
            "The stored object has an unexpected hash",
        );
        for (object, reason) in [
            (GOOD, None),
            (&GOOD[..5000], Some(size)),
            (&same_size()[..], Some(hash)),
            (SECOND, Some(size)),
        ] {
            let video = adopted(&t, object, is_lfs).await;
            let report = verify(&t).await;
            assert_eq!(detail(&report, &video).as_deref(), reason, "lfs: {is_lfs}");
            t.work().await;
            if reason.is_some() {
                t.expect_ready(&video).await;
            }
            assert_eq!(detail(&verify(&t).await, &video), None);
        }
    }
    t.finish().await;
}

#[tokio::test]
async fn an_object_whose_bytes_are_lost_is_uploaded_again() {
    let t = Scenario::begin(Backend::Supabase).await;
    let (lost, other) = (Video::good(), Video::good());
    for video in [&lost, &other] {
        t.row(video).await;
        t.push(video).await;
    }
    t.work().await;
    let path = format!("lesson-assets/{}", t.path(&lost));
    t.storage.lose_bytes(&path);
    let report = verify(&t).await;
    let reason = "The storage has lost the object's bytes";
    assert_eq!(detail(&report, &lost).as_deref(), Some(reason));
    assert_eq!(detail(&report, &other), None);
    t.work().await;
    t.expect_ready(&lost).await;
    assert_eq!(t.storage.uploads(&path), 2);
    assert_eq!(detail(&verify(&t).await, &lost), None);

    // In an outage, no object is reported as lost.
    for video in [&lost, &other] {
        t.storage
            .lose_bytes(&format!("lesson-assets/{}", t.path(video)));
    }
    let report = t.ask("/reconcile?wait=0&verify=true").await.json;
    assert_eq!(report["videos"], serde_json::json!([]));
    assert_eq!(report["errors"][0]["code"], "storage_unavailable");
    t.finish().await;
}
