//! The redact stage: two streams of anything, with gaps, and secrets of known kinds planted in them.
//!
//! It never panics, accounts for each byte, shows the same however the streams are cut, and shows no planted
//! secret, also where they pause, nor where the same is a text by itself: of a body, a head or a command line.
//!
//! An input is a number of eight bytes, which the cuts and the pauses come from, and then the streams: text, in
//! which 0xFE and one more byte are a step (see [`steps`]).
#![no_main]

use agent_ebpf::Direction;
use libfuzzer_sys::fuzz_target;
use vortex_agent::{
    event::{HandleId, StreamId},
    plaintext::Plaintext,
    redact::{Key, Piece, Policy, Redactor, Shown, Told, View},
};

/// Beginnings that say by themselves what follows, and where it may stand. The secret itself comes from all of
/// the input: libFuzzer learns what is compared, and would put it elsewhere, where it may be shown.
const TOKENS: [&str; 5] = ["ghp_", "sk-proj-", "glpat-", "npm_", "xoxb-0123456789-"];
const PLACES: [&str; 6] = [
    "\r\nAuthorization: Bearer @\r\n",
    " the one is @ today ",
    "\n{\"note\":\"@\",\"n\":1}\n",
    "&note=@&x=1",
    "\nvalue: @\n",
    " https://u:@@example.com/ ",
];
const SECRET: usize = 40;

enum Step {
    Bytes(usize, Vec<u8>),
    Gap(usize, u64),
}

fuzz_target!(|input: &[u8]| {
    let Some((seed, script)) = input.split_first_chunk() else {
        return;
    };
    let seed = u64::from_le_bytes(*seed);
    let secret = Chance(hash(input)).secret();
    let steps = steps(script, &secret);
    let whole = run(&steps, &mut |_, _| 0, None);
    let mut cuts = Chance(seed);
    let cut = run(&steps, &mut |bytes, at| cuts.cut(bytes, at), None);
    assert_eq!(whole, cut, "cuts change nothing");
    let (mut cuts, pauses) = (Chance(seed), Chance(!seed));
    let paused = run(&steps, &mut |bytes, at| cuts.cut(bytes, at), Some(pauses));
    for shown in whole.iter().chain(&paused) {
        assert!(!shown.contains(&secret), "{secret} is in {shown:?}");
    }
    for step in &steps {
        if let Step::Bytes(_, bytes) = step {
            check_text(bytes, &secret);
        }
    }
});

/// Neither a string nor a body, whole, with a hole or cut, shows the secret.
fn check_text(bytes: &[u8], secret: &str) {
    let redactor = Redactor::new(Policy::Redacted, Key::new([7; 32]));
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let mut strings = redactor.arguments(&words);
    strings.extend([redactor.string(&text), redactor.hidden(&text)]);
    strings.extend(text.lines().map(|line| redactor.header("x-note", line)));
    for shown in strings {
        assert!(!shown.contains(secret), "{secret} is in {shown:?}");
    }
    let plain = Plaintext::new(bytes);
    let hole = (bytes.len() / 2, 9);
    let bodies = [
        redactor.whole(plain, &[], false),
        redactor.whole(plain, &[], true),
        redactor.whole(plain, &[hole], false),
    ];
    let contents = bodies.iter().map(|body| body.content());
    for content in contents.chain([redactor.stray(plain)]) {
        match content.shown() {
            Shown::Text(text, _) => assert!(!text.contains(secret), "{secret} is in {text:?}"),
            Shown::Encoded => {}
            Shown::Nothing | Shown::Raw(_) => panic!("not by this policy"),
        }
    }
}

/// 0xFE and a number: 0 is the other stream from here on, 1 a piece of its own, up to 31 a gap of so many
/// bytes, all else a token in some place.
fn steps(script: &[u8], secret: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let (mut stream, mut bytes) = (0, Vec::new());
    let mut script = script.iter();
    while let Some(&byte) = script.next() {
        let step = match byte {
            0xfe => script.next(),
            _ => None,
        };
        let Some(&step) = step else {
            bytes.push(byte);
            continue;
        };
        if let 32.. = step {
            let number = usize::from(step);
            let token = [TOKENS[number % TOKENS.len()], secret].concat();
            let place = PLACES[number / TOKENS.len() % PLACES.len()];
            bytes.extend(place.replacen('@', &token, 1).into_bytes());
            continue;
        }
        steps.push(Step::Bytes(stream, std::mem::take(&mut bytes)));
        match step {
            0 => stream = 1 - stream,
            1 => {}
            length => steps.push(Step::Gap(stream, u64::from(length))),
        }
    }
    steps.push(Step::Bytes(stream, bytes));
    steps
}

/// What the two streams show: text, and a mark for each stretch that is withheld. `cut` says how long the
/// next piece is, 0 is all.
fn run(
    steps: &[Step],
    cut: &mut dyn FnMut(&[u8], usize) -> usize,
    mut pauses: Option<Chance>,
) -> [String; 2] {
    const WITHHELD: char = '\u{10ffff}';
    let id = |stream: usize| Told {
        stream: StreamId {
            handle: HandleId {
                pid: 1,
                born: 0,
                handle: stream as u64,
            },
            direction: Direction::Sent,
        },
        view: View::All,
    };
    let mut redactor = Redactor::new(Policy::Redacted, Key::new([7; 32]));
    let mut shown = [const { String::new() }; 2];
    let (mut ends, mut given) = ([0; 2], [0; 2]);
    let mut time = 0;
    macro_rules! out {
        ($stream:expr) => {
            &mut |offset, length, content| {
                assert_eq!(offset, given[$stream], "records leave no hole");
                given[$stream] += length;
                match content.shown() {
                    Shown::Text(text, redactions) => {
                        for redaction in redactions {
                            assert!(redaction.offset >= offset);
                            assert!(redaction.offset + redaction.length <= offset + length);
                        }
                        shown[$stream].push_str(text);
                    }
                    Shown::Encoded if shown[$stream].ends_with(WITHHELD) => {}
                    Shown::Encoded => shown[$stream].push(WITHHELD),
                    Shown::Nothing | Shown::Raw(_) => panic!("not by this policy"),
                }
            }
        };
    }
    for step in steps {
        match step {
            Step::Gap(stream, length) => {
                redactor.gap(id(*stream), *length, out!(*stream));
                assert_eq!(
                    given[*stream], ends[*stream],
                    "before a gap all is given out"
                );
                ends[*stream] += length;
                given[*stream] += length;
            }
            Step::Bytes(stream, bytes) => {
                let mut at = 0;
                while at < bytes.len() {
                    let end = match cut(bytes, at) {
                        0 => bytes.len(),
                        length => bytes.len().min(at + length),
                    };
                    let piece = Piece {
                        offset: ends[*stream],
                        bytes: Plaintext::new(&bytes[at..end]),
                        is_first: ends[*stream] == 0,
                        time,
                    };
                    redactor.bytes(id(*stream), piece, out!(*stream));
                    ends[*stream] += (end - at) as u64;
                    at = end;
                    let Some(pauses) = &mut pauses else {
                        continue;
                    };
                    time += pauses.pause();
                    for due in redactor.due(time) {
                        let stream = due.stream.handle.handle as usize;
                        redactor.flush(due, time, out!(stream));
                    }
                }
            }
        }
    }
    for stream in 0..2 {
        redactor.close(id(stream), out!(stream));
        assert_eq!(given[stream], ends[stream], "at the end all is given out");
    }
    shown
}

/// FNV-1a.
fn hash(input: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    input.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// xorshift64*, which must not be 0.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    fn secret(&mut self) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
        let letter = |at: usize, number: u64| match at % 7 {
            3 => char::from(b'2' + (number % 6) as u8),
            _ => char::from(LETTERS[number as usize % LETTERS.len()]),
        };
        (0..SECRET).map(|at| letter(at, self.next())).collect()
    }

    /// The length of the next piece, mostly a short one. A piece that begins like the head of a message means
    /// that text begins again: no cut makes one, nor cuts one's first line.
    fn cut(&mut self, bytes: &[u8], at: usize) -> usize {
        let is_like_head = |at: usize| bytes[at].is_ascii_uppercase();
        let rest = &bytes[at..];
        let least = match is_like_head(at) {
            true => {
                rest.iter()
                    .position(|byte| *byte == b'\n')
                    .unwrap_or(rest.len())
                    + 1
            }
            false => 1,
        };
        let most = match self.next() % 4 {
            0 => 4096,
            1 => 64,
            _ => 4,
        };
        let mut length = least + (self.next() % most) as usize;
        while length < rest.len() && is_like_head(at + length) {
            length += 1;
        }
        length
    }

    /// In nanoseconds: none, one that shows what is certain, one that decides.
    fn pause(&mut self) -> u64 {
        [0, 0, 100_000_000, 3_000_000_000][self.next() as usize % 4]
    }
}
