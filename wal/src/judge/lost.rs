//! What bad flush groups below the mark held, as far as somebody tells: they do so themselves where only their frames are
//! bad, and the next one repeats the table of the one before.
//!
//! Such a group is applied like a good one, only that the frames of its entries are missing. Whether that matters shows at
//! the end of the log: what was cut since, lies below a base, or was no entry at all, nobody misses.

use std::collections::BTreeMap;

use logdrive_raft::Chain;

use crate::format::{BLOCK_DATA_BYTES, Place, Record};
use crate::scan::{Bad, GroupScan, Told};

/// A flush group whose frames cannot be read.
pub(super) struct Lost<'a> {
    /// Where it lies, or what lies bad before it.
    pub(super) place: Place,
    /// Its table; of some records only that they were there.
    pub(super) records: &'a [Record],
}

/// What lies between two good flush groups, of which the first has this number and chain. Fails with the reason if one of
/// those between is told nowhere.
pub(super) fn lost_between<'a>(
    (number, chain): (u64, Chain),
    bad: &[&'a Bad],
    after: &'a GroupScan,
) -> Result<Vec<Lost<'a>>, String> {
    let mut told: BTreeMap<u64, (Place, &Told)> = BTreeMap::new();
    for bad in bad {
        for one in &bad.told {
            let place = Place {
                segment: bad.at.segment,
                block: one.block,
            };
            if told.insert(one.number, (place, one)).is_some() {
                return Err(format!("flush group {} is there twice", one.number));
            }
        }
    }
    let between = after.header.number.saturating_sub(number + 1);
    // Of two that follow each other one tells of both.
    if between == 0 || between > 2 * told.len() as u64 + 1 {
        return Err(format!(
            "of {between} flush groups that should lie here {} can be read in part",
            told.len()
        ));
    }
    let chain_of = |number: u64| told.get(&number).map(|(_, told)| told.chain);
    let mut lost = Vec::new();
    let mut chain = Some(chain);
    let mut place = bad.first().map_or(Place::default(), |bad| bad.at);
    for number in number + 1..after.header.number {
        let own = told.get(&number);
        let echo = match told.get(&(number + 1)) {
            Some((_, next)) => Some(&next.echo[..]),
            None if number + 1 == after.header.number => Some(&after.echo[..]),
            None => None,
        };
        if let Some((at, own)) = own {
            if chain.is_some_and(|chain| chain != own.previous) {
                return Err("a flush group does not follow the one before".to_owned());
            }
            place = *at;
        }
        let records = own.map(|(_, own)| &own.table[..]).or(echo);
        let records = records.ok_or_else(|| format!("nothing tells of flush group {number}"))?;
        lost.push(Lost { place, records });
        chain = chain_of(number);
    }
    if chain.is_some_and(|chain| chain != after.header.previous) {
        return Err("a flush group does not follow the one before".to_owned());
    }
    check_sizes(&lost, bad)?;
    Ok(lost)
}

/// What is told is believed as far as it fits in where it lay.
fn check_sizes(lost: &[Lost<'_>], bad: &[&Bad]) -> Result<(), String> {
    let records = lost.iter().flat_map(|lost| lost.records);
    let bytes = records.map(|record| match record {
        Record::Entries(run) | Record::Rewrite(run) => u64::from(run.bytes),
        _ => 0,
    });
    let blocks = bad.iter().map(|bad| u64::from(bad.end - bad.at.block));
    let room = blocks.sum::<u64>() * BLOCK_DATA_BYTES as u64;
    if bytes.sum::<u64>() > room {
        return Err(format!("more entries are told of than {room} bytes hold"));
    }
    Ok(())
}
