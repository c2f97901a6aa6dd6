//! The bytes of a manifest, and what becomes of others.

use std::collections::BTreeMap;

use bytes::Bytes;
use logdrive_raft::wire::{Decode, DecodeError, Encode};
use logdrive_wal::snapshots::*;
use proptest::prelude::*;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::{GROUP, contents, meta};

fn manifest() -> Manifest {
    let files = contents(1).into_iter().map(|(name, bytes)| ManifestFile {
        name: name.to_owned(),
        bytes: bytes.len() as u64,
        hash: xxh3_128(&bytes),
        chunks: bytes.chunks(CHUNK_BYTES).map(xxh3_64).collect(),
    });
    let meta = meta(100);
    Manifest {
        compatible: 0x80,
        cluster: meta.cluster,
        node: meta.node,
        group: meta.group,
        anchor: meta.anchor,
        files: files.collect(),
    }
}

#[test]
fn a_manifest_is_read_as_it_was_written_or_not_at_all() {
    let bytes = manifest().to_bytes();
    assert_eq!(Manifest::from_bytes(&bytes), Ok(manifest()));
    for cut in 0..bytes.len() {
        assert!(Manifest::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..bytes.len() {
        for mask in [1, 0x80, 0xff] {
            let mut bad = bytes.to_vec();
            bad[at] ^= mask;
            assert!(Manifest::from_bytes(&bad).is_err(), "byte {at}");
        }
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(Manifest::from_bytes(&longer).is_err());
}

/// With the checksum that belongs to it.
fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &xxh3_128(body).to_le_bytes()].concat()
}

#[test]
fn what_a_sealed_manifest_says_is_checked() {
    let bytes = manifest().to_bytes();
    let body = &bytes[..bytes.len() - 16];
    assert_eq!(sealed(body), bytes);
    let with = |at: usize, value: u8| {
        let mut body = body.to_vec();
        body[at] = value;
        Manifest::from_bytes(&sealed(&body))
    };
    assert!(matches!(
        with(8, 2),
        Err(DecodeError::Version { found: 2, .. })
    ));
    assert!(matches!(with(10, 1), Err(DecodeError::Incompatible { .. })));
    assert!(matches!(with(15, 1), Err(DecodeError::Incompatible { .. })));
    assert!(matches!(
        with(22, 8),
        Err(DecodeError::Invalid {
            what: "chunk size",
            ..
        })
    ));
    assert!(with(16, 1).is_ok(), "what may be ignored");
    // Whatever a byte says, it is refused or comes back as the same bytes.
    for at in 0..body.len() {
        for value in [0, 1, 2, 0x7f, 0xff] {
            if let Ok(read) = with(at, value) {
                let mut expected = body.to_vec();
                expected[at] = value;
                assert_eq!(read.to_bytes(), sealed(&expected));
            }
        }
    }
    let wrong = |change: &dyn Fn(&mut Manifest)| {
        let mut wrong = manifest();
        change(&mut wrong);
        Manifest::from_bytes(&wrong.to_bytes()).unwrap_err()
    };
    for name in ["", "../a", "a/b", "manifest", ".a", "A"] {
        let error = wrong(&|manifest| manifest.files[1].name = name.to_owned());
        assert!(matches!(error, DecodeError::Invalid { .. }), "{name}");
    }
    let error = wrong(&|manifest| manifest.files[1].name = "x".repeat(NAME_BYTES_MAX + 1));
    assert!(matches!(error, DecodeError::TooLarge { .. }));
    let error = wrong(&|manifest| manifest.files[1].name = "large".to_owned());
    assert!(matches!(error, DecodeError::Invalid { .. }));
    for bytes in [
        0,
        2 * CHUNK_BYTES as u64,
        3 * CHUNK_BYTES as u64 + 1,
        u64::MAX,
    ] {
        let error = wrong(&|manifest| manifest.files[2].bytes = bytes);
        assert!(matches!(error, DecodeError::Invalid { .. }), "{bytes}");
    }
    let error = wrong(&|manifest| {
        let file = manifest.files[0].clone();
        let files = (0..=FILES_MAX).map(|number| ManifestFile {
            name: number.to_string(),
            ..file.clone()
        });
        manifest.files = files.collect();
    });
    assert!(matches!(error, DecodeError::TooLarge { .. }));
}

proptest! {
    #[test]
    fn noise_is_no_manifest_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
        let bytes = sealed(&bytes);
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_manifest_with_something_else_in_it_is_refused_or_canonical(
        at in 0_usize..500,
        bytes in proptest::collection::vec(any::<u8>(), 1..9),
    ) {
        let whole = manifest().to_bytes();
        let mut body = whole[..whole.len() - 16].to_vec();
        let at = at % body.len();
        let end = (at + bytes.len()).min(body.len());
        body[at..end].copy_from_slice(&bytes[..end - at]);
        let body = sealed(&body);
        if let Ok(read) = Manifest::from_bytes(&body) {
            prop_assert_eq!(read.to_bytes(), Bytes::from(body));
        }
    }
}

/// The fields of the drawing are where they are drawn, and hold what they should.
#[test]
fn the_drawing_of_a_manifest_says_what_is_written() {
    let drawing = include_str!("../../SNAPSHOTS.md");
    let (_, drawing) = drawing.split_once("**Manifest**").unwrap();
    let (_, drawing) = drawing.split_once("```text\n").unwrap();
    let (drawing, _) = drawing.split_once("```").unwrap();
    let bytes = manifest().to_bytes();
    let mut read = BTreeMap::new();
    let mut end = 0;
    for line in drawing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let offset: usize = words[0].parse().unwrap();
        assert_eq!(offset, end, "{}", words[1]);
        let bits = words[2]
            .strip_prefix('u')
            .map(|bits| bits.parse::<usize>().unwrap());
        let length = bits.map_or(0, |bits| bits / 8);
        let mut word = [0; 16];
        word[..length].copy_from_slice(&bytes[offset..offset + length]);
        read.insert(words[1], u128::from_le_bytes(word));
        end = offset + length;
    }
    let anchor = manifest().anchor.to_bytes();
    assert_eq!(bytes[end..end + anchor.len()], anchor);
    let magic = u128::from(u64::from_le_bytes(*b"LDsnap\0\0"));
    let expected = BTreeMap::from([
        ("magic", magic),
        ("version", u128::from(SNAPSHOT_VERSION)),
        ("flags", 0),
        ("incompatible", 0),
        ("compatible", 0x80),
        ("chunk_bytes", CHUNK_BYTES as u128),
        ("cluster", 1),
        ("node", 2),
        ("incarnation", 3),
        ("group", u128::from(GROUP.0)),
        ("anchor", 0),
    ]);
    assert_eq!(read, expected);
}

/// A manifest of these bytes has this name, in every version to come.
#[test]
fn a_manifest_has_these_bytes() {
    let id = Manifest::id_of(&manifest().to_bytes());
    assert_eq!(id.to_string(), "138832ca5a0181a4ba21f7baef9af917");
}
