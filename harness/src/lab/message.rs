//! What a lab says to the host: a JSON object a line, on the second serial port.

use serde::{Deserialize, Serialize};

use super::Seen;
use crate::Verdict;
use crate::report::Page;

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// Linux has come up, and KVM with it.
    Ready,
    /// A guest is about to run.
    Begin(String),
    /// What came of it.
    Report(GuestReport),
    /// A line that a program has written.
    Line(String),
    /// The program has ended; whether it has succeeded.
    Exit(bool),
    /// Something that keeps guests from being run.
    Trouble(String),
    /// Nothing more comes.
    End,
}

/// What came of a guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuestReport {
    /// Its name.
    pub guest: String,
    /// What became of it.
    pub verdict: Verdict,
    /// What `memvirt run` prints of it.
    pub text: String,
    /// What KVM shows of its second level at the end.
    pub second_level: Seen,
    /// All that was found, if somebody wants a page of it.
    pub page: Option<Page>,
}
