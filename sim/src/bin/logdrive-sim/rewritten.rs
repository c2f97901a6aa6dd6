//! One log that lost entries and got them back: what of it runs of whole clusters show too seldom.

use logdrive_raft::io::Write;
use logdrive_raft::mutant::Mutant;
use logdrive_raft::{
    ClusterId, Entry, EntryBuilder, Genesis, GroupId, Incarnation, LogPosition, Micros, NodeId,
    Term,
};
use logdrive_sim::dice::{Dice, Site};
use logdrive_sim::disk::{Crash, SimDisk, SimDiskOptions, SimStorage, Tear};
use logdrive_wal::disk::BLOCK_BYTES;
use logdrive_wal::{FreshIds, Identity, Options, Wal};

use crate::alone::membership;

const GROUP: GroupId = GroupId(1);

/// Each is a flush group of its own.
const MARKS: [&[u8]; 4] = [
    b"first entry",
    b"second entry",
    b"third entry",
    b"fourth entry",
];

/// Which claim a log with this bug breaks, if it breaks one.
pub(crate) fn broken(mutant: Option<Mutant>) -> Option<String> {
    let medium = SimStorage::new(Dice::drawn(Site::Disk(NodeId(1)), 1));
    let written = write(&medium).ok()?;
    spoil(&medium, MARKS[1]);
    let mut wal = open(&medium, None).ok()?;
    // Only what was lost is written once more.
    wal.supply(GROUP, &written[1..2]).ok()?;
    settle(&mut wal);
    die(wal, &medium);
    let last = written[3].position();
    let tip = match open(&medium, mutant) {
        Ok(wal) => wal.tip(GROUP),
        Err(why) => return Some(format!("recovery truth: a log that was mended: {why}")),
    };
    let text = format!("recovery truth: a log that was mended up to {last} ends at {tip:?}");
    (tip != Some(last)).then_some(text)
}

fn options(mutant: Option<Mutant>) -> Options {
    let identity = Identity {
        cluster: ClusterId(1),
        node: NodeId(1),
    };
    let fresh = FreshIds {
        incarnation: Incarnation(1),
        log_uuid: 2,
    };
    let options = Options::new(identity, fresh).with_slots(64 << 10, 12);
    Options { mutant, ..options }
}

fn open(medium: &SimStorage, mutant: Option<Mutant>) -> Result<Wal<SimDisk>, String> {
    let disk = SimDisk::new(medium.clone(), SimDiskOptions::default());
    let opened = Wal::open(disk, options(mutant));
    opened
        .map(|(wal, _)| wal)
        .map_err(|error| error.to_string())
}

fn write(medium: &SimStorage) -> Result<Vec<Entry>, String> {
    let mut wal = open(medium, None)?;
    let genesis = Genesis {
        cluster: ClusterId(1),
        group: GROUP,
        voters: membership(&[1, 2, 3]).voters,
    };
    let refused = |error: logdrive_wal::AppendError| error.to_string();
    wal.create_group(&genesis).map_err(refused)?;
    let mut at: LogPosition = genesis.origin();
    let mut written = Vec::new();
    for mark in MARKS {
        let mut builder = EntryBuilder::with_room(1, mark.len());
        builder.push(mark);
        let entry = builder
            .finish()
            .seal(GROUP, Term(1), at.index.next(), at.chain);
        at = entry.position();
        wal.append(GROUP, &[Write::Entries(vec![entry.clone()])])
            .map_err(refused)?;
        written.push(entry);
        settle(&mut wal);
    }
    die(wal, medium);
    Ok(written)
}

/// Lets it get late enough for everything to end, marks too.
fn settle(wal: &mut Wal<SimDisk>) {
    let mut now = Micros(1);
    wal.submit(now);
    while let Some(due) = wal
        .disk()
        .next_due()
        .into_iter()
        .chain(wal.next_deadline().map(|at| at.0))
        .min()
    {
        now = now.max(Micros(due));
        wal.disk_mut().advance(now.0);
        wal.poll(now);
        wal.submit(now);
    }
}

fn die(wal: Wal<SimDisk>, medium: &SimStorage) {
    drop(wal);
    medium.crash(Crash::Process, Tear::Never);
}

fn spoil(medium: &SimStorage, mark: &[u8]) {
    for file in medium.slot_files() {
        let bytes = medium.contents(file.slot);
        let found = bytes.windows(mark.len()).position(|here| here == mark);
        if let Some(block) = found.and_then(|at| u32::try_from(at / BLOCK_BYTES).ok()) {
            medium.change(file.slot, block, |bytes| bytes[100] ^= 1);
        }
    }
}
