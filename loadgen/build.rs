//! Notes which commit is built, so that a report can name it. Outside of a checkout it stays unknown.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    for name in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo::rustc-env=LOADGEN_COMMIT={commit}");
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
        let dirty = changed.is_none_or(|changed| !changed.is_empty());
        println!("cargo::rustc-env=LOADGEN_DIRTY={dirty}");
    }
    let profile = std::env::var("PROFILE").unwrap_or_default();
    println!("cargo::rustc-env=LOADGEN_PROFILE={profile}");
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
