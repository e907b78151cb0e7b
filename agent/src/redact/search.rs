//! Finds the anchors of rules in a text, in any case: the part that looks at every byte.
//!
//! Three bytes at each position are hashed and looked up in a table of bits, which nearly always says no.
//! Unlike an automaton there is no chain from one byte to the next, so a processor does several at once.

/// Which anchors begin with the three bytes of a bucket.
type Bucket = Vec<Anchor>;

struct Anchor {
    lower: Vec<u8>,
    number: usize,
}

pub struct Search {
    /// One bit a hash: does an anchor begin so?
    filter: Box<[u64; 1 << (BITS - 6)]>,
    /// By hash, where the bit is set.
    buckets: Box<[u16; 1 << BITS]>,
    anchors: Vec<Bucket>,
}

const BITS: u32 = 15;

/// Of the first three of four bytes, whatever their case.
fn hash(four: [u8; 4]) -> usize {
    let three = (u32::from_le_bytes(four) | 0x0020_2020) & 0x00ff_ffff;
    (three.wrapping_mul(0x9e37_79b1) >> (32 - BITS)) as usize
}

impl Search {
    /// Anchors by number; each has three bytes at least.
    pub fn new(anchors: &[Vec<u8>]) -> Search {
        let mut search = Search {
            filter: Box::new([0; 1 << (BITS - 6)]),
            buckets: Box::new([0; 1 << BITS]),
            anchors: vec![Bucket::new()],
        };
        for (number, anchor) in anchors.iter().enumerate() {
            let hash = hash([anchor[0], anchor[1], anchor[2], 0]);
            search.filter[hash >> 6] |= 1 << (hash & 63);
            if search.buckets[hash] == 0 {
                search.buckets[hash] = search.anchors.len() as u16;
                search.anchors.push(Bucket::new());
            }
            let bucket = &mut search.anchors[usize::from(search.buckets[hash])];
            bucket.push(Anchor {
                lower: anchor.to_ascii_lowercase(),
                number,
            });
            // The longest is found first.
            bucket.sort_by_key(|anchor| std::cmp::Reverse(anchor.lower.len()));
        }
        search
    }

    /// The first anchor at or behind `from`, of several there the longest: its number, start and end.
    pub fn find(&self, text: &[u8], from: usize) -> Option<(usize, usize, usize)> {
        let mut from = from.min(text.len());
        while let Some(at) = self.candidate(&text[from..]) {
            let start = from + at;
            if let Some(anchor) = self.anchor(&text[start..]) {
                return Some((anchor.number, start, start + anchor.lower.len()));
            }
            from = start + 1;
        }
        None
    }

    fn candidate(&self, text: &[u8]) -> Option<usize> {
        let is_candidate = |four: [u8; 4]| {
            let hash = hash(four);
            self.filter[hash >> 6] >> (hash & 63) & 1 == 1
        };
        let mut fours = text.windows(4);
        let at = fours.position(|four| is_candidate([four[0], four[1], four[2], four[3]]));
        at.or_else(|| match text {
            [.., a, b, c] if is_candidate([*a, *b, *c, 0]) => Some(text.len() - 3),
            _ => None,
        })
    }

    fn anchor(&self, text: &[u8]) -> Option<&Anchor> {
        let hash = hash([text[0], text[1], text[2], 0]);
        self.anchors[usize::from(self.buckets[hash])]
            .iter()
            .find(|anchor| {
                text.get(..anchor.lower.len())
                    .is_some_and(|text| text.eq_ignore_ascii_case(&anchor.lower))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_plain_search_finds() {
        let words = ["key", "keys-", "token", "tok", "://", "sk-"];
        let anchors = words.map(|word| word.as_bytes().to_vec());
        let search = Search::new(&anchors);
        let text = "A KEY, keys, Keys-, xtOkEn tokkey://sk-sk-ke";
        let lower = text.to_ascii_lowercase();
        let mut expected = Vec::new();
        for start in 0..text.len() {
            let begins = words
                .iter()
                .enumerate()
                .filter(|(_, word)| lower[start..].starts_with(**word));
            expected.extend(
                begins
                    .max_by_key(|(_, word)| word.len())
                    .map(|(number, word)| (number, start, start + word.len())),
            );
        }
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(hit) = search.find(text.as_bytes(), from) {
            from = hit.1 + 1;
            found.push(hit);
        }
        assert_eq!(found, expected);
        for end in 0..text.len() {
            search.find(&text.as_bytes()[..end], end / 2);
        }
    }
}
