//! OpenSSL that programs bring along: linked into them, with its symbols and without.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{Lab, PYTHON, Run, argv, bare};
use crate::libraries::{assert_known, blocking, large_bodies, requests};
use crate::records;

/// native-tls with an OpenSSL of its own, stripped and not, and with the machine's.
#[track_caller]
fn native_tls(test: &'static str, client: impl Fn(&Lab, &Path)) {
    for (fixture, name) in [
        ("native-tls-vendored", "bin/stripped"),
        ("native-tls-vendored", "bin/client"),
        ("native-tls", "bin/stripped"),
    ] {
        let Some(lab) = Lab::new(test) else {
            return;
        };
        let Some(program) = lab.fixture(fixture, name) else {
            return;
        };
        client(&lab, &program);
    }
}

/// Its connections are known from their beginning on, and where they lead to.
#[track_caller]
fn assert_whole(run: &Run, attribution: &str, port: u16) {
    assert_known(run, "OpenSSL", attribution, port);
    if bare() {
        return;
    }
    for record in run.records().kind("data") {
        assert_eq!(record["connection"]["joined"], "start", "{record:.300}");
    }
}

/// reqwest on tokio's threads.
#[test]
fn vendored_requests() {
    native_tls("vendored_requests", |lab, program| {
        let (run, port) = requests(lab, program);
        assert_whole(&run, "exact", port);
    });
}

#[test]
fn vendored_large_bodies() {
    native_tls("vendored_large_bodies", large_bodies);
}

#[test]
fn vendored_blocking() {
    for version in ["1.3", "1.2"] {
        native_tls("vendored_blocking", |lab, program| {
            let (run, port) = blocking(lab, program, version);
            assert_whole(&run, "exact", port);
        });
    }
}

/// `cryptography` has the library in a Python module. As it is published the module has its symbols; here also
/// without.
#[track_caller]
fn pyopenssl(test: &'static str, client: &str, attribution: &str) {
    for (fixture, stripped) in [
        ("pyopenssl", None),
        ("pyopenssl", Some("_rust.abi3.so")),
        ("pyopenssl-1.1.1", None),
        ("pyopenssl-1.1.1", Some("_openssl.abi3.so")),
    ] {
        let Some(lab) = Lab::with(test, &["strip"]) else {
            return;
        };
        let Some(published) = lab.fixture(fixture, "OpenSSL") else {
            return;
        };
        let mut modules = published.with_file_name("");
        if let Some(name) = stripped {
            modules = without_symbols(&lab, &modules, name);
        }
        let server = lab.server(&[]);
        let program = lab.program("http_client.py");
        let agent = lab.agent().env("PYTHONPATH", modules);
        let run = agent.run(argv![PYTHON, program, client, server.port.to_string()]);
        run.success();
        run.assert_exact(&server.client_truth());
        assert_whole(&run, attribution, server.port);
    }
}

/// A copy of the modules in `from`, `module` being stripped.
fn without_symbols(lab: &Lab, from: &Path, module: &str) -> PathBuf {
    let to = lab.path("stripped");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(from).arg(&to);
    lab.finish(copy, "cp");
    let mut strip = Command::new("strip");
    strip.arg(to.join("cryptography/hazmat/bindings").join(module));
    lab.finish(strip, "strip");
    to
}

#[test]
fn vendored_pyopenssl() {
    pyopenssl("vendored_pyopenssl", "pyopenssl", "exact");
}

#[test]
fn vendored_pyopenssl_in_memory() {
    let test = "vendored_pyopenssl_in_memory";
    pyopenssl(test, "pyopenssl-memory", "inferred");
}

/// A static program at fixed addresses: nothing says where its functions are, neither symbols nor unwind entries.
#[test]
fn vendored_static_program() {
    let Some(lab) = Lab::with("vendored_static_program", &["cc", "strip"]) else {
        return;
    };
    let program = lab.compiled_static("mix");
    let server = lab.server(&["--mode", "frames"]);
    let port = server.port.to_string();
    let run = lab.agent().run(argv![program, port, "threads=4"]);
    run.success();
    let truth = lab.truth("mix");
    records::same(&truth, &server.client_truth()).unwrap();
    run.assert_exact(&truth);
    assert_whole(&run, "exact", server.port);
}
