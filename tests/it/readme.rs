//! What the README says of the program is what the program is.

use std::path::{Path, PathBuf};
use std::{fs, io};

use video_ingest::config;
use video_ingest::domain::advice::advice;
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
fn every_failure_code_is_explained_with_its_class_and_advice() {
    let rows = table("codes");
    let written: Vec<_> = rows.map(|cells| (cells[0], cells[1], cells[3])).collect();
    let expected: Vec<_> = Code::ALL
        .iter()
        .map(|code| {
            let class = match code.class() {
                Class::Invalid => "invalid",
                Class::Configuration => "configuration",
                Class::Transient => "transient",
                Class::Expired => "expired",
            };
            (code.as_str(), class, advice(*code))
        })
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn every_source_file_is_on_the_map() {
    let mut files = Vec::new();
    rust_files(Path::new("src"), &mut files).unwrap();
    files.retain(|file| !file.ends_with("tests.rs"));
    files.sort();
    let mut written: Vec<_> = table("rooms")
        .map(|cells| PathBuf::from(cells[0]))
        .collect();
    written.sort();
    assert_eq!(written, files, "left: the README's map, right: src");
}

#[test]
fn the_proofs_of_the_crash_table_are_there() {
    let sources = [
        include_str!("../../src/pipeline/ingest.rs"),
        include_str!("../../src/pipeline/worker.rs"),
    ];
    let places = sources.iter().flat_map(|s| s.split("fail.at(\"").skip(1));
    let mut there: Vec<_> = places.filter_map(|text| text.split('"').next()).collect();
    there.sort_unstable();

    let proofs = table("crashes").map(|cells| cells[3]);
    let (tests, mut named): (Vec<_>, Vec<_>) = proofs
        .filter(|proof| !proof.is_empty())
        .partition(|proof| proof.contains("::"));
    named.sort_unstable();
    assert_eq!(named, there, "left: the README's fail points, right: src");
    for test in tests {
        let (file, name) = test.split_once("::").unwrap();
        let file = fs::read_to_string(format!("tests/it/{file}.rs")).unwrap();
        assert!(file.contains(&format!(" {name}(")), "there is no {test}");
    }
}

#[test]
fn every_command_is_run_on_a_fresh_machine_or_says_why_not() {
    let script = include_str!("../fresh-machine.sh");
    let groups = script.split_once("GROUPS_ALL=(").unwrap().1;
    let groups: Vec<_> = groups.split(')').next().unwrap().split(' ').collect();
    let mut before = "";
    let mut is_inside = false;
    for line in README.lines().filter(|line| !line.is_empty()) {
        let is_fence = line.starts_with("```");
        if is_fence && !is_inside && line != "```mermaid" {
            let marker = before.strip_prefix("<!-- ").unwrap_or_default();
            let is_run = groups.iter().any(|g| marker == format!("run {g} -->"));
            let is_excused = marker.starts_with("not run: needs ");
            assert!(is_run || is_excused, "before {line}: {before}");
        }
        is_inside ^= is_fence;
        before = line;
    }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}
