//! Whole images with one block damaged, and the verdict that each deserves.
//!
//! The verdict is worked out from what the traces show: which write a block belongs to, whether a write that is
//! still readable was begun when this one was known to be durable, and whether it was acknowledged.
//!
//! Of earlier lives those writes count that are whole in what the last life found and lie before the place where
//! it went on: they were durable when it wrote its first flush group, which says so. What else earlier lives left
//! lies in slots that are free or held back. Of that only this is known, that nothing that was acknowledged may
//! be gone in silence.

use std::collections::{BTreeMap, BTreeSet};

use logdrive_raft::Boot;
use logdrive_wal::OpenError;
use logdrive_wal::disk::{BLOCK_BYTES, Block, SlotId};
use logdrive_wal::format::{Place, SLOT_HEADER_BLOCKS, SlotHeader};

use super::DamageCounts;
use super::history::Life;
use super::trace::Event;
use crate::disk::SimImage;
use crate::disk::slot::{Contents, Spare, ZEROS};

/// What is done to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    Zeros,
    Ones,
    /// One bit is flipped.
    Bit(u32),
    /// It changes places with another one.
    Swap(SlotId, u32),
    /// It is what was there before it was last written, or before that: this one of the known versions.
    Older(usize),
    /// It is what is at its place in another slot.
    OtherSlot(SlotId),
}

/// What an image with damage has to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deserves {
    /// It was durable, and something that can be read says so: refused, or opened if nobody misses it. `alone`: nothing
    /// else is damaged.
    Rot { alone: bool },
    /// One of two copies of a header: opened as if nothing were, and with `told` it has to be told.
    Healed { told: bool },
    /// It may have been acknowledged and nothing can tell any more whether it was written: refused, or what may have been
    /// acknowledged is guarded.
    Feared,
    /// The same, but it looks like a block that never landed. That cannot be told apart by anybody.
    ///
    /// The opening of a life may be taken for one that did not get as far as its verdict. Then what it wrote down of
    /// terms that it only saw beyond the end is gone too, and the slot that it saw them in may be taken.
    Undetectable { is_of_opening: bool },
    /// It was not acknowledged: dropped, or refused as suspect.
    Dropped,
    /// Nothing that was acknowledged is gone in silence.
    NoLoss,
}

/// One write, in the order of the log.
#[derive(Clone, Debug)]
struct Written {
    op: u64,
    slot: SlotId,
    block: u32,
    contents: Vec<Contents>,
    /// So many writes were known to be durable when it was begun.
    mark: usize,
    is_durable: bool,
    is_earlier_life: bool,
    /// The opening of this life wrote it.
    is_of_opening: bool,
}

impl Written {
    fn end(&self) -> u32 {
        self.block + u32::try_from(self.contents.len()).unwrap_or(0)
    }

    fn is_header(&self) -> bool {
        self.block < SLOT_HEADER_BLOCKS
    }

    fn is_group(&self) -> bool {
        !self.is_header() && !self.is_zeros()
    }

    /// Zeros are written over what does not count.
    fn is_zeros(&self) -> bool {
        self.contents.iter().all(Option::is_none)
    }

    fn is_whole_in(&self, image: &SimImage) -> bool {
        let mut blocks = (self.block..).zip(&self.contents);
        blocks.all(|(block, contents)| image.contents(self.slot, block) == *contents)
    }
}

/// What was at a place before it was written again.
#[derive(Clone, Debug)]
struct Version {
    slot: SlotId,
    block: u32,
    contents: Contents,
    is_earlier_life: bool,
}

/// What the traces of all lives up to one show of its writes and of what still counts of theirs.
#[derive(Debug, Default)]
pub(super) struct Known {
    writes: Vec<Written>,
    /// Of each block that was written more than once, what was there before.
    older: Vec<Version>,
}

impl Known {
    /// Takes note of one more life.
    pub(super) fn live(&mut self, life: &Life) {
        self.keep(life);
        for version in &mut self.older {
            version.is_earlier_life = true;
        }
        let mut now = life.base.clone();
        let mut is_here: BTreeSet<(SlotId, u32)> = BTreeSet::new();
        let mut landed: Vec<u64> = Vec::new();
        let mut flushes: Vec<(u64, Vec<u64>)> = Vec::new();
        let mut is_of_opening = true;
        for event in &life.events {
            match event {
                Event::Write {
                    op,
                    slot,
                    block,
                    contents,
                } => {
                    for (contents, block) in contents.iter().zip(*block..) {
                        let before = now.contents(*slot, block);
                        let is_earlier_life = is_here.insert((*slot, block));
                        if before.is_some() && before != *contents {
                            self.older.push(Version {
                                slot: *slot,
                                block,
                                contents: before,
                                is_earlier_life,
                            });
                        }
                        now.put(*slot, block, contents.clone());
                    }
                    let mut write = Written {
                        op: *op,
                        slot: *slot,
                        block: *block,
                        contents: contents.clone(),
                        mark: self.durable(),
                        is_durable: false,
                        is_earlier_life: false,
                        is_of_opening,
                    };
                    // They are no part of the log, and nothing waits for them.
                    write.is_durable = write.is_zeros();
                    // A mark that is written again in a segment that does not count.
                    let is_of_no_segment = write.is_group() && !self.has_header(*slot);
                    if !is_of_no_segment {
                        self.writes.push(write);
                    }
                }
                Event::Create { slot, .. } => now.create(*slot),
                Event::Extend { slot, blocks, .. } => now.extend(*slot, *blocks),
                Event::Landed(op) => landed.push(*op),
                Event::FlushBegins { op, slot } => {
                    let on_slot = |of: &&u64| {
                        let mut writes = self.writes.iter().filter(|write| !write.is_earlier_life);
                        writes.any(|write| write.op == **of && write.slot == *slot)
                    };
                    let covered = landed.iter().filter(on_slot).copied().collect();
                    flushes.push((*op, covered));
                }
                Event::Durable(op) => self.settle(&[*op]),
                Event::FlushEnds(op) => {
                    if let Some(place) = flushes.iter().position(|(of, _)| of == op) {
                        let (_, covered) = flushes.swap_remove(place);
                        self.settle(&covered);
                    }
                }
                // What it was to cover does not become durable by it.
                Event::FlushFails { .. } | Event::Acked(_) => {}
                Event::Opened => is_of_opening = false,
            }
        }
    }

    /// Forgets what does not count any more, now that another life has begun.
    fn keep(&mut self, life: &Life) {
        let from = self.goes_on_at(life);
        let writes = std::mem::take(&mut self.writes);
        let mut headers: BTreeMap<SlotId, SlotHeader> = BTreeMap::new();
        let mut kept: Vec<(Written, u64)> = Vec::new();
        let mut segments: BTreeSet<u64> = BTreeSet::new();
        for write in writes {
            if !write.is_whole_in(&life.base) {
                continue;
            }
            if let Some(header) = header_in(write.block, &write.contents) {
                headers.insert(write.slot, header);
            }
            let Some(header) = headers.get(&write.slot) else {
                continue;
            };
            let end = Place {
                segment: header.segment,
                block: write.end(),
            };
            if write.is_zeros() || from.is_none_or(|from| from < end) {
                continue;
            }
            if !write.is_header() {
                segments.insert(header.segment);
            }
            kept.push((write, header.segment));
        }
        // The header of a segment counts with the flush groups in it.
        kept.retain(|(_, segment)| segments.contains(segment));
        self.writes = kept
            .into_iter()
            .map(|(write, _)| Written {
                mark: 0,
                is_durable: true,
                is_earlier_life: true,
                is_of_opening: false,
                ..write
            })
            .collect();
    }

    /// Where a life goes on: after the end that the header of its first segment names, or, in the last segment
    /// of the life before, where it writes its first flush group.
    ///
    /// Before that header it may write a mark again that was in a page cache only, and then take the segment of
    /// that mark for one in which nothing was acknowledged.
    fn goes_on_at(&self, life: &Life) -> Option<Place> {
        let mut headers: BTreeMap<SlotId, SlotHeader> = BTreeMap::new();
        let mut newest = Boot(0);
        for write in &self.writes {
            if let Some(header) = header_in(write.block, &write.contents)
                && write.is_whole_in(&life.base)
            {
                newest = newest.max(header.epoch);
                headers.insert(write.slot, header);
            }
        }
        let opened = life.events.iter().find_map(|event| {
            let Event::Write {
                block, contents, ..
            } = event
            else {
                return None;
            };
            // A copy of an older header may be written again.
            header_in(*block, contents).filter(|own| own.by_recovery && newest < own.epoch)
        });
        if let Some(header) = opened {
            return Some(header.predecessor_end);
        }
        for event in &life.events {
            let Event::Write {
                slot,
                block,
                contents,
                ..
            } = event
            else {
                continue;
            };
            if contents.iter().all(Option::is_none) {
                continue;
            }
            if *block >= SLOT_HEADER_BLOCKS {
                let segment = headers.get(slot)?.segment;
                return Some(Place {
                    segment,
                    block: *block,
                });
            }
        }
        None
    }

    fn has_header(&self, slot: SlotId) -> bool {
        let mut headers = self.writes.iter().filter(|write| write.is_header());
        headers.any(|write| write.slot == slot && !write.is_zeros())
    }

    fn settle(&mut self, ops: &[u64]) {
        for write in &mut self.writes {
            write.is_durable |= ops.contains(&write.op);
        }
    }

    /// How many writes are durable, with all before them.
    fn durable(&self) -> usize {
        let pending = self.writes.iter().position(|write| !write.is_durable);
        pending.unwrap_or(self.writes.len())
    }

    /// The oldest segment that is needed: what the header of the last segment says that has a flush group.
    fn oldest(&self) -> u64 {
        let counts = |(number, write): &(usize, &Written)| {
            let mut after = self.writes[*number..].iter();
            after.any(|group| group.is_group() && group.slot == write.slot)
        };
        let headers = self.writes.iter().enumerate().filter(counts);
        let headers = headers.filter_map(|(_, write)| header_in(write.block, &write.contents));
        headers.map(|header| header.oldest).max().unwrap_or(0)
    }

    /// Whether a write is of a segment that was released.
    fn is_released(&self, owner: usize, oldest: u64) -> bool {
        let slot = self.writes[owner].slot;
        let before = self.writes[..=owner].iter().rev();
        let mut headers = before.filter(|write| write.slot == slot && write.is_header());
        let header = headers.find_map(|write| header_in(write.block, &write.contents));
        header.is_some_and(|header| header.segment < oldest)
    }

    /// The write that a block is of.
    fn owner(&self, slot: SlotId, block: u32) -> Option<usize> {
        let owner = self
            .writes
            .iter()
            .rposition(|write| write.slot == slot && (write.block..write.end()).contains(&block));
        owner.filter(|owner| !self.writes[*owner].is_zeros())
    }

    /// Whether a block is of a write of an earlier life that still counts.
    pub(super) fn is_of_earlier_life(&self, slot: SlotId, block: u32) -> bool {
        let owner = self.owner(slot, block);
        owner.is_some_and(|owner| self.writes[owner].is_earlier_life)
    }

    /// What else was at this place, and whether only an earlier life knew it.
    pub(super) fn versions(&self, slot: SlotId, block: u32) -> Vec<(Damage, bool)> {
        let here = |version: &Version| version.slot == slot && version.block == block;
        let versions = self.older.iter().enumerate();
        let versions = versions.filter(|(_, version)| here(version));
        versions
            .map(|(number, version)| (Damage::Older(number), version.is_earlier_life))
            .collect()
    }

    /// Does damage to a block. None: that would change nothing, or there is nothing to do it with.
    pub(super) fn damaged(
        &self,
        image: &SimImage,
        slot: SlotId,
        block: u32,
        damage: Damage,
    ) -> Option<SimImage> {
        let was = image.contents(slot, block);
        let mut changed = image.clone();
        let becomes = match damage {
            Damage::Zeros => None,
            Damage::Ones => Spare::default().share(&[0xff; BLOCK_BYTES]),
            Damage::Bit(bit) => {
                let mut bytes = was.as_deref().copied().unwrap_or(ZEROS);
                bytes[bit as usize / 8] ^= 1 << (bit % 8);
                Spare::default().share(&bytes)
            }
            Damage::Swap(other, place) => {
                changed.put(other, place, was.clone());
                image.contents(other, place)
            }
            Damage::Older(version) => self.older.get(version)?.contents.clone(),
            Damage::OtherSlot(other) => image.contents(other, block),
        };
        if becomes == was {
            return None;
        }
        changed.put(slot, block, becomes);
        Some(changed)
    }

    /// What an image with this damage has to come to.
    pub(super) fn deserves(
        &self,
        image: &SimImage,
        slot: SlotId,
        block: u32,
        damage: Damage,
    ) -> Deserves {
        let mut places = vec![(slot, block)];
        if let Damage::Swap(other, place) = damage {
            places.push((other, place));
        }
        let oldest = self.oldest();
        let owners: Vec<Option<usize>> = places
            .iter()
            .map(|(slot, block)| self.owner(*slot, *block))
            .map(|owner| owner.filter(|owner| !self.is_released(*owner, oldest)))
            .collect();
        // The highest mark that anything undamaged states.
        let readable = |(number, write): &(usize, &Written)| {
            write.is_group() && !owners.contains(&Some(*number))
        };
        let groups = self.writes.iter().enumerate();
        let mark = groups.filter(readable).map(|(_, write)| write.mark).max();
        let mark = mark.unwrap_or(0);
        let is_header = |place: &(SlotId, u32)| place.1 < SLOT_HEADER_BLOCKS;
        let below = |owner: &Option<usize>| owner.is_some_and(|owner| owner < mark);
        let mut groups = places
            .iter()
            .zip(&owners)
            .filter(|(place, _)| !is_header(place));
        if groups.any(|(_, owner)| below(owner)) {
            let alone = owners.iter().all(below);
            return Deserves::Rot { alone };
        }
        // Zeros were written over a header that did not count.
        let is_in_use = |place: &(SlotId, u32)| image.contents(place.0, place.1).is_some();
        if let ([place], [Some(owner)]) = (&places[..], &owners[..])
            && is_header(place)
            && is_in_use(place)
        {
            // A header is known to have been durable once something in its segment is.
            let mut after = self.writes[..mark].iter().skip(owner + 1);
            let is_stated = after.any(|write| write.is_group() && write.slot == place.0);
            return Deserves::Healed { told: is_stated };
        }
        let left = self.damaged(image, slot, block, damage);
        // The stamp of the same place in an older segment is what was there before.
        let is_of_before = match damage {
            Damage::Older(_) | Damage::OtherSlot(_) => true,
            Damage::Swap(_, place) => place == block,
            _ => false,
        };
        let looks_unwritten = |(slot, block): &(SlotId, u32)| {
            let bytes = left.as_ref().and_then(|left| left.contents(*slot, *block));
            is_of_before || bytes.is_none_or(|bytes| bytes[BLOCK_BYTES - 16..] == [0; 16])
        };
        let durable = self.durable();
        let was_durable = |owner: &Option<usize>| owner.is_some_and(|owner| owner < durable);
        let mut deserves = Deserves::Dropped;
        for (place, owner) in places.iter().zip(&owners) {
            if owner.is_none() || is_header(place) {
                if deserves == Deserves::Dropped {
                    deserves = Deserves::NoLoss;
                }
            } else if was_durable(owner) {
                if looks_unwritten(place) {
                    let mut hit = owners.iter().flatten();
                    let is_of_opening = hit.any(|owner| self.writes[*owner].is_of_opening);
                    return Deserves::Undetectable { is_of_opening };
                }
                deserves = Deserves::Feared;
            }
        }
        deserves
    }
}

/// The header in a write, if there is one.
fn header_in(block: u32, contents: &[Contents]) -> Option<SlotHeader> {
    if block >= SLOT_HEADER_BLOCKS {
        return None;
    }
    let bytes = contents.first()?.as_deref()?;
    SlotHeader::from_block(&Block(*bytes), block).ok()?
}

/// What became of an image with damage.
pub(super) struct Came<'a> {
    /// What it was opened with, or why it was not.
    pub(super) result: Result<Opened, &'a OpenError>,
}

#[derive(Clone, Debug)]
pub(super) struct Opened {
    /// How many findings were told of.
    pub(super) findings: usize,
    /// Whether something that was acknowledged is gone and not guarded.
    pub(super) loss: Result<(), String>,
    /// Whether a group is guarded.
    pub(super) is_guarded: bool,
    /// Whether it came back with what never was.
    pub(super) invention: Result<(), String>,
    /// The same where a log may begin, and fear for the rest.
    pub(super) holed_invention: Result<(), String>,
    /// Whether the undamaged image does not come back as guarded.
    pub(super) newly_guarded: bool,
    /// Whether something is gone that was acknowledged before this life.
    pub(super) loss_before: Result<(), String>,
    /// Whether the undamaged image comes to the same.
    pub(super) is_same: bool,
    /// The same, but for a guard that was over: what said so is what is bad.
    pub(super) is_same_or_guarded: bool,
    /// The same, or the beginning of it, and what comes after that is feared for.
    pub(super) is_whole_or_fears: bool,
}

impl DamageCounts {
    pub(super) fn count(&mut self, damage: Damage, is_earlier_life: bool) {
        let count = match damage {
            Damage::Zeros => &mut self.zeroed,
            Damage::Ones => &mut self.ones,
            Damage::Bit(_) => &mut self.flipped,
            Damage::Swap(..) => &mut self.swapped,
            Damage::OtherSlot(_) => &mut self.other_slot,
            Damage::Older(_) if is_earlier_life => &mut self.older_earlier_life,
            Damage::Older(_) => &mut self.older_same_life,
        };
        *count += 1;
    }
}

impl Deserves {
    /// Whether it came to that.
    pub(super) fn check(self, came: &Came<'_>, counts: &mut DamageCounts) -> Result<(), String> {
        counts.images += 1;
        let refused = match &came.result {
            Err(OpenError::Rot { .. }) => {
                counts.rot += 1;
                Some("rot")
            }
            Err(OpenError::Suspect { .. }) => {
                counts.suspect += 1;
                Some("suspect")
            }
            // A directory with data and not one header that can be read.
            Err(OpenError::NotALog { .. }) => {
                counts.suspect += 1;
                Some("not a log")
            }
            Err(error) => return Err(format!("refused for another reason: {error}")),
            Ok(opened) => {
                counts.opened += 1;
                counts.healed += u64::from(opened.findings > 0);
                None
            }
        };
        let wrong = |is: &str| Err(format!("deserves {self:?}, and {is}"));
        match (self, refused, &came.result) {
            (Deserves::Rot { .. }, Some("rot"), _) => {
                counts.rot_deserved += 1;
                Ok(())
            }
            // What else is damaged is a reason of its own.
            (Deserves::Rot { alone: false }, Some(_), _) => {
                counts.refused_deserved += 1;
                Ok(())
            }
            (Deserves::Rot { alone: true }, Some(other), _) => wrong(other),
            // What nobody misses is told of, and nothing else; what somebody misses is feared for. What was exchanged for it
            // may lie above the mark: then it is guarded, or looks unwritten and nobody can tell.
            (Deserves::Rot { alone }, None, Ok(opened)) if opened.findings > 0 => {
                if opened.is_same_or_guarded {
                    counts.mended_deserved += 1;
                    return Ok(());
                }
                if opened.is_whole_or_fears {
                    counts.holed_deserved += 1;
                    return Ok(());
                }
                match opened.newly_guarded {
                    _ if alone => wrong("came back otherwise"),
                    true => opened.loss.clone(),
                    false => opened.holed_invention.clone(),
                }
            }
            (Deserves::Rot { .. }, None, _) => wrong("was opened and nothing was told"),
            (Deserves::Feared, Some(_), _) => {
                counts.refused_deserved += 1;
                Ok(())
            }
            (Deserves::Healed { told }, None, Ok(opened)) => {
                if !opened.is_same {
                    return wrong("came back otherwise");
                }
                if told && opened.findings == 0 {
                    return wrong("nothing was told");
                }
                counts.healed_deserved += 1;
                Ok(())
            }
            (Deserves::Healed { .. }, Some(refused), _) => wrong(refused),
            (Deserves::Undetectable { is_of_opening }, _, came) => {
                counts.undetectable += 1;
                // It may be shorter by what looks unwritten, and hold nothing else than what was written.
                let Ok(opened) = came else {
                    return Ok(());
                };
                if is_of_opening && opened.loss_before.is_ok() {
                    return Ok(());
                }
                opened.invention.clone()
            }
            (Deserves::Dropped, Some("rot"), _) => wrong("rot"),
            (Deserves::Dropped | Deserves::NoLoss, Some(_), _) => Ok(()),
            (_, None, Ok(opened)) => {
                counts.guarded += u64::from(opened.is_guarded);
                opened
                    .loss
                    .clone()
                    .map_err(|why| format!("deserves {self:?}: {why}"))
            }
            (_, None, Err(_)) => wrong("neither opened nor refused"),
        }
    }
}
