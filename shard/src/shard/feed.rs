//! Entries for the applier and for followers that lag: from memory, or read back from the log.

use logdrive_raft::io::{Input, ReadLog, Role};
use logdrive_raft::message::Wanted;
use logdrive_raft::{GroupId, Index, Micros, NodeId, mutated};
use logdrive_wal::disk::Disk;
use logdrive_wal::{ReadDone, ReadError, ReadRequest};

use super::Shard;
use crate::apply::ApplyBatch;
use crate::group::{Group, Halt, Phase, ReadTrouble};
use crate::ports::{Notice, Ports};
use crate::ticket::Runs;

/// Entries handed to the applier at once are cut here, so that its queue moves evenly.
const APPLY_BATCH_BYTES_MAX: usize = 1 << 20;

/// Who wanted entries from the log.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadFor {
    Peer {
        group: GroupId,
        peer: NodeId,
        from: Index,
        began: Micros,
    },
    Apply {
        group: GroupId,
        from: Index,
    },
    /// A peer that cannot read them any more.
    Repair {
        group: GroupId,
        peer: NodeId,
        wanted: Wanted,
    },
}

impl<D: Disk, P: Ports> Shard<D, P> {
    /// Reads for followers whatever the pace allows.
    pub(super) fn feed(&mut self, now: Micros) {
        while let Some((group, read)) = self.feed_pace.next(now) {
            self.read_for_peer(now, group, read);
        }
    }

    fn read_for_peer(&mut self, now: Micros, id: GroupId, read: ReadLog) {
        let request = ReadRequest {
            id: self.next_read,
            group: id,
            from: read.from,
            through: read.through,
            bytes_max: read.bytes_max,
        };
        if self.wal.read(request).is_ok() {
            let wanted = ReadFor::Peer {
                group: id,
                peer: read.peer,
                from: read.from,
                began: now,
            };
            self.reads.insert(self.next_read, wanted);
            self.next_read += 1;
            return;
        }
        self.was_read(0, now);
        let group = self.groups.get_mut(&id).expect("groups stay");
        let nothing = Input::Read {
            peer: read.peer,
            from: read.from,
            entries: Vec::new(),
        };
        group.step(now, nothing);
    }

    /// A read for a follower has ended.
    fn was_read(&mut self, bytes: u64, began: Micros) {
        let leads = |group: &&Group<P::Output>| matches!(&group.phase, Phase::Running(raft) if raft.role() == Role::Leader);
        let led = self.groups.values().filter(leads);
        let load = led.map(|group| group.snapshots.growth_per_s()).sum();
        let rate = self.snapshot_settings.catch_up_bytes_per_s;
        self.feed_pace.on_read(bytes, began, rate, load);
    }

    pub(super) fn take_reads(&mut self, now: Micros) {
        for ReadDone { id, result } in self.wal.take_reads() {
            let wanted = self.reads.remove(&id).expect("every read has an owner");
            match wanted {
                ReadFor::Peer {
                    group,
                    peer,
                    from,
                    began,
                } => {
                    if let Err(error) = &result {
                        self.feeding_failed(group, from, error);
                    }
                    let entries = result.unwrap_or_default();
                    let bytes = entries.iter().map(|entry| entry.frame().len() as u64);
                    self.was_read(bytes.sum(), began);
                    if let Some(group) = self.groups.get_mut(&group) {
                        if group.feeding_works(from, &entries) {
                            self.ports.notice(Notice::ReadWorks { group: group.id });
                        }
                        group.step(
                            now,
                            Input::Read {
                                peer,
                                from,
                                entries,
                            },
                        );
                    }
                }
                ReadFor::Repair {
                    group,
                    peer,
                    wanted,
                } => self.on_read_for_repair(group, peer, wanted, result),
                ReadFor::Apply { group: id, from } => {
                    let Some(group) = self.groups.get_mut(&id) else {
                        continue;
                    };
                    group.reading = false;
                    match result {
                        Ok(entries) => {
                            if group.reading_works() {
                                self.ports.notice(Notice::ReadWorks { group: id });
                            }
                            if from == group.handed.next() {
                                group.read_back.extend(entries);
                            }
                        }
                        Err(error) => {
                            if mutated!(group.mutant, UnreadableSkipped) {
                                let passed_over = group.handed.next();
                                group.tickets.retain(|ticket| ticket.index != passed_over);
                                group.handed = passed_over;
                            }
                            if group.read_failed(now) {
                                let reason = error.to_string();
                                self.ports.notice(Notice::ReadFailed {
                                    group: id,
                                    from,
                                    reason,
                                });
                            }
                        }
                    }
                }
            }
        }
    }

    /// A follower asks again with every heartbeat, so this is said once.
    fn feeding_failed(&mut self, id: GroupId, from: Index, error: &ReadError) {
        // The log was cut meanwhile, and the core will ask for what is there now.
        if *error == ReadError::OffPath {
            return;
        }
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let hit = match error {
            ReadError::Rot(finding) => finding.index,
            _ => None,
        };
        let hit = Some(hit.unwrap_or(from));
        // Only further on: two followers that wait at different places must not take turns at being news.
        if group.feed_trouble < hit {
            group.feed_trouble = hit;
            self.ports.notice(Notice::ReadFailed {
                group: id,
                from,
                reason: error.to_string(),
            });
        }
    }

    /// Hands what is committed to the applier, from memory or read back from the log.
    pub(super) fn hand_to_applier(&mut self, now: Micros) {
        for group in self.groups.values_mut() {
            if let Err(why) = group.check_machine() {
                let id = group.id;
                if let Halt::MachineDiffers { machine, log } = &why {
                    let (machine, log) = (*machine, *log);
                    self.ports.notice(Notice::MachineDiffers {
                        group: id,
                        machine,
                        log,
                    });
                }
                group.halt(why);
            }
            // A group that has halted applies nothing more.
            let Phase::Running(raft) = &group.phase else {
                continue;
            };
            // Nor does one whose machine waits for a snapshot.
            if group.handed < raft.base().index || group.snapshots.installing.is_some() {
                group.look_later(now);
                continue;
            }
            let commit = if mutated!(self.core.mutant, ApplyBeyondCommit) {
                raft.last()
            } else {
                raft.commit()
            };
            let has_room = |ports: &P| {
                ports.apply_room_bytes() > 0 || mutated!(self.core.mutant, ApplyQueueUnbounded)
            };
            while group.handed < commit.index && has_room(&self.ports) {
                let batch = next_batch(group, commit.index);
                if batch.entries.is_empty() {
                    break;
                }
                self.ports.apply(batch);
            }
            let behind = group.handed < commit.index && has_room(&self.ports);
            if group.handed == commit.index && group.reading_works() {
                self.ports.notice(Notice::ReadWorks { group: group.id });
            }
            let pauses = |trouble: ReadTrouble| now < trouble.retry_at;
            if group.reading || group.read_trouble.is_some_and(pauses) {
                continue;
            }
            if !behind {
                group.look_later(now);
                continue;
            }
            let from = group.handed.next();
            let request = ReadRequest {
                id: self.next_read,
                group: group.id,
                from,
                through: commit.index,
                bytes_max: APPLY_BATCH_BYTES_MAX,
            };
            if self.wal.read(request).is_ok() {
                self.reads.insert(
                    self.next_read,
                    ReadFor::Apply {
                        group: group.id,
                        from,
                    },
                );
                self.next_read += 1;
                group.reading = true;
            } else {
                group.look_later(now);
            }
        }
    }
}

/// The next committed entries of a group that are at hand, at most so many bytes of them.
fn next_batch<O>(group: &mut Group<O>, through: Index) -> ApplyBatch<O> {
    let mut batch = ApplyBatch {
        group: group.id,
        entries: Vec::new(),
        bytes: 0,
        appended: None,
    };
    while group.handed < through && batch.bytes < APPLY_BATCH_BYTES_MAX {
        let index = group.handed.next();
        let cached = group.raft().and_then(|raft| raft.entry(index)).cloned();
        // What was read back may have been overtaken by what is in memory.
        while group
            .read_back
            .front()
            .is_some_and(|entry| entry.index() < index)
        {
            group.read_back.pop_front();
        }
        let read_back = group
            .read_back
            .front()
            .filter(|entry| entry.index() == index)
            .cloned();
        let Some(entry) = cached.or(read_back) else {
            break;
        };
        let ticket = group.ticket_of(&entry);
        batch.appended = batch
            .appended
            .or(ticket.as_ref().map(|ticket| ticket.appended));
        batch.bytes += entry.frame().len();
        batch
            .entries
            .push((entry, ticket.map_or_else(Runs::new, |ticket| ticket.runs)));
        group.handed = index;
    }
    batch
}
