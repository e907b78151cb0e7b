//! The code of one function: where it branches, and where a probe in it belongs.

use std::ops::Range;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction as Decoded, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::{
    Instruction, Refusal,
    elf::{Elf, Target},
    instruction::under_probe,
};

/// A probe further behind the entry than this is refused: no prologue needs it.
const DISTANCE_MAX: usize = 11;
/// Argument registers of the System V calling convention, in order.
pub(super) const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

pub(super) struct Function {
    pub(super) address: u64,
    pub(super) offset: u64,
    code: Vec<u8>,
    instructions: Vec<Decoded>,
}

/// Where the probe of a function belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes behind the entry; 0 <= distance <= DISTANCE_MAX.
    pub(super) distance: usize,
    pub(super) instruction: Instruction,
}

impl Function {
    /// The function that begins at `address`; `None` if its end is unknown or its bytes aren't code.
    pub(super) fn read(elf: &Elf<'_>, address: u64) -> Result<Option<Self>, Refusal> {
        let Some(range) = elf.function_at(address)? else {
            return Ok(None);
        };
        let Some((offset, code)) = elf.code(range)? else {
            return Ok(None);
        };
        Ok(Self::decode(address, offset, code))
    }

    fn decode(address: u64, offset: u64, code: Vec<u8>) -> Option<Self> {
        let instructions: Vec<_> = Decoder::with_ip(64, &code, address, DecoderOptions::NONE)
            .into_iter()
            .collect();
        let is_code = instructions
            .iter()
            .all(|instruction| !instruction.is_invalid());
        is_code.then_some(Self {
            address,
            offset,
            code,
            instructions,
        })
    }

    fn range(&self) -> Range<u64> {
        self.address..self.address + self.code.len() as u64
    }

    /// Where control goes directly: calls, and jumps that leave the function.
    pub(super) fn exits(&self) -> impl Iterator<Item = Target> {
        self.instructions
            .iter()
            .filter_map(|instruction| match instruction.flow_control() {
                FlowControl::Call | FlowControl::IndirectCall => branch_target(instruction),
                FlowControl::UnconditionalBranch
                | FlowControl::ConditionalBranch
                | FlowControl::IndirectBranch => {
                    branch_target(instruction).filter(|target| match target {
                        Target::Code(address) => !self.range().contains(address),
                        Target::Slot(_) => true,
                    })
                }
                _ => None,
            })
    }

    /// Is `register` set to zero, last before `target` is called?
    pub(super) fn passes_zero(&self, register: Register, target: u64) -> bool {
        let mut factory = InstructionInfoFactory::new();
        let mut zero = false;
        for instruction in &self.instructions {
            if branch_target(instruction) == Some(Target::Code(target)) {
                break;
            }
            let info = factory.info(instruction);
            if info
                .used_registers()
                .iter()
                .any(|used| used.register().full_register() == register && writes(used.access()))
            {
                zero = is_zeroing(instruction);
            }
        }
        zero
    }

    /// The first instruction that the kernel emulates, with the stack pointer and the first `arguments`
    /// registers as they were at the entry; else the entry itself. `None` if the kernel refuses that.
    ///
    /// A return probe needs no more: the word at the stack pointer is the return address at both places.
    pub(super) fn place(&self, arguments: usize) -> Option<Place> {
        let distance = self.cheap_distance(arguments).unwrap_or(0);
        let instruction = under_probe(&self.code[distance..])?;
        Some(Place {
            distance,
            instruction,
        })
    }

    fn cheap_distance(&self, arguments: usize) -> Option<usize> {
        let mut factory = InstructionInfoFactory::new();
        for instruction in &self.instructions {
            let distance = (instruction.ip() - self.address) as usize;
            if distance > DISTANCE_MAX {
                return None;
            }
            if under_probe(&self.code[distance..]) == Some(Instruction::Emulated) {
                return (!self.jumps_into(self.address + 1..instruction.ip() + 1))
                    .then_some(distance);
            }
            if instruction.flow_control() != FlowControl::Next {
                return None;
            }
            let info = factory.info(instruction);
            let kept =
                |register| register == Register::RSP || ARGUMENTS[..arguments].contains(&register);
            let changed = info
                .used_registers()
                .iter()
                .any(|used| kept(used.register().full_register()) && writes(used.access()));
            let stored = info.used_memory().iter().any(|used| writes(used.access()));
            if changed || stored {
                return None;
            }
        }
        None
    }

    /// A jump to behind the entry would hit a probe there again in the same call.
    fn jumps_into(&self, range: Range<u64>) -> bool {
        let targets = self.instructions.iter().filter_map(branch_target);
        targets
            .into_iter()
            .any(|target| matches!(target, Target::Code(address) if range.contains(&address)))
    }
}

/// Where the code at `address` leads: itself, or if it is a PLT entry, the function behind it. `None` if that
/// is in another file.
pub(super) fn resolve(elf: &Elf<'_>, target: Target) -> Result<Option<u64>, Refusal> {
    let address = match target {
        Target::Slot(slot) => return elf.slot(slot),
        Target::Code(address) => address,
    };
    // endbr64 and `bnd jmp *x(%rip)`, the longest entry.
    let Some((_, code)) = elf.code(address..address.saturating_add(11))? else {
        return Ok(Some(address));
    };
    let mut decoder = Decoder::with_ip(64, &code, address, DecoderOptions::NONE);
    let mut instruction = decoder.decode();
    if instruction.mnemonic() == Mnemonic::Endbr64 {
        instruction = decoder.decode();
    }
    match (instruction.flow_control(), branch_target(&instruction)) {
        (FlowControl::IndirectBranch, Some(Target::Slot(slot))) => elf.slot(slot),
        _ => Ok(Some(address)),
    }
}

fn branch_target(instruction: &Decoded) -> Option<Target> {
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
            if instruction.op0_kind() == OpKind::NearBranch64 =>
        {
            Some(Target::Code(instruction.near_branch_target()))
        }
        FlowControl::IndirectCall | FlowControl::IndirectBranch
            if instruction.is_ip_rel_memory_operand() =>
        {
            Some(Target::Slot(instruction.ip_rel_memory_address()))
        }
        _ => None,
    }
}

fn is_zeroing(instruction: &Decoded) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Xor => {
            instruction.op1_kind() == OpKind::Register
                && instruction.op0_register() == instruction.op1_register()
        }
        Mnemonic::Mov => instruction.try_immediate(1).is_ok_and(|value| value == 0),
        _ => false,
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}
