//! Values as people read them, in the terminal, on the page and in messages: one rounding, decimal units.
//! JSON has bytes and milliseconds instead. Imports nothing from this crate.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use rustls::CertificateError;

/// The width that every terminal shows without breaking lines, in characters.
pub const WIDTH: usize = 80;

/// The narrowest that a wrapped column gets, in characters.
const WRAP_MIN: usize = 24;

/// A duration that is known exactly, such as a setting: `30 d`, `6 h`, `15 min`, `90 s`.
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        s if s > 86_400 && s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s > 0 && s % 3600 == 0 => format!("{} h", s / 3600),
        s if s > 0 && s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

/// A measured duration, rounded to two or three digits: `850 ms`, `3.2 s`, `12 min`, `3 h`, `2 d`.
pub fn elapsed(time: Duration) -> String {
    let ms = time.as_millis();
    let rounded = |unit_ms: u128| (ms + unit_ms / 2) / unit_ms;
    match ms {
        ..1_000 => format!("{ms} ms"),
        // Each limit is where the next smaller unit would be rounded up to more digits.
        1_000..9_950 => format!("{:.1} s", time.as_secs_f64()),
        9_950..99_500 => format!("{} s", rounded(1_000)),
        99_500..5_970_000 => format!("{} min", rounded(60_000)),
        5_970_000..171_000_000 => format!("{} h", rounded(3_600_000)),
        _ => format!("{} d", rounded(86_400_000)),
    }
}

/// How long ago something happened, in whole seconds or [`elapsed`]'s larger units.
pub fn age(time: Duration) -> String {
    match time.as_secs() {
        s @ ..10 => format!("{s} s"),
        _ => elapsed(time),
    }
}

/// A video's length as players show it, rounded to seconds: `1:05`, `1:02:03`.
pub fn length(ms: u64) -> String {
    let s = ms.saturating_add(500) / 1000;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

/// A number of bytes in decimal units: `42.1 MB`.
pub fn size(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        ..1_000 => format!("{bytes} B"),
        // Each limit is where one decimal would be rounded up to 1000.0.
        1_000..999_950 => format!("{:.1} kB", value / 1e3),
        999_950..999_950_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} GB", value / 1e9),
    }
}

/// One row of a table.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// One for each column.
    pub cells: Vec<String>,
    /// Paragraphs below the row, across all columns.
    pub notes: Vec<String>,
}

/// A table with a header row. Columns are as wide as their widest cell; the last column and the notes
/// wrap at [`WIDTH`] characters.
pub fn table(heads: &[&str], rows: &[Row]) -> String {
    let heads = Row {
        cells: heads.iter().map(|head| (*head).to_owned()).collect(),
        notes: Vec::new(),
    };
    let rows: Vec<&Row> = std::iter::once(&heads).chain(rows).collect();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.cells.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (1..heads.cells.len())
        .map(|column| widest(column - 1))
        .collect();
    let indent = widths.iter().map(|width| width + 2).sum();
    let mut text = String::new();
    for row in rows {
        let mut before = String::new();
        for (cell, width) in row.cells.iter().zip(&widths) {
            before += &format!("{:<width$}  ", plain(cell));
        }
        let last = row
            .cells
            .last()
            .map_or_else(String::new, |cell| plain(cell));
        for piece in wrap(&last, WIDTH.saturating_sub(indent)) {
            text += format!("{before}{piece}").trim_end();
            text.push('\n');
            before = " ".repeat(indent);
        }
        text += &indented(&row.notes, 4);
    }
    text
}

/// A table for programs: a header, then one line for each row, without line breaks. Empty cells are `-`, so
/// that every line has the same number of columns; only cells of the last column contain spaces.
pub fn lines(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let rows: Vec<&Vec<String>> = std::iter::once(&heads).chain(rows).collect();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(widest).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let cell = if cell.is_empty() { "-" } else { cell };
            format!("{:<width$}", plain(cell))
        });
        let cells: Vec<String> = cells.collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.into_iter().map(line).collect()
}

/// Indents paragraphs and wraps them at [`WIDTH`] characters.
pub fn indented(paragraphs: &[String], indent: usize) -> String {
    let lines = paragraphs
        .iter()
        .flat_map(|text| wrap(text, WIDTH - indent));
    lines
        .map(|line| format!("{:indent$}{line}\n", ""))
        .collect()
}

/// Breaks a text between words into lines of at most `width` characters; at least one line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(WRAP_MIN);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// The text with a capital first letter.
pub fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    rest.next()
        .map(|first| first.to_uppercase().chain(rest).collect())
        .unwrap_or_default()
}

/// Whether a character could move the terminal's cursor, or hide or reorder text.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text from outside, safe to print: unprintable characters become spaces.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if is_unprintable(c) { ' ' } else { c })
        .collect()
}

/// An error and its causes in one line, for a field of a log line: JSON would show the error alone.
pub fn causes(error: &(dyn Error + 'static)) -> tracing::field::DisplayValue<String> {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let reason = next.to_string();
        // Many errors include the text of their cause.
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = next.source();
    }
    tracing::field::display(text)
}

/// Why no connection to a host was established. Displayed as the rest of a sentence about that host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// Its name has no address.
    Name,
    /// Nothing listens at its port.
    Refused,
    /// No packet can be sent to its address.
    NoRoute,
    /// It did not respond.
    TimedOut,
    /// Its certificate is signed by an authority that is not trusted.
    Authority,
    /// Its certificate is valid, but not for this name.
    OtherHost,
    /// Its certificate is no longer or not yet valid.
    Expired,
    /// Its certificate is invalid in another way.
    Certificate,
    /// It responded with something else than TLS.
    NoTls,
    /// Any other reason, such as a connection that was reset.
    Lost,
}

impl Unreachable {
    /// The reason in an error of a client, or in one of its causes.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = Self::of_one(error) {
                return found;
            }
            // `source` of an I/O error skips the error that it contains.
            let inner = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            next = match inner {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        Self::Lost
    }

    fn of_one(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(match error {
                rustls::Error::InvalidCertificate(reason) => match reason {
                    CertificateError::UnknownIssuer => Self::Authority,
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. } => Self::OtherHost,
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. } => Self::Expired,
                    _ => Self::Certificate,
                },
                rustls::Error::InvalidMessage(_) => Self::NoTls,
                _ => return None,
            });
        }
        let error = error.downcast_ref::<io::Error>()?;
        match error.kind() {
            ErrorKind::ConnectionRefused => Some(Self::Refused),
            ErrorKind::TimedOut => Some(Self::TimedOut),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Some(Self::NoRoute),
            // The standard library has no kind for it.
            _ if error.to_string().starts_with("failed to lookup address") => Some(Self::Name),
            _ => None,
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "its host name cannot be resolved (DNS)",
            Self::Refused => {
                "the connection was refused; nothing is listening on that port, or a firewall rejects connections"
            }
            Self::NoRoute => "this machine has no route to its address",
            Self::TimedOut => "it did not respond in time",
            Self::Authority => {
                "its TLS certificate was issued by an authority that this machine does not trust"
            }
            Self::OtherHost => "its TLS certificate was issued for another host name",
            Self::Expired => "its TLS certificate has expired or is not valid yet",
            Self::Certificate => "its TLS certificate is invalid",
            Self::NoTls => "it does not use TLS at that port",
            Self::Lost => "the connection was lost",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_lost_connection_is_found_in_its_causes() {
        let nested = |error: rustls::Error| io::Error::other(io::Error::other(error));
        for (error, expected) in [
            (
                io::Error::from(ErrorKind::ConnectionRefused),
                Unreachable::Refused,
            ),
            (
                io::Error::other(io::Error::from(ErrorKind::TimedOut)),
                Unreachable::TimedOut,
            ),
            (
                io::Error::other("failed to lookup address information: Name or service not known"),
                Unreachable::Name,
            ),
            (
                nested(CertificateError::UnknownIssuer.into()),
                Unreachable::Authority,
            ),
            (
                nested(CertificateError::Revoked.into()),
                Unreachable::Certificate,
            ),
            (
                io::Error::from(ErrorKind::ConnectionReset),
                Unreachable::Lost,
            ),
        ] {
            assert_eq!(Unreachable::of(&error), expected, "{error}");
        }
    }

    #[test]
    fn durations_are_exact_or_rounded() {
        let seconds = [0, 90, 900, 21_600, 86_400, 2_592_000];
        assert_eq!(
            seconds.map(|s| duration(Duration::from_secs(s))),
            ["0 s", "90 s", "15 min", "6 h", "24 h", "30 d"]
        );
        let rounded = |ms| elapsed(Duration::from_millis(ms));
        assert_eq!(
            [850, 3_210, 9_949, 9_950, 99_499, 99_500].map(rounded),
            ["850 ms", "3.2 s", "9.9 s", "10 s", "99 s", "2 min"]
        );
        assert_eq!(
            [729_000, 5_970_000, 170_999_999, 171_000_000].map(rounded),
            ["12 min", "2 h", "47 h", "2 d"]
        );
        assert_eq!(
            [0, 9_999, 119_000].map(|ms| age(Duration::from_millis(ms))),
            ["0 s", "9 s", "2 min"]
        );
    }

    #[test]
    fn sizes_and_lengths_are_the_same_on_page_and_terminal() {
        assert_eq!(
            [999, 12_522, 999_949, 999_950, 52_428_800, 7_000_000_000].map(size),
            [
                "999 B", "12.5 kB", "999.9 kB", "1.0 MB", "52.4 MB", "7.0 GB"
            ]
        );
        assert_eq!(
            [30_033, 65_500, 3_723_000].map(length),
            ["0:30", "1:06", "1:02:03"]
        );
    }

    #[test]
    fn a_table_fits_a_terminal() {
        let row = Row {
            cells: vec!["ab".to_owned(), "word ".repeat(20)],
            notes: vec!["why".to_owned()],
        };
        let text = table(&["VIDEO", "MESSAGE"], &[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "VIDEO  MESSAGE");
        assert!(lines[1].starts_with("ab     word word"));
        assert!(lines[2].starts_with("       word"));
        assert_eq!(lines[3], "    why");
        assert!(lines.iter().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn a_line_for_programs_has_all_its_columns() {
        let row = ["id", "", "two\nlines"].map(str::to_owned).to_vec();
        let text = lines(&["VIDEO", "CODE", "DETAILS"], &[row]);
        assert_eq!(text, "VIDEO  CODE  DETAILS\nid     -     two lines\n");
    }

    #[test]
    fn text_from_outside_cannot_move_the_cursor() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a [2Jb c");
        assert_eq!(plain("a\u{9b}b\u{7f}c\u{202e}d"), "a b c d");
    }

    #[test]
    fn each_cause_is_named_once() {
        let error = anyhow::anyhow!("connection refused")
            .context("cannot connect: connection refused")
            .context("no answer");
        assert_eq!(
            causes(error.as_ref()).to_string(),
            "no answer: cannot connect: connection refused"
        );
    }
}
