//! TiKV's log, with its defaults but for compression, which this data would not gain by and nobody else does. A caller is
//! a thread with a region of its own; a payload is an entry.

use std::path::Path;

use raft::eraftpb::Entry;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use super::{CALLERS_MAX, Contender, Failed};
use crate::load::Load;
use crate::measure::{Measured, threads};

struct RaftEngine {
    engine: Engine,
    /// By region: the index of its last entry.
    last: Vec<u64>,
}

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

struct Caller<'a> {
    region: u64,
    last: &'a mut u64,
    entries: Vec<Entry>,
}

pub(super) fn open(directory: &Path) -> Result<Box<dyn Contender>, Failed> {
    let config = Config {
        dir: directory.to_string_lossy().into_owned(),
        batch_compression_threshold: ReadableSize(0),
        // So that files that were used are used again from one stretch to the next.
        purge_threshold: ReadableSize::mb(256),
        ..Config::default()
    };
    Ok(Box::new(RaftEngine {
        engine: Engine::open(config)?,
        last: vec![0; CALLERS_MAX],
    }))
}

impl Contender for RaftEngine {
    fn run(&mut self, load: &Load) -> Result<Measured, Failed> {
        let shape = load.shape;
        let payload = shape.payload();
        let entry = || {
            let mut entry = Entry {
                term: 1,
                ..Entry::default()
            };
            entry.set_data(payload.clone().into());
            entry
        };
        let caller = |(region, last)| Caller {
            region,
            last,
            entries: (0..shape.count).map(|_| entry()).collect(),
        };
        let last = self.last.iter_mut().take(load.callers);
        let mut callers: Vec<_> = (1..).zip(last).map(caller).collect();
        let engine = &self.engine;
        threads(&mut callers, load, |caller: &mut Caller<'_>| {
            for entry in &mut caller.entries {
                *caller.last += 1;
                entry.index = *caller.last;
            }
            let mut batch = LogBatch::with_capacity(1);
            batch.add_entries::<Entries>(caller.region, &caller.entries)?;
            engine.write(&mut batch, true)?;
            Ok(())
        })
    }

    fn recycle(&mut self) -> Result<(), Failed> {
        for (region, last) in (1..).zip(&self.last) {
            self.engine.compact_to(region, *last + 1);
        }
        self.engine.purge_expired_files()?;
        Ok(())
    }
}
