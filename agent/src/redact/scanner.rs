//! One direction of a connection: bytes in as they come, text without secrets out. Pure.
//!
//! ```text
//!            buffer
//! ┌────────────┬────────────┬──────────────┐
//! │ looked back│ held back  │ cut character│
//! └────────────┴────────────┴──────────────┘
//!              given        checked        end
//! ```
//! Whatever a rule decides depends on the bytes alone and not on how they were cut: what could belong to
//! a secret is held back until that is known, a few KiB at most; a secret that is longer is not kept, only
//! hashed. Time comes in by [`Scanner::flush`]: then the doubtful becomes a secret, never text.
//!
//! Bytes that are not plain text are withheld, and from the first of them on everything is, until a chunk
//! begins with the head of an HTTP/1 message (`plain.rs`): what looks like text in between may be a stretch of
//! something encoded.

use std::{mem, ops::Range};

use blake3::Hasher;

use super::{
    Key, Redaction, hash8,
    plain::{Head, is_head, plain_text},
    rules::{BEHIND, Hit, RULES},
    verdict::{Ending, Secret, Until, Verdict},
};

/// Held back at most; what is longer and still doubtful is a secret.
const HELD_MAX: usize = 4096;

/// Memory of a stream that holds nothing back.
const KEPT: usize = 1024;

/// What comes out, in order: where it was on the wire, and what may be shown of it.
pub enum Cleared<'a> {
    Text(&'a str, &'a [Redaction]),
    Encoded,
}

/// Takes offset and length on the wire, and what is shown of that.
pub type Out<'a> = &'a mut dyn FnMut(u64, u64, Cleared<'_>);

pub struct Scanner {
    /// `None`: no hashes.
    key: Option<Key>,
    buffer: Vec<u8>,
    /// Position in the stream of the buffer's first byte.
    base: u64,
    /// In the buffer: what is before it has been shown or taken by a secret.
    given: usize,
    /// In the buffer: what is before it is plain text, in whole characters.
    checked: usize,
    /// In the buffer: anchors that begin before it have been judged.
    judged: usize,
    /// In the buffer: the end of the last secret. No anchor begins inside of one, unless it is one in doubt.
    floor: usize,
    /// Position of the next byte to account for.
    at: u64,
    inside: Option<Inside>,
    /// Of the next record, up to the position `copied`. Used only if there is a secret in it.
    text: String,
    copied: u64,
    redactions: Vec<Redaction>,
    is_encoded: bool,
    head: Head,
    /// Positions of the last head.
    head_at: Range<u64>,
}

/// The secret that we are inside of.
struct Inside {
    kind: &'static str,
    until: Until,
    /// Position of what no mark stands for yet.
    start: u64,
    length: u64,
    /// `None`: the hash of a part alone means nothing.
    hasher: Option<Box<Hasher>>,
    /// Decided before all of it had come. What was taken for its beginning may be a name, and the secret that
    /// of its value: anchors in it are judged as well, where it ends.
    is_doubtful: bool,
}

/// How much of a doubtful secret is judged again. Longer than any name.
const DOUBT: usize = KEPT;

impl Scanner {
    /// Of a stream whose first byte is at `offset`. Unless it is seen `from_start`, its first bytes may be
    /// the end of a secret.
    pub fn new(key: Option<Key>, offset: u64, from_start: bool) -> Scanner {
        Scanner {
            key,
            buffer: Vec::new(),
            base: offset,
            given: 0,
            checked: 0,
            judged: 0,
            floor: 0,
            at: offset,
            inside: (!from_start).then(|| Inside::gap(offset)),
            text: String::new(),
            copied: offset,
            redactions: Vec::new(),
            is_encoded: false,
            head: if from_start {
                Head::first()
            } else {
                Head::none()
            },
            head_at: offset..offset,
        }
    }

    /// Is anything held back?
    pub fn is_holding(&self) -> bool {
        self.at < self.position(self.buffer.len())
    }

    /// The next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8], out: Out<'_>) {
        let begins_head = is_head(bytes);
        if begins_head && (self.is_encoded || self.is_after_gap()) {
            self.release(Ending::Late, out);
            self.cut_off(out);
            self.is_encoded = false;
        }
        if self.is_encoded {
            self.base += bytes.len() as u64;
            return self.encoded(self.base, out);
        }
        if begins_head && !self.is_holding() && !self.head.is_open() {
            self.head = Head::first();
        }
        self.buffer.extend_from_slice(bytes);
        let (plain, mut is_text) = plain_text(&self.buffer[self.checked..]);
        let fresh = self.checked..self.checked + plain;
        self.checked = fresh.end;
        let was_head = self.head.is_one();
        let end = self.head.end(&self.buffer[fresh.clone()]);
        if self.head.is_one() && !was_head {
            self.head_at = self.at..u64::MAX;
        }
        // What turned out to be none is no place for headers either.
        if let Some(end) = end
            && self.head.is_one()
        {
            self.head_at.end = self.position(fresh.start + end);
            if self.head.announces_encoded() {
                self.checked = fresh.start + end;
                is_text = false;
            }
        }
        self.scan(Ending::More, out);
        if !is_text {
            self.release(Ending::Late, out);
            self.cut_off(out);
            self.is_encoded = true;
        }
        self.forget();
    }

    /// All of a text that has no need to be plain, such as a path.
    pub fn whole(self, text: &str, out: Out<'_>) {
        self.ending(text, Ending::End, out);
    }

    /// The same of one that ends so.
    pub fn ending(mut self, text: &str, ending: Ending, out: Out<'_>) {
        self.buffer.extend_from_slice(text.as_bytes());
        self.checked = text.len();
        self.release(ending, out);
        self.close(out);
    }

    /// The same of one line of a message's head.
    pub fn line_of_head(mut self, line: &str, out: Out<'_>) {
        self.head_at = 0..u64::MAX;
        self.whole(line, out);
    }

    /// Nothing came for a while: `Idle`, or for long: `Late`.
    pub fn flush(&mut self, ending: Ending, out: Out<'_>) {
        self.release(ending, out);
        self.forget();
    }

    /// The next `length` bytes are missing.
    pub fn gap(&mut self, length: u64, out: Out<'_>) {
        self.release(Ending::Late, out);
        self.cut_off(out);
        self.base += length;
        (self.at, self.copied) = (self.base, self.base);
        self.head = Head::none();
        self.inside = (!self.is_encoded).then(|| Inside::gap(self.at));
    }

    /// The stream ends.
    pub fn close(&mut self, out: Out<'_>) {
        self.release(Ending::End, out);
        self.cut_off(out);
    }

    #[cfg(test)]
    pub fn memory(&self) -> usize {
        self.buffer.capacity() + self.text.capacity()
    }

    fn position(&self, index: usize) -> u64 {
        self.base + index as u64
    }

    fn is_after_gap(&self) -> bool {
        matches!(&self.inside, Some(inside) if matches!(inside.until, Until::Gap { .. }))
    }

    /// Gives out what can be decided.
    fn scan(&mut self, ending: Ending, out: Out<'_>) {
        let mut held = self.checked;
        // Where to judge again when there is more.
        let mut again = usize::MAX;
        while self.leave_secret() {
            let text = &self.buffer[..self.checked];
            let Some(hit) = RULES.find(text, self.judged) else {
                self.judged = self.judged.max(text.len());
                break;
            };
            let in_head = self.head_at.contains(&self.position(hit.start));
            // A rule sees this much in any case, and never more: what it says is not to depend on cuts.
            let seen = &text[..text.len().min(hit.start + HELD_MAX)];
            let is_cut = seen.len() < text.len();
            let mut ending = if is_cut { Ending::More } else { ending };
            let mut verdict = RULES.judge(seen, hit, in_head, ending);
            if is_cut && matches!(verdict, Verdict::Wait(_)) {
                ending = Ending::Late;
                verdict = RULES.judge(seen, hit, in_head, ending);
            }
            match verdict {
                Verdict::Secret(secret) => self.enter(secret, hit, ending != Ending::More),
                Verdict::No => self.judged = hit.start + 1,
                // Nothing of it has come for too long.
                Verdict::Wait(_) if is_cut => self.judged = hit.start + 1,
                // Nothing of it has come: there may be another secret before its own.
                Verdict::Wait(from) if from == text.len() => {
                    again = again.min(hit.start);
                    self.judged = hit.start + 1;
                }
                Verdict::Wait(from) => {
                    self.judged = hit.start;
                    held = from;
                    break;
                }
            }
        }
        self.judged = self.judged.min(again).max(self.floor);
        let end = match &self.inside {
            Some(inside) => inside.start,
            None => {
                let held = held.min(self.cut_anchor(ending));
                self.given = held.clamp(self.given, self.checked);
                self.position(self.given)
            }
        };
        self.show(end, out);
    }

    /// Looks for half an anchor at the end, so that it is judged when it is whole. Where must text be held
    /// back for it? Half a token's beginning is no secret, so it is not held for long.
    fn cut_anchor(&mut self, ending: Ending) -> usize {
        let (any, token) = RULES.cuts(&self.buffer[..self.checked]);
        self.judged = self.judged.min(any).max(self.floor);
        match ending {
            Ending::More | Ending::Idle => token,
            Ending::Late | Ending::End => self.checked,
        }
    }

    fn enter(&mut self, secret: Secret, hit: Hit, is_doubtful: bool) {
        self.judged = hit.start + 1;
        // What was shown before it was known is not taken back, nor what another secret took.
        let start = secret.start.max(self.given);
        let mut until = secret.until;
        if until.take(&self.buffer[secret.start..start]).1 {
            return;
        }
        self.given = start;
        self.inside = Some(Inside {
            kind: secret.kind,
            until,
            start: self.position(start),
            length: 0,
            hasher: self.key.as_ref().map(|key| Box::new(key.hasher())),
            is_doubtful,
        });
    }

    /// Takes what belongs to the secret that we are inside of. False: there may be more of it.
    fn leave_secret(&mut self) -> bool {
        let Some(inside) = &mut self.inside else {
            return true;
        };
        let rest = &self.buffer[self.given..self.checked];
        let (taken, is_over) = inside.until.take(rest);
        inside.length += taken as u64;
        if let Some(hasher) = &mut inside.hasher {
            hasher.update(&rest[..taken]);
        }
        self.given += taken;
        if inside.is_doubtful {
            self.judged = self.judged.max(self.given.saturating_sub(DOUBT));
        } else {
            self.floor = self.given;
            self.judged = self.judged.max(self.floor);
        }
        if is_over {
            self.mark();
            self.inside = None;
        }
        is_over
    }

    /// Writes the mark that stands for the secret, or for what has come of it.
    fn mark(&mut self) {
        let Some(inside) = &mut self.inside else {
            return;
        };
        if inside.length == 0 {
            return;
        }
        let redaction = inside.redaction();
        self.copy(redaction.offset);
        redaction.write(&mut self.text);
        self.copied = redaction.offset + redaction.length;
        self.redactions.push(redaction);
    }

    /// Adds the text up to a position to what is shown next.
    fn copy(&mut self, end: u64) {
        if self.copied < end {
            let text = &self.buffer[(self.copied - self.base) as usize..(end - self.base) as usize];
            self.text.push_str(text_of(text));
            self.copied = end;
        }
    }

    /// Shows everything before a position.
    fn show(&mut self, end: u64, out: Out<'_>) {
        if end <= self.at {
            return;
        }
        let (at, length) = (self.at, end - self.at);
        self.at = end;
        if self.redactions.is_empty() {
            let text = &self.buffer[(self.copied - self.base) as usize..(end - self.base) as usize];
            self.copied = end;
            return out(at, length, Cleared::Text(text_of(text), &[]));
        }
        self.copy(end);
        out(at, length, Cleared::Text(&self.text, &self.redactions));
        self.text.clear();
        self.redactions.clear();
    }

    fn encoded(&mut self, end: u64, out: Out<'_>) {
        if end > self.at {
            out(self.at, end - self.at, Cleared::Encoded);
        }
        (self.at, self.copied) = (end, end);
    }

    /// Decides what is held back, as far as `ending` allows.
    fn release(&mut self, ending: Ending, out: Out<'_>) {
        if self.is_encoded {
            return;
        }
        self.scan(ending, out);
        if self.inside.is_some() {
            self.mark();
            self.show(self.position(self.given), out);
        }
    }

    /// Withholds what is left: half a character, or no text.
    fn cut_off(&mut self, out: Out<'_>) {
        let end = self.position(self.buffer.len());
        self.encoded(end, out);
        self.inside = None;
        self.buffer.clear();
        (self.given, self.checked, self.judged, self.floor) = (0, 0, 0, 0);
        self.base = end;
    }

    /// Drops what no rule looks back to, and the memory with it: there are many streams, and most are idle.
    fn forget(&mut self) {
        let drop = self.given.min(self.judged).saturating_sub(BEHIND);
        if drop < BEHIND {
            return;
        }
        self.buffer.drain(..drop);
        self.base += drop as u64;
        self.given -= drop;
        self.checked -= drop;
        self.judged -= drop;
        self.floor = self.floor.saturating_sub(drop);
        self.buffer.shrink_to(KEPT);
        self.text.shrink_to(KEPT);
        self.redactions.shrink_to(0);
    }
}

impl Inside {
    /// What follows a gap: it may be the rest of a secret that began in it.
    fn gap(at: u64) -> Inside {
        Inside {
            kind: "after_gap",
            until: Until::Gap { seen: 0 },
            start: at,
            length: 0,
            hasher: None,
            is_doubtful: false,
        }
    }

    /// Says what has come, and begins anew: what comes now is a part without a hash.
    fn redaction(&mut self) -> Redaction {
        let length = mem::take(&mut self.length);
        let offset = self.start;
        self.start += length;
        let hasher = self.hasher.take();
        let hash = hasher.and_then(|hasher| hash8(&hasher, length));
        Redaction {
            offset,
            length,
            kind: self.kind,
            hash,
            several: 0,
        }
    }
}

/// Checked before; every cut is at an ASCII character.
fn text_of(bytes: &[u8]) -> &str {
    let text = simdutf8::basic::from_utf8(bytes);
    debug_assert!(text.is_ok());
    text.unwrap_or_default()
}
