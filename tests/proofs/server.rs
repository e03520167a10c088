//! The real binary as a child process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::sync::watch;
use video_ingest::standin::Delivery;

use crate::support::story::SECRET;

/// A `serve` process.
pub struct Server {
    child: Child,
    url: String,
    hanging: watch::Receiver<usize>,
}

impl Server {
    /// Starts it and waits until it listens. What it logs goes to `log`.
    pub fn start(settings: &[(String, String)], dir: &Path, log: &Path) -> Self {
        // A file that may not grow is an error to it, as a full disk is, not a signal.
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" serve"])
            .arg(env!("CARGO_BIN_EXE_video-ingest"))
            .env_clear()
            .current_dir(dir)
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut said = String::new();
        let address = lines.by_ref().find_map(|line| {
            said += &format!("{line}\n");
            let line: serde_json::Value = serde_json::from_str(&line).ok()?;
            line["address"].as_str().map(str::to_owned)
        });
        let address = address.unwrap_or_else(|| panic!("the server does not listen: {said}"));
        let (count, hanging) = watch::channel(0);
        std::thread::spawn(move || {
            for line in lines {
                if line.contains(r#""hanging""#) {
                    count.send_modify(|count| *count += 1);
                }
                let _ = writeln!(log, "{line}");
            }
        });
        Self {
            child,
            url: format!("http://{address}"),
            hanging,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signed webhook; `None`: no answer came.
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

    /// Until so many videos hang at an armed place.
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
