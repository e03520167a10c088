//! Values as people read them, and tables of them. Pure.

use jiff::{SignedDuration, Timestamp};

/// What every terminal shows without breaking lines, in characters.
pub(crate) const WIDTH: usize = 80;

/// The narrowest that a wrapped column gets, in characters.
const WRAP_MIN: usize = 24;

/// How long ago, in the largest unit that fits: `12 s ago`.
pub(crate) fn ago(at: &str, now: Timestamp) -> String {
    let Ok(at) = at.parse::<Timestamp>() else {
        return "?".to_owned();
    };
    let seconds = now.duration_since(at).max(SignedDuration::ZERO).as_secs();
    match seconds {
        0 => "now".to_owned(),
        1..=119 => format!("{seconds} s ago"),
        120..=7_199 => format!("{} min ago", seconds / 60),
        7_200..=172_799 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A time of day in UTC, to the millisecond.
pub(crate) fn clock(at: &str) -> String {
    match at.parse::<Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        Err(_) => at.to_owned(),
    }
}

/// Bytes in a unit of three or four digits.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A video's duration: `30.059 s`, `12:05`.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{}.{:03} s", ms / 1_000, ms % 1_000),
        _ => format!("{}:{:02}", ms / 60_000, ms / 1_000 % 60),
    }
}

/// One row of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// One for each head.
    pub cells: Vec<String>,
    /// Paragraphs below the row, over its whole width.
    pub notes: Vec<String>,
}

/// Rows under their heads, columns as wide as what is in them; the last one and notes are broken at
/// [`WIDTH`] characters.
pub(crate) fn table(heads: &[&str], rows: &[Row]) -> String {
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
            before += &format!("{cell:<width$}  ");
        }
        let last = row.cells.last().map_or("", String::as_str);
        for piece in wrap(last, WIDTH.saturating_sub(indent)) {
            text += format!("{before}{piece}").trim_end();
            text.push('\n');
            before = " ".repeat(indent);
        }
        text += &indented(&row.notes, 4);
    }
    text
}

/// Paragraphs, moved to the right and broken at [`WIDTH`] characters.
pub(crate) fn indented(paragraphs: &[String], indent: usize) -> String {
    let lines = paragraphs
        .iter()
        .flat_map(|text| wrap(text, WIDTH - indent));
    lines
        .map(|line| format!("{:indent$}{line}\n", ""))
        .collect()
}

/// Breaks a text between words so that lines have at most `width` characters; at least one line.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
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

/// What another side wrote, fit for a terminal: without control characters, which could move its cursor.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_the_largest_unit_that_says_enough() {
        let now: Timestamp = "2026-01-28T12:00:00Z".parse().unwrap();
        for (at, expected) in [
            ("2026-01-28T12:00:00Z", "now"),
            ("2026-01-28T12:00:09Z", "now"),
            ("2026-01-28T11:58:01Z", "119 s ago"),
            ("2026-01-28T11:58:00Z", "2 min ago"),
            ("2026-01-28T10:00:00Z", "2 h ago"),
            ("2026-01-26T12:00:00Z", "2 days ago"),
            ("yesterday", "?"),
        ] {
            assert_eq!(ago(at, now), expected, "{at}");
        }
    }

    #[test]
    fn sizes_and_durations() {
        assert_eq!(
            [size(1_023), size(12_522), size(50 << 20)],
            ["1023 bytes", "12.2 KiB", "50.0 MiB"]
        );
        assert_eq!([duration(30_059), duration(725_000)], ["30.059 s", "12:05"]);
    }

    #[test]
    fn a_table_is_as_wide_as_a_terminal() {
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
    fn no_text_of_others_moves_the_cursor() {
        assert_eq!(plain("a\x1b[2Jb\nc"), "a [2Jb c");
    }
}
