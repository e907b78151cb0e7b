//! What a model says, as it comes: for who reads along. The call tells all of it when it is over.

use super::call::{Message, Part};
use crate::{
    record::Words,
    redact::{Pieces, Redactor},
};

/// How much of an answer has been told.
#[derive(Debug, Default)]
pub struct Streamed {
    /// When the call began, once what was asked has been told.
    pub begun: Option<u64>,
    /// So many messages of it.
    pub asked: usize,
    /// Something of the answer was.
    pub has_words: bool,
    /// Parts in words that came to their end, and bytes of the one after them.
    parts: usize,
    at: usize,
    /// Of that part.
    pieces: Pieces,
}

impl Streamed {
    /// What came since the last time, of one answer. `is_over`: nothing more comes, so that nothing is held back.
    pub fn fresh(
        &mut self,
        exchange: u64,
        answer: &[Message],
        is_over: bool,
        redactor: &Redactor,
    ) -> Vec<Words> {
        let mut told = Vec::new();
        let parts = answer.iter().flat_map(|message| &message.parts);
        let last = parts.clone().count();
        // Others count for nothing: at its end an API may say them anew, with more of them or less.
        let parts = parts.enumerate();
        let parts = parts.filter_map(|(at, part)| Some((at + 1 == last, words(part)?)));
        for (is_last, (kind, kept)) in parts.skip(self.parts) {
            // What it said on the way may be in other parts then.
            let fresh = kept.get(self.at..).unwrap_or_default();
            let text = redactor.piece(&mut self.pieces, fresh, is_over || !is_last);
            self.at += fresh.len();
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                self.has_words = true;
                told.push(Words {
                    exchange,
                    kind,
                    text,
                });
            }
            if !is_last {
                (self.parts, self.at, self.pieces) = (self.parts + 1, 0, Pieces::default());
            }
        }
        told
    }
}

/// Of a part that comes in words.
fn words(part: &Part) -> Option<(&'static str, &str)> {
    match part {
        Part::Text(text) => Some(("text", &text.kept)),
        Part::Reasoning(text) => Some(("reasoning", &text.kept)),
        Part::Refusal(text) => Some(("refusal", &text.kept)),
        _ => None,
    }
}
