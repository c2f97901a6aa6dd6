//! Bytes read as what is to be done: numbers, and choices among few.

/// What is left to read. Never ends, but at the end all is zero.
pub(crate) struct Script<'a>(pub(crate) &'a [u8]);

impl Script<'_> {
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn bit(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number below `end`; 0 if there is none.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let wide = usize::from(self.byte());
        if end <= 256 {
            wide % end.max(1)
        } else {
            (wide << 8 | usize::from(self.byte())) % end
        }
    }

    /// A few bytes, their number before them.
    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = usize::from(self.byte()).min(most);
        (0..count).map(|_| self.byte()).collect()
    }

    /// A small number, mostly; else one at the end of what there is.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => u64::MAX - 1,
            253 => u64::MAX / 2,
            252 => {
                let bytes = [(); 8].map(|()| self.byte());
                u64::from_le_bytes(bytes)
            }
            small => u64::from(small % 12),
        }
    }
}
