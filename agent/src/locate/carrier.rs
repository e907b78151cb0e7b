//! The named functions that carry plaintext, as a file has them: what families that are found by symbols share.

use agent_ebpf::{Direction, Shape};

use super::{
    Point, Refusal,
    elf::{Elf, Symbol},
    function::{Function, resolve},
};

/// A function that carries plaintext: name, direction, shape.
pub(super) type Carrier = (&'static str, Direction, Shape);

/// A carrier in this file.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) direction: Direction,
    pub(super) shape: Shape,
    pub(super) function: Function,
    /// Functions of this file that it calls or jumps to, once per place.
    pub(super) leads_to: Vec<u64>,
}

pub(super) fn entries(
    elf: &Elf<'_>,
    symbols: &[Symbol],
    carriers: &[Carrier],
) -> Result<Vec<Entry>, Refusal> {
    let mut entries = Vec::new();
    for &(name, direction, shape) in carriers {
        let mut named = symbols.iter().filter(|symbol| symbol.name == name);
        let Some(symbol) = named.next() else {
            continue;
        };
        if named.next().is_some() {
            return Err(Refusal::Unsafe("two functions have the same name"));
        }
        let entry = Entry::read(elf, (name, direction, shape), symbol.address)?;
        entries.push(entry.ok_or(Refusal::Unsafe("the end of a function is not known"))?);
    }
    Ok(entries)
}

pub(super) fn addresses(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.function.address).collect()
}

/// Those of `carriers` that lead into none of the others, so that no call passes two of them. There is one for
/// each direction, or they are refused.
pub(super) fn independent(mut carriers: Vec<Entry>) -> Result<Vec<Entry>, Refusal> {
    let all = addresses(&carriers);
    carriers.retain(|entry| !entry.leads_into(&all));
    let mut distinct = addresses(&carriers);
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() != carriers.len() {
        return Err(Refusal::Unsafe("two of its functions are one"));
    }
    let carries = |direction| carriers.iter().any(|entry| entry.direction == direction);
    if !carries(Direction::Received) || !carries(Direction::Sent) {
        return Err(Refusal::Unsafe("its functions lead into each other"));
    }
    Ok(carriers)
}

pub(super) fn points(elf: &Elf<'_>, carriers: &[Entry]) -> Result<Vec<Point>, Refusal> {
    carriers.iter().map(|entry| entry.point(elf)).collect()
}

/// The points of `others`, as far as they are safe. Without them less is known of a connection; nothing else
/// depends on them.
pub(super) fn others(
    elf: &Elf<'_>,
    symbols: &[Symbol],
    others: &[Carrier],
    chosen: &[Entry],
) -> Vec<Point> {
    let mut points = Vec::new();
    for &other in others {
        let Ok(found) = entries(elf, symbols, &[other]) else {
            continue;
        };
        let entry = found.iter().find(|entry| !entry.shares_frames(chosen));
        points.extend(entry.and_then(|entry| entry.point(elf).ok()));
    }
    points
}

/// Functions that refer to `address`, once per place; `None` if one is unknown.
pub(super) fn callers(elf: &Elf<'_>, address: u64) -> Result<Option<Vec<u64>>, Refusal> {
    let mut callers = Vec::new();
    for reference in elf.references(address)? {
        let Some(caller) = elf.function_around(reference)? else {
            return Ok(None);
        };
        callers.push(caller.start);
    }
    Ok(Some(callers))
}

/// All names of these, for [`Elf::functions`].
pub(super) fn names(carriers: &[&[Carrier]]) -> Vec<&'static str> {
    let carriers = carriers.iter().flat_map(|carriers| carriers.iter());
    carriers.map(|&(name, ..)| name).collect()
}

/// Does a function of this name lead to one that another also leads to? What two functions that no other
/// library has share, their names alone don't.
pub(super) fn share_a_function(carriers: &[Entry], pair: [&str; 2]) -> bool {
    let [first, second] = pair.map(|name| carriers.iter().find(|entry| entry.name == name));
    first.zip(second).is_some_and(|(first, second)| {
        let mut inner = first.leads_to.iter();
        inner.any(|target| second.leads_to.contains(target))
    })
}

impl Entry {
    pub(super) fn read(
        elf: &Elf<'_>,
        carrier: Carrier,
        address: u64,
    ) -> Result<Option<Self>, Refusal> {
        match Function::read(elf, address)? {
            Some(function) => Self::of(elf, carrier, function).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn of(
        elf: &Elf<'_>,
        (name, direction, shape): Carrier,
        function: Function,
    ) -> Result<Self, Refusal> {
        let mut leads_to = Vec::new();
        for target in function.exits() {
            leads_to.extend(resolve(elf, target)?);
        }
        Ok(Self {
            name,
            direction,
            shape,
            function,
            leads_to,
        })
    }

    pub(super) fn leads_into(&self, others: &[u64]) -> bool {
        let mut others = others
            .iter()
            .filter(|&&other| other != self.function.address);
        others.any(|other| self.leads_to.contains(other))
    }

    pub(super) fn leads_to_once(&self, target: u64) -> bool {
        self.leads_to.iter().filter(|led| **led == target).count() == 1
    }

    /// Would a probe here meet one of `chosen` on one frame? Two return probes there break each other.
    pub(super) fn shares_frames(&self, chosen: &[Entry]) -> bool {
        let taken = addresses(chosen);
        let has_return = !matches!(
            self.shape,
            Shape::Control | Shape::Cleared | Shape::Freed | Shape::Rewired | Shape::Encrypted
        );
        taken.contains(&self.function.address)
            || has_return
                && (self.leads_into(&taken)
                    || chosen
                        .iter()
                        .any(|carrier| carrier.leads_into(&[self.function.address])))
    }

    pub(super) fn point(&self, elf: &Elf<'_>) -> Result<Point, Refusal> {
        let place = self.function.place(arguments(self.shape));
        let place = place.ok_or(Refusal::Unsafe(
            "the kernel refuses a probe on the first instruction",
        ))?;
        let offset = self.function.offset + place.distance as u64;
        let bytes = elf
            .read(offset, 16)?
            .try_into()
            .map_err(|_| Refusal::Truncated)?;
        Ok(Point {
            offset,
            function_offset: self.function.offset,
            // Its family says it.
            library: "",
            function: self.name,
            direction: self.direction,
            shape: self.shape,
            instruction: place.instruction,
            detail: 0,
            bytes,
        })
    }
}

/// Number of argument registers that the probe needs intact.
pub(super) fn arguments(shape: Shape) -> usize {
    match shape {
        Shape::Created
        | Shape::Handshake
        | Shape::Cleared
        | Shape::Freed
        | Shape::Rewired
        | Shape::Begun => 1,
        Shape::Flushed => 2,
        Shape::Control | Shape::Sendfile | Shape::Encrypted | Shape::Decrypted => 4,
        Shape::Returned | Shape::Passed => 3,
        Shape::OutFourth | Shape::Peekable => 4,
        Shape::OutFifth => 5,
    }
}
