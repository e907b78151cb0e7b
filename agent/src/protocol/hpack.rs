//! HPACK (RFC 7541): one direction of an HTTP/2 connection, header blocks in, fields out.
//!
//! The table that blocks refer to grows with each of them, so who missed one knows less than the two ends. A
//! table can be partial: then the entries that were added since are at the known end of it, and a reference
//! beyond them is to something unknown, never to the wrong thing. Older entries leave first, so it becomes
//! whole again when the sender empties its table.

use std::collections::VecDeque;

use super::{head::Field, huffman};
use crate::planted::Mistake;

/// What the sender's table may hold, in the octets of section 4.1. Larger ones we don't follow: they become
/// partial.
const SIZE_MAX: usize = 64 << 10;
/// A sender's table unless it is told otherwise (RFC 9113, section 6.5.2).
const SIZE_USUAL: usize = 4096;
/// What the fields of one block may be together. With a table of 64 KiB a byte can say as much as that, and a block
/// of some thousand bytes would take seconds.
const FIELDS_MAX: usize = 512 << 10;
/// What an entry takes besides its strings.
const OVERHEAD: usize = 32;

/// The block breaks a rule: the rest of it, and what it did to the table, is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The sender's table.
#[derive(Debug)]
pub struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
    is_partial: bool,
    /// It became larger than we follow.
    is_over: bool,
}

#[derive(Clone)]
struct Entry {
    /// Name and value, one behind the other.
    bytes: Box<[u8]>,
    name: Part,
    value: Part,
}

/// A part of an entry, if it is known.
type Part = Option<std::ops::Range<u32>>;

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({} bytes)", self.bytes.len())
    }
}

impl Entry {
    fn new(field: Field<'_>) -> Entry {
        let name = field.name.unwrap_or_default();
        let value = field.value.unwrap_or_default();
        let middle = name.len() as u32;
        Entry {
            bytes: [name, value].concat().into(),
            name: field.name.map(|_| 0..middle),
            value: field.value.map(|_| middle..middle + value.len() as u32),
        }
    }

    fn field(&self) -> Field<'_> {
        let part = |part: &Part| {
            part.as_ref()
                .map(|part| &self.bytes[part.start as usize..part.end as usize])
        };
        Field {
            name: part(&self.name),
            value: part(&self.value),
        }
    }

    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD + usize::from(Mistake::Hpack.is_planted())
    }
}

impl Table {
    /// Of a connection from its start, or from somewhere.
    pub fn new(from_start: bool) -> Table {
        Table {
            entries: VecDeque::new(),
            size: 0,
            // Of one that we join nobody tells us how large it is: entries that are kept too long are not
            // referred to.
            size_max: if from_start { SIZE_USUAL } else { SIZE_MAX },
            is_partial: !from_start,
            is_over: false,
        }
    }

    /// A block was missed.
    pub fn lose(&mut self) {
        *self = Table::new(false);
    }

    /// Has it become larger than we follow, since the last time?
    pub fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.is_over)
    }

    #[cfg(test)]
    fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// Reads a whole header block.
    pub fn decode(
        &mut self,
        block: &[u8],
        out: &mut dyn FnMut(Field<'_>),
    ) -> Result<(), Malformed> {
        let decoded = self.decode_fields(block, out);
        if decoded.is_err() {
            self.lose();
        }
        decoded
    }

    fn decode_fields(
        &mut self,
        block: &[u8],
        out: &mut dyn FnMut(Field<'_>),
    ) -> Result<(), Malformed> {
        let mut rest = block;
        let (mut name, mut value) = (Vec::new(), Vec::new());
        let mut left = FIELDS_MAX;
        let mut out = |field: Field<'_>| {
            let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
            let size = length(field.name) + length(field.value);
            left = left.checked_sub(size).ok_or(Malformed)?;
            out(field);
            Ok(())
        };
        while let Some(&first) = rest.first() {
            // Section 6, by the bits that a field begins with.
            match first {
                0x80.. => {
                    let index = integer(&mut rest, 7)?;
                    out(self.field(index)?)?;
                }
                0x40.. => {
                    let entry = {
                        let field = self.literal(&mut rest, 6, &mut name, &mut value)?;
                        out(field)?;
                        Entry::new(field)
                    };
                    self.insert(entry);
                }
                0x20.. => {
                    let size = integer(&mut rest, 5)?;
                    self.resize(size);
                }
                _ => out(self.literal(&mut rest, 4, &mut name, &mut value)?)?,
            }
        }
        Ok(())
    }

    fn literal<'a>(
        &'a self,
        rest: &mut &[u8],
        bits: u32,
        name: &'a mut Vec<u8>,
        value: &'a mut Vec<u8>,
    ) -> Result<Field<'a>, Malformed> {
        let index = integer(rest, bits)?;
        let name = match index {
            0 => {
                string(rest, name)?;
                Some(name.as_slice())
            }
            index => self.field(index)?.name,
        };
        string(rest, value)?;
        Ok(Field {
            name,
            value: Some(value),
        })
    }

    /// What an index means (section 2.3.3).
    fn field(&self, index: usize) -> Result<Field<'_>, Malformed> {
        let dynamic = match index.checked_sub(1).ok_or(Malformed)? {
            at if at < STATIC.len() => {
                let (name, value) = STATIC[at];
                return Ok(Field {
                    name: Some(name.as_bytes()),
                    value: Some(value.as_bytes()),
                });
            }
            at => at - STATIC.len(),
        };
        match self.entries.get(dynamic) {
            Some(entry) => Ok(entry.field()),
            None if self.is_partial => Ok(Field {
                name: None,
                value: None,
            }),
            None => Err(Malformed),
        }
    }

    fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.shrink(self.size_max.saturating_sub(size));
        // One that is larger than the table empties it (section 4.4).
        if size <= self.size_max {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    fn resize(&mut self, size: usize) {
        self.size_max = size.min(SIZE_MAX);
        self.is_partial |= size > SIZE_MAX;
        self.is_over |= size > SIZE_MAX;
        self.shrink(self.size_max);
        // What was unknown was in it, and is no more.
        if size == 0 {
            self.is_partial = false;
        }
    }

    fn shrink(&mut self, size: usize) {
        while self.size > size
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size();
        }
    }
}

/// Section 5.1. More than 28 bits mean nothing here.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, Malformed> {
    let (&first, mut more) = rest.split_first().ok_or(Malformed)?;
    let full = (1 << bits) - 1;
    let mut number = usize::from(first) & full;
    if number == full {
        for shift in (0..28).step_by(7) {
            let (&next, behind) = more.split_first().ok_or(Malformed)?;
            more = behind;
            number += usize::from(next & 0x7f) << shift;
            if next & 0x80 == 0 {
                *rest = more;
                return Ok(number);
            }
        }
        return Err(Malformed);
    }
    *rest = more;
    Ok(number)
}

/// Section 5.2.
fn string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (string, behind) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = behind;
    out.clear();
    if is_coded {
        return huffman::decode(string, out).map_err(|huffman::Malformed| Malformed);
    }
    out.extend_from_slice(string);
    Ok(())
}

/// Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn decode(table: &mut Table, block: &str) -> Result<Vec<String>, Malformed> {
        let mut fields = Vec::new();
        let part = |part: Option<&[u8]>| {
            part.map_or("?".into(), |part| {
                String::from_utf8_lossy(part).into_owned()
            })
        };
        table.decode(&unhex(block), &mut |field| {
            fields.push(format!("{}: {}", part(field.name), part(field.value)));
        })?;
        Ok(fields)
    }

    /// Appendix C.4: three requests, strings coded.
    const REQUESTS: [(&str, &[&str]); 3] = [
        (
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            &[
                ":method: GET",
                ":scheme: http",
                ":path: /",
                ":authority: www.example.com",
            ],
        ),
        (
            "8286 84be 5886 a8eb 1064 9cbf",
            &[
                ":method: GET",
                ":scheme: http",
                ":path: /",
                ":authority: www.example.com",
                "cache-control: no-cache",
            ],
        ),
        (
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            &[
                ":method: GET",
                ":scheme: https",
                ":path: /index.html",
                ":authority: www.example.com",
                "custom-key: custom-value",
            ],
        ),
    ];

    #[test]
    fn requests() {
        let mut table = Table::new(true);
        for (block, expected) in REQUESTS {
            assert_eq!(decode(&mut table, block).unwrap(), expected);
        }
        assert_eq!((table.entries.len(), table.size), (3, 164));
    }

    /// Appendix C.5: three responses, a table of 256 octets that overflows.
    #[test]
    fn responses() {
        let mut table = Table::new(true);
        table.resize(256);
        for (block, expected) in [
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
                 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
                 6c65 2e63 6f6d",
                &[
                    ":status: 302",
                    "cache-control: private",
                    "date: Mon, 21 Oct 2013 20:13:21 GMT",
                    "location: https://www.example.com",
                ][..],
            ),
            (
                "4803 3330 37c1 c0bf",
                &[
                    ":status: 307",
                    "cache-control: private",
                    "date: Mon, 21 Oct 2013 20:13:21 GMT",
                    "location: https://www.example.com",
                ],
            ),
        ] {
            assert_eq!(decode(&mut table, block).unwrap(), expected);
        }
        assert_eq!((table.entries.len(), table.size), (4, 222));
    }

    /// What was sent before anybody looked is unknown, what is sent afterwards is learned, and nothing is wrong.
    #[test]
    fn joined_in_the_middle() {
        for missed in 1..=3 {
            let mut table = Table::new(false);
            for (at, (block, expected)) in REQUESTS.iter().enumerate().skip(missed) {
                let fields = decode(&mut table, block).unwrap();
                assert_eq!(fields.len(), expected.len());
                for (field, expected) in fields.iter().zip(*expected) {
                    assert!(
                        field == expected || field == "?: ?",
                        "{missed} {at} {field}"
                    );
                }
                assert_eq!(fields.iter().filter(|field| *field == "?: ?").count(), 1);
            }
        }
        // An entry with an unknown name: its value is known, also when it is referred to.
        let mut table = Table::new(false);
        assert_eq!(decode(&mut table, "7f00 0161").unwrap(), ["?: a"]);
        assert_eq!(decode(&mut table, "be").unwrap(), ["?: a"]);
        assert_eq!(decode(&mut table, "bf").unwrap(), ["?: ?"]);
        // The sender empties its table: all of it is known now.
        assert!(table.is_partial());
        assert_eq!(
            decode(&mut table, "20 3f e1 1f 40 01 61 01 62").unwrap(),
            ["a: b"]
        );
        assert!(!table.is_partial());
        assert_eq!(decode(&mut table, "be").unwrap(), ["a: b"]);
        assert_eq!(decode(&mut table, "bf"), Err(Malformed));
        assert!(table.is_partial());
    }

    #[test]
    fn broken_blocks() {
        for block in [
            "80",
            "be",
            "ff",
            "ff80 8080 8001",
            "40",
            "4001",
            "4001 61",
            "4001 6105 61",
            "0081 ff00",
            "418c f1",
        ] {
            let mut table = Table::new(true);
            assert_eq!(decode(&mut table, block), Err(Malformed), "{block}");
            assert!(table.is_partial());
        }
    }

    /// A field of 60,001 bytes, and references to it, of one byte each.
    #[test]
    fn fields_have_their_bound() {
        let mut table = Table::new(true);
        let mut block = unhex("3fe1ff03 4001617f e1d303");
        block.extend(vec![b'x'; 60_000]);
        block.extend(vec![0xbe; 100]);
        let mut size = 0;
        let decoded = table.decode(&block, &mut |field| {
            size += field.name.map_or(0, <[u8]>::len) + field.value.map_or(0, <[u8]>::len);
        });
        assert_eq!((decoded, size), (Err(Malformed), 8 * 60_001));
        assert!(table.is_partial());
    }

    #[test]
    fn a_table_has_its_bound() {
        let mut table = Table::new(true);
        // 1 MiB is asked for.
        decode(&mut table, "3fe1 ff3f").unwrap();
        assert!(table.is_partial());
        for _ in 0..3000 {
            decode(&mut table, "4001 6110 30313233343536373839303132333435").unwrap();
        }
        assert!(table.size <= SIZE_MAX && table.size > SIZE_MAX - 64);
        // An entry that is larger than the table empties it.
        let mut table = Table::new(true);
        decode(&mut table, "3f 21 4001 6101 62").unwrap();
        assert_eq!(table.entries.len(), 1);
        decode(&mut table, &format!("4001 6140 {}", "30".repeat(64))).unwrap();
        assert_eq!((table.entries.len(), table.size), (0, 0));
    }
}
