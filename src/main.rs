use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let matches = video_ingest::cli::command().get_matches();
    video_ingest::cli::run(&matches).await
}
