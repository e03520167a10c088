//! The documentation agrees with the program: settings, failure codes, crash table, commands and links.

use std::path::Path;
use std::{fs, io};

use video_ingest::config;
use video_ingest::domain::advice::advice;
use video_ingest::domain::failure::Code;

/// The files whose commands `tests/fresh-machine.sh` runs.
const DOCUMENTS: [&str; 3] = ["README.md", "deploy/README.md", "tests/README.md"];

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The lines between `<!-- name -->` and `<!-- /name -->`, in Markdown or in `//!` comments.
fn section(file: &str, name: &str) -> String {
    let text = read(file);
    let mut lines = text
        .lines()
        .map(|line| line.strip_prefix("//! ").unwrap_or(line));
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    assert!(
        lines.by_ref().any(|line| line == begin),
        "{file}: no {begin}"
    );
    let mut inside = String::new();
    for line in lines {
        if line == end {
            return inside;
        }
        inside += line;
        inside += "\n";
    }
    panic!("{file}: no {end}");
}

/// The cells of each row of the table in a section, without its header.
fn table(file: &str, name: &str) -> Vec<Vec<String>> {
    let cells = |row: &str| {
        let cells = row.trim_matches('|').split('|');
        cells
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect()
    };
    section(file, name).lines().skip(2).map(cells).collect()
}

#[test]
fn the_settings_are_those_of_the_program() {
    let (written, expected) = (section("README.md", "settings"), config::reference());
    if written == expected {
        return;
    }
    let lacks = |text: &str, line: &&str| !text.lines().any(|other| other == *line);
    let gone = written.lines().filter(|line| lacks(&expected, line));
    let new = expected.lines().filter(|line| lacks(&written, line));
    let diff = gone.map(|line| format!("- {line}\n"));
    let diff: String = diff.chain(new.map(|line| format!("+ {line}\n"))).collect();
    panic!(
        "the settings in README.md differ:\n{diff}\nput these lines between its settings markers:\n{expected}"
    );
}

#[test]
fn every_failure_code_is_explained_with_its_class_and_advice() {
    let rows = table("deploy/README.md", "codes");
    let written: Vec<_> = rows
        .iter()
        .map(|cells| (cells[0].as_str(), cells[1].as_str(), cells[3].as_str()))
        .collect();
    let expected: Vec<_> = Code::ALL
        .iter()
        .map(|code| (code.as_str(), code.class().as_str(), advice(*code)))
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn the_fail_points_and_tests_of_the_crash_table_exist() {
    let mut source = String::new();
    append_rust_files(Path::new("src"), &mut source).unwrap();
    let mut existing: Vec<_> = source
        .split("fail.at(\"")
        .skip(1)
        .filter_map(|text| text.split('"').next())
        .collect();
    existing.sort_unstable();

    let rows = table("src/lib.rs", "crashes");
    let (tests, mut named): (Vec<_>, Vec<_>) = rows
        .iter()
        .map(|cells| cells[3].as_str())
        .filter(|proof| !proof.is_empty())
        .partition(|proof| proof.contains("::"));
    named.sort_unstable();
    assert_eq!(named, existing, "left: src/lib.rs, right: fail points");
    for test in tests {
        let (file, name) = test.split_once("::").unwrap();
        let file = read(&format!("tests/it/{file}.rs"));
        assert!(file.contains(&format!(" {name}(")), "there is no {test}");
    }
}

#[test]
fn every_command_is_run_on_a_fresh_machine_or_marked_with_a_reason() {
    let script = read("tests/fresh-machine.sh");
    let array = |name: &str| -> Vec<String> {
        let (_, words) = script.split_once(&format!("{name}=(")).unwrap();
        let words = words.split(')').next().unwrap().split_whitespace();
        words.map(str::to_owned).collect()
    };
    assert_eq!(array("DOCUMENTS"), DOCUMENTS);
    let groups = array("GROUPS_ALL");
    for file in DOCUMENTS {
        let text = read(file);
        let mut before = "";
        let mut is_inside = false;
        for line in text.lines().filter(|line| !line.is_empty()) {
            let is_fence = line.starts_with("```");
            if is_fence && !is_inside && line != "```mermaid" {
                let marker = before.strip_prefix("<!-- ").unwrap_or_default();
                let is_run = groups.iter().any(|g| marker == format!("run {g} -->"));
                let is_excused = marker.starts_with("not run: needs ");
                assert!(is_run || is_excused, "{file}: before {line}: {before}");
            }
            is_inside ^= is_fence;
            before = line;
        }
    }
}

/// Other users of a machine can see command lines. Only files of settings contain a password.
#[test]
fn no_command_shows_a_password_or_skips_the_databases_certificate() {
    let mut files = DOCUMENTS.map(str::to_owned).to_vec();
    append_files(Path::new("deploy"), &mut files).unwrap();
    for file in files {
        // A screenshot is not text.
        let text = fs::read_to_string(&file).unwrap_or_default();
        assert!(!text.contains("sslmode=require"), "{file}");
        for line in text.lines() {
            let is_setting = line.trim_start().starts_with("DATABASE_URL");
            let authority = line.split_once("postgresql://").map(|(_, rest)| rest);
            let user = authority.and_then(|rest| rest.split_once('@'));
            let has_password = user.is_some_and(|(user, _)| user.contains(':'));
            assert!(is_setting || !has_password, "{file}: {line}");
            let sets_secrets = line.contains("fly secrets set");
            assert!(!sets_secrets, "{file}: {line}");
        }
    }
}

#[test]
fn every_relative_link_points_to_an_existing_file_and_heading() {
    for file in DOCUMENTS {
        let text = read(file);
        let folder = Path::new(file).parent().unwrap();
        let links = text.split("](").skip(1).map(|rest| (rest, ')'));
        let images = text.split("src=\"").skip(1).map(|rest| (rest, '"'));
        for (rest, end) in links.chain(images) {
            let link = rest.split(end).next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => Path::new(file).to_owned(),
                path => folder.join(path),
            };
            assert!(target.exists(), "{file}: there is no {link}");
            let has_heading = || {
                let text = read(target.to_str().unwrap());
                text.lines()
                    .any(|line| slug(line) == Some(anchor.to_owned()))
            };
            assert!(anchor.is_empty() || has_heading(), "{file}: no {link}");
        }
    }
}

/// The anchor that GitHub gives to a heading. `None`: the line is not a heading.
fn slug(line: &str) -> Option<String> {
    let text = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
    Some(slug.to_lowercase())
}

fn append_files(folder: &Path, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            append_files(&path, files)?;
        } else {
            files.push(path.to_str().unwrap_or_default().to_owned());
        }
    }
    Ok(())
}

fn append_rust_files(folder: &Path, text: &mut String) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            append_rust_files(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &fs::read_to_string(path)?;
        }
    }
    Ok(())
}
