//! Two mistakes that a kernel with full preemption shows, each behind a feature of its own: the tests of
//! preemption are worth something only as long as they find these (`cargo xtask vm --planted`).

#[cfg(feature = "planted-scratch")]
mod scratch {
    use core::ffi::c_void;

    use agent_ebpf::RECORD_MAX;
    use aya_ebpf::{
        helpers::{bpf_get_smp_processor_id, generated},
        macros::map,
        maps::Array,
    };

    /// More than a test machine has; a power of two.
    const PROCESSORS: u32 = 64;

    /// A value of a real per-CPU array can't be as large as a record.
    #[map]
    static SCRATCH: Array<[u8; RECORD_MAX as usize]> = Array::with_max_entries(PROCESSORS, 0);

    /// By way of a buffer of the processor, which is not ours alone: who takes the processor away between the
    /// two steps fills it.
    #[inline(always)]
    pub unsafe fn copy(to: *mut c_void, size: u32, from: *const c_void) -> i64 {
        // SAFETY: of a helper without arguments.
        let processor = unsafe { bpf_get_smp_processor_id() } % PROCESSORS;
        let Some(scratch) = SCRATCH.get_ptr_mut(processor) else {
            return -1;
        };
        // SAFETY: both are at least `size` bytes, which the verifier proves.
        unsafe {
            if generated::bpf_probe_read_user(scratch.cast(), size, from) != 0 {
                return -1;
            }
            generated::bpf_probe_read_kernel(to, size, scratch.cast())
        }
    }
}
#[cfg(feature = "planted-scratch")]
pub use scratch::copy;

/// A word that is kept on the stack while something else happens, in so much of it that the stack is above 48
/// bytes: where the JIT makes one area per CPU of that, who takes the processor away overwrites it.
#[cfg(feature = "planted-stack")]
pub struct Kept([u64; 8]);

#[cfg(feature = "planted-stack")]
impl Kept {
    #[inline(always)]
    pub fn new(word: u64) -> Self {
        let mut kept = core::mem::MaybeUninit::<[u64; 8]>::uninit();
        for at in 0..8 {
            // SAFETY: inside the array. Volatile, or nothing would be stored.
            unsafe { kept.as_mut_ptr().cast::<u64>().add(at).write_volatile(word) };
        }
        // SAFETY: all eight are written.
        Self(unsafe { kept.assume_init() })
    }

    #[inline(always)]
    pub fn get(&self) -> u64 {
        // SAFETY: inside the array.
        unsafe { (&raw const self.0[7]).read_volatile() }
    }
}
