//! The file as addresses: segments, symbols, where functions end, what a PLT entry jumps to.
//!
//! Nothing is kept but a few numbers: tables are streamed in chunks, so a file of 300 MB costs 64 KiB. What
//! the dynamic loader uses is preferred to what only tools use: a file without section headers works, too.

use std::{cell::Cell, cmp::min, io, mem::size_of, ops::ControlFlow, ops::Range};

use memchr::memmem;
use object::{
    LittleEndian as LE, elf,
    pod::{Pod, from_bytes, slice_from_all_bytes},
};

use super::{ReadAt, Refusal};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Bytes read of one file in all: the bound of all work, whatever the tables claim. Chromium's 315 MB are read
/// nearly twice.
const BUDGET: u64 = 1 << 30;
/// Linux runs no program whose program headers are larger than 64 KiB.
const PROGRAM_HEADERS_MAX: u64 = (64 << 10) / size_of::<elf::ProgramHeader64<LE>>() as u64;
/// Places where wanted names may stand in one string table. Linkers keep each string once.
const NAMES_MAX: usize = 1024;
/// Functions with wanted names. A real file has one of each.
const SAME_NAMES_MAX: usize = 64;
/// No function of a TLS library is that long; SSL_write has 400 bytes.
const FUNCTION_MAX: u64 = 16 << 10;
/// Pointers that one question may find.
const POINTERS_MAX: usize = 16 << 10;
/// Longest name of a source file, and copies of one.
const STRING_MAX: usize = 256;
const STRINGS_MAX: usize = 4;
/// Places that load the address of one of them. BoringSSL has 73, OpenSSL 300.
const LOADS_MAX: usize = 4096;
/// The longest instruction that does: `lea x(%rip),%rcx`.
const LOAD: usize = 7;
/// A direct call, and what compilers make functions begin at a multiple of.
const CALL_SIZE: usize = 5;
const ALIGNMENT: u64 = 16;
/// A function with more references than this has too many callers for any rule.
const REFERENCES_MAX: usize = 64;
/// Linkers make two or three segments of notes, of some hundred bytes.
const NOTES_MAX: usize = 8;
const NOTES_SIZE_MAX: u64 = 64 << 10;
/// Pointers in a library's data. libssl3 has a thousand.
const RELOCATED_MAX: usize = 1 << 16;

pub(super) struct Elf<'a> {
    file: &'a dyn ReadAt,
    size: u64,
    /// Bytes that may still be read by who asks now.
    budget: Cell<u64>,
    segments: Vec<Segment>,
    /// It is loaded at the addresses that it was linked for.
    is_fixed: bool,
    /// Address and size of `.eh_frame_hdr`.
    unwind: Option<(u64, u64)>,
    /// Offset and size of the notes.
    notes: Vec<(u64, u64)>,
    /// `.dynsym`, then `.symtab`, as far as they exist.
    symbols: Vec<SymbolTable>,
    relocations: Vec<Table>,
    sections: Option<Sections>,
}

/// The section headers, and where their names are.
struct Sections {
    headers: Table,
    names: Range<u64>,
}

/// A section: where it is in memory and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) address: u64,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// One PT_LOAD, as far as the file backs it.
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
    flags: elf::ProgramFlags,
}

/// `count` entries at a file offset.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    count: u64,
}

struct SymbolTable {
    symbols: Table,
    strings: Range<u64>,
    dynamic: bool,
}

/// A defined function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub(super) name: &'static str,
    pub(super) address: u64,
}

/// Where a direct branch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Code(u64),
    /// Through the address stored at this address: `jmp *x(%rip)`.
    Slot(u64),
}

impl<'a> Elf<'a> {
    pub(super) fn parse(file: &'a dyn ReadAt) -> Result<Self, Refusal> {
        let size = file.size().map_err(unreadable)?;
        let mut elf = Elf {
            file,
            size,
            budget: Cell::new(BUDGET),
            segments: Vec::new(),
            is_fixed: false,
            unwind: None,
            notes: Vec::new(),
            symbols: Vec::new(),
            relocations: Vec::new(),
            sections: None,
        };

        let header = elf.header()?;
        elf.is_fixed = header.e_type.get(LE) == elf::ET_EXEC;
        elf.read_program_headers(&header)?;
        elf.read_section_headers(&header)?;
        Ok(elf)
    }

    fn header(&self) -> Result<elf::FileHeader64<LE>, Refusal> {
        let ident = self
            .read(0, size_of::<elf::Ident>())
            .map_err(|refusal| match refusal {
                Refusal::Truncated => Refusal::NotElf,
                other => other,
            })?;
        if !ident.starts_with(&elf::ELFMAG) {
            return Err(Refusal::NotElf);
        }
        // x32 is a 32-bit file for the x86-64 machine: asked first.
        if ident[4] != elf::ELFCLASS64.0 {
            return Err(Refusal::Bits32);
        }
        if ident[5] != elf::ELFDATA2LSB.0 {
            return Err(Refusal::ForeignMachine);
        }
        let header: elf::FileHeader64<LE> = self.one(0)?;
        if header.e_machine.get(LE) != elf::EM_X86_64 {
            return Err(Refusal::ForeignMachine);
        }
        if !matches!(header.e_type.get(LE), elf::ET_EXEC | elf::ET_DYN) {
            return Err(Refusal::NotElf);
        }
        Ok(header)
    }

    fn read_program_headers(&mut self, header: &elf::FileHeader64<LE>) -> Result<(), Refusal> {
        let table = Table {
            offset: header.e_phoff.get(LE),
            count: header.e_phnum.get(LE).into(),
        };
        if usize::from(header.e_phentsize.get(LE)) != size_of::<elf::ProgramHeader64<LE>>()
            || table.count > PROGRAM_HEADERS_MAX
        {
            return Err(Refusal::Malformed("its program headers"));
        }
        let mut dynamic = None;
        for program in self.all::<elf::ProgramHeader64<LE>>(table)? {
            let (address, offset) = (program.p_vaddr.get(LE), program.p_offset.get(LE));
            let size = program.p_filesz.get(LE);
            match program.p_type.get(LE) {
                elf::PT_LOAD => {
                    self.within_file(offset, size)?;
                    address
                        .checked_add(size)
                        .ok_or(Refusal::Malformed("the address of a segment"))?;
                    self.segments.push(Segment {
                        address,
                        offset,
                        size,
                        flags: program.p_flags.get(LE),
                    });
                }
                elf::PT_DYNAMIC => {
                    dynamic = Some(Table {
                        offset,
                        count: size / size_of::<elf::Dyn64<LE>>() as u64,
                    })
                }
                elf::PT_GNU_EH_FRAME => self.unwind = Some((address, size)),
                elf::PT_NOTE if self.notes.len() < NOTES_MAX => self.notes.push((offset, size)),
                _ => {}
            }
        }
        match dynamic {
            Some(table) => self.read_dynamic(table),
            None => Ok(()),
        }
    }

    fn read_dynamic(&mut self, table: Table) -> Result<(), Refusal> {
        let mut values = Vec::new();
        self.each::<elf::Dyn64<LE>>(table, |_, entry| match entry.d_tag.get(LE) {
            elf::DT_NULL => ControlFlow::Break(()),
            tag => {
                // Repeated tags (DT_NEEDED) are of no use here, and their number is not ours.
                if !values.iter().any(|&(known, _)| known == tag) && values.len() < 64 {
                    values.push((tag, entry.d_val.get(LE)));
                }
                ControlFlow::Continue(())
            }
        })?;
        let value = |tag| {
            values
                .iter()
                .find(|&&(known, _)| known == tag)
                .map(|&(_, value)| value)
        };
        let offset = |tag| value(tag).map(|address| self.offset(address)).transpose();

        let mut relocations = Vec::new();
        for (start, size) in [
            (elf::DT_JMPREL, elf::DT_PLTRELSZ),
            (elf::DT_RELA, elf::DT_RELASZ),
        ] {
            if let (Some(offset), Some(size)) = (offset(start)?, value(size)) {
                relocations.push(Table {
                    offset,
                    count: size / size_of::<elf::Rela64<LE>>() as u64,
                });
            }
        }
        let hashed = match (offset(elf::DT_HASH)?, offset(elf::DT_GNU_HASH)?) {
            // "The number of symbol table entries should equal nchain", the second word.
            (Some(hash), _) => Some(self.one::<object::U32<LE>>(after(hash, 4)?)?.get(LE).into()),
            (None, Some(hash)) => Some(self.gnu_hashed(hash)?),
            (None, None) => None,
        };
        let symbols = match (
            offset(elf::DT_SYMTAB)?,
            offset(elf::DT_STRTAB)?,
            value(elf::DT_STRSZ),
            hashed,
        ) {
            (Some(symbols), Some(strings), Some(size), Some(count)) => Some(SymbolTable {
                symbols: Table {
                    offset: symbols,
                    count,
                },
                strings: self.within_file(strings, size)?,
                dynamic: true,
            }),
            _ => None,
        };
        self.relocations = relocations;
        self.symbols.extend(symbols);
        Ok(())
    }

    /// Number of dynamic symbols. A GNU hash table doesn't say it: the last chain ends with the last symbol.
    fn gnu_hashed(&self, offset: u64) -> Result<u64, Refusal> {
        let [buckets, first, blooms, _] = self
            .one::<[object::U32<LE>; 4]>(offset)?
            .map(|word| u64::from(word.get(LE)));
        let buckets = Table {
            offset: after(offset, 16 + blooms * 8)?,
            count: buckets,
        };
        let mut last = 0;
        self.each::<object::U32<LE>>(buckets, |_, bucket| {
            last = last.max(u64::from(bucket.get(LE)));
            ControlFlow::Continue(())
        })?;
        if last < first {
            return Ok(first);
        }
        let chains = after(buckets.offset, buckets.count * 4)?;
        let chain = after(chains, (last - first) * 4)?;
        let rest = Table {
            offset: chain,
            count: self.size.saturating_sub(chain) / 4,
        };
        let mut length = 0;
        self.each::<object::U32<LE>>(rest, |index, hash| {
            length = index + 1;
            if hash.get(LE) & 1 == 0 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(last + length)
    }

    /// `.symtab`: statically linked libraries have their names there only.
    fn read_section_headers(&mut self, header: &elf::FileHeader64<LE>) -> Result<(), Refusal> {
        let table = Table {
            offset: header.e_shoff.get(LE),
            count: header.e_shnum.get(LE).into(),
        };
        if table.count == 0 {
            return Ok(());
        }
        if usize::from(header.e_shentsize.get(LE)) != size_of::<elf::SectionHeader64<LE>>() {
            return Err(Refusal::Malformed("its section headers"));
        }
        let sections = self.all::<elf::SectionHeader64<LE>>(table)?;
        if let Some(names) = sections.get(usize::from(header.e_shstrndx.get(LE).0))
            && names.sh_type.get(LE) == elf::SHT_STRTAB
        {
            self.sections = Some(Sections {
                headers: table,
                names: self.within_file(names.sh_offset.get(LE), names.sh_size.get(LE))?,
            });
        }
        let Some(symtab) = sections
            .iter()
            .find(|section| section.sh_type.get(LE) == elf::SHT_SYMTAB)
        else {
            return Ok(());
        };
        let strings = sections
            .get(symtab.sh_link.get(LE) as usize)
            .ok_or(Refusal::Malformed("the strings of .symtab"))?;
        self.symbols.push(SymbolTable {
            symbols: Table {
                offset: symtab.sh_offset.get(LE),
                count: symtab.sh_size.get(LE) / size_of::<elf::Sym64<LE>>() as u64,
            },
            strings: self.within_file(strings.sh_offset.get(LE), strings.sh_size.get(LE))?,
            dynamic: false,
        });
        Ok(())
    }

    /// The first section with one of these names that the file has bytes for.
    pub(super) fn section(&self, names: &[&str]) -> Result<Option<Section>, Refusal> {
        let Some(Sections {
            headers,
            names: strings,
        }) = &self.sections
        else {
            return Ok(None);
        };
        let size = min(strings.end - strings.start, CHUNK as u64);
        let text = self.read(strings.start, size as usize)?;
        let is_named = |at: u32, name: &str| {
            let rest = text.get(at as usize..);
            let rest = rest.and_then(|rest| rest.strip_prefix(name.as_bytes()));
            rest.and_then(<[u8]>::first) == Some(&0)
        };
        let mut found = None;
        self.each::<elf::SectionHeader64<LE>>(*headers, |_, header| {
            let at = header.sh_name.get(LE);
            if header.sh_type.get(LE) != elf::SHT_PROGBITS
                || !names.iter().any(|name| is_named(at, name))
            {
                return ControlFlow::Continue(());
            }
            found = Some(Section {
                address: header.sh_addr.get(LE),
                offset: header.sh_offset.get(LE),
                size: header.sh_size.get(LE),
            });
            ControlFlow::Break(())
        })?;
        if let Some(section) = &found {
            self.within_file(section.offset, section.size)?;
        }
        Ok(found)
    }

    /// What its linker called this very build: a hash of it, most often.
    pub(super) fn build_id(&self) -> Result<Option<Vec<u8>>, Refusal> {
        const NAME: &[u8] = b"GNU\0";
        for &(offset, size) in &self.notes {
            let notes = self.read(offset, min(size, NOTES_SIZE_MAX) as usize)?;
            let mut rest = &notes[..];
            // Sizes of name and description, a type; each part is filled up to a multiple of four.
            while let Some((head, behind)) = rest.split_first_chunk::<12>() {
                let word =
                    |at: usize| u32::from_le_bytes(*head[at..].first_chunk().expect("four bytes"));
                let (name_size, size) = (word(0) as usize, word(4) as usize);
                let start = name_size.saturating_add(3) & !3;
                let Some(description) = behind.get(start..start.saturating_add(size)) else {
                    break;
                };
                if word(8) == elf::NT_GNU_BUILD_ID.0 && behind.get(..name_size) == Some(NAME) {
                    return Ok(Some(description.to_vec()));
                }
                let next = start.saturating_add(size.saturating_add(3) & !3);
                rest = behind.get(next..).unwrap_or_default();
            }
        }
        Ok(None)
    }

    /// What tells this file from others for the price of a page: its size and headers, which say where everything
    /// is, and the build id.
    pub(super) fn fingerprint(&self) -> Result<Vec<u8>, Refusal> {
        let header: elf::FileHeader64<LE> = self.one(0)?;
        let programs = u64::from(header.e_phnum.get(LE)) * u64::from(header.e_phentsize.get(LE));
        let mut fingerprint = self.size.to_le_bytes().to_vec();
        fingerprint.extend(self.read(0, size_of::<elf::FileHeader64<LE>>())?);
        fingerprint.extend(self.read(header.e_phoff.get(LE), programs as usize)?);
        fingerprint.extend(self.build_id()?.unwrap_or_default());
        Ok(fingerprint)
    }

    /// The address of the code at a file offset.
    pub(super) fn code_address(&self, offset: u64) -> Option<u64> {
        let mut code = self.segments.iter().filter(|segment| segment.is_code());
        let segment = code.find(|segment| {
            let range = segment.offset..segment.offset.saturating_add(segment.size);
            range.contains(&offset)
        })?;
        segment.address.checked_add(offset - segment.offset)
    }

    /// Functions with these names, which share their first four bytes. One address comes once.
    ///
    /// Strings are searched before symbols: a file without the names costs one pass over its strings.
    pub(super) fn functions(&self, names: &[&'static str]) -> Result<Vec<Symbol>, Refusal> {
        let mut found = Vec::new();
        for table in &self.symbols {
            let places = self.places(table, names)?;
            if places.is_empty() {
                continue;
            }
            self.each::<elf::Sym64<LE>>(table.symbols, |_, symbol| {
                let at = places.binary_search_by_key(&symbol.st_name.get(LE), |&(place, _)| place);
                if let (Ok(at), true) = (at, is_function(symbol)) {
                    let symbol = Symbol {
                        name: places[at].1,
                        address: symbol.st_value.get(LE),
                    };
                    if !found.contains(&symbol) {
                        found.push(symbol);
                    }
                }
                match found.len() {
                    0..=SAME_NAMES_MAX => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })?;
        }
        if found.len() > SAME_NAMES_MAX {
            return Err(Refusal::Malformed("one name again and again"));
        }
        Ok(found)
    }

    /// Where the names stand in the strings of a symbol table, sorted. A name may be the end of a longer
    /// string: linkers share tails.
    fn places(
        &self,
        table: &SymbolTable,
        names: &[&'static str],
    ) -> Result<Vec<(u32, &'static str)>, Refusal> {
        let Some(stem) = names.first().and_then(|name| name.get(..4)) else {
            return Ok(Vec::new());
        };
        let longest = names.iter().map(|name| name.len()).max().unwrap_or(0);
        let finder = memmem::Finder::new(stem);
        let mut places = Vec::new();
        self.windows(table.strings.clone(), longest, |offset, window| {
            for at in finder.find_iter(window) {
                let name = names.iter().find(|name| {
                    window[at..]
                        .strip_prefix(name.as_bytes())
                        .is_some_and(|rest| rest.first() == Some(&0))
                });
                let place = u32::try_from(offset - table.strings.start + at as u64);
                if let (Some(name), Ok(place)) = (name, place) {
                    places.push((place, *name));
                }
            }
            if places.len() > NAMES_MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if places.len() > NAMES_MAX {
            return Err(Refusal::Malformed("one name again and again"));
        }
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    /// The function that begins at `address`, if its end is known: by its unwind entry, else its symbol.
    pub(super) fn function_at(&self, address: u64) -> Result<Option<Range<u64>>, Refusal> {
        if let Some(range) = self.function_around(address)?
            && range.start == address
        {
            return Ok(Some(range));
        }
        let mut end = None;
        for table in &self.symbols {
            self.each::<elf::Sym64<LE>>(table.symbols, |_, symbol| {
                if symbol.st_value.get(LE) != address
                    || symbol.st_size.get(LE) == 0
                    || !is_function(symbol)
                {
                    return ControlFlow::Continue(());
                }
                end = address.checked_add(symbol.st_size.get(LE));
                ControlFlow::Break(())
            })?;
        }
        Ok(end.map(|end| address..end))
    }

    pub(super) fn has_unwind(&self) -> bool {
        self.unwind.is_some()
    }

    /// The function around `address`, by its unwind entry (DWARF frame description).
    pub(super) fn function_around(&self, address: u64) -> Result<Option<Range<u64>>, Refusal> {
        let Some((table, size)) = self.unwind else {
            return Ok(None);
        };
        let table_offset = self.offset(table)?;
        // Version 1; pointer to .eh_frame; count as udata4; pairs of sdata4 relative to the table: all that
        // linkers make.
        let [head, _, count] = self
            .one::<[object::U32<LE>; 3]>(table_offset)?
            .map(|word| word.get(LE));
        if head.to_le_bytes() != [1, 0x1b, 0x03, 0x3b] {
            return Ok(None);
        }
        let pair = |index: u64| -> Result<(u64, u64), Refusal> {
            let pair = self.one::<[object::I32<LE>; 2]>(after(table_offset, 12 + index * 8)?)?;
            let [function, entry] =
                pair.map(|distance| table.wrapping_add_signed(distance.get(LE).into()));
            Ok((function, entry))
        };
        let (mut low, mut high) = (0, min(u64::from(count), size.saturating_sub(12) / 8));
        while low < high {
            let middle = low + (high - low) / 2;
            if pair(middle)?.0 <= address {
                low = middle + 1
            } else {
                high = middle
            }
        }
        let Some(index) = low.checked_sub(1) else {
            return Ok(None);
        };
        let (start, entry) = pair(index)?;
        // length, CIE, begin relative to itself, size: as every x86-64 compiler encodes it. The begin must be
        // the one of the table, so another encoding is not mistaken for it.
        let [_, _, begin, size] = self
            .one::<[object::I32<LE>; 4]>(self.offset(entry)?)?
            .map(|word| word.get(LE));
        let range = start..start.saturating_add(size.cast_unsigned().into());
        let known = entry.wrapping_add(8).wrapping_add_signed(begin.into()) == start;
        Ok((known && range.contains(&address)).then_some(range))
    }

    /// The bytes of a function, and their file offset.
    pub(super) fn code(&self, range: Range<u64>) -> Result<Option<(u64, Vec<u8>)>, Refusal> {
        let size = range.end.saturating_sub(range.start);
        let Some(segment) = self
            .segments
            .iter()
            .find(|segment| segment.is_code() && segment.contains(&range))
        else {
            return Ok(None);
        };
        if size == 0 || size > FUNCTION_MAX {
            return Ok(None);
        }
        let offset = segment.offset + (range.start - segment.address);
        Ok(Some((offset, self.read(offset, size as usize)?)))
    }

    /// The code that is reached through a GOT slot; `None` if another file has it.
    pub(super) fn slot(&self, address: u64) -> Result<Option<u64>, Refusal> {
        let Some(relocation) = self.relocation(address)? else {
            return Ok(None);
        };
        match relocation.r_type(LE, false) {
            elf::R_X86_64_RELATIVE => Ok(Some(relocation.r_addend.get(LE).cast_unsigned())),
            elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_GLOB_DAT => {
                let symbol = self.dynamic_symbol(relocation.r_sym(LE, false))?;
                let own = symbol.filter(|(symbol, _)| is_function(symbol));
                Ok(own.map(|(symbol, _)| symbol.st_value.get(LE)))
            }
            _ => Ok(None),
        }
    }

    /// The address that is stored at this address once the program is loaded.
    pub(super) fn pointer(&self, address: u64) -> Result<u64, Refusal> {
        match self.slot(address)? {
            Some(target) => Ok(target),
            None => Ok(self.one::<object::U64<LE>>(self.offset(address)?)?.get(LE)),
        }
    }

    /// All pointers into this file that the loader fills in, by their addresses.
    pub(super) fn relocated(&self) -> Result<Vec<(u64, u64)>, Refusal> {
        let mut pointers = Vec::new();
        for &table in &self.relocations {
            self.each::<elf::Rela64<LE>>(table, |_, relocation| {
                if relocation.r_type(LE, false) == elf::R_X86_64_RELATIVE {
                    let target = relocation.r_addend.get(LE).cast_unsigned();
                    pointers.push((relocation.r_offset.get(LE), target));
                }
                match pointers.len() {
                    0..=RELOCATED_MAX => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })?;
        }
        if pointers.len() > RELOCATED_MAX {
            return Err(Refusal::Malformed("too many pointers"));
        }
        pointers.sort_unstable();
        Ok(pointers)
    }

    /// Does a GOT slot lead to a function of another file whose name begins like this?
    pub(super) fn imports(&self, address: u64, prefix: &[u8]) -> Result<bool, Refusal> {
        let Some(relocation) = self.relocation(address)? else {
            return Ok(false);
        };
        let Some((symbol, strings)) = self.dynamic_symbol(relocation.r_sym(LE, false))? else {
            return Ok(false);
        };
        let name = after(strings, symbol.st_name.get(LE).into())?;
        Ok(symbol.st_shndx.get(LE) == elf::SHN_UNDEF && self.read(name, prefix.len())? == prefix)
    }

    fn relocation(&self, address: u64) -> Result<Option<elf::Rela64<LE>>, Refusal> {
        for &table in &self.relocations {
            let mut hit = None;
            self.each::<elf::Rela64<LE>>(table, |_, relocation| {
                if relocation.r_offset.get(LE) != address {
                    return ControlFlow::Continue(());
                }
                hit = Some(*relocation);
                ControlFlow::Break(())
            })?;
            if hit.is_some() {
                return Ok(hit);
            }
        }
        Ok(None)
    }

    /// A dynamic symbol, and where its strings begin.
    fn dynamic_symbol(&self, index: u32) -> Result<Option<(elf::Sym64<LE>, u64)>, Refusal> {
        let Some(table) = self.symbols.iter().find(|table| table.dynamic) else {
            return Ok(None);
        };
        let offset = after(
            table.symbols.offset,
            u64::from(index) * size_of::<elf::Sym64<LE>>() as u64,
        )?;
        let symbol = self.one::<elf::Sym64<LE>>(offset)?;
        Ok(Some((symbol, table.strings.start)))
    }

    /// Addresses in code of the four bytes that name `target` relative to their end, in direct branches and
    /// operands; the first [`REFERENCES_MAX`].
    ///
    /// All positions are looked at, not only instructions. A false hit makes one caller too many, which is
    /// the safe side.
    pub(super) fn references(&self, target: u64) -> Result<Vec<u64>, Refusal> {
        let mut references = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.is_code()) {
            let text = segment.offset..segment.offset + segment.size;
            self.windows(text, 5, |offset, window| {
                let start = segment.address + (offset - segment.offset);
                for (at, [first, second, distance @ ..]) in window.array_windows::<6>().enumerate()
                {
                    let end = start.wrapping_add(at as u64 + 6);
                    if u32::from_le_bytes(*distance) == target.wrapping_sub(end) as u32
                        && is_relative([*first, *second])
                        && references.len() < REFERENCES_MAX
                    {
                        references.push(end.wrapping_sub(4));
                    }
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(references)
    }

    /// The first answer of `read` to the `tail` bytes behind an occurrence of `needle`, in the first `max`
    /// bytes that the program can't write.
    pub(super) fn search<T>(
        &self,
        needle: &[u8],
        tail: usize,
        max: u64,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let finder = memmem::Finder::new(needle);
        let mut left = max;
        let mut answer = None;
        for segment in self
            .segments
            .iter()
            .filter(|segment| !segment.is_writable())
        {
            let size = min(segment.size, left);
            left -= size;
            let range = segment.offset..segment.offset + size;
            self.windows(range, needle.len() + tail, |_, window| {
                let behind = |at: usize| {
                    &window[at + needle.len()..min(at + needle.len() + tail, window.len())]
                };
                answer = finder.find_iter(window).find_map(|at| read(behind(at)));
                match answer {
                    None => ControlFlow::Continue(()),
                    Some(_) => ControlFlow::Break(()),
                }
            })?;
            if answer.is_some() {
                break;
            }
        }
        Ok(answer)
    }

    /// Where read-only data is. Linkers put it into a segment of its own, or all of it in front of or behind the code.
    fn constants(&self) -> impl Iterator<Item = &Segment> {
        let read_only = self
            .segments
            .iter()
            .filter(|segment| !segment.is_writable());
        let is_apart = read_only.clone().any(|segment| !segment.is_code());
        read_only.filter(move |segment| !is_apart || !segment.is_code())
    }

    /// Addresses of the strings in read-only memory that end like this.
    pub(super) fn strings_ending(&self, tail: &[u8]) -> Result<Vec<u64>, Refusal> {
        let tail = [tail, b"\0"].concat();
        let finder = memmem::Finder::new(&tail);
        let mut ends = Vec::new();
        for segment in self.constants() {
            let range = segment.offset..segment.offset + segment.size;
            self.windows(range, tail.len() - 1, |offset, window| {
                ends.extend(
                    finder
                        .find_iter(window)
                        .map(|at| (segment, offset + at as u64)),
                );
                match ends.len() {
                    0..=STRINGS_MAX => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })?;
        }
        if ends.len() > STRINGS_MAX {
            return Err(Refusal::Malformed("one name again and again"));
        }
        let mut strings = Vec::new();
        for (segment, end) in ends {
            let size = min(end - segment.offset, STRING_MAX as u64);
            let before = self.read(end - size, size as usize)?;
            if let Some(nul) = memchr::memrchr(0, &before) {
                let start = end - size + nul as u64 + 1;
                strings.push(segment.address + (start - segment.offset));
            }
        }
        Ok(strings)
    }

    /// What stands in read-only memory from each occurrence of `needle` on, `size` bytes or less.
    pub(super) fn strings_from(
        &self,
        needle: &[u8],
        size: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, Refusal> {
        let finder = memmem::Finder::new(needle);
        let mut found = Vec::new();
        for segment in self
            .segments
            .iter()
            .filter(|segment| !segment.is_writable() && !segment.is_code())
        {
            let range = segment.offset..segment.offset + segment.size;
            self.windows(range, size, |offset, window| {
                // What begins in the overlap comes with the next window.
                for at in finder.find_iter(window).take_while(|at| *at < CHUNK) {
                    let address = segment.address + (offset - segment.offset) + at as u64;
                    let end = min(at + size, window.len());
                    found.push((address, window[at..end].to_vec()));
                }
                match found.len() {
                    0..=NAMES_MAX => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })?;
        }
        match found.len() {
            0..=NAMES_MAX => Ok(found),
            _ => Err(Refusal::Malformed("one name again and again")),
        }
    }

    /// The pointers in the program's data for which `wanted` holds, of where it stands and what it points to: as
    /// the dynamic loader makes them, and as they are in the file.
    pub(super) fn pointers(
        &self,
        wanted: impl Fn(u64, u64) -> bool,
    ) -> Result<Vec<(u64, u64)>, Refusal> {
        let mut found = Vec::new();
        let mut keep = |address: u64, target: u64| {
            if wanted(address, target) {
                found.push((address, target));
            }
            match found.len() {
                0..=POINTERS_MAX => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        };
        for segment in self
            .segments
            .iter()
            .filter(|segment| segment.is_writable() && !segment.is_code())
        {
            let words = Table {
                offset: segment.offset,
                count: segment.size / size_of::<u64>() as u64,
            };
            self.each::<object::U64<LE>>(words, |index, word| {
                keep(segment.address + index * 8, word.get(LE))
            })?;
        }
        // Last: they replace what is in the file.
        for &table in &self.relocations {
            self.each::<elf::Rela64<LE>>(table, |_, relocation| {
                match relocation.r_type(LE, false) {
                    elf::R_X86_64_RELATIVE => keep(
                        relocation.r_offset.get(LE),
                        relocation.r_addend.get(LE).cast_unsigned(),
                    ),
                    _ => ControlFlow::Continue(()),
                }
            })?;
        }
        match found.len() {
            0..=POINTERS_MAX => Ok(found),
            _ => Err(Refusal::Malformed("one address again and again")),
        }
    }

    /// Words as they are in the file; `None` if `address` is in no segment.
    pub(super) fn words<const N: usize>(&self, address: u64) -> Result<Option<[u64; N]>, Refusal> {
        let range = address..address.saturating_add(N as u64 * 8);
        let mut segments = self.segments.iter();
        let Some(segment) = segments.find(|segment| segment.contains(&range)) else {
            return Ok(None);
        };
        let offset = segment.offset + (address - segment.address);
        let words = self.one::<[object::U64<LE>; N]>(offset)?;
        Ok(Some(words.map(|word| word.get(LE))))
    }

    /// The string that begins at an address in read-only memory; `None` if it is longer than `max` or not there.
    pub(super) fn string(&self, address: u64, max: usize) -> Result<Option<Vec<u8>>, Refusal> {
        let mut segments = self.segments.iter();
        let Some(segment) = segments.find(|segment| {
            !segment.is_writable() && segment.contains(&(address..address.saturating_add(1)))
        }) else {
            return Ok(None);
        };
        let at = address - segment.address;
        let size = min(segment.size - at, max as u64 + 1) as usize;
        let mut text = self.read(segment.offset + at, size)?;
        Ok(memchr::memchr(0, &text).map(|end| {
            text.truncate(end);
            text
        }))
    }

    pub(super) fn is_code(&self, address: u64) -> bool {
        let mut segments = self.segments.iter();
        segments.any(|segment| segment.is_code() && segment.contains(&(address..address)))
    }

    /// Addresses in code where the bytes of an instruction stand that moves one of `targets` into rcx, rdx or rdi,
    /// and which one. Not only instructions are looked at: what is found has to be decoded.
    pub(super) fn loads(&self, targets: &[u64]) -> Result<Vec<(u64, u64)>, Refusal> {
        // mov x,%ecx and the like, where addresses are known at link time and small.
        let moves: Vec<_> = targets
            .iter()
            .filter(|_| self.is_fixed)
            .filter_map(|&target| Some((target, u32::try_from(target).ok()?.to_le_bytes())))
            .flat_map(|(target, bytes)| [0xb9, 0xba, 0xbf].map(|opcode| (target, opcode, bytes)))
            .map(|(target, opcode, [a, b, c, d])| (target, [opcode, a, b, c, d]))
            .collect();
        let moves: Vec<_> = moves
            .iter()
            .map(|(target, bytes)| (*target, memmem::Finder::new(bytes)))
            .collect();
        let leas = memmem::Finder::new(&[0x48, 0x8d]);
        let mut loads = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.is_code()) {
            let text = segment.offset..segment.offset + segment.size;
            self.windows(text, LOAD - 1, |offset, window| {
                let start = segment.address + (offset - segment.offset);
                for at in leas.find_iter(window) {
                    let Some([_, _, 0x0d | 0x15 | 0x3d, distance @ ..]) =
                        window[at..].first_chunk::<LOAD>()
                    else {
                        continue;
                    };
                    let address = start.wrapping_add(at as u64);
                    let target = address
                        .wrapping_add(LOAD as u64)
                        .wrapping_add_signed(i32::from_le_bytes(*distance).into());
                    if targets.contains(&target) {
                        loads.push((address, target));
                    }
                }
                for (target, finder) in &moves {
                    // What begins in the overlap comes with the next window.
                    let own = finder.find_iter(window).take_while(|at| *at < CHUNK);
                    loads.extend(own.map(|at| (start.wrapping_add(at as u64), *target)));
                }
                match loads.len() {
                    0..=LOADS_MAX => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })?;
        }
        if loads.len() > LOADS_MAX {
            return Err(Refusal::Malformed("one address again and again"));
        }
        Ok(loads)
    }

    /// Where direct calls lead to, if that is not farther than `reach` from one of the places `near`, which are sorted.
    /// All positions are looked at, not only instructions; what is found is where functions of usual compilers begin.
    pub(super) fn called(&self, near: &[u64], reach: u64) -> Result<Vec<u64>, Refusal> {
        const CALL: u8 = 0xe8;
        let is_near = |target: u64| {
            let behind = near.partition_point(|place| *place < target);
            let places = near[behind.saturating_sub(1)..].iter().take(2);
            places
                .into_iter()
                .any(|place| place.abs_diff(target) <= reach)
        };
        let mut called = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.is_code()) {
            let text = segment.offset..segment.offset + segment.size;
            self.windows(text, CALL_SIZE - 1, |offset, window| {
                let start = segment.address + (offset - segment.offset);
                for at in memchr::memchr_iter(CALL, window) {
                    let Some([_, distance @ ..]) = window[at..].first_chunk::<CALL_SIZE>() else {
                        break;
                    };
                    let end = start.wrapping_add((at + CALL_SIZE) as u64);
                    let target = end.wrapping_add_signed(i32::from_le_bytes(*distance).into());
                    if target.is_multiple_of(ALIGNMENT) && is_near(target) {
                        called.push(target);
                    }
                }
                match called.len() {
                    0..=POINTERS_MAX => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                }
            })?;
        }
        if called.len() > POINTERS_MAX {
            return Err(Refusal::Malformed("one address again and again"));
        }
        called.sort_unstable();
        called.dedup();
        Ok(called)
    }

    /// The code around `address`, as much as there is of `before` and `after`: address, file offset, bytes.
    pub(super) fn code_around(
        &self,
        address: u64,
        before: u64,
        after: u64,
    ) -> Result<Option<(u64, u64, Vec<u8>)>, Refusal> {
        let Some(segment) = self
            .segments
            .iter()
            .find(|segment| segment.is_code() && segment.contains(&(address..address)))
        else {
            return Ok(None);
        };
        let start = segment.address.max(address.saturating_sub(before));
        let end = min(
            segment.address + segment.size,
            address.saturating_add(after),
        );
        let offset = segment.offset + (start - segment.address);
        Ok(Some((
            start,
            offset,
            self.read(offset, (end - start) as usize)?,
        )))
    }

    /// File offset of an address.
    fn offset(&self, address: u64) -> Result<u64, Refusal> {
        let segment = self
            .segments
            .iter()
            .find(|segment| segment.contains(&(address..address)));
        let segment = segment.ok_or(Refusal::Malformed("an address outside of all segments"))?;
        Ok(segment.offset + (address - segment.address))
    }

    fn within_file(&self, offset: u64, size: u64) -> Result<Range<u64>, Refusal> {
        match offset.checked_add(size) {
            Some(end) if end <= self.size => Ok(offset..end),
            _ => Err(Refusal::Truncated),
        }
    }

    /// Hands out `range` in windows of [`CHUNK`] bytes; each has `overlap` more, with which the next begins.
    pub(super) fn windows(
        &self,
        range: Range<u64>,
        overlap: usize,
        mut visit: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Refusal> {
        let mut start = range.start;
        while start < range.end {
            let size = min(range.end - start, (CHUNK + overlap) as u64);
            let window = self.read(start, size as usize)?;
            if visit(start, &window).is_break() || start + size == range.end {
                break;
            }
            start += CHUNK as u64;
        }
        Ok(())
    }

    /// Hands out the entries of a table with their numbers.
    fn each<T: Pod>(
        &self,
        table: Table,
        mut visit: impl FnMut(u64, &T) -> ControlFlow<()>,
    ) -> Result<(), Refusal> {
        let per_chunk = (CHUNK / size_of::<T>()) as u64;
        let mut offset = table.offset;
        let mut done = 0;
        while done < table.count {
            let size = min(table.count - done, per_chunk) as usize * size_of::<T>();
            let bytes = self.read(offset, size)?;
            for entry in slice_from_all_bytes::<T>(&bytes).map_err(|()| Refusal::Truncated)? {
                if visit(done, entry).is_break() {
                    return Ok(());
                }
                done += 1;
            }
            offset = after(offset, size as u64)?;
        }
        Ok(())
    }

    /// A whole table whose count is a 16-bit number.
    fn all<T: Pod>(&self, table: Table) -> Result<Vec<T>, Refusal> {
        let mut entries = Vec::new();
        self.each::<T>(table, |_, entry| {
            entries.push(*entry);
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    }

    fn one<T: Pod>(&self, offset: u64) -> Result<T, Refusal> {
        let bytes = self.read(offset, size_of::<T>())?;
        from_bytes::<T>(&bytes)
            .map(|(one, _)| *one)
            .map_err(|()| Refusal::Truncated)
    }

    /// Another one asks: it may read as much as the one before.
    pub(super) fn renew_budget(&self) {
        self.budget.set(BUDGET);
    }

    /// At most [`CHUNK`] bytes and an overlap.
    pub(super) fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>, Refusal> {
        self.within_file(offset, size as u64)?;
        let budget = self.budget.get().checked_sub(size as u64);
        self.budget
            .set(budget.ok_or(Refusal::Malformed("its tables are too large"))?);
        let mut bytes = vec![0; size];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(unreadable)?;
        Ok(bytes)
    }
}

impl Segment {
    fn is_code(&self) -> bool {
        self.flags & elf::PF_X != elf::ProgramFlags(0)
    }

    fn is_writable(&self) -> bool {
        self.flags & elf::PF_W != elf::ProgramFlags(0)
    }

    fn contains(&self, range: &Range<u64>) -> bool {
        // The sum was checked when the header was read.
        self.address <= range.start
            && range.start < self.address + self.size
            && range.end <= self.address + self.size
    }
}

/// STT_GNU_IFUNC is another type: its value is a resolver, not the function.
fn is_function(symbol: &elf::Sym64<LE>) -> bool {
    symbol.st_type() == elf::STT_FUNC
        && symbol.st_shndx.get(LE) != elf::SHN_UNDEF
        && symbol.st_value.get(LE) != 0
}

/// Do four bytes behind these two name an address? call, jmp, jcc, or a ModRM byte of `x(%rip)`. Without this,
/// the padding before a function refers to it.
fn is_relative(before: [u8; 2]) -> bool {
    matches!(before, [_, 0xe8 | 0xe9] | [0x0f, 0x80..=0x8f]) || before[1] & 0xc7 == 0x05
}

fn after(offset: u64, distance: u64) -> Result<u64, Refusal> {
    offset.checked_add(distance).ok_or(Refusal::Truncated)
}

fn unreadable(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Refusal::Truncated,
        kind => Refusal::Unreadable(kind),
    }
}
