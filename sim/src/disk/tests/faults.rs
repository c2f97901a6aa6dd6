use super::*;

fn is_lost(rig: &Rig, block: u32) -> bool {
    durable(&rig.medium, block) == Some(0)
}

#[test]
fn injected_faults_happen_once_each_and_are_counted() {
    let mut rig = Rig::new(1);
    rig.medium.inject(Fault::ShortWrite);
    rig.medium.inject(Fault::FlushError);
    assert_eq!(rig.write(0, &[1], false).unwrap(), 0);
    assert!(rig.flush().is_err());
    assert_eq!(rig.write(0, &[1], false).unwrap(), 4096);
    rig.flush().unwrap();
    let counts = rig.medium.counts();
    assert_eq!((counts.short_writes, counts.flush_errors), (1, 1));
    let all: u64 = counts.named().iter().map(|(_, count)| count).sum();
    assert_eq!(all, 2);
    assert_eq!(rig.medium.completions(), 5);
}

#[test]
fn a_write_that_fails_may_have_reached_the_medium_in_part() {
    let mut parts = [0; 4];
    for seed in 0..64 {
        let mut rig = Rig::new(seed);
        rig.medium.inject(Fault::WriteError);
        assert!(rig.write(0, &[1; 3], true).is_err());
        let bytes = bytes_of(&rig.medium, SLOT);
        parts[bytes.iter().filter(|byte| **byte == 1).count()] += 1;
        assert!(is_lost(&rig, 0));
    }
    assert!(parts.iter().all(|count| *count > 0), "{parts:?}");
}

#[test]
fn reads_fail_or_end_early() {
    let mut rig = Rig::new(1);
    rig.write(0, &[1, 2, 3], true).unwrap();
    rig.medium.inject(Fault::ReadError);
    assert!(rig.read(3).0.is_err());
    rig.medium.inject(Fault::ShortRead);
    assert!(rig.read(3).0.unwrap() < 3 * 4096);
    let (whole, bytes) = rig.read(3);
    assert_eq!((whole.unwrap(), bytes), (3 * 4096, vec![1, 2, 3]));
    for fault in [Fault::ReadError, Fault::ShortRead] {
        rig.medium.inject(fault);
        assert!(rig.disk.read(SLOT, 0, &mut [Block::ZERO; 3]).is_err());
    }
}

#[test]
fn a_page_cache_forgets_what_a_failed_flush_owed() {
    let mut rig = Rig::buffered(1);
    rig.write(0, &[1], false).unwrap();
    rig.medium.inject(Fault::FlushError);
    assert!(rig.flush().is_err());
    rig.flush().unwrap();
    // It reads well, and a power cut may take it.
    assert_eq!(bytes_of(&rig.medium, SLOT)[0], 1);
    assert!(is_lost(&rig, 0));
    // Written again it is owed again.
    rig.write(0, &[2], false).unwrap();
    rig.flush().unwrap();
    assert_eq!(durable(&rig.medium, 0), Some(2));
}

#[test]
fn a_page_cache_that_forgot_does_not_remember_when_the_block_is_written_again() {
    let mut rig = Rig::buffered(1);
    rig.write(0, &[1], false).unwrap();
    rig.medium.inject(Fault::FlushError);
    assert!(rig.flush().is_err());
    rig.disk.options_mut().flush_us = (1000, 1000);
    rig.submit(Op::Flush { slot: SLOT });
    rig.begin_write(0, &[2], false);
    rig.finish();
    assert!(is_lost(&rig, 0));
}

#[test]
fn without_a_page_cache_the_next_flush_makes_good_for_one_that_failed() {
    let mut rig = Rig::new(1);
    rig.write(0, &[1], false).unwrap();
    rig.medium.inject(Fault::FlushError);
    assert!(rig.flush().is_err());
    assert!(is_lost(&rig, 0));
    rig.flush().unwrap();
    assert_eq!(durable(&rig.medium, 0), Some(1));
}

#[test]
fn a_flush_that_fails_may_bring_the_old_bytes_back() {
    let mut rig = Rig::buffered(1);
    rig.write(0, &[1], true).unwrap();
    rig.write(0, &[2], false).unwrap();
    rig.medium.inject(Fault::FlushReverts);
    assert!(rig.flush().is_err());
    assert_eq!(bytes_of(&rig.medium, SLOT)[0], 1);
    assert_eq!(durable(&rig.medium, 0), Some(1));
    assert_eq!(rig.medium.counts().flush_reverts, 1);
}

#[test]
fn an_error_may_be_told_to_the_flush_after_the_one_that_failed() {
    let mut rig = Rig::buffered(1);
    rig.write(0, &[1], false).unwrap();
    rig.medium.inject(Fault::FlushErrorLate);
    rig.flush().unwrap();
    assert!(is_lost(&rig, 0));
    assert!(rig.flush().is_err());
    rig.flush().unwrap();
    assert_eq!(bytes_of(&rig.medium, SLOT)[0], 1);
    assert!(is_lost(&rig, 0));
    assert!(!Fault::FlushErrorLate.is_within_limit());
}

#[test]
fn a_flush_may_lie() {
    let mut rig = Rig::new(1);
    for dsync in [false, true] {
        rig.medium.inject(Fault::LyingFlush);
        rig.write(0, &[1], dsync).unwrap();
        if !dsync {
            rig.flush().unwrap();
        }
        assert_eq!(bytes_of(&rig.medium, SLOT)[0], 1);
        assert!(is_lost(&rig, 0), "dsync {dsync}");
    }
    assert_eq!(rig.medium.counts().lying_flushes, 2);
}

#[test]
fn a_write_may_be_lost_or_land_somewhere_else() {
    let mut rig = Rig::new(1);
    rig.medium.inject(Fault::LostWrite);
    assert_eq!(rig.write(0, &[1], true).unwrap(), 4096);
    assert_eq!(bytes_of(&rig.medium, SLOT), [0; 8]);

    let mut places = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let mut rig = Rig::new(seed);
        rig.disk.create(OTHER, 8).unwrap();
        rig.medium.inject(Fault::MisdirectedWrite);
        assert_eq!(rig.write(0, &[1], true).unwrap(), 4096);
        let left = rig.medium.flushed_only();
        for slot in [SLOT, OTHER] {
            let hit = bytes_of(&left, slot).iter().position(|byte| *byte == 1);
            places.extend(hit.map(|block| (slot, block)));
        }
    }
    assert!(places.len() > 12, "{places:?}");
}

#[test]
fn an_operation_may_stall() {
    let mut rig = Rig::new(1);
    rig.medium.inject(Fault::Stall);
    rig.begin_write(0, &[1], true);
    assert!(rig.disk.next_due().unwrap() >= 10_000);
    rig.finish().pop().unwrap().unwrap();
    assert_eq!(durable(&rig.medium, 0), Some(1));
    assert_eq!(rig.medium.counts().stalls, 1);
}

#[test]
fn a_medium_has_room_for_what_it_was_given_and_no_more() {
    let mut rig = Rig::new(1);
    rig.medium.set_capacity(Some(12 * 4096));
    let create = |blocks| Op::Create {
        slot: OTHER,
        blocks,
    };
    rig.submit(create(5));
    assert_eq!(
        rig.finish().pop().unwrap().unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    rig.submit(create(4));
    rig.finish().pop().unwrap().unwrap();
    let zero = |blocks| Op::Zero {
        slot: OTHER,
        block: 0,
        blocks,
    };
    rig.submit(zero(4));
    rig.finish().pop().unwrap().unwrap();
    rig.submit(zero(5));
    assert!(rig.finish().pop().unwrap().is_err());
    rig.medium.set_capacity(None);
    rig.submit(zero(5));
    rig.finish().pop().unwrap().unwrap();
    assert_eq!(rig.medium.counts().no_space, 2);
}

/// Every fault happens by its rate, and can be injected, to some operation.
#[test]
fn every_fault_has_a_rate_and_an_operation() {
    let all = 1_000_000;
    let kinds = [
        Kind::Write,
        Kind::WriteDsync,
        Kind::Zero,
        Kind::Read,
        Kind::Flush,
        Kind::Create,
    ];
    let set = |fault| {
        let mut rates = FaultRates::default();
        *match fault {
            Fault::WriteError => &mut rates.write_error_ppm,
            Fault::ShortWrite => &mut rates.short_write_ppm,
            Fault::NoSpace => &mut rates.no_space_ppm,
            Fault::FlushError => &mut rates.flush_error_ppm,
            Fault::FlushReverts => &mut rates.flush_reverts_ppm,
            Fault::FlushErrorLate => &mut rates.flush_error_late_ppm,
            Fault::ReadError => &mut rates.read_error_ppm,
            Fault::ShortRead => &mut rates.short_read_ppm,
            Fault::Stall => &mut rates.stall_ppm,
            Fault::LyingFlush => &mut rates.lying_flush_ppm,
            Fault::LostWrite => &mut rates.lost_write_ppm,
            Fault::MisdirectedWrite => &mut rates.misdirected_write_ppm,
        } = all;
        rates
    };
    let medium = SimStorage::new(Dice::drawn(SITE, 1));
    for fault in Fault::ALL {
        let drawn: Vec<Fault> = kinds
            .iter()
            .filter_map(|kind| medium.lock().draw_fault(&set(fault), *kind))
            .collect();
        assert!(!drawn.is_empty() && drawn.iter().all(|drawn| *drawn == fault));
        let concerned = kinds.iter().filter(|kind| fault.concerns(**kind));
        assert_eq!(drawn.len(), concerned.count());
    }
}
