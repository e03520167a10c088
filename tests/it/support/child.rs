//! The real binary as a child process: its settings, its log and the resources it uses.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use video_ingest::fake_github::Delivery;

use super::scenario::{ADMIN_TOKEN, SECRET, Video};

/// Longer than a video takes on a slow machine; never waited for in full.
const READY_MAX: Duration = Duration::from_secs(60);

/// Starts a server on a port of its own and waits until it says which. Returns its address;
/// `heard` is given each line that it logs.
pub fn start(
    command: &mut Command,
    mut heard: impl FnMut(&str) + Send + 'static,
) -> (Child, String) {
    let command = command
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("LOG_FORMAT", "json");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let mut said = String::new();
    let address = lines.by_ref().find_map(|line| {
        heard(&line);
        said += &format!("{line}\n");
        let fields: Value = serde_json::from_str(&line).ok()?;
        Some(format!("http://{}", fields["address"].as_str()?))
    });
    let address = address.unwrap_or_else(|| panic!("the server does not listen: {said}"));
    std::thread::spawn(move || lines.for_each(|line| heard(&line)));
    (child, address)
}

/// A `serve` process; killed when dropped.
pub struct Serve {
    pub url: String,
    pub child: Child,
    log: Arc<Mutex<String>>,
}

impl Serve {
    /// With these settings and no others.
    pub fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Self {
        let log = Arc::<Mutex<String>>::default();
        let kept = log.clone();
        let mut command = Command::new(env!("CARGO_BIN_EXE_video-ingest"));
        let command = command
            .arg("serve")
            .env_clear()
            .current_dir(data_dir)
            .env("DATA_DIR", data_dir)
            .envs(settings.iter().copied());
        let (child, url) = start(command, move |line| {
            let mut kept = kept.lock().unwrap();
            kept.push_str(line);
            kept.push('\n');
        });
        Self { url, child, log }
    }

    /// Delivers a webhook, and says with which status it was answered; `None`: no answer came.
    pub async fn deliver(&self, client: &reqwest::Client, delivery: &Delivery) -> Option<u16> {
        let mut request = client
            .post(format!("{}/webhooks/github", self.url))
            .body(delivery.body());
        for (name, value) in delivery.signed(SECRET) {
            request = request.header(name, value);
        }
        Some(request.send().await.ok()?.status().as_u16())
    }

    /// What the API shows of a video.
    pub async fn video(&self, video: &Video) -> Value {
        let url = format!("{}/api/videos/{}", self.url, video.id());
        let request = reqwest::Client::new().get(url).bearer_auth(ADMIN_TOKEN);
        request.send().await.unwrap().json().await.unwrap()
    }

    /// The same, once the video is ready.
    pub async fn until_ready(&self, video: &Video) -> Value {
        let began = Instant::now();
        loop {
            let shown = self.video(video).await;
            if shown["state"] == "ready" {
                return shown;
            }
            assert!(
                began.elapsed() < READY_MAX && shown["state"] != "failed",
                "{shown:#}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends a signal such as `-TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// `host:port`
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The most memory it ever had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    /// The memory that it has now, in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    fn memory_kib(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        let number = value.unwrap().split_whitespace().next();
        number.unwrap().parse().unwrap()
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
