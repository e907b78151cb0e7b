//! The Huffman code of header strings (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: among codes of one length, and from one length to the next, codes count up in the
//! order of their symbols. So the lengths say all of it, and the tables below are made of them.

/// Bits of each symbol's code; the last one is the end of a string, which is never sent.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const SYMBOLS: usize = 257;
const LONGEST: usize = 30;
const END: u16 = 256;

/// Codes of up to so many bits are found by one look.
const NEAR: u32 = 9;

struct Tables {
    /// By the next [`NEAR`] bits: symbol and length; length 0: the code is longer.
    near: [(u8, u8); 1 << NEAR],
    /// Symbols in the order of their codes.
    symbols: [u16; SYMBOLS],
    /// By length: the first code, and where its symbol is in `symbols`.
    first: [(u32, u16); LONGEST + 2],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut near = [(0, 0); 1 << NEAR];
    let mut symbols = [0; SYMBOLS];
    let mut first = [(0, 0); LONGEST + 2];
    let (mut code, mut placed, mut length) = (0_u32, 0, 1);
    while length <= LONGEST {
        first[length] = (code, placed as u16);
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                symbols[placed] = symbol as u16;
                placed += 1;
                if length as u32 <= NEAR {
                    let spare = NEAR - length as u32;
                    let mut at = code << spare;
                    while at < (code + 1) << spare {
                        near[at as usize] = (symbol as u8, length as u8);
                        at += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    first[LONGEST + 1] = (u32::MAX, SYMBOLS as u16);
    Tables {
        near,
        symbols,
        first,
    }
}

/// The string is none: it holds the end's code, or what fills its last byte is not the beginning of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Adds the decoded string to `out`: at most 8/5 of its length.
pub fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.reserve(coded.len() * 8 / 5);
    let (mut bits, mut count) = (0_u64, 0_u32);
    let mut coded = coded.iter();
    loop {
        while count <= 56
            && let Some(byte) = coded.next()
        {
            bits = bits << 8 | u64::from(*byte);
            count += 8;
        }
        // What is missing at the end is filled with ones, as the sender did.
        let window = match count {
            0..LOOK => (bits << (LOOK - count) | ((1 << (LOOK - count)) - 1)) & LOOK_MASK,
            _ => bits >> (count - LOOK) & LOOK_MASK,
        };
        let (symbol, length) = symbol(window as u32);
        if length > count {
            let is_fill = count < 8 && bits & ((1 << count) - 1) == (1 << count) - 1;
            return if is_fill { Ok(()) } else { Err(Malformed) };
        }
        if symbol == END {
            return Err(Malformed);
        }
        out.push(symbol as u8);
        count -= length;
    }
}

/// Bits that are looked at, as many as the longest code has.
const LOOK: u32 = LONGEST as u32;
const LOOK_MASK: u64 = (1 << LOOK) - 1;

/// The symbol whose code the next [`LOOK`] bits begin with, and the code's length.
fn symbol(window: u32) -> (u16, u32) {
    let (symbol, length) = TABLES.near[(window >> (LOOK - NEAR)) as usize];
    if length > 0 {
        return (u16::from(symbol), u32::from(length));
    }
    let mut length = NEAR as usize + 1;
    loop {
        let code = window >> (LONGEST - length);
        let (first, at) = TABLES.first[length];
        let count = TABLES.first[length + 1].1 - at;
        if code.wrapping_sub(first) < u32::from(count) {
            let symbol = TABLES.symbols[usize::from(at) + (code - first) as usize];
            return (symbol, length as u32);
        }
        length += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(symbol: usize) -> (u32, u32) {
        let length = LENGTHS[symbol] as usize;
        let (first, at) = TABLES.first[length];
        let place = TABLES.symbols[usize::from(at)..]
            .iter()
            .position(|known| usize::from(*known) == symbol)
            .unwrap();
        (first + place as u32, length as u32)
    }

    fn encode(text: &[u8]) -> Vec<u8> {
        let (mut bits, mut count, mut coded) = (0_u64, 0, Vec::new());
        for byte in text {
            let (code, length) = code(usize::from(*byte));
            bits = bits << length | u64::from(code);
            count += length;
            while count >= 8 {
                count -= 8;
                coded.push((bits >> count) as u8);
            }
        }
        if count > 0 {
            coded.push((bits << (8 - count)) as u8 | 0xff >> count);
        }
        coded
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    #[test]
    fn the_code_is_whole() {
        let sum: f64 = LENGTHS
            .iter()
            .map(|length| 0.5_f64.powi(i32::from(*length)))
            .sum();
        assert_eq!(sum, 1.0);
        // Some of appendix B.
        for (symbol, expected) in [
            (b'0', (0x0, 5)),
            (b'a', (0x3, 5)),
            (b' ', (0x14, 6)),
            (b'Z', (0xfd, 8)),
            (b'\\', (0x7fff0, 19)),
            (0, (0x1ff8, 13)),
            (10, (0x3fff_fffc, 30)),
            (255, (0x3ff_ffee, 26)),
        ] {
            assert_eq!(code(usize::from(symbol)), expected, "{symbol}");
        }
        assert_eq!(code(256), (0x3fff_ffff, 30));
    }

    /// RFC 7541, appendix C.4 and C.6.
    #[test]
    fn examples() {
        for (coded, text) in [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ][..],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (
                &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f],
                "custom-key",
            ),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            assert_eq!(decoded(coded).unwrap(), text.as_bytes(), "{text}");
        }
    }

    #[test]
    fn every_string_comes_back() {
        for first in 0..=255 {
            for second in [0, b'a', b'~', 10, 255, first] {
                let text = [first, second, b'x', first];
                for length in 0..=4 {
                    let text = &text[..length];
                    assert_eq!(decoded(&encode(text)).unwrap(), text);
                }
            }
        }
    }

    #[test]
    fn what_fills_the_last_byte_is_checked() {
        // "0" is 00000, and then ones.
        assert_eq!(decoded(&[0b0000_0111]).unwrap(), b"0");
        assert_eq!(decoded(&[0b0000_0011]), Err(Malformed));
        // A whole byte of ones is too much, and so is the end's code.
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(Malformed));
        assert_eq!(decoded(&[0xff; 4]), Err(Malformed));
        assert_eq!(decoded(&[0xff]), Err(Malformed));
    }
}
