//! What was found in a file, as bytes: in the cache and in recordings. For serde, `#[serde(with = "stored")]`.

use std::{cell::RefCell, collections::HashSet};

use agent_ebpf::{Direction, Shape};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{Found, Instruction, Point};

pub fn serialize<S: Serializer>(found: &Found, to: S) -> Result<S::Ok, S::Error> {
    Stored::from(found).serialize(to)
}

pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Found, D::Error> {
    let found = Stored::deserialize(from)?.found();
    found.ok_or_else(|| D::Error::custom("no library and points"))
}

#[derive(Serialize, Deserialize)]
struct Stored {
    library: String,
    version: Option<String>,
    partly: Option<String>,
    located: String,
    on_trial: bool,
    points: Vec<Place>,
    others: Vec<Place>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    offset: u64,
    function_offset: u64,
    library: String,
    function: String,
    is_sent: bool,
    shape: u8,
    is_emulated: bool,
    detail: u32,
    bytes: [u8; 16],
}

impl From<&Found> for Stored {
    fn from(found: &Found) -> Self {
        let places = |points: &[Point]| points.iter().map(Place::from).collect();
        Self {
            library: found.library.to_owned(),
            version: found.version.clone(),
            partly: found.partly.map(str::to_owned),
            located: found.located.to_owned(),
            on_trial: found.on_trial,
            points: places(&found.points),
            others: places(&found.others),
        }
    }
}

impl Stored {
    fn found(self) -> Option<Found> {
        let points = |places: Vec<Place>| -> Option<Vec<Point>> {
            places.into_iter().map(Place::point).collect()
        };
        Some(Found {
            library: kept(self.library)?,
            version: self.version,
            points: points(self.points)?,
            others: points(self.others)?,
            partly: match self.partly {
                Some(why) => Some(kept(why)?),
                None => None,
            },
            located: kept(self.located)?,
            on_trial: self.on_trial,
        })
    }
}

impl From<&Point> for Place {
    fn from(point: &Point) -> Self {
        Self {
            offset: point.offset,
            function_offset: point.function_offset,
            library: point.library.to_owned(),
            function: point.function.to_owned(),
            is_sent: point.direction == Direction::Sent,
            shape: point.shape as u8,
            is_emulated: point.instruction == Instruction::Emulated,
            detail: point.detail,
            bytes: point.bytes,
        }
    }
}

impl Place {
    fn point(self) -> Option<Point> {
        Some(Point {
            offset: self.offset,
            function_offset: self.function_offset,
            library: kept(self.library)?,
            function: kept(self.function)?,
            direction: if self.is_sent {
                Direction::Sent
            } else {
                Direction::Received
            },
            shape: SHAPES
                .into_iter()
                .find(|shape| *shape as u8 == self.shape)?,
            instruction: if self.is_emulated {
                Instruction::Emulated
            } else {
                Instruction::Stepped
            },
            detail: self.detail,
            bytes: self.bytes,
        })
    }
}

const SHAPES: [Shape; 16] = [
    Shape::Returned,
    Shape::OutFourth,
    Shape::OutFifth,
    Shape::Peekable,
    Shape::Handshake,
    Shape::Control,
    Shape::Cleared,
    Shape::Sendfile,
    Shape::Freed,
    Shape::Passed,
    Shape::Begun,
    Shape::Created,
    Shape::Flushed,
    Shape::Encrypted,
    Shape::Decrypted,
    Shape::Rewired,
];

/// Bytes of all names that are kept. Ours are a few kilobytes; the rest is room for signatures.
const NAMES_MAX: usize = 256 << 10;

/// A name that lives as long as the process, as those in the code do: one copy of each, whatever is read. `None`:
/// there are too many.
fn kept(name: String) -> Option<&'static str> {
    thread_local! {
        static NAMES: RefCell<(HashSet<&'static str>, usize)> = RefCell::default();
    }
    NAMES.with_borrow_mut(|(names, bytes)| {
        if let Some(known) = names.get(name.as_str()) {
            return Some(*known);
        }
        // An empty one takes room, too.
        *bytes += name.len() + size_of::<&str>();
        if *bytes > NAMES_MAX {
            return None;
        }
        let name: &'static str = name.leak();
        names.insert(name);
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_comes_back() {
        for number in 0..=u8::MAX {
            let place = Place {
                offset: 1,
                function_offset: 2,
                library: "a library".into(),
                function: "a function".into(),
                is_sent: number % 2 == 0,
                shape: number,
                is_emulated: number % 3 == 0,
                detail: 3,
                bytes: [4; 16],
            };
            match place.point() {
                Some(point) => assert_eq!(point.shape as u8, number),
                None => assert!(number > Shape::Rewired as u8),
            }
        }
    }

    #[test]
    fn names_are_kept_once_and_bounded() {
        // In a thread of its own: it has no names yet, and leaves none to others.
        let test = std::thread::spawn(|| {
            let one = kept("SSL_read".into()).unwrap();
            assert!(std::ptr::eq(one, kept("SSL_read".into()).unwrap()));
            let many = (0..).take_while(|number| kept(format!("{number:01000}")).is_some());
            assert!((200..NAMES_MAX / 1000).contains(&many.count()));
            assert_eq!(kept("SSL_read".into()), Some("SSL_read"));
        });
        test.join().unwrap();
    }
}
