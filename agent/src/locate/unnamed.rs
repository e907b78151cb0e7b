//! OpenSSL inside a program without its symbols, found by the errors that its functions raise.
//!
//! An error says which function raised it. Since 3.0 that takes three calls: `ERR_new()`,
//! `ERR_set_debug(".../ssl/ssl_lib.c", line, "ssl_read_internal")` and `ERR_set_error(ERR_LIB_SSL, reason, 0)`; in 1.1.1
//! it is one, `ERR_put_error(ERR_LIB_SSL, 523, reason, ".../ssl/ssl_lib.c", line)`, and 523 is the same function.
//!
//! That is a name, and a name is no proof: the function must raise what it raises in the source, take the arguments
//! of its name, and be called, as the exports call it; and all errors must be raised by the same functions. Where the
//! compiler has copied an internal function into the exports, each copy raises its errors: then each of them is a
//! point, without those that lead into another one.

use agent_ebpf::{Direction, Shape};
use iced_x86::Register;

use super::{
    Found, Point, Refusal,
    carrier::{self, Carrier, Entry},
    elf::{Elf, Target},
    function::{Function, REACH},
    means,
    openssl::{self, OTHER_CALLERS_MAX, READ_INTERNAL, WRITE_INTERNAL},
    signature,
};

/// The end of the path that `__FILE__` gave.
const SOURCE: &[u8] = b"ssl/ssl_lib.c";
const LIBRARY: u64 = 20;
/// Functions, and their numbers in 1.1.1; newer ones have none.
#[rustfmt::skip]
const RAISERS: [(&str, Option<u64>); 11] = [
    (READ_INTERNAL,          Some(523)),
    (WRITE_INTERNAL,         Some(524)),
    ("SSL_read",             Some(223)),
    ("SSL_read_early_data",  Some(529)),
    ("SSL_write",            Some(208)),
    ("SSL_write_early_data", Some(526)),
    ("ssl_peek_internal",    Some(522)),
    ("SSL_new",              Some(186)),
    ("SSL_clear",            Some(164)),
    ("SSL_do_handshake",     Some(180)),
    ("SSL_sendfile",         None),
];
const NAME_MAX: usize = 32;
/// Reasons: SSL_R_UNINITIALIZED, SSL_R_BAD_LENGTH.
const UNINITIALIZED: u64 = 276;
const BAD_LENGTH: u64 = 271;
/// Who leads to an internal function and says its own name.
const EXPORTS: [&str; 4] = [
    "SSL_read",
    "SSL_read_early_data",
    "SSL_write",
    "SSL_write_early_data",
];
/// Their relatives raise no errors: `SSL_read_ex`, `SSL_write_ex2`.
const UNNAMED_CALLERS_MAX: usize = 1 + OTHER_CALLERS_MAX;
const PEEK_INTERNAL: &str = "ssl_peek_internal";
/// What of [`RAISERS`] says something about a connection.
#[rustfmt::skip]
const OTHERS: [Carrier; 4] = [
    ("SSL_new",          Direction::Received, Shape::Created),
    ("SSL_do_handshake", Direction::Received, Shape::Handshake),
    ("SSL_sendfile",     Direction::Sent,     Shape::Sendfile),
    ("SSL_clear",        Direction::Received, Shape::Cleared),
];

/// A function that raises errors.
struct Raiser {
    function: Function,
    errors: Vec<Error>,
}

struct Error {
    /// Which of [`RAISERS`] it says it is; nothing of interest if `None`.
    by: Option<&'static str>,
    reason: Option<u64>,
    /// What is called first to raise it.
    through: Target,
}

/// Where functions are.
struct Code<'a> {
    elf: &'a Elf<'a>,
    /// Where they begin near the errors, if no unwind entries say it: where direct calls lead to. Who is called by a
    /// pointer alone is not known then.
    entries: Vec<u64>,
}

pub(super) fn locate(elf: &Elf<'_>) -> Result<Found, Refusal> {
    let sources = elf.strings_ending(SOURCE)?;
    if sources.is_empty() {
        return Err(Refusal::NoLibrary);
    }
    let loads = elf.loads(&sources)?;
    let code = Code::of(elf, &loads)?;
    let mut libraries = Vec::new();
    for source in sources {
        let own = loads.iter().filter(|(_, target)| *target == source);
        let raisers = raisers(&code, source, own.map(|(address, _)| *address))?;
        if !raisers.is_empty() {
            libraries.push(raisers);
        }
    }
    let raisers = match (libraries.pop(), libraries.pop()) {
        // Somebody else's use of the name.
        (None, _) => return Err(Refusal::NoLibrary),
        (Some(raisers), None) => raisers,
        (Some(_), Some(_)) => return Err(Refusal::Unsafe("it is there twice")),
    };

    let chosen = carriers(&code, &raisers)?;
    let found = Found {
        library: "OpenSSL",
        version: openssl::version(elf)?,
        points: carrier::points(elf, &chosen)?,
        others: others(elf, &raisers, &chosen)?,
        partly: None,
        located: means::ERRORS,
        on_trial: true,
    };
    for point in found.points.iter().chain(&found.others) {
        if !signature::still_holds(elf, point)? {
            return Err(Refusal::Unsafe(
                "a function does not begin where it seems to",
            ));
        }
    }
    Ok(found)
}

/// The functions that raise errors of `source`, whose address is loaded at `loads`.
fn raisers(
    code: &Code<'_>,
    source: u64,
    loads: impl Iterator<Item = u64>,
) -> Result<Vec<Raiser>, Refusal> {
    let mut raisers: Vec<Raiser> = Vec::new();
    for load in loads {
        let mut known = raisers.iter_mut();
        if let Some(raiser) = known.find(|raiser| raiser.function.load(load).is_some()) {
            let error = error(code.elf, &raiser.function, load, source)?;
            raiser.errors.extend(error);
            continue;
        }
        let Some(function) = code.function_around(load)? else {
            continue;
        };
        if let Some(error) = error(code.elf, &function, load, source)? {
            raisers.push(Raiser {
                function,
                errors: vec![error],
            });
        }
    }
    Ok(raisers)
}

/// The error that is raised where `load` names the source.
fn error(
    elf: &Elf<'_>,
    function: &Function,
    load: u64,
    source: u64,
) -> Result<Option<Error>, Refusal> {
    if function
        .load(load)
        .is_none_or(|(_, target)| target != source)
    {
        return Ok(None);
    }
    let calls = function.calls_from(load, 2);
    let Some(through) = calls.first().and_then(|first| first.target) else {
        return Ok(None);
    };
    let (by, reason) = match &calls[..] {
        [put, ..] if put.arguments[3] == Some(source) => {
            let [Some(LIBRARY), Some(number), reason, ..] = put.arguments else {
                return Ok(None);
            };
            (named(|_, known| known == Some(number)), reason)
        }
        [debug, set] if debug.arguments[0] == Some(source) => {
            let ([Some(LIBRARY), reason, ..], Some(name)) = (set.arguments, debug.arguments[2])
            else {
                return Ok(None);
            };
            let name = elf.string(name, NAME_MAX)?.unwrap_or_default();
            (named(|known, _| known.as_bytes() == name), reason)
        }
        _ => return Ok(None),
    };
    Ok(Some(Error {
        by,
        reason,
        through,
    }))
}

fn named(is_it: impl Fn(&str, Option<u64>) -> bool) -> Option<&'static str> {
    let mut raisers = RAISERS.iter();
    let found = raisers.find(|(name, number)| is_it(name, *number));
    found.map(|(name, _)| *name)
}

impl<'a> Code<'a> {
    fn of(elf: &'a Elf<'a>, loads: &[(u64, u64)]) -> Result<Self, Refusal> {
        let mut near: Vec<u64> = loads.iter().map(|(address, _)| *address).collect();
        near.sort_unstable();
        let entries = match elf.has_unwind() {
            true => Vec::new(),
            false => elf.called(&near, REACH)?,
        };
        Ok(Self { elf, entries })
    }

    fn function_around(&self, address: u64) -> Result<Option<Function>, Refusal> {
        match self.elf.has_unwind() {
            true => Function::around(self.elf, address),
            false => Function::among(self.elf, &self.entries, address),
        }
    }
}

impl Raiser {
    fn raises(&self, name: &str) -> bool {
        self.errors.iter().any(|error| error.by == Some(name))
    }

    fn raises_with(&self, name: &str, reason: u64) -> bool {
        let mut errors = self.errors.iter();
        errors.any(|error| error.by == Some(name) && error.reason == Some(reason))
    }

    /// As what it carries plaintext, if that is what its arguments say, too: it raises the errors of `internal`
    /// because it is that function, or has a copy of it.
    fn carrier(&self, internal: &'static str) -> Option<Carrier> {
        let takes = |register| self.function.takes(register);
        let [buffer, size, fourth, fifth] =
            [Register::RSI, Register::RDX, Register::RCX, Register::R8].map(takes);
        let (direction, export, early) = match internal {
            READ_INTERNAL => (Direction::Received, "SSL_read", "SSL_read_early_data"),
            _ => (Direction::Sent, "SSL_write", "SSL_write_early_data"),
        };
        let (name, shape) = match (self.raises(export), self.raises(early), fourth, fifth) {
            (true, false, false, false) => (export, Shape::Returned),
            (false, true, true, false) => (early, Shape::OutFourth),
            (false, false, true, false) => (internal, Shape::OutFourth),
            (false, false, true, true) if direction == Direction::Sent => {
                (internal, Shape::OutFifth)
            }
            _ => return None,
        };
        (buffer && size).then_some((name, direction, shape))
    }
}

/// The functions that every call with plaintext passes, one of them each.
fn carriers(code: &Code<'_>, raisers: &[Raiser]) -> Result<Vec<Entry>, Refusal> {
    let errors = raisers.iter().flat_map(|raiser| &raiser.errors);
    let mut through = errors
        .filter(|error| error.by.is_some())
        .map(|error| error.through);
    let first = through.next();
    if through.any(|other| Some(other) != first) {
        return Err(Refusal::Unsafe("its errors are raised in several ways"));
    }
    let mut carriers = Vec::new();
    for internal in [READ_INTERNAL, WRITE_INTERNAL] {
        let known = carriers.len();
        for raiser in raisers.iter().filter(|raiser| raiser.raises(internal)) {
            if !raiser.raises_with(internal, UNINITIALIZED) {
                return Err(Refusal::Unsafe("a function lacks an error of its name"));
            }
            let carrier = raiser.carrier(internal);
            let carrier = carrier.ok_or(Refusal::Unsafe(
                "a function takes other arguments than its errors say",
            ))?;
            carriers.push(Entry::of(code.elf, carrier, raiser.function.clone())?);
        }
        if carriers.len() == known {
            return Err(Refusal::Unsafe(
                "no function raises the errors of its reads or writes",
            ));
        }
    }
    let carriers = carrier::independent(carriers)?;
    are_called(code, raisers, &carriers)?;
    Ok(carriers)
}

/// Is the one internal function of a direction called as in the source: by a few functions, its export among them, and
/// by none that does something else with plaintext?
fn are_called(code: &Code<'_>, raisers: &[Raiser], carriers: &[Entry]) -> Result<(), Refusal> {
    let mut all: Vec<u64> = Vec::new();
    for entry in carriers {
        let own = |other: &&Entry| other.direction == entry.direction;
        if carriers.iter().filter(own).count() > 1 {
            match code.elf.has_unwind() {
                true => continue,
                false => return Err(Refusal::Unsafe("its copies have no known beginning")),
            }
        }
        let callers = callers(code, entry)?;
        let known: Vec<&Entry> = callers.iter().flatten().collect();
        let raises = |caller: &Entry, name: &str| {
            let mut raisers = raisers.iter();
            let raiser = raisers.find(|raiser| raiser.function.address == caller.function.address);
            raiser.is_some_and(|raiser| raiser.raises(name))
        };
        if known.iter().any(|caller| raises(caller, PEEK_INTERNAL)) {
            return Err(Refusal::Unsafe("its reads also peek"));
        }
        if known
            .iter()
            .any(|caller| all.contains(&caller.function.address))
        {
            return Err(Refusal::Unsafe("a function both reads and writes"));
        }
        let named = known
            .iter()
            .filter(|caller| EXPORTS.iter().any(|name| raises(caller, name)));
        if known.is_empty() || callers.len() - named.count() > UNNAMED_CALLERS_MAX {
            return Err(Refusal::Unsafe("too few or too many functions call it"));
        }
        let export = match entry.direction {
            Direction::Received => "SSL_read",
            Direction::Sent => "SSL_write",
        };
        let leads = |raiser: &Raiser| {
            let mut known = known.iter();
            known.any(|caller| caller.function.address == raiser.function.address)
        };
        let exports = raisers
            .iter()
            .filter(|raiser| raiser.raises_with(export, BAD_LENGTH));
        let has_flags = entry.shape == Shape::OutFifth;
        for export in exports {
            if !leads(export) {
                return Err(Refusal::Unsafe("an export does not lead to it"));
            }
            let passes = |register| {
                let function = &export.function;
                function.passes_zero(register, entry.function.address)
            };
            if passes(Register::RCX) != has_flags {
                return Err(Refusal::Unsafe(
                    "an export passes other arguments than it takes",
                ));
            }
        }
        all.extend(known.iter().map(|caller| caller.function.address));
    }
    Ok(())
}

/// The functions that lead to this one; `None` for one that is not known.
fn callers(code: &Code<'_>, entry: &Entry) -> Result<Vec<Option<Entry>>, Refusal> {
    let carrier = (entry.name, entry.direction, entry.shape);
    let mut callers: Vec<Option<Entry>> = Vec::new();
    for reference in code.elf.references(entry.function.address)? {
        if entry.function.contains(reference) {
            continue;
        }
        let mut known = callers.iter().flatten();
        if known.any(|caller| caller.function.contains(reference)) {
            continue;
        }
        let caller = code.function_around(reference - 1)?;
        let caller = caller.map(|function| Entry::of(code.elf, carrier, function));
        let caller = caller.transpose()?;
        // Or the bytes only look like a reference.
        if caller
            .as_ref()
            .is_none_or(|caller| caller.leads_into(&[entry.function.address]))
        {
            callers.push(caller);
        }
    }
    Ok(callers)
}

/// The points of [`OTHERS`], as far as one function raises the errors of each. Without them less is known of a
/// connection; nothing else depends on them.
fn others(elf: &Elf<'_>, raisers: &[Raiser], chosen: &[Entry]) -> Result<Vec<Point>, Refusal> {
    let mut points = Vec::new();
    for carrier in OTHERS {
        let mut own = raisers.iter().filter(|raiser| raiser.raises(carrier.0));
        let (Some(raiser), None) = (own.next(), own.next()) else {
            continue;
        };
        if !raiser.function.takes(Register::RDI) {
            continue;
        }
        let entry = Entry::of(elf, carrier, raiser.function.clone())?;
        if !entry.shares_frames(chosen) {
            points.extend(entry.point(elf).ok());
        }
    }
    Ok(points)
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::{
            Instruction,
            image::{
                Piece::{self, Bytes, Call, Text},
                image, offset_of, without_unwind,
            },
            locate,
            tests::flip_bits,
        },
        *,
    };

    type Functions = Vec<(&'static str, Vec<Piece>)>;

    /// push %rbp; mov %rsi,%r14; mov %rdx,%rbx
    const THREE: Piece = Bytes(&[0x55, 0x49, 0x89, 0xf6, 0x48, 0x89, 0xd3]);
    /// ...; mov %rcx,%r12
    const FOUR: Piece = Bytes(&[0x55, 0x49, 0x89, 0xf6, 0x48, 0x89, 0xd3, 0x49, 0x89, 0xcc]);
    /// ...; mov %r8,%r13
    const FIVE: Piece = Bytes(&[
        0x55, 0x49, 0x89, 0xf6, 0x48, 0x89, 0xd3, 0x49, 0x89, 0xcc, 0x4d, 0x89, 0xc5,
    ]);
    /// push %rbp; mov %rdi,%rbx
    const ONE: Piece = Bytes(&[0x55, 0x48, 0x89, 0xfb]);
    /// push %rbp; mov %rdx,%rbx; mov %rcx,%r12
    const NO_BUFFER: Piece = Bytes(&[0x55, 0x48, 0x89, 0xd3, 0x49, 0x89, 0xcc]);
    /// pop %rbp; ret
    const EXIT: Piece = Bytes(&[0x5d, 0xc3]);
    /// xor %ecx,%ecx; lea 8(%rsp),%r8
    const FLAGS: Piece = Bytes(&[0x31, 0xc9, 0x4c, 0x8d, 0x44, 0x24, 0x08]);
    const FILE: &str = "../ssl/ssl_lib.c";

    /// xor %edx,%edx; mov reason,%esi; mov library,%edi
    macro_rules! set {
        ($library:expr, $low:expr, $high:expr) => {
            Bytes(&[0x31, 0xd2, 0xbe, $low, $high, 0, 0, 0xbf, $library, 0, 0, 0])
        };
    }
    /// mov line,%r8d; mov reason,%edx; mov function,%esi; mov library,%edi
    macro_rules! put {
        ($function:expr, $low:expr) => {
            Bytes(&[
                0x41,
                0xb8,
                60,
                0,
                0,
                0,
                0xba,
                $low,
                1,
                0,
                0,
                0xbe,
                ($function & 0xff) as u8,
                ($function >> 8) as u8,
                0,
                0,
                0xbf,
                20,
                0,
                0,
                0,
            ])
        };
    }
    const NOT_READY: Piece = set!(20, 0x14, 1);
    const TOO_SHORT: Piece = set!(20, 0x0f, 1);

    /// An error of 3.0 and later.
    fn error(by: &'static str, set: Piece) -> Vec<Piece> {
        vec![
            Call(".new"),
            Text(&[0x48, 0x8d, 0x15], by),
            Bytes(&[0xbe, 60, 0, 0, 0]),
            Text(&[0x48, 0x8d, 0x3d], FILE),
            Call(".debug"),
            set,
            Call(".set"),
        ]
    }

    /// An error of 1.1.1.
    fn old_error(put: Piece) -> Vec<Piece> {
        vec![Text(&[0x48, 0x8d, 0x0d], FILE), put, Call(".put")]
    }

    fn function(pieces: &[&[Piece]]) -> Vec<Piece> {
        let mut function = pieces.concat();
        function.push(EXIT);
        function
    }

    /// With flags, which came with 3.3.
    fn new() -> Functions {
        vec![
            (
                ".read",
                function(&[&[FOUR], &error("ssl_read_internal", NOT_READY)]),
            ),
            (
                ".write",
                function(&[&[FIVE], &error("ssl_write_internal", NOT_READY)]),
            ),
            (
                ".SSL_read",
                function(&[&[THREE, Call(".read")], &error("SSL_read", TOO_SHORT)]),
            ),
            (
                ".SSL_write",
                function(&[
                    &[THREE, FLAGS, Call(".write")],
                    &error("SSL_write", TOO_SHORT),
                ]),
            ),
            (".SSL_read_ex", function(&[&[ONE, Call(".read")]])),
            (".SSL_write_ex2", function(&[&[ONE, Call(".write")]])),
            (
                ".SSL_new",
                function(&[&[ONE], &error("SSL_new", TOO_SHORT)]),
            ),
            (
                ".peek",
                function(&[&[FOUR], &error("ssl_peek_internal", NOT_READY)]),
            ),
            (".new", vec![EXIT]),
            (".debug", vec![EXIT]),
            (".set", vec![EXIT]),
            (
                ".main",
                vec![
                    Call(".SSL_read"),
                    Call(".SSL_write"),
                    Call(".SSL_read_ex"),
                    Call(".peek"),
                    Call(".SSL_write_ex2"),
                    Call(".SSL_new"),
                    EXIT,
                ],
            ),
        ]
    }

    fn old() -> Functions {
        vec![
            (".read", function(&[&[FOUR], &old_error(put!(523, 0x14))])),
            (".write", function(&[&[FOUR], &old_error(put!(524, 0x14))])),
            (
                ".SSL_read",
                function(&[&[THREE, Call(".read")], &old_error(put!(223, 0x0f))]),
            ),
            (
                ".SSL_write",
                function(&[&[THREE, Call(".write")], &old_error(put!(208, 0x0f))]),
            ),
            (".SSL_new", function(&[&[ONE], &old_error(put!(186, 0x0f))])),
            (".put", vec![EXIT]),
            (
                ".main",
                vec![
                    Call(".SSL_read"),
                    Call(".SSL_write"),
                    Call(".SSL_new"),
                    EXIT,
                ],
            ),
        ]
    }

    fn file(functions: &Functions) -> Vec<u8> {
        let functions = functions.iter().map(|(name, pieces)| (*name, &pieces[..]));
        image(&functions.collect::<Vec<_>>())
    }

    fn replaced(mut functions: Functions, name: &str, pieces: &[&[Piece]]) -> Functions {
        let mut known = functions.iter_mut();
        known.find(|(known, _)| *known == name).unwrap().1 = function(pieces);
        functions
    }

    #[track_caller]
    fn check(functions: &Functions, write: Shape, new: u64) {
        for file in [file(functions), without_unwind(file(functions))] {
            let found = locate(&file).unwrap();
            assert_eq!((found.library, found.partly), ("OpenSSL", None));
            let points = found.points.iter().chain(&found.others).map(|point| {
                assert_eq!(point.instruction, Instruction::Emulated);
                (point.function, point.shape, point.offset)
            });
            assert_eq!(
                points.collect::<Vec<_>>(),
                [
                    (READ_INTERNAL, Shape::OutFourth, offset_of(0)),
                    (WRITE_INTERNAL, write, offset_of(1)),
                    ("SSL_new", Shape::Created, offset_of(new)),
                ]
            );
        }
    }

    #[track_caller]
    fn refused(functions: &Functions, sign: &str) {
        for file in [file(functions), without_unwind(file(functions))] {
            let why = locate(&file).unwrap_err().to_string();
            assert!(why.contains(sign), "{why}");
        }
    }

    #[test]
    fn a_function_is_the_errors_that_it_raises() {
        check(&new(), Shape::OutFifth, 6);
        check(&old(), Shape::OutFourth, 4);
    }

    #[test]
    fn an_export_need_not_be_there() {
        let mut functions = replaced(new(), ".main", &[&[Call(".SSL_new")]]);
        functions = replaced(functions, ".SSL_read", &[&[ONE]]);
        functions = replaced(functions, ".SSL_write", &[&[ONE]]);
        let file = file(&functions);
        let found = locate(&file).unwrap();
        assert_eq!(found.points.len(), 2);
        // Who calls the internal functions is called by nobody.
        let why = locate(&without_unwind(file)).unwrap_err().to_string();
        assert!(why.contains("too few"), "{why}");
    }

    /// What the compiler has copied into the exports is probed there, too; what leads to another copy is not.
    #[test]
    fn copies_are_probed() {
        let copy = error("ssl_read_internal", NOT_READY);
        let export = error("SSL_read", TOO_SHORT);
        let functions = replaced(new(), ".SSL_read", &[&[THREE], &copy, &export]);
        let functions = replaced(functions, ".SSL_read_ex", &[&[FOUR], &copy]);
        let found = locate(&file(&functions)).unwrap();
        let points = found.points.iter();
        let points: Vec<_> = points.map(|point| (point.function, point.shape)).collect();
        assert_eq!(
            points,
            [
                (READ_INTERNAL, Shape::OutFourth),
                ("SSL_read", Shape::Returned),
                (READ_INTERNAL, Shape::OutFourth),
                (WRITE_INTERNAL, Shape::OutFifth),
            ]
        );
        let why = locate(&without_unwind(file(&functions))).unwrap_err();
        assert!(why.to_string().contains("copies"), "{why}");
        let functions = replaced(functions, ".SSL_read_ex", &[&[FOUR, Call(".read")], &copy]);
        assert_eq!(locate(&file(&functions)).unwrap().points.len(), 3);
    }

    #[test]
    fn each_sign_refutes() {
        let read = |set| error("ssl_read_internal", set);
        let mut elsewhere = read(NOT_READY);
        elsewhere[4] = Call(".set");
        let short = error("SSL_write", TOO_SHORT);
        let cases: [(&str, &[&[Piece]], &str); 12] = [
            // The error of another function, another reason, another library.
            (
                ".read",
                &[&[FOUR], &error("ssl_read", NOT_READY)],
                "no function raises",
            ),
            (".read", &[&[FOUR], &read(TOO_SHORT)], "lacks an error"),
            (
                ".read",
                &[&[FOUR], &read(set!(16, 0x14, 1))],
                "no function raises",
            ),
            (".read", &[&[FOUR], &elsewhere], "in several ways"),
            // One argument; no buffer; a fifth one.
            (
                ".read",
                &[&[ONE], &read(NOT_READY)],
                "other arguments than its errors",
            ),
            (
                ".read",
                &[&[NO_BUFFER], &read(NOT_READY)],
                "other arguments than its errors",
            ),
            (
                ".read",
                &[&[FIVE], &read(NOT_READY)],
                "other arguments than its errors",
            ),
            // The two sides of the call disagree.
            (
                ".SSL_write",
                &[&[THREE, Call(".write")], &short],
                "passes other arguments",
            ),
            (
                ".write",
                &[&[FOUR], &error("ssl_write_internal", NOT_READY)],
                "passes other arguments",
            ),
            (".SSL_write", &[&[THREE, FLAGS], &short], "does not lead"),
            (
                ".peek",
                &[
                    &[FOUR, Call(".read")],
                    &error("ssl_peek_internal", NOT_READY),
                ],
                "also peek",
            ),
            (
                ".SSL_read_ex",
                &[&[ONE, Call(".read"), Call(".write")]],
                "both reads and writes",
            ),
        ];
        for (name, pieces, sign) in cases {
            println!("{name}: {sign}");
            refused(&replaced(new(), name, pieces), sign);
        }
        let mut functions = new();
        for name in [".a", ".b", ".c", ".d"] {
            functions.push((name, function(&[&[ONE, Call(".read")]])));
            functions[11].1.insert(0, Call(name));
        }
        refused(&functions, "too many");
    }

    /// As a program has it that looks for it.
    #[test]
    fn who_only_knows_the_name_is_nothing() {
        let functions = vec![(".a", vec![Text(&[0x48, 0x8d, 0x3d], FILE), EXIT])];
        assert_eq!(locate(&file(&functions)), Err(Refusal::NoLibrary));
    }

    /// Of both kinds, with unwind entries and without.
    pub(in super::super) fn images() -> [Vec<u8>; 4] {
        let [new, old] = [file(&new()), file(&old())];
        [
            without_unwind(new.clone()),
            new,
            without_unwind(old.clone()),
            old,
        ]
    }

    #[test]
    fn no_flipped_bits_panic() {
        // Whatever is proposed begins a function of the image.
        flip_bits(&images(), 5_000, |_, point| {
            assert!((point.function_offset - offset_of(0)).is_multiple_of(0x100));
        });
    }
}
