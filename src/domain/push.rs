//! Push payloads, and the decision which videos to request.
//!
//! The file lists of a push only determine which videos are requested and whether a scan is required. The
//! content of the videos is always read from the branch.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use super::file_lists::{ECHO_CHARS_MAX, IGNORED_MAX, IgnoredPath, VIDEOS_MAX};
use super::file_lists::{FileLists, echo};
use super::ids::{GitSha, VideoKey};

/// A string of the payload, borrowed unless it contains escape sequences.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Members are raw where an error would quote their value, which may be as long as the body.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, rename = "ref")]
    git_ref: Text<'a>,
    before: Option<GitSha>,
    after: GitSha,
    #[serde(borrow, default)]
    forced: Option<&'a RawValue>,
    #[serde(borrow, default)]
    deleted: Option<&'a RawValue>,
    #[serde(borrow)]
    repository: &'a RawValue,
    /// Read once it is known that the push concerns this server.
    #[serde(borrow, default)]
    commits: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Repository<'a> {
    #[serde(borrow)]
    full_name: Text<'a>,
    #[serde(borrow)]
    default_branch: Option<Text<'a>>,
}

/// A parsed `push` payload, borrowing from its body.
pub struct Push<'a> {
    payload: Payload<'a>,
    repository: Repository<'a>,
}

/// The body is neither a `push` payload nor a form that contains one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Self {
        Self(format!(
            "The request body is not a valid push payload: {}.",
            echo(&error.to_string())
        ))
    }
}

impl<'a> Push<'a> {
    /// Parses a JSON body. Unused fields may be missing, null or of any type.
    ///
    /// # Errors
    /// The body is not JSON, or lacks `ref`, `after` or `repository.full_name`.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let payload: Payload<'a> = object(body)?;
        let repository = object(payload.repository.get().as_bytes())?;
        Ok(Self {
            payload,
            repository,
        })
    }

    /// The branch's head before the push; `None` if the branch is new.
    pub fn before(&self) -> Option<GitSha> {
        self.payload.before.filter(|sha| !sha.is_zero())
    }
}

/// Parses a JSON object.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Malformed> {
    if json.trim_ascii_start().starts_with(b"{") {
        return Ok(serde_json::from_slice(json)?);
    }
    Err(Malformed(
        "The request body is not a valid push payload: expected an object.".to_owned(),
    ))
}

fn is_true(value: Option<&RawValue>) -> bool {
    value.is_some_and(|value| value.get() == "true")
}

/// The JSON in a form body, which is the default content type of GitHub's webhooks. It is decoded into a
/// single buffer, because it can be as long as the longest body.
///
/// GitHub signs the body, but not the content type. Forms with other fields are therefore rejected: a signed
/// JSON body whose text contains `&payload=` would otherwise be a form with a forged payload.
///
/// # Errors
/// The form is not a single field `payload`.
pub fn payload_of_form(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    let encoded = body
        .strip_prefix(b"payload=")
        .filter(|encoded| !encoded.contains(&b'&'))
        .ok_or_else(|| {
            Malformed(
                "The form does not consist of a single `payload` field. Send it as GitHub does."
                    .to_owned(),
            )
        })?;
    let mut json = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let [first, after @ ..] = rest {
        let mut byte = [0];
        let digits = after.get(..2).unwrap_or_default();
        if *first == b'%' && hex::decode_to_slice(digits, &mut byte).is_ok() {
            json.push(byte[0]);
            rest = &after[2..];
        } else {
            json.push(if *first == b'+' { b' ' } else { *first });
            rest = after;
        }
    }
    Ok(json)
}

/// The decision about a push.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The push does not concern this server. Nothing is recorded.
    Ignored {
        /// What the push differs in.
        kind: Ignored,
        /// The reason, shown in GitHub's *Recent deliveries*.
        reason: String,
    },
    /// The push is recorded.
    Accepted(Intake),
}

/// What an ignored delivery differs in from the deliveries that this server processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// The repository: the webhook of another one, or the watched one was renamed or transferred.
    Repository,
    /// The branch, and videos were pushed to it.
    Branch,
    /// The folder of the videos.
    Folder,
    /// The name of a pushed MP4.
    Name,
    /// The event, or the push contains no change of a watched file.
    Other,
}

/// The requests that follow from a push.
#[derive(Debug, PartialEq, Eq)]
pub struct Intake {
    /// The branch's head before the push; `None` when the branch is new.
    pub before: Option<GitSha>,
    /// The branch's head after the push. The listing must contain it.
    pub after: GitSha,
    /// Whether a scan is required, because the file lists may be incomplete, or are too long.
    pub scan: bool,
    /// The videos in the file lists, sorted and without duplicates: at most [`VIDEOS_MAX`], and none if
    /// there were more.
    pub videos: Vec<VideoKey>,
    /// Other files of the videos folder, sorted by path: at most [`IGNORED_MAX`], and one more entry if
    /// files were omitted.
    pub ignored: Vec<IgnoredPath>,
}

/// Decides about a push. This server watches `branch` (by default, the default branch) of `repository`
/// (`owner/name`), and there the files directly in `videos_dir`.
///
/// # Errors
/// The push concerns this server, but its commits are not valid.
pub fn decide(
    push: &Push<'_>,
    repository: &str,
    branch: Option<&str>,
    videos_dir: &str,
) -> Result<Decision, Malformed> {
    let prefix = folder_prefix(videos_dir);
    let payload = &push.payload;
    let lists = |prefix: &str| match payload.commits {
        Some(commits) => FileLists::read(commits.get(), prefix),
        None => Ok(FileLists::default()),
    };
    if let Some((mut kind, reason)) = not_ours(push, repository, branch) {
        // Pushes to other branches are common, but not those of videos.
        if kind == Ignored::Branch && lists(&prefix).is_ok_and(|lists| lists.is_empty()) {
            kind = Ignored::Other;
        }
        return Ok(Decision::Ignored { kind, reason });
    }
    let lists = lists(&prefix)?;
    let is_empty = lists.is_empty();
    let (videos, ignored, unclear) = lists.settle(&prefix, payload.after);
    let scan = unclear || push.before().is_none() || is_true(payload.forced);
    if is_empty && !scan {
        let elsewhere = payload.commits.and_then(|commits| {
            let all = FileLists::read(commits.get(), "").ok()?;
            all.first_video_path()
        });
        let (kind, reason) = match elsewhere {
            Some(path) => (Ignored::Folder, format!("{path} is not in {prefix}")),
            None => (Ignored::Other, format!("no files in {prefix} were changed")),
        };
        return Ok(Decision::Ignored { kind, reason });
    }
    Ok(Decision::Accepted(Intake {
        before: push.before(),
        after: payload.after,
        scan,
        videos,
        ignored,
    }))
}

/// The reason why a push does not concern this server.
fn not_ours(push: &Push<'_>, repository: &str, branch: Option<&str>) -> Option<(Ignored, String)> {
    let payload = &push.payload;
    let full_name = &push.repository.full_name.0;
    if !full_name.eq_ignore_ascii_case(repository) {
        let reason = format!(
            "repository {}; this server watches {repository}",
            echo(full_name)
        );
        return Some((Ignored::Repository, reason));
    }
    let git_ref = &*payload.git_ref.0;
    let Some(pushed) = git_ref.strip_prefix("refs/heads/") else {
        let kind = match git_ref.strip_prefix("refs/tags/") {
            Some(tag) => format!("tag {}", echo(tag)),
            None => echo(git_ref),
        };
        let reason = format!("{kind}; only pushes to a branch are processed");
        return Some((Ignored::Other, reason));
    };
    let default_branch = push.repository.default_branch.as_ref();
    let Some(branch) = branch.or(default_branch.map(|text| &*text.0)) else {
        let reason = "the payload has no default branch; set GITHUB_BRANCH".to_owned();
        return Some((Ignored::Branch, reason));
    };
    if pushed != branch {
        let reason = format!(
            "branch {}; this server watches {}",
            echo(pushed),
            echo(branch)
        );
        return Some((Ignored::Branch, reason));
    }
    let is_deleted = is_true(payload.deleted) || payload.after.is_zero();
    is_deleted.then(|| {
        (
            Ignored::Other,
            format!("branch {} was deleted", echo(pushed)),
        )
    })
}

/// The common prefix of the paths in the folder: `videos/`, or nothing for the root.
fn folder_prefix(videos_dir: &str) -> String {
    match videos_dir.trim_matches('/') {
        "" | "." => String::new(),
        dir => format!("{dir}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file_lists::{COMMIT_FILES_MAX, COMMITS_MAX};
    use super::super::ids::NOT_A_VIDEO_NAME;
    use super::*;
    use proptest::prelude::*;

    const REPOSITORY: &str = "acme/video-artifacts";
    const LESSON: &str = "7d5c1f0e-3b52-4a6e-9a0f-2c64be1d8a11";
    const FIRST: &str = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d";
    const SECOND: &str = "5f4e3d2c-1b0a-4f9e-8d7c-6b5a49382716";

    fn key(video: &str) -> VideoKey {
        VideoKey::parse_stem(&format!("{LESSON}_{video}")).unwrap()
    }

    fn file(video: &str, extension: &str) -> String {
        format!("videos/{LESSON}_{video}.{extension}")
    }

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../fixtures/webhooks/", $name))
        };
    }

    fn decision(body: &[u8]) -> Decision {
        decide(&Push::parse(body).unwrap(), REPOSITORY, None, "videos").unwrap()
    }

    fn accepted(body: &[u8]) -> Intake {
        match decision(body) {
            Decision::Accepted(intake) => intake,
            Decision::Ignored { reason, .. } => panic!("ignored: {reason}"),
        }
    }

    fn reason(body: &[u8]) -> String {
        match decision(body) {
            Decision::Ignored { reason, .. } => reason,
            Decision::Accepted(intake) => panic!("accepted: {intake:?}"),
        }
    }

    fn reason_of<'a>(intake: &'a Intake, path: &str) -> Option<&'a str> {
        let entry = intake.ignored.iter().find(|entry| entry.path == path);
        entry.map(|entry| entry.reason.as_str())
    }

    /// A push with these lists of (added, modified, removed) files, oldest commit first.
    fn push_of(commits: &[[Vec<String>; 3]]) -> Vec<u8> {
        let sha = |n: usize| format!("{n:040x}");
        let commits: Vec<_> = commits
            .iter()
            .enumerate()
            .map(|(n, [added, modified, removed])| {
                serde_json::json!({
                    "id": sha(n + 1), "added": added, "modified": modified, "removed": removed,
                })
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({
            "ref": "refs/heads/main",
            "before": sha(usize::MAX),
            "after": sha(commits.len().max(1)),
            "repository": {"full_name": REPOSITORY, "default_branch": "main"},
            "commits": commits,
        }))
        .unwrap()
    }

    #[test]
    fn a_pushed_pair_is_one_video() {
        let intake = accepted(fixture!("push_added.json"));
        assert_eq!(intake.videos, [key(FIRST)]);
        assert!(!intake.scan && intake.ignored.is_empty());
        assert!(intake.before.is_some());
    }

    #[test]
    fn a_merge_brings_the_videos_of_all_its_commits() {
        let intake = accepted(fixture!("push_merge.json"));
        assert_eq!(intake.videos, [key(FIRST), key(SECOND)]);
        assert!(!intake.scan);
        assert_eq!(
            reason_of(&intake, "videos/notes.json"),
            Some(NOT_A_VIDEO_NAME)
        );
        assert_eq!(
            reason_of(&intake, "videos/drafts/take1.mp4"),
            Some("in a subfolder of videos/")
        );
    }

    #[test]
    fn incomplete_lists_require_a_scan() {
        for body in [
            fixture!("push_forced.json").as_slice(),
            fixture!("push_new_branch.json"),
            fixture!("push_no_lists.json"),
        ] {
            assert!(accepted(body).scan);
        }
        let nothing = || [vec![], vec![], vec![]];
        assert!(accepted(&push_of(&[])).scan);
        assert!(accepted(&push_of(&vec![nothing(); COMMITS_MAX])).scan);
        let many = |n| [vec!["src/x.ts".to_owned(); n], vec![], vec![]];
        assert!(accepted(&push_of(&[many(COMMIT_FILES_MAX)])).scan);
        reason(&push_of(&[many(COMMIT_FILES_MAX - 1)]));
        reason(&push_of(&vec![nothing(); COMMITS_MAX - 1]));
    }

    #[test]
    fn an_ignored_push_has_a_reason() {
        assert_eq!(
            reason(fixture!("push_tag.json")),
            "tag v1.2; only pushes to a branch are processed"
        );
        assert_eq!(
            reason(fixture!("push_deleted.json")),
            "branch main was deleted"
        );
        assert_eq!(
            reason(fixture!("push_other_files.json")),
            "no files in videos/ were changed"
        );
        let push = Push::parse(fixture!("push_added.json")).unwrap();
        let reason = |repository, branch| match decide(&push, repository, branch, "videos").unwrap()
        {
            Decision::Ignored { reason, .. } => Some(reason),
            Decision::Accepted(_) => None,
        };
        assert_eq!(
            reason("acme/other", None).as_deref(),
            Some("repository acme/video-artifacts; this server watches acme/other")
        );
        assert_eq!(
            reason(REPOSITORY, Some("release")).as_deref(),
            Some("branch main; this server watches release")
        );
        assert_eq!(reason("Acme/Video-Artifacts", Some("main")), None);
    }

    #[test]
    fn the_last_change_of_a_file_counts() {
        let name = || file(FIRST, "mp4");
        let added = || [vec![name()], vec![], vec![]];
        let modified = || [vec![], vec![name()], vec![]];
        let removed = || [vec![], vec![], vec![name()]];

        let gone = accepted(&push_of(&[added(), removed()]));
        assert!(gone.videos.is_empty());
        assert_eq!(reason_of(&gone, &name()), Some("removed"));

        assert!(accepted(&push_of(&[removed()])).videos.is_empty());
        let back = accepted(&push_of(&[removed(), added()]));
        assert_eq!(back.videos, [key(FIRST)]);
        let changed = accepted(&push_of(&[added(), removed(), modified()]));
        assert_eq!(changed.videos, [key(FIRST)]);
    }

    #[test]
    fn only_a_removal_by_the_head_counts() {
        let name = || file(FIRST, "mp4");
        let added = || [vec![name()], vec![], vec![]];
        let removed = || [vec![], vec![], vec![name()]];
        let other = || [vec!["src/x.ts".to_owned()], vec![], vec![]];

        // The other commit may be a merge that kept the file.
        let unclear = accepted(&push_of(&[removed(), other()]));
        assert!(unclear.scan && unclear.videos.is_empty());
        let unclear = accepted(&push_of(&[added(), removed(), other()]));
        assert!(unclear.scan);
        assert_eq!(unclear.videos, [key(FIRST)]);

        let undone = accepted(&push_of(&[removed(), added(), other()]));
        assert!(!undone.scan);
        assert_eq!(undone.videos, [key(FIRST)]);
        let gone = accepted(&push_of(&[added(), removed(), other(), removed()]));
        assert!(!gone.scan && gone.videos.is_empty());
        let notes = [vec![], vec![], vec!["videos/notes.txt".to_owned()]];
        assert!(!accepted(&push_of(&[notes, other()])).scan);
    }

    #[test]
    fn without_the_head_as_last_commit_no_removal_counts() {
        let name = || file(FIRST, "mp4");
        let body = push_of(&[
            [vec![name()], vec![], vec![]],
            [vec![], vec![], vec![name()]],
        ]);
        let reversed = String::from_utf8(body).unwrap().replacen(
            &format!("{:040x}", 2),
            &format!("{:040x}", 9),
            1,
        );
        let intake = accepted(reversed.as_bytes());
        assert!(intake.scan);
        assert_eq!(intake.videos, [key(FIRST)]);
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        let push = push_of(&[
            [vec![file(FIRST, "mp4")], vec![], vec![]],
            [vec![file(SECOND, "mp4")], vec![], vec![file(FIRST, "mp4")]],
        ]);
        let expected = accepted(&push);
        let members: serde_json::Map<_, _> = serde_json::from_slice(&push).unwrap();
        let mut members: Vec<_> = members.iter().collect();
        for _ in 0..members.len() {
            members.rotate_left(1);
            let written = members
                .iter()
                .map(|(name, value)| format!("\"{name}\":{value}"));
            let body = format!("{{{}}}", written.collect::<Vec<_>>().join(","));
            assert_eq!(accepted(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_rename_requests_the_new_name() {
        let rename = [
            vec![file(SECOND, "mp4")],
            vec![],
            vec![file(FIRST, "mp4"), "videos/old.mp4".to_owned()],
        ];
        let intake = accepted(&push_of(&[rename]));
        assert_eq!(intake.videos, [key(SECOND)]);
        assert_eq!(reason_of(&intake, &file(FIRST, "mp4")), Some("removed"));
    }

    #[test]
    fn names_of_any_script_and_length_are_shortened() {
        let intake = accepted(fixture!("push_unicode.json"));
        assert!(intake.videos.is_empty());
        assert_eq!(
            reason_of(&intake, "videos/урок 1_видео 🎬.mp4"),
            Some(NOT_A_VIDEO_NAME)
        );
        let long = format!("videos/{}.mp4", "я".repeat(10_000));
        let intake = accepted(&push_of(&[[vec![long], vec![], vec![]]]));
        assert_eq!(intake.ignored[0].path.chars().count(), ECHO_CHARS_MAX);
        assert!(intake.ignored[0].path.ends_with('…'));
        // A folder whose name is longer than what is shown of a path.
        let folder = "я".repeat(ECHO_CHARS_MAX);
        let paths = vec![format!("{folder}/notes.txt"), format!("{folder}/a/b.txt")];
        let body = push_of(&[[paths, vec![], vec![]]]);
        assert!(decide(&Push::parse(&body).unwrap(), REPOSITORY, None, &folder).is_ok());
    }

    /// Of the same lesson, with these numbers.
    fn files(numbers: std::ops::Range<usize>) -> Vec<String> {
        let video = |n| format!("{n:08x}-4e5f-4a6b-8c7d-9e0f1a2b3c4d");
        numbers.map(|n| file(&video(n), "mp4")).collect()
    }

    #[test]
    fn more_videos_than_the_maximum_require_a_scan() {
        let most = accepted(&push_of(&[[files(0..VIDEOS_MAX), vec![], vec![]]]));
        assert_eq!((most.videos.len(), most.scan), (VIDEOS_MAX, false));
        let both = [files(0..1500), files(0..1500), vec![]];
        assert_eq!(accepted(&push_of(&[both])).videos.len(), 1500);
        let more = [files(0..1500), files(1500..VIDEOS_MAX + 1), vec![]];
        let more = accepted(&push_of(&[more]));
        assert_eq!((more.videos.len(), more.scan), (0, true));
        let again = [files(0..1500), files(1500..2500), files(0..2)];
        assert!(
            accepted(&push_of(&[again, [files(0..2), vec![], vec![]]]))
                .videos
                .is_empty()
        );
    }

    #[test]
    fn the_first_ignored_files_are_listed() {
        let others = (0..IGNORED_MAX + 37).map(|n| format!("videos/{n:03}.txt"));
        let others = others.rev().collect();
        let intake = accepted(&push_of(&[[files(0..1), others, vec![]]]));
        assert_eq!(intake.videos.len(), 1);
        assert_eq!(intake.ignored.len(), IGNORED_MAX + 1);
        assert_eq!(intake.ignored[0].path, "videos/000.txt");
        assert_eq!(intake.ignored[IGNORED_MAX].reason, "and more");
        let removed = accepted(&push_of(&[[vec![], vec![], files(0..IGNORED_MAX + 1)]]));
        assert_eq!(removed.ignored.len(), IGNORED_MAX + 1);
    }

    #[test]
    fn the_folder_may_be_nested_or_the_root() {
        let body = push_of(&[[vec![format!("out/{}", file(FIRST, "mp4"))], vec![], vec![]]]);
        let push = Push::parse(&body).unwrap();
        let videos = |dir| match decide(&push, REPOSITORY, None, dir).unwrap() {
            Decision::Accepted(intake) => intake.videos.len(),
            Decision::Ignored { .. } => 0,
        };
        assert_eq!(videos("out/videos"), 1);
        assert_eq!(videos("out/videos/"), 1);
        assert_eq!(videos("videos"), 0);
        assert_eq!(videos("out/vid"), 0);
        assert_eq!(videos(""), 0);
    }

    #[test]
    fn a_form_contains_the_same_push() {
        let json = payload_of_form(fixture!("push_form.body")).unwrap();
        assert_eq!(accepted(&json).videos, [key(FIRST)]);
        let decoded = payload_of_form(b"payload=a+b%2B%c3%A9%26%").unwrap();
        assert_eq!(decoded, "a b+é&%".as_bytes());
        for other in [
            "",
            "pay=load",
            "payload",
            " payload={}",
            "a=b&payload={}",
            "payload={}&",
            "payload={}&payload={}",
            "{\"text\":\"&payload={}\"}",
        ] {
            assert!(payload_of_form(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn other_bodies_are_malformed() {
        for body in [
            fixture!("ping.json").as_slice(),
            b"",
            b"[]",
            b"null",
            b"{}",
            b"{\"ref\":",
            b"\xff\xfe",
        ] {
            assert!(Push::parse(body).is_err());
        }
    }

    #[test]
    fn the_error_does_not_grow_with_the_body() {
        let long = serde_json::Value::from("\x7f".repeat(10_000));
        let whole: serde_json::Value = serde_json::from_slice(&push_of(&[])).unwrap();
        let mut bodies = vec![long.clone(), serde_json::json!([long])];
        for name in ["after", "before", "forced", "repository", "commits"] {
            let mut body = whole.clone();
            body[name] = long.clone();
            bodies.push(body);
        }
        for commits in [
            serde_json::json!([long]),
            serde_json::json!([{"added": long}]),
        ] {
            let mut body = whole.clone();
            body["commits"] = commits;
            bodies.push(body);
        }
        for body in bodies {
            let body = body.to_string();
            let decided = Push::parse(body.as_bytes())
                .and_then(|push| decide(&push, REPOSITORY, None, "videos"));
            let error = decided.err().map_or(0, |error| error.to_string().len());
            assert!(error < 2 * ECHO_CHARS_MAX, "{error} bytes");
        }
    }

    /// Arbitrary JSON, usually with the field names of a push.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        let name = prop_oneof![
            prop::sample::select(vec![
                "ref",
                "before",
                "after",
                "forced",
                "deleted",
                "repository",
                "full_name",
                "default_branch",
                "commits",
                "id",
                "added",
                "modified",
                "removed",
            ])
            .prop_map(str::to_owned),
            any::<String>(),
        ];
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
            "[0-9a-f]{40}".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::vec((name.clone(), inner), 0..8)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn arbitrary_json_does_not_panic(json in json()) {
            let body = serde_json::to_vec(&json).unwrap();
            if let Ok(push) = Push::parse(&body) {
                let _ = decide(&push, REPOSITORY, None, "videos");
            }
        }

        #[test]
        fn arbitrary_paths_and_refs_do_not_panic(
            paths in prop::collection::vec("(videos/)?\\PC{0,300}", 0..40),
            git_ref in "(refs/(heads|tags)/)?\\PC{0,300}",
        ) {
            let (a, b) = paths.split_at(paths.len() / 2);
            let body = push_of(&[[a.to_vec(), b.to_vec(), a.to_vec()]]);
            let body = String::from_utf8(body).unwrap()
                .replace("\"refs/heads/main\"", &serde_json::to_string(&git_ref).unwrap());
            let push = Push::parse(body.as_bytes()).unwrap();
            for branch in [None, Some("main"), git_ref.strip_prefix("refs/heads/")] {
                if let Ok(Decision::Accepted(intake)) = decide(&push, REPOSITORY, branch, "videos") {
                    prop_assert!(intake.ignored.len() <= IGNORED_MAX + 1);
                }
            }
        }
    }
}
