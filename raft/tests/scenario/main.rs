//! Scenarios: a claim in prose, commands, and what the core answers. `REWRITE=1` accepts the answers.
//!
//! ```text
//! # The claim.
//! start 1 voters=1
//! timeout 1
//! ----
//! 1 persist 1: hard state term 1 vote 1, echoed
//! ```
//!
//! A block without `----` only sets the stage. Commands (`world.rs` has them all): `start`, `empty`, `crash`, `restart`; `wait 50ms`, `tick`, `timeout`;
//! `elect`, `propose`, `change`, `durable`, `deliver 1>2 append`, `drop`, `run`; `send KIND from= to= ..` for a message that
//! nobody in the scenario has sent, `send-with-next` for one that comes in a turn with the next; `show`. A log is written as the terms of its entries: `log=1,1,4`.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

#[cfg(mutants)]
mod mutants;
mod words;
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use logdrive_raft::mutant::Mutant;

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for found in fs::read_dir(directory).unwrap() {
        let path = found.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The text with every answer replaced by what the core says now.
fn play(text: &str, mutant: Option<Mutant>) -> String {
    let mut world = world::World::new(mutant);
    let mut played = String::new();
    for block in text.split("\n\n") {
        let (commands, answers) = match block.split_once("\n----") {
            Some((commands, _)) => (commands, true),
            None => (block.trim_end(), false),
        };
        let mut said = Vec::new();
        for line in commands.lines() {
            let line = line.split('#').next().unwrap().trim();
            if !line.is_empty() {
                world.command(line);
                said.append(&mut world.said);
            }
        }
        if !played.is_empty() {
            played.push_str("\n\n");
        }
        played.push_str(commands);
        if answers {
            played.push_str("\n----");
        }
        for line in said.into_iter().filter(|_| answers) {
            played.push('\n');
            played.push_str(&line);
        }
    }
    played.push('\n');
    played
}

#[test]
fn every_scenario_holds() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let rewrite = std::env::var_os("REWRITE").is_some();
    let only = std::env::var("ONLY").unwrap_or_default();
    let files = files(&directory);
    assert!(files.len() >= 40, "{} scenarios are left", files.len());
    let mut wrong = Vec::new();
    for file in files
        .iter()
        .filter(|file| file.to_string_lossy().contains(&only))
    {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.starts_with("# "), "{} has no claim", file.display());
        println!("{}", file.display());
        let played = play(&text, None);
        if played == text {
            continue;
        }
        if rewrite {
            fs::write(file, played).unwrap();
            continue;
        }
        let (expected, found): (Vec<&str>, Vec<&str>) =
            (text.lines().collect(), played.lines().collect());
        let at = expected
            .iter()
            .zip(&found)
            .take_while(|(a, b)| a == b)
            .count();
        wrong.push(format!(
            "{}:{}\n  expected {:?}\n  found    {:?}",
            file.display(),
            at + 1,
            expected.get(at).unwrap_or(&"the end"),
            found.get(at).unwrap_or(&"the end"),
        ));
    }
    assert!(
        wrong.is_empty(),
        "{}\nREWRITE=1 accepts what was found",
        wrong.join("\n")
    );
}
