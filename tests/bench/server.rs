//! The binary as it is deployed, with its CPU time and memory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::scenario::{ADMIN_TOKEN, REPOSITORY, SECRET};

/// Longer than any start takes.
const START_MAX: Duration = Duration::from_secs(20);

/// Clock ticks of `/proc` per second. Source: proc(5), `sysconf(_SC_CLK_TCK)` on Linux.
const TICKS: f64 = 100.0;

/// A `serve` process; killed when dropped. Its log goes to a file, as with a service manager.
pub struct Server {
    pub address: SocketAddr,
    pub dir: PathBuf,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts with these settings in addition to the repository's, and a new DATA_DIR on the disk of `target`.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let log = dir.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_video-ingest"))
            .arg("serve")
            .env_clear()
            .current_dir(dir.path())
            .env("DATA_DIR", dir.path())
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("GITHUB_REPOSITORY", REPOSITORY)
            .env("GITHUB_WEBHOOK_SECRET", SECRET)
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .env("RECONCILE_INTERVAL", "0")
            .envs(settings.iter().copied())
            .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
            .spawn()
            .unwrap();
        Self {
            address: listening(&log),
            dir: dir.path().to_owned(),
            child,
            _dir: dir,
        }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// CPU time that it has used so far.
    pub fn cpu(&self) -> Duration {
        cpu(&self.child)
    }

    /// Its current and its peak memory, in MiB.
    pub fn memory(&self) -> (f64, f64) {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.unwrap().trim().trim_end_matches(" kB");
            kib.parse::<f64>().unwrap() / 1024.0
        };
        (mib("VmRSS:"), mib("VmHWM:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the log line with the address on which it listens.
fn listening(log: &Path) -> SocketAddr {
    let began = Instant::now();
    loop {
        let said = std::fs::read_to_string(log).unwrap();
        let address = said.lines().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["address"].as_str()?.parse().ok()
        });
        match address {
            Some(address) => return address,
            None if began.elapsed() > START_MAX => panic!("the server does not listen: {said}"),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// CPU time that a process has used so far.
pub fn cpu(process: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    // proc(5): after the name in brackets, utime and stime are the 12th and 13th.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().unwrap());
    Duration::from_secs_f64(ticks.sum::<f64>() / TICKS)
}
