//! `bpf()` by ourselves, for what aya lacks: kinds of links and programs, questions to the verifier.

use std::{
    collections::HashSet,
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, RawFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{Ebpf, maps::Map};
use aya_obj::{
    Function, Object, ProgramSection,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_info, bpf_prog_type},
};
use rustix::fd::{AsFd as _, OwnedFd};

use super::{link::OBJECT, mapping};
use crate::obstacle::refused_by;

/// What the kernel is to take a program for.
#[derive(Clone, Copy)]
pub struct Kind {
    pub program: bpf_prog_type,
    /// 0 where the type of the program says it all.
    pub attach: u32,
    /// The BTF id of what it hangs on, or 0.
    pub hook: u32,
}

impl Kind {
    pub const UPROBE: Kind = Kind {
        program: bpf_prog_type::BPF_PROG_TYPE_KPROBE,
        attach: 0,
        hook: 0,
    };
    pub const MULTI: Kind = Kind {
        attach: bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32,
        ..Kind::UPROBE
    };
    pub const SESSION: Kind = Kind {
        attach: bpf_attach_type::BPF_TRACE_UPROBE_SESSION as u32,
        ..Kind::UPROBE
    };

    pub const EVENT: Kind = Kind {
        program: bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT,
        ..Kind::UPROBE
    };

    /// What hangs on one of the kernel's types.
    pub fn tracing(attach: bpf_attach_type, hook: u32) -> Kind {
        Kind {
            program: bpf_prog_type::BPF_PROG_TYPE_TRACING,
            attach: attach as u32,
            hook,
        }
    }
}

/// How much the verifier says about a program.
#[derive(Clone, Copy)]
pub enum Words {
    /// What it walked.
    All = 1,
    /// How much it walked: instructions, stack depth.
    Statistics = 4,
}

/// The object once more, bound to the maps that aya made.
pub struct Bound {
    object: Object,
    /// The types of its functions: the kernel wants them of a program with a callback.
    types: Option<OwnedFd>,
}

impl Bound {
    pub fn to(ebpf: &Ebpf) -> Result<Bound> {
        let mut object = Object::parse(OBJECT)?;
        let types = object
            .fixup_and_sanitize_btf(|| Some(|_| true))?
            .and_then(|btf| load_types(&btf.to_bytes()).ok());
        let maps = std::mem::take(&mut object.maps);
        let functions: HashSet<usize> = object.functions.keys().map(|key| key.0).collect();
        let descriptors: Result<Vec<(&str, RawFd, &aya_obj::Map)>> = maps
            .iter()
            .map(|(name, map)| Ok((name.as_str(), descriptor(ebpf, name)?, map)))
            .collect();
        object.relocate_maps(descriptors?.into_iter(), &functions)?;
        object.relocate_calls(&functions)?;
        Ok(Bound { object, types })
    }

    /// Names and sections of all programs.
    pub fn programs(&self) -> impl Iterator<Item = (&str, &ProgramSection)> {
        let programs = self.object.programs.iter();
        programs.map(|(name, program)| (name.as_str(), &program.section))
    }

    /// Loads one of its programs.
    pub fn load(&self, name: &str, kind: Kind) -> Result<OwnedFd> {
        let mut log = vec![0; 1 << 20];
        self.ask(name, kind, &mut [], Words::All)?.or_else(|error| {
            // Once more, with the verifier's words.
            let _ = self.ask(name, kind, &mut log, Words::All)?;
            Err(refused_by(&error, anyhow!("{error}\n{}", said(&log))))
        })
    }

    /// Loads one of its programs, and returns how much the verifier had to do.
    pub fn statistics(&self, name: &str, kind: Kind) -> Result<String> {
        let mut log = vec![0; 1 << 16];
        match self.ask(name, kind, &mut log, Words::Statistics)? {
            Ok(_) => Ok(said(&log)),
            Err(_) => self.load(name, kind).map(|_| String::new()),
        }
    }

    fn ask(
        &self,
        name: &str,
        kind: Kind,
        log: &mut [u8],
        words: Words,
    ) -> Result<io::Result<OwnedFd>> {
        let object = &self.object;
        let program = object.programs.get(name);
        let program = program.with_context(|| format!("no program {name} in the object"))?;
        let function = &object.functions[&program.function_key()];
        let types = self.types.as_ref().map(|types| (types, function));
        let code = &function.instructions;
        Ok(load(code, &program.license, name, kind, types, log, words))
    }
}

fn said(log: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(log).unwrap_or_default();
    text.to_string_lossy().trim_end().to_owned()
}

fn descriptor(ebpf: &Ebpf, name: &str) -> Result<RawFd> {
    match ebpf.map(name) {
        Some(
            Map::Array(map)
            | Map::CgroupArray(map)
            | Map::HashMap(map)
            | Map::LruHashMap(map)
            | Map::PerCpuArray(map)
            | Map::RingBuf(map),
        ) => Ok(map.fd().as_fd().as_raw_fd()),
        _ => Err(anyhow!("{name} is a map of an unexpected kind")),
    }
}

/// Loads code. `types` are those of the object, with the function that the code is.
pub fn load(
    code: &[bpf_insn],
    license: &CStr,
    name: &str,
    kind: Kind,
    types: Option<(&OwnedFd, &Function)>,
    log: &mut [u8],
    words: Words,
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: a union of plain integers, zeroed.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = kind.program as u32;
    load.expected_attach_type = kind.attach;
    load.attach_btf_id = kind.hook;
    load.insns = code.as_ptr() as u64;
    load.insn_cnt = code.len() as u32;
    load.license = license.as_ptr() as u64;
    for (to, from) in load.prog_name[..15].iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
    let mut functions = Vec::new();
    if let Some((types, function)) = types {
        functions = function.func_info.func_info_bytes();
        load.prog_btf_fd = types.as_raw_fd() as u32;
        load.func_info = functions.as_ptr() as u64;
        load.func_info_cnt = function.func_info.len() as u32;
        load.func_info_rec_size = function.func_info_rec_size as u32;
    }
    if !log.is_empty() {
        load.log_level = words as u32;
        load.log_size = log.len() as u32;
        load.log_buf = log.as_mut_ptr() as u64;
    }
    // SAFETY: all that is pointed to outlives the call, with the sizes that are given.
    let loaded = unsafe { descriptor_of(bpf_cmd::BPF_PROG_LOAD, &mut attributes) };
    drop(functions);
    loaded
}

fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: a union of plain integers, zeroed.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = types.as_ptr() as u64;
    load.btf_size = types.len() as u32;
    // SAFETY: `types` is as long as it says, and outlives the call.
    unsafe { descriptor_of(bpf_cmd::BPF_BTF_LOAD, &mut attributes) }
}

/// Attaches a tracing program to what it was loaded for, until the link is dropped.
pub fn attach(program: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: plain numbers, and no name; the command makes a descriptor.
    unsafe { descriptor_of(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) }
}

/// Attaches a program to the tracepoint with this id, until the event is closed. One event runs it on all CPUs.
pub fn attach_event(program: &OwnedFd, id: u64) -> io::Result<OwnedFd> {
    const ENABLE: libc::Ioctl = 0x2400;
    const SET_BPF: libc::Ioctl = 0x4004_2408;
    let event = mapping::open_tracepoint(id)?;
    for (request, argument) in [(SET_BPF, program.as_raw_fd()), (ENABLE, 0)] {
        // SAFETY: a perf event, and plain numbers.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(event)
}

/// What the kernel says of a program.
pub fn info(program: &OwnedFd) -> io::Result<bpf_prog_info> {
    // SAFETY: a structure of plain integers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    attributes.info.bpf_fd = program.as_raw_fd() as u32;
    attributes.info.info_len = size_of_val(&info) as u32;
    attributes.info.info = &raw mut info as u64;
    // SAFETY: `info` is as long as it says, and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info)
}

pub fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// `attributes` are those of the command, and all they point to is valid.
pub unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    let size = size_of_val(attributes);
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// # Safety
/// As [`bpf`], and the command makes a descriptor.
pub unsafe fn descriptor_of(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new, and ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(command, attributes)? as RawFd)) }
}
