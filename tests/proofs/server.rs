//! The binary as a child process.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command};

use tokio::sync::watch;
use video_ingest::fake_github::Delivery;

use crate::support::child;
use crate::support::scenario::SECRET;

/// A `serve` process.
pub struct Server {
    child: Child,
    url: String,
    hanging: watch::Receiver<usize>,
}

impl Server {
    /// Starts it and waits until it listens. Its log is appended to `log`.
    pub fn start(settings: &[(String, String)], dir: &Path, log: &Path) -> Self {
        let mut log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let (count, hanging) = watch::channel(0);
        // A file that exceeds its size limit is an error, like a full disk, and not a signal.
        let mut command = Command::new("sh");
        let command = command
            .args(["-c", "trap '' XFSZ; exec \"$0\" serve"])
            .arg(env!("CARGO_BIN_EXE_video-ingest"))
            .env_clear()
            .current_dir(dir)
            .envs(settings.iter().map(|(name, value)| (name, value)));
        let (child, url) = child::start(command, move |line| {
            if line.contains(r#""simulating a hung task""#) {
                count.send_modify(|count| *count += 1);
            }
            let _ = writeln!(log, "{line}");
        });
        Self {
            child,
            url,
            hanging,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signed webhook; `None`: there was no response.
    pub fn deliver(
        &self,
        client: &reqwest::Client,
        delivery: &Delivery,
    ) -> impl Future<Output = Option<u16>> + Send + use<> {
        let mut request = client
            .post(format!("{}/webhooks/github", self.url))
            .body(delivery.body());
        for (name, value) in delivery.signed(SECRET) {
            request = request.header(name, value);
        }
        async move { Some(request.send().await.ok()?.status().as_u16()) }
    }

    /// Waits until this many videos hang at an armed fail point.
    pub async fn hanging(&self, videos: usize) {
        let mut hanging = self.hanging.clone();
        let _ = hanging.wait_for(|count| *count >= videos).await;
    }

    /// SIGKILL, from outside.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
