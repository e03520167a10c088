//! A temporary Postgres, set up like a Supabase project with the app and the grants of the service.
//!
//! One server per test process, one database per test. A shell watches each server: it stops the
//! server and removes its files when its standard input closes, which happens however the tests end.

use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;
use video_ingest::domain::ids::VideoKey;

/// The oldest major version that the service supports.
const POSTGRES_VERSION_MIN: u32 = 13;

/// Another process may take the free port before it is used.
const START_ATTEMPTS_MAX: u32 = 5;

/// Server connections of the pooler per database and user: fewer than one service has clients, so
/// that they do share them.
const POOLED_CONNECTIONS: u32 = 4;

/// The superuser. In a Supabase project nobody can log in as it.
const SUPERUSER: &str = "supabase_admin";

/// Who owns the app's tables. Not a superuser.
const OWNER: &str = "postgres";

/// The service's role, with the rights of `deploy/supabase/`.
const SERVICE: &str = "video_ingest";

/// What a test's database is a copy of.
const TEMPLATE: &str = "app_template";

/// A running server.
pub struct Postgres {
    /// Where its programs are.
    pub bin: PathBuf,
    /// Holds `data` and `log`.
    pub dir: PathBuf,
    port: u16,
    databases: AtomicU32,
    scripts: Mutex<()>,
    pooler: OnceLock<Pooler>,
    _watch: Child,
}

/// `pgbouncer` in transaction mode, in front of all databases of a server.
struct Pooler {
    port: u16,
    _watch: Child,
}

/// A database with the app's tables, in which the scripts of `deploy/supabase/` were run, except
/// `missing_row_create.sql`.
pub struct Database {
    /// Its name.
    pub name: String,
    /// As `postgres`, which owns the app's tables and is no superuser.
    pub admin_url: String,
    /// As the service's role.
    pub service_url: String,
    /// Connections to `admin_url`.
    pub admin: PgPool,
    /// Where it is.
    pub server: &'static Postgres,
}

impl Postgres {
    /// A new database for one test, on the server of this process.
    pub async fn database() -> Database {
        Self::shared().create_database().await
    }

    /// The server of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<&Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// One more server, for a test that stops what all databases of a server share.
    pub fn start() -> &'static Self {
        Self::start_with("off")
    }

    /// The same; benchmarks of commits need `fsync=on`.
    pub fn start_with(fsync: &str) -> &'static Self {
        let server: &Self = Box::leak(Box::new(Self::boot(fsync)));
        server.psql(SUPERUSER, "postgres", "tests/it/support/supabase_roles.sql");
        server.psql(SUPERUSER, TEMPLATE, "tests/it/support/supabase.sql");
        server.psql(OWNER, TEMPLATE, "deploy/app.sql");
        server.psql(OWNER, TEMPLATE, "tests/it/support/policies.sql");
        for script in [
            "columns.sql",
            "role.sql",
            "realtime.sql",
            "bucket.sql",
            "playback.sql",
            "indexes.sql",
        ] {
            server.psql(OWNER, TEMPLATE, &format!("deploy/supabase/{script}"));
        }
        server
    }

    /// A new database for one test, on this server.
    pub async fn create_database(&'static self) -> Database {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let creator = pool(&self.url(OWNER, "postgres"));
        let create = format!("create database {name} template {TEMPLATE}");
        sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&creator)
            .await
            .unwrap();
        creator.close().await;
        let admin_url = self.url(OWNER, &name);
        Database {
            service_url: self.url(SERVICE, &name),
            admin: pool(&admin_url),
            admin_url,
            name,
            server: self,
        }
    }

    /// Removes a database, for tests that need many of them. One that autovacuum is reading stays: only a
    /// superuser can stop autovacuum.
    pub async fn remove_database(&self, name: &str) {
        let remover = pool(&self.url(OWNER, "postgres"));
        let remove = format!("drop database {name} with (force)");
        let _ = sqlx::raw_sql(AssertSqlSafe(remove)).execute(&remover).await;
        remover.close().await;
    }

    /// The URL of a database as one of its users.
    pub fn url(&self, user: &str, database: &str) -> String {
        let port = self.port;
        format!("postgres://{user}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// The file of a certificate authority: `ca.pem` signed the server's certificate, `other.pem` did not.
    pub fn authority(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Runs a script as an operator does. All tests of this process share the service's role, so its
    /// connection limit is raised.
    fn psql(&self, user: &str, database: &str, script: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.replace("connection limit 40", "connection limit 400");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        let psql = Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .arg(self.url(user, database))
            .stdin(file)
            .output();
        succeeded(psql, &format!("{script} as {user}"));
    }

    fn boot(fsync: &str) -> Self {
        let bin = find_binaries();
        let dir = tempfile::tempdir().unwrap().keep();
        if is_root(&dir) {
            succeeded(
                Command::new("chown").arg("postgres").arg(&dir).output(),
                "chown",
            );
        }
        let initdb = unprivileged(&dir, bin.join("initdb"))
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
            ])
            .args(["-U", SUPERUSER, "-D", "data"])
            .output();
        succeeded(initdb, "initdb");
        // A certificate authority, a certificate of its for 127.0.0.1, and an authority that is another. One user
        // needs a password.
        let certificates = r#"
            new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
            openssl req -x509 $new -keyout ca.key -out ca.pem -subj /CN=authority &&
            openssl req -x509 $new -keyout other.key -out other.pem -subj /CN=other &&
            openssl req $new -keyout data/server.key -out server.csr -subj /CN=127.0.0.1 &&
            echo subjectAltName=IP:127.0.0.1 >san &&
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                -extfile san -days 2 -out data/server.crt &&
            chmod 600 data/server.key &&
            echo "host all needs_password all scram-sha-256" | cat - data/pg_hba.conf >hba &&
            mv hba data/pg_hba.conf"#;
        let openssl = unprivileged(&dir, "sh".into())
            .args(["-c", certificates])
            .output();
        succeeded(openssl, "openssl (apt-get install -y openssl)");
        let (port, watch) = watch(&dir, |port| {
            let script = r#"
                if "$0/pg_ctl" -s -w -D data -l log -o "$1" start; then
                    echo process up
                    cat
                    "$0/pg_ctl" -s -D data -m immediate stop
                    rm -rf "$PWD"
                fi"#;
            let options = format!(
                "-p {port} -k {} -c listen_addresses=127.0.0.1 -c max_connections=400 \
                 -c wal_level=logical -c ssl=on -c fsync={fsync} -c full_page_writes={fsync} \
                 -c log_line_prefix='%m %d '",
                dir.display()
            );
            vec![script.into(), bin.display().to_string(), options]
        });
        Self {
            bin,
            dir,
            port,
            databases: AtomicU32::new(0),
            scripts: Mutex::new(()),
            pooler: OnceLock::new(),
            _watch: watch,
        }
    }

    fn start_pooler(&self) -> Pooler {
        let users = format!("\"{OWNER}\" \"\"\n\"{SERVICE}\" \"\"\n");
        std::fs::write(self.dir.join("pgbouncer.users"), users).unwrap();
        let (port, watch) = watch(&self.dir, |port| {
            let config = format!(
                "[databases]\n\
                 * = host=127.0.0.1 port={}\n\
                 [pgbouncer]\n\
                 listen_addr = 127.0.0.1\n\
                 listen_port = {port}\n\
                 unix_socket_dir =\n\
                 auth_type = trust\n\
                 auth_file = pgbouncer.users\n\
                 pool_mode = transaction\n\
                 server_idle_timeout = 2\n\
                 default_pool_size = {POOLED_CONNECTIONS}\n\
                 ignore_startup_parameters = extra_float_digits\n",
                self.port
            );
            std::fs::write(self.dir.join("pgbouncer.ini"), config).unwrap();
            // Only pgbouncer keeps the standard output, so that its end shows there.
            let script = "
                PATH=$PATH:/usr/sbin
                command -v pgbouncer >/dev/null || echo 'apt-get install -y pgbouncer'
                pgbouncer pgbouncer.ini 2>&1 &
                exec >/dev/null
                cat
                kill $!";
            vec![script.into()]
        });
        Pooler {
            port,
            _watch: watch,
        }
    }
}

impl Database {
    /// As the service's role, through a transaction pooler.
    pub fn pooled_url(&self) -> String {
        let pooler = self
            .server
            .pooler
            .get_or_init(|| self.server.start_pooler());
        let (port, name) = (pooler.port, &self.name);
        format!("postgres://{SERVICE}@127.0.0.1:{port}/{name}?statement-cache-capacity=0")
    }

    /// Runs statements as `postgres`.
    pub async fn sql(&self, statements: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(statements))
            .execute(&self.admin)
            .await;
        done.unwrap_or_else(|e| panic!("{statements}: {e}"));
    }

    /// Another replica records this delivery and does not come to commit it: who records it, too, waits.
    pub async fn hold_delivery(&self, guid: &str) -> sqlx::PgTransaction<'static> {
        let mut transaction = self.admin.begin().await.unwrap();
        let insert = "insert into video_ingest.deliveries
            (guid, event, before_sha, after_sha, received_at, scan, status, videos, ignored)
            values ($1, 'push', '', '', 0, 0, 'accepted', '[]', '[]')";
        let insert = sqlx::query(insert).bind(guid);
        insert.execute(&mut *transaction).await.unwrap();
        transaction
    }

    /// What `postgres` sees: the only value of a query, which has to be text.
    pub async fn text(&self, query: &str) -> Option<String> {
        let found = sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_one(&self.admin)
            .await;
        found.unwrap_or_else(|e| panic!("{query}: {e}"))
    }

    /// What the server has logged about this database.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.server.dir.join("log")).unwrap();
        let of_this = format!(" {} ", self.name);
        log.lines()
            .filter(|line| line.contains(&of_this))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Runs a script of `deploy/supabase/` as its first lines say.
    pub fn run_script(&self, name: &str) {
        // Roles belong to all databases, and Postgres refuses to change one twice at the same time.
        let _alone = self
            .server
            .scripts
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        self.server
            .psql(OWNER, &self.name, &format!("deploy/supabase/{name}"));
    }

    /// A lesson of the app's.
    pub async fn insert_lesson(&self, lesson_id: Uuid, user_id: Uuid) {
        self.sql(&format!(
            "insert into lessons (id, user_id, title)
            values ('{lesson_id}', '{user_id}', 'Photosynthesis') on conflict do nothing"
        ))
        .await;
    }

    /// A row without a file, as the app inserts it; `kind` is `video` when one is being generated.
    pub async fn insert_asset(&self, key: VideoKey, user_id: Uuid, kind: &str) {
        let VideoKey {
            lesson_id,
            video_id,
        } = key;
        self.sql(&format!(
            "insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type)
            values ('{video_id}', '{lesson_id}', '{user_id}', '{kind}', 'lesson-assets', 'video/mp4')"
        ))
        .await;
    }
}

fn pool(url: &str) -> PgPool {
    PgPoolOptions::new()
        .max_connections(4)
        .connect_lazy(url)
        .unwrap()
}

/// Starts a server on a free port under a shell that ends it when this process ends.
///
/// `script` makes the shell's script and arguments from the port. The script runs the server, has
/// "process up" said on standard output, and ends the server after the end of standard input.
fn watch(dir: &Path, script: impl Fn(u16) -> Vec<String>) -> (u16, Child) {
    for _ in 0..START_ATTEMPTS_MAX {
        let port = free_port();
        let mut shell = unprivileged(dir, "sh".into())
            .arg("-c")
            .args(script(port))
            // Ctrl-C is for the tests: their end is what ends the server.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap());
        let mut line = String::new();
        while said.read_line(&mut line).unwrap() > 0 {
            if line.contains("process up") {
                // Later output must not fill the pipe.
                std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
                return (port, shell);
            }
        }
        eprintln!("{line}");
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
    panic!(
        "the server does not start; what it said is above and in {}",
        dir.display()
    );
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A command that runs in `dir`, and not as root, which Postgres and pgbouncer refuse.
pub fn unprivileged(dir: &Path, program: PathBuf) -> Command {
    let mut command = match is_root(Path::new("/proc/self")) {
        true => {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
                .arg(program);
            command
        }
        false => Command::new(program),
    };
    command.current_dir(dir);
    command
}

/// Whether root made this file.
fn is_root(file: &Path) -> bool {
    file.metadata().unwrap().uid() == 0
}

/// The directory of the newest installed Postgres.
fn find_binaries() -> PathBuf {
    let on_path = Command::new("sh")
        .args(["-c", "command -v initdb"])
        .output()
        .unwrap();
    let on_path = PathBuf::from(String::from_utf8(on_path.stdout).unwrap().trim());
    // Often a link that stands apart from the other programs.
    let on_path = on_path.canonicalize().unwrap_or_default();
    let packaged = std::fs::read_dir("/usr/lib/postgresql");
    let packaged = packaged.into_iter().flatten().flatten();
    packaged
        .map(|version| version.path().join("bin"))
        .chain(on_path.parent().map(Path::to_path_buf))
        .filter_map(|bin| Some((major_version(&bin)?, bin)))
        .filter(|(version, _)| *version >= POSTGRES_VERSION_MIN)
        .max()
        .map(|(_, bin)| bin)
        .unwrap_or_else(|| {
            panic!("no Postgres {POSTGRES_VERSION_MIN} or newer: apt-get install -y postgresql")
        })
}

/// From "postgres (PostgreSQL) 15.14 (Debian …)".
fn major_version(bin: &Path) -> Option<u32> {
    let said = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let version = said.split_whitespace().nth(2)?;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn succeeded(output: std::io::Result<Output>, what: &str) {
    let output = output.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
