//! `cargo xtask image`: the container image, an OCI layout in one tar. It holds the program and nothing else: no shell,
//! no library, no list of users. Nothing is fetched, and the same program gives the same digest.

use std::{fs, path::PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    release::{self, Release, VERSION},
    sh,
    tar::Tar,
};

/// As the manifests name it.
pub(crate) const NAME: &str = concat!("vortex-agent:", env!("CARGO_PKG_VERSION"));
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Where volumes are mounted: the root is read-only when a runtime wants to make them.
const DIRECTORIES: [&str; 14] = [
    "dev/",
    "etc/",
    "etc/vortex-agent/",
    "proc/",
    "run/",
    "run/vortex-agent/",
    "sys/",
    "usr/",
    "usr/bin/",
    "var/",
    "var/cache/",
    "var/cache/vortex-agent/",
    "var/lib/",
    "var/lib/vortex-agent/",
];

pub(crate) fn command() -> Result<()> {
    let release = release::build()?;
    let (path, digest) = write(&release)?;
    sh::say(&format!("{}\n{NAME} {digest}", path.display()));
    Ok(())
}

/// Leaves the image beside the packages.
pub(crate) fn write(release: &Release) -> Result<(PathBuf, String)> {
    let program = fs::read(&release.program)?;
    let sbom = fs::read(release.sbom())?;
    let image = Image::new(&program, &sbom, &release.revision, release.time);
    let path = release.dir.join(format!("vortex-agent-{VERSION}.oci.tar"));
    fs::write(&path, image.archive)?;
    Ok((path, image.digest))
}

struct Image {
    archive: Vec<u8>,
    /// Of the manifest: what a registry calls it.
    digest: String,
}

impl Image {
    fn new(program: &[u8], sbom: &[u8], revision: &str, time: u64) -> Self {
        let mut layer = Tar::default();
        DIRECTORIES.iter().for_each(|name| layer.directory(name));
        layer.file("usr/bin/vortex-agent", 0o755, program);
        let layer = layer.finish();
        let about = json!({
            "org.opencontainers.image.title": "vortex-agent",
            "org.opencontainers.image.description":
                "Shows the plaintext of TLS traffic on Linux without certificates, proxies or code changes",
            "org.opencontainers.image.version": VERSION,
            "org.opencontainers.image.revision": revision,
            "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            "org.opencontainers.image.vendor": "The Vortex authors",
        });
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": date(time),
            "config": {
                // The half without privileges becomes somebody else by itself.
                "User": "0:0",
                "Env": ["PATH=/usr/bin"],
                "Entrypoint": ["/usr/bin/vortex-agent"],
                "Cmd": ["daemon", "--config", "/etc/vortex-agent/config.toml"],
                "WorkingDir": "/",
                "Labels": about,
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": date(time), "created_by": "cargo xtask image" }],
        });
        let config = config.to_string().into_bytes();
        let mut annotations = about;
        annotations["org.opencontainers.image.created"] = date(time).into();
        annotations["dev.vortex.sbom"] = digest(sbom).into();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
            "annotations": annotations,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        // containerd goes by the first, podman by the second.
        entry["annotations"] = json!({
            "io.containerd.image.name": format!("docker.io/library/{NAME}"),
            "org.opencontainers.image.ref.name": NAME,
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });

        let mut archive = Tar::default();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        archive.file("index.json", 0o644, index.to_string().as_bytes());
        archive.directory("blobs/");
        archive.directory("blobs/sha256/");
        for blob in [&manifest, &config, &layer] {
            let name = digest(blob).replace(':', "/");
            archive.file(&format!("blobs/{name}"), 0o644, blob);
        }
        Self {
            archive: archive.finish(),
            digest: digest(&manifest),
        }
    }
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(blob), "size": blob.len() })
}

fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex = sum.iter().map(|byte| format!("{byte:02x}"));
    hex.fold("sha256:".to_owned(), |all, byte| all + &byte)
}

/// As RFC 3339 wants it, of seconds since 1970.
fn date(time: u64) -> String {
    let (mut days, second) = (time / 86_400, time % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_305_600, "2026-11-22T00:00:00Z"),
        ] {
            assert_eq!(date(time), text);
        }
    }

    #[test]
    fn the_same_is_the_same() {
        let image = |program: &[u8], revision: &str| Image::new(program, b"{}", revision, 1);
        let one = image(b"program", "r");
        assert_eq!(one.archive, image(b"program", "r").archive);
        assert_ne!(one.digest, image(b"program.", "r").digest);
        assert_ne!(one.digest, image(b"program", "s").digest);
        assert_eq!(
            digest(b"{}"),
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }
}
