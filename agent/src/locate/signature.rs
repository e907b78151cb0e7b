//! Functions that somebody names by their place, because no family finds them, or because they were found before.
//!
//! Whoever names them, what is proved of ours is proved of these: they lie in code, begin where the file says that
//! functions begin, a probe fits there, and none leads into another.

use agent_ebpf::{Direction, Shape};

use super::{
    Found, Point, Refusal,
    carrier::{self, Entry, independent},
    elf::Elf,
    function::Function,
    means,
};
use crate::glob::glob;

/// A library that somebody knows and we don't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub library: &'static str,
    pub file: Which,
    /// At least one of each direction.
    pub functions: Vec<Named>,
}

/// Which files a signature is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    Path(String),
    BuildId(Vec<u8>),
}

/// A function by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: &'static str,
    /// File offset of its first byte.
    pub offset: u64,
    pub direction: Direction,
    pub shape: Shape,
}

impl Signature {
    pub(super) fn is_for(&self, elf: &Elf<'_>, path: &str) -> Result<bool, Refusal> {
        match &self.file {
            Which::Path(pattern) => Ok(glob(pattern, path)),
            Which::BuildId(id) => Ok(elf.build_id()?.as_ref() == Some(id)),
        }
    }

    pub(super) fn locate(&self, elf: &Elf<'_>) -> Result<Found, Refusal> {
        let why = |refusal| match refusal {
            Refusal::Unsafe(why) => Refusal::Signature(self.library, why),
            other => other,
        };
        let entries: Result<Vec<_>, _> =
            self.functions.iter().map(|named| named.read(elf)).collect();
        let chosen = entries.and_then(independent).map_err(why)?;
        Ok(Found {
            library: self.library,
            version: None,
            points: carrier::points(elf, &chosen).map_err(why)?,
            others: Vec::new(),
            partly: None,
            located: means::SIGNATURE,
            on_trial: true,
        })
    }
}

impl Named {
    fn read(&self, elf: &Elf<'_>) -> Result<Entry, Refusal> {
        let Some(address) = elf.code_address(self.offset) else {
            return Err(Refusal::Unsafe("an offset is not in its code"));
        };
        let carrier = (self.name, self.direction, self.shape);
        if let Some(entry) = Entry::read(elf, carrier, address)? {
            return Ok(entry);
        }
        match Function::referred(elf, address)? {
            Some(function) => Entry::of(elf, carrier, function),
            None => Err(Refusal::Unsafe("an offset is not where a function begins")),
        }
    }
}

/// Is `point` what we would make of its function today?
pub(super) fn still_holds(elf: &Elf<'_>, point: &Point) -> Result<bool, Refusal> {
    let named = Named {
        name: point.function,
        offset: point.function_offset,
        direction: point.direction,
        shape: point.shape,
    };
    let again = match named.read(elf).and_then(|entry| entry.point(elf)) {
        Err(Refusal::Unsafe(_)) => return Ok(false),
        again => again?,
    };
    let again = Point {
        library: point.library,
        detail: point.detail,
        ..again
    };
    Ok(again == *point)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            image::{
                Piece::{self, Bytes, Call, Jump},
                image, offset_of, without_unwind,
            },
            locate, locate_as,
        },
        *,
    };

    const PUSH: Piece = Bytes(&[0x55, 0x5d]);
    const RET: Piece = Bytes(&[0xc3]);

    /// A stripped program with two functions of its own, one that jumps to the first, and one with a prefix that the
    /// kernel refuses.
    fn program() -> Vec<u8> {
        let functions: [(&str, &[Piece]); 5] = [
            (".read", &[PUSH, RET]),
            (".write", &[PUSH, RET]),
            (".forward", &[Jump(".read")]),
            (".locked", &[Bytes(&[0xf0, 0x01, 0x07]), RET]),
            (".other", &[PUSH, Call(".read"), RET]),
        ];
        image(&functions)
    }

    fn signature(functions: &[(u64, Direction)]) -> Signature {
        let named = |&(offset, direction)| Named {
            name: "function",
            offset,
            direction,
            shape: Shape::Returned,
        };
        Signature {
            library: "private",
            file: Which::Path("/opt/*".to_owned()),
            functions: functions.iter().map(named).collect(),
        }
    }

    const READ: (u64, Direction) = (offset_of(0), Direction::Received);
    const WRITE: (u64, Direction) = (offset_of(1), Direction::Sent);

    #[test]
    fn a_signature_is_found_and_checked() {
        let find = |functions: &[(u64, Direction)]| {
            locate_as(&program(), "/opt/server", &[signature(functions)])
        };
        let found = find(&[READ, WRITE]).unwrap();
        assert_eq!((found.library, found.points.len()), ("private", 2));
        // Who leads into another is seen there.
        let forward = (offset_of(2), Direction::Received);
        assert_eq!(find(&[READ, WRITE, forward]).unwrap().points.len(), 2);

        let end = program().len() as u64;
        for (offset, why) in [
            (offset_of(0) + 1, "not where a function begins"),
            (offset_of(0) - 1, "not where a function begins"),
            (0, "not where a function begins"),
            (end, "not in its code"),
            (u64::MAX, "not in its code"),
            (offset_of(3), "the kernel refuses"),
            (offset_of(1), "two of its functions are one"),
        ] {
            let refusal = find(&[(offset, Direction::Received), WRITE]).unwrap_err();
            let text = refusal.to_string();
            assert!(text.contains("private") && text.contains(why), "{text}");
        }
    }

    /// Static programs may be without unwind entries: then a function is what is called.
    #[test]
    fn a_function_is_what_is_called() {
        let file = without_unwind(program());
        let find = |read: u64, write: u64| {
            let functions = [(read, Direction::Received), (write, Direction::Sent)];
            locate_as(&file, "/opt/server", &[signature(&functions)])
        };
        // Nobody calls the second one.
        for (read, write) in [(0, 1), (1, 0)] {
            let refusal = find(offset_of(read), offset_of(write)).unwrap_err();
            let text = refusal.to_string();
            assert!(text.contains("not where a function begins"), "{text}");
        }
        let both: [(&str, &[Piece]); 3] = [
            (".read", &[PUSH, RET]),
            (".write", &[PUSH, RET]),
            (".main", &[PUSH, Call(".read"), Call(".write"), RET]),
        ];
        let file = without_unwind(image(&both));
        let find = |functions| locate_as(&file, "/opt/server", &[signature(functions)]);
        assert_eq!(find(&[READ, WRITE]).unwrap().points.len(), 2);
        let between = (offset_of(0) + 1, Direction::Received);
        assert!(find(&[between, WRITE]).is_err());
    }

    #[test]
    fn a_signature_is_for_its_files_only() {
        let signature = signature(&[READ, WRITE]);
        let all = std::slice::from_ref(&signature);
        let elsewhere = locate_as(&program(), "/usr/bin/server", all);
        assert_eq!(elsewhere, Err(Refusal::NoLibrary));
        assert_eq!(elsewhere, locate(&program()));
        let by_id = Signature {
            file: Which::BuildId(vec![1, 2, 3, 4]),
            ..signature
        };
        assert_eq!(
            locate_as(&program(), "/opt/server", &[by_id]),
            Err(Refusal::NoLibrary)
        );
    }
}
