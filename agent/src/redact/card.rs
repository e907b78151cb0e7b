//! Numbers of payment cards (ISO/IEC 7812): what an issuer's numbers begin with, how long they are, and the check digit.
//!
//! One number in ten has the right check digit by chance, so that alone is not enough: in groups, as people write
//! them, or alone between edges. A number that JSON encloses in nothing is an id or a time unless a card is named.
//!
//! An expiry date and a security code may follow. They are more digits, which make of any other number a longer one, so
//! they have to be such a date or such a code and the last digits there are, unless the date has a slash: then nothing
//! else looks like it. They are shown, as they are nobody's without the number.

use super::{
    bytes::{self, Set},
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
/// The same of a number with a date and a code behind it, and of a row of numbers.
const ROW: usize = 40;
/// How much of what stands behind a number is looked at.
const TAIL: usize = 32;
/// Between a number, its date and its code, and how many of these.
const JOIN: Set = Set::NONE
    .with(b' ')
    .with(b'\t')
    .with(b',')
    .with(b';')
    .with(b'|')
    .with(b':')
    .with(b'/')
    .with(b'-');
const JOINS: usize = 3;
/// Of this century. Who writes one down has it in use: cards are valid for some years.
const YEARS: std::ops::RangeInclusive<u32> = 20..=49;
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
            digits: Vec::with_capacity(ROW),
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
                        && number.digits.len() < ROW
                        && text.get(number.end + 1).is_none_or(u8::is_ascii_digit) =>
                {
                    separator = Some(*byte);
                    number.groups.push(0);
                }
                _ => break,
            }
            number.end += 1;
            if number.digits.len() > ROW {
                break;
            }
        }
        number
    }

    /// The first of its groups, if they are written as cards are, or in one: how many digits and how many bytes.
    fn first(&self, groups: usize) -> Option<(usize, usize)> {
        let first = &self.groups[..groups];
        let is_so = matches!(
            first,
            [_] | [4, 4, 4, 4] | [4, 4, 4, 4, 3] | [4, 6, 5] | [4, 6, 4]
        );
        let digits = first.iter().sum();
        is_so.then_some((digits, digits + groups - 1))
    }

    /// May it become one?
    fn may_be(&self) -> bool {
        let all_but_last = &self.groups[..self.groups.len() - 1];
        let issuers = ISSUERS.iter().filter(|issuer| begins(issuer, &self.digits));
        let longest = issuers.flat_map(|(_, _, lengths)| lengths.iter()).max();
        longest.is_some_and(|longest| self.digits.len() <= *longest)
            && all_but_last.iter().all(|group| matches!(group, 4 | 6))
    }
}

fn is_one(digits: &[u8]) -> bool {
    let is_of =
        |issuer: &(u32, u32, &[usize])| issuer.2.contains(&digits.len()) && begins(issuer, digits);
    digits.len() >= 13 && ISSUERS.iter().any(is_of) && luhn(digits)
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

/// What stands behind a number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// It goes on, or is part of something else.
    More,
    /// That depends on what comes.
    Open,
    Edge,
    /// What may be a date or a code, and no digit behind that.
    Likely,
    /// A date that is nothing else.
    Certain,
}

impl Behind {
    /// Of a number of so many digits. `is_first`: there are other groups behind it.
    fn of(rest: &[u8], length: usize, is_first: bool, ending: Ending) -> Behind {
        let rest = &rest[..rest.len().min(TAIL)];
        let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'.' || JOIN.has(*byte);
        if rest.len() < TAIL && rest.iter().all(is_number) && ending != Ending::End {
            return Behind::Open;
        }
        match rest {
            [b'.', next, ..] if next.is_ascii_alphanumeric() => return Behind::More,
            [next, ..] if next.is_ascii_alphanumeric() || b"_%$".contains(next) => {
                return Behind::More;
            }
            _ => {}
        }
        let goes_on = match rest {
            [b'-' | b'/', ..] => true,
            [_, next, ..] => is_first && next.is_ascii_digit(),
            _ => false,
        };
        match tail(rest, length) {
            Some(behind) => behind,
            None if goes_on => Behind::More,
            None => Behind::Edge,
        }
    }
}

/// A date, a code, or both, behind a number of so many digits.
fn tail(rest: &[u8], length: usize) -> Option<Behind> {
    let date = joined(rest).and_then(date);
    if let Some((true, after)) = date {
        // `12/27/2031` is a day.
        let is_day =
            matches!(after, [b'/' | b'.', more @ ..] if !matches!(digits(more).0.len(), 0 | 3));
        let is_word = after.first().is_some_and(u8::is_ascii_alphanumeric);
        return (!is_day && !is_word).then_some(Behind::Certain);
    }
    let after_date = date.map(|(_, after)| after);
    let code = joined(after_date.unwrap_or(rest)).map(digits);
    // American Express has four; of any other four are as often the next group.
    let size = if length == 15 { 4 } else { 3 };
    let code = code.filter(|(code, _)| code.len() == size);
    let last = code.map(|(_, after)| after).or(after_date)?;
    is_last(last).then_some(match (date, code) {
        (Some(_), Some(_)) => Behind::Certain,
        _ => Behind::Likely,
    })
}

fn join(text: &[u8]) -> usize {
    text.iter().take_while(|byte| JOIN.has(**byte)).count()
}

fn joined(text: &[u8]) -> Option<&[u8]> {
    let join = join(text);
    (1..=JOINS).contains(&join).then(|| &text[join..])
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.split_at(count)
}

/// A month and a year: has it a slash, and what is behind it.
fn date(text: &[u8]) -> Option<(bool, &[u8])> {
    let (first, after) = digits(text);
    let (month, year, is_slashed, after) = match first.len() {
        1 | 2 => {
            let between = after.iter().take_while(|byte| b" /-|".contains(byte));
            let between = &after[..between.count()];
            let (year, after) = digits(&after[between.len()..]);
            let is_slashed = between.trim_ascii() == b"/";
            let is_between = is_slashed || first.len() == 2 && between.len() == 1;
            (first, year, is_slashed, is_between.then_some(after)?)
        }
        4 | 6 => (&first[..2], &first[2..], false, after),
        _ => return None,
    };
    let number = |digits: &[u8]| str::from_utf8(digits).ok()?.parse::<u32>().ok();
    let year = match year.len() {
        2 => number(year)?,
        4 => number(year)?.checked_sub(2000)?,
        _ => return None,
    };
    let is_date = (1..=12).contains(&number(month)?) && YEARS.contains(&year);
    is_date.then_some((is_slashed, after))
}

/// Is there neither a digit nor a word behind?
fn is_last(text: &[u8]) -> bool {
    let next = text.get(join(text));
    let is_word = text
        .first()
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_%$".contains(byte));
    let is_part = matches!(text, [b'.', next, ..] if next.is_ascii_alphanumeric());
    !is_word && !is_part && !next.is_some_and(u8::is_ascii_digit)
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
    let is_cut = is_cut && ending != Ending::End;
    let mut is_open = is_cut && number.may_be();
    // The longest first: what could be a code may be the end of the number.
    for groups in (1..=number.groups.len()).rev() {
        let Some((length, bytes)) = number.first(groups) else {
            continue;
        };
        if !is_one(&number.digits[..length]) {
            continue;
        }
        let is_first = groups < number.groups.len() && length < LONGEST;
        let rest = &text[start + bytes..];
        let behind = Behind::of(rest, length, is_first, ending);
        if behind == Behind::Open {
            is_open = true;
            break;
        }
        if behind != Behind::More && is_card(text, start, (groups, length), rest, behind) {
            return secret(Until::Token {
                beginning: bytes,
                set: Set::NONE,
            });
        }
    }
    if !is_open {
        return Verdict::No;
    }
    match ending {
        Ending::Late if number.digits.len() >= TELLING => secret(Until::Outside(bytes::CARD)),
        Ending::Late => undecided(text, ending),
        _ => Verdict::Wait(start),
    }
}

/// Of a number that may be one: by what is around it.
fn is_card(
    text: &[u8],
    start: usize,
    (groups, length): (usize, usize),
    rest: &[u8],
    behind: Behind,
) -> bool {
    if behind == Behind::Certain || is_named(text, start) {
        return true;
    }
    let is_row = matches!(text[..start], [.., before, b' '] if before.is_ascii_digit());
    if behind == Behind::Likely && is_row {
        return false;
    }
    // Of a barcode and of a count of nanoseconds more than one in ten would be one. An id may have a part behind it.
    let is_usual = (14..=16).contains(&length) && !matches!(rest, [b'-' | b'/', ..]);
    groups > 1 || is_usual && is_text(text, start)
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
    use super::super::{
        line,
        scanner::{Cleared, Scanner},
    };

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
    fn a_date_and_a_code_may_follow() {
        for (card, rest) in [
            ("4111 1111 1111 1111", " 12/27 123"),
            ("4111 1111 1111 1111", " 12/2027"),
            ("4111 1111 1111 1111", " 1227 123"),
            ("4111 1111 1111 1111", " 1227"),
            ("4111 1111 1111 1111", " 122027"),
            ("4111 1111 1111 1111", " 12 27 123"),
            ("4111 1111 1111 1111", " 12 / 27, 123"),
            ("4111 1111 1111 1111", " 123"),
            ("4111 1111 1111 1111", " 123 Main Street"),
            ("4111-1111-1111-1111", " 1227"),
            ("4111-1111-1111-1111", "-12/27-123"),
            ("4111-1111-1111-1111", "-1227-123"),
            ("4111-1111-1111-1111", "-123"),
            ("4111111111111111", ",12/27,123"),
            ("4111111111111111", " 12/27 123"),
            ("4111111111111111", " 1/27"),
            ("4111111111111111", "|12|2027|123"),
            ("4111111111111111", "/12/27/123"),
            ("4111111111111111", ":1227:123"),
            ("4111111111111111", " 123"),
            ("4111111111111111", " "),
            ("4222222222222", " 12/27"),
            ("4222222222222", " 1227 123"),
            ("30569309025904", " 12/27 123"),
            ("3056 930902 5904", " 12/27 123"),
            ("3782 822463 10005", " 12/27 1234"),
            ("3782 822463 10005", " 1227 1234"),
            ("3782 822463 10005", " 1234"),
            ("378282246310005", " 1227 1234"),
            ("62123456789000003", " 12/27 123"),
            ("621234567890000002", " 12/27 123"),
            ("6212345678900000003", " 12/27 123"),
            ("6011 0009 9013 9424", " 12/27 123"),
            ("6304 0000 0000 0000", " no issuer that is known"),
        ] {
            let is_known = !rest.contains("no issuer");
            for (before, after) in [("", ""), ("pay ", "."), ("pay ", "\n"), ("\"", "\"")] {
                let text = format!("{before}{card}{rest}{after}");
                let shown = format!("{before}[redacted:card]{rest}{after}");
                assert_eq!(line(&text), if is_known { shown } else { text });
            }
        }
        // A date says of a number that it is one, wherever it stands.
        for (text, shown) in [
            (
                "Bob,4111111111111111,12/27,123,10115,Berlin",
                "Bob,[redacted:card],12/27,123,10115,Berlin",
            ),
            ("[4111111111111111, 12/27]", "[[redacted:card], 12/27]"),
            ("card: 4111111111111111 1227", "card: [redacted:card] 1227"),
        ] {
            assert_eq!(line(text), shown);
        }
    }

    #[test]
    fn numbers_in_a_row_are_left_alone() {
        for text in [
            "4111 1111 1111 1111 5678 and 4111 1111 1111 1111 1299 and 4111 1111 1111 1111 1327",
            "4111 1111 1111 1111 1227 5555 5555",
            "4111 1111 1111 1111 12 and 4111 1111 1111 1111 12345",
            "4111 1111 1111 1111 123 456 and 4111 1111 1111 1111 123x and 4111 1111 1111 1111 123.5",
            "1234 4111 1111 1111 1111 1227 and 12 4111111111111111 123",
            "id 4111111111111111 12/27/2031 and 4111111111111111 2027-12-01 and 4111111111111111 12:27:01",
            "id 4111111111111111-123 and 4111111111111111/123 and 4111111111111111-1227",
            "[4111111111111111, 123] and [4111111111111111, 1227] and {\"a\":4111111111111111,\"b\":1227}",
            "id 4111111111111112 12/27 123 and 9111111111111111 12/27 123",
            "call 4155550123 4155550199 or 4155 550123 1227",
            "DE21 4306 0967 1234 5678 90 and 1111 2222 3333 4444 5555 6666 7777 8888 9999",
            "4006381333932 123 and 4006381333932 1227",
        ] {
            assert_eq!(line(text), text);
        }
    }

    fn random(state: &mut u64, below: u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 20) % below
    }

    fn number(state: &mut u64, digits: u64) -> String {
        (0..digits)
            .map(|_| char::from(b'0' + random(state, 10) as u8))
            .collect()
    }

    /// The worst of them: a number that could be a card's, in groups, and more digits than a date and a code have.
    #[test]
    fn longer_numbers_are_left_alone() {
        let state = &mut 0x5eed;
        for _ in 0..5_000 {
            let sizes: &[&[u64]] = &[&[1], &[2], &[5], &[3, 3], &[3, 4], &[6, 6], &[2, 2, 2]];
            let sizes = sizes[random(state, sizes.len() as u64) as usize];
            let join = [" ", "-"][random(state, 2) as usize];
            let card = ["5555", "5555", "5555", "4444"].map(str::to_owned);
            let more = sizes.iter().map(|size| number(state, *size));
            let text = Vec::from_iter(card.into_iter().chain(more)).join(join);
            assert_eq!(line(&text), text);
        }
    }

    /// However a row of numbers is cut, it is shown as it is as a whole.
    #[test]
    fn cuts_change_nothing_of_rows() {
        let state = &mut 0x5eed;
        for _ in 0..2_000 {
            let mut text = ["pay ", "", "[", "12 ", "card="][random(state, 5) as usize].to_owned();
            let card = CARDS[random(state, CARDS.len() as u64) as usize];
            match random(state, 3) {
                0 => text.push_str(card),
                separator => {
                    let groups: Vec<&[u8]> = card.as_bytes().chunks(4).collect();
                    text.push_str(
                        &String::from_utf8(groups.join(&b" -"[separator as usize - 1])).unwrap(),
                    );
                }
            }
            for _ in 0..random(state, 5) {
                let joins = [" ", "-", ", ", ",", "/", ".", "    ", "|"];
                text.push_str(joins[random(state, 8) as usize]);
                let words = ["12/27", "1227", "123", "12", "1", "1234", "27", "x", card];
                text.push_str(words[random(state, 9) as usize]);
            }
            let whole = line(&text);
            for cut in 0..text.len() {
                assert_eq!(in_two(&text, cut), whole, "{text:?} at {cut}");
            }
        }
    }

    fn in_two(text: &str, cut: usize) -> String {
        let mut shown = String::new();
        let mut out = |_: u64, _: u64, cleared: Cleared<'_>| {
            if let Cleared::Text(text, _) = cleared {
                shown.push_str(text);
            }
        };
        let mut scanner = Scanner::new(None, 0, true);
        scanner.feed(&text.as_bytes()[..cut], &mut out);
        scanner.feed(&text.as_bytes()[cut..], &mut out);
        scanner.close(&mut out);
        shown
    }

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
