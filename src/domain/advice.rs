//! What a person should do about a failure: one sentence for command line, page and README.

use super::failure::Code;

/// What to do next. Complete in itself; a failure's own message says what happened.
pub const fn advice(code: Code) -> &'static str {
    match code {
        Code::BadMetadata => "Correct the JSON beside the video and push it.",
        Code::MetadataMismatch => {
            "Push the JSON whose lesson_id and video_id are those in the file's name."
        }
        Code::NotAnMp4 => "Push the rendered MP4 itself; what was pushed is another kind of file.",
        Code::Truncated => "Render the video again or copy it completely, and push it.",
        Code::NoVideoTrack => "Render the video again: the file has no pictures.",
        Code::RowMismatch => {
            "Rename the files to the lesson and video of the row, or correct the row, then retry."
        }
        Code::BucketMissing => "Create the storage bucket that the message names, then retry.",
        Code::MimeNotAllowed => "Add video/mp4 to the bucket's allowed MIME types, then retry.",
        Code::StorageDenied => {
            "Set SUPABASE_SERVICE_ROLE_KEY to the project's current secret key and restart."
        }
        Code::GithubDenied => {
            "Give GITHUB_TOKEN read access to the repository's contents, check GITHUB_REPOSITORY, and restart."
        }
        Code::TooLarge => {
            "Render the video smaller, or raise the bucket's limit and MAX_VIDEO_BYTES, then retry."
        }
        Code::LfsObjectMissing => {
            "Run `git lfs push --all origin` where the video was rendered, then retry."
        }
        Code::CorruptDownload => {
            "Nothing yet: it is downloaded again; if it lasts, push the video again."
        }
        Code::GithubUnavailable => {
            "Nothing: it is tried again; githubstatus.com says whether GitHub is down."
        }
        Code::RateLimited => {
            "Nothing: it goes on when GitHub allows; without GITHUB_TOKEN only 60 calls an hour are."
        }
        Code::StorageUnavailable => {
            "Nothing: it is tried again; status.supabase.com says whether Supabase is down."
        }
        Code::DatabaseUnavailable => {
            "Nothing: it is tried again; if it lasts, check that DATABASE_URL's server is up."
        }
        Code::DiskFull => "Free space in DATA_DIR; it is tried again by itself.",
        Code::LeaseExpired => {
            "Nothing: another worker takes it; if it repeats, look in the log for why the process ends."
        }
        Code::Internal => "Look in the server's log and report the defect; it is tried again.",
        Code::GaveUp => "Put right what the message says, then retry.",
        Code::NoRow => {
            "Insert the video's row in lesson_assets, then push again or retry; or remove the files."
        }
        Code::VideoMissing => "Push the MP4 under the name of its JSON.",
        Code::MetadataMissing => {
            "Nothing: push the JSON, or the video is taken without it after METADATA_GRACE."
        }
        Code::GenerationFailed => "Read the agent's conversation and ask for the video again.",
        Code::GenerationTimeout => {
            "Ask for the video again, or raise GENERATION_DEADLINE if agents need longer."
        }
        Code::FinishedWithoutVideo => {
            "Read the agent's conversation: it ended without pushing; ask for the video again."
        }
    }
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
