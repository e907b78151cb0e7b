//! The other end of HPACK: an encoder that makes every choice that the format leaves it, and knows its table.

use std::collections::VecDeque;

use crate::Choices;

/// Strings in the Huffman code: examples of RFC 7541, appendix C.
const CODED: [(&str, &[u8]); 4] = [
    (
        "www.example.com",
        b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
    ),
    ("no-cache", b"\xa8\xeb\x10\x64\x9c\xbf"),
    ("custom-key", b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f"),
    ("custom-value", b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"),
];

/// Fields that the static table has, and names of it.
const STATIC: [(usize, &str, &str); 6] = [
    (1, ":authority", ""),
    (2, ":method", "GET"),
    (3, ":method", "POST"),
    (4, ":path", "/"),
    (8, ":status", "200"),
    (58, "user-agent", ""),
];
const STATIC_COUNT: usize = 61;
/// What an entry takes besides its strings (section 4.1).
const OVERHEAD: usize = 32;

pub struct Encoder {
    /// The newest first.
    entries: VecDeque<(String, String)>,
    size_max: usize,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder {
            entries: VecDeque::new(),
            size_max: 4096,
        }
    }
}

impl Encoder {
    /// A string to send, maybe one that can be coded.
    pub fn word(choices: &mut Choices<'_>) -> String {
        match choices.below(8) {
            at if at < CODED.len() => CODED[at].0.to_owned(),
            _ => choices.letters(40),
        }
    }

    pub fn resize(&mut self, size: usize, block: &mut Vec<u8>) {
        self.size_max = size;
        self.evict(size);
        integer(block, 0x20, 5, size);
    }

    pub fn field(
        &mut self,
        choices: &mut Choices<'_>,
        name: &str,
        value: &str,
        block: &mut Vec<u8>,
    ) {
        let known = |entry: &(String, String)| entry.0 == name && entry.1 == value;
        let of_static = STATIC
            .iter()
            .find(|entry| (entry.1, entry.2) == (name, value));
        let whole = of_static
            .map(|entry| entry.0)
            .or_else(|| Some(self.entries.iter().position(known)? + STATIC_COUNT + 1));
        if let Some(index) = whole
            && choices.chance()
        {
            return integer(block, 0x80, 7, index);
        }
        let (mark, bits) = choices.of(&[(0x40, 6), (0x40, 6), (0, 4), (0x10, 4)]);
        let of_static = STATIC.iter().find(|entry| entry.1 == name);
        let by_name = of_static.map(|entry| entry.0).or_else(|| {
            let at = self.entries.iter().position(|entry| entry.0 == name)?;
            Some(at + STATIC_COUNT + 1)
        });
        match by_name.filter(|_| choices.chance()) {
            Some(index) => integer(block, mark, bits, index),
            None => {
                integer(block, mark, bits, 0);
                string(choices, name, block);
            }
        }
        string(choices, value, block);
        if mark == 0x40 {
            let size = name.len() + value.len() + OVERHEAD;
            self.evict(self.size_max.saturating_sub(size));
            if size <= self.size_max {
                self.entries.push_front((name.to_owned(), value.to_owned()));
            }
        }
    }

    fn evict(&mut self, size: usize) {
        let of = |entry: &(String, String)| entry.0.len() + entry.1.len() + OVERHEAD;
        while self.entries.iter().map(of).sum::<usize>() > size {
            self.entries.pop_back();
        }
    }
}

fn integer(block: &mut Vec<u8>, mark: u8, bits: u32, number: usize) {
    let full = (1 << bits) - 1;
    if number < full {
        return block.push(mark | number as u8);
    }
    block.push(mark | full as u8);
    let mut rest = number - full;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn string(choices: &mut Choices<'_>, text: &str, block: &mut Vec<u8>) {
    let coded = CODED.iter().find(|(known, _)| *known == text);
    match coded.filter(|_| choices.chance()) {
        Some((_, coded)) => {
            integer(block, 0x80, 7, coded.len());
            block.extend_from_slice(coded);
        }
        None => {
            integer(block, 0, 7, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
}
