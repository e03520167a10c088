//! The sources of settings (flags of the parsed command line, environment, `.env`, files of secrets), and the
//! lookup of one setting in them.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use secrecy::{ExposeSecret, SecretString};

use super::rules::Rule;
use super::settings::{Fallback, SETTINGS, Setting};
use crate::domain::signature::same_secret;

/// Largest `.env` that is read, in bytes.
const DOTENV_MAX_BYTES: u64 = 256 * 1024;

/// Largest file that a `NAME_FILE` variable may name, in bytes.
const SECRET_FILE_MAX_BYTES: u64 = 16 * 1024;

/// A name of so many letters for each typing error may be meant for a setting.
const LETTERS_PER_TYPO: usize = 5;

/// One invalid setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} {right}.")]
pub struct Problem {
    /// The variable's name, or `.env`.
    pub name: String,
    /// What the value must be, as the rest of a sentence after the name. Never contains the value.
    pub right: String,
}

impl Problem {
    /// A problem with a setting; `right` continues the sentence after its name.
    pub fn new(name: &str, right: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            right: right.into(),
        }
    }
}

/// Everything that settings are read from; tests bring their own.
#[derive(Default)]
pub struct Sources {
    /// Values of flags, by the variable's name.
    pub flags: HashMap<String, String>,
    /// The environment.
    pub env: HashMap<String, String>,
    /// The contents of `.env`.
    pub dotenv: HashMap<String, String>,
    /// The base of relative paths in `NAME_FILE` variables.
    pub dir: PathBuf,
    /// Problems with the sources themselves, reported together with those of the settings.
    pub problems: Vec<Problem>,
}

// Not derived, because the values may be secrets.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// Reads the flags of this command line, the environment and `.env` in the working directory.
    pub fn from_process(matches: &clap::ArgMatches) -> Self {
        let mut sources = Self::default();
        for setting in SETTINGS.iter().filter(|setting| !setting.secret) {
            // An error means that this command does not have the flag.
            if let Ok(Some(value)) = matches.try_get_one::<String>(setting.name) {
                sources.flags.insert(setting.name.to_owned(), value.clone());
            }
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that reads the environment"
        )]
        let environment = std::env::vars_os();
        for (name, value) in environment {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => {
                    sources.env.insert(name, value);
                }
                Err(_) if is_known(&name) => sources.refuse(&name, "must be valid UTF-8"),
                Err(_) => {}
            }
        }
        sources.read_dotenv(Path::new(".env"));
        sources
    }

    /// Reads a `.env` file if it exists. As in other dotenv implementations, the first line of a name wins.
    pub fn read_dotenv(&mut self, path: &Path) {
        let text = match read_text(path, DOTENV_MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.refuse(".env", format!("cannot be read: {error}")),
        };
        // dotenvy would replace `$NAME` by the value of the environment. A `.env` file of somebody else could then
        // name an exported secret, and send it to an address of its choice.
        let substitutes = |line: &str| {
            let value = line.split_once('=').map_or(line, |(_, value)| value).trim();
            value.contains('$') && !value.starts_with('\'') && !line.trim_start().starts_with('#')
        };
        if let Some(line) = text.lines().position(substitutes) {
            let right =
                "must not contain `$` outside single quotes, because variables are not replaced";
            return self.refuse(".env", format!("{right} (line {})", line + 1));
        }
        // dotenvy reports trailing blanks at the end of a file as an unfinished line, hence the line break.
        let text = text.trim_start_matches('\u{feff}').to_owned() + "\n";
        for line in dotenvy::from_read_iter(text.as_bytes()) {
            match line {
                Ok((name, value)) => {
                    self.dotenv.entry(name).or_insert(value);
                }
                Err(dotenvy::Error::LineParse(broken, _)) => {
                    // `broken` may be the value alone, and the last of several lines.
                    let number = text.lines().position(|line| {
                        !line.trim_start().starts_with('#') && line.ends_with(broken.trim_end())
                    });
                    let place = number.map(|n| format!(" (line {})", n + 1));
                    let right = "must consist of NAME=value lines, with single quotes around values that contain spaces or `$`";
                    self.refuse(".env", format!("{right}{}", place.unwrap_or_default()));
                }
                Err(_) => self.refuse(".env", "must consist of NAME=value lines"),
            }
        }
    }

    /// Whether one of these settings, or a file for it, is given anywhere, valid or not.
    pub fn has(&self, settings: &[Setting]) -> bool {
        self.layer(settings).is_some()
    }

    /// Variables that are not settings, each with the setting that its name resembles and that is not set.
    pub fn misspelt(&self) -> Vec<(&str, &'static str)> {
        let given = self.env.keys().chain(self.dotenv.keys());
        let unknown: BTreeSet<&str> = given
            .map(String::as_str)
            .filter(|name| !is_known(name))
            .collect();
        let resembled = |name| {
            let unset = SETTINGS.iter().filter(|setting| !self.has(&[**setting]));
            let names = unset.flat_map(|setting| {
                let file = setting.secret.then(|| setting.file_variable());
                std::iter::once(setting.name.to_owned())
                    .chain(file)
                    .map(|known| (distance(name, &known), known.len(), setting.name))
            });
            let near = names.filter(|(distance, length, _)| *distance <= length / LETTERS_PER_TYPO);
            near.min().map(|(.., known)| (name, known))
        };
        unknown.into_iter().filter_map(resembled).collect()
    }

    /// What is allowed but probably a mistake, as sentences.
    pub fn warnings(&self) -> Vec<String> {
        let misspelt = self.misspelt().into_iter();
        misspelt
            .map(|(name, known)| {
                format!("{name} is not a setting, so it has no effect. Rename it if you meant {known}, which is not set.")
            })
            .collect()
    }

    /// Whether this setting is given without a value, which counts as not set.
    pub fn is_empty(&self, setting: &Setting) -> bool {
        let empty = |Layer(layer): Layer<'_>| layer.get(setting.name).is_some_and(String::is_empty);
        !self.has(&[*setting]) && self.layers().into_iter().any(empty)
    }

    fn refuse(&mut self, name: &str, right: impl Into<String>) {
        self.problems.push(Problem::new(name, right));
    }

    /// In the order of precedence.
    fn layers(&self) -> [Layer<'_>; 3] {
        [&self.flags, &self.env, &self.dotenv].map(Layer)
    }

    /// The first layer that has one of these settings.
    pub(super) fn layer(&self, settings: &[Setting]) -> Option<Layer<'_>> {
        let mut layers = self.layers().into_iter();
        layers.find(|layer| settings.iter().any(|setting| layer.has(setting)))
    }

    /// Whether `.env` decides this setting, of which several may be alternatives.
    pub(super) fn is_in_dotenv(&self, settings: &[Setting]) -> bool {
        self.comes_from(&self.dotenv, settings)
    }

    /// Whether `.env`, which may be somebody else's, decides where a secret from the environment is sent.
    pub(super) fn would_leak(&self, secret: Setting, address: &[Setting]) -> bool {
        self.comes_from(&self.env, &[secret]) && self.is_in_dotenv(address)
    }

    fn comes_from(&self, source: &HashMap<String, String>, settings: &[Setting]) -> bool {
        let layer = self.layer(settings);
        layer.is_some_and(|Layer(found)| std::ptr::eq(found, source))
    }
}

/// The number of typing errors between two names, ignoring case and underscores.
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|name| name.replace('_', "").to_ascii_uppercase());
    strsim::osa_distance(&a, &b)
}

fn is_known(name: &str) -> bool {
    let known = |setting: &Setting| {
        setting.name == name || (setting.secret && setting.file_variable() == name)
    };
    SETTINGS.iter().any(known)
}

/// Flags, environment or `.env`.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a>(&'a HashMap<String, String>);

impl<'a> Layer<'a> {
    /// The value unless it is empty: compose files pass unset variables on as empty ones.
    fn get(self, name: &str) -> Option<&'a str> {
        let value = self.0.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn has(self, setting: &Setting) -> bool {
        self.get(setting.name).is_some()
            || (setting.secret && self.get(&setting.file_variable()).is_some())
    }
}

/// Looks up settings and collects their problems.
pub(super) struct Reader<'a> {
    pub(super) sources: &'a Sources,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        Self {
            sources,
            problems: sources.problems.clone(),
        }
    }

    /// The value, or every problem found. A required value that is `None` has a problem.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty()
            && let Some(value) = value
        {
            return Ok(value);
        }
        let misspelt = self.sources.misspelt();
        for problem in &mut self.problems {
            if let Some((name, _)) = misspelt.iter().find(|(_, known)| problem.name == *known) {
                problem.right += &format!("; {name} is set, but it is not a setting: rename it");
            }
        }
        Err(self.problems)
    }

    /// Adds a problem; always `None`.
    pub(super) fn refuse<T>(&mut self, name: &str, right: impl Into<String>) -> Option<T> {
        self.problems.push(Problem::new(name, right));
        None
    }

    pub(super) fn check<T>(&mut self, name: &str, result: Rule<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(right) => self.refuse(name, right),
        }
    }

    /// The value of a variable, documented or not.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        let mut layers = self.sources.layers().into_iter();
        layers.find_map(|layer| layer.get(name))
    }

    /// The value or its default, if there is one and it satisfies the rule.
    pub(super) fn value<T>(
        &mut self,
        setting: &Setting,
        rule: impl FnOnce(&str) -> Rule<T>,
    ) -> Option<T> {
        match (self.text(setting.name), setting.default) {
            (Some(text), _) | (None, Fallback::Value(text)) => self.check(setting.name, rule(text)),
            (None, _) => self.absent(setting),
        }
    }

    /// The secret, or the contents of its file, if it satisfies every rule.
    ///
    /// Several spellings of one setting may be set together only if they agree.
    pub(super) fn secret(
        &mut self,
        spellings: &[Setting],
        rules: &[fn(&str) -> Rule<()>],
    ) -> Option<SecretString> {
        let Some(layer) = self.sources.layer(spellings) else {
            return self.absent(&spellings[0]);
        };
        let mut secret: Option<SecretString> = None;
        for setting in spellings.iter().filter(|setting| layer.has(setting)) {
            let found = self.secret_in(layer, setting)?;
            for rule in rules {
                self.check(setting.name, rule(found.expose_secret()))?;
            }
            if secret.is_some_and(|other| !is_same(&other, &found)) {
                let right =
                    "and its alternative spelling have different values: set only one of them";
                return self.refuse(setting.name, right);
            }
            secret = Some(found);
        }
        secret
    }

    fn secret_in(&mut self, layer: Layer<'_>, setting: &Setting) -> Option<SecretString> {
        let file = setting.file_variable();
        match (layer.get(setting.name), layer.get(&file)) {
            (Some(_), Some(_)) => self.refuse(
                setting.name,
                format!("and {file} are both set: set only one of them"),
            ),
            (Some(value), None) => Some(value.into()),
            (None, path) => {
                // The path is not repeated: it may be the secret itself, pasted into this variable.
                let text = read_text(&self.sources.dir.join(path?), SECRET_FILE_MAX_BYTES)
                    .map_err(|error| format!("must be the path to a readable file: {error}"));
                let text = self.check(&file, text)?;
                let secret = text.trim_end_matches(['\r', '\n']);
                if secret.is_empty() {
                    return self.refuse(&file, "must be the path to a non-empty file");
                }
                Some(secret.into())
            }
        }
    }

    /// `None`, which is a problem if the setting is required.
    fn absent<T>(&mut self, setting: &Setting) -> Option<T> {
        if let Fallback::Required = setting.default {
            self.refuse(setting.name, format!("must be set ({})", setting.meaning))
        } else {
            None
        }
    }
}

/// Compares two secrets in constant time.
pub(super) fn is_same(a: &SecretString, b: &SecretString) -> bool {
    same_secret(a.expose_secret().as_bytes(), b.expose_secret().as_bytes())
}

/// Reads a text file of at most `max_bytes`.
fn read_text(path: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(max_bytes + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > max_bytes {
        let message = format!("the file is larger than {max_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}
