//! What is in the kernel's own structures, by the offsets that user space has found in BTF.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;

/// A pointer, or another word of eight bytes. 0 where nothing can be read.
#[inline(always)]
pub fn word(address: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: eight bytes; the helper fails on a wrong address and leaves zero.
    unsafe {
        generated::bpf_probe_read_kernel((&raw mut value).cast(), 8, address as *const c_void);
    }
    value
}
