//! Go's own table of functions, which no strip removes: the runtime needs it to walk stacks.
//!
//! Read as Go 1.18 and later write it (`runtime.pcHeader`, `runtime._func`); names, then functions, are streamed
//! past in windows. The table says where a function begins relative to the runtime's code; where that is has to be
//! found too, and a wrong answer shows: no call would lead to the beginning of a function.

use std::ops::{ControlFlow, Range};

use memchr::memmem;

use super::{
    Refusal,
    elf::{Elf, Section},
};

const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// Where C's linker puts it if it makes a program that can lie anywhere; and what only Go programs have.
const MERGED: &str = ".data.rel.ro";
const BUILD: &str = ".go.buildinfo";
const ALIGNMENT: u64 = 32;
/// Places that look like a table. There is one.
const TABLES_MAX: usize = 16;
/// Go 1.18 and 1.20: the same to us.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// What is behind the magic: two zeros, the smallest step between instructions, the size of a pointer.
const MACHINE: [u8; 4] = [0, 0, 1, 8];
/// Header: magic, four bytes, number of functions and of files, the runtime's code, and where names, units, files,
/// positions and functions begin.
const HEADER: usize = 8 + 8 * 8;
const TEXT: u64 = 8 + 2 * 8;
/// Where a function begins, and where more about it is.
const ENTRY: u64 = 8;
/// The same once more, and where its name is.
const FUNCTION: u64 = 8;
const WINDOW: u64 = 64 << 10;
/// `runtime.moduledata`: first this table, and behind six slices and three words where code begins.
const MODULE: &str = ".go.module";
const MODULE_TEXT: u64 = 8 + 6 * 24 + 3 * 8;

pub(super) struct Pclntab<'a> {
    elf: &'a Elf<'a>,
    /// File offsets.
    names: Range<u64>,
    /// The table; what it says of places is relative to its beginning.
    table: Range<u64>,
    count: u64,
    /// Address of the runtime's code.
    text: u64,
}

/// What a file has.
pub(super) enum Go<'a> {
    Nothing,
    /// Another version's; its bytes.
    Unknown(Range<u64>),
    Table(Pclntab<'a>),
}

/// A function that was asked for by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: &'static str,
    pub(super) range: Range<u64>,
}

pub(super) fn find<'a>(elf: &'a Elf<'a>) -> Result<Go<'a>, Refusal> {
    if let Some(section) = elf.section(&SECTIONS)? {
        return table(elf, &section);
    }
    if elf.section(&[BUILD])?.is_none() {
        return Ok(Go::Nothing);
    }
    let Some(merged) = elf.section(&[MERGED])? else {
        return Ok(Go::Nothing);
    };
    for section in tables(elf, &merged)? {
        // Anything may look like a table: the loader puts an address into the real one.
        if elf.slot(section.address.saturating_add(TEXT))?.is_some() {
            return table(elf, &section);
        }
    }
    Ok(Go::Unknown(merged.offset..merged.offset + merged.size))
}

/// What looks like the beginning of a table, with all that is behind it.
fn tables(elf: &Elf<'_>, section: &Section) -> Result<Vec<Section>, Refusal> {
    let finder = memmem::Finder::new(&MACHINE);
    let mut tables = Vec::new();
    let range = section.offset..section.offset + section.size;
    elf.windows(range, MACHINE.len() + 4, |offset, window| {
        for at in finder.find_iter(window) {
            let Some(at) = at.checked_sub(4) else {
                continue;
            };
            let distance = offset - section.offset + at as u64;
            let address = section.address.saturating_add(distance);
            if MAGICS.contains(&u32_at(window, at)) && address.is_multiple_of(ALIGNMENT) {
                tables.push(Section {
                    address,
                    offset: section.offset + distance,
                    size: section.size - distance,
                });
            }
        }
        match tables.len() {
            0..=TABLES_MAX => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    })?;
    tables.truncate(TABLES_MAX);
    Ok(tables)
}

fn table<'a>(elf: &'a Elf<'a>, section: &Section) -> Result<Go<'a>, Refusal> {
    const MALFORMED: Refusal = Refusal::Malformed("Go's table of functions");
    let whole = section.offset..section.offset + section.size;
    if section.size < HEADER as u64 {
        return Err(MALFORMED);
    }
    let header = elf.read(section.offset, HEADER)?;
    let is_known = header[4..8] == MACHINE && MAGICS.contains(&u32_at(&header, 0));
    if !is_known {
        return Ok(Go::Unknown(whole));
    }
    let [count, _, text, names, units, _, _, functions] =
        std::array::from_fn(|word| u64_at(&header, 8 + word * 8));
    let within = |at: u64| (at <= section.size).then(|| section.offset + at);
    let names = within(names).zip(within(units));
    let (Some((names, names_end)), Some(table)) = (names, within(functions)) else {
        return Err(MALFORMED);
    };
    let table = table..whole.end;
    if names > names_end || count >= (table.end - table.start) / ENTRY {
        return Err(MALFORMED);
    }
    Ok(Go::Table(Pclntab {
        elf,
        names: names..names_end,
        table,
        count,
        text: match text {
            0 => text_of(elf, section)?,
            text => text,
        },
    }))
}

/// Where the runtime's code is if the table leaves that to the loader, or to the module's data (1.26).
fn text_of(elf: &Elf<'_>, section: &Section) -> Result<u64, Refusal> {
    if let Some(text) = elf.slot(section.address.saturating_add(TEXT))? {
        return Ok(text);
    }
    const UNKNOWN: Refusal = Refusal::Unsafe("where the code of this Go program begins is unknown");
    let module = elf.section(&[MODULE])?.ok_or(UNKNOWN)?;
    if elf.pointer(module.address)? != section.address {
        return Err(UNKNOWN);
    }
    elf.pointer(module.address.saturating_add(MODULE_TEXT))
}

impl Pclntab<'_> {
    /// The functions with these names; a name that two have comes twice.
    pub(super) fn functions(&self, wanted: &[&'static str]) -> Result<Vec<Named>, Refusal> {
        let places = places(self.elf, self.names.clone(), wanted)?;
        let mut found = Vec::new();
        if places.is_empty() {
            return Ok(found);
        }
        // In the order of the table, what it points to comes in order, too.
        let mut entries = Window::default();
        let mut functions = Window::default();
        for number in 0..self.count {
            let [start, at] = self.pair(&mut entries, number * ENTRY)?;
            let [_, name] = self.pair(&mut functions, at.into())?;
            let Ok(known) = places.binary_search_by_key(&name, |(place, _)| *place) else {
                continue;
            };
            let [end, _] = self.pair(&mut entries, (number + 1) * ENTRY)?;
            let address = |distance: u32| self.text.saturating_add(distance.into());
            found.push(Named {
                name: places[known].1,
                range: address(start)..address(end),
            });
        }
        Ok(found)
    }

    /// Two numbers of the table.
    fn pair(&self, window: &mut Window, at: u64) -> Result<[u32; 2], Refusal> {
        const { assert!(ENTRY == FUNCTION) };
        let start = self.table.start.saturating_add(at);
        if start.saturating_add(FUNCTION) > self.table.end {
            return Err(Refusal::Malformed("Go's table of functions"));
        }
        let known = start.checked_sub(window.start);
        let inside = known.filter(|at| at + FUNCTION <= window.bytes.len() as u64);
        let at = match inside {
            Some(at) => at as usize,
            None => {
                let size = WINDOW.min(self.table.end - start);
                window.bytes = self.elf.read(start, size as usize)?;
                window.start = start;
                0
            }
        };
        Ok([u32_at(&window.bytes, at), u32_at(&window.bytes, at + 4)])
    }
}

/// A piece of the file.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

/// Where the names stand, relative to the first of them; sorted. They are kept once, each between two zeros.
fn places(
    elf: &Elf<'_>,
    names: Range<u64>,
    wanted: &[&'static str],
) -> Result<Vec<(u32, &'static str)>, Refusal> {
    let finders: Vec<_> = wanted
        .iter()
        .map(|name| (name, memmem::Finder::new(name.as_bytes())))
        .collect();
    let longest = wanted.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut places = Vec::new();
    elf.windows(names.clone(), longest + 2, |offset, window| {
        for (name, finder) in &finders {
            for at in finder.find_iter(window) {
                let is_begun = match at {
                    0 => offset == names.start,
                    _ => window[at - 1] == 0,
                };
                if is_begun && window.get(at + name.len()) == Some(&0) {
                    places.extend(
                        u32::try_from(offset - names.start + at as u64)
                            .ok()
                            .map(|place| (place, **name)),
                    );
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    places.sort_unstable();
    places.dedup();
    Ok(places)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(0, u64::from_le_bytes)
}
