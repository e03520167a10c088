//! A headless Chromium, driven through chromedriver.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};

use super::scenario::ADMIN_TOKEN;

/// How long something on a page may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);

/// A window is never narrower, even headless; in pixels.
const WINDOW_WIDTH_MIN: u32 = 500;

/// The settings of the browser.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
    pub script: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            width: 1280,
            height: 900,
            dark: false,
            script: true,
        }
    }
}

/// One browser with its own profile. However the test ends, the browser and its driver end too.
pub struct Browser {
    pub page: Client,
    url: String,
    _driver: Driver,
}

impl Browser {
    /// Opens it on the server at `url`.
    pub async fn open(url: &str, settings: Settings) -> Self {
        let driver = Driver::start();
        let profile = driver.profile.path().display().to_string();
        let mut args = vec![
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--no-proxy-server".to_owned(),
            "--autoplay-policy=no-user-gesture-required".to_owned(),
            format!("--user-data-dir={profile}"),
            format!("--window-size={},{}", settings.width, settings.height),
        ];
        if settings.dark {
            args.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        // 2: block. Source: Chromium's `ContentSetting`.
        let javascript = if settings.script { 1 } else { 2 };
        let mut options = json!({
            "args": args,
            "prefs": {"profile.default_content_setting_values.javascript": javascript},
        });
        if settings.width < WINDOW_WIDTH_MIN {
            let phone =
                json!({"width": settings.width, "height": settings.height, "pixelRatio": 1.0});
            options["mobileEmulation"] = json!({"deviceMetrics": phone});
        }
        let Value::Object(capabilities) = json!({"goog:chromeOptions": options}) else {
            unreachable!()
        };
        let page = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .expect("the driver opens Chromium");
        Self {
            page,
            url: url.to_owned(),
            _driver: driver,
        }
    }

    pub async fn go(&self, path: &str) {
        self.page
            .goto(&format!("{}{path}", self.url))
            .await
            .unwrap();
    }

    pub async fn sign_in(&self, token: &str) {
        self.go("/").await;
        self.fill("#token", token).await;
        self.press("main button").await;
    }

    pub async fn signed_in(url: &str, settings: Settings) -> Self {
        let browser = Self::open(url, settings).await;
        browser.sign_in(ADMIN_TOKEN).await;
        browser.sees("#list").await;
        browser
    }

    /// Waits until something is there.
    pub async fn sees(&self, css: &str) {
        let found = self.page.wait().at_most(PATIENCE);
        if found.for_element(Locator::Css(css)).await.is_err() {
            panic!("no {css} on {}", self.page.source().await.unwrap());
        }
    }

    pub async fn fill(&self, css: &str, text: &str) {
        let field = self.page.find(Locator::Css(css)).await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses a button or follows a link.
    pub async fn press(&self, css: &str) {
        self.sees(css).await;
        let element = self.page.find(Locator::Css(css)).await.unwrap();
        element.click().await.unwrap();
    }

    pub async fn text(&self, css: &str) -> String {
        self.sees(css).await;
        let element = self.page.find(Locator::Css(css)).await.unwrap();
        element.text().await.unwrap()
    }

    /// Waits until the text of an element is this one.
    pub async fn reads(&self, css: &str, text: &str) {
        let began = Instant::now();
        while self.text(css).await != text {
            let now = self.text(css).await;
            assert!(began.elapsed() < PATIENCE, "{css} reads {now:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs a script on the current page and returns its result.
    pub async fn run(&self, script: &str) -> Value {
        self.page.execute(script, Vec::new()).await.unwrap()
    }

    /// Waits until a script that calls `arguments[0]` has called it.
    pub async fn ask(&self, script: &str) -> Value {
        self.page.execute_async(script, Vec::new()).await.unwrap()
    }

    pub async fn close(self) {
        self.page.close().await.unwrap();
    }
}

struct Driver {
    port: u16,
    profile: tempfile::TempDir,
    shell: Child,
    _output: BufReader<ChildStdout>,
}

impl Driver {
    fn start() -> Self {
        // The shell ends its group, the browser in it, when its standard input closes, which
        // happens however the test ends.
        let mut shell = Command::new("sh")
            .args(["-c", "chromedriver --port=0 & cat >/dev/null; kill -TERM 0"])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let mut output = BufReader::new(shell.stdout.take().unwrap());
        let port = output
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, port) = line.rsplit_once("started successfully on port ")?;
                port.trim_end_matches('.').parse().ok()
            })
            .expect("no browser to test with: apt-get install chromium chromium-driver");
        Self {
            port,
            profile: tempfile::tempdir().unwrap(),
            shell,
            _output: output,
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
