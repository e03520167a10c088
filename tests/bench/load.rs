//! Sends signed pushes over raw HTTP/1.1. They are prepared in advance, so that sending is cheaper than
//! receiving.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;
use video_ingest::domain::signature;
use video_ingest::fake_github::FakeGithub;

use crate::support::scenario::{REPOSITORY, SECRET, Video};

/// The size of GitHub's pushes with two files, in bytes.
const PUSH_BYTES: usize = 7 << 10;

/// Larger than any response, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// A request as it is sent, with its ids.
pub struct Push {
    pub guid: String,
    pub video_id: Uuid,
    request: Vec<u8>,
}

/// The result of a run.
pub struct Run {
    /// Acknowledged pushes per second.
    pub per_second: f64,
    pub p99: Duration,
    pub statuses: BTreeMap<u16, usize>,
    /// The indices of the pushes that got a 2xx.
    pub acknowledged: Vec<usize>,
}

/// Makes pushes from one push of the fake GitHub.
pub struct Pushes {
    template: String,
    video: Video,
    after: String,
}

impl Pushes {
    pub async fn new() -> Self {
        let github = FakeGithub::start(REPOSITORY).await.unwrap();
        let before = github.commit(|c| c.write("README.md", "videos, rendered"));
        let video = Video::good();
        github.commit(|c| video.write(c));
        let mut payload = github.push(before, github.head()).payload;
        // Unused URLs, like those in GitHub's description of a repository.
        for n in 0.. {
            if payload.to_string().len() >= PUSH_BYTES {
                break;
            }
            let link = format!("https://api.github.com/repos/{REPOSITORY}/things-{n}{{/number}}");
            payload["repository"][format!("things_{n}_url")] = link.into();
        }
        Self {
            template: payload.to_string(),
            video,
            after: github.head().to_string(),
        }
    }

    /// This many pushes to this path, each a new delivery of a new video.
    pub fn make(&self, count: usize, path: &str) -> Vec<Push> {
        let secret = SecretString::from(SECRET);
        let make = |_| {
            let (guid, video) = (Uuid::new_v4().to_string(), Video::good());
            let mut after = [0; 20];
            after[..16].copy_from_slice(Uuid::new_v4().as_bytes());
            let body = self
                .template
                .replace(&self.video.id(), &video.id())
                .replace(
                    &self.video.key.lesson_id.to_string(),
                    &video.key.lesson_id.to_string(),
                )
                .replace(&self.after, &hex::encode(after));
            let signed = signature::sign(&secret, body.as_bytes());
            Push {
                request: request(path, "push", &guid, &signed, &body),
                guid,
                video_id: video.key.video_id,
            }
        };
        (0..count).map(make).collect()
    }

    /// The same ping this many times: all work except recording.
    pub fn pings(&self, count: usize) -> Vec<Push> {
        let signed = signature::sign(&SecretString::from(SECRET), self.template.as_bytes());
        let make = |_| Push {
            request: request("/webhooks/github", "ping", "ping", &signed, &self.template),
            guid: String::new(),
            video_id: Uuid::nil(),
        };
        (0..count).map(make).collect()
    }
}

fn request(path: &str, event: &str, guid: &str, signed: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: GitHub-Hookshot/044aadd\r\naccept: */*\r\n\
         content-type: application/json\r\nx-github-event: {event}\r\nx-github-delivery: {guid}\r\n\
         x-github-hook-id: 501000001\r\nx-hub-signature-256: {signed}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends all pushes from one thread. Each connection waits for the response before it sends the next one.
pub fn send(address: SocketAddr, connections: usize, pushes: &[Push]) -> Run {
    let sending = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().build().unwrap();
        runtime.block_on(send_all(address, connections, pushes))
    };
    std::thread::scope(|scope| scope.spawn(sending).join().unwrap())
}

async fn send_all(address: SocketAddr, connections: usize, pushes: &[Push]) -> Run {
    let streams = (0..connections).map(async |_| {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    });
    let streams = join_all(streams).await;
    let began = Instant::now();
    let senders = streams
        .into_iter()
        .enumerate()
        .map(async |(n, mut stream)| {
            let mut answers = Vec::new();
            let mut buffer = vec![0; ANSWER_BYTES_MAX];
            for at in (n..pushes.len()).step_by(connections) {
                let sent = Instant::now();
                stream.write_all(&pushes[at].request).await.unwrap();
                let status = answer(&mut stream, &mut buffer).await;
                answers.push((at, status, sent.elapsed()));
            }
            answers
        });
    let answers: Vec<_> = join_all(senders).await.into_iter().flatten().collect();
    let took = began.elapsed();
    let mut times: Vec<Duration> = answers.iter().map(|(_, _, time)| *time).collect();
    times.sort();
    let mut statuses = BTreeMap::new();
    for (_, status, _) in &answers {
        *statuses.entry(*status).or_default() += 1;
    }
    let good = answers.iter().filter(|(_, status, _)| status / 100 == 2);
    let acknowledged: Vec<usize> = good.map(|(at, ..)| *at).collect();
    Run {
        per_second: acknowledged.len() as f64 / took.as_secs_f64(),
        p99: times[times.len() * 99 / 100],
        acknowledged,
        statuses,
    }
}

/// Reads one complete response and returns its status.
async fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> u16 {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await.unwrap();
        assert!(read > 0, "the server closed the connection");
        filled += read;
        if let Some(status) = complete(&buffer[..filled]) {
            return status;
        }
    }
}

/// The status of a response, if it is complete.
fn complete(answer: &[u8]) -> Option<u16> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let (head, body) = (
        std::str::from_utf8(&answer[..end]).unwrap(),
        &answer[end + 4..],
    );
    let header = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then_some(value.trim())
        })
    };
    let whole = match header("content-length") {
        Some(length) => body.len() >= length.parse().unwrap(),
        None => header("transfer-encoding").is_none() || body.ends_with(b"0\r\n\r\n"),
    };
    whole.then(|| head[9..12].parse().unwrap())
}

/// A server that responds without doing any work, to measure the maximum rate of the clients above.
pub async fn nothing_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true).unwrap();
                let mut buffer = vec![0; 64 << 10];
                let mut filled = 0;
                while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]).await {
                    filled += read;
                    if buffer[..filled].ends_with(b"}") {
                        filled = 0;
                        let answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok";
                        stream.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
    address
}
