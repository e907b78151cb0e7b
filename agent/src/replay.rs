//! `vortex-agent replay`: the line over a recording. Needs no root, no kernel and no clock: all of that was recorded.
//!
//! The recording may be anybody's, so it is parsed behind the same lock-in as traffic is.

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cli::Replay,
    complain::complain,
    config::Config,
    confine::{Identity, Mode, harden, lock_in},
    input::Input,
    learned,
    pipeline::{Out, Pipeline, Wanted},
    protocol::exchange::Bounds,
    recording::{Header, Opened, ReadError, Recording},
    redact::Key,
    run::{FAILED, MISUSE, ignore_file_limit},
    sink::{Origin, Ready, Sinks, Type},
};

/// The whole command; returns the exit status.
pub fn replay(arguments: &Replay) -> ExitCode {
    let config = match arguments.config() {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return MISUSE.into();
        }
    };
    match show(arguments, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            FAILED.into()
        }
    }
}

fn show(arguments: &Replay, config: &Config) -> Result<()> {
    harden().context("make the process undumpable")?;
    ignore_file_limit();
    let name = arguments.file.display();
    let context = || format!("replay {name}");
    let opened = Opened::open(&arguments.file).with_context(context)?;
    if is_output(opened.file(), config)? {
        bail!("-o: that is the recording itself, and would be emptied");
    }
    let learned = arguments.baseline.as_deref();
    let learned = learned.map(learned::Opened::named).transpose()?;
    let outputs = Ready::open(&config.sinks, false, &Origin::new()?)?;
    lock_in(Identity::default(), Mode::Enforce)?;
    let (header, mut recording) = opened.read().with_context(context)?;
    let mut pipeline = Pipeline::new(wanted(config, &header));
    if let Some(opened) = learned {
        let (learned, _) = opened.parse();
        let baseline = learned
            .baseline
            .context("--baseline: nothing in it can be read")?;
        pipeline.remember(baseline);
    }
    let mut sinks = Sinks::start(outputs.without_recovery(), &header.origin)?;
    let exes = &config.filter.exes;
    let played = play(&mut recording, &mut pipeline, exes, &mut |record| {
        // No record may be dropped, and there is time.
        while sinks.is_full() && !sinks.drain(Instant::now() + PATIENCE).is_empty() {}
        sinks.write(record);
    });
    while !sinks.drain(Instant::now() + PATIENCE).is_empty() {}
    if let Some(failure) = sinks.failures().pop() {
        return match failure.is_broken_pipe() {
            true => Ok(()),
            false => Err(failure.into()),
        };
    }
    if !played.with_context(context)? {
        complain(format!(
            "{name} ends before its run did: this is what came until then"
        ));
    }
    Ok(())
}

/// How long to wait before one waits again: nobody else waits for a replay.
const PATIENCE: Duration = Duration::from_secs(3600);

fn is_output(recording: &File, config: &Config) -> Result<bool> {
    let recording = rustix::fs::fstat(recording)?;
    let is_recording = |path: &Path| {
        // One that is not there yet is none.
        rustix::fs::stat(path).is_ok_and(|output| {
            (output.st_dev, output.st_ino) == (recording.st_dev, recording.st_ino)
        })
    };
    Ok(config.sinks.iter().any(|sink| match &sink.to {
        Type::File(file) => is_recording(&file.path),
        _ => false,
    }))
}

/// What is shown is asked for anew; whom the run watched and what its ids are made of is what it was.
pub fn wanted(config: &Config, header: &Header) -> Wanted {
    let exes = match &config.filter.exes[..] {
        [] => header.exes.clone(),
        exes => exes.to_vec(),
    };
    Wanted {
        emit: config.emit(),
        undecoded: config.is_undecoded_told(),
        live: config.is_live(),
        bounds: Bounds::of(config.body_limit),
        content: config.content,
        exes,
        uids: header.uids.clone(),
        comms: header.comms.clone(),
        names: header.names.clone(),
        // Where there is one nothing is recorded.
        policy: None,
        prices: config.prices.clone(),
        findings: config.findings.clone(),
        key: header.key,
        secret_key: Key::new(header.secret_key),
    }
}

/// Tells the line all of it. Was it whole? `exes`: asked for now, if any, whatever the run watched.
pub fn play(
    recording: &mut Recording<impl Read>,
    pipeline: &mut Pipeline,
    exes: &[String],
    out: Out<'_>,
) -> Result<bool, ReadError> {
    let mut is_whole = false;
    while let Some((now, input)) = recording.input()? {
        is_whole = matches!(&input, Input::Count(count) if count.last);
        let input = match input {
            // What the run showed is not what is asked for now.
            Input::Show(_) => continue,
            Input::Watch {
                uids, comms, names, ..
            } if !exes.is_empty() => Input::Watch {
                exes: exes.to_vec(),
                uids,
                comms,
                names,
            },
            input => input,
        };
        pipeline.take(input, now, out);
        pipeline.ask_nobody();
    }
    Ok(is_whole)
}
