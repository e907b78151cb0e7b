//! HPACK: any blocks, and blocks whose fields are known, to who has seen all of them and to who has not.
//!
//! An input is a byte that says what the rest is: a block, or choices that make blocks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use play::{
    Choices,
    hpack::Encoder,
    is_long, memory,
    told::{Lines, text},
};
use vortex_agent::protocol::hpack::{Malformed, Table};

/// A table of 64 KiB with entries as small as they can be.
const KEPT_MAX: usize = 512 << 10;
/// Of one block.
const FIELDS_MAX: usize = 512 << 10;

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    match choices.byte() {
        mode @ (0 | 1) => anything(mode == 1, choices.0),
        _ => known(&mut choices),
    }
});

/// Whatever the blocks say, the table has its bound, and so have the fields of each.
fn anything(from_start: bool, block: &[u8]) {
    let before = memory::live();
    let mut table = Table::new(from_start);
    let mut rounds = 1;
    if is_long(block) {
        rounds += (64 << 10) / block.len().max(64);
    }
    for _ in 0..rounds {
        let mut size = 0;
        let _ = table.decode(block, &mut |field| {
            size += field.name.map_or(0, <[u8]>::len) + field.value.map_or(0, <[u8]>::len);
        });
        assert!(size <= FIELDS_MAX, "{size} bytes of fields");
    }
    let kept = memory::live().saturating_sub(before);
    assert!(kept <= KEPT_MAX, "{kept} bytes are kept");
}

fn decode(table: &mut Table, block: &[u8]) -> Result<Lines, Malformed> {
    let mut lines = Lines::new();
    table.decode(block, &mut |field| {
        lines.push((text(field.name), text(field.value)))
    })?;
    Ok(lines)
}

fn known(choices: &mut Choices<'_>) {
    let (mut encoder, mut table) = (Encoder::default(), Table::new(true));
    // Joins at some block.
    let (mut late, joins) = (Table::new(false), choices.below(4));
    for number in 0..12 {
        if choices.0.is_empty() {
            return;
        }
        let (mut block, mut truth) = (Vec::new(), Lines::new());
        if choices.below(4) == 1 {
            encoder.resize(choices.of(&[0, 100, 200, 4096, 65536]), &mut block);
        }
        for _ in 0..choices.below(8) {
            let name = match choices.below(4) {
                0 => Encoder::word(choices),
                1 => choices
                    .of(&[":method", ":path", ":status", "user-agent"])
                    .to_owned(),
                _ => format!("x-{}", choices.byte() % 4),
            };
            let value = match choices.below(3) {
                0 => Encoder::word(choices),
                1 => choices.of(&["GET", "POST", "/", "200"]).to_owned(),
                _ => format!("{}", choices.byte() % 8),
            };
            encoder.field(choices, &name, &value, &mut block);
            truth.push((name, value));
        }
        assert_eq!(decode(&mut table, &block).as_ref(), Ok(&truth));
        if number < joins {
            continue;
        }
        let seen = decode(&mut late, &block).expect("a partial table refuses no index");
        assert_eq!(seen.len(), truth.len());
        for (seen, truth) in seen.iter().zip(&truth) {
            let is_right = |seen: &str, truth: &str| seen == "?" || seen == truth;
            assert!(
                is_right(&seen.0, &truth.0) && is_right(&seen.1, &truth.1),
                "{seen:?} is not {truth:?}"
            );
        }
    }
}
