//! Where settings come from, and how one is looked up.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use secrecy::{ExposeSecret, SecretString};

use super::rules::Rule;
use super::settings::{Fallback, SETTINGS, Setting};
use crate::domain::signature::same_secret;

/// Largest `.env` that is read, in bytes.
const DOTENV_MAX_BYTES: u64 = 256 * 1024;

/// Largest file of a secret, in bytes.
const SECRET_FILE_MAX_BYTES: u64 = 16 * 1024;

/// One setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} {right}")]
pub struct Problem {
    /// The variable's name, or `.env`.
    pub name: String,
    /// What would be right, to be read after the name. Never holds a value.
    pub right: String,
}

/// Everything settings are looked up in, so that tests can bring their own.
#[derive(Default)]
pub struct Sources {
    /// Values of flags, by the variable's name.
    pub flags: HashMap<String, String>,
    /// The environment.
    pub env: HashMap<String, String>,
    /// What `.env` says.
    pub dotenv: HashMap<String, String>,
    /// What relative paths of secret files start from.
    pub dir: PathBuf,
    /// What went wrong while gathering the above; refused together with what they say.
    pub problems: Vec<Problem>,
}

// By hand, because the values may be secrets.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// The flags of this command line, the process's environment and `.env` in the working directory.
    pub fn from_process(matches: &clap::ArgMatches) -> Self {
        let mut sources = Self::default();
        for setting in SETTINGS.iter().filter(|setting| !setting.secret) {
            // An error means that this subcommand has no such flag.
            if let Ok(Some(value)) = matches.try_get_one::<String>(setting.name) {
                sources.flags.insert(setting.name.to_owned(), value.clone());
            }
        }
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => {
                    sources.env.insert(name, value);
                }
                Err(_) if is_known(&name) => sources.refuse(&name, "must be UTF-8"),
                Err(_) => {}
            }
        }
        sources.read_dotenv(Path::new(".env"));
        sources
    }

    /// Reads a `.env` file, if it is there. As with dotenv everywhere, a name's first line wins.
    pub fn read_dotenv(&mut self, path: &Path) {
        let text = match read_text(path, DOTENV_MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.refuse(".env", format!("cannot be read: {error}")),
        };
        // dotenvy reports blanks at the end of a file as an open line, hence the line break.
        let text = text.trim_start_matches('\u{feff}').to_owned() + "\n";
        for line in dotenvy::from_read_iter(text.as_bytes()) {
            match line {
                Ok((name, value)) => {
                    self.dotenv.entry(name).or_insert(value);
                }
                Err(dotenvy::Error::LineParse(broken, _)) => {
                    // What is broken may be the value only, and of several lines the last.
                    let number = text.lines().position(|line| {
                        !line.trim_start().starts_with('#') && line.ends_with(broken.trim_end())
                    });
                    let place = number.map(|n| format!(" (line {})", n + 1));
                    let right =
                        "must be lines of NAME=value, values with blanks or `$` in single quotes";
                    self.refuse(".env", format!("{right}{}", place.unwrap_or_default()));
                }
                Err(_) => self.refuse(".env", "must be lines of NAME=value"),
            }
        }
    }

    fn refuse(&mut self, name: &str, right: impl Into<String>) {
        self.problems.push(Problem {
            name: name.to_owned(),
            right: right.into(),
        });
    }

    fn layers(&self) -> [Layer<'_>; 3] {
        [&self.flags, &self.env, &self.dotenv].map(Layer)
    }
}

fn is_known(name: &str) -> bool {
    let known = |setting: &Setting| {
        setting.name == name || (setting.secret && setting.file_variable() == name)
    };
    SETTINGS.iter().any(known)
}

/// One place to look, in the order of precedence.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a>(&'a HashMap<String, String>);

impl<'a> Layer<'a> {
    /// The value, where it is not empty: compose files pass unset variables on as empty ones.
    pub(super) fn get(self, name: &str) -> Option<&'a str> {
        let value = self.0.get(name)?;
        (!value.is_empty()).then_some(value)
    }
}

/// Looks settings up and collects what is wrong with them.
pub(super) struct Reader<'a> {
    sources: &'a Sources,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        Self {
            sources,
            problems: sources.problems.clone(),
        }
    }

    /// Everything that was wrong; a value that is needed and `None` is among it.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Problem>> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(self.problems),
        }
    }

    pub(super) fn refuse(&mut self, name: &str, right: impl Into<String>) {
        self.problems.push(Problem {
            name: name.to_owned(),
            right: right.into(),
        });
    }

    /// The highest layer in which `is_set` holds.
    pub(super) fn layer(&self, is_set: impl Fn(Layer<'a>) -> bool) -> Option<Layer<'a>> {
        self.sources
            .layers()
            .into_iter()
            .find(|layer| is_set(*layer))
    }

    /// Whether there is a value, right or wrong.
    pub(super) fn is_set(&self, setting: &Setting) -> bool {
        let file = setting.file_variable();
        self.layer(|layer| {
            layer.get(setting.name).is_some() || (setting.secret && layer.get(&file).is_some())
        })
        .is_some()
    }

    /// The value or its default, if it has one and the rule lets it pass.
    pub(super) fn value<T>(
        &mut self,
        setting: &Setting,
        rule: impl FnOnce(&str) -> Rule<T>,
    ) -> Option<T> {
        let layer = self.layer(|layer| layer.get(setting.name).is_some());
        match (
            layer.and_then(|layer| layer.get(setting.name)),
            setting.default,
        ) {
            (Some(text), _) | (None, Fallback::Value(text)) => self.check(setting.name, rule(text)),
            (None, Fallback::Words(_)) => None,
            (None, Fallback::Required) => self.require(setting),
        }
    }

    /// The secret, or what is in its file, if every rule lets it pass.
    ///
    /// Given several spellings of one setting, they may be set together only to the same.
    pub(super) fn secret(
        &mut self,
        spellings: &[Setting],
        rules: &[fn(&str) -> Rule<()>],
    ) -> Option<SecretString> {
        let is_set = |layer: Layer<'_>, setting: &Setting| {
            layer.get(setting.name).is_some() || layer.get(&setting.file_variable()).is_some()
        };
        let Some(layer) = self.layer(|layer| spellings.iter().any(|s| is_set(layer, s))) else {
            return match spellings {
                [setting, ..] if matches!(setting.default, Fallback::Required) => {
                    self.require(setting)
                }
                _ => None,
            };
        };
        let mut secret: Option<SecretString> = None;
        for setting in spellings.iter().filter(|setting| is_set(layer, setting)) {
            let found = self.secret_in(layer, setting)?;
            for rule in rules {
                self.check(setting.name, rule(found.expose_secret()))?;
            }
            if secret.is_some_and(|other| {
                !same_secret(
                    other.expose_secret().as_bytes(),
                    found.expose_secret().as_bytes(),
                )
            }) {
                self.refuse(
                    setting.name,
                    "contradicts its other spelling: set one of them",
                );
                return None;
            }
            secret = Some(found);
        }
        secret
    }

    fn secret_in(&mut self, layer: Layer<'_>, setting: &Setting) -> Option<SecretString> {
        let file = setting.file_variable();
        match (layer.get(setting.name), layer.get(&file)) {
            (Some(_), Some(_)) => {
                self.refuse(
                    setting.name,
                    format!("and {file} are both set: set one of them"),
                );
                None
            }
            (Some(value), None) => Some(value.into()),
            (None, path) => {
                // The path is not repeated: the secret itself may have been put there.
                let text = read_text(&self.sources.dir.join(path?), SECRET_FILE_MAX_BYTES)
                    .map_err(|error| format!("must name a readable file: {error}"));
                let text = self.check(&file, text)?;
                let secret = text.trim_end_matches(['\r', '\n']);
                if secret.is_empty() {
                    self.refuse(&file, "must name a file that is not empty");
                    return None;
                }
                Some(secret.into())
            }
        }
    }

    /// The value of a variable that is in no table.
    #[cfg(feature = "fail-points")]
    pub(super) fn undocumented<T: Default>(
        &mut self,
        name: &str,
        rule: impl FnOnce(&str) -> Rule<T>,
    ) -> Option<T> {
        let layer = self.layer(|layer| layer.get(name).is_some());
        match layer.and_then(|layer| layer.get(name)) {
            Some(text) => self.check(name, rule(text)),
            None => Some(T::default()),
        }
    }

    pub(super) fn check<T>(&mut self, name: &str, result: Rule<T>) -> Option<T> {
        result.map_err(|right| self.refuse(name, right)).ok()
    }

    fn require<T>(&mut self, setting: &Setting) -> Option<T> {
        self.refuse(setting.name, format!("must be set: {}", setting.meaning));
        None
    }
}

/// A small file of text.
fn read_text(path: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(max_bytes + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > max_bytes {
        let message = format!("it is larger than {max_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}
