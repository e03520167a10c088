//! Links from a video to the web pages of the services that know more about it.

use serde::Serialize;

use super::generation::conversation_url;
use super::ids::{FileKind, VideoKey};

/// The host of GitHub's API. Its web pages have another host than those of GitHub Enterprise Server.
const GITHUB_API: &str = "https://api.github.com";

/// The end of the API's URL of a GitHub Enterprise Server. Source: its REST API documentation.
const ENTERPRISE_API: &str = "/api/v3";

/// The end of the host of a Supabase project. Its beginning is the project's reference.
const SUPABASE_HOST: &str = ".supabase.co";

/// The web pages of the configured services.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    /// The repository on GitHub, without a trailing slash.
    repository: Option<String>,
    /// OpenHands, without a trailing slash.
    openhands: Option<String>,
    /// The Supabase project in the dashboard, without a trailing slash.
    supabase: Option<String>,
    /// The videos folder.
    videos_dir: String,
}

/// The links of a video. A link is missing if the service is not known to have such a page.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Links {
    /// The agent's conversation in OpenHands.
    pub conversation: Option<String>,
    /// The MP4 on GitHub.
    pub file: Option<String>,
    /// The commit on GitHub.
    pub commit: Option<String>,
    /// The app's row, as a query in Supabase's SQL editor.
    pub row: Option<String>,
    /// The bucket in Supabase's dashboard.
    pub object: Option<String>,
}

impl Sites {
    /// The web pages of the services with these URLs.
    pub fn new(
        github_api_url: &str,
        repository: &str,
        videos_dir: &str,
        openhands_url: Option<&str>,
        supabase_url: Option<&str>,
    ) -> Self {
        let api = github_api_url.trim_end_matches('/');
        let github = if api == GITHUB_API {
            Some("https://github.com")
        } else {
            api.strip_suffix(ENTERPRISE_API)
        };
        let project = supabase_url
            .and_then(|url| url.strip_prefix("https://")?.strip_suffix(SUPABASE_HOST))
            .filter(|project| project.bytes().all(|b| b.is_ascii_alphanumeric()));
        Self {
            repository: github.map(|github| format!("{github}/{repository}")),
            openhands: openhands_url.map(|url| url.trim_end_matches('/').to_owned()),
            supabase: project
                .map(|project| format!("https://supabase.com/dashboard/project/{project}")),
            videos_dir: videos_dir.to_owned(),
        }
    }

    /// The page of a conversation.
    pub fn conversation(&self, id: &str) -> Option<String> {
        conversation_url(self.openhands.as_deref()?, id)
    }

    /// The links of a video. `commit`: the head that it was read from; without one, its file is looked for in
    /// the default branch.
    pub fn links(
        &self,
        key: VideoKey,
        conversation_id: Option<&str>,
        commit: Option<&str>,
        bucket: Option<&str>,
    ) -> Links {
        let repository = self.repository.as_deref();
        let supabase = self.supabase.as_deref();
        let file = key.file_name(FileKind::Video);
        let folder = match self.videos_dir.trim_matches('/') {
            "" | "." => String::new(),
            folder => format!("{folder}/"),
        };
        Links {
            conversation: conversation_id.and_then(|id| self.conversation(id)),
            file: repository.map(|repository| {
                let commit = commit.unwrap_or("HEAD");
                format!("{repository}/blob/{commit}/{folder}{file}")
            }),
            commit: repository
                .zip(commit)
                .map(|(repository, commit)| format!("{repository}/commit/{commit}")),
            row: supabase.map(|project| {
                // The ids are UUIDs, so only the spaces and the asterisk need an escape.
                let query = format!(
                    "select%20%2A%20from%20lesson_assets%20where%20id%20%3D%20%27{}%27",
                    key.video_id
                );
                format!("{project}/sql/new?content={query}")
            }),
            object: supabase
                .zip(bucket)
                .filter(|(_, bucket)| {
                    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                    bucket.bytes().all(is_plain)
                })
                .map(|(project, bucket)| format!("{project}/storage/files/buckets/{bucket}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn links_follow_from_the_settings() {
        let key = VideoKey {
            lesson_id: Uuid::from_u128(1),
            video_id: Uuid::from_u128(2),
        };
        let links = |api, supabase| {
            Sites::new(
                api,
                "acme/videos",
                "videos",
                Some("https://app.all-hands.dev"),
                supabase,
            )
            .links(
                key,
                Some(&"a".repeat(32)),
                Some("abc"),
                Some("lesson-assets"),
            )
        };
        let all = links("https://api.github.com", Some("https://abcdef.supabase.co"));
        assert_eq!(
            all.commit.as_deref(),
            Some("https://github.com/acme/videos/commit/abc")
        );
        let file = all.file.unwrap();
        assert!(
            file.starts_with("https://github.com/acme/videos/blob/abc/videos/0"),
            "{file}"
        );
        assert!(all.conversation.unwrap().ends_with(&"a".repeat(32)));
        let row = all.row.unwrap();
        assert!(
            row.starts_with("https://supabase.com/dashboard/project/abcdef/sql/new"),
            "{row}"
        );
        let object = all.object.unwrap();
        assert!(
            object.ends_with("/storage/files/buckets/lesson-assets"),
            "{object}"
        );
        let enterprise = links(
            "https://git.example.org/api/v3",
            Some("http://127.0.0.1:54321"),
        );
        let commit = enterprise.commit.unwrap();
        assert_eq!(commit, "https://git.example.org/acme/videos/commit/abc");
        assert_eq!((enterprise.row, enterprise.object), (None, None));
        let fake = links("http://127.0.0.1:9000", None);
        assert_eq!((fake.file, fake.commit), (None, None));
    }
}
