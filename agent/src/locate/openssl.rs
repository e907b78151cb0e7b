//! OpenSSL and its relatives, found by their symbols and proved by their call graph.
//!
//! In OpenSSL 1.1.1 to 4.0 every read passes `ssl_read_internal` once and every write `ssl_write_internal`,
//! whatever exported function was called; `BIO_f_ssl` calls only them. A name is no proof: node has both
//! and its exports contain inlined copies. So the internal function is what all exports of a direction call,
//! or else the exports are probed themselves, without those that lead into another one: two return probes
//! on one frame break each other.
//!
//! Never probed: `SSL_peek` (its bytes come again with the read) and what is behind the method table (it may
//! return on another stack, and the kernel kills the program).

use agent_ebpf::{Direction, Shape};
use iced_x86::Register;

use super::{
    Found, Point, Refusal,
    elf::{Elf, Symbol},
    function::{Function, resolve},
};

/// A function that carries plaintext: name, direction, shape.
type Carrier = (&'static str, Direction, Shape);

#[rustfmt::skip]
const EXPORTS: [Carrier; 7] = [
    ("SSL_read",             Direction::Received, Shape::Returned),
    ("SSL_read_ex",          Direction::Received, Shape::OutFourth),
    ("SSL_read_early_data",  Direction::Received, Shape::OutFourth),
    ("SSL_write",            Direction::Sent,     Shape::Returned),
    ("SSL_write_ex",         Direction::Sent,     Shape::OutFourth),
    ("SSL_write_ex2",        Direction::Sent,     Shape::OutFifth),
    ("SSL_write_early_data", Direction::Sent,     Shape::OutFourth),
];
const READ_INTERNAL: &str = "ssl_read_internal";
const WRITE_INTERNAL: &str = "ssl_write_internal";
const PEEKS: [&str; 2] = ["SSL_peek", "SSL_peek_ex"];
/// Its relatives have no such function.
const BORINGSSL_ONLY: &str = "SSL_CTX_set_grease_enabled";
/// `BIO_f_ssl`'s read or write, and one more for builds that split a caller into a hot and a cold part.
const OTHER_CALLERS_MAX: usize = 2;
/// The version text is among the read-only data, before the unwind tables.
const VERSION_SEARCH_MAX: u64 = 128 << 20;

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let mut names: Vec<_> = EXPORTS.iter().map(|&(name, ..)| name).collect();
    names.extend(PEEKS);
    names.push(BORINGSSL_ONLY);
    let symbols = elf.functions(&names)?;
    let exports = entries(elf, &symbols, &EXPORTS)?;
    let carries =
        |entries: &[Entry], direction| entries.iter().any(|entry| entry.direction == direction);
    if !carries(&exports, Direction::Received) || !carries(&exports, Direction::Sent) {
        return Err(Refusal::NoLibrary);
    }
    let peeks = PEEKS.map(|name| (name, Direction::Received, Shape::Returned));
    let peeks = entries(elf, &symbols, &peeks)?;

    let (chosen, partly) = match internals(elf, &exports, &peeks)? {
        Some(internals) => (internals.into(), None),
        None => independent(elf, exports)?,
    };
    if !carries(&chosen, Direction::Received) || !carries(&chosen, Direction::Sent) {
        return Err(Refusal::Unsafe("its functions lead into each other"));
    }

    let is_boringssl = symbols.iter().any(|symbol| symbol.name == BORINGSSL_ONLY);
    let version = if is_boringssl { None } else { version(elf)? };
    let is_openssl = version.is_some()
        || chosen
            .iter()
            .any(|entry| matches!(entry.name, READ_INTERNAL | WRITE_INTERNAL));
    Ok(Found {
        library: if is_boringssl {
            "BoringSSL"
        } else if is_openssl {
            "OpenSSL"
        } else {
            "libssl"
        },
        version,
        points: chosen
            .iter()
            .map(|entry| entry.point(elf))
            .collect::<Result<_, _>>()?,
        partly,
    })
}

/// A carrier in this file.
struct Entry {
    name: &'static str,
    direction: Direction,
    shape: Shape,
    function: Function,
    /// Functions of this file that it calls or jumps to, once per place.
    leads_to: Vec<u64>,
}

fn entries(elf: &Elf<'_>, symbols: &[Symbol], carriers: &[Carrier]) -> Result<Vec<Entry>, Refusal> {
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

impl Entry {
    fn read(
        elf: &Elf<'_>,
        (name, direction, shape): Carrier,
        address: u64,
    ) -> Result<Option<Self>, Refusal> {
        let Some(function) = Function::read(elf, address)? else {
            return Ok(None);
        };
        let mut leads_to = Vec::new();
        for target in function.exits() {
            leads_to.extend(resolve(elf, target)?);
        }
        Ok(Some(Self {
            name,
            direction,
            shape,
            function,
            leads_to,
        }))
    }

    fn leads_into(&self, others: &[Entry]) -> bool {
        let mut others = others.iter().map(|other| other.function.address);
        others.any(|other| other != self.function.address && self.leads_to.contains(&other))
    }

    fn point(&self, elf: &Elf<'_>) -> Result<Point, Refusal> {
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
            function: self.name,
            direction: self.direction,
            shape: self.shape,
            instruction: place.instruction,
            bytes,
        })
    }
}

/// Number of argument registers that the probe needs intact.
fn arguments(shape: Shape) -> usize {
    match shape {
        Shape::Returned => 3,
        Shape::OutFourth => 4,
        Shape::OutFifth => 5,
    }
}

/// The function of each direction that every call passes once, if both are proved.
fn internals(
    elf: &Elf<'_>,
    exports: &[Entry],
    peeks: &[Entry],
) -> Result<Option<[Entry; 2]>, Refusal> {
    // SSL_write_ex of 3.3 and later is a jump to SSL_write_ex2, early data goes through the _ex functions,
    // SSL_read_ex of LibreSSL calls SSL_read: who leads into another export is seen there.
    let of = |wanted| {
        let (own, others): (Vec<_>, Vec<_>) = exports
            .iter()
            .filter(|entry| !entry.leads_into(exports) && !is_early(entry))
            .partition(|entry| entry.direction == wanted);
        (own, others.into_iter().chain(peeks).collect::<Vec<_>>())
    };
    let early: Vec<_> = exports
        .iter()
        .filter(|entry| is_early(entry))
        .map(|entry| entry.function.address)
        .collect();

    // int ssl_read_internal(SSL *s, void *buf, size_t num, size_t *readbytes), 1.1.1 to 4.0
    let (own, others) = of(Direction::Received);
    let read = (READ_INTERNAL, Direction::Received, Shape::OutFourth);
    let Some(read) = internal(elf, read, &own, &others, &early)? else {
        return Ok(None);
    };
    let (own, others) = of(Direction::Sent);
    let write = (WRITE_INTERNAL, Direction::Sent, write_shape(exports));
    let Some(write) = internal(elf, write, &own, &others, &early)? else {
        return Ok(None);
    };
    Ok(Some([read, write]))
}

/// `int ssl_write_internal(SSL *s, const void *buf, size_t num, size_t *written)`, 1.1.1 to 3.2;
/// `(s, buf, num, uint64_t flags, size_t *written)` since 3.3, which brought SSL_write_ex2.
fn write_shape(exports: &[Entry]) -> Shape {
    match exports.iter().any(|entry| entry.shape == Shape::OutFifth) {
        true => Shape::OutFifth,
        false => Shape::OutFourth,
    }
}

fn is_early(entry: &Entry) -> bool {
    matches!(entry.name, "SSL_read_early_data" | "SSL_write_early_data")
}

/// The one function that all of `own` lead to once, and none of `others`; known as `carrier` in the source.
fn internal(
    elf: &Elf<'_>,
    carrier: Carrier,
    own: &[&Entry],
    others: &[&Entry],
    early: &[u64],
) -> Result<Option<Entry>, Refusal> {
    // Without the _ex functions it isn't the OpenSSL that has internal ones. BoringSSL's SSL_read has many
    // callees, and which of them is alone in being called by it is chance.
    let Some(first) = own.iter().find(|entry| entry.shape != Shape::Returned) else {
        return Ok(None);
    };
    let times = |entry: &Entry, target| entry.leads_to.iter().filter(|&&led| led == target).count();
    let mut candidates = first.leads_to.iter().copied().filter(|&target| {
        own.iter().all(|entry| times(entry, target) == 1)
            && others.iter().all(|entry| times(entry, target) == 0)
    });
    let (Some(address), None) = (candidates.next(), candidates.next()) else {
        return Ok(None);
    };

    let Some(entry) = Entry::read(elf, carrier, address)? else {
        return Ok(None);
    };
    if entry.function.place(arguments(entry.shape)).is_none() {
        return Ok(None);
    }
    // SSL_write passes flags = 0 as the fourth argument, where older ones pass the address of the count.
    let plain = own.iter().find(|entry| entry.shape == Shape::Returned);
    if plain.is_some_and(|plain| {
        plain.function.passes_zero(Register::RCX, address) != (entry.shape == Shape::OutFifth)
    }) {
        return Ok(None);
    }

    let Some(callers) = callers(elf, address)? else {
        return Ok(None);
    };
    let once = own.iter().all(|entry| {
        callers
            .iter()
            .filter(|&&caller| caller == entry.function.address)
            .count()
            == 1
    });
    let mut foreign: Vec<_> = callers;
    foreign.retain(|caller| {
        !early.contains(caller) && own.iter().all(|entry| entry.function.address != *caller)
    });
    foreign.sort_unstable();
    foreign.dedup();
    Ok((once && foreign.len() <= OTHER_CALLERS_MAX).then_some(entry))
}

/// Functions that refer to `address`, once per place; `None` if one is unknown.
fn callers(elf: &Elf<'_>, address: u64) -> Result<Option<Vec<u64>>, Refusal> {
    let mut callers = Vec::new();
    for reference in elf.references(address)?.unwrap_or_default() {
        let Some(caller) = elf.function_around(reference)? else {
            return Ok(None);
        };
        callers.push(caller.start);
    }
    Ok(Some(callers))
}

/// Exports, and the internal functions where a symbol names them, without those that lead into another one;
/// and who is not seen by them.
fn independent(
    elf: &Elf<'_>,
    exports: Vec<Entry>,
) -> Result<(Vec<Entry>, Option<&'static str>), Refusal> {
    let has_ex = |entries: &[Entry], direction| {
        entries.iter().any(|entry| {
            entry.direction == direction && entry.shape != Shape::Returned && !is_early(entry)
        })
    };
    let internals = [
        (READ_INTERNAL, Direction::Received, Shape::OutFourth),
        (WRITE_INTERNAL, Direction::Sent, write_shape(&exports)),
    ];
    let symbols = elf.functions(&internals.map(|(name, ..)| name))?;
    let mut all = exports;
    all.extend(entries(elf, &symbols, &internals)?);

    let inner: Vec<_> = all.iter().map(|entry| !entry.leads_into(&all)).collect();
    let mut inner = inner.into_iter();
    all.retain(|_| inner.next().unwrap_or(false));

    // LibreSSL's _ex functions have led into the plain ones and are gone; so does its BIO_f_ssl.
    let unseen = |direction, internal| {
        has_ex(&all, direction) && all.iter().all(|entry| entry.name != internal)
    };
    let partly =
        unseen(Direction::Received, READ_INTERNAL) || unseen(Direction::Sent, WRITE_INTERNAL);
    let partly =
        partly.then_some("only exported functions are probed: TLS through BIO_f_ssl is not seen");
    Ok((all, partly))
}

/// `3.0.19` of `OpenSSL 3.0.19 27 Jan 2026`. The libssl of 3.0 and later doesn't say it.
fn version(elf: &Elf<'_>) -> Result<Option<String>, Refusal> {
    elf.search(b"OpenSSL ", 40, VERSION_SEARCH_MAX, |text| {
        let end = text.iter().position(|&byte| byte == 0)?;
        let words: Vec<_> = str::from_utf8(&text[..end])
            .ok()?
            .split_whitespace()
            .collect();
        // Its relatives say `OpenSSL 1.1.1 (compatible; BoringSSL)`.
        let [version, .., _day, _month, year] = words[..] else {
            return None;
        };
        let is_version = version.starts_with(|first: char| first.is_ascii_digit())
            && version.split('.').count() == 3;
        let is_year = year.len() == 4 && year.bytes().all(|digit| digit.is_ascii_digit());
        (is_version && is_year).then(|| version.to_owned())
    })
}
