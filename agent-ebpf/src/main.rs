//! The kernel side of Vortex: copies the buffers of TLS calls into a ring and says what it could not
//! copy. It decides nothing else.
//!
//! Two rules hold for every program here, and `tests/object.rs` checks the first:
//!
//! * **At most 48 bytes of stack.** Uprobe programs are preemptible, and since 6.13 the x86-64 JIT
//!   puts a larger stack into a per-CPU area without a guard: another task's plaintext would come out
//!   under our header. State therefore lives in the thread's map value and is read again each time.
//! * **Nothing that can sleep between reserve and submit.** The ring is delivered in order, so one
//!   page that never comes would stop everybody's capture.
//!
//! The oldest kernel is 5.10: no attach cookies, no fetching atomics, no `bpf_loop`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// bpf-linker says which of its ways to find LLVM it did not take.
#![allow(linker_messages)]

mod budget;
mod call;
mod emit;
mod filter;
mod go;
mod group;
mod hello;
mod identity;
mod kernel;
mod life;
mod maps;
mod name;
mod namespace;
mod plain;
#[cfg(any(feature = "planted-scratch", feature = "planted-stack"))]
mod planted;
mod process;
mod rustls;
mod socket;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
