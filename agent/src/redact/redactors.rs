//! A [`Redactor`] for each way to tell of content: processes may differ.

use super::{Key, Out, Piece, Policy, Redactor, Told};
use crate::policy::Capture;

pub struct Redactors {
    most: Policy,
    none: Redactor,
    /// The only one that holds anything back.
    redacted: Redactor,
    full: Redactor,
    /// Processes differ: of what they are called no secret is told, whatever one of them allows.
    are_many: bool,
}

impl Redactors {
    /// `most`: of the process of which most is told.
    pub fn new(most: Policy, are_many: bool, key: Key) -> Redactors {
        Redactors {
            most,
            none: Redactor::new(Policy::None, key.clone()),
            redacted: Redactor::new(Policy::Redacted, key.clone()),
            full: Redactor::new(Policy::Full, key),
            are_many,
        }
    }

    pub fn most(&self) -> Policy {
        self.most
    }

    /// For content of which so much may be told.
    pub fn of(&self, capture: Capture) -> &Redactor {
        match capture.content(self.most) {
            Policy::None => &self.none,
            Policy::Redacted => &self.redacted,
            Policy::Full => &self.full,
        }
    }

    /// The next bytes of a stream, of which so much may be told. It may have been another's before, who gives out first
    /// what he holds back.
    pub fn bytes(&mut self, id: Told, piece: Piece<'_>, capture: Capture, out: Out<'_>) {
        let redactor = match capture.content(self.most) {
            Policy::Redacted => return self.redacted.bytes(id, piece, out),
            Policy::None => &mut self.none,
            Policy::Full => &mut self.full,
        };
        if self.redacted.knows(id) {
            self.redacted.leave(id, out);
        }
        redactor.bytes(id, piece, out);
    }

    /// For strings that are not part of a stream.
    pub fn strings(&self) -> &Redactor {
        match self.are_strings_whole() {
            true => &self.full,
            false => &self.redacted,
        }
    }

    /// Is every string told as it is?
    pub fn are_strings_whole(&self) -> bool {
        self.most == Policy::Full && !self.are_many
    }

    /// For what is held back.
    pub fn holding(&self) -> &Redactor {
        &self.redacted
    }

    pub fn holding_mut(&mut self) -> &mut Redactor {
        &mut self.redacted
    }

    /// Do processes differ from here on?
    pub fn are_many(&mut self, are_many: bool) {
        self.are_many = are_many;
    }

    /// As [`Redactor::forget`], with another `most`.
    pub fn follow(&mut self, most: Policy) {
        self.most = most;
        self.redacted.forget();
    }
}
