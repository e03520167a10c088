//! Invariants of `src/lib.rs` that no other file covers: the fence of the lease, repeated steps and the
//! confirmation by the storage. Every invariant must have mutations that apply.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use video_ingest::db::ClaimError;
use video_ingest::domain::failure::Code;
use video_ingest::domain::plan::End;
use video_ingest::failpoint::Fault;

use crate::scenario;
use crate::support::fake_storage::{Answer, Fault as StorageFault, Op};
use crate::support::scenario::{Backend, Scenario, Video};

const LEASE: Duration = Duration::from_secs(30);

scenario! {
    late_writes_of_a_dead_worker_are_rejected(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        let dead = t.db.claim(LEASE).await.unwrap().unwrap();
        t.later(LEASE + Duration::from_secs(1));
        let next = t.db.claim(LEASE).await.unwrap().unwrap();
        assert!(matches!(t.db.renew(&dead, LEASE).await, Err(ClaimError::LeaseLost)));
        assert!(matches!(t.db.finish(&dead, None, &End::Unchanged, &[]).await, Err(ClaimError::LeaseLost)));
        t.db.hand_back(&dead).await.unwrap();
        assert_eq!(t.video(&video).await["state"], "running", "the next worker holds the claim");
        t.db.hand_back(&next).await.unwrap();
        t.work().await;
        t.expect_ready(&video).await;
    }

    an_expired_lease_is_taken_over_before_later_videos(t) {
        let video = Video::good();
        t.row(&video).await;
        t.push(&video).await;
        let _dead = t.db.claim(LEASE).await.unwrap().unwrap();
        t.later(LEASE + Duration::from_secs(1));
        for _ in 0..3 {
            let queued = Video::good();
            t.row(&queued).await;
            t.push(&queued).await;
        }
        t.worker.run_once().await.unwrap();
        t.expect_state(&video, "queued", "lease_expired").await;
    }
}

/// If an attempt ends between the last byte and the confirmation, the next one recognizes the object by its
/// hash.
#[tokio::test]
async fn stored_bytes_are_uploaded_once() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    t.fail
        .arm("uploaded", Fault::Fail(Code::StorageUnavailable));
    t.push(&video).await;
    t.work().await;
    t.fail.disarm("uploaded");
    t.later(Duration::from_secs(10));
    t.work().await;
    t.expect_ready(&video).await;
    let object = format!("lesson-assets/{}", t.path(&video));
    assert_eq!(t.storage.uploads(&object), 1);
    t.finish().await;
}

#[tokio::test]
async fn an_accepted_but_missing_object_is_not_ready() {
    let t = Scenario::begin(Backend::Supabase).await;
    let video = Video::good();
    t.row(&video).await;
    let taken = Answer::new(200, "application/json", r#"{"Key":"x","Id":"y"}"#);
    t.storage.fault(Op::Upload, StorageFault::Answer(taken));
    t.push(&video).await;
    t.work().await;
    t.expect_state(&video, "queued", "storage_unavailable")
        .await;
    assert_eq!(t.asset(&video).await.storage_path, None);
    t.later(Duration::from_secs(10));
    t.work().await;
    t.expect_ready(&video).await;
    t.finish().await;
}

/// `tests/mutations.sh` runs the tests with each patch, which must therefore apply to the current code.
#[test]
fn each_invariant_has_mutations_that_apply() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut invariants = [false; 9];
    for patch in std::fs::read_dir(root.join("tests/mutations")).unwrap() {
        let patch = patch.unwrap().path();
        let name = patch.file_name().unwrap().to_str().unwrap();
        let number: usize = name.split('-').next().unwrap().parse().unwrap();
        invariants[number - 1] = true;
        let mut git = Command::new("git");
        let check = git.args(["apply", "--check"]).arg(&patch);
        let applies = check
            .current_dir(root)
            .status()
            .expect("apt-get install git");
        assert!(applies.success(), "{name} no longer applies");
    }
    assert_eq!(invariants, [true; 9], "in the order of src/lib.rs");
}
