//! What is done with one file, and waits for its file system and for the kernel: opening it, placing its
//! probes. In a worker's thread.

use std::{io, os::fd::OwnedFd};

use super::{
    file::{self, Version},
    identity::Inode,
    layer,
    lease::{self, Asked},
    link::{Attachment, Programs},
    mapping::Mapping,
    watch::{Watch, Watches},
};
use crate::half::{self, Site};

/// What is attached to a file. Dropping it detaches, in up to 200 ms, and then lets writers go on.
pub struct Probes {
    _links: Vec<Attachment>,
    /// Holds the lease.
    pub leased: Option<OwnedFd>,
    /// Instead of a lease.
    pub watch: Option<Watch>,
    pub inode: Option<Inode>,
}

/// A file that was opened.
pub struct Opened {
    /// For the pipeline.
    pub fd: OwnedFd,
    pub inode: Option<Inode>,
    /// What the mapping's name led to was another file: the one that is mapped.
    pub instead: Option<(OwnedFd, Version)>,
}

/// The same file, probed through another mount.
pub struct Moved {
    pub fd: OwnedFd,
    pub mount: Option<u64>,
    pub sites: Vec<Site>,
    pub probes: Probes,
}

pub const REPLACED: &str = "it was replaced, and nothing leads to the one that is mapped";

/// Opens a file for the pipeline, and asks which one it is: the one that is mapped, or none. Of a doubtful one
/// whoever has no answer yet asks again. Waits for the file system.
pub fn open(
    programs: &Programs,
    file: &OwnedFd,
    mapping: &Mapping,
    is_doubtful: bool,
    mapped: Option<Inode>,
) -> io::Result<Opened> {
    let ask_again = || programs.inode_mapped_at_last(mapping);
    let mapped = mapped.or_else(|| is_doubtful.then(ask_again).flatten());
    let mut opened = file::readable(file)?;
    let mut inode = programs.inode(&opened);
    let mut instead = None;
    // Not known is not another one.
    if let Some(mapped) = mapped
        && inode.is_some_and(|inode| inode != mapped)
    {
        instead = layer::find(programs, mapping, file, mapped);
        let Some((named, _)) = &instead else {
            return Err(io::Error::other(REPLACED));
        };
        opened = file::readable(named)?;
        inode = Some(mapped);
    }
    Ok(Opened {
        fd: file::for_pipeline(opened)?,
        inode,
        instead,
    })
}

/// Places the probes of one file; `own` is the pipeline's descriptor of it, if it has one. Waits for the
/// file system and for the kernel.
pub fn place(
    programs: &Programs,
    watches: &Watches,
    file: &OwnedFd,
    own: Option<OwnedFd>,
    sites: &[Site],
    only: &[u32],
) -> Result<Probes, String> {
    let opened = own.map_or_else(|| file::readable(file), Ok);
    let opened = opened.map_err(|error| format!("open it: {error}"))?;
    let is_leased = match lease::take(&opened) {
        Asked::Granted => true,
        Asked::BeingWritten => return Err("somebody is writing it".to_owned()),
        Asked::Impossible => false,
    };
    // Before the bytes are compared: what is written later is told.
    let watch = match is_leased {
        true => None,
        false => watches.add(&opened),
    };
    file::check_sites(&opened, sites)?;
    let links = programs
        .attach(file, sites, only)
        .map_err(|error| half::clip(&format!("attach: {error:#}")))?;
    let inode = programs.inode(&opened);
    let probes = |opened| Probes {
        _links: links,
        leased: is_leased.then_some(opened),
        watch,
        inode,
    };
    if !programs.is_for_everybody(only) {
        // Not in a mapping of ours, so there is nothing to look at. An instruction that the kernel
        // refuses is an error where the file is mapped already.
        return Ok(probes(opened));
    }
    match file::check_placed(&opened, sites) {
        Ok(true) => Ok(probes(opened)),
        Ok(false) => Err("the kernel accepted the probes and did not place them".to_owned()),
        Err(error) => Err(format!("look whether the probes are in place: {error}")),
    }
}

/// Places the probes of a file once more, through the mount that this mapping was made by. Waits for the
/// file system and for the kernel.
pub fn place_again(
    programs: &Programs,
    watches: &Watches,
    mapping: &Mapping,
    inode: Inode,
    sites: Vec<Site>,
    only: &[u32],
) -> io::Result<Moved> {
    let (fd, _) = file::mapped(mapping)?;
    let opened = file::readable(&fd)?;
    if programs.inode(&opened) != Some(inode) {
        return Err(io::Error::other("its name leads to another file"));
    }
    let probes =
        place(programs, watches, &fd, Some(opened), &sites, only).map_err(io::Error::other)?;
    Ok(Moved {
        mount: file::mount(&fd),
        fd,
        sites,
        probes,
    })
}
