//! How values become bytes and bytes become values: little endian, lengths before contents.
//!
//! A decoder gets bytes that a peer or a disk produced. It checks every length before it allocates, never
//! panics, and says what was wrong.

use bytes::{BufMut, Bytes, BytesMut};

/// Turns a value into bytes. What [`Decode`] of the same type reads back.
pub trait Encode {
    /// Appends the encoding of `self`.
    fn encode(&self, out: &mut Writer<'_>);

    /// The encoding as bytes of their own.
    fn to_bytes(&self) -> Bytes {
        let mut buffer = BytesMut::new();
        self.encode(&mut Writer::new(&mut buffer));
        buffer.freeze()
    }
}

/// Turns bytes that nobody vouches for into a value.
pub trait Decode: Sized {
    /// Reads one value from the front of `input`.
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// Reads one value that must take up all of `bytes`.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let value = Self::decode(&mut input)?;
        input.finish()?;
        Ok(value)
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("{needed} bytes needed, {left} left")]
    Short {
        /// How many bytes the next field takes.
        needed: usize,
        /// How many are there.
        left: usize,
    },
    /// Bytes are left over.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A length or count beyond what is allowed.
    #[error("{what} of {value} is more than {max}")]
    TooLarge {
        /// Which field.
        what: &'static str,
        /// What it says.
        value: u64,
        /// The most it may say.
        max: u64,
    },
    /// A field has a value it cannot have.
    #[error("{what} cannot be {value:#x}")]
    Invalid {
        /// Which field.
        what: &'static str,
        /// What it says.
        value: u64,
    },
    /// A checksum does not fit its bytes.
    #[error("{0} fails its checksum")]
    Checksum(&'static str),
    /// Written by a later version of logdrive.
    #[error("{what} has format version {found}, this build reads up to {known}: upgrade logdrive")]
    Version {
        /// Which format.
        what: &'static str,
        /// The version in the bytes.
        found: u32,
        /// The newest version this build reads.
        known: u32,
    },
    /// Uses a feature that this build does not have and may not ignore.
    #[error("{what} uses features {found:#x} that this build does not know: upgrade logdrive")]
    Incompatible {
        /// Which format.
        what: &'static str,
        /// The unknown bits.
        found: u32,
    },
    /// Says something that this build would have to act upon and cannot.
    #[error("{0} cannot be heeded by this build: upgrade logdrive")]
    Unsupported(&'static str),
}

/// Where encodings are written to.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut BytesMut,
}

impl<'a> Writer<'a> {
    /// Appends to `buffer`.
    pub fn new(buffer: &'a mut BytesMut) -> Self {
        Self { buffer }
    }

    /// Appends bytes as they are, without a length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.put_slice(bytes);
    }

    /// Appends a length and the bytes.
    ///
    /// # Panics
    ///
    /// If there are more bytes than a `u32` counts; all limits are far below.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("limits keep every field below 4 GiB");
        self.buffer.put_u32_le(length);
        self.buffer.put_slice(bytes);
    }

    /// Appends a count and the values.
    ///
    /// # Panics
    ///
    /// If there are more values than a `u32` counts; all limits are far below.
    pub fn list<T: Encode>(&mut self, values: &[T]) {
        let count = u32::try_from(values.len()).expect("limits keep every list below 2^32 values");
        self.buffer.put_u32_le(count);
        for value in values {
            value.encode(self);
        }
    }

    /// How many bytes have been written to the buffer so far, those before this writer included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Where decoders read from: bytes and how far they have been read.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Takes `count` bytes as they are.
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        if self.rest.len() < count {
            return Err(DecodeError::Short {
                needed: count,
                left: self.rest.len(),
            });
        }
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }

    /// Takes a length and that many bytes, at most `max`.
    pub fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let length = u32::decode(self)? as usize;
        if length > max {
            return Err(DecodeError::TooLarge {
                what,
                value: length as u64,
                max: max as u64,
            });
        }
        self.raw(length)
    }

    /// Takes a count and that many values, at most `max`. What is reserved on the count's word alone is no
    /// more memory than there are bytes left.
    pub fn list<T: Decode>(
        &mut self,
        what: &'static str,
        max: usize,
    ) -> Result<Vec<T>, DecodeError> {
        let count = u32::decode(self)? as usize;
        if count > max {
            return Err(DecodeError::TooLarge {
                what,
                value: count as u64,
                max: max as u64,
            });
        }
        let mut values = Vec::with_capacity(reservation::<T>(count, self.left()));
        for _ in 0..count {
            values.push(T::decode(self)?);
        }
        Ok(values)
    }

    /// Fails unless everything has been read.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.rest.len()))
        }
    }
}

/// For how many of `count` values room is made before the first is read. A value may be much larger in
/// memory than on the wire, so it is bytes that are compared; the list grows if the values do come.
fn reservation<T>(count: usize, left_bytes: usize) -> usize {
    count.min(left_bytes / size_of::<T>().max(1))
}

macro_rules! integer {
    ($($name:ty),*) => {$(
        impl Encode for $name {
            fn encode(&self, out: &mut Writer<'_>) {
                out.raw(&self.to_le_bytes());
            }
        }

        impl Decode for $name {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let bytes = input.raw(size_of::<$name>())?;
                Ok(Self::from_le_bytes(bytes.try_into().expect("raw gave the length asked for")))
            }
        }
    )*};
}

integer!(u8, u16, u32, u64, u128);

impl Encode for bool {
    fn encode(&self, out: &mut Writer<'_>) {
        u8::from(*self).encode(out);
    }
}

impl Decode for bool {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Invalid {
                what: "truth value",
                value: u64::from(value),
            }),
        }
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Writer<'_>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if bool::decode(input)? {
            Ok(Some(T::decode(input)?))
        } else {
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One byte on the wire, 128 in memory.
    #[derive(Clone)]
    struct Wide([u64; 16]);

    impl Decode for Wide {
        fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
            Ok(Self([u64::from(u8::decode(input)?); 16]))
        }
    }

    #[test]
    fn a_count_reserves_no_more_memory_than_the_bytes_that_came() {
        for (count, left) in [(0, 0), (1000, 0), (1000, 127), (1000, 999), (3, 1 << 20)] {
            let reserved = reservation::<Wide>(count, left);
            assert!(reserved <= count && reserved * size_of::<Wide>() <= left);
        }
        // What a list of values as wide as on the wire needs is reserved at once.
        assert_eq!(reservation::<u32>(7, 28), 7);
        assert_eq!(reservation::<()>(7, 3), 3);
    }

    #[test]
    fn a_list_grows_as_far_as_its_values_come() {
        let mut bytes = 1000_u32.to_bytes().to_vec();
        bytes.resize(4 + 1000, 9);
        let list: Vec<Wide> = Reader::new(&bytes).list("wide", 1000).unwrap();
        assert!(list.len() == 1000 && list.iter().all(|wide| wide.0 == [9; 16]));
        let cut = Reader::new(&bytes[..1003]).list::<Wide>("wide", 1000);
        assert!(matches!(cut, Err(DecodeError::Short { .. })));
        let many = Reader::new(&bytes).list::<Wide>("wide", 999);
        assert!(matches!(many, Err(DecodeError::TooLarge { .. })));
    }
}
