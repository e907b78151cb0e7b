//! Debug lines of the kernel programs (`--features kernel-log`), on stderr.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use crate::complain::complain;

/// The programs' own ring; read at each turn of the half's loop.
pub struct KernelLog(EbpfLogger<Stderr>);

impl KernelLog {
    pub fn open(ebpf: &mut Ebpf) -> Result<KernelLog> {
        log::set_max_level(log::LevelFilter::Trace);
        let logger = EbpfLogger::init_with_logger(ebpf, Stderr);
        Ok(KernelLog(logger.context("open the kernel programs' log")?))
    }

    pub fn flush(&mut self) {
        self.0.flush();
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        complain(format!("kernel: {}", record.args()));
    }

    fn flush(&self) {}
}
