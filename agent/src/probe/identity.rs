//! What a file is for the kernel: the inode that probes are attached to, and whether anybody maps it.
//!
//! The numbers of `fstat` can't tell: two overlay mounts show one layer file as two, a copy-up keeps the
//! number and changes the file, a btrfs snapshot shares its original's in `/proc/PID/maps`. So the kernel
//! is asked about a mapping of our own. The pointer means a file only as long as the file is held open,
//! and it never leaves this process.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    ptr,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use agent_ebpf::FileIdentity;
use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{ProgramType, RawTracePoint},
    sys::is_helper_supported,
};
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_func_id};

use super::{
    kernel::Layout,
    raw::{self, Bound, Kind},
};

/// The address of a `struct inode`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode(u64);

impl std::fmt::Debug for Inode {
    /// Kernel addresses are not for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inode(…)")
    }
}

/// A program never waits: it gets no answer where somebody is changing the mappings of the process in question,
/// or is about to. Our own threads do all the time, and on a loaded machine such a thread may wait for a
/// processor that we use up by asking: then the next question comes after a pause.
const TRIES: usize = 300;
const PAUSE: Duration = Duration::from_millis(1);

/// Does the kernel have what the question needs?
pub fn is_possible() -> bool {
    let helper = bpf_func_id::BPF_FUNC_find_vma;
    is_helper_supported(ProgramType::RawTracePoint, helper).unwrap_or(false)
}

/// The programs that answer.
pub struct Identities {
    identity: OwnedFd,
    is_mapped: OwnedFd,
    /// Asks about another process' mapping, where an iterator can be for one thread (6.1).
    of_process: Option<OwnedFd>,
    /// One question at a time: there is one place for the answer.
    answer: Mutex<Array<MapData, FileIdentity>>,
}

impl Identities {
    /// Loads the programs, and lets them answer once where the answer is known.
    ///
    /// # Errors
    /// This kernel can't say it: before 5.17, without BTF, or locked down.
    pub fn load(ebpf: &mut Ebpf, object: &Bound, layout: &Layout) -> Result<Identities> {
        ensure!(is_possible(), "no bpf_find_vma, which came with Linux 5.17");
        let identity = load(ebpf, "file_identity")?;
        let is_mapped = load(ebpf, "file_is_mapped")?;
        let answer = ebpf.take_map("IDENTITY").context("no map IDENTITY")?;
        let mut identities = Identities {
            identity,
            is_mapped,
            of_process: load_iterator(object, layout, "mapping_identity").ok(),
            answer: Mutex::new(Array::try_from(answer)?),
        };
        let own = OwnedFd::from(File::open("/proc/self/exe").context("open /proc/self/exe")?);
        let answer = identities.ask(&own)?;
        ensure!(
            answer.inode != 0 && identities.is_mapped(Inode(answer.inode))?,
            "the kernel does not know our own mapping"
        );
        // Of the common file systems only overlayfs and btrfs show other numbers than the kernel uses.
        let stat = rustix::fs::fstat(&own)?;
        let (major, minor) = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        let numbers = (u64::from(major) << 20 | u64::from(minor), stat.st_ino);
        ensure!(
            (answer.device, answer.number) == numbers || shows_other_numbers(&own)?,
            "the kernel takes our own executable for another file"
        );
        let of_process = with_page(&own, |address| {
            Ok(identities.of_mapping(std::process::id(), address))
        })?;
        if of_process != Some(Inode(answer.inode)) {
            identities.of_process = None;
        }
        Ok(identities)
    }

    /// The inode of an open file. Does not read it, so nothing waits for its storage; for 0.3 s at most.
    pub fn of(&self, file: &OwnedFd) -> Result<Inode> {
        let answer = self.ask(file)?;
        ensure!(answer.inode != 0, "the kernel does not know the mapping");
        Ok(Inode(answer.inode))
    }

    /// The inode that a process maps at this address; `None` if that can't be said, or not now. It may be
    /// another file's by the time that it is compared, if nothing holds this one.
    pub fn of_mapping(&self, pid: u32, address: u64) -> Option<Inode> {
        // No pause: all others would wait for us as well, and the process may be gone.
        self.of_mapping_with(pid, address, thread::yield_now)
    }

    /// The same for who may wait: for 0.3 s at most.
    pub fn of_mapping_at_last(&self, pid: u32, address: u64) -> Option<Inode> {
        self.of_mapping_with(pid, address, || thread::sleep(PAUSE))
    }

    fn of_mapping_with(&self, pid: u32, address: u64, wait: impl Fn()) -> Option<Inode> {
        let program = self.of_process.as_ref()?;
        let question = FileIdentity {
            address,
            ..FileIdentity::default()
        };
        let ask = || {
            let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
            answer.set(0, &question, 0)?;
            iterate(program, pid)?;
            Ok(answer.get(&0, 0)?)
        };
        let answer = with_answer(ask, wait).ok()?;
        (answer.inode != 0).then_some(Inode(answer.inode))
    }

    /// Is [`Identities::of_mapping`] ever answered?
    pub fn know_other_processes(&self) -> bool {
        self.of_process.is_some()
    }

    /// Does any process map the file, in whatever namespace? `inode` must be held alive by a link or a
    /// descriptor of ours.
    pub fn is_mapped(&self, inode: Inode) -> Result<bool> {
        Ok(self.run(&self.is_mapped, inode.0)?.mappings != 0)
    }

    fn ask(&self, file: &OwnedFd) -> Result<FileIdentity> {
        with_page(file, |address| {
            with_answer(
                || self.run(&self.identity, address),
                || thread::sleep(PAUSE),
            )
        })
    }

    /// BPF_PROG_TEST_RUN with one argument.
    fn run(&self, program: &OwnedFd, argument: u64) -> Result<FileIdentity> {
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut attributes = raw::zeroed();
        let arguments = [argument];
        attributes.test.prog_fd = program.as_raw_fd() as u32;
        attributes.test.ctx_in = arguments.as_ptr() as u64;
        attributes.test.ctx_size_in = size_of_val(&arguments) as u32;
        // SAFETY: `arguments` is as long as it says, and outlives the call.
        unsafe { raw::bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes) }
            .context("ask a kernel program")?;
        Ok(answer.get(&0, 0)?)
    }
}

/// The first answer that is final, else the last.
fn with_answer(
    mut ask: impl FnMut() -> Result<FileIdentity>,
    wait: impl Fn(),
) -> Result<FileIdentity> {
    let mut answer = ask()?;
    for _ in 1..TRIES {
        if answer.is_busy == 0 {
            break;
        }
        wait();
        answer = ask()?;
    }
    Ok(answer)
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name} in the object"))?;
    let program: &mut RawTracePoint = program.try_into()?;
    program
        .load()
        .with_context(|| format!("load the kernel program {name}"))?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

pub(super) fn load_iterator(object: &Bound, layout: &Layout, name: &str) -> Result<OwnedFd> {
    let tasks = layout.hook("bpf_iter_task");
    let tasks = tasks.context("no iterator over tasks")?;
    object.load(name, Kind::tracing(bpf_attach_type::BPF_TRACE_ITER, tasks))
}

/// Runs an iterator over the first thread of a process, or with 0 over all threads of our pid namespace.
pub(super) fn iterate(program: &OwnedFd, pid: u32) -> io::Result<()> {
    // `union bpf_iter_link_info`: tid, pid, pid_fd.
    let thread = [pid, 0, 0, 0];
    let mut attributes = raw::zeroed();
    // SAFETY: unions of plain integers, zeroed; `thread` is as long as it says, and outlives the call.
    let link = unsafe {
        let create = &mut attributes.link_create;
        create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
        create.__bindgen_anon_3.__bindgen_anon_1.iter_info = thread.as_ptr() as u64;
        create.__bindgen_anon_3.__bindgen_anon_1.iter_info_len = size_of_val(&thread) as u32;
        raw::descriptor_of(bpf_cmd::BPF_LINK_CREATE, &mut attributes)?
    };
    let mut attributes = raw::zeroed();
    attributes.iter_create.link_fd = link.as_raw_fd() as u32;
    // SAFETY: plain numbers; the command makes a descriptor.
    let iterator = unsafe { raw::descriptor_of(bpf_cmd::BPF_ITER_CREATE, &mut attributes)? };
    // It writes nothing: the end is all that there is to read.
    rustix::io::read(&iterator, &mut [0; 8])?;
    Ok(())
}

/// Maps the file's first page while `use_it` runs. Nobody reads it.
fn with_page<T>(file: impl AsFd, use_it: impl FnOnce(u64) -> Result<T>) -> Result<T> {
    let page = rustix::param::page_size();
    // SAFETY: a new private mapping that nobody dereferences.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            page,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file.as_fd().as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).context("map a file");
    }
    let result = use_it(address as u64);
    // SAFETY: the mapping from above.
    unsafe { libc::munmap(address, page) };
    result
}

fn shows_other_numbers(file: impl AsFd) -> io::Result<bool> {
    const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;
    const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;
    let magic = rustix::fs::fstatfs(file)?.f_type;
    Ok(magic == OVERLAYFS_SUPER_MAGIC || magic == BTRFS_SUPER_MAGIC)
}
