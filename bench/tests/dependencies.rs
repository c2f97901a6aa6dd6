//! What the workspace depends on: licences, sources, one crypto provider, floors, and which crate may
//! know what.
//!
//! `deny.toml` says the same to users of cargo-deny. Advisories have to be fetched for that, which a build
//! without a network cannot do; the floors below stand for those that concern us.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::semver::Version;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use spdx::{Expression, ParseMode};

/// What a dependency may be under: notices suffice, nothing reaches into the embedder's own code.
///
/// MPL-2.0 is left out on purpose: its files stay under it, so an embedder who changes one owes its source.
/// CDLA is left out because nothing here carries the data it is for. A licence is added with the dependency
/// that needs it, argued in that commit, here and in `deny.toml`.
const LICENSES: [&str; 7] = [
    "Apache-2.0",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// A second provider would make `ServerConfig::builder()` panic at run time in somebody's process, because
/// rustls then cannot tell which one is meant. Ours is ring, passed explicitly.
const OTHER_PROVIDERS: [&str; 5] = [
    "aws-lc-rs",
    "aws-lc-sys",
    "boring-sys",
    "native-tls",
    "openssl-sys",
];

/// Below these somebody on the network can crash the process before it is known who they are
/// (RUSTSEC-2026-0037), exhaust its memory (RUSTSEC-2026-0185), or a healthy stream is taken for such an
/// attack and closed (quinn-proto 0.11.15 to 0.11.18).
const FLOORS: [(&str, Version); 3] = [
    ("quinn-proto", Version::new(0, 11, 19)),
    ("rustls", Version::new(0, 23, 46)),
    ("rustls-webpki", Version::new(0, 103, 13)),
];

/// The crates that are driven from outside, and so run under a simulated clock, disk and network.
const PURE: [&str; 4] = [
    "logdrive-raft",
    "logdrive-shard",
    "logdrive-sim",
    "logdrive-wal",
];

/// What a pure crate must not reach, however far down its tree.
const IMPURE: [&str; 7] = [
    "mio",
    "quinn",
    "quinn-proto",
    "rustls",
    "signal-hook",
    "socket2",
    "tokio",
];

/// Which of our crates each of our crates may be built on. Nothing points back.
const ARROWS: [(&str, &[&str]); 10] = [
    ("logdrive-raft", &[]),
    ("logdrive-wal", &["logdrive-raft"]),
    ("logdrive-shard", &["logdrive-raft", "logdrive-wal"]),
    (
        "logdrive-sim",
        &["logdrive-raft", "logdrive-shard", "logdrive-wal"],
    ),
    ("logdrive-net", &["logdrive-raft"]),
    (
        "logdrive",
        &[
            "logdrive-net",
            "logdrive-raft",
            "logdrive-shard",
            "logdrive-wal",
        ],
    ),
    (
        "logdrive-server",
        &[
            "logdrive",
            "logdrive-net",
            "logdrive-raft",
            "logdrive-shard",
            "logdrive-wal",
        ],
    ),
    // As far as a program of somebody else's would reach.
    ("logdrive-examples", &["logdrive"]),
    (
        "loadgen",
        &[
            "logdrive",
            "logdrive-net",
            "logdrive-raft",
            "logdrive-server",
            "logdrive-shard",
            "logdrive-wal",
        ],
    ),
    (
        "logdrive-bench",
        &[
            "logdrive",
            "logdrive-net",
            "logdrive-raft",
            "logdrive-server",
            "logdrive-shard",
            "logdrive-wal",
        ],
    ),
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn every_licence_is_allowed() {
    let mut refused = Vec::new();
    for package in &metadata().packages {
        let name = format!("{} {}", package.name, package.version);
        let Some(license) = &package.license else {
            refused.push(format!("{name} names no licence"));
            continue;
        };
        // Lax, for older crates write `MIT/Apache-2.0`.
        let expression = Expression::parse_mode(license, ParseMode::LAX)
            .unwrap_or_else(|error| panic!("{name}: licence {license:?}: {error}"));
        let allowed = |requirement: &spdx::LicenseReq| {
            requirement.addition.is_none() && LICENSES.contains(&&*requirement.license.to_string())
        };
        if !expression.evaluate(allowed) {
            refused.push(format!("{name} is under {license}"));
        }
    }
    assert_none(
        &refused,
        "choose another crate, or argue the licence in LICENSES and deny.toml",
    );
}

#[test]
fn deny_toml_says_what_is_checked_here() {
    let deny = table(&root().join("deny.toml"));
    let strings = |value: &toml::Value| -> BTreeSet<String> {
        let list = value.as_array().expect("deny.toml holds a list there");
        list.iter()
            .map(|item| item.as_str().expect("a list of strings").to_owned())
            .collect()
    };
    let ours = |list: &[&str]| -> BTreeSet<String> { list.iter().map(|s| s.to_string()).collect() };
    assert_eq!(strings(&deny["licenses"]["allow"]), ours(&LICENSES));
    assert_eq!(strings(&deny["bans"]["deny"]), ours(&OTHER_PROVIDERS));
    assert_eq!(deny["sources"]["unknown-git"].as_str(), Some("deny"));
    assert_eq!(deny["sources"]["unknown-registry"].as_str(), Some("deny"));
}

#[test]
fn everything_comes_from_the_registry() {
    let mut strangers = Vec::new();
    for locked in locked() {
        match &locked.source {
            Some(source) if source == CRATES_IO => {}
            Some(source) => strangers.push(format!("{} comes from {source}", locked.name)),
            None if members().contains_key(&locked.name) => {}
            None => strangers.push(format!("{} is a path outside the workspace", locked.name)),
        }
    }
    assert_none(&strangers, "depend on a published version");
}

#[test]
fn there_is_one_crypto_provider() {
    let count = |name: &str| locked().iter().filter(|locked| locked.name == name).count();
    assert_eq!(count("ring"), 1, "versions of ring in Cargo.lock");
    assert_eq!(count("rustls"), 1, "versions of rustls in Cargo.lock");
    for other in OTHER_PROVIDERS {
        assert_eq!(
            count(other),
            0,
            "{other} is in Cargo.lock: turn off the feature that brings it"
        );
    }
}

#[test]
fn versions_with_known_holes_are_refused() {
    for (name, floor) in &FLOORS {
        let versions: Vec<_> = locked()
            .into_iter()
            .filter(|locked| locked.name == *name)
            .collect();
        assert!(
            !versions.is_empty(),
            "{name} has left the tree: drop its floor"
        );
        for locked in versions {
            assert!(
                locked.version >= *floor,
                "{name} {} is below {floor}",
                locked.version
            );
        }
    }
}

#[test]
fn pure_crates_reach_no_runtime_and_no_socket() {
    let metadata = metadata();
    let mut found = Vec::new();
    for name in PURE {
        let reached = reached_from(&metadata, name);
        for impure in IMPURE.iter().filter(|impure| reached.contains(**impure)) {
            found.push(format!("{name} reaches {impure}"));
        }
    }
    assert_none(
        &found,
        "time, bytes and completions come in as inputs; see ARCHITECTURE.md",
    );
}

#[test]
fn arrows_point_one_way() {
    let members = members();
    let arrows: BTreeMap<_, _> = ARROWS.into_iter().collect();
    assert!(
        arrows
            .keys()
            .copied()
            .eq(members.keys().map(String::as_str)),
        "a crate has come or gone: give it its arrows"
    );
    let mut back = Vec::new();
    for (name, package) in &members {
        for dependency in &package.dependencies {
            // A test may stand on the simulator, which stands on what is tested.
            let counts = dependency.kind != DependencyKind::Development;
            let ours = members.contains_key(&dependency.name);
            if counts && ours && !arrows[name.as_str()].contains(&dependency.name.as_str()) {
                back.push(format!("{name} -> {}", dependency.name));
            }
        }
    }
    assert_none(&back, "not an arrow of ARCHITECTURE.md");
}

#[test]
fn versions_stand_in_the_root_manifest_only() {
    let mut astray = Vec::new();
    for (name, package) in members() {
        let manifest = table(package.manifest_path.as_std_path());
        let inherits = |value: &toml::Value| {
            value.get("workspace").and_then(toml::Value::as_bool) == Some(true)
        };
        for key in [
            "version",
            "edition",
            "rust-version",
            "license",
            "repository",
        ] {
            if !manifest["package"].get(key).is_some_and(inherits) {
                astray.push(format!("{name}: package.{key}"));
            }
        }
        if !manifest.get("lints").is_some_and(inherits) {
            astray.push(format!("{name}: lints"));
        }
        for (place, dependency, value) in dependencies(&manifest) {
            let own = ["version", "path", "git", "registry"];
            if !inherits(value) || own.iter().any(|key| value.get(key).is_some()) {
                astray.push(format!("{name}: {place}.{dependency}"));
            }
        }
    }
    assert_none(
        &astray,
        "write `workspace = true` and the version in the root Cargo.toml",
    );
}

#[test]
fn tools_of_this_workspace_are_not_published() {
    let members = members();
    for name in ["loadgen", "logdrive-bench", "logdrive-examples"] {
        assert_eq!(
            members[name].publish.as_deref(),
            Some(&[][..]),
            "{name}: publish = false"
        );
    }
}

/// Everything that building `name` and its own tests compiles, by name.
fn reached_from(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    let resolve = metadata
        .resolve
        .as_ref()
        .expect("cargo metadata was asked for dependencies");
    let nodes: BTreeMap<&PackageId, _> =
        resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let root = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| *package.name == name);
    let root = &root
        .unwrap_or_else(|| panic!("{name} is not in the workspace"))
        .id;
    let mut seen = BTreeSet::from([root]);
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        for edge in &nodes[id].deps {
            let built = |kind: DependencyKind| kind != DependencyKind::Development || id == root;
            if edge.dep_kinds.iter().any(|info| built(info.kind)) && seen.insert(&edge.pkg) {
                open.push(&edge.pkg);
            }
        }
    }
    seen.iter()
        .map(|id| metadata[*id].name.to_string())
        .collect()
}

/// A panic of the user's machine fences its group and ends nothing else, which takes unwinding; an overflow
/// is our error and stops, in release too; and every machine builds with the same compiler.
#[test]
fn profiles_edition_and_toolchain_are_what_the_code_relies_upon() {
    let manifest = table(&root().join("Cargo.toml"));
    let profiles = manifest["profile"]
        .as_table()
        .expect("profiles are a table");
    let of = |name: &str, key: &str| {
        let profile = profiles.get(name)?.as_table()?;
        let heir = profile.get("inherits").and_then(toml::Value::as_str);
        let value = profile.get(key);
        value.or_else(|| profiles.get(heir?)?.get(key)).cloned()
    };
    for name in ["dev", "release"] {
        assert!(
            profiles.contains_key(name),
            "profile {name} is written down"
        );
    }
    for name in profiles.keys() {
        let panic = of(name, "panic");
        assert_eq!(panic, Some("unwind".into()), "panic of profile {name}");
    }
    let checks = of("release", "overflow-checks");
    assert_eq!(checks, Some(true.into()), "overflow-checks of release");
    for (name, package) in members() {
        assert_eq!(package.edition.as_str(), "2024", "{name}");
    }
    let toolchain = table(&root().join("rust-toolchain.toml"));
    let toolchain = toolchain["toolchain"].as_table().expect("it is a table");
    assert_eq!(toolchain["channel"].as_str(), Some("1.95.0"));
    // Components would be fetched by everybody who builds; those who check add two (CONTRIBUTING.md).
    assert_eq!(toolchain["profile"].as_str(), Some("minimal"));
    assert!(!toolchain.contains_key("components"));
    let least = manifest["workspace"]["package"]["rust-version"].as_str();
    assert_eq!(
        least,
        Some("1.95"),
        "the least that is promised is what is tested"
    );
}

/// Every dependency that a manifest names: the table it stands in, its name, what is said of it.
fn dependencies(manifest: &toml::Table) -> Vec<(String, &String, &toml::Value)> {
    let mut tables = vec![(String::new(), manifest)];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        for (target, of_target) in targets {
            let of_target = of_target.as_table().expect("a target is a table");
            tables.push((format!("target.{target}."), of_target));
        }
    }
    let mut found = Vec::new();
    for (place, of_place) in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let named = of_place.get(kind).and_then(toml::Value::as_table);
            for (name, value) in named.into_iter().flatten() {
                found.push((format!("{place}{kind}"), name, value));
            }
        }
    }
    found
}

struct Locked {
    name: String,
    version: Version,
    source: Option<String>,
}

/// Every package of `Cargo.lock`: those of features that nobody has turned on, too.
fn locked() -> Vec<Locked> {
    let lock = table(&root().join("Cargo.lock"));
    let packages = lock["package"]
        .as_array()
        .expect("Cargo.lock lists packages");
    let text = |package: &toml::Value, key: &str| -> Option<String> {
        package
            .get(key)
            .and_then(toml::Value::as_str)
            .map(str::to_owned)
    };
    let locked = |package: &toml::Value| Locked {
        name: text(package, "name").expect("a locked package has a name"),
        version: text(package, "version")
            .expect("a locked package has a version")
            .parse()
            .expect("cargo writes versions that parse"),
        source: text(package, "source"),
    };
    packages.iter().map(locked).collect()
}

/// The crates of this workspace by name.
fn members() -> BTreeMap<String, Package> {
    let metadata = metadata();
    let packages = metadata.workspace_packages().into_iter();
    packages
        .map(|package| (package.name.to_string(), package.clone()))
        .collect()
}

/// The whole tree, for every platform. `--locked`: a lock file that does not fit fails here.
fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(["--locked".to_owned()])
        .exec()
        .unwrap_or_else(|error| panic!("cargo metadata --locked: {error}"))
}

fn table(path: &Path) -> toml::Table {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> PathBuf {
    let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
    bench
        .parent()
        .expect("bench/ lies in the workspace")
        .to_owned()
}

#[track_caller]
fn assert_none(found: &[String], advice: &str) {
    assert!(found.is_empty(), "{advice}:\n  {}", found.join("\n  "));
}
