//! okaywal, with files as large as ours. A caller is a thread; a payload is a chunk of its entry.

use std::path::Path;

use okaywal::{Configuration, LogVoid, WriteAheadLog};

use super::{Contender, Failed};
use crate::load::Load;
use crate::measure::{Measured, threads};

struct OkayWal(WriteAheadLog);

const FILE_BYTES: u32 = 64 << 20;

pub(super) fn open(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    let log = Configuration::default_for(directory)
        .preallocate_bytes(FILE_BYTES)
        .checkpoint_after_bytes(u64::from(FILE_BYTES) * 3 / 4)
        .buffer_bytes(1 << 20)
        .open(LogVoid)?;
    Ok(Box::new(OkayWal(log)))
}

impl Contender for OkayWal {
    fn run(&mut self, load: &Load) -> Result<Measured, Failed> {
        let shape = load.shape;
        let payload = shape.payload();
        let mut callers = vec![(); load.callers];
        threads(&mut callers, load, |()| {
            let mut entry = self.0.begin_entry()?;
            for _ in 0..shape.count {
                entry.write_chunk(&payload)?;
            }
            entry.commit()?;
            Ok(())
        })
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        // Its files are checkpointed as they fill up, and used again.
        Ok(())
    }
}
