//! A machine with storage of its own under the simulator: a good one, and some that forget what they should
//! keep.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use logdrive_raft::{GroupId, LogPosition, NodeId};
use logdrive_shard::{Batch, Durable, Fatal, SnapshotReader, StateMachine};
use logdrive_sim::oracle::Rule;
use logdrive_sim::{FailedSeed, MachineModel, conformance, run_seeds, tell_seed};

/// What a bank keeps of what it has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeps {
    /// Everything up to every eighth entry, at once.
    Everything,
    /// As that, but where it is after every entry.
    PlaceTooEarly,
    /// As that, but the balances after every entry.
    BalancesTooEarly,
    /// All but how many payments it has turned down.
    NoRejections,
}

/// Accounts with balances, kept in a file that is written every now and then.
struct Bank {
    keeps: Keeps,
    file: Arc<Mutex<Books>>,
    books: Books,
    shown: Arc<Mutex<u64>>,
    lives: Arc<Lives>,
}

#[derive(Clone, Debug, Default)]
struct Books {
    at: LogPosition,
    balances: BTreeMap<u8, u64>,
    rejections: u64,
}

/// What a run has put the banks through.
#[derive(Debug, Default)]
struct Lives {
    /// Banks that were opened and had something.
    resumed: AtomicU64,
    /// Entries that were applied and not kept.
    lost: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Balance(u64),
    /// The balance does not cover it. So many payments have been turned down so far.
    Rejected(u64),
    Malformed,
}

impl StateMachine for Bank {
    type Output = Answer;
    type Reader = Arc<Mutex<u64>>;
    type Snapshot = Vec<u8>;

    fn open(&mut self) -> Result<Durable, Fatal> {
        self.books = self.file.lock().unwrap().clone();
        let resumed = self.books.at.index.0 > 0;
        self.lives
            .resumed
            .fetch_add(u64::from(resumed), Ordering::Relaxed);
        self.show();
        Ok(self.books.at.into())
    }

    fn apply(&mut self, batch: Batch<'_>, outputs: &mut Vec<Answer>) -> Result<(), Fatal> {
        for (_, payload) in batch.proposals() {
            outputs.push(self.books.carry_out(payload));
        }
        self.books.at = batch.position();
        self.keep();
        self.show();
        Ok(())
    }

    fn reader(&self) -> Arc<Mutex<u64>> {
        Arc::clone(&self.shown)
    }

    fn flush(&mut self) -> Result<Option<Durable>, Fatal> {
        *self.file.lock().unwrap() = self.books.clone();
        Ok(Some(self.books.at.into()))
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Fatal> {
        Ok(self.books.to_bytes())
    }

    fn install(&mut self, snapshot: &mut dyn SnapshotReader) -> Result<(), Fatal> {
        let mut books = Books::from_bytes(&snapshot.read_all(BOOKS_BYTES_MAX)?)?;
        books.at = snapshot.position();
        *self.file.lock().unwrap() = books.clone();
        self.books = books;
        self.show();
        Ok(())
    }
}

impl Bank {
    fn keep(&self) {
        let flush = self.books.at.index.0.is_multiple_of(8);
        let mut file = self.file.lock().unwrap();
        if flush || self.keeps == Keeps::PlaceTooEarly {
            file.at = self.books.at;
        }
        if flush || self.keeps == Keeps::BalancesTooEarly {
            file.balances = self.books.balances.clone();
        }
        if flush && self.keeps != Keeps::NoRejections {
            file.rejections = self.books.rejections;
        }
    }

    fn show(&self) {
        let mut digest = 0_u64;
        for (account, balance) in &self.books.balances {
            digest = (digest.rotate_left(9) ^ balance).wrapping_mul(u64::from(*account) * 2 + 1);
        }
        *self.shown.lock().unwrap() = digest;
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        let kept = self.file.lock().unwrap().at.index.0;
        let lost = self.books.at.index.0 - kept;
        self.lives.lost.fetch_add(lost, Ordering::Relaxed);
    }
}

/// How long the books of 256 accounts are.
const BOOKS_BYTES_MAX: u64 = 8 + 256 * 9;

impl Books {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.rejections.to_le_bytes().to_vec();
        for (account, balance) in &self.balances {
            bytes.push(*account);
            bytes.extend(balance.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Fatal> {
        let torn = || Fatal::new("these are no books");
        let (rejections, mut rest) = bytes.split_first_chunk().ok_or_else(torn)?;
        let mut books = Self {
            rejections: u64::from_le_bytes(*rejections),
            ..Self::default()
        };
        while let Some((account, after)) = rest.split_first() {
            let (balance, after) = after.split_first_chunk().ok_or_else(torn)?;
            books
                .balances
                .insert(*account, u64::from_le_bytes(*balance));
            rest = after;
        }
        Ok(books)
    }

    /// A payment: an account, whether it comes or goes, and how much.
    fn carry_out(&mut self, payload: &[u8]) -> Answer {
        let [account, goes, amount, ..] = *payload else {
            return Answer::Malformed;
        };
        let balance = self.balances.entry(account).or_default();
        let after = if goes % 2 == 0 {
            balance.checked_add(amount.into())
        } else {
            balance.checked_sub(amount.into())
        };
        match after {
            Some(after) => {
                *balance = after;
                Answer::Balance(after)
            }
            None => {
                self.rejections += 1;
                Answer::Rejected(self.rejections)
            }
        }
    }
}

fn bank(keeps: Keeps, lives: &Arc<Lives>) -> MachineModel<Bank> {
    let lives = Arc::clone(lives);
    let mut files: BTreeMap<(NodeId, GroupId), Arc<Mutex<Books>>> = BTreeMap::new();
    MachineModel::new(
        move |node, group| Bank {
            keeps,
            file: Arc::clone(files.entry((node, group)).or_default()),
            books: Books::default(),
            shown: Arc::default(),
            lives: Arc::clone(&lives),
        },
        |request, random| {
            let mut payload = vec![random.u8(0..16), random.u8(0..2), random.u8(..)];
            payload.extend(request.id.to_le_bytes());
            payload.resize(payload.len() + request.bytes, 0);
            payload
        },
        |shown| *shown.lock().unwrap(),
    )
}

fn fails(keeps: Keeps, seeds: u64) -> FailedSeed {
    let lives = Arc::default();
    run_seeds(1..=seeds, || bank(keeps, &lives)).unwrap_err()
}

#[test]
fn a_bank_that_keeps_its_books_survives_every_crash() {
    let lives: Arc<Lives> = Arc::default();
    conformance::assert_conforms(|| bank(Keeps::Everything, &lives).with_equal_snapshots());
    let sum = run_seeds(1..=24, || bank(Keeps::Everything, &lives)).unwrap();
    assert!(sum.acked > 24 * 100, "{}", sum.acked);
    assert!(sum.crashes > 24, "{}", sum.crashes);
    let resumed = lives.resumed.load(Ordering::Relaxed);
    assert!(resumed > 24, "{resumed} banks went on from their books");
    let lost = lives.lost.load(Ordering::Relaxed);
    assert!(lost > 24, "{lost} entries had to be applied again");
}

#[test]
fn a_place_that_is_kept_before_the_effects_is_found() {
    let failed = fails(Keeps::PlaceTooEarly, 10).failed;
    assert_eq!(failed.violation.rule, Rule::Convergence);
    let text = failed.violation.text;
    assert!(text.contains("opens on node"), "{text}");
}

#[test]
fn effects_that_are_kept_before_the_place_are_found() {
    let failed = fails(Keeps::BalancesTooEarly, 10).failed;
    assert_eq!(failed.violation.rule, Rule::Convergence);
}

/// The digest does not know of the rejections, so nothing but the answers shows what is missing.
#[test]
fn answers_that_a_restart_changes_are_found() {
    let failed = fails(Keeps::NoRejections, 10).failed;
    assert_eq!(failed.violation.rule, Rule::Convergence);
    let text = failed.violation.text;
    assert!(text.contains("answers entry"), "{text}");
    assert!(text.contains("Rejected("), "{text}");
}

#[test]
fn a_seed_that_failed_fails_again_and_says_how_to_see_it() {
    let failed = fails(Keeps::PlaceTooEarly, 10);
    let seed = failed.seed;
    let lives = Arc::default();
    let model = || bank(Keeps::PlaceTooEarly, &lives);
    assert_eq!(run_seeds([seed], model).unwrap_err(), failed);
    let mut told = Vec::new();
    let again = tell_seed(seed, model(), |at, what| told.push((at, what.to_owned())));
    assert_eq!(again.unwrap_err(), failed);
    assert!(told.iter().any(|(_, what)| what.contains("starts")));
    let text = failed.to_string();
    assert!(text.starts_with(&format!("seed {seed}: convergence: the machine of group")));
    assert!(text.contains(&format!("replay it with run_seeds([{seed}], ..)")));
    assert!(text.contains(&format!("tell_seed({seed}, model, |at, what|")));
}

/// Nothing of one run reaches the next.
#[test]
fn the_same_seeds_see_the_same_things() {
    let lives = Arc::default();
    let once = run_seeds(30..33, || bank(Keeps::Everything, &lives)).unwrap();
    let again = run_seeds(30..33, || bank(Keeps::Everything, &lives)).unwrap();
    assert_eq!(once, again);
}
