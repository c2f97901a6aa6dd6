//! What no source file of the workspace says, whichever crate it belongs to.
//!
//! A scan of the text, comments left out. It sees what lints cannot: code behind a `cfg` of another
//! platform, and attributes that lift a lint.

use std::fs;
use std::path::{Path, PathBuf};

/// The one file that talks to the kernel's ring, and so the one with `unsafe` in it.
const RING: &str = "wal/src/disk/uring.rs";

/// What names the QUIC library.
const TRANSPORT: &str = "net/src/transport/";

#[test]
fn only_the_ring_lifts_the_lint() {
    // In two parts, so that this file passes its own test.
    let word = concat!("un", "safe");
    let lines = lines_where(|line| line.file != RING && line.code.contains(word));
    assert_none(&lines, "the word belongs in wal/src/disk/uring.rs alone");
}

/// It is one for the whole process, and that process is the embedder's.
#[test]
fn nobody_installs_a_default_crypto_provider() {
    let call = concat!("install_", "default");
    assert_none(
        &lines_where(|line| line.code.contains(call)),
        "pass the provider explicitly",
    );
}

/// CI compiles with `--cfg logdrive_portable` to see what other platforms see. `cfg!` in an expression is a
/// fact about the kernel that runs; all of it compiles everywhere.
#[test]
fn linux_parts_can_be_taken_out() {
    let linux = concat!("target_os = ", "\"linux\"");
    let lines = lines_where(|line| {
        let fine = line.code.contains("logdrive_portable") || line.code.contains("cfg!(");
        line.code.contains(linux) && !fine
    });
    let advice = r#"write cfg(all(target_os = "linux", not(logdrive_portable))) on one line"#;
    assert_none(&lines, advice);
}

/// So that a model checker can stand in for the real ones: it only sees what goes through that module.
/// Tests may use threads.
#[test]
fn the_shard_takes_locks_atomics_and_wakers_from_its_sync_module() {
    let lines = lines_where(|line| {
        let ours = line.file.starts_with("shard/src/") && line.file != "shard/src/sync.rs";
        let ours = ours && !line.file.ends_with("/models.rs");
        // Counting references is the same under a model checker.
        let direct = line
            .code
            .replace("std::sync::Arc", "")
            .contains("std::sync");
        let others = ["std::thread", "std::task", "core::sync", "core::task"];
        let direct = direct || others.iter().any(|path| line.code.contains(path));
        ours && !line.in_tests && direct
    });
    assert_none(&lines, "take it from crate::sync");
}

/// So that another implementation of QUIC, should profiles ask for it, replaces one module and nothing else.
#[test]
fn the_quic_library_is_named_by_the_transport_alone() {
    let lines = lines_where(|line| {
        let outside = line.file.starts_with("net/src/") && !line.file.starts_with(TRANSPORT);
        outside && line.code.contains("quinn")
    });
    assert_none(
        &lines,
        "name it below net/src/transport/, and offer what is needed from there",
    );
}

/// So that none of them has to be of the version that an embedder has of it, and none changes what is ours.
#[test]
fn nothing_public_is_of_the_libraries_below() {
    let libraries = [
        "quinn",
        "rustls",
        "CertificateDer",
        "PrivateKeyDer",
        "UnixTime",
        "ServerName",
    ];
    let lines = lines_where(|line| {
        let offers = line.file.starts_with("engine/src/")
            || (line.file.starts_with("net/src/") && !line.file.starts_with(TRANSPORT));
        // A signature or field on one line, and the variants of public errors.
        let code = line.code.trim_start();
        let public = code.starts_with("pub ") || line.file.ends_with("/error.rs");
        offers && public && !line.in_tests && libraries.iter().any(|name| code.contains(name))
    });
    assert_none(&lines, "wrap it, or keep its words");
}

struct Line<'a> {
    /// The path from the root.
    file: &'a str,
    /// The line without its comment.
    code: &'a str,
    /// Whether it stands below a `#[cfg(test)]`, which in a file of ours begins its last part.
    in_tests: bool,
}

/// `file:line: text` of every line of code that `wanted` picks.
fn lines_where(wanted: impl Fn(&Line<'_>) -> bool) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("bench/ lies in the workspace");
    let mut files = Vec::new();
    collect_sources(root, &mut files);
    assert!(
        files.contains(&root.join("bench/tests/sources.rs")),
        "the scan misses even this file"
    );
    files.sort_unstable();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is readable text");
        let name = file
            .strip_prefix(root)
            .expect("it was found below the root");
        let name = name
            .to_str()
            .expect("our files have plain names")
            .replace('\\', "/");
        let mut in_tests = false;
        for (number, text) in text.lines().enumerate() {
            let code = text.split("//").next().expect("a split has a first part");
            in_tests |= code.trim() == "#[cfg(test)]";
            if wanted(&Line {
                file: &name,
                code,
                in_tests,
            }) {
                found.push(format!("{name}:{}: {}", number + 1, text.trim()));
            }
        }
    }
    found
}

fn collect_sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the workspace is readable") {
        let path = entry.expect("its entries are, too").path();
        let name = path
            .file_name()
            .expect("an entry has a name")
            .to_string_lossy();
        if path.is_dir() {
            // Not build output, which cargo marks, and not what is not ours: `.git`, an editor's files.
            if !path.join("CACHEDIR.TAG").exists() && !name.starts_with('.') {
                collect_sources(&path, files);
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

#[track_caller]
fn assert_none(found: &[String], advice: &str) {
    assert!(found.is_empty(), "{advice}:\n  {}", found.join("\n  "));
}
