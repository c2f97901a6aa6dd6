//! Which segments make a log: each header names its predecessor.

use logdrive_raft::Boot;

use crate::format::{Place, Record, SlotHeader};
use crate::scan::{Piece, SegmentScan, SlotScan};

use super::Live;
use super::walk::Walk;

pub(super) fn newest_of(candidates: &[&SlotScan]) -> Option<SlotHeader> {
    let headers = candidates.iter().filter_map(|scan| scan.header);
    headers.max_by_key(|header| (header.epoch, header.segment))
}

/// The segments from the oldest one to the newest: each header names its predecessor. And the first one that is
/// missing, if one is.
pub(super) fn link(
    candidates: &[&SlotScan],
    newest: SlotHeader,
    oldest: u64,
) -> (Vec<Live>, Option<(u64, Boot)>) {
    let mut live = Vec::new();
    let mut missing = None;
    let mut next = (newest.segment, newest.epoch);
    loop {
        let is_next = |header: &SlotHeader| (header.segment, header.epoch) == next;
        let found = candidates
            .iter()
            .find(|scan| scan.header.as_ref().is_some_and(is_next));
        let Some((scan, header)) = found.and_then(|scan| Some((scan, scan.header?))) else {
            missing = Some(next);
            break;
        };
        live.push(Live {
            slot: scan.slot,
            blocks: scan.blocks,
            header,
        });
        let before = header.predecessor_end.segment;
        if before == 0 || before < oldest {
            break;
        }
        next = (before, header.predecessor_epoch);
    }
    live.reverse();
    (live, missing)
}

pub(super) fn mark_in(piece: &Piece) -> Option<Place> {
    match piece {
        Piece::Group(group) => Some(group.header.mark),
        Piece::Bad(bad) => bad.mark,
    }
}

/// Everything before this place was durable when somebody said so.
pub(super) fn mark_of(segments: &[SegmentScan]) -> Place {
    let stated = segments
        .iter()
        .flat_map(|segment| &segment.pieces)
        .filter_map(mark_in);
    // A recovery flushes before it reads, and opens its segment after that.
    let recovered = segments
        .iter()
        .filter(|segment| segment.header.by_recovery)
        .map(|segment| segment.header.predecessor_end);
    stated.chain(recovered).max().unwrap_or_default()
}

/// The epoch whose opening did not get as far as its verdict, if there is one: its segments do not count.
///
/// Below the mark the verdict may be bad. Then its table can be read all the same, or the next flush group repeats it.
pub(super) fn unfinished(segments: &[SegmentScan], walk: &Walk, mark: Place) -> Option<Boot> {
    let opening = segments
        .iter()
        .rposition(|segment| segment.header.by_recovery)?;
    let epoch = segments[opening].header.epoch;
    let judges = |table: &[Record]| {
        table
            .iter()
            .any(|record| matches!(record, Record::Verdict(verdict) if verdict.boot == epoch))
    };
    let judged = segments[opening..]
        .iter()
        .flat_map(|segment| &segment.pieces)
        .any(|piece| match piece {
            Piece::Group(group) if group.place() < walk.end => {
                judges(&group.table) || judges(&group.echo)
            }
            Piece::Bad(bad) if bad.at < mark => {
                let mut told = bad.told.iter();
                told.any(|told| judges(&told.table) || judges(&told.echo))
            }
            _ => false,
        });
    (!judged).then_some(epoch)
}
