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
    let branch_or_nop = match bytes[prefixes..] {
        [0xe8 | 0xe9 | 0xeb | 0x70..=0x7f | 0x90, ..] => true,
        [0x0f, 0x80..=0x8f, ..] => true,
        _ => false,
    };
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
