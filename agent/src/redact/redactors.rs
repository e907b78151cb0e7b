//! A [`Redactor`] for each way to tell of content: processes may differ.

use super::{Key, Policy, Redactor};
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
    pub fn of(&mut self, capture: Capture) -> &mut Redactor {
        match capture.content(self.most) {
            Policy::None => &mut self.none,
            Policy::Redacted => &mut self.redacted,
            Policy::Full => &mut self.full,
        }
    }

    /// For strings that are not part of a stream.
    pub fn strings(&self) -> &Redactor {
        match self.most {
            Policy::Full if !self.are_many => &self.full,
            _ => &self.redacted,
        }
    }

    /// For what is held back.
    pub fn holding(&self) -> &Redactor {
        &self.redacted
    }

    pub fn holding_mut(&mut self) -> &mut Redactor {
        &mut self.redacted
    }

    /// As [`Redactor::forget`], with another `most`.
    pub fn follow(&mut self, most: Policy) {
        self.most = most;
        self.redacted.forget();
    }
}
