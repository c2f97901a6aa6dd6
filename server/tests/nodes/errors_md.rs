//! docs/errors.md has a paragraph for each code there is, and for no other.

use std::collections::BTreeSet;

use logdrive::status::ALARM_CODES;
use logdrive::{Code, Outcome, StartError};

const PAGE: &str = include_str!("../../../docs/errors.md");

/// The headings of a section, each with its text.
fn paragraphs(section: &str) -> Vec<(&str, &str)> {
    let mut sections = PAGE.split("\n## ");
    let section = sections.find_map(|part| part.strip_prefix(section));
    let parts = section
        .expect("the section is there")
        .split("\n### ")
        .skip(1);
    parts
        .map(|part| part.split_once('\n').expect("a heading and a text"))
        .collect()
}

fn code(heading: &str) -> &str {
    heading
        .split('`')
        .nth(1)
        .expect("the code stands between backticks")
}

fn check(section: &str, codes: impl IntoIterator<Item = &'static str>) {
    let paragraphs = paragraphs(section);
    let told: BTreeSet<&str> = paragraphs
        .iter()
        .map(|(heading, _)| code(heading))
        .collect();
    assert_eq!(
        told.len(),
        paragraphs.len(),
        "a code is told twice in {section}"
    );
    assert_eq!(told, codes.into_iter().collect(), "{section}");
    for (heading, text) in paragraphs {
        let text = text.replace('\n', " ");
        for part in ["**What happened.**", "**What is safe.**", "**What to do.**"] {
            assert!(text.contains(part), "{heading}: no {part}");
        }
    }
}

#[test]
fn every_error_has_its_paragraph() {
    check(
        "Errors of a request",
        Code::ALL.iter().map(|code| code.as_str()),
    );
}

#[test]
fn every_error_says_what_became_of_the_write() {
    for (heading, _) in paragraphs("Errors of a request") {
        let name = code(heading);
        let code = Code::ALL.iter().find(|code| code.as_str() == name).unwrap();
        let outcome = match code.outcome() {
            Outcome::NeverAppended => "never appended",
            Outcome::MayYetCommit => "may yet commit",
            other => panic!("{other:?} has no words"),
        };
        assert_eq!(heading, format!("`{name}` — {outcome}"));
    }
}

#[test]
fn every_alarm_has_its_paragraph() {
    check("Alarms", ALARM_CODES.iter().copied());
}

#[test]
fn every_reason_not_to_start_has_its_line() {
    let mut sections = PAGE.split("\n## ");
    let section = sections.find_map(|part| part.strip_prefix("A node that does not start"));
    let lines = section.expect("the section is there").lines();
    let told: BTreeSet<&str> = lines
        .filter(|line| line.starts_with("| `"))
        .map(code)
        .collect();
    assert_eq!(told, StartError::CODES.iter().copied().collect());
}
