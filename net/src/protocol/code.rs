//! What can go wrong with a request, as it travels.

/// What went wrong with a request. The number travels; the name is for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $constant:ident = $number:literal, $name:literal;)*) => {
        impl Code {
            $($(#[doc = $doc])* pub const $constant: Code = Code($number);)*

            /// A name that does not change.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self.0 {
                    $($number => $name,)*
                    _ => "unknown",
                }
            }
        }
    };
}

codes! {
    /// Somebody else leads, or nobody.
    NOT_LEADER = 1, "not_leader";
    /// As much as may be under way is under way.
    BUSY = 2, "busy";
    /// The write-ahead log has no room.
    STORAGE_FULL = 3, "storage_full";
    /// A payload is larger than one may be.
    TOO_LARGE = 4, "too_large";
    /// There is no such group here.
    UNKNOWN_GROUP = 5, "unknown_group";
    /// The group has halted.
    HALTED = 6, "halted";
    /// The node shuts down.
    SHUTTING_DOWN = 7, "shutting_down";
    /// The deadline came first.
    DEADLINE = 8, "deadline";
    /// The connection broke.
    CONNECTION_LOST = 9, "connection_lost";
    /// Leadership was lost while the proposal was under way.
    LEADERSHIP_LOST = 10, "leadership_lost";
    /// No server could be reached.
    UNREACHABLE = 11, "unreachable";
    /// The certificate does not allow it.
    FORBIDDEN = 12, "forbidden";
    /// The state machine's answer is larger than one may be.
    OUTPUT_TOO_LARGE = 13, "output_too_large";
    /// The node shut down before the proposal was applied.
    SHUT_DOWN_BEFORE_APPLY = 14, "shut_down_before_apply";
    /// The group halted before the proposal was applied.
    HALTED_BEFORE_APPLY = 15, "halted_before_apply";
    /// The engine ended without an answer.
    ABANDONED = 16, "abandoned";
    /// As many bytes of answers wait for this client as may.
    ANSWERS_FULL = 17, "answers_full";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            "unknown" => write!(f, "code {}", self.0),
            name => f.write_str(name),
        }
    }
}
