//! The behaviour of SQS, and the differences of the test servers.

/// The answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Ok,
    NotInFlight,
    AtCeiling,
    Refused,
    Transient,
}

/// The behaviours in which servers differ.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent observation")]
pub struct Behaviour {
    /// A ChangeMessageVisibility after the message's timeout, before the next receive.
    pub late_extension: Answer,
    pub late_extension_hides_again: bool,
    pub late_extension_in_fifo: Answer,
    /// One with the handle of an earlier receive.
    pub superseded_extension: Answer,
    pub superseded_extension_extends: bool,
    /// One for more than 12 hours.
    pub extension_over_ceiling: Answer,
    /// One past 12 hours from the receive.
    pub extension_past_ceiling: Answer,
    /// One within 12 hours from the receive, but past 12 hours from the send.
    pub extension_of_an_old_message: Answer,
    pub repeated_delete: Answer,
    pub superseded_delete: Answer,
    pub superseded_delete_deletes: bool,
    /// A delete after the message's timeout, before the next receive.
    pub late_delete_in_fifo: Answer,
    pub late_delete_in_fifo_deletes: bool,
}

/// SQS, as recorded or documented; `memory.rs` names the sources and the disputed points.
pub const SQS: Behaviour = Behaviour {
    late_extension: Answer::Ok,
    late_extension_hides_again: false,
    late_extension_in_fifo: Answer::NotInFlight,
    superseded_extension: Answer::Ok,
    superseded_extension_extends: false,
    extension_over_ceiling: Answer::AtCeiling,
    extension_past_ceiling: Answer::AtCeiling,
    extension_of_an_old_message: Answer::Ok,
    repeated_delete: Answer::Ok,
    superseded_delete: Answer::Ok,
    superseded_delete_deletes: false,
    late_delete_in_fifo: Answer::Refused,
    late_delete_in_fifo_deletes: false,
};

/// ministack 1.5.33: more lenient than SQS about time, stricter about old handles.
pub const MINISTACK: Behaviour = Behaviour {
    late_extension_hides_again: true,
    late_extension_in_fifo: Answer::Ok,
    superseded_extension: Answer::NotInFlight,
    extension_over_ceiling: Answer::Ok,
    extension_past_ceiling: Answer::Ok,
    repeated_delete: Answer::Refused,
    superseded_delete: Answer::Refused,
    late_delete_in_fifo: Answer::Ok,
    late_delete_in_fifo_deletes: true,
    ..SQS
};

/// moto 5.2.5: more lenient than SQS about time and about old handles, which stay fully valid; and
/// it counts the 12 hours from the send.
pub const MOTO: Behaviour = Behaviour {
    late_extension_hides_again: true,
    late_extension_in_fifo: Answer::Ok,
    superseded_extension_extends: true,
    // moto has its own error for this, which SQS does not have.
    extension_over_ceiling: Answer::Transient,
    extension_of_an_old_message: Answer::AtCeiling,
    superseded_delete_deletes: true,
    late_delete_in_fifo: Answer::Ok,
    late_delete_in_fifo_deletes: true,
    ..SQS
};
