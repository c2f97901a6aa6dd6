//! Whether a history is one that a correct cluster can have.
//!
//! Three checks that fail apart from each other: where observed values come from (nothing is invented), the
//! log as witness (all that clients were told agrees with one order, which the log is), and a search that
//! knows nothing of the log and looks for any order that explains the answers of a key.

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
pub use self::search::{Limits, Searched, Verdict, check_search, search_key};
pub use self::value::{PIECE_BYTES_MIN, Value, piece_bytes};
pub use self::violation::{Rule, Violation};
pub use self::witness::{Committed, Logs, check_witness};
