//! Medians, and the table that goes into the README.

use std::fmt::{self, Display};
use std::time::Duration;

/// The rows so far.
#[derive(Default)]
pub struct Report(Vec<Row>);

/// One line of the table.
pub struct Row {
    /// The letter of the row, and what is measured.
    pub work: String,
    /// Our figure.
    pub measured: String,
    /// What it is measured against.
    pub anchor: String,
    /// What is asked for, and whether it holds; none: only printed.
    pub target: Option<(String, bool)>,
}

impl Report {
    /// Adds a row, and prints it at once.
    pub fn add(&mut self, row: Row) {
        println!("{row}");
        self.0.push(row);
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, holds) = match &self.target {
            Some((target, true)) => (target.as_str(), "yes"),
            Some((target, false)) => (target.as_str(), "**no**"),
            None => ("", ""),
        };
        write!(
            f,
            "| {} | {} | {} | {target} | {holds} |",
            self.work, self.measured, self.anchor
        )
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| work | measured | anchor | target | holds |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of what ours is in each round, as a multiple of the anchor in the same round.
pub fn ratio(ours: &[f64], anchor: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(anchor).map(|(a, b)| a / b).collect();
    median(&ratios)
}

/// In milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What it was measured on.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1))
        .unwrap_or("unknown processor");
    let load = read("/proc/loadavg");
    format!(
        "{},{cpu}, {} cores; load average before it began {}",
        video_ingest::clock::Clock::default()
            .now()
            .strftime("%Y-%m-%d"),
        std::thread::available_parallelism().map_or(0, usize::from),
        load.split(' ').next().unwrap_or_default()
    )
}
