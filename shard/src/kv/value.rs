//! A value in the table. A short one lies in it; a longer one has memory of its own, which the copy of a pair shares.

use std::sync::Arc;

/// Bytes of which a copy costs no more than a reference, however many they are.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Short {
        len: u8,
        bytes: [u8; BYTES_INLINE],
    },
    Long {
        /// How many of the bytes count; the rest is room for more.
        len: usize,
        memory: Arc<[u8]>,
    },
}

/// The longest that lies in the table.
const BYTES_INLINE: usize = 24;
const _: () = assert!(size_of::<Value>() == 32);

impl Default for Value {
    fn default() -> Self {
        Self::Short {
            len: 0,
            bytes: [0; BYTES_INLINE],
        }
    }
}

impl Value {
    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long { len, memory } => &memory[..*len],
        }
    }

    #[inline]
    pub(super) fn set(&mut self, value: &[u8]) {
        if let Self::Long { len, memory } = self
            && (value.len()..=2 * value.len()).contains(&memory.len())
            && value.len() > BYTES_INLINE
            && let Some(memory) = Arc::get_mut(memory)
        {
            memory[..value.len()].copy_from_slice(value);
            *len = value.len();
            return;
        }
        *self = Self::of(value);
    }

    fn of(value: &[u8]) -> Self {
        let len = value.len();
        if len > BYTES_INLINE {
            let memory = value.into();
            return Self::Long { len, memory };
        }
        let mut bytes = [0; BYTES_INLINE];
        bytes[..len].copy_from_slice(value);
        // At most BYTES_INLINE.
        let len = len as u8;
        Self::Short { len, bytes }
    }

    pub(super) fn extend(&mut self, tail: &[u8]) {
        let (old, new) = (self.as_slice().len(), self.as_slice().len() + tail.len());
        match self {
            Self::Short { len, bytes } if new <= BYTES_INLINE => {
                bytes[old..new].copy_from_slice(tail);
                *len = new as u8;
                return;
            }
            Self::Long { len, memory } if new <= memory.len() => {
                if let Some(memory) = Arc::get_mut(memory) {
                    memory[old..new].copy_from_slice(tail);
                    *len = new;
                    return;
                }
            }
            Self::Short { .. } | Self::Long { .. } => {}
        }
        // Twice as long, so that many short tails cost one copy of each byte on average.
        let grown = std::iter::repeat_n(0, new.max(2 * old));
        let mut memory: Arc<[u8]> = grown.collect();
        let bytes = Arc::get_mut(&mut memory).expect("nobody else has it yet");
        bytes[..old].copy_from_slice(self.as_slice());
        bytes[old..new].copy_from_slice(tail);
        *self = Self::Long { len: new, memory };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_was_set_and_appended_and_copies_stay_what_they_were() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut value, mut model) = (Value::default(), Vec::new());
        let mut copies: Vec<(Value, Vec<u8>)> = Vec::new();
        for _ in 0..20_000 {
            let bytes = vec![random.u8(..); random.usize(0..60)];
            if random.u8(0..4) == 0 || model.len() > 400 {
                value.set(&bytes);
                model = bytes;
            } else {
                value.extend(&bytes);
                model.extend_from_slice(&bytes);
            }
            assert_eq!(value.as_slice(), model);
            if random.u8(0..8) == 0 {
                copies.push((value.clone(), model.clone()));
            }
            if random.u8(0..64) == 0 {
                for (copy, model) in copies.drain(..) {
                    assert_eq!(copy.as_slice(), model);
                }
            }
        }
    }

    #[test]
    fn memory_is_shared_with_copies_used_again_and_given_back() {
        let address = |value: &Value| value.as_slice().as_ptr();
        let mut value = Value::of(&[1; 100]);
        let first = address(&value);
        value.set(&[2; 90]);
        assert_eq!(address(&value), first);
        let copy = value.clone();
        assert_eq!(address(&copy), first);
        value.set(&[3; 90]);
        assert_ne!(address(&value), first);
        assert_eq!(copy.as_slice(), [2; 90]);
        value.set(&[4; 30]);
        let Value::Long { memory, .. } = &value else {
            panic!("{value:?}");
        };
        assert_eq!(memory.len(), 30);
        value.set(&[5; 24]);
        assert!(matches!(value, Value::Short { .. }));
        for _ in 0..1000 {
            value.extend(&[6]);
        }
        let Value::Long { memory, .. } = &value else {
            panic!("{value:?}");
        };
        assert!(memory.len() < 2 * 1100, "{}", memory.len());
    }
}
