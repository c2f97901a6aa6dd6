//! Whole images with one block damaged, and the verdict that each deserves.
//!
//! The verdict is worked out from what the trace shows: which write a block belongs to, whether a write that is
//! still readable was begun when this one was known to be durable, and whether it was acknowledged. Of what
//! earlier lives left only this is known, that nothing that was acknowledged may be gone in silence.

use logdrive_wal::OpenError;
use logdrive_wal::disk::{BLOCK_BYTES, SlotId};

use super::DamageCounts;
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
    /// It is what was there before it was last written.
    Older,
    /// It is what is at its place in another slot.
    OtherSlot(SlotId),
}

/// What an image with damage has to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deserves {
    /// It was durable, and something that can be read says so.
    Rot,
    /// One of two copies of a header: opened as if nothing were, and with `told` it has to be told.
    Healed { told: bool },
    /// It may have been acknowledged and nothing can tell any more whether it was written: refused.
    Refused,
    /// The same, but it looks like a block that never landed. That cannot be told apart by anybody.
    Undetectable,
    /// It was not acknowledged: dropped, or refused as suspect.
    Dropped,
    /// Nothing that was acknowledged is gone in silence.
    NoLoss,
}

/// One write, in the order of the log.
#[derive(Clone, Copy, Debug)]
struct Written {
    op: u64,
    slot: SlotId,
    block: u32,
    blocks: u32,
    /// So many writes were known to be durable when it was begun.
    mark: usize,
    is_durable: bool,
}

/// What a trace shows of the writes of one life.
#[derive(Debug, Default)]
pub(super) struct Known {
    writes: Vec<Written>,
    /// Of each block that was written more than once, what was there before.
    older: Vec<(SlotId, u32, Contents)>,
}

impl Known {
    pub(super) fn of(base: &SimImage, events: &[Event]) -> Self {
        let mut known = Self::default();
        let mut now = base.clone();
        let mut landed: Vec<u64> = Vec::new();
        let mut flushes: Vec<(u64, Vec<u64>)> = Vec::new();
        for event in events {
            match event {
                Event::Write {
                    op,
                    slot,
                    block,
                    contents,
                } => {
                    for (contents, block) in contents.iter().zip(*block..) {
                        let before = now.contents(*slot, block);
                        if before.is_some() && before != *contents {
                            known.older.push((*slot, block, before));
                        }
                        now.put(*slot, block, contents.clone());
                    }
                    known.writes.push(Written {
                        op: *op,
                        slot: *slot,
                        block: *block,
                        blocks: u32::try_from(contents.len()).unwrap_or(0),
                        mark: known.durable(),
                        is_durable: false,
                    });
                }
                Event::Create { slot, .. } => now.create(*slot),
                Event::Extend { slot, blocks, .. } => now.extend(*slot, *blocks),
                Event::Landed(op) => landed.push(*op),
                Event::FlushBegins { op, slot } => {
                    let on_slot = |of: &&u64| {
                        let mut writes = known.writes.iter();
                        writes.any(|write| write.op == **of && write.slot == *slot)
                    };
                    let covered = landed.iter().filter(on_slot).copied().collect();
                    flushes.push((*op, covered));
                }
                Event::Durable(op) => known.settle(&[*op]),
                Event::FlushEnds(op) => {
                    if let Some(place) = flushes.iter().position(|(of, _)| of == op) {
                        let (_, covered) = flushes.swap_remove(place);
                        known.settle(&covered);
                    }
                }
                // What it was to cover does not become durable by it.
                Event::FlushFails { .. } | Event::Acked(_) | Event::Opened => {}
            }
        }
        known
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

    /// The write that a block is of.
    fn owner(&self, slot: SlotId, block: u32) -> Option<usize> {
        self.writes.iter().rposition(|write| {
            write.slot == slot && (write.block..write.block + write.blocks).contains(&block)
        })
    }

    fn older(&self, slot: SlotId, block: u32) -> Option<&Contents> {
        let of = |(of_slot, of_block, _): &&(SlotId, u32, Contents)| {
            *of_slot == slot && *of_block == block
        };
        self.older.iter().rev().find(of).map(|(_, _, older)| older)
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
            Damage::Older => self.older(slot, block)?.clone(),
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
        let owners: Vec<Option<usize>> = places
            .iter()
            .map(|(slot, block)| self.owner(*slot, *block))
            .collect();
        // The highest mark that anything undamaged states.
        let readable = |(number, write): &(usize, &Written)| {
            write.block >= 2 && !owners.contains(&Some(*number))
        };
        let groups = self.writes.iter().enumerate();
        let mark = groups.filter(readable).map(|(_, write)| write.mark).max();
        let mark = mark.unwrap_or(0);
        let is_header = |place: &(SlotId, u32)| place.1 < 2;
        let below = |owner: &Option<usize>| owner.is_some_and(|owner| owner < mark);
        let mut groups = places
            .iter()
            .zip(&owners)
            .filter(|(place, _)| !is_header(place));
        if groups.any(|(_, owner)| below(owner)) {
            return Deserves::Rot;
        }
        // Zeros were written over a header that did not count.
        let is_in_use = |place: &(SlotId, u32)| image.contents(place.0, place.1).is_some();
        if let ([place], [Some(owner)]) = (&places[..], &owners[..])
            && is_header(place)
            && is_in_use(place)
        {
            return Deserves::Healed {
                told: *owner < mark,
            };
        }
        let left = self.damaged(image, slot, block, damage);
        // The stamp of the same place in an older segment is what was there before.
        let is_of_before = match damage {
            Damage::Older | Damage::OtherSlot(_) => true,
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
                    return Deserves::Undetectable;
                }
                deserves = Deserves::Refused;
            }
        }
        deserves
    }
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
    /// Whether something that was acknowledged is gone.
    pub(super) loss: Result<(), String>,
    /// Whether it came back with what never was.
    pub(super) invention: Result<(), String>,
    /// Whether the undamaged image comes to the same.
    pub(super) is_same: bool,
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
            (Deserves::Rot, Some("rot"), _) => {
                counts.rot_deserved += 1;
                Ok(())
            }
            (Deserves::Rot, Some(other), _) => wrong(other),
            (Deserves::Rot | Deserves::Refused, None, _) => wrong("was opened"),
            (Deserves::Refused, Some(_), _) => {
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
            (Deserves::Undetectable, _, came) => {
                counts.undetectable += 1;
                // It may be shorter by what looks unwritten, and hold nothing else than what was written.
                came.as_ref()
                    .map_or(Ok(()), |opened| opened.invention.clone())
            }
            (Deserves::Dropped, Some("rot"), _) => wrong("rot"),
            (Deserves::Dropped | Deserves::NoLoss, Some(_), _) => Ok(()),
            (_, None, Ok(opened)) => opened
                .loss
                .clone()
                .map_err(|why| format!("deserves {self:?}: {why}")),
            (_, None, Err(_)) => wrong("neither opened nor refused"),
        }
    }
}
