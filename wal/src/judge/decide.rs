//! Applies what counts, and says what it comes to.

use logdrive_raft::Chain;

use crate::disk::Disk;
use crate::error::FindingVerdict;
use crate::format::{FooterRow, Place, Record, SLOT_HEADER_BLOCKS};
use crate::scan::{Bad, GroupScan, Piece, SegmentScan};

use super::court::Court;
use super::logs::Logs;
use super::lost::lost_between;
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
        // Of what is bad below the mark, and why it cannot be done without.
        let rotten = std::mem::take(&mut self.rotten);
        let mut between: Vec<(&SegmentScan, &Bad)> = Vec::new();
        let mut lost_for_good: Option<String> = None;
        for (number, segment) in segments.iter().enumerate() {
            for piece in &segment.pieces {
                for records in piece.records() {
                    logs.note(records);
                }
                let group = match piece {
                    Piece::Group(group) => group,
                    Piece::Bad(bad) => {
                        if !rotten.is_empty() && bad.at < mark {
                            between.push((segment, bad));
                        }
                        continue;
                    }
                };
                if group.place() >= walk.end {
                    continue;
                }
                let beyond = split && group.place() >= mark;
                if !between.is_empty() {
                    let before = (applied.segments > 0).then_some((applied.number, applied.chain));
                    let between = std::mem::take(&mut between);
                    let told = if beyond {
                        Err("what tells of it may be in the page cache only".to_owned())
                    } else {
                        apply_lost(&mut logs, mark, before, &between, group)
                    };
                    if let Err(why) = told {
                        lost_for_good.get_or_insert(why);
                    }
                }
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
        if !between.is_empty() {
            lost_for_good.get_or_insert_with(|| "nothing good lies behind it".to_owned());
        }
        self.judgement.last_table = table.to_vec();
        let noted = logs.hard_states();
        let all = whole.as_mut().unwrap_or(&mut logs);
        self.judge_rotten(&segments, rotten, lost_for_good, all);
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
        // Nobody goes on behind something bad: the seal repeats what cannot be read.
        let is_sound = |live: &Live| !judgement.mended.contains(&live.slot);
        let all_sound = judgement.live.iter().all(is_sound);
        let end_sound = judgement.live.iter().rev().take(2).all(is_sound);
        judgement.stopped_cleanly = walk.quiet && !walk.dropped && all_sound;
        judgement.garbage_beyond = walk.garbage_beyond;
        judgement.last_unused = walk.unused && end_sound;
        let worst = judgement.findings.iter().map(|finding| finding.verdict);
        let harmless = [FindingVerdict::Healable, FindingVerdict::Mended];
        judgement.verdict = match worst.filter(|verdict| !harmless.contains(verdict)).min() {
            Some(FindingVerdict::Suspect | FindingVerdict::Guarded) => Verdict::Suspect,
            Some(_) => Verdict::Rot,
            None if walk.dropped => Verdict::Torn,
            None => Verdict::Clean,
        };
    }

    /// What is bad below the mark, and whether anybody misses it.
    fn judge_rotten(
        &mut self,
        segments: &[SegmentScan],
        rotten: Vec<(usize, Bad)>,
        lost_for_good: Option<String>,
        logs: &mut Logs,
    ) {
        let Some((number, first)) = rotten.first() else {
            return;
        };
        let (slot, block) = (segments[*number].slot, first.block);
        let lost_for_good = lost_for_good.or_else(|| logs.lost_for_good());
        self.judgement.cuts = logs.cuts();
        let missing = logs.guard_missing();
        let is_missed = |at: Place| missing.iter().any(|(_, run)| run.segment == at.segment);
        for (number, bad) in &rotten {
            let segment = &segments[*number];
            let verdict = if lost_for_good.is_some() {
                FindingVerdict::Rot
            } else if is_missed(bad.at) {
                FindingVerdict::Holed
            } else {
                FindingVerdict::Mended
            };
            self.find_bad(verdict, segments, segment, bad);
            self.judgement.mended.insert(segment.slot);
            if bad.at.block == SLOT_HEADER_BLOCKS {
                self.judgement.headless.insert(bad.at.segment);
            }
        }
        if let Some(why) = lost_for_good {
            self.find(FindingVerdict::Rot, slot, block, None, why);
            return;
        }
        for (group, run) in missing {
            let hit = Some((group, run.first, run.last.term));
            self.find(FindingVerdict::Holed, slot, block, hit, run.to_string());
        }
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

/// Applies what lies bad between two good flush groups; fails with the reason if that is not known.
fn apply_lost(
    logs: &mut Logs,
    mark: Place,
    before: Option<(u64, Chain)>,
    between: &[(&SegmentScan, &Bad)],
    after: &GroupScan,
) -> Result<(), String> {
    if between.iter().any(|(_, bad)| mark < bad.end_place()) {
        return Err("it reaches beyond what is marked as durable".to_owned());
    }
    let before = before.ok_or("the log begins with it")?;
    if let Some((segment, bad)) = between.first()
        && bad.at.block == SLOT_HEADER_BLOCKS
        && segment.header.predecessor_chain != before.1
    {
        return Err("the segment that begins with it follows something else".to_owned());
    }
    let bad: Vec<&Bad> = between.iter().map(|(_, bad)| *bad).collect();
    for lost in lost_between(before, &bad, after)? {
        logs.apply_lost(&lost)
            .map_err(|misfit| misfit.to_string())?;
    }
    Ok(())
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
