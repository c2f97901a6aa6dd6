//! From the text of a file and the environment to a [`Config`], or to what is wrong and where.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::Config;
use super::keys::{KEYS, Key};

/// Why there is no configuration, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{place}: {what}")]
    Syntax {
        /// File and line.
        place: String,
        /// What the parser says.
        what: String,
    },
    /// There is no such key.
    #[error("{place}: there is no key `{key}`; {}", instead_of_key(nearest.as_deref()))]
    Unknown {
        /// File and line.
        place: String,
        /// The key.
        key: String,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// A section's name stands where a section belongs.
    #[error("{place}: `{section}` is a section: write `[{section}]` and its keys below")]
    Section {
        /// File and line.
        place: String,
        /// The section.
        section: String,
    },
    /// A value cannot be read.
    #[error("{place}: {key}: {what}")]
    Value {
        /// File and line, or the variable.
        place: String,
        /// The key.
        key: &'static str,
        /// What is wrong, and how to write it.
        what: String,
    },
    /// A key that has no default is not set.
    #[error("{file}: {what}")]
    Missing {
        /// The file.
        file: String,
        /// Which, and how to set it.
        what: String,
    },
    /// A variable looks as if it should override a key, and does not.
    #[error("{name} in the environment overrides no key; did you mean {nearest}?")]
    Variable {
        /// The variable.
        name: String,
        /// The variable that was probably meant.
        nearest: String,
    },
}

fn instead_of_key(nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "logdrive.example.toml lists all keys".to_owned(),
    }
}

/// Reads the configuration `text`. `file` is what errors call it.
pub(super) fn parse(
    file: &str,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let mut set: BTreeSet<&str> = BTreeSet::new();
    let place = |at: usize| format!("{file}:{}", line(text, at));
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: place(error.span().map_or(0, |span| span.start)),
        what: error.message().to_owned(),
    })?;
    for (section, entry) in document.get_ref() {
        let name = section.get_ref();
        let DeValue::Table(section_keys) = entry.get_ref() else {
            let place = place(section.span().start);
            let section = name.to_string();
            if KEYS.iter().any(|key| key.section() == section) {
                return Err(ConfigError::Section { place, section });
            }
            return Err(unknown(place, section));
        };
        if !KEYS.iter().any(|key| key.section() == name) && section_keys.is_empty() {
            return Err(unknown(place(section.span().start), name.to_string()));
        }
        for (key, value) in section_keys {
            let place = place(key.span().start);
            let name = format!("{name}.{}", key.get_ref());
            let Some(key) = KEYS.iter().find(|key| key.name == name) else {
                return Err(unknown(place, name));
            };
            let wrong = |place, what| ConfigError::Value {
                place,
                key: key.name,
                what,
            };
            let value = match plain(value.get_ref()) {
                Ok(value) => value,
                Err(what) => return Err(wrong(place, what.to_owned())),
            };
            (key.set)(&mut config, &value).map_err(|what| wrong(place, what))?;
            set.insert(key.name);
        }
    }
    for (name, value) in environment {
        let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
            check_variable(name)?;
            continue;
        };
        (key.set)(&mut config, &value).map_err(|what| ConfigError::Value {
            place: format!("{name} in the environment"),
            key: key.name,
            what,
        })?;
        set.insert(key.name);
    }
    match KEYS
        .iter()
        .find(|key| key.required && !set.contains(key.name))
    {
        Some(key) => Err(missing(file, key)),
        None => Ok(config),
    }
}

/// What the file says, as the environment would say it.
fn plain(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Integer(_) => Err("write the number in decimal"),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Datetime(_) => Err("a date stands where a value belongs"),
        DeValue::Table(_) => Err("a table stands where a value belongs"),
        DeValue::Array(values) => {
            let values: Result<Vec<_>, _> =
                values.iter().map(|value| plain(value.get_ref())).collect();
            Ok(values?.join(","))
        }
    }
}

fn unknown(place: String, key: String) -> ConfigError {
    let nearest = nearest(&key, KEYS.iter().map(|key| key.name.to_owned()));
    ConfigError::Unknown {
        place,
        key,
        nearest,
    }
}

/// A variable that is ours in name only may be anybody's, unless it is nearly the name of a key.
fn check_variable(name: String) -> Result<(), ConfigError> {
    if !name.starts_with("LOGDRIVE_") {
        return Ok(());
    }
    match nearest(&name, KEYS.iter().map(Key::variable)) {
        Some(nearest) => Err(ConfigError::Variable { name, nearest }),
        None => Ok(()),
    }
}

fn missing(file: &str, key: &Key) -> ConfigError {
    let (section, name) = (key.section(), key.key());
    let (full, variable) = (key.name, key.variable());
    let example = super::example::value(key, key.example);
    let what = format!(
        "{full} is not set; add `{name} = {example}` below `[{section}]`, or set {variable}"
    );
    ConfigError::Missing {
        file: file.to_owned(),
        what,
    }
}

/// The name most like what was written, if any is at all.
pub(super) fn nearest(text: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, text);
    names
        .map(|name| (likeness(&name), name))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

/// Below it two names have little to do with each other: `LOGDRIVE_PORT` is no misspelt key.
const LIKENESS_MIN: f64 = 0.75;
