//! Follows the flush groups of a chain of segments to the end of the log.

use logdrive_raft::mutant::Mutant;
use logdrive_raft::{Chain, mutated};

use crate::disk::Disk;
use crate::error::FindingVerdict;
use crate::format::{GroupKind, Place, Record};
use crate::scan::{Bad, GroupScan, Piece, SegmentScan};

use super::court::Court;
use super::suspicion::VoteHidden;

impl<D: Disk> Court<'_, D> {
    /// Follows the flush groups to the end of the log.
    pub(super) fn walk(&mut self, segments: &[SegmentScan]) -> Walk {
        let mut walk = Walk::begin(segments, self.question.mutant);
        let cuts_at_once = mutated!(self.question.mutant, RotIsTorn);
        for (number, segment) in segments.iter().enumerate() {
            walk.resume |= number == 0;
            for piece in &segment.pieces {
                if mutated!(self.question.mutant, OnlyMarkedCounts)
                    && matches!(piece, Piece::Group(group) if self.judgement.mark < group.place())
                {
                    walk.dropped = true;
                    return walk;
                }
                let bad = match piece {
                    Piece::Group(group) => match walk.take(group, number) {
                        Ok(()) => continue,
                        Err(meaning) => Bad {
                            at: group.place(),
                            block: group.place().block,
                            not_landed: false,
                            meaning: meaning.to_owned(),
                            mark: None,
                            whole_blocks: group.header.blocks,
                            end: group.header.end().block,
                            garbage_blocks: 0,
                            told: Vec::new(),
                            starts: 0,
                            ends: false,
                        },
                    },
                    Piece::Bad(bad) => bad.clone(),
                };
                if bad.at < self.judgement.mark && !cuts_at_once {
                    match piece {
                        // What is lost with it shows once all is applied.
                        Piece::Bad(_) => self.rotten.push((number, bad)),
                        Piece::Group(_) => {
                            self.find_bad(FindingVerdict::Rot, segments, segment, &bad);
                        }
                    }
                    walk.resume(piece);
                    continue;
                }
                if self.question.sealed_only {
                    // It is under way.
                    return walk;
                }
                if !bad.not_landed && !cuts_at_once {
                    let beyond = &segments[number..];
                    let verdict = match self.suspicion.add(beyond, &bad, walk.number) {
                        // Of a group that belongs elsewhere nobody knows what should be here.
                        Ok(()) if matches!(piece, Piece::Bad(_)) => FindingVerdict::Guarded,
                        Ok(()) | Err(VoteHidden) => FindingVerdict::Suspect,
                    };
                    self.find_bad(verdict, segments, segment, &bad);
                }
                walk.dropped |= !bad.not_landed;
                walk.dropped |= bad.whole_blocks > 0 || number + 1 < segments.len();
                walk.dropped |= segment
                    .pieces
                    .iter()
                    .any(|piece| matches!(piece, Piece::Group(group) if group.place() > bad.at));
                walk.garbage_beyond = bad.garbage_blocks > 0;
                return walk;
            }
        }
        walk
    }
}

/// How far the flush groups have been followed.
pub(super) struct Walk {
    pub(super) end: Place,
    pub(super) chain: Chain,
    pub(super) number: u64,
    /// How many segments have a flush group before the end.
    pub(super) segments: usize,
    /// The last group says that everything before it is durable.
    pub(super) quiet: bool,
    /// The last segment was opened by a recovery and holds nothing else.
    pub(super) unused: bool,
    /// Something of this log lies beyond the end.
    pub(super) dropped: bool,
    /// So does what may be taken for a part of it once the log goes on there.
    pub(super) garbage_beyond: bool,
    /// After rot: the next group's chain is taken as it is.
    pub(super) resume: bool,
    mutant: Option<Mutant>,
}

impl Walk {
    pub(super) fn begin(segments: &[SegmentScan], mutant: Option<Mutant>) -> Self {
        let first = segments.first();
        Self {
            end: first.map_or(Place::default(), |segment| segment.header.predecessor_end),
            chain: first.map_or(Chain::default(), |segment| segment.header.predecessor_chain),
            number: 0,
            segments: 0,
            quiet: false,
            unused: false,
            dropped: false,
            garbage_beyond: false,
            resume: false,
            mutant,
        }
    }

    pub(super) fn take(&mut self, group: &GroupScan, segment: usize) -> Result<(), &'static str> {
        let header = &group.header;
        if !self.resume && !mutated!(self.mutant, StaleFrame) {
            if header.previous != self.chain {
                return Err("a flush group does not follow the one before");
            }
            if header.number != self.number + 1 {
                return Err("a flush group is missing before this one");
            }
        }
        self.resume = false;
        let opening = matches!(header.kind, GroupKind::First | GroupKind::Mark)
            || group
                .table
                .iter()
                .all(|record| matches!(record, Record::Verdict(_)));
        self.unused = opening && (header.kind == GroupKind::First || self.unused);
        self.chain = group.chain;
        self.number = header.number;
        self.quiet = header.kind == GroupKind::Mark && header.mark == header.place;
        self.end = header.end();
        self.segments = segment + 1;
        Ok(())
    }

    fn resume(&mut self, piece: &Piece) {
        self.resume = true;
        if let Piece::Group(group) = piece {
            self.chain = group.chain;
            self.number = group.header.number;
            self.end = group.header.end();
            self.resume = false;
        }
    }
}
