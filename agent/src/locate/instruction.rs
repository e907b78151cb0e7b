//! What the kernel does with the instruction under a uprobe (arch/x86/kernel/uprobes.c).

use iced_x86::{Code, Decoder, DecoderOptions};

use super::Instruction;

/// The kernel's way with the instruction at the start of `bytes`; `None` if it refuses a probe there, or if
/// an old kernel does.
///
/// A refused instruction must not be tried: attaching fails only if the file is mapped already, else it
/// succeeds and the probe never fires.
pub(super) fn under_probe(bytes: &[u8]) -> Option<Instruction> {
    match bytes {
        // push: one byte, or REX.B and one byte. Any other REX form is stepped.
        [0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..] => Some(Instruction::Emulated),
        // call, jmp, jcc, all direct; nop. The long nops (0f 1f) are emulated by new kernels only.
        [0xe8 | 0xe9 | 0xeb | 0x70..=0x7f | 0x90, ..] | [0x0f, 0x80..=0x8f, ..] => {
            Some(Instruction::Emulated)
        }
        _ => is_steppable(bytes).then_some(Instruction::Stepped),
    }
}

fn is_steppable(bytes: &[u8]) -> bool {
    let prefixes = bytes.iter().take_while(|byte| is_prefix(**byte)).count();
    // Segment overrides and lock ("is_prefix_bad"); branch hints and notrack look the same.
    if bytes[..prefixes]
        .iter()
        .any(|prefix| matches!(prefix, 0x26 | 0x2e | 0x36 | 0x3e | 0xf0))
    {
        return false;
    }
    // 16-bit branches, and 66 90 on kernels before 2022.
    let operand_size = bytes[..prefixes].contains(&0x66);
    let branch_or_nop = matches!(
        bytes[prefixes..],
        [0xe8 | 0xe9 | 0xeb | 0x70..=0x7f | 0x90, ..] | [0x0f, 0x80..=0x8f, ..]
    );
    if operand_size && branch_or_nop {
        return false;
    }
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let trap = matches!(
        instruction.code(),
        Code::Int3 | Code::Int1 | Code::Int_imm8 | Code::Ud2
    );
    !instruction.is_invalid() && !instruction.is_privileged() && !trap
}

fn is_prefix(byte: u8) -> bool {
    matches!(
        byte,
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let emulated: &[&[u8]] = &[
            &[0x50],
            &[0x55],
            &[0x41, 0x57],
            &[0xe8, 0, 0, 0, 0],
            &[0xe9, 0, 0, 0, 0],
            &[0xeb, 0],
            &[0x74, 0],
            &[0x0f, 0x84, 0, 0, 0, 0],
            &[0x90],
        ];
        let stepped: &[&[u8]] = &[
            &[0x48, 0x55],
            &[0x49, 0x57],
            &[0xf3, 0x0f, 0x1e, 0xfa],
            &[0x0f, 0x1f, 0x40, 0],
            &[0x48, 0x83, 0xec, 0x18],
            &[0x48, 0x89, 0xf8],
            &[0x8d, 0x47, 1],
            &[0x85, 0xff],
            &[0x39, 0xff],
            &[0x31, 0xc0],
            &[0x5d],
            &[0xc3],
            &[0xff, 0xd0],
            &[0xff, 0x25, 0, 0, 0, 0],
            // mov %fs:0x28,%rax: fs and gs are no bad prefixes
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0],
        ];
        let refused: &[&[u8]] = &[
            &[0x66, 0xe8, 0, 0, 0, 0],
            &[0x66, 0x0f, 0x84, 0, 0, 0, 0],
            &[0x66, 0x90],
            &[0x2e, 0x2e, 0x2e, 0x2e, 0x41, 0x54],
            &[0x26, 0x90],
            &[0x36, 0x90],
            &[0x3e, 0xff, 0xe0],
            &[0x2e, 0x74, 0],
            &[0xf0, 0x01, 0x07],
            &[0xcc],
            &[0xf4],
            &[0x0f, 0x0b],
            &[0x06],
            &[0x48],
            &[],
        ];
        for (cases, expected) in [
            (emulated, Some(Instruction::Emulated)),
            (stepped, Some(Instruction::Stepped)),
            (refused, None),
        ] {
            for bytes in cases {
                assert_eq!(under_probe(bytes), expected, "{bytes:x?}");
            }
        }
    }
}
