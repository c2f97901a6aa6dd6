//! Which operations a load is made of: `put=40,get=40,cas=20`.

use std::fmt;
use std::str::FromStr;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Give a key a value.
    Put,
    /// Ask for a value.
    Get,
    /// Give a key a value if it has the one that was last seen.
    Cas,
    /// Add to a value.
    Append,
    /// Forget a key.
    Delete,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Put, "put"),
    (Kind::Get, "get"),
    (Kind::Cas, "cas"),
    (Kind::Append, "append"),
    (Kind::Delete, "delete"),
];

impl Kind {
    /// Its name in `--mix` and in a history.
    #[must_use]
    pub fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    /// Whether it changes anything.
    #[must_use]
    pub fn is_write(self) -> bool {
        self != Kind::Get
    }
}

/// Shares of the kinds of operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    shares: [u32; KINDS.len()],
    total: u32,
}

/// Why a mix could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a mix: {why}")]
pub struct MixError {
    text: String,
    why: String,
}

impl Mix {
    /// The kind that a random number below [`Mix::total`] stands for.
    #[must_use]
    pub fn pick(&self, mut number: u32) -> Kind {
        for ((kind, _), share) in KINDS.iter().zip(self.shares) {
            if number < share {
                return *kind;
            }
            number -= share;
        }
        Kind::Put
    }

    /// The sum of the shares.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Whether a kind occurs.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.shares[kind as usize] > 0
    }

    /// Whether every operation is of this kind.
    #[must_use]
    pub fn is_only(&self, kind: Kind) -> bool {
        self.shares[kind as usize] == self.total
    }
}

impl FromStr for Mix {
    type Err = MixError;

    fn from_str(text: &str) -> Result<Self, MixError> {
        let error = |why: String| MixError {
            text: text.to_owned(),
            why,
        };
        let mut shares = [0; KINDS.len()];
        for part in text.split(',') {
            let (name, share) = part
                .trim()
                .split_once('=')
                .ok_or_else(|| error("write it like `put=40,get=40,cas=20`".to_owned()))?;
            let known = KINDS.iter().find(|(_, known)| *known == name.trim());
            let (kind, _) = known.ok_or_else(|| {
                error(format!(
                    "there is no operation `{name}`; did you mean `{}`?",
                    nearest(name)
                ))
            })?;
            let share: u32 = share.trim().parse().map_err(|_| {
                error(format!(
                    "`{share}` is not a share; write it like `{name}=40`"
                ))
            })?;
            shares[*kind as usize] = share.min(1_000_000);
        }
        let total = shares.iter().sum();
        if total == 0 {
            return Err(error(
                "nothing has a share; write it like `put=100`".to_owned(),
            ));
        }
        Ok(Self { shares, total })
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for ((_, name), share) in KINDS.iter().zip(self.shares) {
            if share > 0 {
                write!(f, "{comma}{name}={share}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

fn nearest(name: &str) -> &'static str {
    let likeness = |known: &str| strsim::jaro_winkler(known, name);
    let by_likeness = |a: &&str, b: &&str| likeness(a).total_cmp(&likeness(b));
    let names = KINDS.iter().map(|(_, name)| *name);
    names.max_by(by_likeness).unwrap_or("put")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_reads_back_and_picks_by_share() {
        let mix: Mix = "put=40, get=40,cas=20".parse().unwrap();
        assert_eq!(mix.to_string(), "put=40,get=40,cas=20");
        assert_eq!(mix.total(), 100);
        assert_eq!(mix.pick(0), Kind::Put);
        assert_eq!(mix.pick(39), Kind::Put);
        assert_eq!(mix.pick(40), Kind::Get);
        assert_eq!(mix.pick(99), Kind::Cas);
        assert!(mix.has(Kind::Cas) && !mix.has(Kind::Delete) && !mix.is_only(Kind::Put));
    }

    #[test]
    fn a_mistyped_mix_says_what_was_meant() {
        let error = |text: &str| text.parse::<Mix>().unwrap_err().to_string();
        assert_eq!(
            error("pt=100"),
            "`pt=100` is not a mix: there is no operation `pt`; did you mean `put`?"
        );
        assert!(error("put").ends_with("write it like `put=40,get=40,cas=20`"));
        assert!(error("put=x").ends_with("`x` is not a share; write it like `put=40`"));
        assert!(error("put=0").ends_with("write it like `put=100`"));
    }
}
