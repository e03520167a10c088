//! Records the commit that the program is built from, for `video-ingest --version`.

use std::path::Path;
use std::process::Command;

fn main() {
    // By default, cargo runs this script again after a change of any file.
    println!("cargo:rerun-if-changed=build.rs");
    // An unpacked archive has no commit, and must not show that of a repository around it.
    if !Path::new(".git").exists() {
        return;
    }
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return;
    };
    println!("cargo:rustc-env=VIDEO_INGEST_COMMIT={commit}");
    // The files that a commit or a checkout changes. A missing file would run the script every time.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists());
        if let Some(path) = path {
            println!("cargo:rerun-if-changed={path}");
        }
    }
}

/// What `git` prints; `None` if there is no `git`, or it fails.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
