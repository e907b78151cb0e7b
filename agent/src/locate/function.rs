//! The code of one function: where it branches, and where a probe in it belongs.

use std::{collections::BTreeMap, ops::Range};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction as Decoded, InstructionInfoFactory,
    MemorySize, Mnemonic, OpAccess, OpKind, Register,
};

use super::{
    Instruction, Refusal,
    elf::{Elf, Target},
    instruction::under_probe,
};

/// A probe further behind the entry than this is refused: no prologue needs it.
const DISTANCE_MAX: usize = 11;
/// Where functions have no unwind entries, their code is looked for this far.
pub(super) const REACH: u64 = 8 << 10;
const INSTRUCTIONS_MAX: usize = 4096;
/// push %rbp; mov %rsp,%rbp
const PROLOGUE: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
const ALIGNMENT: u64 = 16;
/// The arguments of a call are set this near to each other.
const ARGUMENTS_AROUND: usize = 8;
/// The calls that belong together are this near to each other.
const CALLS_AROUND: usize = 32;
/// Argument registers of the System V calling convention, in order.
pub(super) const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

#[derive(Clone)]
pub(super) struct Function {
    pub(super) address: u64,
    pub(super) offset: u64,
    code: Vec<u8>,
    instructions: Vec<Decoded>,
}

/// A call, and what it is given.
pub(super) struct Passed {
    pub(super) target: Option<Target>,
    /// In the order of [`ARGUMENTS`], as far as the code before it sets them to numbers or addresses.
    pub(super) arguments: [Option<u64>; ARGUMENTS.len()],
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

    /// The function in this range; `None` if that isn't code.
    pub(super) fn within(elf: &Elf<'_>, range: Range<u64>) -> Result<Option<Self>, Refusal> {
        let address = range.start;
        let code = elf.code(range)?;
        Ok(code.and_then(|(offset, code)| Self::decode(address, offset, code)))
    }

    /// The function that something points to: to its known end, or as far as control reaches from its entry.
    pub(super) fn entered(elf: &Elf<'_>, address: u64) -> Result<Option<Self>, Refusal> {
        if let Some(function) = Self::read(elf, address)? {
            return Ok(Some(function));
        }
        let Some((start, offset, code)) = elf.code_around(address, 0, REACH)? else {
            return Ok(None);
        };
        Ok(Self::trace(start, offset, &code))
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

    /// The function that `address` is in: by its unwind entry, or where there is none by the prologue that
    /// control comes from. `None` if there is neither.
    pub(super) fn around(elf: &Elf<'_>, address: u64) -> Result<Option<Self>, Refusal> {
        if let Some(range) = elf.function_around(address)? {
            return Self::within(elf, range);
        }
        let Some((start, offset, code)) = elf.code_around(address, REACH, REACH)? else {
            return Ok(None);
        };
        let is_entry = |at: &usize| {
            (start + *at as u64).is_multiple_of(ALIGNMENT) && code[*at..].starts_with(&PROLOGUE)
        };
        // The nearest one or none: no function lies in another one.
        let before = (address - start) as usize;
        let Some(entry) = (0..=before).rev().find(is_entry) else {
            return Ok(None);
        };
        let function = Self::trace(start + entry as u64, offset + entry as u64, &code[entry..]);
        Ok(function.filter(|function| function.at(address).is_some()))
    }

    /// The function at `address` in a file that has no unwind entries to say so: something calls it or takes its
    /// address, and its end is where control does not get any further.
    pub(super) fn referred(elf: &Elf<'_>, address: u64) -> Result<Option<Self>, Refusal> {
        if elf.has_unwind() || elf.references(address)?.is_empty() {
            return Ok(None);
        }
        let Some((start, offset, code)) = elf.code_around(address, 0, REACH)? else {
            return Ok(None);
        };
        Ok(Self::trace(start, offset, &code))
    }

    /// The function that `address` is in, where these are the addresses that functions begin at, sorted.
    pub(super) fn among(
        elf: &Elf<'_>,
        entries: &[u64],
        address: u64,
    ) -> Result<Option<Self>, Refusal> {
        let behind = entries.partition_point(|entry| *entry <= address);
        let Some(&entry) = behind.checked_sub(1).and_then(|at| entries.get(at)) else {
            return Ok(None);
        };
        let end = entries.get(behind).map_or(REACH, |next| next - entry);
        if address - entry > REACH {
            return Ok(None);
        }
        let Some((start, offset, code)) = elf.code_around(entry, 0, end.min(REACH))? else {
            return Ok(None);
        };
        let function = Self::trace(start, offset, &code);
        Ok(function.filter(|function| function.at(address).is_some()))
    }

    /// What control reaches from an entry, as long as it stays in `code`. `None` if that isn't code, or if two
    /// instructions overlap.
    fn trace(address: u64, offset: u64, code: &[u8]) -> Option<Self> {
        let mut reached = BTreeMap::new();
        let mut paths = vec![address];
        while let Some(mut ip) = paths.pop() {
            loop {
                let at = usize::try_from(ip.wrapping_sub(address)).ok();
                let Some(rest) = at
                    .and_then(|at| code.get(at..))
                    .filter(|rest| !rest.is_empty())
                else {
                    break;
                };
                let is_next =
                    ip != address && ip.is_multiple_of(ALIGNMENT) && rest.starts_with(&PROLOGUE);
                if is_next || reached.contains_key(&ip) {
                    break;
                }
                let instruction = Decoder::with_ip(64, rest, ip, DecoderOptions::NONE).decode();
                if instruction.is_invalid() || reached.len() > INSTRUCTIONS_MAX {
                    return None;
                }
                reached.insert(ip, instruction);
                let target = instruction.near_branch_target();
                match instruction.flow_control() {
                    FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {}
                    FlowControl::ConditionalBranch => paths.push(target),
                    FlowControl::UnconditionalBranch => {
                        paths.push(target);
                        break;
                    }
                    _ => break,
                }
                ip = instruction.next_ip();
            }
        }
        let instructions: Vec<_> = reached.into_values().collect();
        let is_apart = instructions
            .array_windows()
            .all(|[first, second]| first.next_ip() <= second.ip());
        let size = (instructions.last()?.next_ip() - address) as usize;
        is_apart.then(|| Self {
            address,
            offset,
            code: code[..size].to_vec(),
            instructions,
        })
    }

    pub(super) fn instructions(&self) -> &[Decoded] {
        &self.instructions
    }

    /// Does each branch of the function that stays in it lead to one of its instructions?
    pub(super) fn is_consistent(&self) -> bool {
        let targets = self.instructions.iter().filter_map(branch_target);
        targets.into_iter().all(|target| match target {
            Target::Code(address) => !self.contains(address) || self.at(address).is_some(),
            Target::Slot(_) => true,
        })
    }

    /// Where the function calls `target` directly, by the numbers of the instructions.
    pub(super) fn calls_of(&self, target: u64) -> Vec<usize> {
        let is_call = |instruction: &Decoded| {
            instruction.flow_control() == FlowControl::Call
                && branch_target(instruction) == Some(Target::Code(target))
        };
        let instructions = self.instructions.iter().enumerate();
        let calls = instructions.filter(|(_, instruction)| is_call(instruction));
        calls.map(|(number, _)| number).collect()
    }

    /// The number of the instruction at this address.
    pub(super) fn at(&self, address: u64) -> Option<usize> {
        let found = self
            .instructions
            .binary_search_by_key(&address, Decoded::ip);
        found.ok()
    }

    /// The address that the instruction at `address` moves into a register, and which one.
    pub(super) fn load(&self, address: u64) -> Option<(Register, u64)> {
        let instruction = &self.instructions[self.at(address)?];
        let target = match instruction.mnemonic() {
            Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => {
                instruction.ip_rel_memory_address()
            }
            Mnemonic::Mov => instruction.try_immediate(1).ok()?,
            _ => return None,
        };
        Some((instruction.op0_register().full_register(), target))
    }

    /// The number that `register` has at the end of the straight piece of code around `address`, if it is set
    /// there.
    pub(super) fn constant(&self, address: u64, register: Register) -> Option<u64> {
        let middle = self.at(address)?;
        let is_straight = |instruction: &&Decoded| instruction.flow_control() == FlowControl::Next;
        let sets = |instruction: &&Decoded| {
            let is_register = instruction.op0_kind() == OpKind::Register;
            is_register && instruction.op0_register().full_register() == register
        };
        let behind = self.instructions[middle..].iter().take(ARGUMENTS_AROUND);
        let before = self.instructions[..middle].iter().rev();
        let last = behind.take_while(is_straight).filter(sets).last();
        let mut before = before.take(ARGUMENTS_AROUND).take_while(is_straight);
        let setter = last.or_else(|| before.find(sets))?;
        match setter.mnemonic() {
            Mnemonic::Mov => setter.try_immediate(1).ok(),
            _ => is_zeroing(setter).then_some(0),
        }
    }

    /// The next calls, `count` or less, from the straight piece of code around `address` on.
    pub(super) fn calls_from(&self, address: u64, count: usize) -> Vec<Passed> {
        let mut calls = Vec::new();
        let Some(middle) = self.at(address) else {
            return calls;
        };
        let is_straight = |instruction: &&Decoded| instruction.flow_control() == FlowControl::Next;
        let before = self.instructions[..middle].iter().rev();
        let before = before.take(ARGUMENTS_AROUND).take_while(is_straight);
        let mut number = middle - before.count();
        let mut factory = InstructionInfoFactory::new();
        let mut arguments = [None; ARGUMENTS.len()];
        for _ in 0..CALLS_AROUND {
            let Some(instruction) = self.instructions.get(number) else {
                break;
            };
            number += 1;
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::Call | FlowControl::IndirectCall => {
                    calls.push(Passed {
                        target: branch_target(instruction),
                        arguments: std::mem::take(&mut arguments),
                    });
                    if calls.len() == count {
                        break;
                    }
                    continue;
                }
                // Compilers share the end of pieces that are alike.
                FlowControl::UnconditionalBranch => {
                    match self.at(instruction.near_branch_target()) {
                        Some(target) => number = target,
                        None => break,
                    }
                    continue;
                }
                _ => break,
            }
            for used in factory.info(instruction).used_registers() {
                let register = used.register().full_register();
                let argument = ARGUMENTS.iter().position(|argument| *argument == register);
                if let (Some(argument), true) = (argument, writes(used.access())) {
                    arguments[argument] = value(instruction);
                }
            }
        }
        calls
    }

    /// Does it move a span forward that is in an object: 64-bit fields side by side, both read and written?
    pub(super) fn consumes(&self) -> bool {
        let mut factory = InstructionInfoFactory::new();
        let (mut read, mut written) = (Vec::new(), Vec::new());
        for instruction in &self.instructions {
            for used in factory.info(instruction).used_memory() {
                let displacement = used.displacement().cast_signed();
                let is_local = match used.base() {
                    Register::RSP | Register::RIP | Register::None => true,
                    // A frame's own variables are below it.
                    Register::RBP => displacement < 0,
                    _ => false,
                };
                if is_local || used.memory_size().size() != 8 {
                    continue;
                }
                if reads(used.access()) {
                    read.push(displacement);
                }
                if writes(used.access()) {
                    written.push(displacement);
                }
            }
        }
        let is_both = |field: &i64| read.contains(field) && written.contains(field);
        let mut fields = written.iter();
        fields.any(|field| is_both(field) && is_both(&(field + 8)))
    }

    pub(super) fn contains(&self, address: u64) -> bool {
        self.range().contains(&address)
    }

    fn range(&self) -> Range<u64> {
        self.address..self.address + self.code.len() as u64
    }

    /// Where control goes directly: calls, and jumps that leave the function.
    pub(super) fn exits(&self) -> impl Iterator<Item = Target> {
        self.calls().chain(self.jumps())
    }

    fn calls(&self) -> impl Iterator<Item = Target> {
        let calls = self.instructions.iter().filter(|instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            )
        });
        calls.filter_map(branch_target)
    }

    /// Jumps that leave the function: what they lead to returns in its place.
    pub(super) fn jumps(&self) -> impl Iterator<Item = Target> {
        let jumps = self.instructions.iter().filter(|instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::ConditionalBranch
                    | FlowControl::IndirectBranch
            )
        });
        jumps
            .filter_map(branch_target)
            .filter(|target| match target {
                Target::Code(address) => !self.range().contains(address),
                Target::Slot(_) => true,
            })
    }

    /// Is `register`, which no call preserves, an argument: read on some path from the entry before it is
    /// written? All paths, because a compiler may put a return that clears the registers first.
    pub(super) fn takes(&self, register: Register) -> bool {
        self.reads_first(register, false)
    }

    /// The same, or does a path lead to a table of jumps with the caller's value still in `register`? What is behind
    /// that is not followed.
    pub(super) fn may_take(&self, register: Register) -> bool {
        self.reads_first(register, true)
    }

    fn reads_first(&self, register: Register, or_jumps: bool) -> bool {
        let mut factory = InstructionInfoFactory::new();
        let mut seen = vec![false; self.instructions.len()];
        let mut paths = vec![0];
        while let Some(index) = paths.pop() {
            if index >= seen.len() || std::mem::replace(&mut seen[index], true) {
                continue;
            }
            let instruction = &self.instructions[index];
            let used = factory.info(instruction).used_registers().iter();
            let accesses = used.filter(|used| used.register().full_register() == register);
            let accesses: Vec<_> = accesses.map(|used| used.access()).collect();
            if accesses.iter().any(|access| reads(*access)) {
                return true;
            }
            if !accesses.is_empty() {
                continue;
            }
            let flow = instruction.flow_control();
            if or_jumps && flow == FlowControl::IndirectBranch {
                return true;
            }
            if matches!(flow, FlowControl::Next | FlowControl::ConditionalBranch) {
                paths.push(index + 1);
            }
            if matches!(
                flow,
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            ) {
                let target = instruction.near_branch_target();
                paths.extend(self.instructions.binary_search_by_key(&target, Decoded::ip));
            }
        }
        false
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

    /// What is called first, with the first `arguments` registers as they were at the entry: the function stands
    /// guard before another one. The way there is the straight one, past conditional jumps.
    pub(super) fn hands_on(&self, arguments: usize) -> Option<u64> {
        let mut factory = InstructionInfoFactory::new();
        for instruction in &self.instructions {
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::ConditionalBranch => {}
                FlowControl::Call => {
                    return match branch_target(instruction)? {
                        Target::Code(address) => Some(address),
                        Target::Slot(_) => None,
                    };
                }
                _ => return None,
            }
            let mut used = factory.info(instruction).used_registers().iter();
            if used.any(|used| {
                ARGUMENTS[..arguments].contains(&used.register().full_register())
                    && writes(used.access())
            }) {
                return None;
            }
        }
        None
    }

    /// Where, counted from the first argument, the function's first atomic instruction has its 32-bit operand.
    pub(super) fn counts_at(&self) -> Option<u16> {
        let mut factory = InstructionInfoFactory::new();
        for instruction in &self.instructions {
            if instruction.has_lock_prefix() {
                let is_number = matches!(
                    instruction.memory_size(),
                    MemorySize::UInt32 | MemorySize::Int32
                );
                let is_field = instruction.memory_base() == Register::RDI
                    && instruction.memory_index() == Register::None;
                return u16::try_from(instruction.memory_displacement64())
                    .ok()
                    .filter(|_| is_number && is_field);
            }
            let info = factory.info(instruction);
            let changes = info.used_registers().iter().any(|used| {
                used.register().full_register() == Register::RDI && writes(used.access())
            });
            if changes
                || matches!(
                    instruction.flow_control(),
                    FlowControl::Call | FlowControl::IndirectCall
                )
            {
                return None;
            }
        }
        None
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
    match linkage(elf, target)? {
        Target::Slot(slot) => elf.slot(slot),
        Target::Code(address) => Ok(Some(address)),
    }
}

/// A PLT entry's slot, and anything else itself.
pub(super) fn linkage(elf: &Elf<'_>, target: Target) -> Result<Target, Refusal> {
    let Target::Code(address) = target else {
        return Ok(target);
    };
    // endbr64 and `bnd jmp *x(%rip)`, the longest entry.
    let Some((_, code)) = elf.code(address..address.saturating_add(11))? else {
        return Ok(target);
    };
    let mut decoder = Decoder::with_ip(64, &code, address, DecoderOptions::NONE);
    let mut instruction = decoder.decode();
    if instruction.mnemonic() == Mnemonic::Endbr64 {
        instruction = decoder.decode();
    }
    match (instruction.flow_control(), branch_target(&instruction)) {
        (FlowControl::IndirectBranch, Some(slot)) => Ok(slot),
        _ => Ok(target),
    }
}

/// Is the code at `address` nothing but a way to `target`, with `register` set to zero?
pub(super) fn forwards(
    elf: &Elf<'_>,
    address: u64,
    register: Register,
    target: u64,
) -> Result<bool, Refusal> {
    // endbr64, a frame made and left, the zero, a long jump.
    const SIZE: u64 = 4 + 4 + 2 + 1 + 5;
    let Some((_, code)) = elf.code(address..address.saturating_add(SIZE))? else {
        return Ok(false);
    };
    let mut is_zero = false;
    for instruction in &mut Decoder::with_ip(64, &code, address, DecoderOptions::NONE) {
        match instruction.mnemonic() {
            Mnemonic::Endbr64 | Mnemonic::Push | Mnemonic::Pop => {}
            Mnemonic::Mov if instruction.op0_register() == Register::RBP => {}
            _ if instruction.flow_control() == FlowControl::UnconditionalBranch => {
                return Ok(is_zero && branch_target(&instruction) == Some(Target::Code(target)));
            }
            _ if is_zeroing(&instruction)
                && instruction.op0_register().full_register() == register =>
            {
                is_zero = true;
            }
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// The number or address that an instruction sets its first operand to.
fn value(instruction: &Decoded) -> Option<u64> {
    match instruction.mnemonic() {
        _ if instruction.op0_register().size() < 4 => None,
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => {
            Some(instruction.ip_rel_memory_address())
        }
        Mnemonic::Mov => instruction.try_immediate(1).ok(),
        _ => is_zeroing(instruction).then_some(0),
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

fn reads(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: &[u8], arguments: usize, expected: Option<(usize, Instruction)>) {
        let mut code = code.to_vec();
        code.push(0xc3);
        let function = Function::decode(0x1000, 0, code).expect("code");
        let place = function
            .place(arguments)
            .map(|place| (place.distance, place.instruction));
        assert_eq!(place, expected);
    }

    const ENTRY: Option<(usize, Instruction)> = Some((0, Instruction::Stepped));

    fn emulated(distance: usize) -> Option<(usize, Instruction)> {
        Some((distance, Instruction::Emulated))
    }

    #[test]
    fn first_emulated_instruction() {
        check(&[0x41, 0x57], 4, emulated(0));
        // endbr64; push %r14
        check(&[0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0x56], 5, emulated(4));
        // test %rdi,%rdi; je
        check(&[0x48, 0x85, 0xff, 0x74, 0x02, 0x90, 0x90], 4, emulated(3));
        // xor %eax,%eax; mov (%rdi),%eax; push
        check(&[0x31, 0xc0, 0x8b, 0x07, 0x55], 4, emulated(4));
        // 66 90 may be stepped over, not probed
        check(&[0x66, 0x90, 0x55], 4, emulated(2));
    }

    #[test]
    fn arguments_and_stack_must_be_intact() {
        check(&[0x48, 0x83, 0xec, 0x18, 0x55], 3, ENTRY);
        // mov %rdx,%rcx; push: rcx is the fourth argument
        check(&[0x48, 0x89, 0xd1, 0x55], 3, emulated(3));
        check(&[0x48, 0x89, 0xd1, 0x55], 4, ENTRY);
        // xor %r8d,%r8d writes all of r8
        check(&[0x45, 0x31, 0xc0, 0x55], 4, emulated(3));
        check(&[0x45, 0x31, 0xc0, 0x55], 5, ENTRY);
        // mov %rax,(%rdi)
        check(&[0x48, 0x89, 0x07, 0x55], 3, ENTRY);
        // call *%rax; push
        check(&[0xff, 0xd0, 0x55], 3, ENTRY);
        // lock add: refused, and nothing emulated before the store
        check(&[0xf0, 0x01, 0x07, 0x55], 3, None);
    }

    #[test]
    fn a_jump_into_the_prologue_refutes_the_point() {
        // endbr64; push; pop; jmp to the push
        check(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xeb, 0xfc], 3, ENTRY);
        // ... behind the push
        check(
            &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xeb, 0xfd],
            3,
            emulated(4),
        );
    }

    #[test]
    fn arguments_are_read_first_on_some_path() {
        let takes = |code: &[u8]| {
            Function::decode(0x1000, 0, code.to_vec())
                .expect("code")
                .takes(Register::R8)
        };
        assert!(takes(&[0x4c, 0x89, 0xc5, 0xc3]));
        assert!(!takes(&[0x4d, 0x89, 0xc8, 0x4c, 0x89, 0xc5, 0xc3]));
        // call; mov %r8,%rbp: the call has overwritten it
        assert!(!takes(&[0xff, 0xd0, 0x4c, 0x89, 0xc5, 0xc3]));
        // je +4; xor %r8d,%r8d; ret; mov %r8,%rbp: read on the second path
        assert!(takes(&[
            0x74, 0x04, 0x45, 0x31, 0xc0, 0xc3, 0x4c, 0x89, 0xc5, 0xc3
        ]));
        // jmp to itself ends
        assert!(!takes(&[0xeb, 0xfe]));
    }

    #[test]
    fn a_count_is_a_field_of_the_first_argument() {
        let counts_at = |code: &[u8]| Function::decode(0x1000, 0, code.to_vec())?.counts_at();
        // test %rdi,%rdi; je +9; lock xadd %eax,0x9e0(%rdi); ret
        let locked = [0xf0, 0x0f, 0xc1, 0x87, 0xe0, 0x09, 0, 0, 0xc3];
        let code = |before: &[u8]| [before, &locked].concat();
        assert_eq!(
            counts_at(&code(&[0x48, 0x85, 0xff, 0x74, 0x08])),
            Some(0x9e0)
        );
        // lock decl 0x20(%rdi); and of %rbx
        assert_eq!(counts_at(&[0xf0, 0xff, 0x4f, 0x20, 0xc3]), Some(0x20));
        assert_eq!(counts_at(&[0xf0, 0xff, 0x4b, 0x20, 0xc3]), None);
        // 64 bits wide
        assert_eq!(counts_at(&[0xf0, 0x48, 0xff, 0x4f, 0x20, 0xc3]), None);
        // mov %rax,%rdi; a call
        assert_eq!(counts_at(&code(&[0x48, 0x89, 0xc7])), None);
        assert_eq!(counts_at(&code(&[0xff, 0xd0])), None);
        assert_eq!(counts_at(&[0x55, 0x5d, 0xc3]), None);
    }

    #[test]
    fn far_points_are_refused() {
        let near: Vec<_> = [0x31, 0xc0].repeat(5).into_iter().chain([0x55]).collect();
        check(&near, 3, emulated(10));
        let far: Vec<_> = [0x31, 0xc0].repeat(6).into_iter().chain([0x55]).collect();
        check(&far, 3, ENTRY);
    }
}
