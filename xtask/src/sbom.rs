//! What the program is made of, as a CycloneDX document: every crate that is linked into it or into its kernel
//! programs, with version, licence, and the checksum by which cargo knows it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    release::{self, Release, VERSION},
    sh::{self, MINUTE},
};

/// The program, and what is built into it by its build script.
const ROOTS: [(&str, &[&str]); 2] = [
    ("agent/Cargo.toml", &["--filter-platform", release::TARGET]),
    ("agent-ebpf/Cargo.toml", &["--features", "program"]),
];

pub(crate) fn cyclone(release: &Release) -> Result<String> {
    let sums = checksums(&fs::read_to_string(sh::root().join("Cargo.lock"))?);
    let mut components = BTreeMap::new();
    for (manifest, options) in ROOTS {
        let mut cargo = sh::command("cargo");
        cargo
            .args(["metadata", "--locked", "--format-version=1"])
            .arg("--manifest-path")
            .arg(sh::root().join(manifest))
            .args(options);
        let metadata = serde_json::from_str(&sh::output(&mut cargo, 2 * MINUTE)?)?;
        components.extend(linked(&metadata, &sums)?);
    }
    ensure!(components.len() > 20, "only {} crates", components.len());
    let compiler = sh::output(sh::command("rustc").arg("--version"), MINUTE)?;
    let compiler = compiler.split_whitespace().nth(1).unwrap_or_default();
    let mut components: Vec<Value> = components.into_values().collect();
    components.push(json!({
        "type": "library", "name": "std", "version": compiler,
        "description": "Rust's standard library, with musl inside",
        "licenses": [{ "expression": "MIT OR Apache-2.0" }],
    }));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": format!("vortex-agent@{VERSION}"),
                "name": "vortex-agent",
                "version": VERSION,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
                "properties": [{ "name": "revision", "value": release.revision }],
            },
        },
        "components": components,
    });
    Ok(format!("{document:#}\n"))
}

/// What is linked: no tool of the build, nothing of the tests, and not our own crates, which are the program.
fn linked(
    metadata: &Value,
    sums: &HashMap<(String, String), String>,
) -> Result<BTreeMap<(String, String), Value>> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let nodes = list(&metadata["resolve"]["nodes"]);
    let nodes: HashMap<&str, &Value> = nodes
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let root = metadata["resolve"]["root"].as_str().context("no root")?;
    let mut wanted = vec![root.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let node = nodes.get(id.as_str()).context("no such package")?;
        for one in list(&node["deps"]) {
            let is_linked = list(&one["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"].is_null());
            if is_linked {
                wanted.extend(one["pkg"].as_str().map(str::to_owned));
            }
        }
    }
    let mut components = BTreeMap::new();
    for package in list(&metadata["packages"]) {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let is_macro = list(&package["targets"])
            .iter()
            .any(|target| target["kind"] == json!(["proc-macro"]));
        if !seen.contains(&text("id")) || package["source"].is_null() || is_macro {
            continue;
        }
        let (name, version) = (text("name"), text("version"));
        let place = format!("pkg:cargo/{name}@{version}");
        let key = (name, version);
        let sum = sums.get(&key).context("a crate without a checksum")?;
        let component = json!({
            "type": "library",
            "bom-ref": place,
            "name": key.0,
            "version": key.1,
            "purl": place,
            "licenses": [{ "expression": text("license").replace('/', " OR ") }],
            "hashes": [{ "alg": "SHA-256", "content": sum }],
        });
        components.insert(key, component);
    }
    Ok(components)
}

/// Name and version to what `Cargo.lock` says.
fn checksums(lock: &str) -> HashMap<(String, String), String> {
    let packages = lock.split("[[package]]").skip(1);
    let found = packages.filter_map(|package| {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_matches(['=', ' ', '"']).to_owned())
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed() {
        let package = |name: &str, kind: &str, source: Value| {
            json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                    "source": source, "targets": [{ "kind": [kind] }] })
        };
        let needs =
            |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [
                package("ours", "bin", Value::Null), package("lib", "lib", json!("r")),
                package("deep", "lib", json!("r")), package("tool", "lib", json!("r")),
                package("derive", "proc-macro", json!("r")),
            ],
            "resolve": { "root": "ours", "nodes": [
                { "id": "ours", "deps": [needs("lib", Value::Null), needs("tool", json!("build")),
                                         needs("derive", Value::Null)] },
                { "id": "lib", "deps": [needs("deep", Value::Null), needs("tool", json!("dev"))] },
                { "id": "deep", "deps": [needs("lib", Value::Null)] },
                { "id": "tool", "deps": [] }, { "id": "derive", "deps": [] },
            ]},
        });
        let lock = "[[package]]\nname = \"lib\"\nversion = \"1.0.0\"\nchecksum = \"aa\"\n\
                    [[package]]\nname = \"deep\"\nversion = \"1.0.0\"\nchecksum = \"bb\"\n";
        let components = linked(&metadata, &checksums(lock)).expect("all there");
        let names: Vec<_> = components.keys().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["deep", "lib"]);
        let lib = &components[&("lib".to_owned(), "1.0.0".to_owned())];
        assert_eq!(lib["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(lib["hashes"][0]["content"], "aa");
    }
}
