//! The redact stage: plaintext in, what may leave the process out. **Begin a review here.**
//!
//! What comes in: [`Plaintext`], the bytes of a stream, which nothing can print or write; and the other
//! strings of records, which strangers choose as well: names, paths, arguments.
//!
//! What goes out: [`Content`] for payloads and [`Clear`] for strings. Sinks take nothing else, their fields
//! are private, and this file alone makes them, so no way around the policy compiles.
//!
//! What is promised with `--content redacted`, the default:
//! - Whatever `rules.toml` calls a secret is replaced by `[redacted:kind:hash]`: credential headers and
//!   cookies, parameters, fields and variables by their name, token formats, private keys, passwords in URLs.
//!   However the stream was cut, also across records, and however long it paused: what may be a part of a
//!   secret is held back, and if it is never decided it is redacted (`scanner.rs`).
//! - What follows a gap, or precedes our first look at a connection, may be the rest of a secret: it is
//!   redacted as `after_gap` to the end of a line, or to the head of the next HTTP/1 message.
//! - Bytes that are not plain text are withheld: a secret that is compressed, masked or Huffman-coded is one
//!   still. Text is believed again at the head of an HTTP/1 message only (`plain.rs`).
//! - The hash is BLAKE3, keyed by 32 random bytes that live as long as the process: equal secrets of one run
//!   look equal, nothing can be tried out against it. Shorter than 8 bytes there is none.
//! - Texts that are there as a whole, such as bodies, messages, arguments and names, are searched as well as they are
//!   without percent-encoding, escapes of JSON, entities, base64 and hexadecimal digits (`encoded.rs`). Base64 that
//!   holds a secret is replaced as a whole.
//! - `offset` and `length`, also of redactions, are those on the wire; records of a stream add up to it.
//! - Strings ([`Clear`]) and log lines ([`line`]) are treated the same, with `--content none`, too.
//!
//! What is not promised:
//! - A secret in no known format under no known name is text: a password in a chat, a token in the path of a
//!   URL, credentials under names in another language.
//! - In `data`, pieces of streams, text that is encoded once more is not decoded: a token inside base64 in JSON is
//!   seen by its name only, and escapes inside a name (`pass%77ord`) hide it. Inside a value they do no harm.
//! - Base64 of what is no text (compressed, encrypted, a picture) is shown.
//! - Each event, message and line is a text of its own: a secret that a model says in parts is whole, and redacted, in
//!   `llm` only; `sse` and the body, which is those parts in JSON, show the parts that are no secret by themselves.
//! - A bare value ends where its syntax says: of `password: two words` nothing is known to be a secret.
//! - `--content full` redacts nothing but log lines.

mod bytes;
mod card;
mod encoded;
mod name;
mod plain;
mod redactors;
mod rules;
mod scanner;
mod search;
mod token;
mod value;
mod verdict;

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::LazyLock,
};

use crate::{event::StreamId, plaintext::Plaintext};

pub use redactors::Redactors;
use rules::{Form, RULES};
use scanner::{Cleared, Scanner};
use verdict::Ending;

/// `--content`, from little to much.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Policy {
    /// Lengths and metadata only.
    None,
    /// Text, without secrets.
    Redacted,
    /// Every byte as it was.
    Full,
}

impl Policy {
    /// As on the command line and in `stats`.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::None => "none",
            Policy::Redacted => "redacted",
            Policy::Full => "full",
        }
    }
}

/// The plaintext of a record, after the policy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Content<'a>(Shown<'a>);

/// What a record shows of its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown<'a> {
    /// Nothing, by policy.
    Nothing,
    /// Nothing: redaction can't see into it.
    Encoded,
    /// Text in which each of these is replaced.
    Text(&'a str, &'a [Redaction]),
    /// All of it as it was.
    Raw(&'a [u8]),
}

impl<'a> Content<'a> {
    /// Of what may not be shown any more.
    pub const WITHHELD: Content<'static> = Content(Shown::Nothing);

    pub fn shown(self) -> Shown<'a> {
        self.0
    }
}

/// [`Content`] that owns its bytes: of what was put together from many calls.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnedContent {
    shown: Owned,
    holes: Vec<Hole>,
}

/// A place where something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// In what is shown.
    pub at: usize,
    /// Position and length on the wire.
    pub offset: u64,
    pub length: u64,
}

#[derive(Clone, PartialEq, Eq)]
enum Owned {
    Nothing,
    Encoded,
    Text(String, Vec<Redaction>),
    Raw(Vec<u8>),
}

impl OwnedContent {
    pub fn content(&self) -> Content<'_> {
        Content(match &self.shown {
            Owned::Nothing => Shown::Nothing,
            Owned::Encoded => Shown::Encoded,
            Owned::Text(text, redactions) => Shown::Text(text, redactions),
            Owned::Raw(bytes) => Shown::Raw(bytes),
        })
    }

    /// In text, and in bytes as they were.
    pub fn holes(&self) -> &[Hole] {
        &self.holes
    }
}

impl fmt::Debug for OwnedContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.content().fmt(f)
    }
}

/// The size alone: `{:?}` of a record ends up in panics and logs, a payload must not.
impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Shown::Nothing => f.write_str("Content(withheld)"),
            Shown::Encoded => f.write_str("Content(encoded)"),
            Shown::Text(text, _) => write!(f, "Content({} bytes of text)", text.len()),
            Shown::Raw(bytes) => write!(f, "Content({} bytes)", bytes.len()),
        }
    }
}

/// A secret that was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redaction {
    /// Position in the stream and length, on the wire.
    pub offset: u64,
    pub length: u64,
    pub kind: &'static str,
    /// Keyed; `None` for short ones and parts, and for several.
    pub hash: Option<u32>,
    /// How many different secrets a text holds that is encoded and replaced as a whole. 0: there is one at most.
    pub several: u32,
}

impl Redaction {
    /// What stands in the text instead.
    pub fn label(&self) -> String {
        let mut label = String::new();
        self.write(&mut label);
        label
    }

    fn write(&self, out: &mut String) {
        out.push_str("[redacted:");
        out.push_str(self.kind);
        if let Some(hash) = self.hash {
            out.push_str(&format!(":{hash:08x}"));
        }
        out.push(']');
    }
}

/// A string without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Clear(Cow<'static, str>);

impl Clear {
    /// Our own words.
    pub const fn ours(text: &'static str) -> Clear {
        Clear(Cow::Borrowed(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A part of it holds no secret either.
    pub fn part<I: std::slice::SliceIndex<str, Output = str>>(&self, range: I) -> Clear {
        Clear(Cow::Owned(self.0[range].to_owned()))
    }
}

impl std::ops::Deref for Clear {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A line for people who may not see secrets, such as one of a log. Without hashes.
pub fn line(text: &str) -> String {
    cleared(text, None)
}

/// A name that is kept beyond the run: the same in each, so that it has no hashes, whatever was shown of it before.
pub fn lasting(name: &str) -> String {
    const LABEL: &str = "[redacted:";
    let name = line(name);
    let mut parts = name.split(LABEL);
    let mut lasting = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        lasting.push_str(LABEL);
        match part.split_once(']') {
            Some((kind, rest)) => {
                let kind = kind.split(':').next().unwrap_or_default();
                lasting.push_str(&format!("{kind}]{rest}"));
            }
            None => lasting.push_str(part),
        }
    }
    lasting
}

fn cleared(text: &str, key: Option<Key>) -> String {
    let mut clearing = Clearing::new(text.len());
    clearing.segment(text.as_bytes(), 0, key.as_ref(), Ending::End);
    Scanner::new(key, 0, true).whole(text, &mut |at, length, cleared| {
        clearing.take(at, length, cleared);
    });
    clearing.text
}

/// What scanners say of a text that is there as a whole, without the secrets that are encoded in it.
struct Clearing<'a> {
    /// What comes next of the text, and its position on the wire.
    segment: &'a [u8],
    base: u64,
    /// What is encoded in there.
    more: Vec<Redaction>,
    text: String,
    redactions: Vec<Redaction>,
    is_encoded: bool,
}

impl<'a> Clearing<'a> {
    fn new(length: usize) -> Clearing<'a> {
        Clearing {
            segment: &[],
            base: 0,
            more: Vec::new(),
            text: String::with_capacity(length),
            redactions: Vec::new(),
            is_encoded: false,
        }
    }

    /// `ending`: of what can be read on. What is no text is withheld, so that nothing needs to be found in it.
    fn segment(&mut self, segment: &'a [u8], base: u64, key: Option<&Key>, ending: Ending) {
        (self.segment, self.base) = (segment, base);
        self.more = match simdutf8::basic::from_utf8(segment) {
            Ok(_) => encoded::secrets(key, segment, ending),
            Err(_) => Vec::new(),
        };
        for redaction in &mut self.more {
            redaction.offset += base;
        }
    }

    fn take(&mut self, at: u64, length: u64, cleared: Cleared<'_>) {
        let (text, marks) = match cleared {
            Cleared::Text(text, marks) => (text, marks),
            Cleared::Encoded => {
                self.is_encoded = true;
                return;
            }
        };
        if self.more.is_empty() {
            self.text.push_str(text);
            self.redactions.extend_from_slice(marks);
            return;
        }
        let start = (at - self.base) as usize;
        let source = &self.segment[start..start + length as usize];
        let source = str::from_utf8(source).unwrap_or_default();
        let (text, redactions) = (&mut self.text, &mut self.redactions);
        encoded::write((source, at), marks, &self.more, text, redactions);
    }
}

/// Whom a piece of data is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum View {
    /// Who wants every byte as data.
    All,
    /// Who wants of data only what no decoder reads.
    Undecoded,
}

/// A stream as it is told to some: what is held back of it is another's end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Told {
    pub stream: StreamId,
    pub view: View,
}

impl Told {
    pub fn of(stream: StreamId) -> [Told; 2] {
        [View::All, View::Undecoded].map(|view| Told { stream, view })
    }
}

/// Bytes of a stream, in order.
pub struct Piece<'a> {
    pub offset: u64,
    pub bytes: Plaintext<'a>,
    /// Nothing was sent before, seen or not.
    pub is_first: bool,
    pub time: u64,
}

/// Makes the hashes of secrets. Random, and gone with the process, but for a recording of it.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    pub const fn new(random: [u8; 32]) -> Key {
        Key(random)
    }

    pub(crate) fn hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.0)
    }
}

/// With the key one could try secrets out.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// What is shown is the same for the same input: no order comes from a hash.
fn sorted(ids: impl Iterator<Item = Told>) -> Vec<Told> {
    let mut ids: Vec<Told> = ids.collect();
    ids.sort_unstable();
    ids
}

/// The beginning of the hash of a whole secret. Of little it would tell too much.
fn hash8(hasher: &blake3::Hasher, length: u64) -> Option<u32> {
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    (length >= 8).then(|| u32::from_be_bytes([a, b, c, d]))
}

/// The stage: a scanner for each stream, as often as it is told.
pub struct Redactor {
    policy: Policy,
    key: Key,
    scanners: HashMap<Told, Scanner>,
    /// Streams that hold something back, and since when.
    holding: BTreeMap<Told, Held>,
}

#[derive(Clone, Copy)]
struct Held {
    since: u64,
    is_flushed: bool,
}

/// A text that comes in pieces: what may become a secret is held back until that is known.
#[derive(Default)]
pub struct Pieces {
    is_begun: bool,
    /// It is no plain text, and that was said.
    is_withheld: bool,
    scanner: Option<Box<Scanner>>,
}

/// Payload is nobody's to print.
impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pieces")
    }
}

/// How long a stream may pause before a secret that is recognised but may go on is said, and before what is
/// doubtful is redacted. In nanoseconds.
const IDLE: u64 = 50_000_000;
const LATE: u64 = 2_000_000_000;

/// Takes offset and length on the wire, and what is shown of that.
pub type Out<'a> = &'a mut dyn FnMut(u64, u64, Content<'_>);

/// Adapts the scanner's output.
fn content(out: Out<'_>) -> impl FnMut(u64, u64, Cleared<'_>) {
    |offset, length, cleared| {
        let shown = match cleared {
            Cleared::Text(text, redactions) => Shown::Text(text, redactions),
            Cleared::Encoded => Shown::Encoded,
        };
        out(offset, length, Content(shown));
    }
}

impl Redactor {
    pub fn new(policy: Policy, key: Key) -> Redactor {
        // Now, and not when the first record waits for them.
        LazyLock::force(&RULES);
        Redactor {
            policy,
            key,
            scanners: HashMap::new(),
            holding: BTreeMap::new(),
        }
    }

    /// Forgets all streams. What is held back is to be given out before, as before a gap. One that is told of again
    /// goes on as one that we join in its middle.
    pub fn forget(&mut self) {
        self.scanners.clear();
        self.holding.clear();
    }

    /// Does it look into this stream?
    pub fn knows(&self, id: Told) -> bool {
        self.scanners.contains_key(&id)
    }

    /// Others tell of this stream from here on. What is held back may be half a secret.
    pub fn leave(&mut self, id: Told, out: Out<'_>) {
        self.gap(id, 0, out);
        self.scanners.remove(&id);
    }

    /// The next bytes of a stream.
    pub fn bytes(&mut self, id: Told, piece: Piece<'_>, out: Out<'_>) {
        let Piece {
            offset,
            bytes,
            is_first,
            time,
        } = piece;
        let length = bytes.len() as u64;
        match self.policy {
            Policy::None => out(offset, length, Content(Shown::Nothing)),
            Policy::Full => out(offset, length, Content(Shown::Raw(bytes.reveal()))),
            Policy::Redacted => {
                let new = || Scanner::new(Some(self.key.clone()), offset, is_first);
                let scanner = self.scanners.entry(id).or_insert_with(new);
                scanner.feed(bytes.reveal(), &mut content(out));
                if scanner.is_holding() {
                    let held = Held {
                        since: time,
                        is_flushed: false,
                    };
                    self.holding.insert(id, held);
                } else if !self.holding.is_empty() {
                    self.holding.remove(&id);
                }
            }
        }
    }

    /// Bytes of a stream are missing.
    pub fn gap(&mut self, id: Told, length: u64, out: Out<'_>) {
        if let Some(scanner) = self.scanners.get_mut(&id) {
            scanner.gap(length, &mut content(out));
            self.holding.remove(&id);
        }
    }

    /// The stream is over.
    pub fn close(&mut self, id: Told, out: Out<'_>) {
        if let Some(mut scanner) = self.scanners.remove(&id) {
            scanner.close(&mut content(out));
            self.holding.remove(&id);
        }
    }

    /// Streams whose text has waited long enough for what follows it, in order.
    pub fn due(&self, now: u64) -> Vec<Told> {
        let is_due = |held: &Held| {
            let waited = now.saturating_sub(held.since);
            waited > LATE || waited > IDLE && !held.is_flushed
        };
        let due = self.holding.iter().filter(|(_, held)| is_due(held));
        sorted(due.map(|(id, _)| *id))
    }

    /// Gives out what has waited long enough.
    pub fn flush(&mut self, id: Told, now: u64, out: Out<'_>) {
        let (Some(scanner), Some(held)) = (self.scanners.get_mut(&id), self.holding.get_mut(&id))
        else {
            return;
        };
        held.is_flushed = true;
        let ending = if now.saturating_sub(held.since) > LATE {
            Ending::Late
        } else {
            Ending::Idle
        };
        scanner.flush(ending, &mut content(out));
        // Later there is nothing left but half a character or less than tells what it is, and that can wait.
        if !scanner.is_holding() || ending == Ending::Late {
            self.holding.remove(&id);
        }
    }

    /// Does anything wait for [`Redactor::flush`]?
    pub fn is_holding(&self) -> bool {
        !self.holding.is_empty()
    }

    /// Streams that hold something back, in order.
    pub fn all_holding(&self) -> Vec<Told> {
        let holding = self
            .scanners
            .iter()
            .filter(|(_, scanner)| scanner.is_holding());
        sorted(holding.map(|(id, _)| *id))
    }

    /// A string that a stranger chose.
    pub fn string(&self, text: &str) -> Clear {
        Clear(Cow::Owned(match self.policy {
            Policy::Full => text.to_owned(),
            Policy::None | Policy::Redacted => cleared(text, Some(self.key.clone())),
        }))
    }

    /// The same of one of which more could be told before.
    pub fn again<'a>(&self, texts: impl IntoIterator<Item = &'a mut Clear>) {
        for text in texts {
            *text = self.string(text);
        }
    }

    /// The next piece of a text, as far as it is certain; of its last one `is_end`. `None`: nothing may be told of it.
    pub fn piece(&self, pieces: &mut Pieces, text: &str, is_end: bool) -> Option<Clear> {
        let is_first = !std::mem::replace(&mut pieces.is_begun, true);
        let scanner = match self.policy {
            Policy::None => return None,
            Policy::Full => return Some(Clear(Cow::Owned(text.to_owned()))),
            Policy::Redacted => pieces.scanner.get_or_insert_with(|| {
                // What came before may have been told as it was.
                Box::new(Scanner::new(Some(self.key.clone()), 0, is_first))
            }),
        };
        let mut clear = String::new();
        let is_withheld = &mut pieces.is_withheld;
        let out: scanner::Out<'_> = &mut |_, _, shown| match shown {
            Cleared::Text(text, _) => clear.push_str(text),
            Cleared::Encoded => {
                if !std::mem::replace(is_withheld, true) {
                    clear.push_str("(withheld)");
                }
            }
        };
        scanner.feed(text.as_bytes(), out);
        if is_end {
            scanner.close(out);
        }
        Some(Clear(Cow::Owned(clear)))
    }

    /// All of a text that was put together, such as a body. `holes` are places where something is missing,
    /// and how much; if it is cut, its end may be half a secret.
    pub fn whole(
        &self,
        bytes: Plaintext<'_>,
        holes: &[(usize, u64)],
        is_cut: bool,
    ) -> OwnedContent {
        let bytes = bytes.reveal();
        let mut missing = 0;
        let hole = |(at, length): &(usize, u64)| {
            let offset = *at as u64 + missing;
            missing += length;
            Hole {
                at: *at,
                offset,
                length: *length,
            }
        };
        let mut holes: Vec<Hole> = holes.iter().map(hole).collect();
        let shown = match self.policy {
            Policy::None => Owned::Nothing,
            Policy::Full => Owned::Raw(bytes.to_vec()),
            Policy::Redacted => self.text(bytes, &mut holes, is_cut),
        };
        OwnedContent { shown, holes }
    }

    /// The holes are in the bytes, and then in what is shown of them.
    fn text(&self, bytes: &[u8], holes: &mut [Hole], is_cut: bool) -> Owned {
        let clearing = RefCell::new(Clearing::new(bytes.len()));
        let out: scanner::Out<'_> = &mut |at, length, cleared| {
            clearing.borrow_mut().take(at, length, cleared);
        };
        let mut scanner = Scanner::new(Some(self.key.clone()), 0, true);
        let (mut from, mut missing) = (0, 0);
        for hole in holes {
            let segment = &bytes[from..hole.at];
            let key = Some(&self.key);
            clearing
                .borrow_mut()
                .segment(segment, from as u64 + missing, key, Ending::Late);
            scanner.feed(segment, out);
            scanner.gap(hole.length, out);
            from = hole.at;
            missing += hole.length;
            hole.at = clearing.borrow().text.len();
        }
        let ending = if is_cut { Ending::Late } else { Ending::End };
        let segment = &bytes[from..];
        let key = Some(&self.key);
        clearing
            .borrow_mut()
            .segment(segment, from as u64 + missing, key, ending);
        scanner.feed(segment, out);
        if is_cut {
            scanner.flush(Ending::Late, out);
        }
        scanner.close(out);
        let clearing = clearing.into_inner();
        match clearing.is_encoded {
            true => Owned::Encoded,
            false => Owned::Text(clearing.text, clearing.redactions),
        }
    }

    /// Bytes of a connection whose place in it is unknown: they are nothing that redaction can see into.
    pub fn stray<'a>(&self, bytes: Plaintext<'a>) -> Content<'a> {
        Content(match self.policy {
            Policy::None => Shown::Nothing,
            Policy::Full => Shown::Raw(bytes.reveal()),
            Policy::Redacted => Shown::Encoded,
        })
    }

    /// In place of a text that was sent in a way that can't be read.
    pub fn unreadable(&self) -> OwnedContent {
        let shown = match self.policy {
            Policy::None => Owned::Nothing,
            Policy::Redacted | Policy::Full => Owned::Encoded,
        };
        OwnedContent {
            shown,
            holes: Vec::new(),
        }
    }

    /// A value of which nothing tells whether it is a secret.
    pub fn hidden(&self, value: &str) -> Clear {
        if self.policy == Policy::Full || value.is_empty() {
            return self.string(value);
        }
        let mut text = String::new();
        self.redaction(value, "nameless").write(&mut text);
        Clear(Cow::Owned(text))
    }

    /// The value of a line of a head.
    pub fn header(&self, name: &str, value: &str) -> Clear {
        if self.policy == Policy::Full {
            return self.string(value);
        }
        let line = format!("{name}: {value}");
        let mut clearing = Clearing::new(line.len());
        clearing.segment(line.as_bytes(), 0, Some(&self.key), Ending::End);
        Scanner::new(Some(self.key.clone()), 0, true)
            .line_of_head(&line, &mut |at, length, cleared| {
                clearing.take(at, length, cleared)
            });
        let clear = clearing.text;
        let value = clear
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(": "));
        // A name that is a secret itself hides all of its line.
        Clear(Cow::Owned(value.unwrap_or(&clear).to_owned()))
    }

    /// The value of a label, whose name may say that it is a secret, as that of a header does.
    pub fn labelled(&self, name: &str, value: &str) -> Clear {
        match value.contains(['\r', '\n']) {
            true => self.string(value),
            false => self.header(name, value),
        }
    }

    /// The arguments of a process, its own name first. Here a name and its secret may be two strings, and
    /// what follows a name is meant as its value, whatever it looks like.
    pub fn arguments(&self, arguments: &[String]) -> Vec<Clear> {
        let befores = std::iter::once(None).chain(arguments.iter().map(Some));
        let pairs = arguments.iter().zip(befores);
        pairs
            .map(|(argument, before)| self.argument(arguments, before, argument))
            .collect()
    }

    fn argument(&self, all: &[String], before: Option<&String>, argument: &str) -> Clear {
        if self.policy == Policy::Full {
            return self.string(argument);
        }
        let Some((start, kind)) = secret_part(all, before, argument) else {
            // `--header=Cookie: x`: the value is a text of its own.
            return match argument.split_once('=') {
                Some((flag, value)) if flag.starts_with('-') && is_word(flag) => {
                    let [flag, value] = [flag, value].map(|part| self.string(part));
                    Clear(Cow::Owned(format!("{}={}", flag.as_str(), value.as_str())))
                }
                _ => self.string(argument),
            };
        };
        let (shown, secret) = argument.split_at(start);
        let mut text = self.string(shown).0.into_owned();
        self.redaction(secret, kind).write(&mut text);
        Clear(Cow::Owned(text))
    }

    fn redaction(&self, secret: &str, kind: &'static str) -> Redaction {
        let length = secret.len() as u64;
        Redaction {
            offset: 0,
            length,
            kind,
            hash: hash8(self.key.hasher().update(secret.as_bytes()), length),
            several: 0,
        }
    }
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| bytes::WORD.has(byte))
}

/// Where in an argument a secret begins that only its neighbours or its form give away, and its kind.
fn secret_part(
    all: &[String],
    before: Option<&String>,
    argument: &str,
) -> Option<(usize, &'static str)> {
    let name_of = |flag: &str| RULES.kind_of(flag.trim_start_matches('-').as_bytes());
    if let Some((name, value)) = argument.split_once('=')
        && !value.is_empty()
        && let Some(kind) = name_of(name)
    {
        return Some((name.len() + 1, kind));
    }
    let program = all
        .first()
        .map_or("", |path| path.rsplit('/').next().unwrap_or(path));
    for flag in &RULES.flags {
        if !flag.programs.is_empty() && !flag.programs.iter().any(|known| known == program)
            || flag.with.as_ref().is_some_and(|word| !all.contains(word))
        {
            continue;
        }
        let follows = || before.is_some_and(|before| flag.flags.contains(before));
        let glued = || {
            let rest = flag
                .flags
                .iter()
                .filter_map(|flag| argument.strip_prefix(flag.as_str()));
            rest.map(|rest| argument.len() - rest.len())
                .next()
                .filter(|start| *start < argument.len())
        };
        let start = match flag.form {
            Form::Next => follows().then_some(0),
            Form::Glued => glued(),
            Form::Either if follows() => Some(0),
            Form::Either => glued(),
            Form::User if follows() => argument.find(':').map(|colon| colon + 1),
            Form::User => glued().and_then(|start| Some(start + argument[start..].find(':')? + 1)),
        };
        if let Some(start) = start.filter(|start| *start < argument.len()) {
            return Some((start, flag.kind));
        }
    }
    let flag = before.filter(|before| before.starts_with('-') && !before.contains('='))?;
    if argument.starts_with('-') {
        return None;
    }
    Some((0, name_of(flag)?))
}

/// Anything, for the tests of sinks.
#[cfg(test)]
impl From<&str> for Clear {
    fn from(text: &str) -> Clear {
        Clear(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
impl From<Shown<'_>> for OwnedContent {
    fn from(shown: Shown<'_>) -> OwnedContent {
        OwnedContent {
            shown: match shown {
                Shown::Nothing => Owned::Nothing,
                Shown::Encoded => Owned::Encoded,
                Shown::Text(text, redactions) => Owned::Text(text.into(), redactions.into()),
                Shown::Raw(bytes) => Owned::Raw(bytes.into()),
            },
            holes: Vec::new(),
        }
    }
}

#[cfg(test)]
impl<'a> From<Shown<'a>> for Content<'a> {
    fn from(shown: Shown<'a>) -> Content<'a> {
        Content(shown)
    }
}

#[cfg(test)]
impl Policy {
    /// What a record of `none` or `full` shows, for the tests of sinks.
    pub fn apply(self, plaintext: &[u8]) -> Content<'_> {
        Content(match self {
            Policy::None => Shown::Nothing,
            Policy::Redacted => Shown::Encoded,
            Policy::Full => Shown::Raw(plaintext),
        })
    }
}

#[cfg(test)]
mod tests;
