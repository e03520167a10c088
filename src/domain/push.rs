//! Push payloads, and the decision which videos to request.
//!
//! The file lists of a push only determine which videos are requested and whether a scan is required. The
//! content of the videos is always read from the branch.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ids::{GitSha, NOT_A_VIDEO_NAME, VideoKey};

/// The maximum number of commits that GitHub lists in a push. With this many, some may be missing.
/// Source: GitHub's webhook documentation of `push` (`commits`).
const COMMITS_MAX: usize = 2048;

/// The maximum number of changed files that GitHub lists per commit. Source: as above.
const COMMIT_FILES_MAX: usize = 3000;

/// The maximum number of entries in [`Intake::ignored`], without the final one that counts the rest.
pub const IGNORED_MAX: usize = 100;

/// The longest text of a payload that is repeated in a response or stored, in characters.
pub const ECHO_CHARS_MAX: usize = 200;

/// A string of the payload, borrowed unless it contains escape sequences.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, rename = "ref")]
    git_ref: Text<'a>,
    before: Option<GitSha>,
    after: GitSha,
    #[serde(default)]
    forced: Option<bool>,
    #[serde(default)]
    deleted: Option<bool>,
    #[serde(borrow)]
    repository: Repository<'a>,
    #[serde(borrow, default)]
    commits: Option<Vec<Commit<'a>>>,
}

#[derive(Deserialize)]
struct Repository<'a> {
    #[serde(borrow)]
    full_name: Text<'a>,
    #[serde(borrow)]
    default_branch: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Commit<'a> {
    id: Option<GitSha>,
    #[serde(borrow)]
    added: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    modified: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    removed: Option<Vec<Text<'a>>>,
}

impl Commit<'_> {
    /// Whether changed files may be missing from the lists.
    fn is_incomplete(&self) -> bool {
        let lists = [&self.added, &self.modified, &self.removed];
        let files: usize = lists.iter().copied().flatten().map(Vec::len).sum();
        lists.iter().any(|list| list.is_none()) || files >= COMMIT_FILES_MAX
    }
}

/// A parsed `push` payload, borrowing from its body.
pub struct Push<'a>(Payload<'a>);

/// The body is neither a `push` payload nor a form that contains one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl<'a> Push<'a> {
    /// Parses a JSON body. Unused fields may be missing, null or of any type.
    ///
    /// # Errors
    /// The body is not JSON, or lacks `ref`, `after` or `repository.full_name`.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let payload = serde_json::from_slice(body).map_err(|error| {
            // serde_json quotes unexpected values, which may be as long as the body.
            Malformed(format!(
                "The request body is not a valid push payload: {}.",
                echo(&error.to_string())
            ))
        })?;
        Ok(Self(payload))
    }

    /// The branch's head before the push; `None` if the branch is new.
    pub fn before(&self) -> Option<GitSha> {
        self.0.before.filter(|sha| !sha.is_zero())
    }

    /// Whether the file lists may be incomplete, so that a scan is required.
    fn must_scan(&self) -> bool {
        let commits = self.0.commits.as_deref().unwrap_or_default();
        self.before().is_none()
            || self.0.forced == Some(true)
            || commits.is_empty()
            || commits.len() >= COMMITS_MAX
            || commits.iter().any(Commit::is_incomplete)
    }

    /// The listed paths under `prefix`, and whether they should exist after the push.
    ///
    /// A removal counts only if the order of the commits is certain, because the last one is the new head.
    /// An unnecessary request is harmless, a missing one is not.
    fn changed(&self, prefix: &str) -> BTreeMap<&str, bool> {
        let commits = self.0.commits.as_deref().unwrap_or_default();
        let in_order = commits
            .last()
            .is_some_and(|last| last.id == Some(self.0.after));
        let mut changed = BTreeMap::new();
        for commit in commits {
            for Text(path) in commit.removed.iter().flatten() {
                if path.starts_with(prefix) {
                    let exists = changed.entry(&**path).or_insert(false);
                    *exists &= !in_order;
                }
            }
            for Text(path) in commit.added.iter().chain(&commit.modified).flatten() {
                if path.starts_with(prefix) {
                    changed.insert(&**path, true);
                }
            }
        }
        changed
    }
}

/// The JSON in a form body, which is the default content type of GitHub's webhooks.
///
/// # Errors
/// The form has no field `payload`.
pub fn payload_of_form(body: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    form_urlencoded::parse(body)
        .find_map(|(name, value)| (name == "payload").then_some(value))
        .ok_or_else(|| Malformed("The form has no `payload` field.".to_owned()))
}

/// The decision about a push.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// The push does not concern this server. Nothing is recorded.
    Ignored {
        /// The reason, shown in GitHub's *Recent deliveries*.
        reason: String,
    },
    /// The push is recorded.
    Accepted(Intake),
}

/// The requests that follow from a push.
#[derive(Debug, PartialEq, Eq)]
pub struct Intake {
    /// The branch's head before the push; `None` when the branch is new.
    pub before: Option<GitSha>,
    /// The branch's head after the push. The listing must contain it.
    pub after: GitSha,
    /// Whether a scan is required, because the file lists may be incomplete.
    pub scan: bool,
    /// The videos in the file lists, sorted and without duplicates.
    pub videos: Vec<VideoKey>,
    /// Other files of the videos folder, sorted by path: at most [`IGNORED_MAX`], and one more entry with
    /// the number of omitted files.
    pub ignored: Vec<IgnoredPath>,
}

/// A file of the videos folder that is ignored.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct IgnoredPath {
    /// The path, limited to [`ECHO_CHARS_MAX`] characters.
    pub path: String,
    /// The reason, for people.
    pub reason: String,
}

/// Decides about a push. This server watches `branch` (by default, the default branch) of `repository`
/// (`owner/name`), and there the files directly in `videos_dir`.
pub fn decide(
    push: &Push<'_>,
    repository: &str,
    branch: Option<&str>,
    videos_dir: &str,
) -> Decision {
    match accept(push, repository, branch, videos_dir) {
        Ok(intake) => Decision::Accepted(intake),
        Err(reason) => Decision::Ignored { reason },
    }
}

/// The intake, or the reason why the push is ignored.
fn accept(
    push: &Push<'_>,
    repository: &str,
    branch: Option<&str>,
    videos_dir: &str,
) -> Result<Intake, String> {
    let payload = &push.0;
    let full_name = &payload.repository.full_name.0;
    if !full_name.eq_ignore_ascii_case(repository) {
        return Err(format!(
            "repository {}; this server watches {repository}",
            echo(full_name)
        ));
    }
    let git_ref = &*payload.git_ref.0;
    let Some(pushed) = git_ref.strip_prefix("refs/heads/") else {
        let kind = match git_ref.strip_prefix("refs/tags/") {
            Some(tag) => format!("tag {}", echo(tag)),
            None => echo(git_ref),
        };
        return Err(format!("{kind}; only pushes to a branch are processed"));
    };
    let default_branch = payload.repository.default_branch.as_ref();
    let Some(branch) = branch.or(default_branch.map(|text| &*text.0)) else {
        return Err("the payload has no default branch; set GITHUB_BRANCH".to_owned());
    };
    if pushed != branch {
        return Err(format!(
            "branch {}; this server watches {}",
            echo(pushed),
            echo(branch)
        ));
    }
    if payload.deleted == Some(true) || payload.after.is_zero() {
        return Err(format!("branch {} was deleted", echo(pushed)));
    }

    let prefix = folder_prefix(videos_dir);
    let changed = push.changed(&prefix);
    let scan = push.must_scan();
    if changed.is_empty() && !scan {
        return Err(format!("no files in {prefix} were changed"));
    }

    let mut videos = BTreeSet::new();
    let mut ignored = Vec::new();
    let mut omitted = 0_usize;
    for (path, exists) in changed {
        let reason = match path.strip_prefix(&prefix) {
            _ if !exists => "removed".to_owned(),
            Some(name) if name.contains('/') => format!("in a subfolder of {prefix}"),
            name => match name.and_then(VideoKey::parse_file_name) {
                Some((key, _)) => {
                    videos.insert(key);
                    continue;
                }
                None => NOT_A_VIDEO_NAME.to_owned(),
            },
        };
        if ignored.len() < IGNORED_MAX {
            ignored.push(IgnoredPath {
                path: echo(path),
                reason,
            });
        } else {
            omitted += 1;
        }
    }
    if omitted > 0 {
        ignored.push(IgnoredPath {
            path: format!("{prefix}…"),
            reason: format!("and {omitted} more"),
        });
    }
    Ok(Intake {
        before: push.before(),
        after: payload.after,
        scan,
        videos: videos.into_iter().collect(),
        ignored,
    })
}

/// The common prefix of the paths in the folder: `videos/`, or nothing for the root.
fn folder_prefix(videos_dir: &str) -> String {
    match videos_dir.trim_matches('/') {
        "" | "." => String::new(),
        dir => format!("{dir}/"),
    }
}

/// Sanitizes a text of the payload: at most [`ECHO_CHARS_MAX`] characters, and no NUL, which Postgres
/// rejects.
fn echo(text: &str) -> String {
    let text = text.replace('\0', "\u{fffd}");
    match text.char_indices().nth(ECHO_CHARS_MAX) {
        None => text,
        Some(_) => text.chars().take(ECHO_CHARS_MAX - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
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
        decide(&Push::parse(body).unwrap(), REPOSITORY, None, "videos")
    }

    fn accepted(body: &[u8]) -> Intake {
        match decision(body) {
            Decision::Accepted(intake) => intake,
            Decision::Ignored { reason } => panic!("ignored: {reason}"),
        }
    }

    fn reason(body: &[u8]) -> String {
        match decision(body) {
            Decision::Ignored { reason } => reason,
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
        let reason = |repository, branch| match decide(&push, repository, branch, "videos") {
            Decision::Ignored { reason } => Some(reason),
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
    fn a_removal_counts_only_in_a_certain_order() {
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
        assert_eq!(accepted(reversed.as_bytes()).videos, [key(FIRST)]);
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
    }

    #[test]
    fn videos_are_never_capped_and_ignored_files_are_counted() {
        let videos =
            (0..5000).map(|n| file(&format!("{n:08x}-4e5f-4a6b-8c7d-9e0f1a2b3c4d"), "mp4"));
        let others = (0..IGNORED_MAX + 37).map(|n| format!("videos/{n}.txt"));
        let intake = accepted(&push_of(&[[videos.collect(), others.collect(), vec![]]]));
        assert_eq!(intake.videos.len(), 5000);
        assert_eq!(intake.ignored.len(), IGNORED_MAX + 1);
        assert_eq!(intake.ignored[IGNORED_MAX].reason, "and 37 more");
    }

    #[test]
    fn the_folder_may_be_nested_or_the_root() {
        let body = push_of(&[[vec![format!("out/{}", file(FIRST, "mp4"))], vec![], vec![]]]);
        let push = Push::parse(&body).unwrap();
        let videos = |dir| match decide(&push, REPOSITORY, None, dir) {
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
        assert_eq!(accepted(json.as_bytes()).videos, [key(FIRST)]);
        assert!(payload_of_form(b"pay=load").is_err());
        assert!(payload_of_form(b"").is_err());
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
        let long = format!("{{\"ref\":\"r\",\"after\":\"{}\"}}", "z".repeat(10_000));
        let error = Push::parse(long.as_bytes()).err().unwrap().to_string();
        assert!(error.len() < 2 * ECHO_CHARS_MAX, "{error}");
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
                decide(&push, REPOSITORY, None, "videos");
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
                if let Decision::Accepted(intake) = decide(&push, REPOSITORY, branch, "videos") {
                    prop_assert!(intake.ignored.len() <= IGNORED_MAX + 1);
                }
            }
        }
    }
}
