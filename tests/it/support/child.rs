//! The real binary as a child: whatever is set, whatever it logs, and what it costs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A `serve` process; killed when dropped.
pub struct Serve {
    pub url: String,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Serve {
    /// With these settings and no others.
    pub fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_video-ingest"))
            .arg("serve")
            .env_clear()
            .current_dir(data_dir)
            .env("DATA_DIR", data_dir)
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::<Mutex<String>>::default();
        let (kept, (say, said)) = (log.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let fields: Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(address) = fields["address"].as_str() {
                    let _ = say.send(format!("http://{address}"));
                }
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let url = said
            .recv()
            .unwrap_or_else(|_| panic!("{}", log.lock().unwrap()));
        Self { url, child, log }
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
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
