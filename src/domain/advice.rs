//! Advice for each failure code: one sentence for the command line, the status page and the documentation.

use super::failure::Code;

/// What to do about a failure. The failure's message describes the cause.
pub const fn advice(code: Code) -> &'static str {
    match code {
        Code::BadMetadata => "Correct the JSON file next to the video and push it again.",
        Code::MetadataMismatch => {
            "Push a JSON file whose lesson_id and video_id match the file name."
        }
        Code::NotAnMp4 => "Push the rendered MP4; the file that was pushed is not an MP4 file.",
        Code::Truncated => "Render the video again, or copy it again in full, then push it.",
        Code::NoVideoTrack => "Render the video again with a video track, then push it.",
        Code::RowMismatch => {
            "Rename the files to match the row's lesson and video, or correct the row, then retry."
        }
        Code::BucketMissing => "Create the storage bucket named in the message, then retry.",
        Code::MimeNotAllowed => "Add video/mp4 to the bucket's allowed MIME types, then retry.",
        Code::StorageDenied => {
            "Set SUPABASE_SERVICE_ROLE_KEY to the project's current secret key, then restart the server."
        }
        Code::StorageQuota => "Raise the project's quota or spend cap in Supabase, then retry.",
        Code::StoragePaused => "Restore the paused project in Supabase's dashboard, then retry.",
        Code::GithubDenied => {
            "Check GITHUB_REPOSITORY and GITHUB_TOKEN's read access to the repository, then restart the server."
        }
        Code::TooLarge => {
            "Render a smaller video, or raise the bucket's limit and MAX_VIDEO_BYTES, then retry."
        }
        Code::LfsObjectMissing => {
            "Run `git lfs push --all origin` on the machine that rendered the video, then retry."
        }
        Code::LfsQuota => "Raise the Git LFS budget in GitHub's billing settings, then retry.",
        Code::RowDenied => {
            "Run deploy/supabase/role.sql, which adds the missing privileges and policies, then retry."
        }
        Code::CorruptDownload => {
            "Wait for the automatic retry; if retries fail, push the video again."
        }
        Code::GithubUnavailable => {
            "Wait for the automatic retry; check githubstatus.com for outages."
        }
        Code::RateLimited => {
            "Wait until GitHub's rate limit resets; without GITHUB_TOKEN, it is 60 requests per hour."
        }
        Code::StorageUnavailable => {
            "Wait for the automatic retry; check status.supabase.com for outages."
        }
        Code::DatabaseUnavailable => {
            "Wait for the automatic retry; if retries fail, check the server that DATABASE_URL points to."
        }
        Code::DiskFull => {
            "Free up disk space in DATA_DIR; the video will then be retried automatically."
        }
        Code::LeaseExpired => {
            "Wait for another worker to retry; if this happens again, check the log for why the server stopped."
        }
        Code::Internal => {
            "Check the server's log and report the bug; the video will be retried automatically."
        }
        Code::GaveUp => "Fix the problem described in the message, then retry.",
        Code::NoRow => "Insert the video's row into lesson_assets and retry, or remove the files.",
        Code::VideoMissing => "Push the MP4 with the same base name as its JSON file.",
        Code::MetadataMissing => {
            "Push the JSON file; without it, the video will be ingested after METADATA_GRACE."
        }
        Code::GenerationFailed => "Read the agent's conversation, then request the video again.",
        Code::GenerationTimeout => {
            "Request the video again, or raise GENERATION_DEADLINE if the agent needs more time."
        }
        Code::FinishedWithoutVideo => {
            "Read the agent's conversation to see why it pushed nothing, then request the video again."
        }
    }
}

/// Whether a message already says what the advice says: one of its clauses begins with the same verb.
pub fn repeats(message: &str, advice: &str) -> bool {
    let verb = |text: &str| text.split_whitespace().next().map(str::to_lowercase);
    let mut clauses = message.split(['.', ';', ',']);
    verb(advice).is_some_and(|wanted| clauses.any(|clause| verb(clause).as_ref() == Some(&wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_sentence() {
        let mut sentences: Vec<_> = Code::ALL.iter().map(|code| advice(*code)).collect();
        assert!(sentences.iter().all(|s| s.ends_with('.') && s.len() <= 100));
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), Code::ALL.len());
    }
}
