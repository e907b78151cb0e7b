//! Two mistakes that a kernel with full preemption shows, each behind a feature of its own: the tests of
//! preemption are worth something only as long as they find these (`cargo xtask vm --planted`).
//!
//! Each keeps a word while something else happens in a place that is not ours alone: who takes the processor away
//! meanwhile overwrites it.

/// In a buffer of the processor. Not in a map that is asked by a key: the key would be on the stack, and that must not
/// grow, or this would be the other mistake as well.
#[cfg(feature = "planted-scratch")]
mod scratch {
    use core::cell::UnsafeCell;

    use aya_ebpf::helpers::bpf_get_smp_processor_id;

    /// More than a test machine has; a power of two.
    const PROCESSORS: usize = 64;

    struct Scratch(UnsafeCell<[u64; PROCESSORS]>);

    // SAFETY: whoever shares it takes what is there for a number, whoever wrote it.
    unsafe impl Sync for Scratch {}

    static SCRATCH: Scratch = Scratch(UnsafeCell::new([0; PROCESSORS]));

    pub struct Kept;

    impl Kept {
        /// The word is asked for last: it would be on the stack during the call.
        #[inline(always)]
        pub fn new(word: impl FnOnce() -> u64) -> Self {
            let place = mine();
            // SAFETY: inside the array.
            unsafe { place.write_volatile(word()) };
            Self
        }

        #[inline(always)]
        pub fn get(&self) -> u64 {
            // SAFETY: `mine` is inside the array.
            unsafe { mine().read_volatile() }
        }
    }

    /// The word of the processor that we are on.
    #[inline(always)]
    fn mine() -> *mut u64 {
        // SAFETY: of a helper without arguments.
        let processor = unsafe { bpf_get_smp_processor_id() } as usize % PROCESSORS;
        // SAFETY: inside the array.
        unsafe { SCRATCH.0.get().cast::<u64>().add(processor) }
    }
}
#[cfg(feature = "planted-scratch")]
pub use scratch::Kept;

/// In so much of the stack that it is above 48 bytes: where the JIT makes one area per CPU of that.
#[cfg(feature = "planted-stack")]
pub struct Kept([u64; 8]);

#[cfg(feature = "planted-stack")]
impl Kept {
    #[inline(always)]
    pub fn new(word: impl FnOnce() -> u64) -> Self {
        let word = word();
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
