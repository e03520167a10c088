//! Medians, and the table for `tests/README.md`.

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
    /// The figure that it is compared with.
    pub baseline: String,
    /// The target, and whether it is met; `None`: there is no target.
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
        let (target, met) = match &self.target {
            Some((target, true)) => (target.as_str(), "yes"),
            Some((target, false)) => (target.as_str(), "no"),
            None => ("", ""),
        };
        write!(
            f,
            "| {} | {} | {} | {target} | {met} |",
            self.work, self.measured, self.baseline
        )
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| row | measured | baseline | target | met |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// The median.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of the ratios between our figure and the baseline in each round.
pub fn ratio(ours: &[f64], baseline: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(baseline).map(|(a, b)| a / b).collect();
    median(&ratios)
}

/// In milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The date and the machine of the measurement.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1))
        .unwrap_or("unknown CPU");
    let load = read("/proc/loadavg");
    format!(
        "{},{cpu}, {} cores; load average at the start {}",
        video_ingest::clock::Clock::default()
            .now()
            .strftime("%Y-%m-%d"),
        std::thread::available_parallelism().map_or(0, usize::from),
        load.split(' ').next().unwrap_or_default()
    )
}
