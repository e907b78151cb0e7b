//! Numbers of payment cards (ISO/IEC 7812): what an issuer's numbers begin with, how long they are, and the check digit.
//!
//! One number in ten has the right check digit by chance, so that alone is not enough: in groups, as people write
//! them, or alone between edges. A number that JSON encloses in nothing is an id or a time unless a card is named.

use super::{
    bytes,
    token::Left,
    verdict::{Ending, Secret, Until, Verdict, undecided},
};

/// Beginnings from and to, with as many digits, and lengths that are in use.
const ISSUERS: [(u32, u32, &[usize]); 13] = [
    (4, 4, &[13, 16, 19]),
    (51, 55, &[16]),
    (2221, 2720, &[16]),
    (34, 34, &[15]),
    (37, 37, &[15]),
    (6011, 6011, &[16, 19]),
    (644, 649, &[16, 19]),
    (65, 65, &[16, 19]),
    (3528, 3589, &[16, 19]),
    (300, 305, &[14]),
    (36, 36, &[14]),
    (38, 39, &[14]),
    (62, 62, &[16, 17, 18, 19]),
];

/// Digits with one separator at most between two of them.
const LONGEST: usize = 19;
/// What is cut off behind so many digits of a card could be told apart from others.
const TELLING: usize = 6;
/// How far before a number its name may be.
const NEAR: usize = 32;

/// What the search looks for: three digits.
pub fn prefixes() -> impl Iterator<Item = Vec<u8>> {
    let all = (100..1000).map(|number: u32| number.to_string().into_bytes());
    all.filter(|three| ISSUERS.iter().any(|issuer| begins(issuer, three)))
}

/// Do these digits begin so, as far as there are digits?
fn begins((from, to, _): &(u32, u32, &[usize]), digits: &[u8]) -> bool {
    let width = from.ilog10() as usize + 1;
    let known = &digits[..digits.len().min(width)];
    let scale = 10_u32.pow((width - known.len()) as u32);
    let number = known
        .iter()
        .fold(0, |all, digit| 10 * all + u32::from(digit - b'0'));
    (from / scale..=to / scale).contains(&number)
}

/// A number as far as it has come.
struct Number {
    digits: Vec<u8>,
    /// Sizes of its groups.
    groups: Vec<usize>,
    end: usize,
}

impl Number {
    fn read(text: &[u8], start: usize) -> Number {
        let mut number = Number {
            digits: Vec::with_capacity(LONGEST),
            groups: vec![0],
            end: start,
        };
        let mut separator = None;
        while let Some(byte) = text.get(number.end) {
            match byte {
                b'0'..=b'9' => {
                    number.digits.push(*byte);
                    *number.groups.last_mut().expect("there is one") += 1;
                }
                b' ' | b'-'
                    if separator.is_none_or(|known| known == *byte)
                        && number.digits.len() < LONGEST
                        && text.get(number.end + 1).is_none_or(u8::is_ascii_digit) =>
                {
                    separator = Some(*byte);
                    number.groups.push(0);
                }
                _ => break,
            }
            number.end += 1;
            if number.digits.len() > LONGEST {
                break;
            }
        }
        number
    }

    /// Written as cards are, or in one.
    fn is_grouped_so(&self) -> bool {
        matches!(
            self.groups[..],
            [_] | [4, 4, 4, 4] | [4, 4, 4, 4, 3] | [4, 6, 5] | [4, 6, 4]
        )
    }

    /// May it become one?
    fn may_be(&self) -> bool {
        let all_but_last = &self.groups[..self.groups.len() - 1];
        let issuers = ISSUERS.iter().filter(|issuer| begins(issuer, &self.digits));
        let longest = issuers.flat_map(|(_, _, lengths)| lengths.iter()).max();
        longest.is_some_and(|longest| self.digits.len() <= *longest)
            && all_but_last.iter().all(|group| matches!(group, 4 | 6))
    }

    fn is_one(&self) -> bool {
        let length = self.digits.len();
        let is_of = |issuer: &(u32, u32, &[usize])| {
            issuer.2.contains(&length) && begins(issuer, &self.digits)
        };
        length >= 13 && self.is_grouped_so() && ISSUERS.iter().any(is_of) && luhn(&self.digits)
    }
}

/// ISO/IEC 7812-1, annex B.
fn luhn(digits: &[u8]) -> bool {
    let doubled = |(at, digit): (usize, &u8)| {
        let value = u32::from(digit - b'0');
        match at % 2 {
            0 => value,
            _ => 2 * value - if value > 4 { 9 } else { 0 },
        }
    };
    let sum: u32 = digits.iter().rev().enumerate().map(doubled).sum();
    sum.is_multiple_of(10)
}

/// `4` and so on, where a number begins.
pub fn card(text: &[u8], start: usize, ending: Ending) -> Verdict {
    if !Left::Number.allows(text, start) {
        return Verdict::No;
    }
    let number = Number::read(text, start);
    let secret = |until| {
        Verdict::Secret(Secret {
            start,
            kind: "card",
            until,
        })
    };
    let is_cut =
        number.end == text.len() || number.end + 1 == text.len() && text[number.end] == b'.';
    if is_cut && ending != Ending::End {
        if !number.may_be() {
            return Verdict::No;
        }
        return match ending {
            Ending::Late if number.digits.len() >= TELLING => secret(Until::Outside(bytes::CARD)),
            Ending::Late => undecided(text, ending),
            _ => Verdict::Wait(start),
        };
    }
    let is_over = match text.get(number.end..) {
        Some([b'.', next, ..]) => !next.is_ascii_alphanumeric(),
        Some([b'-' | b'_' | b'/' | b'%' | b'$', ..]) => false,
        Some([next, ..]) => !next.is_ascii_alphanumeric(),
        _ => true,
    };
    if !is_over || !number.is_one() {
        return Verdict::No;
    }
    // Of a barcode and of a count of nanoseconds more than one in ten would be one.
    let is_usual = (14..=16).contains(&number.digits.len());
    let is_alone = number.groups.len() == 1;
    if is_alone && !(is_usual && is_text(text, start)) && !is_named(text, start) {
        return Verdict::No;
    }
    secret(Until::Token {
        beginning: number.end - start,
        set: bytes::Set::NONE,
    })
}

/// A word or a quote before it, and nothing behind which programs write ids, times and tables of numbers.
fn is_text(text: &[u8], start: usize) -> bool {
    let before = text[start.saturating_sub(2 * NEAR)..start].trim_ascii_end();
    !before
        .last()
        .is_some_and(|byte| b":=[](){},;".contains(byte))
}

fn is_named(text: &[u8], start: usize) -> bool {
    let near = text[start.saturating_sub(NEAR)..start].to_ascii_lowercase();
    let is_word = |word: &[u8]| near.windows(word.len()).any(|window| window == word);
    [
        &b"card"[..],
        b"credit",
        b"debit",
        b"pan\"",
        b"pan=",
        b"ccnum",
        b"cc_num",
        b"cc=",
    ]
    .into_iter()
    .any(is_word)
}

#[cfg(test)]
mod tests {
    use super::super::line;

    /// Numbers that issuers publish for tests.
    const CARDS: [&str; 12] = [
        "4111111111111111",
        "4012888888881881",
        "5555555555554444",
        "5105105105105100",
        "2223003122003222",
        "378282246310005",
        "371449635398431",
        "6011111111111117",
        "6011000990139424",
        "3530111333300000",
        "30569309025904",
        "38520000023237",
    ];

    #[test]
    fn cards_are_known_in_text_in_groups_and_by_name() {
        for card in CARDS {
            for (before, after) in [
                ("charge ", ", please"),
                ("\"", "\","),
                ("card=", "&x=1"),
                ("\"card_number\":", "}"),
            ] {
                let shown = line(&format!("{before}{card}{after}"));
                assert_eq!(shown, format!("{before}[redacted:card]{after}"));
            }
            if card.len() == 16 {
                for separator in ["-", " "] {
                    let groups: Vec<&str> = (0..4).map(|at| &card[4 * at..][..4]).collect();
                    let shown = line(&format!("id: {} x", groups.join(separator)));
                    assert_eq!(shown, "id: [redacted:card] x");
                }
            }
        }
        assert_eq!(line("use 3782 822463 10005."), "use [redacted:card].");
    }

    #[test]
    fn other_numbers_are_left_alone() {
        for text in [
            "\"id\":4111111111111111,\"at\":1726000000000",
            "\"ts\":4111111111111111}",
            "4111111111111112 and 4111 1111 1111 1112",
            "x4111111111111111 and 4111111111111111x and 0.4111111111111111 and 4111111111111111.5",
            "4111111111111111-1 and 1-4111111111111111 and /4111111111111111/",
            "41111111111111111111 and 41 11 11 11 11 11 11 11",
            "4006381333931 and 1726000000000000 and 9007199254740991 and 18446744073709551615",
            "[4111111111111111, 5555555555554444]",
            "#if X64 (BIT)\n                4111111111111111,\n                5555555555554444,\n",
        ] {
            assert_eq!(line(text), text);
        }
    }
}
