//! What a rule says of a place of a text, and how the end of a secret is found.

use super::bytes::{self, Set};

/// Where a secret begins and how it ends.
#[derive(Clone, Debug)]
pub struct Secret {
    pub start: usize,
    pub kind: &'static str,
    pub until: Until,
}

#[derive(Clone, Debug)]
pub enum Verdict {
    No,
    /// It depends on what comes. What must not be shown until then begins here.
    Wait(usize),
    Secret(Secret),
}

/// What is known of the text behind its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// More is coming.
    More,
    /// Nothing came for a while.
    Idle,
    /// Nothing came for so long that the doubtful is decided: it is a secret.
    Late,
    /// The text ends here.
    End,
}

/// How the end of a secret is found, byte by byte.
#[derive(Clone, Debug)]
pub enum Until {
    /// At the first byte that is not one of these.
    Outside(Set),
    /// The same, behind the beginning of a token.
    Token { beginning: usize, set: Set },
    /// At this quote, behind as many backslashes as the one that began it, doubled or not.
    Quote {
        quote: u8,
        backslashes: u32,
        run: u32,
    },
    /// At the end of the line; of one inside a string also at an escaped one, or at the string's quote.
    Line {
        quote: Option<u8>,
        inside: bool,
        escaped: bool,
    },
    /// Behind the fourth row of five dashes.
    PrivateKey { row: u32, rows: u32 },
    /// Behind a line's end that comes after enough text, see [`super::scanner`].
    Gap { seen: u32 },
}

pub enum Step {
    Take,
    TakeLast,
    Stop,
}

/// Text that must pass behind a gap before it can't be a stretch of something encoded by chance.
const AFTER_GAP: u32 = 32;

impl Until {
    /// How many of these bytes belong to the secret, and whether it ends with them.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, byte) in bytes.iter().enumerate() {
            match self.step(*byte) {
                Step::Take => {}
                Step::TakeLast => return (at + 1, true),
                Step::Stop => return (at, true),
            }
        }
        (bytes.len(), false)
    }

    pub fn step(&mut self, byte: u8) -> Step {
        match self {
            Until::Outside(set) if set.has(byte) => Step::Take,
            Until::Outside(_) => Step::Stop,
            Until::Token { beginning: 0, set } if set.has(byte) => Step::Take,
            Until::Token { beginning: 0, .. } => Step::Stop,
            Until::Token { beginning, .. } => {
                *beginning -= 1;
                Step::Take
            }
            Until::Quote {
                quote,
                backslashes,
                run,
            } => match byte {
                b'\\' => {
                    *run += 1;
                    Step::Take
                }
                // An escaped quote has other numbers of backslashes: 2n + 1 and more of them in pairs.
                byte if byte == *quote && *run % (2 * (*backslashes + 1)) == *backslashes => {
                    Step::Stop
                }
                _ => {
                    *run = 0;
                    Step::Take
                }
            },
            Until::Line {
                quote,
                inside,
                escaped,
            } => {
                if matches!(byte, b'\r' | b'\n') {
                    return Step::Stop;
                }
                if !*inside {
                    return Step::Take;
                }
                if std::mem::take(escaped) {
                    return match byte {
                        b'n' | b'r' => Step::TakeLast,
                        _ => Step::Take,
                    };
                }
                *escaped = byte == b'\\';
                if Some(byte) == *quote {
                    return Step::Stop;
                }
                Step::Take
            }
            Until::PrivateKey { row, rows } => {
                if !bytes::PRIVATE_KEY.has(byte) {
                    return Step::Stop;
                }
                *row = if byte == b'-' { *row + 1 } else { 0 };
                *rows += u32::from(*row == 5);
                if *rows == 4 {
                    Step::TakeLast
                } else {
                    Step::Take
                }
            }
            Until::Gap { seen } => {
                *seen = seen.saturating_add(1);
                if byte == b'\n' && *seen > AFTER_GAP {
                    Step::TakeLast
                } else {
                    Step::Take
                }
            }
        }
    }
}

/// Nothing that could be shown is part of it yet.
pub fn undecided(text: &[u8], ending: Ending) -> Verdict {
    if ending == Ending::End {
        Verdict::No
    } else {
        Verdict::Wait(text.len())
    }
}
