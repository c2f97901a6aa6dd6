//! What one would write in an afternoon: buffered writes under a mutex into files that were filled with zeros, and one
//! thread that flushes whatever was written. A caller is a thread; each payload has a length and a checksum.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::{Contender, Failed};
use crate::load::Load;
use crate::measure::{Measured, threads};

const FILE_BYTES: u64 = 64 << 20;
const FILES: usize = 8;

struct Pwrite {
    log: Arc<Log>,
    flusher: Option<JoinHandle<()>>,
}

struct Log {
    files: Vec<File>,
    state: Mutex<State>,
    /// Something was written, or it is over.
    wanted: Condvar,
    /// Something was flushed.
    flushed: Condvar,
}

#[derive(Default)]
struct State {
    /// Where the next append goes.
    file: usize,
    offset: u64,
    /// Bytes of all appends, written and durable.
    written: u64,
    durable: u64,
    /// The files that were written since the last flush began, as bits.
    dirty: u64,
    failed: Option<String>,
    over: bool,
}

pub(super) fn open(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    let zeros = vec![0; 1 << 20];
    let mut files = Vec::new();
    for number in 0..FILES {
        let path = directory.join(format!("{number}.log"));
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create_new(true).open(path)?;
        for _ in 0..FILE_BYTES / zeros.len() as u64 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        files.push(file);
    }
    let log = Arc::new(Log {
        files,
        state: Mutex::default(),
        wanted: Condvar::new(),
        flushed: Condvar::new(),
    });
    let of_flusher = Arc::clone(&log);
    let flusher = std::thread::spawn(move || of_flusher.flush_until_over());
    Ok(Box::new(Pwrite {
        log,
        flusher: Some(flusher),
    }))
}

impl Contender for Pwrite {
    fn run(&mut self, load: &Load) -> Result<Measured, Failed> {
        let shape = load.shape;
        let payload = shape.payload();
        let room = || Vec::with_capacity(shape.count * (shape.bytes + 8));
        let mut callers: Vec<Vec<u8>> = (0..load.callers).map(|_| room()).collect();
        threads(&mut callers, load, |record: &mut Vec<u8>| {
            record.clear();
            for _ in 0..shape.count {
                record.extend_from_slice(&(shape.bytes as u32).to_le_bytes());
                record.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
                record.extend_from_slice(&payload);
            }
            self.log.append(record)
        })
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        // It goes round in its files.
        Ok(())
    }
}

impl Log {
    fn append(&self, record: &[u8]) -> Result<(), Failed> {
        let bytes = record.len() as u64;
        let mut state = self.state();
        if FILE_BYTES < state.offset + bytes {
            state.file = (state.file + 1) % FILES;
            state.offset = 0;
        }
        self.files[state.file].write_all_at(record, state.offset)?;
        state.offset += bytes;
        state.written += bytes;
        state.dirty |= 1 << state.file;
        let end = state.written;
        self.wanted.notify_one();
        while state.durable < end {
            if let Some(failed) = &state.failed {
                return Err(failed.clone().into());
            }
            state = self
                .flushed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn flush_until_over(&self) {
        let mut state = self.state();
        while !state.over {
            if state.dirty == 0 {
                state = self
                    .wanted
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (through, dirty) = (state.written, std::mem::take(&mut state.dirty));
            drop(state);
            let dirty = (0..FILES).filter(|file| dirty & (1 << file) != 0);
            let flushed: Result<Vec<()>, _> =
                dirty.map(|file| self.files[file].sync_data()).collect();
            state = self.state();
            match flushed {
                Ok(_) => state.durable = through,
                Err(error) => state.failed = Some(error.to_string()),
            }
            self.flushed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pwrite {
    fn drop(&mut self) {
        self.log.state().over = true;
        self.log.wanted.notify_one();
        if let Some(flusher) = self.flusher.take() {
            let _ = flusher.join();
        }
    }
}
