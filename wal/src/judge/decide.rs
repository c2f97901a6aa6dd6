//! Applies what counts, and says what it comes to.

use crate::disk::Disk;
use crate::error::FindingVerdict;
use crate::format::{FooterRow, Place, Record, SLOT_HEADER_BLOCKS};
use crate::scan::{GroupScan, Piece, SegmentScan};

use super::court::Court;
use super::logs::Logs;
use super::walk::Walk;
use super::{Beyond, Live, Verdict};

impl<D: Disk> Court<'_, D> {
    /// Applies everything up to the end, and settles terms and votes.
    pub(super) fn decide(&mut self, segments: Vec<SegmentScan>, mut walk: Walk) {
        let carried = std::mem::take(&mut self.suspicion.findings);
        self.judgement.findings.extend(carried);
        let mut logs = Logs::new(self.question.mutant);
        self.suspicion.note(&mut logs);
        let mark = self.judgement.mark;
        // A mark that stands alone beyond what it states is written again, and that is all.
        self.judgement.rewrite_last = self.question.split_at_mark && walk.quiet && !walk.dropped;
        let split = self.question.split_at_mark && !self.judgement.rewrite_last;
        let mut applied = Walk::begin(&segments, self.question.mutant);
        let mut table: &[Record] = &[];
        // With what lies beyond the mark.
        let mut whole: Option<Logs> = None;
        for (number, segment) in segments.iter().enumerate() {
            for piece in &segment.pieces {
                for records in piece.records() {
                    logs.note(records);
                }
                let Piece::Group(group) = piece else {
                    continue;
                };
                if group.place() >= walk.end {
                    continue;
                }
                let beyond = split && group.place() >= mark;
                let fits = if beyond {
                    self.judgement.tail.push(Beyond {
                        slot: segment.slot,
                        group: GroupScan::clone(group),
                    });
                    whole.get_or_insert_with(|| logs.clone()).apply(group)
                } else {
                    logs.apply(group)
                };
                if let Err(misfit) = fits {
                    let block = group.place().block;
                    let hit = GroupScan::first_entry(&group.table);
                    self.find(
                        FindingVerdict::Rot,
                        segment.slot,
                        block,
                        hit,
                        misfit.to_string(),
                    );
                }
                if beyond {
                    continue;
                }
                if number + 1 > applied.segments {
                    self.judgement.footer.clear();
                    self.judgement.before_last = (table.to_vec(), applied.number);
                }
                self.judgement.footer.extend(footer_rows(group));
                table = &group.table;
                applied.resume = true;
                // Told already if it does not fit.
                let _ = applied.take(group, number);
            }
        }
        self.judgement.last_table = table.to_vec();
        let noted = logs.hard_states();
        let all = whole.as_mut().unwrap_or(&mut logs);
        self.suspicion.apply(all, &noted);
        self.judgement.is_guarded = self.suspicion.is_feared;
        self.judgement.guards = all.guards();
        if let Some((group, (slot, block))) = self.suspicion.lost_group(all) {
            let meaning = format!("all that was known of group {group} is lost with it");
            self.find(FindingVerdict::Suspect, slot, block, None, meaning);
        }
        if let Some(first) = segments.first() {
            self.look_for_missing(whole.as_ref().unwrap_or(&logs), first, &walk);
        }
        if split {
            applied.dropped = walk.dropped;
            applied.garbage_beyond = walk.garbage_beyond;
            applied.quiet = false;
            walk = applied;
        }
        self.judgement.live.truncate(walk.segments);
        self.note_bad_copies();
        let judgement = &mut self.judgement;
        judgement.hard_states = logs.hard_states();
        judgement.entries = logs
            .groups
            .values()
            .map(|log| log.rows().len() as u64)
            .sum();
        judgement.groups = logs.groups;
        judgement.removed = logs.removed;
        judgement.configurations = logs.configurations;
        judgement.end = walk.end;
        judgement.chain = walk.chain;
        judgement.number = walk.number;
        judgement.stopped_cleanly = walk.quiet && !walk.dropped;
        judgement.garbage_beyond = walk.garbage_beyond;
        judgement.last_unused = walk.unused;
        let worst = judgement.findings.iter().map(|finding| finding.verdict);
        judgement.verdict = match worst
            .filter(|verdict| *verdict != FindingVerdict::Healable)
            .min()
        {
            Some(FindingVerdict::Rot | FindingVerdict::Healable) => Verdict::Rot,
            Some(FindingVerdict::Suspect | FindingVerdict::Guarded) => Verdict::Suspect,
            None if walk.dropped => Verdict::Torn,
            None => Verdict::Clean,
        };
    }

    /// A log goes from its beginning only once what lies there is covered by what comes later.
    fn look_for_missing(&mut self, logs: &Logs, first: &SegmentScan, walk: &Walk) {
        let newest = self.judgement.live.last().map(|last| last.header);
        let end = newest.map_or(Place::default(), |header| header.predecessor_end);
        // What covers it may be under way, or be what was found to be bad.
        let under_way = self.question.sealed_only && walk.end < end;
        if under_way || self.judgement.is_refused() {
            return;
        }
        for (group, from, last) in logs.missing() {
            let through = last.index;
            let meaning = format!(
                "entries {from} to {through} of group {group} are missing: no segment that is kept \
                 holds them"
            );
            let hit = Some((group, from, last.term));
            self.find(FindingVerdict::Rot, first.slot, 0, hit, meaning);
        }
    }

    /// A bad copy of a header, or one that is not there, is worth a word only if the header was durable;
    /// otherwise its write was torn. It is written again either way: a header with one copy is one bad block
    /// from hiding its segment.
    fn note_bad_copies(&mut self) {
        let live = self.judgement.live.clone();
        for Live { slot, header, .. } in live {
            let scan = self.scans.iter().find(|scan| scan.slot == slot);
            let Some(scan) = scan else {
                continue;
            };
            let bad = scan.bad_copies.iter().map(|copy| (*copy, "bad"));
            let missing = scan.missing_copies.iter().map(|copy| (*copy, "missing"));
            for (copy, state) in bad.chain(missing) {
                let first = Place {
                    segment: header.segment,
                    block: SLOT_HEADER_BLOCKS,
                };
                if first < self.judgement.mark {
                    let meaning = format!("one copy of the slot's header is {state}");
                    self.find(FindingVerdict::Healable, slot, copy, None, meaning);
                }
                self.judgement.bad_copies.push((slot, copy));
            }
        }
    }
}

fn footer_rows(group: &GroupScan) -> impl Iterator<Item = FooterRow> + '_ {
    let block = group.place().block;
    group.table.iter().filter_map(move |record| match record {
        Record::Entries(run) | Record::Rewrite(run) => Some(FooterRow {
            block,
            group: run.group,
            rewrite: matches!(record, Record::Rewrite(_)),
            first: run.prev.index.next(),
            last: run.last.index,
            last_term: run.last.term,
        }),
        _ => None,
    })
}
