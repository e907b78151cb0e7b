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
    carrier::{self, Carrier, Entry, addresses, arguments, callers, entries},
    elf::{Elf, Symbol, Target},
    function::linkage,
    means, unnamed,
};

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
pub(super) const READ_INTERNAL: &str = "ssl_read_internal";
pub(super) const WRITE_INTERNAL: &str = "ssl_write_internal";
/// All versions and relatives; BoringSSL has no `SSL_ctrl`. `SSL_connect` and `SSL_accept` lead into
/// `SSL_do_handshake`, and `SSL_set_fd` and the like into the functions that set a transport.
#[rustfmt::skip]
const OTHERS: [Carrier; 9] = [
    ("SSL_new",          Direction::Received, Shape::Created),
    ("SSL_do_handshake", Direction::Received, Shape::Handshake),
    ("SSL_sendfile",     Direction::Sent,     Shape::Sendfile),
    ("SSL_ctrl",         Direction::Received, Shape::Control),
    ("SSL_clear",        Direction::Received, Shape::Cleared),
    ("SSL_free",         Direction::Received, Shape::Freed),
    ("SSL_set_bio",      Direction::Received, Shape::Rewired),
    ("SSL_set0_rbio",    Direction::Received, Shape::Rewired),
    ("SSL_set0_wbio",    Direction::Received, Shape::Rewired),
];
/// Adds one to the number of an object's owners, of which `SSL_free` takes one away.
const UP_REF: &str = "SSL_up_ref";
const PEEKS: [&str; 2] = ["SSL_peek", "SSL_peek_ex"];
/// Its relatives have no such function.
const BORINGSSL_ONLY: &str = "SSL_CTX_set_grease_enabled";
/// `BIO_f_ssl`'s read or write, and one more for builds that split a caller into a hot and a cold part.
pub(super) const OTHER_CALLERS_MAX: usize = 2;
/// The version text is among the read-only data, before the unwind tables.
const VERSION_SEARCH_MAX: u64 = 128 << 20;

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let mut names: Vec<_> = EXPORTS.iter().map(|&(name, ..)| name).collect();
    names.extend(PEEKS);
    names.push(BORINGSSL_ONLY);
    names.extend(OTHERS.map(|(name, ..)| name));
    names.push(UP_REF);
    let symbols = elf.functions(&names)?;
    let exports = entries(elf, &symbols, &EXPORTS)?;
    let carries =
        |entries: &[Entry], direction| entries.iter().any(|entry| entry.direction == direction);
    if !carries(&exports, Direction::Received) || !carries(&exports, Direction::Sent) {
        return unnamed::locate(elf);
    }
    if wraps_gnutls(elf, &exports)? {
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
    let has_internal = chosen
        .iter()
        .any(|entry| matches!(entry.name, READ_INTERNAL | WRITE_INTERNAL));
    let library = match (is_boringssl, has_internal || version.is_some()) {
        (true, _) => "BoringSSL",
        (false, true) => "OpenSSL",
        (false, false) => "libssl",
    };
    let points = chosen
        .iter()
        .map(|entry| entry.point(elf))
        .collect::<Result<_, _>>()?;
    // Without them a reused address is not noticed, and less is known of who talks to whom; nothing else
    // depends on them.
    let mut others = Vec::new();
    for other in OTHERS {
        let Ok(entries) = entries(elf, &symbols, &[other]) else {
            continue;
        };
        let Some(entry) = entries.iter().find(|entry| !entry.shares_frames(&chosen)) else {
            continue;
        };
        let mut detail = 0;
        if entry.shape == Shape::Freed {
            match references_of(elf, &symbols, entry) {
                // 0 stands for Go's.
                Some(known @ 1..) => detail = known.into(),
                Some(0) | None => continue,
            }
        }
        let point = entry.point(elf).ok();
        others.extend(point.map(|point| Point { detail, ..point }));
    }
    Ok(Found {
        library,
        version,
        points,
        others,
        partly,
        located: means::SYMBOLS,
        on_trial: false,
    })
}

/// `libgnutls-openssl` has these names, too; its bytes are seen in the library that it calls.
fn wraps_gnutls(elf: &Elf<'_>, exports: &[Entry]) -> Result<bool, Refusal> {
    for target in exports.iter().flat_map(|export| export.function.exits()) {
        if let Target::Slot(slot) = linkage(elf, target)?
            && elf.imports(slot, b"gnutls_record_")?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where in an object the number of its owners is: one function adds to it, the other one takes away.
fn references_of(elf: &Elf<'_>, symbols: &[Symbol], free: &Entry) -> Option<u16> {
    let up_ref = [(UP_REF, free.direction, free.shape)];
    let up_ref = entries(elf, symbols, &up_ref).ok()?.pop()?;
    let references = free.function.counts_at()?;
    (up_ref.function.counts_at()? == references).then_some(references)
}

/// An internal function that `exports` of its direction may call; `None` if its signature is in doubt.
///
/// `int ssl_read_internal(SSL *s, void *buf, size_t num, size_t *readbytes)`, 1.1.1 to 4.0;
/// `int ssl_write_internal(SSL *s, const void *buf, size_t num, size_t *written)`, 1.1.1 to 3.2, and
/// `(s, buf, num, uint64_t flags, size_t *written)` since 3.3, which brought SSL_write_ex2. That function
/// proves the flags, but a static program may have lost it: the code is asked, on both sides of the call.
fn read_internal(
    elf: &Elf<'_>,
    name: &'static str,
    address: u64,
    exports: &[&Entry],
) -> Result<Option<Entry>, Refusal> {
    let direction = match name {
        READ_INTERNAL => Direction::Received,
        _ => Direction::Sent,
    };
    let Some(entry) = Entry::read(elf, (name, direction, Shape::OutFourth), address)? else {
        return Ok(None);
    };
    let has_flags = entry.function.takes(Register::R8);
    let agree = exports
        .iter()
        .filter(|export| export.direction == direction)
        .all(|export| match export.shape {
            Shape::OutFifth => has_flags,
            _ if !export.leads_to.contains(&address) => true,
            // The others pass flags = 0 where older ones pass the address of the count.
            _ => export.function.passes_zero(Register::RCX, address) == has_flags,
        });
    let shape = if has_flags {
        Shape::OutFifth
    } else {
        Shape::OutFourth
    };
    let fits = agree && (!has_flags || direction == Direction::Sent);
    let has_place = entry.function.place(arguments(shape)).is_some();
    Ok((fits && has_place).then_some(Entry { shape, ..entry }))
}

/// The function of each direction that every call passes once, if both are proved.
fn internals(
    elf: &Elf<'_>,
    exports: &[Entry],
    peeks: &[Entry],
) -> Result<Option<[Entry; 2]>, Refusal> {
    // SSL_write_ex of 3.3 and later is a jump to SSL_write_ex2, early data goes through the _ex functions,
    // SSL_read_ex of LibreSSL calls SSL_read: who leads into another export is seen there.
    let addresses = addresses(exports);
    let of = |wanted| {
        let (own, others): (Vec<_>, Vec<_>) = exports
            .iter()
            .filter(|entry| !entry.leads_into(&addresses) && !is_early(entry))
            .partition(|entry| entry.direction == wanted);
        (own, others.into_iter().chain(peeks).collect::<Vec<_>>())
    };
    let early = exports.iter().filter(|entry| is_early(entry));
    let early: Vec<_> = early.map(|entry| entry.function.address).collect();

    let (own, others) = of(Direction::Received);
    let Some(read) = internal(elf, READ_INTERNAL, &own, &others, &early)? else {
        return Ok(None);
    };
    let (own, others) = of(Direction::Sent);
    let Some(write) = internal(elf, WRITE_INTERNAL, &own, &others, &early)? else {
        return Ok(None);
    };
    Ok(Some([read, write]))
}

fn is_early(entry: &Entry) -> bool {
    matches!(entry.name, "SSL_read_early_data" | "SSL_write_early_data")
}

/// The one function that all of `own` lead to once, and none of `others`; `name` in the source.
fn internal(
    elf: &Elf<'_>,
    name: &'static str,
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

    let Some(entry) = read_internal(elf, name, address, own)? else {
        return Ok(None);
    };
    let Some(callers) = callers(elf, address)? else {
        return Ok(None);
    };
    let calls = |own: &Entry| {
        callers
            .iter()
            .filter(|&&caller| caller == own.function.address)
            .count()
    };
    let once = own.iter().all(|own| calls(own) == 1);
    let mut foreign = callers;
    foreign.retain(|caller| {
        !early.contains(caller) && own.iter().all(|entry| entry.function.address != *caller)
    });
    foreign.sort_unstable();
    foreign.dedup();
    Ok((once && foreign.len() <= OTHER_CALLERS_MAX).then_some(entry))
}

/// Exports, and the internal functions that a symbol names, without those that lead into another one;
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
    let mut symbols = elf.functions(&[READ_INTERNAL, WRITE_INTERNAL])?;
    symbols.sort_unstable_by_key(|symbol| symbol.name);
    let own: Vec<_> = exports.iter().collect();
    let mut internals = Vec::new();
    for symbol in symbols {
        internals.extend(read_internal(elf, symbol.name, symbol.address, &own)?);
    }
    let mut all = exports;
    all.extend(internals);

    let all = carrier::independent(all)?;

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
pub(super) fn version(elf: &Elf<'_>) -> Result<Option<String>, Refusal> {
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
            && version.split('.').count() == 3
            && version
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
        let is_year = year.len() == 4 && year.bytes().all(|digit| digit.is_ascii_digit());
        (is_version && is_year).then(|| version.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs::File, io, os::unix::fs::FileExt};

    use super::{
        super::{
            Instruction, ReadAt,
            image::{
                Piece::{self, Bytes, Call, Jump, JumpThrough},
                image, offset_of,
            },
            tests::flip_bits,
        },
        *,
    };

    const RET: Piece = Bytes(&[0xc3]);
    const SUB: Piece = Bytes(&[0x48, 0x83, 0xec, 0x18]);
    /// lea 8(%rsp),%rcx
    const OUT_FOURTH: Piece = Bytes(&[0x48, 0x8d, 0x4c, 0x24, 0x08]);
    /// xor %ecx,%ecx; lea 8(%rsp),%r8
    const FLAGS_AND_OUT_FIFTH: Piece = Bytes(&[0x31, 0xc9, 0x4c, 0x8d, 0x44, 0x24, 0x08]);
    /// mov %rcx,%r8; xor %ecx,%ecx
    const SHIFT: Piece = Bytes(&[0x49, 0x89, 0xc8, 0x31, 0xc9]);
    const PUSH: Piece = Bytes(&[0x55, 0x5d, 0xc3]);
    /// push %rbp; mov %r8,%rbp; pop %rbp; ret
    const PUSH_FIVE: Piece = Bytes(&[0x55, 0x4c, 0x89, 0xc5, 0x5d, 0xc3]);
    const ENDBR_PUSH: Piece = Bytes(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x57, 0x41, 0x5f, 0xc3]);

    /// push; pop; lock xadd %eax,0x20(%rdi)
    const COUNT: Piece = Bytes(&[0x55, 0x5d, 0xf0, 0x0f, 0xc1, 0x47, 0x20]);
    const COUNT_ELSEWHERE: Piece = Bytes(&[0x55, 0x5d, 0xf0, 0x0f, 0xc1, 0x47, 0x24]);

    type Functions = Vec<(&'static str, &'static [Piece])>;

    /// As Debian's 3.0: two internal functions, a BIO that calls them, an error function that all call.
    fn old() -> Functions {
        vec![
            (".read", &[PUSH]),
            (".write", &[PUSH]),
            (".peek", &[PUSH]),
            (".error", &[RET]),
            (".bio_read", &[SUB, Call(".read"), RET]),
            (".bio_write", &[SUB, Call(".write"), RET]),
            (
                "SSL_read",
                &[SUB, OUT_FOURTH, Call(".read"), Call(".error"), RET],
            ),
            ("SSL_read_ex", &[SUB, Call(".read"), RET]),
            ("SSL_peek", &[SUB, Call(".peek"), Call(".error"), RET]),
            (
                "SSL_write",
                &[SUB, OUT_FOURTH, Call(".write"), Call(".error"), RET],
            ),
            ("SSL_write_ex", &[SUB, Call(".write"), RET]),
            ("SSL_write_early_data", &[SUB, Call("SSL_write_ex"), RET]),
        ]
    }

    /// As Debian's 3.5: CET, flags, SSL_write_ex leads through the PLT.
    fn new() -> Functions {
        vec![
            (".read", &[ENDBR_PUSH]),
            (".write", &[Bytes(&[0xf3, 0x0f, 0x1e, 0xfa]), PUSH_FIVE]),
            (
                ".plt",
                &[
                    Bytes(&[0xf3, 0x0f, 0x1e, 0xfa]),
                    JumpThrough("SSL_write_ex2"),
                ],
            ),
            ("SSL_read", &[SUB, OUT_FOURTH, Call(".read"), RET]),
            ("SSL_read_ex", &[SUB, Call(".read"), RET]),
            (
                "SSL_write",
                &[SUB, FLAGS_AND_OUT_FIFTH, Call(".write"), RET],
            ),
            ("SSL_write_ex", &[SHIFT, Jump(".plt")]),
            ("SSL_write_ex2", &[SUB, Call(".write"), RET]),
        ]
    }

    fn find(functions: &Functions) -> Result<Found, Refusal> {
        super::super::locate(&image(functions))
    }

    #[track_caller]
    fn check(functions: Functions, expected: &[&str]) -> Found {
        let found = find(&functions).unwrap();
        let names: Vec<_> = found.points.iter().map(|point| point.function).collect();
        assert_eq!(names, expected);
        found
    }

    const INTERNALS: [&str; 2] = [READ_INTERNAL, WRITE_INTERNAL];

    #[test]
    fn internals_are_what_all_exports_call() {
        let found = check(old(), &INTERNALS);
        assert_eq!((found.library, found.partly), ("OpenSSL", None));
        let [read, write] = &found.points[..] else {
            panic!()
        };
        assert_eq!(
            (read.offset, read.function_offset, read.direction),
            (offset_of(0), offset_of(0), Direction::Received)
        );
        assert_eq!(
            (write.offset, write.shape, write.instruction),
            (offset_of(1), Shape::OutFourth, Instruction::Emulated)
        );
        assert_eq!(write.bytes[..4], [0x55, 0x5d, 0xc3, 0xcc]);
    }

    #[test]
    fn flags_come_with_write_ex2() {
        let found = check(new(), &INTERNALS);
        let [read, write] = &found.points[..] else {
            panic!()
        };
        assert_eq!(
            (read.shape, write.shape),
            (Shape::OutFourth, Shape::OutFifth)
        );
        assert_eq!(
            (write.offset, write.function_offset),
            (offset_of(1) + 4, offset_of(1))
        );
        assert_eq!(write.instruction, Instruction::Emulated);
    }

    #[test]
    fn what_says_something_about_a_connection_is_found() {
        let mut functions = old();
        functions.extend([
            ("SSL_new", &[PUSH] as &[Piece]),
            ("SSL_do_handshake", &[SUB, Call(".error"), RET]),
            ("SSL_sendfile", &[PUSH]),
            ("SSL_ctrl", &[PUSH]),
            ("SSL_clear", &[PUSH]),
            ("SSL_free", &[COUNT, RET]),
            ("SSL_up_ref", &[COUNT, RET]),
            ("SSL_set_bio", &[PUSH]),
            ("SSL_set0_rbio", &[PUSH]),
            ("SSL_set0_wbio", &[PUSH]),
        ]);
        let others = |functions: &Functions| {
            let found = find(functions).unwrap();
            let others = found.others.iter();
            others
                .map(|point| (point.function, point.shape, point.detail))
                .collect::<Vec<_>>()
        };
        let mut all = vec![
            ("SSL_new", Shape::Created, 0),
            ("SSL_do_handshake", Shape::Handshake, 0),
            ("SSL_sendfile", Shape::Sendfile, 0),
            ("SSL_ctrl", Shape::Control, 0),
            ("SSL_clear", Shape::Cleared, 0),
            ("SSL_free", Shape::Freed, 0x20),
            ("SSL_set_bio", Shape::Rewired, 0),
            ("SSL_set0_rbio", Shape::Rewired, 0),
            ("SSL_set0_wbio", Shape::Rewired, 0),
        ];
        assert_eq!(others(&functions), all);
        let mut becomes = |name, pieces| {
            let mut known = functions.iter_mut();
            known.find(|(known, _)| *known == name).unwrap().1 = pieces;
            others(&functions)
        };
        // Two return probes on one frame.
        all.remove(1);
        assert_eq!(becomes("SSL_do_handshake", &[Jump(".read")]), all);
        all.remove(1);
        assert_eq!(becomes("SSL_sendfile", &[Jump(".write")]), all);
        // Who counts somewhere else, or not at all, counts something else.
        all.retain(|(_, shape, _)| *shape != Shape::Freed);
        assert_eq!(becomes("SSL_up_ref", &[COUNT_ELSEWHERE, RET]), all);
        assert_eq!(becomes("SSL_up_ref", &[PUSH]), all);
        assert_eq!(becomes("SSL_free", &[PUSH]), all);
    }

    #[test]
    fn only_the_ex_functions_are_linked() {
        let mut functions = new();
        functions.retain(|(name, _)| !matches!(*name, "SSL_read" | "SSL_write"));
        check(functions, &INTERNALS);
    }

    #[test]
    fn an_unproved_internal_is_not_probed() {
        let exports = ["SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex"];
        let cases: [(&'static str, &'static [Piece]); 6] = [
            ("SSL_peek", &[Call(".write"), Call(".read"), RET]),
            ("SSL_read_ex", &[Call(".read"), Call(".read"), RET]),
            ("SSL_read_ex", &[Call(".peek"), RET]),
            ("SSL_write_ex", &[Call(".write"), Call(".error"), RET]),
            // The fourth argument is zero: flags, but no SSL_write_ex2.
            ("SSL_write", &[FLAGS_AND_OUT_FIFTH, Call(".write"), RET]),
            // A prefix that the kernel refuses.
            (".write", &[Bytes(&[0x2e, 0x55, 0x5d, 0xc3])]),
        ];
        for (index, (name, pieces)) in cases.into_iter().enumerate() {
            let mut functions = old();
            let place = functions
                .iter()
                .position(|(known, _)| *known == name)
                .unwrap();
            functions[place].1 = pieces;
            if index == 3 {
                // Shared by both exports, but also by others: still proved.
                check(functions, &INTERNALS);
                continue;
            }
            let found = check(functions, &exports);
            assert!(found.partly.is_some(), "case {index}");
        }
    }

    #[test]
    fn many_callers_refute() {
        let mut functions = old();
        functions.push((".other", &[Call(".read"), RET]));
        check(functions.clone(), &INTERNALS);
        functions.push((".another", &[Call(".read"), RET]));
        assert!(find(&functions).unwrap().partly.is_some());
    }

    /// As in cargo and rustup: 3.5 without SSL_write_ex2.
    #[test]
    fn flags_without_write_ex2() {
        let mut functions: Functions = vec![
            ("ssl_read_internal", &[PUSH]),
            ("ssl_write_internal", &[PUSH_FIVE]),
            (
                "SSL_read",
                &[SUB, OUT_FOURTH, Call("ssl_read_internal"), RET],
            ),
            (
                "SSL_write",
                &[SUB, FLAGS_AND_OUT_FIFTH, Call("ssl_write_internal"), RET],
            ),
        ];
        assert_eq!(
            check(functions.clone(), &INTERNALS).points[1].shape,
            Shape::OutFifth
        );
        functions.push(("SSL_read_ex", &[SUB, Call("ssl_read_internal"), RET]));
        functions.push((
            "SSL_write_ex",
            &[SUB, SHIFT, Call("ssl_write_internal"), RET],
        ));
        assert_eq!(
            check(functions.clone(), &INTERNALS).points[1].shape,
            Shape::OutFifth
        );
        // The two sides of the call disagree.
        functions[1].1 = &[PUSH];
        check(functions, &["SSL_write", "SSL_write_ex", READ_INTERNAL]);
    }

    #[test]
    fn inlined_internals_are_probed_beside_the_exports() {
        let functions: Functions = vec![
            ("SSL_read", &[PUSH]),
            ("SSL_read_ex", &[PUSH]),
            ("SSL_read_early_data", &[Call("ssl_read_internal"), RET]),
            ("SSL_write", &[PUSH]),
            ("SSL_write_ex", &[PUSH]),
            ("ssl_read_internal", &[PUSH]),
            ("ssl_write_internal", &[PUSH]),
        ];
        let six = [
            "SSL_read",
            "SSL_read_ex",
            "SSL_write",
            "SSL_write_ex",
            READ_INTERNAL,
            WRITE_INTERNAL,
        ];
        let found = check(functions, &six);
        assert_eq!((found.library, found.partly), ("OpenSSL", None));
    }

    #[test]
    fn relatives() {
        let libressl: Functions = vec![
            ("SSL_read", &[PUSH]),
            ("SSL_read_ex", &[SUB, Call("SSL_read"), RET]),
            ("SSL_write", &[PUSH]),
            ("SSL_write_ex", &[SUB, Call("SSL_write"), RET]),
        ];
        let found = check(libressl, &["SSL_read", "SSL_write"]);
        assert_eq!((found.library, found.partly), ("libssl", None));

        let boringssl: Functions = vec![
            (".error", &[RET]),
            ("SSL_read", &[Bytes(&[0x55]), Call(".error"), RET]),
            ("SSL_write", &[PUSH]),
            ("SSL_CTX_set_grease_enabled", &[RET]),
        ];
        let found = check(boringssl, &["SSL_read", "SSL_write"]);
        assert_eq!((found.library, found.partly), ("BoringSSL", None));
        assert_eq!(found.points[0].shape, Shape::Returned);
    }

    #[test]
    fn refusals() {
        let none: Functions = vec![("SSL_reader", &[RET]), ("MY_SSL_write", &[RET])];
        assert_eq!(find(&none), Err(Refusal::NoLibrary));
        let half: Functions = vec![("SSL_read", &[RET])];
        assert_eq!(find(&half), Err(Refusal::NoLibrary));
        let locked: Functions = vec![
            ("SSL_read", &[Bytes(&[0xf0, 0x01, 0x07, 0xc3])]),
            ("SSL_write", &[PUSH]),
        ];
        assert!(matches!(find(&locked), Err(Refusal::Unsafe(_))));
        let many: Functions = vec![("SSL_read", &[RET]); 100];
        assert!(matches!(find(&many), Err(Refusal::Malformed(_))));
        let twice: Functions = vec![
            ("SSL_read", &[PUSH]),
            ("SSL_read", &[PUSH]),
            ("SSL_write", &[PUSH]),
        ];
        assert_eq!(
            find(&twice),
            Err(Refusal::Unsafe("two functions have the same name"))
        );
        let circle: Functions = vec![
            ("SSL_read", &[Jump("SSL_read_ex")]),
            ("SSL_read_ex", &[Jump("SSL_read")]),
            ("SSL_write", &[PUSH]),
        ];
        assert!(matches!(find(&circle), Err(Refusal::Unsafe(_))));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = image(&new());
        for size in 0..whole.len() {
            assert!(
                super::super::locate(&whole[..size].to_vec()).is_err(),
                "{size}"
            );
        }
    }

    /// Shrinks after its size was asked.
    #[test]
    fn a_file_that_shrinks_is_an_error() {
        struct Shrunk(Vec<u8>, u64);
        impl ReadAt for Shrunk {
            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                self.0.read_exact_at(buf, offset)
            }
            fn size(&self) -> io::Result<u64> {
                Ok(self.1)
            }
        }
        let whole = image(&new());
        for size in 0..whole.len() {
            let refusal = super::super::locate(&Shrunk(whole[..size].to_vec(), whole.len() as u64));
            assert!(refusal.is_err(), "{size}");
        }
    }

    /// Endless, and full of zeros behind the image.
    #[test]
    fn giant_tables_cost_bounded_work() {
        struct Giant(Vec<u8>, Cell<u64>);
        impl ReadAt for Giant {
            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                self.1.set(self.1.get() + buf.len() as u64);
                buf.fill(0);
                let rest = self.0.get(offset as usize..).unwrap_or_default();
                let known = rest.len().min(buf.len());
                buf[..known].copy_from_slice(&rest[..known]);
                Ok(())
            }
            fn size(&self) -> io::Result<u64> {
                Ok(u64::MAX)
            }
        }
        let mut file = image(&new());
        // sh_size of .symtab, the second of three sections.
        let size = file.len() - 2 * 64 + 32;
        file[size..size + 8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
        let giant = Giant(file, Cell::new(0));
        assert_eq!(
            super::super::locate(&giant),
            Err(Refusal::Malformed("its tables are too large"))
        );
        // What the first family may read, and the headers before it.
        assert!(giant.1.get() <= (1 << 30) + (1 << 20));
    }

    #[test]
    fn no_flipped_bits_panic() {
        flip_bits(&[image(&old()), image(&new())], 20_000, |_, _| {});
    }

    impl ReadAt for File {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            FileExt::read_exact_at(self, buf, offset)
        }
        fn size(&self) -> io::Result<u64> {
            Ok(self.metadata()?.len())
        }
    }

    /// A file of the machine, if it is the expected one.
    fn real(path: &str) -> Option<Found> {
        let found = File::open(path)
            .ok()
            .and_then(|file| super::super::locate(&file).ok());
        if found.is_none() {
            eprintln!("SKIP: {path} is not here or has no TLS library");
        }
        found
    }

    #[test]
    fn debian_bookworm_libssl() {
        let Some(found) = real("/usr/lib/x86_64-linux-gnu/libssl.so.3") else {
            return;
        };
        let names: Vec<_> = found.points.iter().map(|point| point.function).collect();
        assert_eq!((names, found.partly), (INTERNALS.to_vec(), None));
        let others = found.others.iter().map(|point| point.function);
        assert_eq!(
            others.collect::<Vec<_>>(),
            OTHERS.map(|(name, ..)| name).to_vec()
        );
        for point in &found.points {
            assert_eq!(
                (point.offset, point.shape, point.instruction),
                (
                    point.function_offset,
                    Shape::OutFourth,
                    Instruction::Emulated
                )
            );
            // push %r13, push %r14
            assert!(
                matches!(point.bytes, [0x41, 0x54..=0x57, ..]),
                "{:x?}",
                point.bytes
            );
        }
    }

    #[test]
    fn node_20() {
        let Some(found) = real("/usr/bin/node") else {
            return;
        };
        let names: Vec<_> = found.points.iter().map(|point| point.function).collect();
        assert_eq!(
            names,
            [
                "SSL_read",
                "SSL_read_ex",
                "SSL_write",
                "SSL_write_ex",
                READ_INTERNAL,
                WRITE_INTERNAL
            ]
        );
        assert!(
            found
                .points
                .iter()
                .all(|point| point.instruction == Instruction::Emulated)
        );
        assert!(
            found
                .version
                .is_some_and(|version| version.starts_with("3.0."))
        );
    }
}
