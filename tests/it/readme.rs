//! What the README says of the program is what the program is.

use std::fs;
use std::path::{Path, PathBuf};

use video_ingest::config;
use video_ingest::domain::failure::{Class, Code};

const README: &str = include_str!("../../README.md");

/// The lines between `<!-- name -->` and `<!-- /name -->`.
fn section(name: &str) -> &'static str {
    let after = README.split_once(&format!("<!-- {name} -->\n"));
    let (_, after) = after.unwrap_or_else(|| panic!("README.md has no <!-- {name} -->"));
    let before = after.split_once(&format!("<!-- /{name} -->"));
    before
        .unwrap_or_else(|| panic!("README.md has no <!-- /{name} -->"))
        .0
}

/// The cells of each row of the table in a section, without its two head lines.
fn table(name: &str) -> impl Iterator<Item = Vec<&'static str>> {
    section(name).lines().skip(2).map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`')).collect()
    })
}

#[test]
fn the_settings_are_those_of_the_program() {
    let (written, expected) = (section("settings"), config::reference());
    if written == expected {
        return;
    }
    let lacks = |text: &str, line: &&str| !text.lines().any(|other| other == *line);
    let gone = written.lines().filter(|line| lacks(&expected, line));
    let new = expected.lines().filter(|line| lacks(written, line));
    let diff = gone.map(|line| format!("- {line}\n"));
    let diff: String = diff.chain(new.map(|line| format!("+ {line}\n"))).collect();
    panic!(
        "the settings in README.md differ:\n{diff}\nput these lines between its settings markers:\n{expected}"
    );
}

#[test]
fn every_failure_code_is_explained_in_its_class() {
    let written: Vec<_> = table("codes").map(|cells| (cells[0], cells[1])).collect();
    let expected: Vec<_> = Code::ALL
        .iter()
        .map(|code| {
            let class = match code.class() {
                Class::Content => "content",
                Class::Environment => "environment",
                Class::Passing => "passing",
                Class::Time => "time",
            };
            (code.as_str(), class)
        })
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn every_source_file_is_on_the_map() {
    let mut files = Vec::new();
    rust_files(Path::new("src"), &mut files);
    files.retain(|file| !file.ends_with("tests.rs"));
    files.sort();
    let mut written: Vec<_> = table("rooms")
        .map(|cells| PathBuf::from(cells[0]))
        .collect();
    written.sort();
    assert_eq!(written, files, "left: the README's map, right: src");
}

#[test]
fn the_fail_points_of_the_crash_table_are_those_of_an_attempt() {
    let ingest = include_str!("../../src/ingest.rs");
    let mut there: Vec<_> = ingest
        .split("fail.at(\"")
        .skip(1)
        .filter_map(|text| text.split('"').next())
        .collect();
    there.sort_unstable();
    let named = table("crashes").map(|cells| cells[3]);
    let mut named: Vec<_> = named.filter(|name| !name.is_empty()).collect();
    named.sort_unstable();
    assert_eq!(named, there);
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
