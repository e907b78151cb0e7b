//! `vortex-agent attach`: the privileged half as a process. Started by the agent, of no use by itself.

use std::{os::fd::AsFd as _, process::ExitCode};

use crate::{
    cli::Attach,
    complain::complain,
    half::{self, Report},
    helper::call_ourselves,
    launch::{become_half, inherit_or_dial},
    obstacle::Obstacle,
    probe::{self, Options},
};

pub fn attach(arguments: &Attach) -> ExitCode {
    call_ourselves(c"vortex-attach");
    let pipeline = match become_half().and_then(|()| inherit_or_dial(arguments.connect.as_deref()))
    {
        Ok(pipeline) => pipeline,
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    let options = Options {
        ring_bytes: arguments.ring_size,
        allow_multi: !arguments.no_multi,
        gauge: arguments.gauge,
        plain: &arguments.plain,
    };
    let Err(error) = probe::serve(pipeline.socket.as_fd(), options) else {
        return ExitCode::SUCCESS;
    };
    // The other half says it, in one line, with its exit status. If it is gone nobody wants to know:
    // the shell's next prompt may be there already.
    let _ = half::send(
        &pipeline.socket,
        &Report::Failed {
            why: half::clip(&format!("{error:#}")),
            obstacle: Obstacle::of(&error),
        },
        &[],
    );
    ExitCode::FAILURE
}
