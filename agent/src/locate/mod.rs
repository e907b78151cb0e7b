//! Finds the functions to probe in a file: bytes in, points out. No process, no path, no clock.

use agent_ebpf::{Direction, Shape};

/// Positioned reads of a file that somebody else owns and may change or truncate at any time.
pub trait ReadAt {
    /// Fills `buf` from `offset`, or fails: a short read is an error.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()>;
    /// Size in bytes.
    fn size(&self) -> std::io::Result<u64>;
}

/// What the kernel does with the probed instruction (arch/x86/kernel/uprobes.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    Emulated,
    /// Single-stepped out of line: about ten times dearer.
    Stepped,
}

/// One place to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// File offset of the probed instruction.
    pub offset: u64,
    /// File offset of the function's first byte; `offset - 12 < function_offset <= offset`.
    pub function_offset: u64,
    /// Name in the library's source: `ssl_read_internal`.
    pub function: &'static str,
    pub direction: Direction,
    pub shape: Shape,
    pub instruction: Instruction,
    /// The bytes at `offset`, compared again before the probe is placed.
    pub bytes: [u8; 16],
}
