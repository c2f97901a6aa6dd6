//! Whether a history is one that a correct cluster can have.
//!
//! Three checks that fail apart from each other: where observed values come from (nothing is invented), the
//! log as witness (all that clients were told agrees with one order, which the log is), and a search that
//! knows nothing of the log and looks for any order that explains the answers of a key.
//!
//! ```
//! use logdrive_raft::{GroupId, Index};
//! use logdrive_shard::kv::{Op, Origin, Reply};
//! use logdrive_sim::check::{
//!     Committed, History, Limits, Logs, Place, Rule, check, piece_bytes,
//! };
//!
//! let group = GroupId(1);
//! let mut history = History::new(1 << 20);
//! let (one, two) = (Origin { client: 1, sequence: 1 }, Origin { client: 2, sequence: 1 });
//! let value = piece_bytes(one, 100);
//! let put = history.invoke(10, group, 7, one, Op::Put(&value));
//! let at = |index| Place { index: Index(index), slot: 0 };
//! history.replied(20, put, Reply::Done, at(1));
//! let get = history.invoke(30, group, 7, two, Op::Get);
//! history.replied(40, get, Reply::Absent, at(2));
//! let log = [(one, at(1)), (two, at(2))].map(|(origin, place)| Committed { place, origin });
//! let logs = Logs::from([(group, log.to_vec())]);
//! let violation = check(&history, &logs, &Limits::default()).unwrap_err();
//! assert_eq!(violation.rule, Rule::Answer);
//! assert_eq!(
//!     violation.to_string(),
//!     "wrong answer: group 1: the log says the value of client 1 #1: \
//!      client 2 #1 get key 7 = absent at 2.0 [30..40 us]"
//! );
//! ```

mod history;
mod model;
mod phantom;
mod search;
mod table;
mod value;
mod violation;
mod witness;
mod words;

pub use self::history::{Answer, Call, History, Operation, OperationId, Outcome, Place};
pub use self::phantom::check_phantoms;
pub use self::search::{Limits, Searched, Verdict, check_search, search_key, search_keys};
pub use self::value::{PIECE_BYTES_MIN, Value, piece_bytes};
pub use self::violation::{Rule, Violation};
pub use self::witness::{Committed, Logs, check_witness};

/// All three checks. The ones that say most about what went wrong come first.
///
/// # Errors
///
/// The first promise that was found broken, or [`Rule::Searched`] if the search of a key did not end.
pub fn check(history: &History, logs: &Logs, limits: &Limits) -> Result<Searched, Violation> {
    check_phantoms(history)?;
    check_witness(history, logs)?;
    check_search(history, limits)
}
