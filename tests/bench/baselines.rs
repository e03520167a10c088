//! The baselines: third-party programs, each in its own process.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use sha1::Digest as _;

use crate::server;
use crate::support::postgres::Database;
use crate::support::scenario::SECRET;

/// Longer than any start takes.
const START_MAX: Duration = Duration::from_secs(20);

/// A server that is killed when dropped.
pub struct Baseline {
    pub address: SocketAddr,
    child: Child,
}

impl Baseline {
    /// CPU time that it has used so far.
    pub fn cpu(&self) -> Duration {
        server::cpu(&self.child)
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// GitHub's library for webhooks, with an empty handler.
pub fn octokit() -> Baseline {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("octokit");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/octokit");
    std::fs::create_dir_all(&dir).unwrap();
    for file in ["package.json", "package-lock.json", "server.mjs"] {
        std::fs::copy(source.join(file), dir.join(file)).unwrap();
    }
    if !dir.join("node_modules/@octokit/webhooks").exists() {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund"])
            .current_dir(&dir);
        let done = npm
            .status()
            .unwrap_or_else(|e| missing("npm", "nodejs npm", &e));
        assert!(done.success(), "npm ci failed in {}", dir.display());
    }
    let mut node = Command::new("node");
    node.args(["server.mjs", SECRET]).current_dir(&dir);
    let mut child = node
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| missing("node", "nodejs npm", &e));
    let mut port = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut port)
        .unwrap();
    Baseline {
        address: format!("127.0.0.1:{}", port.trim()).parse().unwrap(),
        child,
    }
}

/// The path on which [`webhook`] accepts pushes.
pub const WEBHOOK_PATH: &str = "/hooks/github";

/// Debian's `webhook`, running `true` for each push.
pub fn webhook() -> Baseline {
    let hooks = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hooks.json");
    let rule = json!({"match": {
        "type": "payload-hmac-sha256",
        "secret": SECRET,
        "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
    }});
    let hook = json!([{"id": "github", "execute-command": "/bin/true", "trigger-rule": rule}]);
    std::fs::write(&hooks, hook.to_string()).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let port = address.port().to_string();
    let mut command = Command::new("webhook");
    command.arg("-hooks").arg(&hooks);
    let child = command
        .args(["-ip", "127.0.0.1", "-port", &port])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| missing("webhook", "webhook", &e));
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(began.elapsed() < START_MAX, "webhook does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    Baseline { address, child }
}

/// Inserts per second, each with one row as long as the record of a delivery, and in its own commit.
pub async fn pgbench(database: &Database, clients: usize, seconds: u32) -> f64 {
    database
        .sql("create table if not exists baseline (id bigserial primary key, body text not null)")
        .await;
    let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("insert.sql");
    let body = "0123456789".repeat(40);
    std::fs::write(
        &script,
        format!("insert into baseline (body) values ('{body}');\n"),
    )
    .unwrap();
    let mut pgbench = tokio::process::Command::new(database.server.bin.join("pgbench"));
    pgbench
        .args(["-n", "-M", "prepared", "-j", "2"])
        .args(["-c", &clients.to_string(), "-T", &seconds.to_string(), "-f"])
        .arg(&script)
        .arg(&database.admin_url);
    let said = pgbench
        .output()
        .await
        .unwrap_or_else(|e| missing("pgbench", "postgresql", &e));
    let said = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    let tps = said.lines().find_map(|line| {
        let tps = line.strip_prefix("tps = ")?;
        tps.split(' ').next()?.parse().ok()
    });
    tps.unwrap_or_else(|| panic!("pgbench: {said}"))
}

/// Runs `curl URL | curl -T -` for all targets at once, and returns the time until the last one ended.
pub async fn curl(from: &str, header: &str, to: &[String]) -> Duration {
    let began = Instant::now();
    let pipes = to.iter().map(|to| {
        let get = format!("curl -sSf -H '{header}' '{from}'");
        let pipe = format!("{get} | curl -sSf -T - '{to}'");
        let mut sh = tokio::process::Command::new("sh");
        sh.args(["-c", &pipe]).stdout(Stdio::null());
        sh.status()
    });
    for done in futures_util::future::join_all(pipes).await {
        assert!(
            done.unwrap().success(),
            "curl failed: apt-get install -y curl"
        );
    }
    began.elapsed()
}

/// CPU time that one thread needs to read this many bytes from a socket, hash them twice and write them to
/// another socket.
pub fn hash_and_copy(bytes: usize) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pair = || {
        let client = TcpStream::connect(address).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let ((mut source, mut from), (mut to, mut sink)) = (pair(), pair());
    let feeding = std::thread::spawn(move || {
        let piece = vec![7; 64 << 10];
        for _ in 0..bytes / piece.len() {
            source.write_all(&piece).unwrap();
        }
    });
    let draining = std::thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        while sink.read(&mut piece).unwrap() > 0 {}
    });
    let before = thread_cpu();
    let (mut sha1, mut sha256) = (sha1::Sha1::new(), sha2::Sha256::new());
    let mut piece = vec![0; 64 << 10];
    while let read @ 1.. = from.read(&mut piece).unwrap() {
        sha1.update(&piece[..read]);
        sha256.update(&piece[..read]);
        to.write_all(&piece[..read]).unwrap();
    }
    let used = thread_cpu() - before;
    drop(to);
    std::hint::black_box((sha1.finalize(), sha256.finalize()));
    feeding.join().unwrap();
    draining.join().unwrap();
    used
}

/// CPU time that this thread has used so far.
fn thread_cpu() -> Duration {
    // Source: the kernel's Documentation/scheduler/sched-stats.rst; the first field, nanoseconds.
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

fn missing<T>(program: &str, packages: &str, error: &std::io::Error) -> T {
    panic!("{program} does not start ({error}); install it: apt-get install -y {packages}")
}
