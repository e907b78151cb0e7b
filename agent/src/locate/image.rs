//! Small ELF files for tests: functions in, bytes out.

use std::{io, mem::size_of};

use object::elf;

use super::ReadAt;

/// Not the file offset, so that mixing them up shows.
pub(crate) const BASE: u64 = 0x40_0000;
const CODE: u64 = 0x200;
/// Room for one function.
const SLOT: u64 = 0x100;
/// A string that is in each image.
pub(crate) const SOURCE: &str = "vendor/boringssl/ssl/ssl_lib.cc";

/// A piece of a function.
#[derive(Clone, Copy)]
pub(crate) enum Piece {
    Bytes(&'static [u8]),
    Call(&'static str),
    Jump(&'static str),
    /// `jmp *x(%rip)` through the GOT.
    JumpThrough(&'static str),
    /// These bytes and the distance to a string: `lea x(%rip),…`.
    Text(&'static [u8], &'static str),
}

/// A program of `functions`, in this order. Names that begin with a dot get no symbol.
pub(crate) fn image(functions: &[(&'static str, &[Piece])]) -> Vec<u8> {
    let count = functions.len() as u64;
    let address = |name: &str| {
        let index = functions
            .iter()
            .position(|(known, _)| *known == name)
            .expect("a function of the image");
        BASE + CODE + index as u64 * SLOT
    };
    let unwind = CODE + count * SLOT;
    let entries = unwind + 12 + count * 8;
    let got = (entries + count * 20).next_multiple_of(8);
    let relocations = got + count * 8;
    let dynamic = relocations + count * 24;
    let source = dynamic + 3 * 16;
    let mut texts = vec![SOURCE];
    for piece in functions.iter().flat_map(|(_, pieces)| *pieces) {
        if let Piece::Text(_, text) = piece
            && !texts.contains(text)
        {
            texts.push(text);
        }
    }
    let text_at = |wanted: &str| {
        let before = texts.iter().take_while(|text| **text != wanted);
        source + 1 + before.map(|text| text.len() as u64 + 1).sum::<u64>()
    };
    let texts_size: u64 = texts.iter().map(|text| text.len() as u64 + 1).sum();
    let symbols = (source + 1 + texts_size).next_multiple_of(8);

    let mut code = Vec::new();
    let mut sizes = Vec::new();
    for (name, pieces) in functions {
        let start = code.len();
        for piece in *pieces {
            let (opcode, target): (&[u8], _) = match piece {
                Piece::Bytes(bytes) => {
                    code.extend_from_slice(bytes);
                    continue;
                }
                Piece::Text(opcode, text) => (opcode, BASE + text_at(text)),
                Piece::Call(name) => (&[0xe8], address(name)),
                Piece::Jump(name) => (&[0xe9], address(name)),
                Piece::JumpThrough(name) => (
                    &[0xff, 0x25],
                    BASE + got + (address(name) - BASE - CODE) / SLOT * 8,
                ),
            };
            code.extend_from_slice(opcode);
            let end = BASE + CODE + code.len() as u64 + 4;
            code.extend_from_slice(&(target.wrapping_sub(end) as u32).to_le_bytes());
        }
        sizes.push((code.len() - start) as u64);
        assert!(sizes[sizes.len() - 1] <= SLOT, "{name} is too long");
        code.resize(start + SLOT as usize, 0xcc);
    }

    let mut strings = vec![0];
    let mut table = vec![0; size_of::<elf::Sym64<object::LittleEndian>>()];
    for (index, ((name, _), size)) in functions.iter().zip(&sizes).enumerate() {
        if name.starts_with('.') {
            continue;
        }
        table.extend_from_slice(&(strings.len() as u32).to_le_bytes());
        table.extend_from_slice(&[0x12, 0, 1, 0]);
        table.extend_from_slice(&(BASE + offset_of(index as u64)).to_le_bytes());
        table.extend_from_slice(&size.to_le_bytes());
        strings.extend_from_slice(name.as_bytes());
        strings.push(0);
    }
    let text = symbols + table.len() as u64;
    let sections = text + strings.len() as u64;
    let total = sections + 3 * 64;

    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [3_u16, 62, 1, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for word in [0, 64, sections] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for half in [0_u16, 0, 64, 56, 3, 64, 3, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let mut program = |kind: u32, offset: u64, size: u64| {
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&5_u32.to_le_bytes());
        for word in [offset, BASE + offset, BASE + offset, size, size, 8] {
            file.extend_from_slice(&word.to_le_bytes());
        }
    };
    program(elf::PT_LOAD.0, 0, total);
    program(elf::PT_GNU_EH_FRAME.0, unwind, 12 + count * 8);
    program(elf::PT_DYNAMIC.0, dynamic, 3 * 16);
    file.resize(CODE as usize, 0);
    file.extend_from_slice(&code);

    file.extend_from_slice(&[1, 0x1b, 3, 0x3b, 0, 0, 0, 0]);
    file.extend_from_slice(&(count as u32).to_le_bytes());
    for index in 0..count {
        let (function, entry) = (CODE + index * SLOT, entries + index * 20);
        file.extend_from_slice(&(function.wrapping_sub(unwind) as u32).to_le_bytes());
        file.extend_from_slice(&(entry.wrapping_sub(unwind) as u32).to_le_bytes());
    }
    for (index, size) in (0..count).zip(&sizes) {
        let (function, entry) = (CODE + index * SLOT, entries + index * 20);
        for word in [16, 4, function.wrapping_sub(entry + 8), *size, 0] {
            file.extend_from_slice(&(word as u32).to_le_bytes());
        }
    }
    file.resize(relocations as usize, 0);
    for index in 0..count {
        for word in [
            BASE + got + index * 8,
            elf::R_X86_64_RELATIVE.0.into(),
            BASE + CODE + index * SLOT,
        ] {
            file.extend_from_slice(&word.to_le_bytes());
        }
    }
    for word in [
        elf::DT_RELA.0 as u64,
        BASE + relocations,
        elf::DT_RELASZ.0 as u64,
        count * 24,
        0,
        0,
    ] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for text in &texts {
        file.push(0);
        file.extend_from_slice(text.as_bytes());
    }
    file.resize(symbols as usize, 0);
    file.extend_from_slice(&table);
    file.extend_from_slice(&strings);
    let mut section = |kind: u32, offset: u64, size: u64, link: u32| {
        file.extend_from_slice(&0_u32.to_le_bytes());
        file.extend_from_slice(&kind.to_le_bytes());
        for word in [0, 0, offset, size] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&link.to_le_bytes());
        file.extend_from_slice(&[0; 20]);
    };
    section(0, 0, 0, 0);
    section(elf::SHT_SYMTAB.0, symbols, table.len() as u64, 2);
    section(elf::SHT_STRTAB.0, text, strings.len() as u64, 0);
    file
}

/// The same file without unwind entries.
pub(crate) fn without_unwind(mut file: Vec<u8>) -> Vec<u8> {
    const SECOND: usize = 64 + 56;
    file[SECOND..SECOND + 4].copy_from_slice(&elf::PT_NULL.0.to_le_bytes());
    file
}

/// File offset of the function with this number.
pub(crate) const fn offset_of(index: u64) -> u64 {
    CODE + index * SLOT
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// The same as a Go program: with Go's table of these functions, and the version it was made by.
pub(super) fn go_image(functions: &[(&'static str, &[Piece])], version: &str) -> Vec<u8> {
    let mut file = image(functions);
    let names: Vec<u8> = functions
        .iter()
        .flat_map(|(name, _)| [name.trim_start_matches('.').as_bytes(), b"\0"].concat())
        .collect();
    let count = functions.len() as u64;
    let (start, header) = (file.len().next_multiple_of(32), 8 + 8 * 8);
    let table = header + names.len() as u64;
    file.resize(start, 0);
    file.extend_from_slice(&[0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8]);
    for word in [count, 0, BASE + CODE, header, table, table, table, table] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&names);
    let entries = count * 8 + 4;
    let mut name = 0;
    for (index, (known, _)) in (0..).zip(functions) {
        for half in [index * SLOT, entries + index * 8] {
            file.extend_from_slice(&(half as u32).to_le_bytes());
        }
        name += known.trim_start_matches('.').len() + 1;
    }
    assert_eq!(name, names.len());
    file.extend_from_slice(&((count * SLOT) as u32).to_le_bytes());
    let mut name = 0;
    for (index, (known, _)) in (0..).zip(functions) {
        for half in [(index * SLOT) as u32, name] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        name += known.trim_start_matches('.').len() as u32 + 1;
    }
    let build = file.len();
    file.extend_from_slice(b"\xff Go buildinf:\x08\x02");
    file.resize(build + 32, 0);
    file.push(version.len() as u8);
    file.extend_from_slice(version.as_bytes());
    let strings = file.len();
    file.extend_from_slice(b"\0.gopclntab\0.go.buildinfo\0");
    let sections = file.len() as u64;
    let mut section = |name: u32, kind: u32, range: std::ops::Range<usize>| {
        file.extend_from_slice(&name.to_le_bytes());
        file.extend_from_slice(&kind.to_le_bytes());
        for word in [0, 0, range.start as u64, range.len() as u64] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&[0; 24]);
    };
    section(0, 0, 0..0);
    section(1, elf::SHT_PROGBITS.0, start..build);
    section(12, elf::SHT_PROGBITS.0, build..strings);
    section(0, elf::SHT_STRTAB.0, strings..sections as usize);
    file[40..48].copy_from_slice(&sections.to_le_bytes());
    file[60..64].copy_from_slice(&[4, 0, 3, 0]);
    file
}
