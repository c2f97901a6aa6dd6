//! `logdrive.example.toml`: the table of keys as a file to start from.

use super::Config;
use super::keys::{KEYS, Key, Kind};

/// The file. What has to be set is set to an example, everything else stands as a comment with its default.
#[must_use]
pub fn example() -> String {
    let defaults = Config::default();
    let mut text = String::from(HEADER);
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            text.push_str(&format!("\n[{section}]\n"));
        } else {
            text.push('\n');
        }
        for line in key.doc.lines() {
            text.push_str(&format!("# {line}\n"));
        }
        let (name, shown) = (key.key(), (key.show)(&defaults));
        if key.example.is_empty() {
            text.push_str(&format!("#{name} = {}\n", value(key, &shown)));
        } else {
            text.push_str(&format!("{name} = {}\n", value(key, key.example)));
        }
    }
    text
}

/// A value as TOML writes it.
pub(super) fn value(key: &Key, value: &str) -> String {
    // Quotes, backslashes and control characters are escaped alike in TOML and in Rust's debug form, as
    // far as the values of examples and defaults have any.
    match key.kind {
        Kind::Number => value.to_owned(),
        Kind::Text => format!("{value:?}"),
        Kind::List => {
            let values: Vec<_> = value.split(',').map(|value| format!("{value:?}")).collect();
            format!("[{}]", values.join(", "))
        }
    }
}

const HEADER: &str = "\
# The configuration of a logdrive node, for `logdrive serve --config FILE`.
#
# What is set below has to be, or is wise to be; what stands as a comment is the default. Sizes and times have
# units: 64MiB, 150ms. The environment overrides the file: LOGDRIVE_WAL_BYTES_MAX=2GiB is wal.bytes_max.
# `logdrive serve --config FILE --check` says whether a file can be used, without starting anything.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn parse(text: &str) -> Config {
        file::parse("example", text, []).unwrap()
    }

    #[test]
    fn the_file_in_the_repository_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../logdrive.example.toml");
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(path, example()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap();
        let advice = "logdrive.example.toml is not what the table of keys says; \
                      REWRITE=1 cargo test -p logdrive-server example";
        assert!(found == example(), "{advice}");
    }

    #[test]
    fn the_example_can_be_used() {
        let config = parse(&example());
        assert_eq!(config.node_id, 1);
        assert_eq!(config.members.len(), 3);
    }

    #[test]
    fn what_stands_as_a_comment_is_the_default() {
        let uncommented: String = example()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if key.starts_with(|letter: char| letter.is_ascii_lowercase()) => {
                    format!("{key}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        assert_ne!(uncommented, example());
        let (set, unset) = (parse(&uncommented), parse(&example()));
        for key in KEYS {
            assert_eq!((key.show)(&set), (key.show)(&unset), "{key:?}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        let config = parse(&example());
        for key in KEYS {
            let mut other = Config::default();
            (key.set)(&mut other, &(key.show)(&config)).unwrap();
            assert_eq!((key.show)(&other), (key.show)(&config), "{key:?}");
        }
    }
}
