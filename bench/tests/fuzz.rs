//! Whatever decodes bytes that nobody vouches for has a fuzz target.
//!
//! A scan of the text: of decoders in our crates, and of what `fuzz/` names, which is a workspace of its own and
//! is not compiled here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where decoders are looked for. `loadgen` reads what its own processes say, and nothing else.
const CRATES: [&str; 7] = ["raft", "wal", "shard", "net", "engine", "server", "sim"];

/// What cannot be named from outside its crate, and what is named instead because it decodes those.
const WITHIN: [(&str, &str); 4] = [
    ("Checked", "<GroupCheckpoint>"),
    ("NumberedChunk", "<ClientLedger>"),
    ("Pair", "<Anchor>"),
    ("Responses", "next_response("),
];

/// The macros that write `impl Decode`, and how the names they do it for stand in their calls.
const MACROS: [&str; 3] = ["integer!(", "number! {", "random_id! {"];

#[test]
fn every_decoder_has_a_fuzz_target() {
    let decoders = decoders();
    for expected in ["Message", "Record", "u128", "NodeId", "Chain", "Option"] {
        assert!(
            decoders.contains_key(expected),
            "the scan misses {expected}"
        );
    }
    let functions = [
        "SlotHeader::from_block",
        "Entry::from_frame",
        "next_response",
    ];
    for expected in functions {
        assert!(
            decoders.contains_key(expected),
            "the scan misses {expected}"
        );
    }
    let targets = targets();
    assert!(
        targets.contains("DECODERS"),
        "the table of decoders has no target"
    );
    let missing: Vec<_> = decoders
        .iter()
        .filter(|(name, _)| !is_named(name, &targets))
        .map(|(name, place)| format!("{name}, in {place}"))
        .collect();
    assert!(
        missing.is_empty(),
        "without a target in fuzz/src/:\n  {}",
        missing.join("\n  ")
    );
}

#[test]
fn what_is_reached_within_others_is_still_there() {
    let decoders = decoders();
    for (name, _) in WITHIN {
        assert!(decoders.contains_key(name), "{name} is no decoder any more");
    }
}

#[test]
fn a_name_in_a_longer_one_is_no_target() {
    let targets = "canonical::<HelloAgain>(data); OtherHello::from_bytes(data); Hello::new()";
    assert!(!is_named("Hello", targets));
    assert!(is_named("HelloAgain", targets) && is_named("OtherHello", targets));
    assert!(!is_named("Entry::parse", "UnsealedEntry::parse(bytes)"));
    assert!(is_named("Entry::parse", "(Entry::parse(bytes))"));
}

/// Whether a target decodes it: a type as a parameter or by its own functions, a function by a call.
fn is_named(name: &str, targets: &str) -> bool {
    let within = WITHIN.iter().find(|(inner, _)| *inner == name);
    if let Some((_, outer)) = within {
        return targets.contains(outer);
    }
    let is_function =
        name.contains("::") || name.starts_with(char::is_lowercase) && !is_primitive(name);
    let calls = if is_function {
        vec![format!("{name}(")]
    } else {
        let forms = ["::from_bytes(", "::decode("];
        let mut calls: Vec<_> = forms.iter().map(|form| format!("{name}{form}")).collect();
        calls.extend([format!("<{name}>"), format!("<{name}<")]);
        calls
    };
    calls.iter().any(|call| {
        targets.match_indices(call.as_str()).any(|(at, _)| {
            let before = targets[..at].chars().next_back();
            !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
        })
    })
}

fn is_primitive(name: &str) -> bool {
    name == "bool"
        || name
            .strip_prefix('u')
            .is_some_and(|bits| bits.parse::<u8>().is_ok())
}

/// Every type that is decoded and every public function that decodes, with its file.
fn decoders() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut by_macro = BTreeSet::new();
    for file in CRATES
        .iter()
        .flat_map(|name| sources(&root().join(name).join("src")))
    {
        let code = code_of(&file);
        let place = file
            .strip_prefix(root())
            .expect("it lies below")
            .display()
            .to_string();
        let mut names = Vec::new();
        let mut about = String::new();
        let mut lines = code.lines().map(str::trim).peekable();
        while let Some(line) = lines.next() {
            if let Some(subject) = subject_of(line) {
                about = subject.to_owned();
            }
            if let Some((_, name)) = line.split_once(" Decode for ")
                && line.starts_with("impl")
            {
                match identifier(name) {
                    // A parameter of a macro.
                    "" => drop(by_macro.insert(place.clone())),
                    name => names.push(name.to_owned()),
                }
            }
            if MACROS.iter().any(|call| line.starts_with(call)) {
                let inside = line.split_once('(').map(|(_, inside)| inside);
                let inside = inside.or_else(|| lines.peek().copied()).unwrap_or_default();
                names.extend(
                    inside
                        .split(',')
                        .map(|name| identifier(name.trim()).to_owned()),
                );
            }
            if let Some(signature) = line.strip_prefix("pub fn ") {
                let mut signature = signature.to_owned();
                while !signature.contains(['{', ';']) {
                    signature.push_str(lines.next().expect("a function has a body"));
                }
                let returns = signature.split_once("->").map(|(_, returns)| returns);
                let name = identifier(&signature);
                // What the reader of bytes offers is what decoders are made of.
                if returns.is_some_and(|returns| returns.contains("DecodeError"))
                    && about != "Reader"
                {
                    let free = code.contains(&format!("\npub fn {name}"));
                    names.push(match free {
                        true => name.to_owned(),
                        false => format!("{about}::{name}"),
                    });
                }
            }
        }
        found.extend(names.into_iter().map(|name| (name, place.clone())));
    }
    let known: BTreeSet<String> = ["raft/src/ids.rs", "raft/src/wire.rs"]
        .map(str::to_owned)
        .into();
    assert_eq!(
        by_macro, known,
        "teach this scan the macro that decodes there"
    );
    found
}

/// The type that an `impl` is about.
fn subject_of(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("impl")?;
    let rest = match rest.strip_prefix('<') {
        Some(_) => rest.split_once("> ")?.1,
        None => rest.strip_prefix(' ')?,
    };
    let subject = rest
        .split_once(" for ")
        .map_or(rest, |(_, subject)| subject);
    Some(identifier(subject))
}

fn identifier(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    &text[..end.unwrap_or(text.len())]
}

/// All code of the fuzz targets.
fn targets() -> String {
    let files = sources(&root().join("fuzz/src"));
    assert!(!files.is_empty());
    files.iter().map(|file| code_of(file)).collect()
}

/// The code of a file, without comments and up to its tests.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source file is readable text");
    let lines = text
        .lines()
        .map(|line| line.split("//").next().expect("a split has a first part"));
    let lines = lines.take_while(|line| line.trim() != "#[cfg(test)]");
    lines
        .filter(|line| !line.trim().is_empty())
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory of the workspace is readable") {
        let path = entry.expect("its entries are, too").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort_unstable();
    files
}

fn root() -> &'static Path {
    let crate_of_this = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_of_this
        .parent()
        .expect("bench/ lies in the workspace")
}
