//! Progress of a long command on standard error: a line that is redrawn on a terminal, otherwise a line from time
//! to time.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, interval};

/// Time between two frames on a terminal.
const TICK: Duration = Duration::from_millis(100);

/// Shortest time between two lines elsewhere.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// What a command is waiting for.
pub(super) struct Progress {
    /// Draws only on a terminal.
    bar: ProgressBar,
    printed_at: Instant,
    printed: String,
}

impl Progress {
    /// Shows nothing yet.
    pub(super) fn start() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} … {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self {
            bar,
            printed_at: Instant::now(),
            printed: String::new(),
        }
    }

    /// Shows a text if it is new.
    pub(super) fn show(&mut self, text: &str) {
        if stderr().is_terminal() {
            self.bar.set_message(text.to_owned());
        } else if text != self.printed && self.printed_at.elapsed() >= LINE_EVERY {
            eprintln!("{text}");
            self.printed_at = Instant::now();
            text.clone_into(&mut self.printed);
        }
    }

    /// Shows a text while a future runs.
    pub(super) async fn during<T>(&mut self, text: &str, future: impl Future<Output = T>) -> T {
        self.bar.set_message(text.to_owned());
        let began = Instant::now();
        let mut ticks = interval(LINE_EVERY);
        tokio::pin!(future);
        loop {
            tokio::select! {
                result = &mut future => return result,
                _ = ticks.tick() => {
                    let seconds = began.elapsed().as_secs();
                    if seconds > 0 && !stderr().is_terminal() {
                        self.show(&format!("{text} … {seconds} s"));
                    }
                }
            }
        }
    }

    /// Prints something without disturbing the line on a terminal.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
