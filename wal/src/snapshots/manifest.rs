//! What a snapshot consists of, chunk by chunk. Its bytes are drawn in `wal/SNAPSHOTS.md`.
//!
//! The manifest is written last and hashed whole: that hash is the snapshot's name, so whoever knows the name can
//! tell whether the rest is what was meant.

use std::collections::BTreeSet;

use bytes::Bytes;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_raft::{Anchor, ClusterId, GroupId, LogPosition, Replica, SnapshotId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::error::Damage;
use super::files::{NAME_BYTES_MAX, check_name};

/// The bytes of a chunk. The last one of a file may have fewer, and none has 0.
pub const CHUNK_BYTES: usize = 256 << 10;

/// The most files of a snapshot.
pub const FILES_MAX: usize = 1024;

/// The most bytes of a manifest.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// The newest format version that this build writes and reads.
pub const SNAPSHOT_VERSION: u16 = 1;

/// The name of the manifest's file. No file of a snapshot has it.
pub const MANIFEST_FILE: &str = "manifest";

/// The most chunks that fit, names and anchor not counted.
pub(super) const CHUNKS_MAX: usize = MANIFEST_BYTES_MAX / size_of::<u64>();

const MAGIC: u64 = u64::from_le_bytes(*b"LDsnap\0\0");
const CHECKSUM_BYTES: usize = size_of::<u128>();

/// What is in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Compatible features, kept as they were written.
    pub compatible: u32,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Who took it.
    pub node: Replica,
    /// Which group.
    pub group: GroupId,
    /// What the log below it amounts to.
    pub anchor: Anchor,
    /// Its files, in the order they were written.
    pub files: Vec<ManifestFile>,
}

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its name. [`check_name`] allows it, and it is not [`MANIFEST_FILE`].
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// xxh3-128 of its contents.
    pub hash: u128,
    /// xxh3-64 of each chunk.
    pub chunks: Vec<u64>,
}

/// What is told of a snapshot without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// Which.
    pub id: SnapshotId,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Who took it.
    pub node: Replica,
    /// Which group.
    pub group: GroupId,
    /// The last entry that it covers.
    pub at: LogPosition,
    /// How many files.
    pub files: usize,
    /// How many chunks in all of them.
    pub chunks: u64,
    /// How many bytes in all of them, the manifest not counted.
    pub bytes: u64,
    /// The bytes of the manifest.
    pub manifest_bytes: u64,
}

impl Manifest {
    /// The name of the snapshot whose manifest has these bytes.
    #[must_use]
    pub fn id_of(bytes: &[u8]) -> SnapshotId {
        SnapshotId(xxh3_128(bytes))
    }

    /// The bytes of all files.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The chunks of all files.
    #[must_use]
    pub fn chunks_total(&self) -> u64 {
        let chunks = self.files.iter().map(|file| file.chunks.len() as u64);
        chunks.sum()
    }

    /// What is told of it; `bytes` is its own encoding.
    pub(super) fn summary(&self, bytes: &Bytes) -> SnapshotSummary {
        SnapshotSummary {
            id: Self::id_of(bytes),
            cluster: self.cluster,
            node: self.node,
            group: self.group,
            at: self.anchor.at,
            files: self.files.len(),
            chunks: self.chunks_total(),
            bytes: self.bytes_total(),
            manifest_bytes: bytes.len() as u64,
        }
    }

    /// Everything but the checksum at the end.
    fn encode_body(&self, out: &mut Writer<'_>) {
        MAGIC.encode(out);
        SNAPSHOT_VERSION.encode(out);
        0_u16.encode(out);
        0_u32.encode(out);
        self.compatible.encode(out);
        (CHUNK_BYTES as u32).encode(out);
        self.cluster.encode(out);
        self.node.encode(out);
        self.group.encode(out);
        self.anchor.encode(out);
        out.list(&self.files);
    }

    fn decode_body(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = u16::decode(input)?;
        let flags = u16::decode(input)?;
        let incompatible = u32::decode(input)?;
        if version != SNAPSHOT_VERSION {
            return Err(DecodeError::Version {
                what: "snapshot manifest",
                found: version.into(),
                known: SNAPSHOT_VERSION.into(),
            });
        }
        for found in [u32::from(flags), incompatible] {
            if found != 0 {
                let what = "snapshot manifest";
                return Err(DecodeError::Incompatible { what, found });
            }
        }
        let compatible = u32::decode(input)?;
        let chunk_bytes = u32::decode(input)?;
        if chunk_bytes as usize != CHUNK_BYTES {
            return Err(DecodeError::Invalid {
                what: "chunk size",
                value: chunk_bytes.into(),
            });
        }
        let manifest = Self {
            compatible,
            cluster: Decode::decode(input)?,
            node: Decode::decode(input)?,
            group: Decode::decode(input)?,
            anchor: Decode::decode(input)?,
            files: input.list("files of a snapshot", FILES_MAX)?,
        };
        let mut names = BTreeSet::new();
        for (number, file) in (0..).zip(&manifest.files) {
            if !names.insert(&file.name) {
                let what = "number of a file whose name another has";
                return Err(DecodeError::Invalid {
                    what,
                    value: number,
                });
            }
        }
        Ok(manifest)
    }
}

impl Encode for Manifest {
    fn encode(&self, out: &mut Writer<'_>) {
        let mut body = bytes::BytesMut::new();
        self.encode_body(&mut Writer::new(&mut body));
        out.raw(&body);
        xxh3_128(&body).encode(out);
    }
}

/// Takes all bytes that are left: the checksum at the end is over everything before it.
impl Decode for Manifest {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let left = input.left();
        if left > MANIFEST_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                what: "snapshot manifest",
                value: left as u64,
                max: MANIFEST_BYTES_MAX as u64,
            });
        }
        let Some(body_bytes) = left.checked_sub(CHECKSUM_BYTES) else {
            let needed = CHECKSUM_BYTES;
            return Err(DecodeError::Short { needed, left });
        };
        let body = input.raw(body_bytes)?;
        let checksum = u128::decode(input)?;
        let mut input = Reader::new(body);
        let magic = u64::decode(&mut input)?;
        if magic != MAGIC {
            return Err(DecodeError::Invalid {
                what: "snapshot manifest magic",
                value: magic,
            });
        }
        // What a later version means is its own affair, but that it is one has to be beyond doubt.
        if xxh3_128(body) != checksum {
            return Err(DecodeError::Checksum("snapshot manifest"));
        }
        let manifest = Self::decode_body(&mut input)?;
        input.finish()?;
        Ok(manifest)
    }
}

impl ManifestFile {
    /// The length of a chunk; `None` if there is none of this number.
    #[must_use]
    pub fn chunk_bytes(&self, chunk: u32) -> Option<usize> {
        let number = chunk as usize;
        if number >= self.chunks.len() {
            return None;
        }
        let rest = self.bytes.checked_sub(chunk_offset(chunk))?;
        Some(usize::try_from(rest).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES)))
    }

    /// Says what is wrong with bytes that should be this chunk.
    pub(super) fn check_chunk(&self, chunk: u32, bytes: &[u8]) -> Result<(), Damage> {
        let expected = self.chunk_bytes(chunk).unwrap_or(0);
        if bytes.len() != expected {
            return Err(Damage::Length {
                expected: expected as u64,
                found: bytes.len() as u64,
            });
        }
        let checksum = self.chunks.get(chunk as usize).copied();
        if checksum != Some(xxh3_64(bytes)) {
            return Err(Damage::Checksum);
        }
        Ok(())
    }

    /// The numbers of its chunks.
    pub(super) fn chunk_numbers(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.chunks.len()).expect("a manifest has room for fewer chunks")
    }
}

impl Encode for ManifestFile {
    fn encode(&self, out: &mut Writer<'_>) {
        out.bytes(self.name.as_bytes());
        self.bytes.encode(out);
        self.hash.encode(out);
        out.list(&self.chunks);
    }
}

impl Decode for ManifestFile {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let name = input.bytes("name of a file", NAME_BYTES_MAX)?;
        let name = std::str::from_utf8(name).ok();
        let name = name.filter(|name| check_name(name).is_ok() && *name != MANIFEST_FILE);
        let Some(name) = name else {
            return Err(DecodeError::Invalid {
                what: "name of a file",
                value: 0,
            });
        };
        let name = name.to_owned();
        let bytes = u64::decode(input)?;
        let hash = u128::decode(input)?;
        let chunks: Vec<u64> = input.list("chunks of a file", CHUNKS_MAX)?;
        if bytes.div_ceil(CHUNK_BYTES as u64) != chunks.len() as u64 {
            return Err(DecodeError::Invalid {
                what: "length of a file with as many chunks",
                value: bytes,
            });
        }
        Ok(Self {
            name,
            bytes,
            hash,
            chunks,
        })
    }
}

/// Where a chunk begins in its file.
pub(super) fn chunk_offset(chunk: u32) -> u64 {
    u64::from(chunk) * CHUNK_BYTES as u64
}

const _: () = {
    // Chunks are counted by a u32, and lengths of files stay far from the end of a u64.
    assert!(CHUNKS_MAX < u32::MAX as usize);
    assert!(CHUNK_BYTES < u32::MAX as usize);
};
