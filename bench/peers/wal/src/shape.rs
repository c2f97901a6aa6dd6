//! What is appended at once.

use std::fmt;

/// So many payloads of so many bytes, which become durable together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many payloads.
    pub count: usize,
    /// Bytes of each.
    pub bytes: usize,
}

impl Shape {
    /// What is measured.
    pub const ALL: [Self; 8] = [
        Self::new(1, 128),
        Self::new(64, 128),
        Self::new(1024, 128),
        Self::new(64, 1 << 10),
        Self::new(1024, 1 << 10),
        Self::new(1, 16 << 10),
        Self::new(1, 256 << 10),
        Self::new(1, 1 << 20),
    ];

    const fn new(count: usize, bytes: usize) -> Self {
        Self { count, bytes }
    }

    /// Bytes of all payloads.
    pub const fn payload_bytes(self) -> usize {
        self.count * self.bytes
    }

    /// The payload of a place, of bytes that no run-length code makes small.
    pub fn payload(self) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u8
        };
        std::iter::repeat_with(next).take(self.bytes).collect()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.bytes {
            bytes if bytes % (1 << 20) == 0 => (bytes >> 20, "MiB"),
            bytes if bytes % (1 << 10) == 0 => (bytes >> 10, "KiB"),
            bytes => (bytes, "B"),
        };
        write!(f, "{number}{unit}x{}", self.count)
    }
}
