//! The fuzz targets: everything that reads external data. Each accepts any bytes and must return.

use secrecy::SecretString;
use video_ingest::domain::generation::{
    Conversation, ErrorPage, EventPage, GenerationStatus, StartTask, V0Conversation, V0EventPage,
    conversation_id,
};
use video_ingest::domain::ids::VideoKey;
use video_ingest::domain::lfs::Pointer;
use video_ingest::domain::metadata::Metadata;
use video_ingest::domain::mp4::BoxWalk;
use video_ingest::domain::push::{Decision, Push, decide, payload_of_form};
use video_ingest::domain::redact::Redactor;
use video_ingest::domain::signature;
use video_ingest::services::github::{Listing, Pair};

/// Accepts any bytes.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `fixtures/fuzz`.
pub const TARGETS: [(&str, Target); 9] = [
    ("signature", signature_header),
    ("push", push),
    ("form", form),
    ("name", name),
    ("metadata", metadata),
    ("mp4", mp4),
    ("pointer", pointer),
    ("listing", listing),
    ("openhands", openhands),
];

/// The first line is the header, the rest the body.
fn signature_header(data: &[u8]) {
    let secret = SecretString::from("a webhook secret for tests");
    let end = data
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(data.len());
    let (header, body) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let right = signature::sign(&secret, body);
    let header = std::str::from_utf8(header).ok();
    let verified = signature::verify(&[secret], header, body);
    assert_eq!(verified, header == Some(&*right));
}

fn push(data: &[u8]) {
    let Ok(push) = Push::parse(data) else {
        return;
    };
    for branch in [None, Some("main")] {
        let decision = decide(&push, "acme/video-artifacts", branch, "videos");
        if let Ok(Decision::Accepted(intake)) = decision {
            let written: usize = intake.ignored.iter().map(|path| path.path.len()).sum();
            assert!(written < 1 << 20, "a response of {written} bytes");
        }
    }
}

fn form(data: &[u8]) {
    if let Ok(payload) = payload_of_form(data) {
        push(&payload);
    }
}

fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Some((key, kind)) = VideoKey::parse_file_name(text) {
        assert_eq!(key.file_name(kind), text, "one file has two names");
    }
}

fn metadata(data: &[u8]) {
    let key = "7d5c1f0e-3b52-4a6e-9a0f-2c64be1d8a11_0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d";
    let Some(key) = VideoKey::parse_stem(key) else {
        return;
    };
    if let Ok(metadata) = Metadata::parse(data, &key)
        && let Some(id) = &metadata.conversation_id
    {
        assert!(
            id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'),
            "{id}"
        );
    }
}

/// The result must be the same in pieces and at once.
fn mp4(data: &[u8]) {
    let walked = |piece: usize| {
        let mut walk = BoxWalk::new(data.len() as u64);
        data.chunks(piece).for_each(|chunk| walk.feed(chunk));
        walk.finish()
    };
    assert_eq!(walked(7), walked(data.len().max(1)));
}

fn pointer(data: &[u8]) {
    if let Some(pointer) = Pointer::parse(data) {
        assert_eq!(
            Pointer::parse(pointer.to_string().as_bytes()),
            Some(pointer)
        );
    }
}

fn listing(data: &[u8]) {
    if let Ok(listing) = serde_json::from_slice::<Listing>(data) {
        let pairs = listing.files.values();
        assert!(pairs.copied().all(|pair| pair != Pair::default()));
        assert!(listing.ignored.len() <= 100);
    }
}

fn openhands(data: &[u8]) {
    const NOW_MS: i64 = 1_770_000_000_000;
    if let Ok(text) = std::str::from_utf8(data) {
        conversation_id(text);
    }
    if let Ok(rows) = serde_json::from_slice::<Vec<Option<Conversation>>>(data) {
        rows.iter()
            .flatten()
            .for_each(|row| drop(row.status(NOW_MS)));
    }
    if let Ok(rows) = serde_json::from_slice::<Vec<Option<StartTask>>>(data) {
        let redactor = Redactor::new(["secret"]);
        let tasks = rows.iter().flatten();
        tasks.for_each(|task| drop(task.outcome(&redactor)));
    }
    if let Ok(page) = serde_json::from_slice::<ErrorPage>(data) {
        for error in &page.items {
            let mut status = GenerationStatus::failed("the agent got stuck");
            status.explain(error, &Redactor::new(["secret"]));
            assert!(!status.sentence().contains("secret"));
        }
    }
    if let Ok(row) = serde_json::from_slice::<Option<V0Conversation>>(data) {
        row.iter().for_each(|row| drop(row.status()));
    }
    if let Ok(page) = serde_json::from_slice::<EventPage>(data) {
        page.state();
    }
    if let Ok(page) = serde_json::from_slice::<V0EventPage>(data) {
        page.state();
    }
}
