//! The rules of the architecture, checked against the source text.
//!
//! A rule is a function from files to violations (`path:line: what`). Each is tried on a planted
//! violation before it is applied to the tree, so that a rule which notices nothing fails too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

/// The modules of the crate, top layer first. A module imports only from layers below its own.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["app"],
    &["http"],
    &["pipeline"],
    &["telemetry"],
    &["services", "db", "config", "fake_github"],
    // Above domain, because an armed fail point returns a `domain::failure::Failure`.
    &["failpoint"],
    &["domain"],
    &["format", "clock"],
];
const MODULES_MAX: usize = 16;
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 120;

/// Path, function (or "the file") and why it may be longer. The limits are a ratchet: an entry
/// that is no longer needed fails the test.
const MAY_BE_LONGER: &[(&str, &str, &str)] = &[(
    "src/domain/verdict.rs",
    "what_is_in_the_branch",
    "A test's table with one row per case.",
)];

const DIALECT: &str =
    "whoever, whatever, meanwhile, mend, mends, mended, stand-in, standin, spoiler, put right";

/// Offsets in a file, and what is there.
type Found = Vec<(usize, String)>;

/// One file, and what the scanner understood of it. Offsets are the same in all three texts.
struct Source {
    path: String,
    text: String,
    /// Without comments and the contents of literals.
    code: String,
    /// Without tests as well.
    product: String,
    /// Items under `#[cfg(test)]`.
    tests: Vec<Range<usize>>,
    /// String literals of the product.
    literals: Found,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let (mut code, mut literals) = (text.to_owned(), Vec::new());
        if path.ends_with(".rs") {
            for hidden in comments_and_literals(text) {
                if text[..hidden.start].ends_with('"') {
                    literals.push((hidden.start, text[hidden.clone()].to_lowercase()));
                }
                blank(&mut code, hidden);
            }
        } else {
            blank(&mut code, 0..text.len());
        }
        let (mut product, mut tests) = (code.clone(), Vec::new());
        if path.ends_with("/tests.rs") || path.starts_with("tests/") {
            tests.push(0..text.len());
        }
        for attribute in ["#[cfg(test)]", "#[cfg(all(test,"] {
            let found = code.match_indices(attribute);
            tests.extend(found.map(|(at, _)| item(&code, at)));
        }
        for test in &tests {
            blank(&mut product, test.clone());
        }
        literals.retain(|(at, _)| product[..*at].ends_with('"'));
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            product,
            tests,
            literals,
        }
    }

    /// `["http", "page"]` for `src/http/page/mod.rs`, nothing for a root or another file.
    fn module(&self) -> Vec<&str> {
        let path = self.path.strip_prefix("src/").unwrap_or_default();
        match path.strip_suffix(".rs") {
            None | Some("lib" | "main") => Vec::new(),
            Some(path) => path.trim_end_matches("/mod").split('/').collect(),
        }
    }

    fn at(&self, offset: usize, what: &str) -> String {
        let line = self.text[..offset].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }

    /// The paths of the product in which one of the names occurs.
    fn naming(&self, names: &str) -> Found {
        let named = |path: &str, name| format!("::{path}::").contains(&format!("::{name}::"));
        let mut paths = self.paths();
        paths.retain(|(_, path)| names.split(' ').any(|name| named(path, name)));
        paths
    }

    /// Every path of the product and where it ends, with `a::{b, c as d}` and imported names in full.
    fn paths(&self) -> Found {
        let (mut paths, mut imports) = (Found::new(), BTreeMap::new());
        let (mut path, mut groups, mut importing) = (String::new(), vec![String::new()], false);
        let (code, mut at, mut end) = (&self.product, 0, 0);
        while let Some(next) = code[at..].chars().next() {
            let word = word(&code[at..]);
            let colons = code[at..].starts_with("::");
            let open = path.ends_with("::");
            let goes_on =
                next.is_whitespace() || colons || open && (!word.is_empty() || next == '{');
            let group = groups.last().cloned().unwrap_or_default();
            if !goes_on && path != group {
                path.truncate(path.trim_end_matches("::").trim_end_matches("::self").len());
                importing |= path == "use";
                if importing {
                    let name = path.rsplit("::").next().unwrap_or("").to_owned();
                    let renamed = paths.iter().rev().take(2).map(|(_, path)| path.as_str());
                    let full = match renamed.collect::<Vec<_>>()[..] {
                        [word, full] if format!("::{word}").ends_with("::as") => full.to_owned(),
                        _ => path.clone(),
                    };
                    imports.insert(name, full);
                }
                paths.push((end, std::mem::replace(&mut path, group)));
            }
            match next {
                '{' => groups.push(path.clone()),
                '}' => {
                    groups.pop();
                    path = groups.last().cloned().unwrap_or_default();
                }
                ';' => importing = false,
                _ if colons => path.push_str("::"),
                _ => path.push_str(word),
            }
            at += if colons {
                2
            } else {
                word.len().max(next.len_utf8())
            };
            end = if word.is_empty() { end } else { at };
        }
        for (_, path) in &mut paths {
            let (first, rest) = path.split_at(path.find("::").unwrap_or(path.len()));
            if let Some(full) = imports.get(first) {
                *path = format!("{full}{rest}");
            }
        }
        paths
    }
}

/// The word that the text begins with, or nothing.
fn word(text: &str) -> &str {
    let end = text.find(|c| !is_word(c));
    &text[..end.unwrap_or(text.len())]
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Writes spaces over a part of the text; lines stay.
fn blank(text: &mut String, part: Range<usize>) {
    let spaces: String = text[part.clone()]
        .bytes()
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect();
    text.replace_range(part, &spaces);
}

/// The comments of a file, and its literals without their quotes.
fn comments_and_literals(text: &str) -> Vec<Range<usize>> {
    let find = |from: usize, what: &str| text[from..].find(what).map_or(text.len(), |at| from + at);
    let (mut parts, mut at) = (Vec::new(), 0);
    while let Some(next) = text[at..].chars().next() {
        let rest = &text[at..];
        let part = if rest.starts_with("//") {
            at..find(at, "\n")
        } else if rest.starts_with("/*") {
            at..find(at, "*/")
        } else if next == '"' {
            let before = text[..at].trim_end_matches('#');
            let mut end = find(at + 1, &format!("\"{}", &text[before.len()..at]));
            let escaped =
                |end: usize| text[at..end].len() - text[at..end].trim_end_matches('\\').len();
            while !before.ends_with('r') && escaped(end) % 2 == 1 {
                end = find(end + 1, "\"");
            }
            at + 1..end
        } else if rest.starts_with("'\\") {
            at + 1..find(at + 3, "'")
        } else if next == '\'' && rest.chars().nth(2) == Some('\'') {
            at + 1..find(at + 1, "'")
        } else {
            at += next.len_utf8();
            continue;
        };
        at = text.len().min(part.end + 1);
        parts.push(part);
    }
    parts
}

/// The item that begins at an offset, to its `;` or its closing brace.
fn item(code: &str, start: usize) -> Range<usize> {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth < 0 || depth == 0 && matches!(byte, b';' | b'}') {
            return start..at + 1;
        }
    }
    start..code.len()
}

/// The top-level modules of the crate, without `lib.rs` and `main.rs`.
fn modules(files: &[Source]) -> BTreeSet<&str> {
    let modules = files.iter().map(Source::module);
    modules
        .filter_map(|module| module.first().copied())
        .collect()
}

/// Which module imports which, and the first place in each file that does.
fn imports(files: &[Source]) -> Vec<(&str, &str, String)> {
    let (all, mut imports) = (modules(files), Vec::new());
    for file in files.iter().filter(|file| !file.module().is_empty()) {
        let (from, depth) = (file.module()[0], file.module().len());
        let mut seen = BTreeSet::from([from]);
        for (at, path) in file.paths() {
            let inside = path.strip_prefix("crate::");
            let inside = inside.or(path.strip_prefix(&*"super::".repeat(depth)));
            let to = inside.and_then(|path| all.get(word(path)));
            if let Some(to) = to.filter(|to| seen.insert(to)) {
                imports.push((from, *to, file.at(at, &format!("`{from}` imports `{to}`"))));
            }
        }
    }
    imports
}

fn imports_upwards(files: &[Source]) -> Vec<String> {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let unknown = |file: &&Source| {
        file.module()
            .first()
            .is_some_and(|name| layer(name).is_none())
    };
    let unknown = files
        .iter()
        .filter(unknown)
        .map(|file| file.at(0, "a module without a layer"));
    let mut up = imports(files);
    up.retain(|(from, to, _)| layer(from) >= layer(to));
    unknown
        .chain(up.into_iter().map(|(_, _, what)| what))
        .collect()
}

/// The number of levels, of imports between modules, and the modules in or above a cycle.
fn graph(files: &[Source]) -> (usize, usize, BTreeSet<&str>) {
    let imports = imports(files).into_iter();
    let edges: BTreeSet<_> = imports.map(|(from, to, _)| (from, to)).collect();
    let (mut above, mut levels) = (modules(files), 0);
    loop {
        let before = above.clone();
        above.retain(|module| {
            edges
                .iter()
                .any(|(from, to)| from == module && before.contains(to))
        });
        if above == before {
            return (levels, edges.len(), above);
        }
        levels += 1;
    }
}

fn tangled(files: &[Source]) -> Vec<String> {
    let (modules, (_, _, cyclic)) = (modules(files).len(), graph(files));
    let cycle = format!("src: {cyclic:?} are in a cycle or above one");
    let many = format!("src: {modules} modules of at most {MODULES_MAX}");
    let cycle = (!cyclic.is_empty()).then_some(cycle);
    cycle
        .into_iter()
        .chain((modules > MODULES_MAX).then_some(many))
        .collect()
}

fn sql(file: &Source) -> Found {
    let is_sql = |literal: &str| {
        let words = literal
            .split_whitespace()
            .map(|word| word.trim_matches(['(', ')']));
        let words: Vec<_> = words.collect();
        let two = |pair: [&str; 2]| words.windows(2).any(|words| words == pair);
        let mut after_select = words.iter().skip_while(|word| **word != "select");
        let update = |words: &[&str]| words[0] == "update" && words[2] == "set";
        after_select.any(|word| *word == "from")
            || two(["insert", "into"])
            || two(["delete", "from"])
            || words.windows(3).any(update)
    };
    let mut found = file.naming("sqlx");
    found.extend(
        file.literals
            .iter()
            .filter(|(_, literal)| is_sql(literal))
            .cloned(),
    );
    found
}

fn too_long(files: &[Source], exceptions: &[(&str, &str, &str)]) -> Vec<String> {
    let (mut violations, mut unused) = (Vec::new(), exceptions.to_vec());
    for file in files.iter().filter(|file| file.path.starts_with("src/")) {
        let mut parts = vec![("the file", 0, file.text.lines().count(), FILE_LINES_MAX)];
        for (at, _) in file.code.match_indices("fn ") {
            let lines = file.code[item(&file.code, at)].lines().count();
            parts.push((word(&file.code[at + 3..]), at, lines, FUNCTION_LINES_MAX));
        }
        for (name, at, lines, _) in parts.into_iter().filter(|(_, _, lines, max)| lines > max) {
            let before = unused.len();
            unused.retain(|(path, function, _)| *path != file.path || *function != name);
            if unused.len() == before {
                violations.push(file.at(at, &format!("{name} has {lines} lines")));
            }
        }
    }
    let unused = unused
        .iter()
        .map(|(path, name, _)| format!("{path}:1: {name} is not too long"));
    violations.into_iter().chain(unused).collect()
}

/// Files that no chain of `mod` lines reaches from a root.
fn dead_files(files: &[Source]) -> Vec<String> {
    let roots = ["src/lib.rs", "src/main.rs", "tests/it/main.rs"];
    let (mut open, mut reached) = (roots.map(str::to_owned).to_vec(), BTreeSet::new());
    while let Some(path) = open.pop() {
        let Some(file) = files.iter().find(|file| file.path == path) else {
            continue;
        };
        let owners = ["/mod.rs", "/lib.rs", "/main.rs", ".rs"];
        let folder = owners
            .iter()
            .find_map(|end| path.strip_suffix(end))
            .unwrap_or(&path);
        for declared in file.code.split("mod ").skip(1) {
            let name = word(declared);
            if declared[name.len()..].starts_with(';') {
                open.extend(["", "/mod"].map(|end| format!("{folder}/{name}{end}.rs")));
            }
        }
        reached.insert(path);
    }
    let dead = |file: &&Source| file.path.ends_with(".rs") && !reached.contains(&file.path);
    files
        .iter()
        .filter(dead)
        .map(|file| file.at(0, "no `mod` line"))
        .collect()
}

fn dialect(file: &Source) -> Found {
    let (text, mut found) = (file.text.to_ascii_lowercase(), Found::new());
    for phrase in DIALECT.split(", ") {
        for (at, _) in text.match_indices(phrase) {
            let (before, after) = (&text[..at], &text[at + phrase.len()..]);
            if !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric)
            {
                found.push((at, phrase.to_owned()));
            }
        }
    }
    found
}

/// The braces of `match` expressions with an arm `true` or `false`.
fn matches_on_booleans(file: &Source) -> Found {
    let mut braces = BTreeSet::new();
    for (at, _) in file.code.match_indices("=>") {
        let arm = file.code[..at].trim_end();
        let before = arm
            .strip_suffix("true")
            .or(arm.strip_suffix("false"))
            .unwrap_or_default();
        if before.trim_end().ends_with(['{', '}', ',', '|']) {
            let mut depth = 0;
            braces.extend(arm.rfind(|c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth > 0
            }));
        }
    }
    braces
        .into_iter()
        .map(|at| (at, "match".to_owned()))
        .collect()
}

/// `src`, `tests/it` and the texts that users read.
static TREE: LazyLock<Vec<Source>> = LazyLock::new(|| {
    fn walk(folder: &str, deep: bool, files: &mut Vec<Source>) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = format!("{folder}{}", entry.unwrap().file_name().display());
            if deep && root.join(&path).is_dir() {
                walk(&format!("{path}/"), deep, files);
            } else if deep || path.ends_with(".md") {
                let text = fs::read(root.join(&path)).unwrap();
                files.push(Source::new(&path, &String::from_utf8_lossy(&text)));
            }
        }
    }
    let mut files = Vec::new();
    for (folder, deep) in [("src/", true), ("tests/it/", true), ("tests/", false)] {
        walk(folder, deep, &mut files);
    }
    walk("deploy/", false, &mut files);
    walk("", false, &mut files);
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
});

/// Files from `== path` and the lines that follow it.
fn planted(text: &str) -> Vec<Source> {
    let files = text.split("== ").skip(1);
    let files = files.filter_map(|file| file.split_once('\n'));
    files.map(|(path, text)| Source::new(path, text)).collect()
}

/// Tries a rule on planted files, where it has to find the lines with the word `FOUND` and no
/// others, and then applies it to the tree.
#[track_caller]
fn check(advice: &str, text: &str, rule: impl Fn(&[Source]) -> Vec<String>) {
    let (files, mut expected) = (planted(text), BTreeSet::new());
    for file in &files {
        let marks = file.text.match_indices("FOUND");
        expected.extend(marks.map(|(at, _)| file.at(at, "")));
    }
    let found = rule(&files).into_iter();
    let found = found.map(|what| what.split_inclusive(' ').next().unwrap().to_owned());
    assert_eq!(
        found.collect::<BTreeSet<_>>(),
        expected,
        "the rule itself is wrong"
    );
    holds(advice, rule(&TREE));
}

#[track_caller]
fn holds(advice: &str, found: Vec<String>) {
    let count = found.len();
    assert!(
        count == 0,
        "{advice}\n{}\n{count} violations",
        found.join("\n")
    );
}

/// [`check`] for a rule on single files whose path begins, or does `not` begin, with one of a list.
#[track_caller]
fn check_files(advice: &str, planted: &str, scope: &str, rule: impl Fn(&Source) -> Found) {
    let (list, inside) = scope
        .strip_prefix("not ")
        .map_or((scope, true), |list| (list, false));
    let listed = |file: &&Source| list.split(' ').any(|start| file.path.starts_with(start));
    check(advice, planted, |files| {
        let mut violations = Vec::new();
        for file in files.iter().filter(|file| listed(file) == inside) {
            let found = rule(file).into_iter();
            violations.extend(found.map(|(at, what)| file.at(at, &format!("`{what}`"))));
        }
        violations
    });
}

#[test]
fn imports_point_downwards() {
    let planted = r#"
== src/http/mod.rs
use crate::{
    app::App, // FOUND
    db as rows,
};
#[cfg(test)]
mod tests { use crate::cli; }
== src/http/page/mod.rs
// crate::cli
fn f() { super::super::app::start("crate::cli") } // FOUND
== src/db/mod.rs
use crate::db::x;
fn f(config: crate::config::Config) {} // FOUND
== src/services/tests.rs
use crate::app;
== src/app.rs
use crate::http;
== src/config/mod.rs
use super::http::X; // FOUND
== src/other.rs
// FOUND, because it is not in LAYERS
"#;
    let advice = "Imports point to lower layers only (LAYERS in tests/it/tidy.rs): move what both \
        modules need to a layer below both, or pass it as an argument.";
    check(advice, planted, imports_upwards);
}

#[test]
fn modules_are_few_and_have_no_cycles() {
    let text = "== src/a.rs\nuse crate::b;\n== src/b.rs\nuse crate::{a, c};\n== src/c.rs\n";
    assert_eq!(graph(&planted(text)), (1, 3, BTreeSet::from(["a", "b"])));
    assert_eq!(tangled(&planted(text)).len(), 1);
    let many: String = (0..=MODULES_MAX)
        .map(|n| format!("== src/m{n}.rs\n"))
        .collect();
    assert_eq!(tangled(&planted(&many)), ["src: 17 modules of at most 16"]);
    let (mut lines, mut with_tests) = (0, 0);
    for file in TREE
        .iter()
        .filter(|file| file.path.starts_with("src/") && file.path.ends_with(".rs"))
    {
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let mut text = file.text.clone();
        with_tests += text.lines().filter(is_code).count();
        file.tests
            .iter()
            .for_each(|test| blank(&mut text, test.clone()));
        lines += text.lines().filter(is_code).count();
    }
    let (modules, (levels, imports, _)) = (modules(&TREE).len(), graph(&TREE));
    println!("src: {lines} lines of code, {with_tests} with its tests");
    println!("src: {modules} modules on {levels} levels with {imports} imports");
    let advice = "Modules import each other in no cycle, and their number is limited: remove an \
                  import, or put the code into an existing module.";
    holds(advice, tangled(&TREE));
}

#[test]
fn sql_is_only_in_db() {
    let planted = r##"
== src/db/x.rs
use sqlx::Any; const A: &str = "select 1 from x";
== src/http/x.rs
use sqlx::Any; // FOUND
const A: &str = r#"SELECT "a" // FOUND
    FROM b"#;
const B: &str = "Update videos from a selection"; // select a from b
== src/cli/x.rs
const A: &str = "with x as (insert into a values (1))"; // FOUND
const B: &str = "update a set b = 1"; // FOUND
"##;
    let advice = "SQL is only in src/db: add a function to the file of the table.";
    // The rules of DATABASE_URL read it with the driver's own parser, and name nothing else of the driver.
    check_files(advice, planted, "not src/db/ src/config/postgres.rs", sql);
}

#[test]
fn the_environment_is_only_in_config() {
    let planted = r#"
== src/config/x.rs
fn f() { std::env::vars_os() }
== src/http/x.rs
use std::env::{self, args};
fn f() { env::vars_os() } // FOUND
== src/cli/x.rs
use std::env::var as read; // FOUND
fn f() { read("A"); args(); } // FOUND
"#;
    let advice = "Only src/config reads the environment: add a setting there, pass its value down.";
    let names = "env::var env::vars env::var_os env::vars_os dotenvy";
    check_files(advice, planted, "not src/config/", |file| {
        file.naming(names)
    });
}

#[test]
fn http_clients_share_one_policy() {
    let planted = r#"
== src/services/client.rs
fn f() { reqwest::Client::builder() }
== src/cli/x.rs
use reqwest::{Client, Url};
fn f() { Client::builder() } // FOUND
== src/cli/y.rs
use super::client::Client;
fn f() { Client::new() }
"#;
    let advice = "HTTP clients are built only in src/services/client.rs: call it.";
    let names = "reqwest::Client::new reqwest::Client::builder reqwest::Client::default \
                 reqwest::ClientBuilder reqwest::get";
    check_files(
        advice,
        planted,
        "not src/services/client.rs src/fake_github/",
        |file| file.naming(names),
    );
}

#[test]
fn services_and_database_are_opened_only_in_app() {
    let planted = r#"
== src/app.rs
fn f() { Github::new(); Db::sqlite() }
== src/services/github/mod.rs
fn f() { Github::new(); }
== src/pipeline/x.rs
use crate::services::github::Github;
fn f() { Github::new() } // FOUND
== src/http/x.rs
fn f() { crate::db::Db::postgres() } // FOUND
"#;
    let advice = "Services and the database are opened only in src/app.rs: pass them down.";
    let names = "Github::new SupabaseStore::new FolderStore::open OpenHands::new \
                 openhands::Agent::new Octocrab::builder Db::sqlite Db::postgres";
    check_files(
        advice,
        planted,
        "not src/app.rs src/services/ src/db/",
        |file| file.naming(names),
    );
}

#[test]
fn there_is_one_clock() {
    let planted = r#"
== src/clock.rs
fn f() { SystemTime::now() }
== src/http/x.rs
use jiff::Timestamp as Time;
fn f() { Time::now() } // FOUND
fn g() { Instant::now() }
"#;
    let advice = "Only src/clock.rs asks for the time, because tests move it: use the `Clock` that \
        is passed down.";
    let names = "SystemTime::now Timestamp::now Zoned::now";
    check_files(advice, planted, "not src/clock.rs", |file| {
        file.naming(names)
    });
}

#[test]
fn files_and_functions_are_short() {
    let body = "    x();\n".repeat(FUNCTION_LINES_MAX - 1);
    let file = "\n".repeat(FILE_LINES_MAX);
    let long = format!("== src/a.rs\nfn a();\nfn b() {{\n{body}}}\n== src/b.rs\n\n{file}");
    let found = [
        "src/a.rs:2: b has 121 lines",
        "src/b.rs:1: the file has 801 lines",
    ];
    assert_eq!(too_long(&planted(&long), &[]), found);
    let allowed = [("src/a.rs", "b", ""), ("src/b.rs", "the file", "")];
    assert_eq!(too_long(&planted(&long), &allowed), [""; 0]);
    assert_eq!(too_long(&[], &allowed).len(), 2, "both are not needed");
    let advice = "Files and functions have a limited length: split them by subject or by step, or \
                  remove an exception that is not needed from MAY_BE_LONGER.";
    holds(advice, too_long(&TREE, MAY_BE_LONGER));
}

#[test]
fn the_domain_is_pure() {
    let planted = r#"
== src/domain/x.rs
use tokio::sync::Mutex; // FOUND
async fn f() {} // FOUND
fn g(metrics: u8) { std::fs::read("async") } // FOUND
/// async
#[cfg(test)]
mod tests { fn f() { std::fs::read("") } }
== src/http/x.rs
async fn f() {}
"#;
    let advice = "src/domain has no I/O, time or waiting: take values, return a decision.";
    let names = "async await tokio reqwest octocrab hyper axum sqlx tracing std::fs std::net \
                 std::env std::process std::thread Instant::now";
    check_files(advice, planted, "src/domain/", |file| file.naming(names));
}

#[test]
fn no_file_is_dead() {
    let planted = r#"
== src/lib.rs
pub mod a; mod b; // mod c;
== src/a/mod.rs
mod x;
== src/a/x.rs
mod y;
== src/a/x/y.rs
== src/a/y.rs
// FOUND
== src/b.rs
== src/c.rs
// FOUND
"#;
    let advice = "Each file has a `mod` line in its parent: add it, or delete the file.";
    check(advice, planted, dead_files);
}

#[test]
fn words_are_standard_english() {
    let planted = r#"
== README.md
It amends recommendations.
Whoever mends it, (FOUND)
it is "put right". FOUND
== src/page.html
a stand-in, FOUND
== tests/it/x.rs
// whatever
"#;
    let advice = "Texts are in standard English: name the person, the thing or the time, and \
        write fix, fake or fault proxy.";
    check_files(advice, planted, "not tests/it/", dialect);
}

#[test]
fn booleans_are_not_matched() {
    let planted = r#"
== src/x.rs
fn f() {
    match a { // FOUND
        true => 1,
        false => 2,
    };
    match b {
        Some(true) => 1,
        _ => 2,
    };
    match c { // FOUND
        X => {}
        // why
        true => {}
    }
}
"#;
    let advice = "A bool is not matched: write `if … { … } else { … }`.";
    check_files(advice, planted, "src/", matches_on_booleans);
}
